#ifndef MST_AGENT_QEMU_ARGS_H
#define MST_AGENT_QEMU_ARGS_H

#include "base/err.h"
#include "mainstay.pb-c.h"

#include <stdbool.h>

#define MST_CONSOLE_FD 3 /* where the keeper puts QEMU's end of the console */
#define MST_NETWORK_FD 4 /* and its tap, when the VM has a network */

struct mst_qemu_where { /* the node's part of a command line; all borrowed */
    const char *qemu;   /* program */
    const char *accel;  /* kvm or tcg */
    const char *vm_dir; /* run directory of this VM: monitors' sockets */
    const char *ram_path;
    const char *disk_path; /* of the disk in main storage; NULL without one */
    uint32_t devices;      /* bit i: disk i of the machine is a block device here */
    bool incoming;         /* a save is to be loaded: wait for migrate-incoming, and then for cont */
    bool standby;          /* it waits beside an image: until it is the VM's its monitors have other names */
};

/* Builds the command line of docs/OPERATING.md. Disks come behind everything else that takes a place on the bus, so that VMs without any have the devices
 * they always had. A comma in a path or machine type is doubled, as QEMU splits there;
 * cpu is handed on as it stands (its features are a list).
 *   machine  the definition whose machine is built (of the VM, or of the saved state it starts from); name: the VM's
 * *ret_argv: NULL-terminated, one allocation for each word; free with mst_qemu_args_free.
 * -EINVAL (no kernel, no file for its disk in main storage), -ENOMEM. Any thread. */
int mst_qemu_args(const Mainstay__VmDefinition *machine, const char *name, const struct mst_qemu_where *where, char ***ret_argv,
                  struct mst_why *why);
void mst_qemu_args_free(char **argv); /* NULL is fine */

#endif
