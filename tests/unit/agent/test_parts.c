/* Command line, disks, statistics, saved states on disk, mapping of areas. */

#include "base/file.h"
#include "node/agent/dirty.h"
#include "node/agent/disk.h"
#include "node/agent/qemu_args.h"
#include "node/agent/saved_state.h"
#include "node/agent/stats.h"
#include "node/agent/vmmap.h"

#include <check.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>
#include <zstd.h>

static char dir[64];
static Mainstay__VmDefinition web;

static void setup(void)
{
    snprintf(dir, sizeof(dir), "/dev/shm/mst-parts-XXXXXX");
    ck_assert_ptr_nonnull(mkdtemp(dir));
    mainstay__vm_definition__init(&web);
    web.name = (char *)(uintptr_t) "web01";
    web.memory_mib = 1;
    web.boot_kernel = (char *)(uintptr_t) "/boot/k";
}

static void teardown(void)
{
    char command[100];

    snprintf(command, sizeof(command), "rm -rf %s", dir);
    ck_assert_int_eq(system(command), 0);
}

static const char *joined(char **argv, char *buf, size_t size)
{
    buf[0] = '\0';
    for (char **word = argv; *word; word++)
        snprintf(buf + strlen(buf), size - strlen(buf), "%s%s", word == argv ? "" : " ", *word);
    return buf;
}

START_TEST(command_line_is_that_of_the_contract)
{
    struct mst_qemu_where where = {.qemu = "/q", .accel = "kvm", .vm_dir = "/run/vm", .ram_path = "/shm/r", .incoming = true};
    struct mst_why why;
    char text[2000], **argv;

    web.memory_mib = 16;
    web.boot_initrd = (char *)(uintptr_t) "/boot/i";
    web.boot_append = (char *)(uintptr_t) "a=1 b";
    ck_assert_int_eq(mst_qemu_args(&web, "web01", &where, &argv, &why), 0);
    ck_assert_str_eq(
        joined(argv, text, sizeof(text)),
        "/q -name web01,process=mst-web01 -nodefaults -no-user-config -display none"
        " -machine pc-i440fx-7.2,accel=kvm,memory-backend=ram,suppress-vmdesc=on,vmport=off,usb=off -cpu max -smp 1 -m size=16M"
        " -object memory-backend-file,id=ram,mem-path=/shm/r,share=on,size=16777216"
        " -chardev socket,id=con,fd=3 -device isa-serial,chardev=con -device pvpanic -action panic=pause -action reboot=reset"
        " -chardev socket,id=qmp,path=/run/vm/qmp.sock,server=on,wait=off -mon chardev=qmp,mode=control"
        " -chardev socket,id=qmp2,path=/run/vm/qmp-spare.sock,server=on,wait=off -mon chardev=qmp2,mode=control"
        " -sandbox on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"
        " -kernel /boot/k -initrd /boot/i -append a=1 b -incoming defer -S");
    mst_qemu_args_free(argv);
}
END_TEST

START_TEST(a_vm_with_a_network_gets_the_keepers_tap_and_always_the_same_address)
{
    Mainstay__VmNetwork network = MAINSTAY__VM_NETWORK__INIT;
    struct mst_qemu_where where = {.qemu = "/q", .accel = "kvm", .vm_dir = "/run/vm", .ram_path = "/shm/r", .incoming = true};
    struct mst_why why;
    char text[2000], again[2000], **argv;

    web.memory_mib = 16;
    web.network = &network;
    network.mac = (char *)(uintptr_t) "52:54:00:12:34:56";
    ck_assert_int_eq(mst_qemu_args(&web, "web01", &where, &argv, &why), 0);
    joined(argv, text, sizeof(text));
    ck_assert_ptr_nonnull(strstr(text, " -netdev tap,id=net0,fd=4,vhost=off"
                                       " -device virtio-net-pci,netdev=net0,mac=52:54:00:12:34:56,romfile= -kernel"));
    mst_qemu_args_free(argv);
    network.mac = NULL;
    ck_assert_int_eq(mst_qemu_args(&web, "web01", &where, &argv, &why), 0);
    joined(argv, text, sizeof(text));
    mst_qemu_args_free(argv);
    ck_assert_ptr_nonnull(strstr(text, "virtio-net-pci,netdev=net0,mac=02:"));
    where.accel = "tcg"; /* on another node */
    ck_assert_int_eq(mst_qemu_args(&web, "web01", &where, &argv, &why), 0);
    joined(argv, again, sizeof(again));
    mst_qemu_args_free(argv);
    ck_assert_str_eq(strstr(again, "virtio-net-pci"), strstr(text, "virtio-net-pci"));
    web.network = NULL;
}
END_TEST

static Mainstay__VmDisk disk[MST_DISKS_MAX], *disks[MST_DISKS_MAX];

/* web has one more disk. */
static Mainstay__VmDisk *disk_add(void)
{
    Mainstay__VmDisk *one = disks[web.n_disks] = &disk[web.n_disks];

    mainstay__vm_disk__init(one);
    web.disks = disks;
    web.n_disks++;
    return one;
}

