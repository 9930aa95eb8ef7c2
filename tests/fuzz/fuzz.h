#ifndef MST_TESTS_FUZZ_FUZZ_H
#define MST_TESTS_FUZZ_FUZZ_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Fuzz targets: libFuzzer, one program per reader of foreign bytes (docs/TESTING.md). A target is one file fuzz_NAME.c with the
 * two functions below, and one line in CMakeLists.txt. */

/* One input: whatever the bytes, no crash, no leak, nothing that a sanitizer minds, and the promises of the header hold
 * (FUZZ_CHECK). State is made anew for every input: the same bytes do the same thing. Returns 0. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
/* Makes the seed corpus: calls fuzz_seed for each. Made with the encoders of the product, so that seeds stay valid when a layout
 * changes. Runs as `fuzz_NAME --seeds FOLDER`. */
void fuzz_seeds(void);

/* Only inside fuzz_seeds. name is a file name. */
void fuzz_seed(const char *name, const void *data, size_t len);

/* A promise that is broken ends the program like a crash does. */
#define FUZZ_CHECK(cond) ((cond) ? (void)0 : fuzz_broken(#cond, __FILE__, __LINE__))
_Noreturn void fuzz_broken(const char *what, const char *file, int line);

/* A folder on tmpfs for this process, empty at first; removed at the end. */
const char *fuzz_folder(void);

/* Exactly len bytes of heap: reading past them is seen. NULL never; free(3). */
void *fuzz_copy(const void *data, size_t len);

/* --- inputs that are orders to the target, taken from the front --- */

struct fuzz_in {
    const uint8_t *at;
    size_t left;
};
uint8_t fuzz_u8(struct fuzz_in *in);   /* 0 when there is no more */
uint16_t fuzz_u16(struct fuzz_in *in); /* little-endian, as the others */
uint32_t fuzz_u32(struct fuzz_in *in);
uint64_t fuzz_u64(struct fuzz_in *in);
/* A piece: u16 length, then as many bytes as are there. Borrowed. */
const uint8_t *fuzz_piece(struct fuzz_in *in, size_t *ret_len);

/* The same the other way, for seeds. */
struct fuzz_out {
    size_t len;
    uint8_t bytes[256u << 10];
};
void fuzz_put(struct fuzz_out *out, uint64_t value, unsigned bytes);
void fuzz_put_piece(struct fuzz_out *out, const void *data, size_t len);
void fuzz_put_bytes(struct fuzz_out *out, const void *data, size_t len);

#endif
