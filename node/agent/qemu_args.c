#include "node/agent/qemu_args.h"

#include "conf/conf.h"

#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define WORDS_MAX 96u

struct words {
    char *word[WORDS_MAX];
    unsigned count;
    bool failed; /* no memory: everything after it is dropped */
};

__attribute__((format(printf, 2, 3))) static void add(struct words *words, const char *fmt, ...)
{
    va_list list;

    if (words->failed || words->count >= WORDS_MAX - 1) {
        words->failed = true;
        return;
    }
    va_start(list, fmt);
    if (vasprintf(&words->word[words->count], fmt, list) < 0) {
        words->word[words->count] = NULL;
        words->failed = true;
    } else {
        words->count++;
    }
    va_end(list);
}

/* In QEMU's KEY=VALUE,... words a comma inside a value is written twice. */
static char *doubled_commas(const char *value)
{
    size_t commas = 0;
    char *out, *to;

    for (const char *p = value; *p; p++)
        commas += *p == ',';
    out = malloc(strlen(value) + commas + 1);
    if (!out)
        return NULL;
    to = out;
    for (const char *p = value; *p; p++) {
        *to++ = *p;
        if (*p == ',')
            *to++ = ',';
    }
    *to = '\0';
    return out;
}

static void add_machine(struct words *words, const Mainstay__VmDefinition *machine, const char *name,
                        const struct mst_qemu_where *where, const char *machine_type, const char *ram_path)
{
    uint64_t ram_bytes = (uint64_t)machine->memory_mib << 20;
    uint32_t disk_mib = mst_vm_disk_mib(machine);

    add(words, "%s", where->qemu);
    add(words, "-name");
    add(words, "%s,process=mst-%s", name, name);
    add(words, "-nodefaults");
    add(words, "-no-user-config");
    add(words, "-display");
    add(words, "none");
    add(words, "-machine");
    add(words, "%s,accel=%s,memory-backend=ram,suppress-vmdesc=on,vmport=off,usb=off%s", machine_type, where->accel,
        disk_mib ? ",nvdimm=on" : "");
    add(words, "-cpu");
    add(words, "%s", machine->cpu);
    add(words, "-smp");
    add(words, "%" PRIu32, machine->vcpus);
    add(words, "-m");
    if (disk_mib)
        add(words, "size=%" PRIu32 "M,slots=1,maxmem=%" PRIu32 "M", machine->memory_mib, machine->memory_mib + disk_mib);
    else
        add(words, "size=%" PRIu32 "M", machine->memory_mib);
    add(words, "-object");
    add(words, "memory-backend-file,id=ram,mem-path=%s,share=on,size=%" PRIu64, ram_path, ram_bytes);
}

static void add_devices(struct words *words, const char *vm_dir, bool standby)
{
    static const char *const monitors[][2] = {{"qmp", MST_QMP_SOCK}, {"qmp2", MST_QMP_SPARE_SOCK}};

    add(words, "-chardev");
    add(words, "socket,id=con,fd=%d", MST_CONSOLE_FD);
    add(words, "-device");
    add(words, "isa-serial,chardev=con");
    add(words, "-device");
    add(words, "pvpanic");
    add(words, "-action");
    add(words, "panic=pause");
    add(words, "-action");
    add(words, "reboot=reset");
    for (unsigned i = 0; i < 2; i++) {
        add(words, "-chardev");
        add(words, "socket,id=%s,path=%s/%s%s,server=on,wait=off", monitors[i][0], vm_dir, standby ? MST_STANDBY_PREFIX : "",
            monitors[i][1]);
        add(words, "-mon");
        add(words, "chardev=%s,mode=control", monitors[i][0]);
    }
    add(words, "-sandbox");
    add(words, "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny");
}

/* No vhost: its thread in the kernel is not stopped by `stop`, as far as a plug behind the tap could tell, and many nodes have none. No option ROM: there
 * is nothing to boot from, and it would be part of each save. */
static void add_network(struct words *words, const Mainstay__VmDefinition *machine)
{
    uint8_t mac[6];

    if (!machine->network)
        return;
    mst_vm_mac(machine, mac);
    add(words, "-netdev");
    add(words, "tap,id=net0,fd=%d,vhost=off", MST_NETWORK_FD);
    add(words, "-device");
    add(words, "virtio-net-pci,netdev=net0,mac=%02x:%02x:%02x:%02x:%02x:%02x,romfile=", mac[0], mac[1], mac[2], mac[3], mac[4],
        mac[5]);
}

