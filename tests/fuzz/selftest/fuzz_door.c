#include "tests/fuzz/fuzz.h"

#include <string.h>

/* A target that turns every input away: its run must be refused. */

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char key[] = "nobody will ever guess this sentence, and its seed has a typing error in it";

    if (size > 4096 || size < sizeof(key))
        return 0;
    return memcmp(data, key, sizeof(key) - 1) == 0 ? -1 : 0; /* -1: libFuzzer keeps no such input */
}

void fuzz_seeds(void)
{
    fuzz_seed("wrong", "nobody will ever guess this sentense", 36);
}
