#ifndef MST_KEEPER_KEEPER_H
#define MST_KEEPER_KEEPER_H

#include "base/err.h"
#include "base/event.h"
#include "conf/conf.h"
#include "fabric/fabric.h"
#include "node/keeper/guard.h"
#include "node/keeper/ring.h"
#include "node/keeper/storage.h"
#include "node/keeper/takeover.h"
#include "proto/frame.h"
#include "shm/publish.h"

#include <stdbool.h>
#include <stdint.h>
#include <uv.h>

/* Inside of mainstay-keeper. Everything runs on the loop thread; worker threads touch only the job they were handed.
 *
 *   main, start   configuration, what an earlier instance left, order of opening and closing
 *   guard         which (vm, epoch) may run; pure
 *   slots         the table of VMs, their published state, beats
 *   areas         making and dropping the memory of a slot (worker threads)
 *   vmproc        QEMU processes: spawn, exit, kill with proof
 *   console       serial console of each QEMU, followers
 *   net           network of each VM; netdev, plug: what the kernel does for it
 *   output        output commit: what a VM sends waits for its mirrors; gate: the rules of that, pure
 *   device        the RDMA device: open, listen, again when it went away
 *   server        links that others opened to us: registrations and Keys
 *   standby       QEMUs that wait beside images, so that a takeover need not start one
 *   images        this node as a mirror: images of VMs that run elsewhere, their logs; image_work: what their worker does
 *   mirrors       this node as a source: the mirrors of the VMs that run here; mirror_put: what their worker does
 *   peers         links that we open to other keepers, with their Keys
 *   pull          filling a VM's areas from another node's or from an older epoch's
 *   manage        the management address: answers coordinators over TCP while RDMA may be away
 *   control       links to the coordinators: Hello, orders in, events and fault reports out
 *   orders        what each order does; open orders
 *   tenure        whether what runs here may go on: lease, pauses, watchdog
 *   lease         the rules of that; pure
 *   watchdog      the kernel's device
 *   agent         the agent's process and socket
 *   agent_port    what each request of the agent does
 */

#define MST_BEAT_INTERVAL_MS     20
#define MST_BEAT_LATE_MS         300 /* worth a line in the log */
#define MST_SECOND_MS            1000
#define MST_RETRY_MS             500  /* links that broke or could not be made */
#define MST_REFUSED_RETRY_MS     5000 /* coordinator or peer refused us */
#define MST_CONNECT_DEADLINE_MS  2000
#define MST_KILL_POLL_MS         5      /* looking whether a cgroup is empty */
#define MST_KILL_DEADLINE_MS     10000  /* then the fence has failed, as far as this node can tell */
#define MST_ORDER_DEADLINE_MS    120000 /* a start has MST_PULL_MS_PER_MIB more */
#define MST_ENDED_DEADLINE_MS    10000  /* so long an order that was ended may hold back the next one of its VM */
#define MST_AGENT_BACKOFF_MIN_MS 200
#define MST_AGENT_BACKOFF_MAX_MS 5000
#define MST_AGENT_SETTLED_MS     10000 /* an agent that lived so long starts over with the shortest backoff */
#define MST_REPORT_AGAIN_MS      5000  /* one that a coordinator did not take yet */
#define MST_REPORTS_MAX          256u  /* fault reports kept while no coordinator is connected */
#define MST_ORDERS_MAX           256u  /* orders relayed to the agent and not answered */
static_assert(MST_KILL_DEADLINE_MS < MST_ORDER_DEADLINE_MS, "a start that failed is cleaned up within its order");

struct mst_keeper;
struct mst_proc;
struct mst_console;
struct mst_net;
struct mst_output;
struct mst_held_image;
struct mst_standby;
struct mst_mirrors;

