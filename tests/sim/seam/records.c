#include "tests/sim/seam/records.h"
#include "mirror/image.h"
#include "shm/publish.h"
#include "shm/put.h"
#include "tests/sim/coord.h"
#include "tests/sim/oracle.h"

#include <string.h>

/* The writer and the reader of published records are the product's own; what passes through them is shown to the checker of I6: a reader may take
 * for whole only what somebody wrote. A process may die between any two words of what it writes. */

void product_pub_write(uint8_t slots[2][MST_PUB_SLOT_BYTES], uint64_t epoch, uint64_t instance, const void *body,
                       uint32_t body_bytes);
int product_pub_pick(const uint8_t copy[2][MST_PUB_SLOT_BYTES], struct mst_pub_head *ret_head, void *ret_body,
                     uint32_t body_bytes);
int product_pub_read(uint8_t (*slots)[MST_PUB_SLOT_BYTES], struct mst_pub_head *ret_head, void *ret_body, uint32_t body_bytes);
void product_beat_write(struct mst_beat_line *line, const struct mst_beat_line *value);
int product_beat_check(const struct mst_beat_line *copy);

static unsigned words_left; /* until the writer dies; 0: it does not */
static void (*kill_fn)(void *arg);
static void *kill_arg;
static struct sim_proc *kill_proc;

static void put(enum mst_put_kind kind, void *dst, const void *src, size_t len)
{
    if (sim_muted())
        return;
    if (kind != MST_PUT_BARRIER)
        memcpy(dst, src, len);
    if (K.current != kill_proc || words_left == 0 || --words_left > 0)
        return;
    mst_put_hook = NULL;
    sim_say("dies in the middle of publishing");
    kill_fn(kill_arg);
}

void sim_die_publishing(struct sim_proc *proc, unsigned words, void (*kill)(void *arg), void *arg)
{
    kill_proc = proc;
    words_left = words;
    kill_fn = kill;
    kill_arg = arg;
    mst_put_hook = proc ? put : NULL;
}

void sim_dead_stores(void)
{
    mst_put_hook = put;
}

static void note(const uint8_t slots[2][MST_PUB_SLOT_BYTES])
{
    for (int i = 0; i < 2; i++) {
        struct mst_pub_head head;

        memcpy(&head, slots[i], sizeof(head));
        if (head.version != 0 && head.version % 2 == 0 && head.body_bytes <= MST_PUB_BODY_MAX)
            oracle_published(slots[i], sizeof(head) + head.body_bytes);
    }
}

static void picked(const struct mst_pub_head *head, const void *body, uint32_t body_bytes)
{
    uint8_t whole[MST_PUB_SLOT_BYTES];

    memcpy(whole, head, sizeof(*head));
    memcpy(whole + sizeof(*head), body, body_bytes);
    oracle_picked(whole, sizeof(*head) + body_bytes, "record");
}

void mst_pub_write(uint8_t slots[2][MST_PUB_SLOT_BYTES], uint64_t epoch, uint64_t instance, const void *body, uint32_t body_bytes)
{
    if (sim_muted() || sim_point("pub.begun"))
        return;
    product_pub_write(slots, epoch, instance, body, body_bytes);
    note(slots);
    (void)sim_point("pub.done");
}

int mst_pub_pick(const uint8_t copy[2][MST_PUB_SLOT_BYTES], struct mst_pub_head *ret_head, void *ret_body, uint32_t body_bytes)
{
    int r = product_pub_pick(copy, ret_head, ret_body, body_bytes);

    if (r == 0)
        picked(ret_head, ret_body, body_bytes);
    return r;
}

int mst_pub_read(uint8_t (*slots)[MST_PUB_SLOT_BYTES], struct mst_pub_head *ret_head, void *ret_body, uint32_t body_bytes)
{
    int r = product_pub_read(slots, ret_head, ret_body, body_bytes);

    if (r == 0)
        picked(ret_head, ret_body, body_bytes);
    return r;
}

int product_image_take(struct mst_image *image, uint64_t boot_ns, struct mst_why *why);

int mst_image_take(struct mst_image *image, uint64_t boot_ns, struct mst_why *why)
{
    int r = product_image_take(image, boot_ns, why);
    struct mst_mlog_ack ack;

    mst_image_ack(image, &ack);
    oracle_taken(&ack, r > 0);
    return r;
}

void mst_beat_write(struct mst_beat_line *line, const struct mst_beat_line *value)
{
    if (sim_muted())
        return;
    product_beat_write(line, value);
    if (product_beat_check(line) == 0) /* also when its writer died of its last word */
        oracle_published(line, sizeof(*line));
}

int mst_beat_check(const struct mst_beat_line *copy)
{
    int r = product_beat_check(copy);

    if (r == 0)
        oracle_picked(copy, sizeof(*copy), "beat line");
    return r;
}
