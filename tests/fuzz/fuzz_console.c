#include "fuzz.h"

#include "cli/drill_record.h"
#include "node/keeper/ring.h"

#include <stdlib.h>
#include <string.h>

/* What a guest prints: through the keeper's ring of its newest bytes, and through the drill's reader of beat lines. A record that is fed
 * byte by byte must come to the same as one that is fed in pieces. */

#define EPOCHS 24u /* more than a record has streams */

static struct mst_ring ring;

/* The ring against the plain bytes. */
static void ring_check(const uint8_t *all, size_t len, uint64_t offset, size_t max)
{
    uint8_t *out = malloc(max ? max : 1);
    uint64_t at = offset;
    size_t n;

    FUZZ_CHECK(out);
    n = mst_ring_read(&ring, &at, out, max);
    FUZZ_CHECK(n <= max && at >= mst_ring_begin(&ring) && at + n <= ring.end && ring.end == len);
    FUZZ_CHECK(at == offset || offset < mst_ring_begin(&ring) || offset > ring.end);
    FUZZ_CHECK(n == 0 || memcmp(out, all + at, n) == 0);
    free(out);
}

static void on_beat(const struct drill_vm_record *vm, const struct drill_beat *beat, void *arg)
{
    (void)vm;
    FUZZ_CHECK(beat->n > 0 && beat->epoch < EPOCHS && memchr(beat->node, '\0', sizeof(beat->node)));
    (*(unsigned *)arg)++;
}

static void on_other(const struct drill_vm_record *vm, const char *line, uint64_t epoch, void *arg)
{
    (void)vm;
    (void)arg;
    FUZZ_CHECK(epoch < EPOCHS && strlen(line) < DRILL_LINE_BYTES && !strchr(line, '\n'));
}

static void feed(struct drill_record *rec, uint64_t epoch, uint64_t offset, const uint8_t *data, size_t len, size_t step)
{
    unsigned beats = 0;
    struct drill_record_events events = {on_beat, on_other, &beats};
    size_t before = rec->vms[0].beats_count;

    for (size_t at = 0; at < len; at += step) {
        size_t n = len - at < step ? len - at : step;
        uint8_t *piece = fuzz_copy(data + at, n);

        FUZZ_CHECK(drill_record_feed(&rec->vms[0], epoch, offset + at, "n1", piece, n, 7, false, &events) == 0);
        free(piece);
    }
    FUZZ_CHECK(rec->vms[0].beats_count == before + beats && rec->vms[0].streams_count <= DRILL_STREAMS_MAX);
}

static void same(const struct drill_vm_record *a, const struct drill_vm_record *b)
{
    FUZZ_CHECK(a->beats_count == b->beats_count && a->epoch == b->epoch && a->holes == b->holes);
    for (size_t i = 0; i < a->beats_count; i++)
        FUZZ_CHECK(a->beats[i].n == b->beats[i].n && a->beats[i].guest_ms == b->beats[i].guest_ms &&
                   a->beats[i].ok == b->beats[i].ok && a->beats[i].boot == b->beats[i].boot &&
                   a->beats[i].epoch == b->beats[i].epoch && a->beats[i].joined == b->beats[i].joined);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct fuzz_in in = {data, size};
    struct drill_record whole, bytes;
    uint8_t *all = malloc(size + 1);
    size_t all_len = 0;

    FUZZ_CHECK(all && drill_record_init(&whole, 1) == 0 && drill_record_init(&bytes, 1) == 0);
    strcpy(whole.vms[0].name, "vm");
    strcpy(bytes.vms[0].name, "vm");
    ring.end = 0;
    while (in.left > 0) {
        uint64_t epoch = fuzz_u8(&in) % EPOCHS;
        uint16_t offset = fuzz_u16(&in); /* within the epoch, or where it left off */
        uint64_t at = offset;
        size_t len;
        const uint8_t *piece = fuzz_piece(&in, &len);

        for (unsigned i = 0; offset == UINT16_MAX && i < whole.vms[0].streams_count; i++)
            if (whole.vms[0].streams[i].epoch == epoch)
                at = whole.vms[0].streams[i].next;
        if (len > 0) {
            feed(&whole, epoch, at, piece, len, len);
            feed(&bytes, epoch, at, piece, len, 1);
            same(&whole.vms[0], &bytes.vms[0]);
            memcpy(all + all_len, piece, len);
            all_len += len;
            mst_ring_append(&ring, piece, len);
        }
        ring_check(all, all_len, offset, len * 2);
    }
    drill_record_free(&whole);
    drill_record_free(&bytes);
    free(all);
    return 0;
}

static struct fuzz_out out;

static void say(unsigned epoch, unsigned offset, const char *text)
{
    fuzz_put(&out, epoch, 1);
    fuzz_put(&out, offset, 2);
    fuzz_put_piece(&out, text, strlen(text));
}

void fuzz_seeds(void)
{
    say(1, 0, "guest boot\nbeat 1 seq=1 t=0.100 witness=ok\nbeat 2 t=0.200 witness=ok\r\nbe");
    say(1, UINT16_MAX, "at 3 t=0.300 witness=BROKEN page 7\nsomething else\nbeat 4 t=0");
    say(2, UINT16_MAX, ".400 witness=ok\nbeat 5 t=0.500 witness=ok\n");
    say(2, 3, "00 witness=ok\nbeat 5 t=0.500 witness=ok\nbeat 6 t=0.600 witness=ok\n");
    fuzz_seed("story", out.bytes, out.len);
    out.len = 0;
    say(1, 0, "beat 7 t=18446744073709551615.1000 witness=ok\n");
    say(1, 400, "xxxxbeat 8 t=1.2 witness=oky\nguest boot beat 9 witness=ok\n");
    for (unsigned i = 2; i < 20; i++)
        say(i, 0, "beat 1 t=0.001 witness=ok");
    fuzz_seed("epochs", out.bytes, out.len);
}
