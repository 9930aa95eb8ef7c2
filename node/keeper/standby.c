#include "node/keeper/keeper.h"

#include "base/clock.h"
#include "base/log.h"
#include "base/mutant.h"
#include "node/keeper/spawn.h"

#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* QEMUs that wait beside images (docs/decisions/0011): started with -S and -incoming defer while the VM runs elsewhere, so that a takeover needs none to be
 * started. The agent says how one is started and drives it later, as any; here is only whose it is.
 *
 *   asked -> waits -> the VM's process      ended by anybody: asked again, later
 *
 * It cannot run by itself: it is told to continue by the agent alone, which connects to it only after its grant. It waits over a RAM file of its own that has no
 * page: neither the image nor any memory is its. It is in the VM's cgroup and dies with the keeper, so that a fence, the proof behind it and the next keeper mean
 * it as well; its tap is down and in no bridge, and nobody reads its console.
 *
 * A start that goes on from a save gets it: first the file becomes the RAM of the VM's new epoch, with the memory that is made for it, and is filled as any;
 * then, when the agent asks for the very QEMU that waits, it becomes the VM's process. Whatever does not fit ends it, with proof, before a new one is started
 * over the same memory. */

#define ASK_MS       10000u /* the agent reads a file at most */
#define RETRY_MS     5000u
#define RETRY_MAX_MS 300000u

struct mst_standby {
    unsigned said;                       /* enum mst_standby_state, as it is published */
    uint64_t asked_ms, next_ms, warm_ms; /* warm_ms: since when it is WARM */
    unsigned failures;
    char **argv; /* of the one that waits; NULL: none does */
    size_t argc;
    int console_fd;     /* our end; -1: none */
    uint64_t for_epoch; /* whose RAM its file is by now; 0: nobody's */
};

unsigned mst_standby_said(const struct mst_vm *vm)
{
    return vm->standby ? vm->standby->said : MST_STANDBY_NONE;
}

static void say(struct mst_vm *image, unsigned said)
{
    if (image->standby->said == said)
        return;
    image->standby->said = said;
    if (!image->drop_pending)
        mst_slot_publish(image);
}

/* --- the end of one --- */

static void argv_free(struct mst_standby *s)
{
    for (size_t i = 0; i < s->argc; i++)
        free(s->argv[i]);
    free(s->argv);
    s->argv = NULL;
    s->argc = 0;
}

/* What it was started with and is not the VM's by now. */
static void let_go(struct mst_vm *image)
{
    struct mst_standby *s = image->standby;

    argv_free(s);
    if (s->console_fd >= 0)
        close(s->console_fd);
    s->console_fd = -1;
    s->for_epoch = 0;
    mst_net_close(image);
}

void mst_standby_free(struct mst_vm *image)
{
    if (!image->standby)
        return;
    let_go(image);
    free(image->standby);
    image->standby = NULL;
}

void mst_standbys_free(struct mst_keeper *k)
{
    for (unsigned i = 0; i < MST_VMS_PER_NODE; i++)
        mst_standby_free(&k->vms[i]);
}

/* One that waited longer than any is put off was none of those that fail one after the other; one whose end we ordered has not failed. */
static uint64_t put_off_ms(struct mst_standby *s, bool ordered)
{
    uint64_t ms;

    if (s->said == MST_STANDBY_WARM && mst_now_ms() - s->warm_ms >= RETRY_MAX_MS)
        s->failures = 0;
    if (ordered)
        return RETRY_MS;
    ms = RETRY_MS << (s->failures < 7 ? s->failures : 7);
    s->failures++;
    return ms < RETRY_MAX_MS ? ms : RETRY_MAX_MS;
}

static void again_later(struct mst_vm *image, bool ordered, const char *text)
{
    struct mst_standby *s = image->standby;

    s->asked_ms = 0;
    s->next_ms = mst_now_ms() + put_off_ms(s, ordered);
    log_notice("vm=%s epoch=%" PRIu64 " no QEMU waits beside its image: %s", image->name, image->epoch, text);
    mst_event(&(struct mst_event){.kind = MST_EV_STANDBY_ENDED, .vm = image->name, .epoch = image->epoch, .text = text});
    say(image, MST_STANDBY_FAILED);
}