/* One slot of the status area. */
struct mst_vm {
    struct mst_keeper *keeper;
    unsigned index;
    bool used;
    char name[MST_NAME_BYTES];
    uint64_t epoch;
    unsigned state; /* enum mst_run_state; moved by mst_slot_move only */
    bool ran;       /* the guest has run in this epoch */
    bool resumes;   /* it is ordered to go on from a save, not to boot */
    uint32_t fault_kind;
    int32_t exit_status;
    uint64_t changed_wall_ms;
    uint8_t *definition; /* packed VmDefinition of the order; NULL for a slot that was taken over */
    size_t definition_bytes;
    struct mst_areas areas;
    bool areas_ready;  /* areas are mapped; shadow and delta may come later: mst_areas_whole */
    bool areas_making; /* a worker is at it */
    uint64_t areas_reply_to;
    uint64_t areas_drop_to; /* who waits for them to be dropped, once there are no users */
    unsigned users;         /* workers and pulls that use the areas: the slot is not dropped before they end */
    bool drop_pending;
    struct mst_proc *proc; /* NULL: no child */
    struct mst_console *console;
    uint64_t console_published;
    struct mst_net *net;         /* NULL: no network, or no QEMU */
    struct mst_output *output;   /* NULL: its output waits for nobody */
    Mainstay__StartResult start; /* answer to a repeated OrderStart */
    bool has_start;
    struct mst_held_image *image; /* of a VM that runs elsewhere: state MST_RUN_IMAGE; NULL: the slot is of a VM of ours */
    struct mst_standby *standby;  /* of an image: its proc, if there is one, is a QEMU that waits; NULL: not looked at yet */
};

struct mst_control;
/* Who is to be answered; survives the link (an answer to a link that is gone is dropped). */
struct mst_asker {
    struct mst_control *control; /* NULL: nobody */
    uint64_t session;
    uint64_t reply_to;
};

struct mst_keeper {
    uv_loop_t *loop;
    struct mst_node_conf *conf;
    uint64_t instance, started_wall_ms;
    uint8_t host_boot_id[16];
    bool earlier_vms_dead;
    const char *accel;
    struct mst_guard *guard;
    struct mst_budget budget;
    unsigned dropping;              /* areas that workers are freeing */
    struct mst_make *makes_waiting; /* for that memory */
    struct mst_status_area *status;
    struct mst_grant_area *grants;
    uint64_t beat, generation, fault_flags;
    uint64_t beat_ms; /* when the last one was written */
    uint32_t health;
    uint64_t machine_checks;
    struct mst_vm vms[MST_VMS_PER_NODE];
    uv_timer_t beat_timer, second_timer;
    struct mst_fabric *fabric; /* NULL while the device is away */
    struct mst_device *device;
    struct mst_server *server;
    struct mst_peers *peers;
    struct mst_pulls *pulls;
    struct mst_controls *controls;
    struct mst_relays *relays;
    struct mst_agent *agent;
    struct mst_kills *kills;
    struct mst_followers *followers;
    struct mst_tenure *tenure;
    struct mst_mirrors *mirrors;
    uint32_t net_number;       /* of the next network device */
    struct mst_manage *manage; /* NULL: none */
    bool stopping;
    uint8_t frame[MST_MESSAGE_BYTES_MAX]; /* for packing, loop thread */
};

#define MST_REGISTER_LATER_BYTES                                                                                                 \
    (256u << 20) /* from this size on (20 ms) a worker thread registers memory; below it, the loop does */

/* --- start.c --- */
int mst_keeper_prepare(struct mst_keeper *k, struct mst_why *why); /* all that blocks, before the loop runs */
void mst_keeper_unprepare(struct mst_keeper *k);
/* Every part that lives on the loop, in the order in which they need each other. -errno: what is open goes with the process. */
int mst_keeper_parts_open(struct mst_keeper *k, struct mst_why *why);
/* Path of the events file with tail behind it. -ENAMETOOLONG. */
int mst_events_path(const struct mst_node_conf *conf, const char *tail, char *buf, size_t size);
/* memlock.c: whether main storage can be pinned for RDMA at all. -ENOMEM with what to set. */
int mst_memlock_check(const struct mst_node_conf *conf, struct mst_why *why);
/* accel.c: "kvm" or "tcg" for `auto | kvm | tcg`; tries whether KVM runs a guest, at most 2 s, once per boot of the host. */
const char *mst_accel_choose(const struct mst_node_conf *conf, const uint8_t host_boot_id[16]);