static Mainstay__VmDisk *file_disk_add(const char *path, Mainstay__DiskFormat format, bool writable)
{
    Mainstay__VmDisk *one = disk_add();

    one->path = (char *)(uintptr_t)path;
    one->has_format = one->has_writable = 1;
    one->format = format;
    one->writable = writable;
    return one;
}

START_TEST(disks_are_opened_as_their_kind_says_and_nothing_is_probed)
{
    struct mst_qemu_where where = {
        .qemu = "/q", .accel = "tcg", .vm_dir = "/run/vm", .ram_path = "/shm/r", .disk_path = "/shm/a,b", .devices = 4};
    struct mst_why why;
    char text[3000], **argv;

    web.memory_mib = 16;
    file_disk_add("/d/ro,x", MAINSTAY__DISK_FORMAT__DISK_QCOW2, false);
    disk_add()->has_memory_mib = 1;
    disk[1].memory_mib = 3;
    file_disk_add("/dev/shared", MAINSTAY__DISK_FORMAT__DISK_RAW, true);
    ck_assert_int_eq(mst_qemu_args(&web, "web01", &where, &argv, &why), 0);
    joined(argv, text, sizeof(text));
    mst_qemu_args_free(argv);
    ck_assert_ptr_nonnull(strstr(text, "vmport=off,usb=off,nvdimm=on -cpu"));
    ck_assert_ptr_nonnull(strstr(text, " -m size=16M,slots=1,maxmem=19M "));
    ck_assert_ptr_nonnull(strstr(
        text, " -blockdev driver=qcow2,node-name=disk0,read-only=on,cache.direct=off,file.driver=file,file.filename=/d/ro,,x"
              " -device virtio-blk-pci,drive=disk0,serial=disk0,werror=report,rerror=report"
              " -object memory-backend-file,id=disk1,mem-path=/shm/a,,b,share=on,size=3145728"
              " -device nvdimm,memdev=disk1"
              " -blockdev driver=raw,node-name=disk2,read-only=off,cache.direct=on,file.driver=host_device,"
              "file.filename=/dev/shared"
              " -device virtio-blk-pci,drive=disk2,serial=disk2,werror=report,rerror=report -kernel"));
    where.disk_path = NULL;
    ck_assert_int_eq(mst_qemu_args(&web, "web01", &where, &argv, &why), -EINVAL);
}
END_TEST

START_TEST(comma_in_a_path_or_machine_adds_no_option)
{
    struct mst_qemu_where where = {.qemu = "/q", .accel = "tcg", .vm_dir = "/a,b", .ram_path = "/x,size=1"};
    struct mst_why why;
    char text[2000], **argv;

    web.machine = (char *)(uintptr_t) "pc,accel=kvm";
    ck_assert_int_eq(mst_qemu_args(&web, "web01", &where, &argv, &why), 0);
    joined(argv, text, sizeof(text));
    ck_assert_ptr_nonnull(strstr(text, "mem-path=/x,,size=1,share=on"));
    ck_assert_ptr_nonnull(strstr(text, "path=/a,,b/qmp.sock,"));
    ck_assert_ptr_nonnull(strstr(text, "-machine pc,,accel=kvm,accel=tcg,"));
    mst_qemu_args_free(argv);
    web.boot_kernel = NULL;
    ck_assert_int_eq(mst_qemu_args(&web, "web01", &where, &argv, &why), -EINVAL);
}
END_TEST

START_TEST(percentiles_are_those_of_the_newest)
{
    static struct mst_stats stats;
    char text[400];

    ck_assert_uint_eq(mst_stats_percentile(&stats, MST_STAT_PAUSE, 50), 0);
    for (unsigned i = 1; i <= 100; i++)
        mst_stats_add(&stats,
                      &(struct mst_ckpt_report){
                          .pause_ns = i * 1000000ull, .stop_ns = 7000, .pages_early = 2, .pages_late = 3, .pages_dirty = 9});
    ck_assert_uint_eq(mst_stats_percentile(&stats, MST_STAT_PAUSE, 50), 50000);
    ck_assert_uint_eq(mst_stats_percentile(&stats, MST_STAT_PAUSE, 99), 99000);
    ck_assert_uint_eq(mst_stats_percentile(&stats, MST_STAT_PAUSE, 100), 100000);
    for (unsigned i = 0; i < MST_STATS_KEPT; i++)
        mst_stats_add(&stats, &(struct mst_ckpt_report){.pause_ns = 3000});
    ck_assert_uint_eq(mst_stats_percentile(&stats, MST_STAT_PAUSE, 99), 3);
    ck_assert_ptr_nonnull(strstr(mst_stats_text(&stats, text, sizeof(text)), "checkpoints=612 failed=0"));
    ck_assert_ptr_nonnull(strstr(text, " pages=0 dirty=1 us(p50/p99) pause=3/3 ")); /* 500 and 900 pages in 612 */
    ck_assert_uint_eq(stats.taken, 0);
    ck_assert_uint_eq(mst_stats_percentile(&stats, MST_STAT_PAUSE, 50),
                      3); /* who asks is told of the newest, whenever the log was written */
    mst_stats_add(&stats, &(struct mst_ckpt_report){.pause_ns = 9000});
    ck_assert_uint_eq(mst_stats_percentile(&stats, MST_STAT_PAUSE, 100), 9);
    ck_assert_uint_eq(stats.taken, 1);
}
END_TEST

