#ifndef MST_BASE_EVENT_H
#define MST_BASE_EVENT_H

#include <stdint.h>

/* The timeline: every fault, decision, order and effect as one JSON line of the events file (docs/EVENTS.md), and as fields of the journal
 * when the process runs under systemd. `mainstayctl events` merges the files of several machines; tests/lab/check-invariants judges them.
 *
 * mst_event never waits for a disk: a line goes into a buffer that a thread of its own empties into the file. When the buffer is full the
 * line is dropped, and the next line that fits says how many were. A process that is killed may lose what the buffer held. */

/* X(identifier, name, what it says). The one table: docs/EVENTS.md has a line for each (tests/unit/base/event.c). */
#define MST_EVENTS(X)                                                                                                            \
    X(PROCESS_STARTED, "process.started", "a daemon has opened its events file")                                                 \
    X(PROCESS_STOPPED, "process.stopped", "it ends by order")                                                                    \
    X(TERM_BEGUN, "term.begun", "coordinator: this term is durable")                                                             \
    X(FAULT_RECORDED, "fault.recorded", "coordinator: the fault record is durable")                                              \
    X(RECOVERY_STATE, "recovery.state", "coordinator: a recovery has moved, durably")                                            \
    X(GRANT_GIVEN, "grant.given", "coordinator: vm may run on node under epoch, durably")                                        \
    X(GRANT_ADOPTED, "grant.adopted", "coordinator: a node held a newer epoch than the store; taken over, durably")              \
    X(GRANT_LOADED, "grant.loaded", "coordinator: at its start the store has this grant; what: open, or fenced")                 \
    X(GRANT_FENCED, "grant.fenced", "coordinator: nothing runs under (vm, epoch) any more: proved, durably")                     \
    X(MIRROR_JOINED, "mirror.joined",                                                                                            \
      "coordinator: node counts as a mirror of (vm, epoch), durably; text: when it is in the VM's own rack")                     \
    X(MIRROR_LEFT, "mirror.left", "coordinator: it counts no more, durably; text says why")                                      \
    X(MIRROR_MOVES, "mirror.moves",                                                                                              \
      "coordinator: the mirror of (vm, epoch) on node is to be replaced; text says why, and by whom")                            \
    X(MIRROR_REFUSED, "mirror.refused",                                                                                          \
      "coordinator: no node can take the image of (vm, epoch); text says why, with the numbers")                                 \
    X(MIRROR_USED, "mirror.used", "coordinator: vm is resumed from the image on node, of epoch and seq, durably")                \
    X(PROOF_RECORDED, "proof.recorded", "coordinator: the proof itself is durable")                                              \
    X(VM_WANTED, "vm.wanted", "coordinator: the operator wants vm to run (what yes) or not (what no), durably")                  \
    X(ORDER_SENT, "order.sent", "coordinator: what, to node")                                                                    \
    X(ORDER_ANSWERED, "order.answered", "coordinator: the answer, err 0 or errno")                                               \
    X(FENCE_STARTED, "fence.started", "coordinator: a fence agent is started for node")                                          \
    X(FENCE_DONE, "fence.done", "coordinator: it said off and the status agreed (err 0), or it failed")                          \
    X(FENCE_CANCELLED, "fence.cancelled", "coordinator: it was called off")                                                      \
    X(STORM_FROZEN, "storm.frozen", "coordinator: most nodes vanished at once, nothing is fenced")                               \
    X(STORM_OVER, "storm.over", "coordinator: fences go on")                                                                     \
    X(NODE_JOINED, "node.joined", "coordinator: a keeper's Hello was taken")                                                     \
    X(NODE_LINK_CLOSED, "node.link-closed", "coordinator: its control link has ended")                                           \
    X(PAUSE_NOTICED, "pause.noticed", "this process stood still for duration_us")                                                \
    X(HELLO_SENT, "hello.sent", "keeper: calls a coordinator")                                                                   \
    X(HELLO_WELCOMED, "hello.welcomed", "keeper: a coordinator of that term takes it")                                           \
    X(ORDER_RECEIVED, "order.received", "keeper: what, from a coordinator of that term")                                         \
    X(ORDER_REFUSED, "order.refused", "keeper: refused with err")                                                                \
    X(SLOT_STATE, "slot.state", "keeper: (vm, epoch) has moved to state what")                                                   \
    X(IMAGE_STATE, "image.state",                                                                                                \
      "keeper: the image of (vm, epoch), which runs elsewhere, has moved to state what; it holds save seq")                      \
    X(IMAGE_ROTTEN, "image.rotten", "keeper: the image of (vm, epoch) is not what came in; another one is to be made")           \
    X(MIRROR_PHASE, "mirror.phase", "keeper: the mirror of (vm, epoch) on node is what; it holds save seq")                      \
    X(STANDBY_STARTED, "standby.started", "keeper: a QEMU begins to wait beside the image of (vm, epoch)")                       \
    X(STANDBY_USED, "standby.used", "keeper: it is the QEMU of (vm, epoch) from here on, which is granted here")                 \
    X(STANDBY_ENDED, "standby.ended", "keeper: it has ended, or could not be started; text says why")                            \
    X(QEMU_SPAWNED, "qemu.spawned", "keeper: QEMU of (vm, epoch) is started; its guest stands still")                            \
    X(QEMU_EXITED, "qemu.exited", "keeper: it has ended")                                                                        \
    X(KILL_ASKED, "kill.asked", "keeper: all processes of vm are killed")                                                        \
    X(KILL_PROVED, "kill.proved", "keeper: none of vm's processes is left, or err")                                              \
    X(CHECKPOINT_PUBLISHED, "checkpoint.published", "agent: save seq of (vm, epoch) is published; the guest stood duration_us")  \
    X(CHECKPOINT_TROUBLE, "checkpoint.trouble",                                                                                  \
      "agent: the next checkpoint of (vm, epoch) does not come about, what says how; the last good one is save seq, "            \
      "duration_us old")                                                                                                         \
    X(CHECKPOINT_GOOD, "checkpoint.good", "agent: that is over with save seq, after duration_us")                                \
    X(VM_SAVED, "vm.saved", "agent: saved by order, stands still")                                                               \
    X(VM_RUNS, "vm.runs", "agent: the start is done, the guest runs")                                                            \
    X(DISK_NEW, "disk.new",                                                                                                      \
      "agent: the disk in main storage of (vm, epoch) begins anew, text says with what; what an earlier epoch wrote is lost")    \
    X(CPU_RUN, "cpu.run", "agent: QEMU said RESUME: the guest's CPUs run")                                                       \
    X(CPU_STOP, "cpu.stop", "agent: QEMU said STOP: they stand")