void mst_standby_exited(struct mst_vm *image, int wait_status, bool ordered)
{
    char text[100], how[64];

    if (image->standby->for_epoch == 0)
        mst_ram_remove(image->keeper->conf->main_storage, &image->areas);
    let_go(image);
    snprintf(text, sizeof(text), "it ended with %s", mst_status_text(wait_status, how, sizeof(how)));
    again_later(image, ordered, text);
}

void mst_standby_close(struct mst_vm *image)
{
    if (image->image && image->proc)
        mst_proc_kill(image->keeper, image->name, NULL, NULL); /* the only process of that name: mst_standby_use */
}

/* --- one that is to wait --- */

static unsigned waiting_mib(const struct mst_keeper *k)
{
    unsigned mib = 0;

    for (unsigned i = 0; i < MST_VMS_PER_NODE; i++)
        if (k->vms[i].used && k->vms[i].image && (k->vms[i].proc || (k->vms[i].standby && k->vms[i].standby->asked_ms)))
            mib += MST_STANDBY_MIB;
    return mib;
}

static int ask(struct mst_vm *image)
{
    Mainstay__StandbyAsk body = MAINSTAY__STANDBY_ASK__INIT;
    mst_envelope env = MST_ENVELOPE(STANDBY_ASK, standby_ask, &body);
    const char *folder = image->keeper->conf->main_storage;
    char ram[PATH_MAX], disk[PATH_MAX];
    int r = mst_area_path(folder, &image->areas, MST_AREA_RAM, ram, sizeof(ram));

    if (r == 0)
        r = mst_disk_path(folder, &image->areas, disk, sizeof(disk));
    if (r < 0)
        return r;
    body.definition = mainstay__vm_definition__unpack(NULL, image->definition_bytes, image->definition);
    if (!body.definition)
        return -ENOMEM;
    body.epoch = image->epoch;
    body.ram = ram;
    body.disk = mst_vm_disk_mib(body.definition) ? disk : NULL;
    r = mst_agent_send(image->keeper, &env);
    mainstay__vm_definition__free_unpacked(body.definition, NULL);
    return r;
}

/* Its monitors are the last that it makes before its machine, so from here on it is at most as far away as any that is slow. */
static bool is_there(const struct mst_vm *image)
{
    char path[PATH_MAX];

    return mst_vm_path(image, MST_STANDBY_PREFIX MST_QMP_SPARE_SOCK, path, sizeof(path)) == 0 && access(path, F_OK) == 0;
}

/* The slot of an image of that VM with a process, whether that still waits or is being ended; also of a slot that is being dropped. */
static struct mst_vm *waits_for(const struct mst_vm *vm)
{
    for (unsigned i = 0; i < MST_VMS_PER_NODE; i++) {
        struct mst_vm *image = &vm->keeper->vms[i];

        if (image->used && image->image && image->proc && strcmp(image->name, vm->name) == 0)
            return image;
    }
    return NULL;
}

/* The VM has no grant here, nothing of it is being killed, and nothing waits for it yet, as beside the image of an epoch before: their monitors have the
 * same names, and a kill means all there is of the VM. Nor is everything being ended. */
static bool may_wait(const struct mst_vm *image)
{
    return mst_images_mirroring(image) && !image->keeper->stopping && !waits_for(image) &&
           mst_guard_granted(image->keeper->guard, image->name) == 0 && !mst_proc_killing(image->keeper, image->name);
}