static void put(const char *name, const void *data, size_t len)
{
    char path[200];

    snprintf(path, sizeof(path), "%s/%s", dir, name);
    ck_assert_int_eq(mst_file_write_durable(path, data, len, 0600), 0);
}

START_TEST(a_disk_that_cannot_be_opened_here_is_refused_before_qemu_is_started)
{
    uint32_t devices = 9;
    char path[200];
    struct mst_why why;

    snprintf(path, sizeof(path), "%s/disk", dir);
    file_disk_add(path, MAINSTAY__DISK_FORMAT__DISK_RAW, false);
    ck_assert_int_eq(mst_disks_check(&web, &devices, &why), -ENOENT);
    ck_assert_ptr_nonnull(strstr(why.text, "disks[0]: "));
    ck_assert_ptr_nonnull(strstr(why.text, "on this node"));
    put("disk", "x", 1);
    ck_assert_msg(mst_disks_check(&web, &devices, &why) == 0, "%s", why.text);
    ck_assert_uint_eq(devices, 0);
    disk[0].path = dir;
    ck_assert_int_eq(mst_disks_check(&web, &devices, &why), -EINVAL);
    ck_assert_ptr_nonnull(strstr(why.text, "neither a file nor a block device"));
    web.n_disks = 0;
    disk_add()->has_memory_mib = 1; /* its image is wanted for a boot only */
    disk[0].image = (char *)(uintptr_t) "/no/such/image";
    ck_assert_int_eq(mst_disks_check(&web, &devices, &why), 0);
}
END_TEST

START_TEST(an_image_fills_the_beginning_of_its_disk_and_never_more)
{
    static const uint8_t want[8] = {'a', 'b', 'c', 'd', 'e', 0, 0, 7};
    uint8_t memory[8] = {0, 0, 0, 0, 0, 0, 0, 7};
    struct mst_why why;
    char path[200];

    snprintf(path, sizeof(path), "%s/image", dir);
    ck_assert_int_eq(mst_disk_fill(path, memory, 7, &why), -ENOENT);
    put("image", "abcde", 5);
    ck_assert_int_eq(mst_disk_fill(path, memory, 7, &why), 0);
    ck_assert_mem_eq(memory, want, sizeof(want));
    ck_assert_int_eq(mst_disk_fill(path, memory, 5, &why), 0);
    ck_assert_int_eq(mst_disk_fill(path, memory, 4, &why), -EFBIG);
    ck_assert_ptr_nonnull(strstr(why.text, "is larger than its disk"));
    ck_assert_mem_eq(memory, want, sizeof(want));
    ck_assert_int_eq(mst_disk_fill(dir, memory, 4, &why), -EISDIR);
}
END_TEST

START_TEST(saved_ram_must_fit_exactly)
{
    enum { BYTES = 1 << 20 };
    static uint8_t ram[BYTES], out[BYTES], packed[2 * BYTES];
    struct mst_why why;
    char path[200];
    size_t bytes;

    for (size_t i = 0; i < BYTES; i++)
        ram[i] = (uint8_t)(i * 2654435761u >> 24);
    bytes = ZSTD_compress(packed, sizeof(packed), ram, BYTES, 3);
    put("ram.zst", packed, bytes);
    snprintf(path, sizeof(path), "%s/ram.zst", dir);
    ck_assert_msg(mst_saved_ram_unpack(path, out, BYTES, &why) == 0, "%s", why.text);
    ck_assert_mem_eq(ram, out, BYTES);
    ck_assert_int_eq(mst_saved_ram_unpack(path, out, BYTES - 4096, &why), -EBADMSG);
    ck_assert_ptr_nonnull(strstr(why.text, "holds more"));
    bytes = ZSTD_compress(packed, sizeof(packed), ram, BYTES - 4096, 3);
    put("ram.zst", packed, bytes);
    ck_assert_int_eq(mst_saved_ram_unpack(path, out, BYTES, &why), -EBADMSG);
    ck_assert_ptr_nonnull(strstr(why.text, "ends after"));
    for (size_t cut = 0; cut < bytes; cut += bytes / 7) {
        put("ram.zst", packed, cut);
        ck_assert_int_eq(mst_saved_ram_unpack(path, out, BYTES - 4096, &why), -EBADMSG);
    }
    put("ram.zst", ram, 5000);
    ck_assert_int_eq(mst_saved_ram_unpack(path, out, BYTES, &why), -EBADMSG);
    snprintf(path, sizeof(path), "%s/none", dir);
    ck_assert_int_eq(mst_saved_ram_unpack(path, out, BYTES, &why), -ENOENT);
}
END_TEST

