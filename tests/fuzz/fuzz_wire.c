#include "fuzz.h"

#include "fabric/wire.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* What the fabric itself reads: private data of connect, accept and refusal, headers of SENDs. First byte: which of them. */

enum { HELLO, REJECT, SEND, KINDS };

static bool printable(const char *text)
{
    for (; *text; text++)
        if ((unsigned char)*text < ' ' || (unsigned char)*text > '~')
            return false;
    return true;
}

static void hello(const uint8_t *in, size_t len)
{
    struct mst_wire_hello got;
    struct mst_why why;
    uint8_t out[MST_WIRE_REQ_BYTES];
    size_t n;

    if (mst_wire_hello_get(in, len, &got, &why) < 0)
        return;
    FUZZ_CHECK(got.role >= MST_ROLE_CONTROL && got.role <= MST_ROLE_MIRROR && got.recvs >= MST_WIRE_RECVS_MIN);
    FUZZ_CHECK((size_t)MST_WIRE_HELLO_BYTES + got.data_bytes <= len && got.data_bytes <= MST_CONNECT_DATA_MAX);
    n = mst_wire_hello_put(&got, in + MST_WIRE_HELLO_BYTES, out);
    FUZZ_CHECK(n == (size_t)MST_WIRE_HELLO_BYTES + got.data_bytes && memcmp(out, in, 6) == 0);
    FUZZ_CHECK(memcmp(out + MST_WIRE_HELLO_BYTES, in + MST_WIRE_HELLO_BYTES, got.data_bytes) == 0);
}

static void reject(const uint8_t *in, size_t len)
{
    struct mst_why why = {"?"};
    int err = 0;

    if (mst_wire_reject_get(in, len, &err, &why) < 0)
        return;
    FUZZ_CHECK(err < 0 && err > -4096 && printable(why.text) && strlen(why.text) < MST_WIRE_REJECT_BYTES);
}

static void send_header(const uint8_t *in, size_t len)
{
    struct mst_wire_send got;
    struct mst_why why;
    uint8_t out[MST_WIRE_SEND_BYTES];

    if (mst_wire_send_get(in, len, &got, &why) < 0)
        return;
    FUZZ_CHECK(got.bytes == len - MST_WIRE_SEND_BYTES && got.bytes <= MST_MESSAGE_BYTES_MAX);
    mst_wire_send_put(&got, out);
    FUZZ_CHECK(memcmp(out, in, sizeof(out)) == 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    uint8_t *copy;

    if (size == 0)
        return 0;
    copy = fuzz_copy(data + 1, size - 1);
    switch (data[0] % KINDS) {
    case HELLO:
        hello(copy, size - 1);
        break;
    case REJECT:
        reject(copy, size - 1);
        break;
    default:
        send_header(copy, size - 1);
    }
    free(copy);
    return 0;
}

void fuzz_seeds(void)
{
    static const uint8_t roles[] = {MST_ROLE_CONTROL, MST_ROLE_WATCH, MST_ROLE_PULL, MST_ROLE_MIRROR};
    struct mst_wire_send message = {.kind = MST_WIRE_MESSAGE, .credits = 3, .bytes = 20}, credit = {.kind = MST_WIRE_CREDIT};
    uint8_t seed[1 + MST_WIRE_REJECT_BYTES] = {HELLO};
    char name[32];
    size_t n;

    for (unsigned i = 0; i < sizeof(roles) / sizeof(roles[0]); i++) {
        struct mst_wire_hello to = {
            .version = MST_WIRE_VERSION, .role = roles[i], .recvs = 16, .data_bytes = (uint8_t)(i * (MST_CONNECT_DATA_MAX / 3))};

        n = mst_wire_hello_put(&to, "0123456789abcdef0123456789abcdef0123456789abcdef", seed + 1);
        name[0] = 'h';
        name[1] = (char)('0' + i);
        name[2] = '\0';
        fuzz_seed(name, seed, 1 + n);
    }
    seed[0] = REJECT;
    n = mst_wire_reject_put(-EACCES, "node n4 is not in coordinator.yaml", seed + 1);
    fuzz_seed("reject", seed, 1 + n);
    seed[0] = SEND;
    mst_wire_send_put(&message, seed + 1);
    fuzz_seed("message", seed, 1 + MST_WIRE_SEND_BYTES + 20);
    mst_wire_send_put(&credit, seed + 1);
    fuzz_seed("credit", seed, 1 + MST_WIRE_SEND_BYTES);
}