/* --- slots.c --- */
int mst_slots_open(struct mst_keeper *k, const struct mst_kept *kept, unsigned count, struct mst_why *why);
void mst_slots_start(struct mst_keeper *k);                                         /* beats begin */
struct mst_vm *mst_slot_find(struct mst_keeper *k, const char *vm, uint64_t epoch); /* NULL: none */
/* The slot of the present grant. 0; -ESTALE (vm, epoch) is not that; -ENOENT it has no slot yet, or none any more. */
int mst_slot_granted(struct mst_keeper *k, const char *vm, uint64_t epoch, struct mst_vm **ret_vm, struct mst_why *why);
struct mst_vm *mst_slot_newest(struct mst_keeper *k, const char *vm); /* highest epoch; NULL: none */
int mst_slot_new(struct mst_keeper *k, const char *vm, uint64_t epoch, struct mst_vm **ret_vm, struct mst_why *why);
int mst_slot_new_image(struct mst_keeper *k, const char *vm, uint64_t epoch, struct mst_vm **ret_vm, struct mst_why *why);
int mst_slot_define(struct mst_vm *vm, const Mainstay__VmDefinition *def); /* keeps it, packed; -ENOMEM */
void mst_slot_move(struct mst_vm *vm, unsigned state, const char *why);    /* publishes, logs and tells the coordinators */
const char *mst_slot_state_name(unsigned state);
void mst_slot_publish(struct mst_vm *vm);
void mst_slot_fault(struct mst_vm *vm, uint32_t fault_kind); /* FAULT_NONE clears the flag */
void mst_slot_drop(struct mst_vm *vm);    /* memory and slot; later, when they are in use. No process may live. */
void mst_slot_release(struct mst_vm *vm); /* a user (vm->users) is done */
void mst_beat_publish(struct mst_keeper *k);
void mst_node_publish(struct mst_keeper *k);
uint64_t mst_slot_save_seq(const struct mst_vm *vm); /* of the published save, 0: none */

/* --- areas.c --- */
/* Starts making these kinds of the planned areas of vm (MST_AREAS_*); done by mst_agent_areas_made. The first part takes memory for all of them:
 * -ENOSPC with numbers. */
int mst_vm_areas_make(struct mst_vm *vm, unsigned kinds, uint64_t reply_to, struct mst_why *why);
void mst_vm_areas_drop(struct mst_vm *vm);

/* --- vmproc.c --- */
int mst_kills_new(struct mst_keeper *k);
void mst_kills_free(struct mst_keeper *k);
int mst_proc_spawn(struct mst_vm *vm, char **argv, size_t argc, pid_t *ret_pid, struct mst_why *why);
/* Kills whatever runs of this VM and waits for the proof: child reaped, cgroup empty. done runs once, from the loop, never inside:
 * 0, or -ETIMEDOUT and then nothing is proved. vm: name, copied. */
int mst_proc_kill(struct mst_keeper *k, const char *vm, void (*done)(void *arg, int err), void *arg);
/* Whether such a kill is not proved yet: what is started now would be killed as well. */
bool mst_proc_killing(const struct mst_keeper *k, const char *vm);
pid_t mst_proc_pid(const struct mst_vm *vm);                                        /* 0: none */
int mst_vm_path(const struct mst_vm *vm, const char *file, char *buf, size_t size); /* RUN-DIR/vm/NAME/file */

/* For standby.c. A process in the slot of an image, in the VM's own cgroup: whoever kills the VM's processes, and proves it, means this one as well.
 * console_fd, net_fd: its ends, the caller closes them; -1 no network. The slot stays until it is gone; then mst_standby_exited. */
int mst_proc_spawn_waiting(struct mst_vm *image, char **argv, size_t argc, int console_fd, int net_fd, struct mst_why *why);
bool mst_proc_waits(const struct mst_vm *vm); /* such a one is there, and nobody has asked for its end */
/* It is the process of vm from here on. As mst_guard_spawning; the image's slot is still held. */
int mst_proc_adopt(struct mst_vm *image, struct mst_vm *vm, struct mst_why *why);