START_TEST(saved_device_state_is_bounded)
{
    char *stream = calloc(1, MST_DEVICE_BYTES_MAX + 1), *got;
    struct mst_why why;
    size_t bytes;

    ck_assert_int_eq(mst_saved_device_read(dir, &got, &bytes, &why), -ENOENT);
    put("device", stream, MST_DEVICE_BYTES_MAX + 1);
    ck_assert_int_eq(mst_saved_device_read(dir, &got, &bytes, &why), -EFBIG);
    put("device", stream, 0);
    ck_assert_int_eq(mst_saved_device_read(dir, &got, &bytes, &why), -ENODATA);
    put("device", stream, 100);
    ck_assert_int_eq(mst_saved_device_read(dir, &got, &bytes, &why), 0);
    ck_assert_uint_eq(bytes, 100);
    free(got);
    free(stream);
}
END_TEST

START_TEST(saved_state_decides_the_machine)
{
    static const char yaml[] =
        "name: other\nmemory-mib: 1\nvcpus: 2\nmachine: pc-q35-7.2\nboot:\n  kernel: /vmlinuz\n  initrd: /i\n  append: \"x\"\n";
    Mainstay__VmDefinition *machine;
    struct mst_why why;

    put("definition.yaml", yaml, strlen(yaml));
    ck_assert_int_eq(mst_saved_machine(&web, &machine, &why), 0);
    ck_assert_str_eq(machine->machine, "pc-i440fx-7.2");
    mainstay__vm_definition__free_unpacked(machine, NULL);
    web.boot_kernel = NULL;
    web.boot_state = dir;
    ck_assert_msg(mst_saved_machine(&web, &machine, &why) == 0, "%s", why.text);
    ck_assert_str_eq(machine->machine, "pc-q35-7.2");
    ck_assert_uint_eq(machine->vcpus, 2);
    ck_assert_str_eq(machine->boot_kernel, "/vmlinuz");
    ck_assert_str_eq(machine->boot_initrd, "/i");
    mainstay__vm_definition__free_unpacked(machine, NULL);
    web.memory_mib = 2;
    ck_assert_int_eq(mst_saved_machine(&web, &machine, &why), -EINVAL);
    ck_assert_ptr_nonnull(strstr(why.text, "memory-mib"));
}
END_TEST

START_TEST(saved_state_decides_how_many_disks_of_which_kind_and_the_vm_where_they_are)
{
    static const char yaml[] = "name: other\nmemory-mib: 1\nboot: {kernel: /vmlinuz}\nprotect: local\n"
                               "disks:\n- {path: /then, format: qcow2}\n- memory-mib: 2\n";
    Mainstay__VmDefinition *machine;
    struct mst_why why;

    put("definition.yaml", yaml, strlen(yaml));
    web.boot_kernel = NULL;
    web.boot_state = dir;
    ck_assert_int_eq(mst_saved_machine(&web, &machine, &why), -EINVAL);
    ck_assert_ptr_nonnull(strstr(why.text, "disks: VM web01 has 0, but the saved state"));
    file_disk_add("/now", MAINSTAY__DISK_FORMAT__DISK_QCOW2, false);
    disk_add()->has_memory_mib = 1;
    disk[1].memory_mib = 2;
    ck_assert_msg(mst_saved_machine(&web, &machine, &why) == 0, "%s", why.text);
    ck_assert_uint_eq(machine->n_disks, 2);
    ck_assert_str_eq(machine->disks[0]->path, "/now");
    ck_assert_uint_eq(machine->disks[1]->memory_mib, 2);
    mainstay__vm_definition__free_unpacked(machine, NULL);
    disk[1].memory_mib = 3;
    ck_assert_int_eq(mst_saved_machine(&web, &machine, &why), -EINVAL);
    ck_assert_ptr_nonnull(strstr(why.text, "disks[1].memory-mib: is 3, but the saved state"));
    disk[0].format = MAINSTAY__DISK_FORMAT__DISK_RAW;
    ck_assert_int_eq(mst_saved_machine(&web, &machine, &why), -EINVAL);
    ck_assert_ptr_nonnull(strstr(why.text, "disks[0]: is of another kind"));
}
END_TEST

