#ifndef MST_KEEPER_PULL_H
#define MST_KEEPER_PULL_H

#include "node/keeper/keeper.h"
#include "shm/save.h"

/* Between pull.c (life of a pull, its source, its answer) and pull_steps.c (what is fetched and how it is checked). */

enum buffer { BUFFER_SCRATCH, BUFFER_TABLES, BUFFER_SAVE, BUFFER_RAM, BUFFERS };
#define FROM_STATUS MST_AREA_KINDS /* beside the area kinds */

struct fetch {
    unsigned from; /* enum mst_area_kind, or FROM_STATUS */
    uint64_t from_off;
    enum buffer to;
    uint64_t to_off;
    uint64_t bytes;
};

struct pull {
    struct pull *next;
    struct mst_keeper *keeper;
    struct mst_vm *vm; /* held by vm->users */
    char node[MST_NAME_BYTES];
    uint32_t node_id;
    uint64_t instance, epoch, min_seq;
    bool image; /* the source is a mirror's image */
    uint64_t reply_to, session;

    struct mst_vm *local; /* source on this node, held by users; NULL: remote, or still waited for */
    struct mst_peer_source remote;
    bool waiting; /* for the source to appear */
    uint64_t wait_end_ms;
    uv_timer_t timer;

    unsigned step, tries;
    _Atomic(const char *) canceled; /* why, or NULL; the worker looks at it too */
    int err;                        /* of the last fetch */
    struct mst_why why;

    struct {
        uint8_t *addr;
        uint64_t bytes;
        struct mst_region *region;
    } buffer[BUFFERS];
    struct mst_pub_head info_head, head;
    struct mst_vm_slot info;
    struct mst_save_record record;
    struct mst_save_layout save_layout;
    struct mst_delta_layout delta_layout;
    uint64_t table_off, data_off; /* in BUFFER_TABLES; checksums are at 0 */
    uint8_t *covered;             /* a bit for each page the delta replaces */

    struct fetch fetch;
    uv_work_t work; /* one job at a time; while it runs, it alone uses why, record, buffers and covered */
    bool streaming, checking;
    uint64_t arrived, checked, check_to; /* bytes of the RAM: read so far, checked so far, being checked up to */
    int stream_err, check_err;
    uint64_t start_ns, bytes;
    uint64_t streamed_ns, verify_ns; /* when the last READ of a stream had landed; time in which there was nothing but checks */
};

/* Begins the first step. 0: under way; -errno: p->why. */
int mst_pull_begin(struct pull *p);
/* From pull_steps.c, once for each begin that returned 0: 0 or -errno with p->why. */
void mst_pull_ended(struct pull *p, int err);
/* The link it reads over has closed, and its regions with it. No operation on it is open any more. */
void mst_pull_link_gone(struct pull *p);
/* Frees tables and regions. */
void mst_pull_release(struct pull *p);

#endif