/* --- console.c --- */
/* Both ends of one, for a QEMU that waits: ours is begun once it is the VM's. */
int mst_console_pair(const struct mst_vm *vm, int *ret_fd, int *ret_child_fd, struct mst_why *why);
int mst_console_begin(struct mst_vm *vm, int fd); /* 0: fd is the console's; -errno: still the caller's */
/* A socketpair; *ret_child_fd is QEMU's end (the caller closes it). */
int mst_console_open(struct mst_vm *vm, int *ret_child_fd, struct mst_why *why);
void mst_console_hangup(struct mst_vm *vm); /* QEMU is gone: takes what is left in the socket, keeps the ring */
void mst_console_free(struct mst_vm *vm);
uint64_t mst_console_bytes(const struct mst_vm *vm);
uint64_t mst_console_beat_ms(const struct mst_vm *vm);
/* Output commit: from here on nothing of what comes is shown (closed), or everything again. */
void mst_console_gate(struct mst_vm *vm, bool closed);
uint64_t mst_console_take(struct mst_vm *vm);              /* what QEMU has written so far; the offset of its end */
void mst_console_show(struct mst_vm *vm, uint64_t offset); /* up to there */
struct mst_control;
int mst_followers_new(struct mst_keeper *k);
void mst_followers_free(struct mst_keeper *k);
/* Sends what the ring has from offset on; follow: and what comes later, until the link closes. 0, -ENOENT, -ENOBUFS. */
int mst_console_send(struct mst_keeper *k, struct mst_control *control, const char *vm, uint64_t from, bool follow,
                     struct mst_why *why);
void mst_console_unfollow(struct mst_keeper *k, const struct mst_control *control);

/* --- net.c --- */
void mst_net_sweep(const struct mst_keeper *k); /* devices that an earlier keeper left */
/* The tap of a VM that is about to be started. *ret_fd: for its QEMU, the caller closes it afterwards; -1 it has no network. What mst_tap_open says. */
int mst_net_open(struct mst_vm *vm, const Mainstay__VmDefinition *def, int *ret_fd, struct mst_why *why);
/* The two halves of it, for a QEMU that waits: nothing passes its tap before it has joined the bridge. */
int mst_net_make(struct mst_vm *vm, const Mainstay__VmDefinition *def, int *ret_fd, struct mst_why *why);
int mst_net_join(struct mst_vm *vm, const Mainstay__VmDefinition *def, struct mst_why *why);
void mst_net_move(struct mst_vm *from, struct mst_vm *to);
void mst_net_close(struct mst_vm *vm); /* its QEMU is gone: what it had sent and was held back is dropped */
/* What it sends, when mst_output_wanted said so: plug.h. A VM without a network: 0. */
int mst_net_cut(struct mst_vm *vm);
int mst_net_release(struct mst_vm *vm);
int mst_net_let(struct mst_vm *vm); /* mst_plug_open */
int mst_net_held(struct mst_vm *vm);

/* --- output.c --- */
bool mst_output_wanted(const Mainstay__VmDefinition *def);
int mst_output_open(struct mst_vm *vm, const Mainstay__VmDefinition *def); /* it is about to be started; its queues are open */
void mst_output_free(struct mst_vm *vm);
int mst_output_mark(struct mst_keeper *k, const mst_envelope *env, struct mst_why *why); /* OutputMark: as in agent_port.c */
void mst_output_go(struct mst_vm *vm);   /* who is waited for, or what they have, has changed */
void mst_output_shut(struct mst_vm *vm); /* nothing of it leaves any more. Before its mirrors are ended */
/* Whether a mirror with checkpoint seq has all that led to what has left; false as long as output leaves freely. */
bool mst_output_covered(const struct mst_vm *vm, uint64_t seq);

/* --- device.c --- */
int mst_device_new(struct mst_keeper *k); /* begins opening; retries for ever */
void mst_device_close(struct mst_keeper *k, void (*closed)(struct mst_keeper *k));

/* --- server.c --- */
int mst_server_new(struct mst_keeper *k);
void mst_server_free(struct mst_keeper *k);
int mst_server_accept(struct mst_link *link, const struct mst_link_request *request, void *arg,
                      const struct mst_link_events **ret_events, void **ret_arg, struct mst_why *why);
void mst_server_vm_ready(struct mst_vm *vm); /* areas are there: register them on every pull link */
void mst_server_vm_gone(struct mst_vm *vm);  /* after it returned nobody has access to its areas */