START_TEST(filled_shadow_becomes_the_first_checkpoint)
{
    enum { PAGES = 40 };
    static uint8_t ram[PAGES * 4096] __attribute__((aligned(4096))), shadow[PAGES * 4096] __attribute__((aligned(4096)));
    static uint8_t record_slots[2][MST_PUB_SLOT_BYTES];
    struct mst_delta_layout delta_layout;
    struct mst_save_layout layout;
    struct mst_save_writer *writer;
    struct mst_save_record record;
    struct mst_pub_head head;
    struct mst_save_map map;
    struct mst_why why;
    uint64_t room;

    memset(record_slots, 0, sizeof(record_slots));
    ck_assert_int_eq(mst_save_layout(sizeof(ram), &layout), 0);
    ck_assert_int_eq(mst_delta_layout(PAGES, &delta_layout), 0);
    map = (struct mst_save_map){.ram_bytes = sizeof(ram),
                                .ram = ram,
                                .save = aligned_alloc(4096, layout.bytes),
                                .shadow = shadow,
                                .delta = aligned_alloc(4096, delta_layout.bytes),
                                .delta_capacity = PAGES,
                                .record = record_slots,
                                .epoch = 3,
                                .instance = 9};
    memset(map.save, 0, layout.bytes);
    ck_assert_int_eq(mst_save_writer_new(&map, &writer), 0);
    mst_save_device(writer, &room)[0] = 1;
    for (uint64_t page = 0; page < PAGES; page++) {
        ck_assert_int_eq(mst_save_commit_filled(writer, 1, 1, 1, 1), -EAGAIN);
        ck_assert_int_eq(mst_save_fill(writer, page), 0);
    }
    ck_assert_int_eq(mst_save_fill(writer, PAGES), -ERANGE);
    ck_assert_int_eq(mst_pub_read(record_slots, &head, &record, sizeof(record)), -ENODATA);
    for (unsigned i = 0; i < 500; i++) { /* written while it is filled */
        ram[i * 331 % sizeof(ram)]++;
        if (i % 3)
            mst_save_fill(writer, i % PAGES);
    }
    for (uint64_t page = 0; page < PAGES; page++)
        ck_assert_int_ge(mst_save_fill(writer, page), 0);
    ck_assert_int_eq(mst_save_fill(writer, 0), 1);
    ck_assert_int_eq(mst_save_commit_filled(writer, 0, 1, 1, 1), -EMSGSIZE);
    ck_assert_int_eq(mst_save_commit_filled(writer, 1, 1, 1, 1), 0);
    ck_assert_mem_eq(ram, shadow, sizeof(ram));
    ck_assert_int_eq(mst_pub_read(record_slots, &head, &record, sizeof(record)), 0);
    ck_assert_msg(mst_save_record_check(&record, sizeof(ram), PAGES, &why) == 0, "%s", why.text);
    ck_assert_uint_eq(record.seq, 1);
    ck_assert_uint_eq(record.source, MST_SAVE_SHADOW);
    ck_assert_msg(mst_save_sums_check(&record, (const uint32_t *)(const void *)(map.save + layout.shadow_sums_off), &why) == 0,
                  "%s", why.text);
    ck_assert_uint_eq(mst_pages_check(shadow, (const uint32_t *)(const void *)(map.save + layout.shadow_sums_off), PAGES), PAGES);
    ck_assert_int_eq(mst_save_fill(writer, 0), -EBUSY);
    ck_assert_int_eq(mst_save_commit_filled(writer, 1, 1, 1, 1), -EBUSY);
    mst_save_begin(writer); /* and the next one is an ordinary one */
    ram[5 * 4096]++;
    ck_assert_int_eq(mst_save_stage_if_changed(writer, 5), 1);
    ck_assert_int_eq(mst_save_commit(writer, 1, 1, 1, 1), 0);
    mst_save_apply(writer);
    ck_assert_mem_eq(ram, shadow, sizeof(ram));
    mst_save_writer_free(writer);
    free(map.save);
    free(map.delta);
}
END_TEST

static void make(const char *name, uint64_t bytes)
{
    char path[200];

    snprintf(path, sizeof(path), "%s/%s", dir, name);
    unlink(path);
    close(open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600));
    ck_assert_int_eq(truncate(path, (off_t)bytes), 0);
}

static struct mst_status_map status;
static Mainstay__Areas areas;

/* A status area and the four files of web in dir. */
static void make_areas(void)
{
    static const uint8_t boot_id[16];
    static struct mst_status_area area;
    struct mst_delta_layout delta;
    struct mst_save_layout save;
    struct mst_why why;
    char path[200];

    memset(&area, 0, sizeof(area));
    mst_status_init(&area, "lab", "n1", 1, 77, boot_id, 1);
    put("status", &area, sizeof(area));
    snprintf(path, sizeof(path), "%s/status", dir);
    ck_assert_int_eq(mst_status_map(path, 78, &status, &why), -EBADMSG);
    ck_assert_msg(mst_status_map(path, 77, &status, &why) == 0, "%s", why.text);
    ck_assert_int_eq(mst_save_layout(1 << 20, &save), 0);
    ck_assert_int_eq(mst_delta_layout(64, &delta), 0);
    make("r", 1 << 20);
    make("s", save.bytes);
    make("h", 1 << 20);
    make("d", delta.bytes);
    mainstay__areas__init(&areas);
    areas.ram = (char *)(uintptr_t) "r";
    areas.save = (char *)(uintptr_t) "s";
    areas.shadow = (char *)(uintptr_t) "h";
    areas.delta = (char *)(uintptr_t) "d";
    areas.ram_bytes = 1 << 20;
    areas.has_delta_capacity = 1;
    areas.delta_capacity = 64;
    areas.slot = 3;
}

static int map_areas(struct mst_why *why)
{
    struct mst_vmmap *map = NULL;
    int unlocked, r = mst_vmmap_open(&status, &areas, &web, 1, 77, false, &map, &unlocked, why);

    mst_vmmap_close(map);
    return r;
}

