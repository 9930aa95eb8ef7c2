#include "node/keeper/keeper.h"

#include "base/clock.h"
#include "base/file.h"
#include "base/log.h"
#include "node/keeper/spawn.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

/* /dev/kvm may be there and yet run no guest (nested virtualization that hangs). The only proof is a guest that executes: a firmware image of 64 KiB
 * whose reset vector writes one byte to QEMU's isa-debug-exit port, which ends QEMU with a status that nothing else gives. */

#define PROBE_BYTES       (64u << 10)
#define PROBE_RESET       (PROBE_BYTES - 16u) /* f000:fff0 */
#define PROBE_VALUE       0x15
#define PROBE_EXIT        (PROBE_VALUE << 1 | 1)
#define PROBE_DEADLINE_MS 2000
#define CACHE_BYTES_MAX   128u

static int probe_write(const char *path)
{
    static const uint8_t code[] = {
        0xb0, PROBE_VALUE,       /* mov al, value */
        0xba, 0x01,        0x05, /* mov dx, 0x501 */
        0xee,                    /* out dx, al */
        0xf4,                    /* hlt */
        0xeb, 0xfd,              /* jmp to the hlt */
    };
    uint8_t *image = calloc(1, PROBE_BYTES);
    int r;

    if (!image)
        return -ENOMEM;
    memcpy(image + PROBE_RESET, code, sizeof(code));
    r = mst_file_write_durable(path, image, PROBE_BYTES, 0600);
    free(image);
    return r;
}

/* Waits for the end of the probe; kills it at the deadline. Its wait status, or -ETIMEDOUT. */
static int probe_wait(pid_t pid, int pidfd)
{
    struct pollfd wait = {.fd = pidfd, .events = POLLIN};
    uint64_t end = mst_now_ms() + PROBE_DEADLINE_MS;
    int status = 0, ended = 0;

    while (!ended && mst_now_ms() < end) {
        poll(&wait, 1, (int)(end - mst_now_ms()));
        ended = mst_reap(pid, &status) != 0;
    }
    if (ended)
        return status;
    mst_pidfd_kill(pidfd);
    poll(&wait, 1, -1);
    mst_reap(pid, &status);
    return -ETIMEDOUT;
}

static bool kvm_runs(const struct mst_node_conf *conf)
{
    char image[PATH_MAX], log[PATH_MAX];
    const char *argv[] = {conf->qemu,
                          "-machine",
                          "pc,accel=kvm",
                          "-nodefaults",
                          "-no-user-config",
                          "-display",
                          "none",
                          "-m",
                          "16",
                          "-bios",
                          image,
                          "-device",
                          "isa-debug-exit,iobase=0x501,iosize=1"};
    struct mst_spawn spawn = {.exec = conf->exec, .log = log, .fd = -1, .argv = argv, .argc = sizeof(argv) / sizeof(argv[0])};
    struct mst_why why = {0};
    int pidfd = -1, r;
    pid_t pid = -1;

    if (mst_path(image, sizeof(image), "%s/accel-probe.bin", conf->run_dir) < 0 ||
        mst_path(log, sizeof(log), "%s/accel-probe.log", conf->run_dir) < 0)
        return false;
    r = probe_write(image);
    if (r == 0)
        r = mst_spawn(&spawn, &pid, &pidfd, &why);
    if (r < 0) {
        log_warning("cannot try KVM: %s", why.text[0] ? why.text : strerror(-r));
        return false;
    }
    r = probe_wait(pid, pidfd);
    close(pidfd);
    if (r == -ETIMEDOUT)
        log_notice("/dev/kvm is there, but its guest did nothing within %d ms", PROBE_DEADLINE_MS);
    else if (!WIFEXITED(r) || WEXITSTATUS(r) != PROBE_EXIT)
        log_notice("/dev/kvm is there, but QEMU did not run a guest with it: see %s", log);
    return r >= 0 && WIFEXITED(r) && WEXITSTATUS(r) == PROBE_EXIT;
}

static void boot_id_text(const uint8_t id[16], char out[33])
{
    size_t i;

    for (i = 0; i < 16; i++)
        snprintf(out + 2 * i, 3, "%02x", id[i]);
}

const char *mst_accel_choose(const struct mst_node_conf *conf, const uint8_t host_boot_id[16])
{
    char path[PATH_MAX], boot[33], line[64], *cached = NULL;
    const char *accel = NULL;
    size_t len;

    if (strcmp(conf->accel, "auto") != 0)
        return strcmp(conf->accel, "kvm") == 0 ? "kvm" : "tcg";
    boot_id_text(host_boot_id, boot);
    if (mst_path(path, sizeof(path), "%s/accel", conf->run_dir) < 0)
        return "tcg";
    if (mst_file_read(path, CACHE_BYTES_MAX, &cached, &len) == 0 && strncmp(cached, boot, 32) == 0 && cached[32] == ' ')
        accel = strcmp(cached + 33, "kvm\n") == 0 ? "kvm" : strcmp(cached + 33, "tcg\n") == 0 ? "tcg" : NULL;
    free(cached);
    if (accel)
        return accel;
    accel = access("/dev/kvm", R_OK | W_OK) == 0 && kvm_runs(conf) ? "kvm" : "tcg";
    log_notice("accel auto: %s", accel);
    snprintf(line, sizeof(line), "%s %s\n", boot, accel);
    if (mst_file_write_durable(path, line, strlen(line), 0600) < 0)
        log_warning("cannot keep the choice in %s", path);
    return accel;
}