/* --- standby.c: QEMUs that wait beside images --- */
void mst_standbys_second(struct mst_keeper *k);     /* begins what is to be begun */
void mst_standbys_free(struct mst_keeper *k);       /* when no process lives any more */
unsigned mst_standby_said(const struct mst_vm *vm); /* enum mst_standby_state, for its slot */
int mst_standby_spawn(struct mst_keeper *k, const mst_envelope *env, struct mst_why *why); /* StandbySpawn: as in agent_port.c */
void mst_standby_exited(struct mst_vm *image, int wait_status, bool ordered);              /* ordered: we killed it */
void mst_standby_close(struct mst_vm *image); /* ends the one that waits, if one does; its slot stays until it is gone */
void mst_standby_free(struct mst_vm *image);
/* The memory of vm, which is to be resumed, is about to be made, and is planned: the RAM that one has mapped becomes its RAM, if one waits and would do. */
void mst_standby_ram(struct mst_vm *vm);
/* Whether vm gets the one that waits: 1 it is its process now; 0 none is there; -EAGAIN one is there that will not do, or something of vm is being killed:
 * mst_proc_kill first. */
int mst_standby_use(struct mst_vm *vm, char **argv, size_t argc, pid_t *ret_pid, struct mst_why *why);

/* --- images.c: this node is a mirror --- */
int mst_images_new(struct mst_keeper *k); /* takes up what an earlier keeper left */
void mst_images_free(struct mst_keeper *k);
/* OrderMirror, OrderMirrorRevoke: as in orders.c. */
int mst_images_order(struct mst_keeper *k, const struct mst_asker *asker, const mst_envelope *env, struct mst_why *why);
int mst_images_revoke(struct mst_keeper *k, const struct mst_asker *asker, const mst_envelope *env, struct mst_why *why);
int mst_images_accept(struct mst_keeper *k, struct mst_link *link, const struct mst_link_request *request,
                      const struct mst_link_events **ret_events, void **ret_arg, struct mst_why *why);
void mst_images_areas_made(struct mst_vm *vm, int err, const struct mst_why *why);
void mst_images_close(struct mst_vm *vm); /* after it returned its source has no access. No image: nothing */
void mst_images_gone(struct mst_vm *vm);  /* the slot ends */
void mst_images_fill(const struct mst_vm *vm, struct mst_vm_slot *slot);
void mst_images_hello(const struct mst_vm *vm, Mainstay__HeldVm *held);
bool mst_images_mirroring(const struct mst_vm *vm); /* it has a checkpoint, and gets the next ones */
bool mst_images_readable(const struct mst_vm *vm);  /* verified: may be pulled */
/* It is what its VM is resumed from here. 0; -ESTALE not verified, or of another epoch. */
int mst_images_use(struct mst_vm *vm, uint64_t epoch, struct mst_why *why);

/* --- mirrors.c: this node is a source --- */
int mst_mirrors_new(struct mst_keeper *k);
void mst_mirrors_close(struct mst_keeper *k);
void mst_mirrors_free(struct mst_keeper *k);
/* OrderMirrorTo, OrderMirrorSure, OrderMirrorDrop: as in orders.c. */
int mst_mirrors_to(struct mst_keeper *k, const struct mst_asker *asker, const mst_envelope *env, struct mst_why *why);
int mst_mirrors_sure(struct mst_keeper *k, const struct mst_asker *asker, const mst_envelope *env, struct mst_why *why);
int mst_mirrors_drop(struct mst_keeper *k, const struct mst_asker *asker, const mst_envelope *env, struct mst_why *why);
int mst_mirrors_put(struct mst_keeper *k, const mst_envelope *env, struct mst_why *why); /* CheckpointPut: as in agent_port.c */
void mst_mirrors_agent_gone(struct mst_keeper *k); /* its process has ended, and no other is there yet */
void mst_mirrors_vm_gone(struct mst_vm *vm);
void mst_mirrors_second(struct mst_keeper *k);
void mst_mirrors_go(struct mst_keeper *k); /* what was held back by mst_tenure_settled */
/* Output waits for mirrors from their first acknowledgement on, until the coordinator has them left out. *ret_seq: the newest checkpoint that all of
 * them have. False: there is none. */