/* Of our mapping of the RAM file: KiB that are there, and whether what is there stays. */
static long ram_resident_kib(bool *ret_locked)
{
    char line[600];
    bool is_ram = false;
    long kib = -1, value;
    FILE *maps = fopen("/proc/self/smaps", "r");

    *ret_locked = false;
    ck_assert_ptr_nonnull(maps);
    while (fgets(line, sizeof(line), maps)) {
        size_t len = strcspn(line, "\n");

        if (strstr(line, " rw-s ") != NULL)
            is_ram = len > 2 && strncmp(line + len - 2, "/r", 2) == 0;
        if (is_ram && sscanf(line, "Rss: %ld", &value) == 1)
            kib = value;
        if (is_ram && strncmp(line, "VmFlags:", 8) == 0) {
            *ret_locked = strstr(line, " lo") != NULL;
            is_ram = false;
        }
    }
    fclose(maps);
    return kib;
}

START_TEST(ram_of_a_guest_that_runs_is_locked_at_once_and_another_ones_page_by_page)
{
    struct mst_vmmap *map = NULL;
    struct mst_why why;
    bool locked;
    int unlocked;

    web.has_protect = 1;
    web.protect = MAINSTAY__PROTECT__PROTECT_LOCAL;
    make_areas();
    ck_assert_int_eq(mst_vmmap_open(&status, &areas, &web, 1, 77, _i, &map, &unlocked, &why), 0);
    if (unlocked != 0) { /* not allowed here */
        mst_vmmap_close(map);
        return;
    }
    ck_assert_int_eq(ram_resident_kib(&locked), _i ? 1024 : 0);
    ck_assert(locked);
    for (uint64_t page = 0; page < map->map.ram_bytes / MST_PAGE_BYTES; page++)
        ck_assert_uint_eq(map->map.ram[page * MST_PAGE_BYTES], 0);
    ck_assert_int_eq(ram_resident_kib(&locked), 1024);
    ck_assert(locked);
    mst_vmmap_close(map);
}
END_TEST

START_TEST(areas_are_mapped_only_when_every_size_fits)
{
    struct mst_why why;

    web.has_protect = 1;
    web.protect = MAINSTAY__PROTECT__PROTECT_LOCAL;
    make_areas();
    ck_assert_msg(map_areas(&why) == 0, "%s", why.text);
    areas.slot = MST_VMS_PER_NODE;
    ck_assert_int_eq(map_areas(&why), -EINVAL);
    areas.slot = 3;
    areas.ram_bytes = 2 << 20;
    ck_assert_int_eq(map_areas(&why), -EINVAL);
    areas.ram_bytes = 1 << 20;
    areas.delta_capacity = 257;
    ck_assert_int_eq(map_areas(&why), -EINVAL);
    areas.delta_capacity = 65; /* the file is too short for that */
    ck_assert_int_eq(map_areas(&why), -EBADMSG);
    areas.delta_capacity = 64;
    make("h", (1 << 20) - 1);
    ck_assert_int_eq(map_areas(&why), -EBADMSG);
    make("h", 1 << 20);
    areas.shadow = NULL;
    ck_assert_int_eq(map_areas(&why), -EINVAL);
    web.protect = MAINSTAY__PROTECT__PROTECT_NONE;
    ck_assert_int_eq(map_areas(&why), 0);
    areas.save = (char *)(uintptr_t) "nothing";
    ck_assert_int_eq(map_areas(&why), -ENOENT);
    mst_status_unmap(&status);
}
END_TEST

START_TEST(shadow_and_delta_are_mapped_later_and_only_when_they_fit)
{
    Mainstay__Areas first;
    struct mst_vmmap *map;
    struct mst_why why;
    int unlocked;

    web.has_protect = 1;
    web.protect = MAINSTAY__PROTECT__PROTECT_LOCAL;
    make_areas();
    first = areas;
    first.shadow = first.delta = NULL;
    ck_assert_int_eq(mst_vmmap_open(&status, &first, &web, 1, 77, false, &map, &unlocked, &why), 0);
    ck_assert(!map->map.shadow && !map->map.delta && map->map.delta_capacity == 0);
    ck_assert_int_eq(mst_vmmap_rest(&status, &first, &web, map, &why), -EINVAL);
    areas.delta_capacity = 65; /* the file is too short for that */
    ck_assert_int_eq(mst_vmmap_rest(&status, &areas, &web, map, &why), -EBADMSG);
    ck_assert(!map->map.shadow && !map->map.delta);
    areas.delta_capacity = 64;
    ck_assert_int_eq(mst_vmmap_rest(&status, &areas, &web, map, &why), 0);
    ck_assert(map->map.shadow && map->map.delta && map->map.delta_capacity == 64);
    mst_vmmap_close(map);
    mst_status_unmap(&status);
}
END_TEST