static void look(struct mst_vm *image)
{
    struct mst_keeper *k = image->keeper;
    struct mst_standby *s = image->standby;
    uint64_t now_ms = mst_now_ms();

    if (image->proc) {
        if (mst_proc_waits(image) && s->said == MST_STANDBY_STARTING && is_there(image)) {
            s->warm_ms = now_ms;
            say(image, MST_STANDBY_WARM);
        }
        return;
    }
    if (s->asked_ms && now_ms >= s->asked_ms + ASK_MS)
        s->asked_ms = 0;
    if (s->asked_ms || now_ms < s->next_ms || !may_wait(image))
        return;
    if (k->conf->standby_memory_mib < MST_STANDBY_MIB) {
        say(image, MST_STANDBY_OFF);
    } else if (waiting_mib(k) + MST_STANDBY_MIB > k->conf->standby_memory_mib) {
        say(image, MST_STANDBY_FULL);
    } else if (mst_agent_up(k) && mst_tenure_settled(k, NULL) && ask(image) == 0) {
        s->asked_ms = now_ms;
        say(image, MST_STANDBY_STARTING);
    }
}

void mst_standbys_second(struct mst_keeper *k)
{
    for (unsigned i = 0; i < MST_VMS_PER_NODE && !k->stopping; i++) {
        struct mst_vm *image = &k->vms[i];

        if (!image->used || image->drop_pending || !image->image || !image->definition)
            continue;
        if (!image->standby && mst_images_mirroring(image)) {
            image->standby = calloc(1, sizeof(*image->standby));
            if (!image->standby)
                continue;
            image->standby->console_fd = -1;
        }
        if (image->standby)
            look(image);
    }
}

/* --- it is started --- */

static int argv_keep(struct mst_standby *s, char *const *argv, size_t argc)
{
    s->argv = calloc(argc, sizeof(*s->argv));
    if (!s->argv)
        return -ENOMEM;
    for (; s->argc < argc; s->argc++) {
        size_t bytes = strlen(argv[s->argc]) + 1;

        s->argv[s->argc] = malloc(bytes);
        if (!s->argv[s->argc])
            return -ENOMEM;
        memcpy(s->argv[s->argc], argv[s->argc], bytes);
    }
    return 0;
}

static void old_sockets_remove(const struct mst_vm *image)
{
    static const char *const names[] = {MST_STANDBY_PREFIX MST_QMP_SOCK, MST_STANDBY_PREFIX MST_QMP_SPARE_SOCK};
    char path[PATH_MAX];

    for (unsigned i = 0; i < 2; i++)
        if (mst_vm_path(image, names[i], path, sizeof(path)) == 0)
            unlink(path);
}

static int start(struct mst_vm *image, const Mainstay__VmDefinition *def, char **argv, size_t argc, struct mst_why *why)
{
    struct mst_standby *s = image->standby;
    const char *folder = image->keeper->conf->main_storage;
    int child_fd = -1, net_fd = -1, r;

    r = mst_ram_make(folder, &image->areas, image->areas.area[MST_AREA_SHADOW].bytes, (uint64_t)mst_vm_disk_mib(def) << 20, why);
    if (r < 0)
        return r;
    old_sockets_remove(image);
    r = argv_keep(s, argv, argc);
    if (r == 0)
        r = mst_console_pair(image, &s->console_fd, &child_fd, why);
    if (r == 0)
        r = mst_net_make(image, def, &net_fd, why);
    if (r == 0)
        r = mst_proc_spawn_waiting(image, argv, argc, child_fd, net_fd, why);
    if (child_fd >= 0)
        close(child_fd);
    if (net_fd >= 0)
        close(net_fd);
    if (r < 0) {
        let_go(image);
        mst_ram_remove(folder, &image->areas);
    }
    return r;
}

