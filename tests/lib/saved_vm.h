#ifndef MST_TESTS_LIB_SAVED_VM_H
#define MST_TESTS_LIB_SAVED_VM_H

/* One VM with its areas on /dev/shm, a real QEMU (TCG) with the bare-metal witness, and the agent's checkpointer: no agent, no keeper. For tests and
 * measurements on any machine with QEMU. What goes wrong ends the process with a sentence: a caller under libcheck forks. */

#include "node/agent/checkpoint.h"
#include "node/agent/load.h"
#include "tests/lib/guest.h"

#include "mainstay.pb-c.h"

/* Ends the process with the sentence unless what is true. */
#define must(what, ...) ((what) ? (void)0 : saved_vm_die(__FILE__, __LINE__, __VA_ARGS__))
_Noreturn __attribute__((format(printf, 3, 4))) void saved_vm_die(const char *file, int line, const char *fmt, ...);

struct saved_vm {
    uv_loop_t loop;
    char dir[128];
    Mainstay__VmDefinition definition;
    struct mst_save_map map;
    struct mst_save_layout save_layout;
    struct mst_delta_layout delta_layout;
    uint8_t record[2][MST_PUB_SLOT_BYTES];
    Mainstay__VmDisk disk, *disks[1];
    uint64_t disk_bytes; /* the last of map.ram_bytes are a disk, in a file of its own; 0: none */
    int ram_fd, disk_fd;
    char ram_path[160], disk_path[160];
    struct guest guest;
    struct guest_console console;
    struct mst_qmp *qmp;
    bool qmp_ready, qmp_closed;
    bool migrated; /* QEMU has said since saved_vm_spawn, or since it was set to false, that a migration is completed */
    struct mst_save_writer *writer;
    struct mst_dirty *dirty; /* NULL: this kernel keeps no soft-dirty bits, pages are compared */
    struct mst_ckpt *ckpt;
    struct mst_load *load;
    /* of the last thing waited for */
    bool done;
    int err;
    struct mst_why why;
    struct mst_ckpt_report report;
    unsigned panics;
    int marks; /* what on_stands says */
    uint64_t stands_seq;
};

struct saved_vm_conf {             /* borrowed until saved_vm_free */
    unsigned memory_mib, disk_mib; /* disk_mib: of a disk in main storage, behind the memory; 0: none */
    uint32_t delta_capacity;
    const char *kernel, *append;
    const Mainstay__VmDisk *disk; /* one that is a file; NULL: none */
};

struct saved_vm *saved_vm_new(const struct saved_vm_conf *conf);
/* incoming: -incoming defer, on the RAM file as it is; otherwise the guest boots. Returns once the monitor is ready. */
void saved_vm_spawn(struct saved_vm *vm, bool incoming);
void saved_vm_share_ram(struct saved_vm *vm, bool share); /* x-ignore-shared; saved_vm_spawn has set it */
void saved_vm_ask(struct saved_vm *vm, const char *command, json_t *arguments, int fd, unsigned timeout_ms);
void saved_vm_checkpoints(struct saved_vm *vm);                   /* makes writer and checkpointer, from nothing */
void saved_vm_take(struct saved_vm *vm, enum mst_ckpt_mode mode); /* until on_done: see done, err, why, report */
/* `cont`, until QEMU has answered it. */
void saved_vm_cont(struct saved_vm *vm);
/* SIGKILL, and what was made for the QEMU that is gone is freed. */
void saved_vm_end(struct saved_vm *vm);
struct saved_vm_resumed {
    uint64_t fill_ns; /* of RAM, from shadow and delta */
    uint64_t load_ns; /* from the first byte of device state until QEMU has answered that the guest runs */
    uint64_t device_bytes;
};
/* Fills the RAM file from the newest record, as a keeper does after a pull, starts another QEMU and lets the guest go on: until its first beat. */
void saved_vm_resume(struct saved_vm *vm, struct saved_vm_resumed *ret_resumed);
/* Its steps, for a QEMU that has been started before (saved_vm_spawn, incoming). stream: MST_DEVICE_BYTES_MAX. */
void saved_vm_new_ram(struct saved_vm *vm); /* other files, without a page, in place of RAM and disk: for the next QEMU */
void saved_vm_fill(struct saved_vm *vm, uint8_t *ret_stream, uint64_t *ret_bytes);
void saved_vm_load(struct saved_vm *vm, uint8_t *stream, uint64_t bytes); /* the guest stands until saved_vm_cont */
void saved_vm_free(struct saved_vm *vm);

/* For loop_until, with a struct saved_vm. */
bool saved_vm_has_beats(void *vm); /* five */
bool saved_vm_has_beat_after_mark(void *vm);
bool saved_vm_is_done(void *vm);

#endif