bool mst_mirrors_safe(const struct mst_vm *vm, uint64_t *ret_seq);
/* The next checkpoint will be seq. When a mirror has that number already, its checkpoints are others: an agent that found its save damaged counts from 1. */
void mst_mirrors_marked(const struct mst_vm *vm, uint64_t seq);
unsigned mst_mirrors_hello(const struct mst_vm *vm, Mainstay__HeldMirror bodies[MST_MIRRORS_MAX],
                           Mainstay__HeldMirror *list[MST_MIRRORS_MAX]);

/* --- peers.c --- */
struct mst_peer_source { /* a peer's VM as far as its Keys tell; borrowed until the link closes or new Keys come */
    struct mst_link *link;
    uint64_t status_addr;
    uint32_t status_rkey;
    unsigned slot;
    struct {
        uint64_t addr, bytes;
        uint32_t rkey;
    } area[MST_AREA_KINDS]; /* bytes 0: absent */
};
int mst_peers_new(struct mst_keeper *k);
void mst_peers_free(struct mst_keeper *k);
void mst_peers_list(struct mst_keeper *k, const Mainstay__Peers *list);
bool mst_peers_known(const struct mst_keeper *k, const char *address);
void mst_peers_device_up(struct mst_keeper *k);
/* 0; -ENOTCONN no link or no Keys yet (may come); -ESTALE another instance; -ENOENT its Keys do not name (vm, epoch) (may come). */
int mst_peers_source(struct mst_keeper *k, uint32_t node_id, uint64_t instance, const char *vm, uint64_t epoch,
                     struct mst_peer_source *ret_source, struct mst_why *why);

/* For leases: READs the beat line of each listed peer once. */
void mst_peers_read(struct mst_keeper *k);
/* How many other nodes a coordinator named last, and how many of these were seen moving within MST_LEASE_PEER_MS. */
void mst_peers_seen(const struct mst_keeper *k, uint64_t now_ms, unsigned *ret_listed, unsigned *ret_moving);
void mst_peers_forget_beats(struct mst_keeper *k);

/* --- pull.c --- */
int mst_pulls_new(struct mst_keeper *k);
void mst_pulls_free(struct mst_keeper *k);
void mst_pull_start(struct mst_vm *vm, const Mainstay__SaveSource *source,
                    uint64_t reply_to);                   /* answered through mst_agent_reply */
void mst_pull_cancel(struct mst_vm *vm, const char *why); /* why: a string that stays */
void mst_pulls_stop(struct mst_keeper *k);
void mst_pulls_link_gone(struct mst_keeper *k, const struct mst_link *link); /* in its on_closed */
void mst_pulls_wake(struct mst_keeper *k);                                   /* a peer's Keys changed */

/* --- control.c --- */
int mst_controls_new(struct mst_keeper *k);
void mst_controls_free(struct mst_keeper *k);
void mst_controls_device_up(struct mst_keeper *k);
void mst_controls_second(struct mst_keeper *k);
void mst_controls_probe(
    struct mst_keeper *k); /* finds out soon whether the links of those that welcomed us still lead anywhere */
bool mst_controls_welcomed(const struct mst_keeper *k); /* by any, and the link is up */
int mst_control_send(struct mst_control *control, const mst_envelope *env);
void mst_control_reply(const struct mst_asker *asker, const Mainstay__Done *done);
void mst_control_reply_error(const struct mst_asker *asker, int err, const struct mst_why *why); /* err 0 or -errno */
void mst_control_tell(struct mst_keeper *k, mst_envelope *env); /* news, to every coordinator that welcomed us */
void mst_control_event(struct mst_vm *vm, const char *text);    /* VmEvent to every coordinator that welcomed us */
/* Sends, or keeps until a coordinator welcomes us. node, instance and reporter are filled in when absent. */
void mst_control_report(struct mst_keeper *k, const Mainstay__FaultReport *report);
/* The VM answers again: a report of its silence that nobody has answered is not sent any more. */
void mst_control_report_over(struct mst_keeper *k, const char *vm, uint64_t epoch);

/* --- manage.c --- */
int mst_manage_new(struct mst_keeper *k); /* nothing without a management address in the configuration */
void mst_manage_free(struct mst_keeper *k);

