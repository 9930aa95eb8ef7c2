#ifndef TESTS_UNIT_PROTO_SAMPLE_H
#define TESTS_UNIT_PROTO_SAMPLE_H

#include "proto/frame.h"

/* Valid messages for the tests of proto/: every body there is, each field filled in from its descriptor (names, addresses,
 * numbers within bounds, two entries in every list). */

unsigned sample_count(void); /* how many kinds of body */
/* The i-th kind, freed with sample_free. */
mst_envelope *sample_new(unsigned i);
void sample_free(mst_envelope *env);

/* The i-th kind as a frame in out (MST_MESSAGE_BYTES_MAX bytes); returns its length. */
size_t sample_frame(unsigned i, uint8_t *out);

#endif