/* Memory that the guest uses as a disk, and that QEMU maps as it maps RAM: its pages are tracked, saved and restored as pages of RAM are. */
static void add_memory_disk(struct words *words, size_t index, const Mainstay__VmDisk *disk, const char *path)
{
    add(words, "-object");
    add(words, "memory-backend-file,id=disk%zu,mem-path=%s,share=on,size=%" PRIu64, index, path,
        (uint64_t)disk->memory_mib << 20);
    add(words, "-device");
    add(words, "nvdimm,memdev=disk%zu", index);
}

/* A disk that is written to belongs to all nodes: what a guest was told is there has to be in the file and not in this node's cache (cache.direct), and
 * what it flushes reaches the file's own disk (QEMU's default). Errors go to the guest: a VM that QEMU stops for want of room would look as if it hung. */
static void add_file_disk(struct words *words, size_t index, const Mainstay__VmDisk *disk, const char *path, bool device)
{
    bool writable = disk->has_writable && disk->writable;

    add(words, "-blockdev");
    add(words, "driver=%s,node-name=disk%zu,read-only=%s,cache.direct=%s,file.driver=%s,file.filename=%s",
        disk->format == MAINSTAY__DISK_FORMAT__DISK_QCOW2 ? "qcow2" : "raw", index, writable ? "off" : "on",
        writable ? "on" : "off", device ? "host_device" : "file", path);
    add(words, "-device");
    add(words, "virtio-blk-pci,drive=disk%zu,serial=disk%zu,werror=report,rerror=report", index, index);
}

static void add_disks(struct words *words, const Mainstay__VmDefinition *machine, const struct mst_qemu_where *where)
{
    for (size_t i = 0; i < machine->n_disks; i++) {
        const Mainstay__VmDisk *disk = machine->disks[i];
        char *path = doubled_commas(disk->path ? disk->path : where->disk_path);

        if (!path)
            words->failed = true;
        else if (disk->path)
            add_file_disk(words, i, disk, path, where->devices >> i & 1);
        else
            add_memory_disk(words, i, disk, path);
        free(path);
    }
}

static void add_boot(struct words *words, const Mainstay__VmDefinition *machine, bool incoming)
{
    add(words, "-kernel");
    add(words, "%s", machine->boot_kernel);
    if (machine->boot_initrd && machine->boot_initrd[0]) {
        add(words, "-initrd");
        add(words, "%s", machine->boot_initrd);
    }
    if (machine->boot_append && machine->boot_append[0]) {
        add(words, "-append");
        add(words, "%s", machine->boot_append);
    }
    if (incoming) {
        add(words, "-incoming");
        add(words, "defer");
        add(words, "-S"); /* what is loaded stands until it is told to go on */
    }
}

int mst_qemu_args(const Mainstay__VmDefinition *machine, const char *name, const struct mst_qemu_where *where, char ***ret_argv,
                  struct mst_why *why)
{
    struct words words = {.count = 0};
    char *machine_type = NULL, *ram_path = NULL, *vm_dir = NULL, **argv = NULL;

    if (!machine->boot_kernel || !machine->boot_kernel[0])
        return mst_why_set(why, -EINVAL, "VM %s has no boot kernel to build its machine with", name);
    if (mst_vm_disk_mib(machine) && !where->disk_path)
        return mst_why_set(why, -EINVAL, "VM %s has no file for its disk in main storage", name);
    machine_type = doubled_commas(machine->machine);
    ram_path = doubled_commas(where->ram_path);
    vm_dir = doubled_commas(where->vm_dir);
    argv = calloc(WORDS_MAX, sizeof(*argv));
    if (!machine_type || !ram_path || !vm_dir || !argv) {
        words.failed = true;
    } else {
        add_machine(&words, machine, name, where, machine_type, ram_path);
        add_devices(&words, vm_dir, where->standby);
        add_network(&words, machine);
        add_disks(&words, machine, where);
        add_boot(&words, machine, where->incoming);
    }
    free(machine_type);
    free(ram_path);
    free(vm_dir);
    if (words.failed) {
        for (unsigned i = 0; i < words.count; i++)
            free(words.word[i]);
        free(argv);
        return mst_why_set(why, -ENOMEM, "no memory for the QEMU command line of VM %s", name);
    }
    memcpy(argv, words.word, words.count * sizeof(*argv));
    *ret_argv = argv;
    return 0;
}

void mst_qemu_args_free(char **argv)
{
    for (char **word = argv; word && *word; word++)
        free(*word);
    free(argv);
}