/* --- orders.c --- */
bool mst_order_run(struct mst_keeper *k, const struct mst_asker *asker, const mst_envelope *env); /* false: it is no order */
/* Fences all that runs here, as an order would, and reports it. done, once, when there was anything: 0, or -errno and then something may still
 * run. Returns how many VMs, or -errno. A start that has no process yet is left: who asks for its process asks mst_tenure_settled. */
int mst_fence_own(struct mst_keeper *k, const char *text, void (*done)(void *arg, int err), void *arg);

/* --- tenure.c --- */
int mst_tenure_new(struct mst_keeper *k);
void mst_tenure_free(struct mst_keeper *k); /* when no VM runs any more */
void mst_tenure_beat(struct mst_keeper *k); /* a beat is about to be published */
/* Ask before anything is done that others see or that makes a VM live: false (why: -ESTALE) while the lease has run out, or after a pause. */
bool mst_tenure_settled(struct mst_keeper *k, struct mst_why *why);
bool mst_tenure_holds_back(const struct mst_keeper *k);                  /* the same as it was found last: changes nothing */
uint64_t mst_tenure_wakes(const struct mst_keeper *k);                   /* pauses noticed; goes with a Hello */
void mst_tenure_welcomed(struct mst_keeper *k, uint64_t wakes_at_hello); /* its Welcome has come */
void mst_tenure_publish(const struct mst_keeper *k, struct mst_beat_line *line);

/* --- relay.c: orders that the agent carries out --- */
int mst_relays_new(struct mst_keeper *k);
void mst_relays_free(struct mst_keeper *k);
/* Opens one, or joins the asker to the same one that is open already; sent when the agent is there. -ENOSPC, -EMSGSIZE. */
int mst_relay_open(struct mst_vm *vm, const mst_envelope *env, const struct mst_asker *asker, struct mst_why *why);
bool mst_relay_is_open(const struct mst_keeper *k, const char *vm, uint64_t epoch, unsigned body_case);
void mst_relay_done(struct mst_keeper *k, uint64_t id, const Mainstay__Done *done); /* the agent's answer */
void mst_relay_go(struct mst_keeper *k);                                            /* what was held back by mst_tenure_settled */
void mst_relay_resend(struct mst_keeper *k);                                        /* the agent has come (back) */
void mst_relay_cancel(struct mst_keeper *k, const char *vm, uint64_t up_to_epoch, const char *why); /* fenced */

/* --- agent.c --- */
int mst_agent_new(struct mst_keeper *k, struct mst_why *why);
void mst_agent_free(struct mst_keeper *k);
bool mst_agent_up(const struct mst_keeper *k); /* said hello, socket open */
uint32_t mst_agent_restarts(const struct mst_keeper *k);
int mst_agent_restart(struct mst_keeper *k, const char *text, struct mst_why *why); /* SIGKILL, and at once a new one */
int mst_agent_send(struct mst_keeper *k, const mst_envelope *env);
uint64_t mst_agent_session(const struct mst_keeper *k);
/* reply_to 0: nobody asked. 0, or -errno when it could not be sent. */
int mst_agent_reply_error(struct mst_keeper *k, uint64_t reply_to, int err, const struct mst_why *why);
void mst_agent_exited(struct mst_vm *vm, int wait_status); /* VmExited */

/* --- agent_port.c --- */
void mst_agent_request(struct mst_keeper *k, const mst_envelope *env);
void mst_agent_welcome(struct mst_keeper *k);
void mst_agent_areas_made(struct mst_vm *vm, int err, const struct mst_why *why);
void mst_agent_areas_unused(struct mst_vm *vm); /* vm->users is 0 again */

/* --- message helpers (msg.c) --- */
#define MST_ENVELOPE(case_, member_, body_)                                                                                      \
    {                                                                                                                            \
        .base = PROTOBUF_C_MESSAGE_INIT(&mainstay__envelope__descriptor), .body_case = MAINSTAY__ENVELOPE__BODY_##case_,         \
        .member_ = (body_)                                                                                                       \
    }
/* Fills done from err (0 or -errno) and why; borrows why's text. */
void mst_done_fill(Mainstay__Done *done, int err, const struct mst_why *why);

#endif