int mst_standby_spawn(struct mst_keeper *k, const mst_envelope *env, struct mst_why *why)
{
    const Mainstay__StandbySpawn *request = env->standby_spawn;
    struct mst_vm *image = mst_slot_find(k, request->vm, request->epoch);
    struct mst_standby *s = image ? image->standby : NULL;
    Mainstay__VmDefinition *def;
    int r = 0;

    if (!s || !s->asked_ms || image->proc || !may_wait(image))
        return mst_why_set(why, -ESTALE, "no QEMU is to wait beside an image of %s epoch %" PRIu64 " here", request->vm,
                           request->epoch);
    s->asked_ms = 0;
    if (!request->n_argv)
        r = mst_why_set(why, -ENOEXEC, "%s", request->text ? request->text : "the agent does not say how it is started");
    else if (strcmp(request->argv[0], k->conf->qemu) != 0)
        r = mst_why_set(why, -EPERM, "the only program a VM is started with is %s", k->conf->qemu);
    if (r == 0) {
        def = mainstay__vm_definition__unpack(NULL, image->definition_bytes, image->definition);
        r = def ? start(image, def, request->argv, request->n_argv, why) : -ENOMEM;
        mainstay__vm_definition__free_unpacked(def, NULL);
    }
    if (r < 0) {
        again_later(image, false, why->text[0] ? why->text : strerror(-r));
        return r;
    }
    log_info("vm=%s epoch=%" PRIu64 " pid=%ld waits beside its image", image->name, image->epoch, (long)mst_proc_pid(image));
    mst_event(&(struct mst_event){.kind = MST_EV_STANDBY_STARTED, .vm = image->name, .epoch = image->epoch});
    mst_slot_publish(image); /* its pid */
    return 0;
}

/* --- it is used --- */

/* It opens its memory by name, and makes what it does not find: a name must not go before. From then on it is at the file, whatever that is called. */
static bool has_its_memory(const struct mst_vm *image)
{
    const char *folder = image->keeper->conf->main_storage;
    char path[PATH_MAX];
    pid_t pid = mst_proc_pid(image);

    if (MST_MUTANT(111))
        return true;
    if (mst_area_path(folder, &image->areas, MST_AREA_RAM, path, sizeof(path)) < 0 || mst_pid_has_open(pid, path) != 1)
        return false;
    return mst_disk_path(folder, &image->areas, path, sizeof(path)) == 0 &&
           (access(path, F_OK) < 0 || mst_pid_has_open(pid, path) == 1);
}

void mst_standby_ram(struct mst_vm *vm)
{
    struct mst_vm *image = vm->resumes ? waits_for(vm) : NULL;
    int r;

    if (!image || !mst_proc_waits(image) || image->drop_pending || image->standby->for_epoch ||
        image->areas.area[MST_AREA_SHADOW].bytes != vm->areas.area[MST_AREA_RAM].bytes ||
        image->definition_bytes != vm->definition_bytes || memcmp(image->definition, vm->definition, vm->definition_bytes) != 0)
        return; /* mst_standby_use says so */
    if (!has_its_memory(image))
        return;
    r = mst_ram_hand_over(vm->keeper->conf->main_storage, &image->areas, &vm->areas);
    if (r == 0)
        image->standby->for_epoch = vm->epoch;
    else
        log_warning("vm=%s epoch=%" PRIu64 " RAM of the QEMU that waits for it cannot be had: %s", vm->name, vm->epoch,
                    strerror(-r));
}

#define SWAPS 4u

/* waits, with what differs between one that waits and the VM's put in place of it, is wanted. */
static bool word_fits(const char *waits, const char *wanted, const char *const swaps[SWAPS][2])
{
    if (strcmp(waits, wanted) == 0)
        return true;
    for (unsigned i = 0; i < SWAPS; i++) {
        const char *at = strstr(waits, swaps[i][0]);
        size_t head = at ? (size_t)(at - waits) : 0, to = strlen(swaps[i][1]);

        if (at && strncmp(waits, wanted, head) == 0 && strncmp(wanted + head, swaps[i][1], to) == 0 &&
            strcmp(at + strlen(swaps[i][0]), wanted + head + to) == 0)
            return true;
    }
    return false;
}