START_TEST(a_disk_is_mapped_right_behind_ram)
{
    struct mst_vmmap *map;
    struct mst_why why;
    char byte = 0;
    int unlocked;

    web.has_protect = 1;
    web.protect = MAINSTAY__PROTECT__PROTECT_NONE;
    make_areas();
    disk_add()->has_memory_mib = 1;
    disk[0].memory_mib = 1;
    ck_assert_int_eq(map_areas(&why), -EINVAL); /* too little for both */
    areas.ram_bytes = 2 << 20;
    ck_assert_int_eq(map_areas(&why), -EINVAL);
    ck_assert_ptr_nonnull(strstr(why.text, "no usable disk"));
    areas.disk = (char *)(uintptr_t) "disk";
    areas.has_disk_bytes = 1;
    areas.disk_bytes = 1 << 20;
    ck_assert_int_eq(map_areas(&why), -ENOENT);
    make("disk", (1 << 20) - 1);
    ck_assert_int_eq(map_areas(&why), -EBADMSG);
    make("disk", 1 << 20);
    make("s", (4 << 20) + 2 * 4096); /* enough for twice the pages */
    ck_assert_msg(mst_vmmap_open(&status, &areas, &web, 1, 77, false, &map, &unlocked, &why) == 0, "%s", why.text);
    ck_assert_uint_eq(map->map.ram_bytes, 2 << 20);
    ck_assert_uint_eq(map->disk_bytes, 1 << 20);
    ((uint8_t *)(uintptr_t)map->map.ram)[1 << 20] = 'd';
    ck_assert_int_eq(pread(map->disk_fd, &byte, 1, 0), 1);
    ck_assert_int_eq(byte, 'd');
    ((uint8_t *)(uintptr_t)map->map.ram)[(1 << 20) - 1] = 'r';
    ck_assert_int_eq(pread(map->ram_fd, &byte, 1, (1 << 20) - 1), 1);
    ck_assert_int_eq(byte, 'r');
    mst_vmmap_close(map);
    mst_status_unmap(&status);
}
END_TEST

/* As mst_dirty_open for RAM alone. */
static int dirty_open(pid_t pid, int fd, uint64_t bytes, struct mst_dirty **ret_dirty, struct mst_why *why)
{
    const struct mst_dirty_file files[MST_DIRTY_FILES_MAX] = {{fd, bytes}, {-1, 0}};

    return mst_dirty_open(pid, files, ret_dirty, why);
}

START_TEST(pages_of_a_disk_are_counted_on_from_those_of_ram)
{
    enum { RAM = 20, DISK = 10 };
    struct mst_dirty_file files[MST_DIRTY_FILES_MAX] = {{-1, RAM * 4096}, {-1, DISK * 4096}};
    uint8_t *data[2];
    struct mst_dirty *dirty;
    struct mst_why why;
    char path[100];
    int kept = mst_dirty_probe(&why);

    for (unsigned i = 0; i < 2; i++) {
        snprintf(path, sizeof(path), "%s/file%u", dir, i);
        files[i].fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
        ck_assert_int_eq(ftruncate(files[i].fd, (off_t)files[i].bytes), 0);
    }
    data[0] = mmap(NULL, RAM * 4096, PROT_READ | PROT_WRITE, MAP_SHARED, files[0].fd, 0);
    ck_assert_int_eq(mst_dirty_open(getpid(), files, &dirty, &why), -ENXIO);
    ck_assert_ptr_nonnull(strstr(why.text, "the first 20 of 30 pages"));
    data[1] = mmap(NULL, DISK * 4096, PROT_READ | PROT_WRITE, MAP_SHARED, files[1].fd, 0);
    ck_assert_msg(mst_dirty_open(getpid(), files, &dirty, &why) == 0, "%s", why.text);
    if (kept < 0) {
        printf("skipped from here on: this kernel keeps no soft-dirty bits\n");
    } else {
        memset(data[0], 1, RAM * 4096);
        memset(data[1], 1, DISK * 4096);
        ck_assert_int_eq(mst_dirty_look(dirty), RAM + DISK);
        ck_assert_int_eq(mst_dirty_clear(dirty), 0);
        data[0][19 * 4096]++;
        data[1][3 * 4096]++;
        ck_assert_int_eq(mst_dirty_look(dirty), 2);
        ck_assert_uint_eq(mst_dirty_next(dirty, 0), 19);
        ck_assert_uint_eq(mst_dirty_next(dirty, 20), RAM + 3);
        ck_assert_uint_eq(mst_dirty_next(dirty, RAM + 4), UINT64_MAX);
    }
    mst_dirty_close(dirty);
    for (unsigned i = 0; i < 2; i++) {
        munmap(data[i], files[i].bytes);
        close(files[i].fd);
    }
}
END_TEST

