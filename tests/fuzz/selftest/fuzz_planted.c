#include "tests/fuzz/fuzz.h"

#include <stdlib.h>
#include <string.h>

/* A parser with two bugs in it that the harness must find, or it finds nothing: a length that is not checked (AddressSanitizer), and
 * a shift that may be too long (UndefinedBehaviorSanitizer), each behind a door of its own. */

static unsigned planted_overflow(const uint8_t *data, size_t size)
{
    uint8_t *copy = fuzz_copy(data, size);
    unsigned sum = 0;

    for (size_t i = 0; i < data[2]; i++) /* planted: data[2] is not held against size */
        sum += copy[i];
    free(copy);
    return sum;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < 4)
        return 0;
    if (data[0] == 'A' && data[1] == 'S')
        FUZZ_CHECK(planted_overflow(data, size) < 65536);
    else if (data[0] == 'U' && data[1] == 'B' && data[3] < 64)
        FUZZ_CHECK((1 << data[3]) != 3); /* planted: up to 63 */
    return 0;
}

void fuzz_seeds(void)
{
    fuzz_seed("harmless", "AS\0\0", 4);
}
