/* Is leaving out pages that are equal to what the mirror has worth comparing them? equal_pages [pages]: processor time of a page through the source's own
 * code (delta, shadow, twin of the log), with the comparison and without, by the share of the pages that were written and are the same.
 * And is a mark in place of a page of zeros worth looking whether it is one: what looking costs, and what such a page costs then. */

#include "mirror/send.h"
#include "shm/save.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#define RAM_PAGES UINT64_C(65536)
#define ROUNDS    9u

static struct mst_save_map map = {
    .ram_bytes = RAM_PAGES * MST_PAGE_BYTES, .delta_capacity = RAM_PAGES, .epoch = 1, .instance = 1};
static uint8_t record[2][MST_PUB_SLOT_BYTES];
static struct mst_save_layout save_layout;
static struct mst_delta_layout delta_layout;
static struct mst_save_writer *writer;
static uint8_t *ram;

static void must(bool well, const char *what)
{
    if (well)
        return;
    fprintf(stderr, "equal_pages: %s\n", what);
    exit(1);
}

static uint8_t *memory(uint64_t bytes)
{
    void *at = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);

    must(at != MAP_FAILED, "no memory");
    return at;
}

/* Of this thread: others may be at work on the machine. */
static uint64_t cpu_ns(void)
{
    struct timespec t;

    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static int by_size(const void *left, const void *right)
{
    const double *a = left, *b = right;

    return (*a > *b) - (*a < *b);
}

static double median(double *values)
{
    qsort(values, ROUNDS, sizeof(*values), by_size);
    return values[ROUNDS / 2];
}

/* The guest writes a word somewhere in each page; in share percent of them what was there already. */
static void guest_writes(uint64_t pages, unsigned share)
{
    for (uint64_t i = 0; i < pages; i++) {
        uint64_t *word = (uint64_t *)(void *)(ram + i * MST_PAGE_BYTES) + rand() % 512;

        if ((unsigned)(rand() % 100) >= share)
            *word += 1 + (uint64_t)rand();
    }
}

static void commit(void)
{
    uint64_t room;

    memset(mst_save_device(writer, &room), 1, 64);
    must(mst_save_commit(writer, 64, 1, 1, 1) == 0, "not committed");
}

/* The mirror is not there: what it would acknowledge is, so that there is always room. */
static void sent(struct mst_msend *send, const struct mst_mlog_grant *grant)
{
    struct mst_msend_write write;
    struct mst_mlog_ack ack = {.log_id = grant->log_id, .epoch = grant->epoch};

    while (mst_msend_writes(send, &write, 1) == 1) {
        mst_msend_completed(send, &write);
        ack.consumed = write.end > ack.consumed ? write.end : ack.consumed;
    }
    if (ack.consumed > 0) {
        ack.seq = mst_msend_acked(send);
        must(mst_msend_ack(send, &ack, NULL) == 0, "not acknowledged");
    }
}

static void send_all(struct mst_msend *send, const struct mst_mlog_grant *grant, uint64_t *ret_ns)
{
    uint32_t crc, count = mst_save_delta(writer, &crc);
    const struct mst_delta_entry *table = (const void *)(map.delta + delta_layout.table_off);
    uint64_t start_ns = cpu_ns();

    for (uint32_t i = 0; i < count; i++) {
        int r = mst_msend_page(send, table[i].page, map.delta + delta_layout.data_off + (uint64_t)i * MST_PAGE_BYTES, NULL);

        if (r == -EAGAIN) {
            sent(send, grant);
            i--;
            continue;
        }
        must(r == 1, "not sent");
    }
    mst_msend_flush(send);
    *ret_ns = cpu_ns() - start_ns;
    sent(send, grant);
}

/* us a page of asking whether it is zeros, of pages whose word number `word` is not (512: none). */
static double zeros_asked(uint64_t pages, unsigned word)
{
    static const uint8_t zero_page[MST_PAGE_BYTES];
    double took[ROUNDS];
    uint64_t zeros = 0, start_ns;

    memset(ram, 0, pages * MST_PAGE_BYTES);
    for (uint64_t i = 0; word < 512 && i < pages; i++)
        ((uint64_t *)(void *)(ram + i * MST_PAGE_BYTES))[word] = i + 1;
    for (unsigned i = 0; i < ROUNDS; i++) {
        start_ns = cpu_ns();
        for (uint64_t page = 0; page < pages; page++)
            zeros += memcmp(ram + page * MST_PAGE_BYTES, zero_page, MST_PAGE_BYTES) == 0;
        took[i] = (double)(cpu_ns() - start_ns) / 1e3 / (double)pages;
    }
    must(zeros == (word < 512 ? 0 : ROUNDS * pages), "pages are not what they were made");
    return median(took);
}

/* us a page that the source takes to send what the guest's pages are now, and MiB on the wire. */
static double zeros_sent(struct mst_msend *send, const struct mst_mlog_grant *grant, uint64_t pages, double *ret_wire)
{
    double took[ROUNDS];

    for (unsigned i = 0; i < ROUNDS; i++) {
        uint64_t send_ns, wire_before = mst_msend_stats(send).wire_bytes;

        mst_save_begin(writer);
        for (uint64_t page = 0; page < pages; page++)
            must(mst_save_stage(writer, page) >= 0, "stage");
        commit();
        send_all(send, grant, &send_ns);
        mst_save_apply(writer);
        took[i] = (double)send_ns / 1e3 / (double)pages;
        *ret_wire = (double)(mst_msend_stats(send).wire_bytes - wire_before) / (1 << 20);
    }
    return median(took);
}

static void zeros(struct mst_msend *send, const struct mst_mlog_grant *grant, uint64_t pages)
{
    static const struct {
        const char *what;
        unsigned word;
    } kinds[] = {{"first word is not zero", 0}, {"last word is not zero", 511}, {"all zeros", 512}};

    printf("\npages whose             asked  send   wire MiB\n");
    for (unsigned i = 0; i < sizeof(kinds) / sizeof(kinds[0]); i++) {
        double asked = zeros_asked(pages, kinds[i].word), wire, took = zeros_sent(send, grant, pages, &wire);

        printf("%-22s  %5.3f %5.2f  %6.1f\n", kinds[i].what, asked, took, wire);
    }
}

int main(int argc, char **argv)
{
    static const unsigned shares[] = {0, 5, 10, 25, 50, 100};
    uint64_t pages = argc > 1 ? strtoull(argv[1], NULL, 10) : 16384, room, seq = 1;
    struct mst_mlog_grant grant = {.vm = "bench",
                                   .epoch = 1,
                                   .log_id = 1,
                                   .source_node_id = 1,
                                   .source_instance = 1,
                                   .mirror_instance = 2,
                                   .ram_bytes = RAM_PAGES * MST_PAGE_BYTES,
                                   .ring_bytes = 64 << 20,
                                   .delta_capacity = RAM_PAGES,
                                   .source_boot_id = {1}};
    struct mst_msend *send;
    struct mst_why why = {0};

    must(pages > 0 && pages <= RAM_PAGES, "usage: equal_pages [1..65536]");
    must(mst_save_layout(map.ram_bytes, &save_layout) == 0 && mst_delta_layout((uint32_t)RAM_PAGES, &delta_layout) == 0,
         "layout");
    map.ram = ram = memory(map.ram_bytes);
    map.shadow = memory(map.ram_bytes);
    map.save = memory(save_layout.bytes);
    map.delta = memory(delta_layout.bytes);
    map.record = record;
    for (uint64_t i = 0; i < map.ram_bytes / 8; i++)
        ((uint64_t *)(void *)ram)[i] = i * UINT64_C(0x9e3779b97f4a7c15);
    must(mst_save_writer_new(&map, &writer) == 0, "writer");
    memset(mst_save_device(writer, &room), 1, 64);
    must(mst_save_commit_ram(writer, 64, 1, 1, 1) == 0 && mst_save_shadow_from_ram(writer) > 0, "first checkpoint");
    must(mst_msend_new(&grant, memory(mst_mlog_bytes(grant.ring_bytes)), &send, &why) == 0, why.text);
    must(mst_msend_begin(send, seq) == 0, "begin"); /* a seed: pages may be put again and again */
    printf("%" PRIu64 " pages written; us of processor time a page, medians of %u\n", pages, ROUNDS);
    printf("equal  compared: stage  send  apply   all  | not: stage  send  apply   all  | wire MiB compared, not\n");
    for (unsigned s = 0; s < sizeof(shares) / sizeof(shares[0]); s++) {
        double took[2][3][ROUNDS], wire[2] = {0};

        for (unsigned i = 0; i < 2 * ROUNDS; i++) {
            unsigned way = i % 2;
            uint64_t start_ns, send_ns, wire_before = mst_msend_stats(send).wire_bytes;

            guest_writes(pages, shares[s]);
            mst_save_begin(writer);
            start_ns = cpu_ns();
            for (uint64_t page = 0; page < pages; page++)
                must((way ? mst_save_stage(writer, page) : mst_save_stage_if_changed(writer, page)) >= 0, "stage");
            took[way][0][i / 2] = (double)(cpu_ns() - start_ns) / 1e3 / (double)pages;
            commit();
            send_all(send, &grant, &send_ns);
            took[way][1][i / 2] = (double)send_ns / 1e3 / (double)pages;
            start_ns = cpu_ns();
            mst_save_apply(writer);
            took[way][2][i / 2] = (double)(cpu_ns() - start_ns) / 1e3 / (double)pages;
            wire[way] = (double)(mst_msend_stats(send).wire_bytes - wire_before) / (1 << 20);
        }
        printf("%4u %%", shares[s]);
        for (unsigned way = 0; way < 2; way++) {
            double a = median(took[way][0]), b = median(took[way][1]), c = median(took[way][2]);

            printf("           %6.2f %5.2f  %5.2f %5.2f  |", a, b, c, a + b + c);
        }
        printf(" %6.1f %6.1f\n", wire[0], wire[1]);
    }
    zeros(send, &grant, pages);
    mst_msend_free(send);
    mst_save_writer_free(writer);
    return 0;
}