START_TEST(dirty_pages_are_those_written_since_the_clearing)
{
    enum { PAGES = 300 };
    char path[100];
    struct mst_dirty *dirty;
    struct mst_why why;
    uint8_t *ram;
    int fd, kept = mst_dirty_probe(&why); /* clears the bits of this process: before anything is written */

    snprintf(path, sizeof(path), "%s/ram", dir);
    fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    ck_assert_int_eq(ftruncate(fd, PAGES * 4096), 0);
    ck_assert_int_eq(dirty_open(getpid(), fd, PAGES * 4096, &dirty, &why), -ENXIO); /* not mapped */
    ram = mmap(NULL, PAGES * 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    memset(ram, 1, PAGES * 4096);
    ck_assert_int_eq(dirty_open(getpid(), fd, (PAGES + 1) * 4096, &dirty, &why), -ENXIO); /* not all of it */
    ck_assert_msg(dirty_open(getpid(), fd, PAGES * 4096, &dirty, &why) == 0, "%s", why.text);
    if (kept < 0) {
        printf("skipped from here on: this kernel keeps no soft-dirty bits\n");
    } else {
        static const uint64_t written[] = {0, 1, 63, 64, 127, 255, 256, 299};
        uint64_t page = 0;

        ck_assert_int_eq(mst_dirty_look(dirty), PAGES); /* never cleared: all */
        ck_assert_int_eq(mst_dirty_clear(dirty), 0);
        ck_assert_int_eq(mst_dirty_look(dirty), 0);
        ck_assert_uint_eq(mst_dirty_next(dirty, 0), UINT64_MAX);
        for (unsigned i = 0; i < sizeof(written) / sizeof(written[0]); i++)
            ram[written[i] * 4096 + 17]++;
        ck_assert_int_eq(mst_dirty_look(dirty), sizeof(written) / sizeof(written[0]));
        for (unsigned i = 0; i < sizeof(written) / sizeof(written[0]); i++, page++) {
            page = mst_dirty_next(dirty, page);
            ck_assert_uint_eq(page, written[i]);
        }
        ck_assert_uint_eq(mst_dirty_next(dirty, page), UINT64_MAX);
        ram[5 * 4096] = 9; /* looking does not forget */
        ck_assert_int_eq(mst_dirty_look(dirty), sizeof(written) / sizeof(written[0]) + 1);
    }
    mst_dirty_close(dirty);
    munmap(ram, PAGES * 4096);
    close(fd);
}
END_TEST

START_TEST(looking_at_a_process_that_has_ended_is_an_error_and_not_an_empty_set)
{
    enum { PAGES = 16 };
    char path[100];
    struct mst_dirty *dirty;
    struct mst_why why;
    int fd, ended;
    pid_t pid;
    uint8_t *ram;

    snprintf(path, sizeof(path), "%s/ram", dir);
    fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    ck_assert_int_eq(ftruncate(fd, PAGES * 4096), 0);
    ram = mmap(NULL, PAGES * 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    ck_assert_ptr_ne(ram, MAP_FAILED);
    pid = fork(); /* has the mapping, too */
    ck_assert_int_ge(pid, 0);
    if (pid == 0)
        for (;;)
            pause();
    ck_assert_msg(dirty_open(pid, fd, PAGES * 4096, &dirty, &why) == 0, "%s", why.text);
    ck_assert_int_ge(mst_dirty_look(dirty), 0);
    ck_assert_int_eq(kill(pid, SIGKILL), 0);
    ck_assert_int_eq(waitpid(pid, &ended, 0), pid);
    ck_assert_int_lt(mst_dirty_look(dirty), 0);
    mst_dirty_close(dirty);
    munmap(ram, PAGES * 4096);
    close(fd);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("agent parts");
    TCase *tcase = tcase_create("parts");
    SRunner *runner = srunner_create(suite);
    int failed;

    tcase_set_timeout(tcase, 60);
    tcase_add_checked_fixture(tcase, setup, teardown);
    tcase_add_test(tcase, command_line_is_that_of_the_contract);
    tcase_add_test(tcase, a_vm_with_a_network_gets_the_keepers_tap_and_always_the_same_address);
    tcase_add_test(tcase, disks_are_opened_as_their_kind_says_and_nothing_is_probed);
    tcase_add_test(tcase, a_disk_that_cannot_be_opened_here_is_refused_before_qemu_is_started);
    tcase_add_test(tcase, an_image_fills_the_beginning_of_its_disk_and_never_more);
    tcase_add_test(tcase, comma_in_a_path_or_machine_adds_no_option);
    tcase_add_test(tcase, percentiles_are_those_of_the_newest);
    tcase_add_test(tcase, saved_ram_must_fit_exactly);
    tcase_add_test(tcase, saved_device_state_is_bounded);
    tcase_add_test(tcase, saved_state_decides_the_machine);
    tcase_add_test(tcase, saved_state_decides_how_many_disks_of_which_kind_and_the_vm_where_they_are);
    tcase_add_test(tcase, filled_shadow_becomes_the_first_checkpoint);
    tcase_add_loop_test(tcase, ram_of_a_guest_that_runs_is_locked_at_once_and_another_ones_page_by_page, 0, 2);
    tcase_add_test(tcase, areas_are_mapped_only_when_every_size_fits);
    tcase_add_test(tcase, shadow_and_delta_are_mapped_later_and_only_when_they_fit);
    tcase_add_test(tcase, a_disk_is_mapped_right_behind_ram);
    tcase_add_test(tcase, pages_of_a_disk_are_counted_on_from_those_of_ram);
    tcase_add_test(tcase, dirty_pages_are_those_written_since_the_clearing);
    tcase_add_test(tcase, looking_at_a_process_that_has_ended_is_an_error_and_not_an_empty_set);
    suite_add_tcase(suite, tcase);
    srunner_run_all(runner, CK_NORMAL);
    failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? 1 : 0;
}