enum mst_event_kind {
#define X(identifier, name, text) MST_EV_##identifier,
    MST_EVENTS(X)
#undef X
        MST_EV_COUNT
};

/* Members that are 0 or NULL do not apply and are left out. Strings may hold anything: they are escaped, and cut after 400 bytes. */
struct mst_event {
    enum mst_event_kind kind;
    const char *vm;
    uint64_t epoch;
    const char *node;  /* that it is about, when another than the one it is written on */
    uint64_t instance; /* of node's keeper */
    uint64_t term;
    uint64_t recovery, fault, proof; /* numbers of the store's rows */
    uint64_t order;                  /* token of an order or a fence */
    uint64_t seq;                    /* of a save */
    uint64_t duration_us;
    int err; /* 0 or -errno */
    const char *what, *text;
};

/* Opens path (0640, made when absent; NULL: nothing is written there) and starts the thread. At max_bytes (0: 16 MiB) the file is renamed to
 * PATH.1, replacing that, and begun anew. program, host: copied. instance: of this keeper or coordinator, 0 unknown yet. Once per process,
 * before fork is of interest to anybody. 0 or -errno: then nothing is written and mst_event does nothing. */
int mst_event_open(const char *path, uint64_t max_bytes, const char *program, const char *host, uint64_t instance);
/* What became known later; from here on in every line. Any thread. */
void mst_event_identity(const char *host, uint64_t instance);
/* Any thread; returns at once. errno is kept. */
void mst_event(const struct mst_event *event);
/* Writes what is left and ends the thread. */
void mst_event_close(void);

const char *mst_event_name(enum mst_event_kind kind);
const char *mst_event_text(enum mst_event_kind kind);
/* MST_EV_COUNT: no such name. */
enum mst_event_kind mst_event_by_name(const char *name);

#endif