/* It was started with the command line that the VM's would be started with now. */
static bool argv_fits(const struct mst_vm *image, const struct mst_vm *vm, char *const *argv, size_t argc)
{
    const struct mst_standby *s = image->standby;
    const char *folder = vm->keeper->conf->main_storage;
    char from[PATH_MAX], from_disk[PATH_MAX], to[PATH_MAX], to_disk[PATH_MAX];
    const char *const swaps[SWAPS][2] = {{from, to},
                                         {from_disk, to_disk},
                                         {"/" MST_STANDBY_PREFIX MST_QMP_SOCK, "/" MST_QMP_SOCK},
                                         {"/" MST_STANDBY_PREFIX MST_QMP_SPARE_SOCK, "/" MST_QMP_SPARE_SOCK}};

    if (mst_area_path(folder, &image->areas, MST_AREA_RAM, from, sizeof(from)) < 0 ||
        mst_area_path(folder, &vm->areas, MST_AREA_RAM, to, sizeof(to)) < 0 ||
        mst_disk_path(folder, &image->areas, from_disk, sizeof(from_disk)) < 0 ||
        mst_disk_path(folder, &vm->areas, to_disk, sizeof(to_disk)) < 0 || s->argc != argc)
        return false;
    for (size_t i = 0; i < argc; i++)
        if (!word_fits(s->argv[i], argv[i], swaps))
            return false;
    return true;
}

static int sockets_rename(const struct mst_vm *vm)
{
    static const char *const names[] = {MST_QMP_SPARE_SOCK, MST_QMP_SOCK}; /* who connects to the one finds the other */
    char from[PATH_MAX], to[PATH_MAX], waits[64];
    int r = 0;

    for (unsigned i = 0; i < 2 && r == 0; i++) {
        snprintf(waits, sizeof(waits), MST_STANDBY_PREFIX "%s", names[i]);
        r = mst_vm_path(vm, waits, from, sizeof(from));
        if (r == 0)
            r = mst_vm_path(vm, names[i], to, sizeof(to));
        if (r == 0 && rename(from, to) < 0)
            r = -errno; /* it is not so far yet */
    }
    return r;
}

static int take(struct mst_vm *image, struct mst_vm *vm, struct mst_why *why)
{
    Mainstay__VmDefinition *def = mainstay__vm_definition__unpack(NULL, vm->definition_bytes, vm->definition);
    struct mst_standby *s = image->standby;
    int r = def ? sockets_rename(vm) : -ENOMEM;

    if (r == 0)
        r = mst_output_open(vm, def);
    if (r == 0) {
        mst_net_move(image, vm);
        r = mst_net_join(vm, def, why);
    }
    if (r == 0)
        r = mst_console_begin(vm, s->console_fd);
    if (r == 0) {
        s->console_fd = -1;
        r = mst_proc_adopt(image, vm, why);
    }
    if (r < 0) {
        mst_net_close(vm);
        mst_console_hangup(vm);
    }
    mainstay__vm_definition__free_unpacked(def, NULL);
    return r;
}

int mst_standby_use(struct mst_vm *vm, char **argv, size_t argc, pid_t *ret_pid, struct mst_why *why)
{
    struct mst_vm *image = waits_for(vm);
    const char *unfit = NULL;
    int r;

    if (mst_proc_killing(vm->keeper, vm->name))
        return -EAGAIN;
    if (!image || MST_MUTANT(110))
        return 0;
    if (!mst_proc_waits(image))
        unfit = "it is being ended";
    else if (image->standby->for_epoch == vm->epoch && !vm->areas.ram_there)
        unfit = "its memory was dropped, and the VM has another"; /* the name is the same, the file is not */
    else if (image->standby->for_epoch != vm->epoch)
        unfit = vm->resumes ? "it is of another definition, or had not opened its memory yet" : "the VM boots";
    else if (!argv_fits(image, vm, argv, argc))
        unfit = "it was started with another command line";
    if (!unfit && (r = take(image, vm, why)) < 0)
        unfit = why->text[0] ? why->text : strerror(-r);
    if (unfit) {
        log_notice("vm=%s epoch=%" PRIu64 " the QEMU that waits for it is not used: %s", vm->name, vm->epoch, unfit);
        why->text[0] = '\0';
        return -EAGAIN;
    }
    let_go(image);
    *ret_pid = mst_proc_pid(vm);
    say(image, MST_STANDBY_NONE);
    mst_slot_release(image); /* the slot may be gone now */
    return 1;
}
