/* Command line, statistics, saved states on disk, mapping of areas. */

#include "base/file.h"
#include "node/agent/dirty.h"
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
                      &(struct mst_ckpt_report){.pause_ns = i * 1000000ull, .stop_ns = 7000, .pages_early = 2, .pages_late = 3});
    ck_assert_uint_eq(mst_stats_percentile(&stats, MST_STAT_PAUSE, 50), 50000);
    ck_assert_uint_eq(mst_stats_percentile(&stats, MST_STAT_PAUSE, 99), 99000);
    ck_assert_uint_eq(mst_stats_percentile(&stats, MST_STAT_PAUSE, 100), 100000);
    for (unsigned i = 0; i < MST_STATS_KEPT; i++)
        mst_stats_add(&stats, &(struct mst_ckpt_report){.pause_ns = 3000});
    ck_assert_uint_eq(mst_stats_percentile(&stats, MST_STAT_PAUSE, 99), 3);
    ck_assert_ptr_nonnull(strstr(mst_stats_text(&stats, text, sizeof(text)), "checkpoints=612 failed=0"));
    ck_assert_uint_eq(stats.taken, 0);
}
END_TEST

static void put(const char *name, const void *data, size_t len)
{
    char path[200];

    snprintf(path, sizeof(path), "%s/%s", dir, name);
    ck_assert_int_eq(mst_file_write_durable(path, data, len, 0600), 0);
}

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
    ck_assert_int_eq(mst_dirty_open(getpid(), fd, PAGES * 4096, &dirty, &why), -ENXIO); /* not mapped */
    ram = mmap(NULL, PAGES * 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    memset(ram, 1, PAGES * 4096);
    ck_assert_int_eq(mst_dirty_open(getpid(), fd, (PAGES + 1) * 4096, &dirty, &why), -ENXIO); /* not all of it */
    ck_assert_msg(mst_dirty_open(getpid(), fd, PAGES * 4096, &dirty, &why) == 0, "%s", why.text);
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
    ck_assert_msg(mst_dirty_open(pid, fd, PAGES * 4096, &dirty, &why) == 0, "%s", why.text);
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
    tcase_add_test(tcase, comma_in_a_path_or_machine_adds_no_option);
    tcase_add_test(tcase, percentiles_are_those_of_the_newest);
    tcase_add_test(tcase, saved_ram_must_fit_exactly);
    tcase_add_test(tcase, saved_device_state_is_bounded);
    tcase_add_test(tcase, saved_state_decides_the_machine);
    tcase_add_test(tcase, filled_shadow_becomes_the_first_checkpoint);
    tcase_add_loop_test(tcase, ram_of_a_guest_that_runs_is_locked_at_once_and_another_ones_page_by_page, 0, 2);
    tcase_add_test(tcase, areas_are_mapped_only_when_every_size_fits);
    tcase_add_test(tcase, dirty_pages_are_those_written_since_the_clearing);
    tcase_add_test(tcase, looking_at_a_process_that_has_ended_is_an_error_and_not_an_empty_set);
    suite_add_tcase(suite, tcase);
    srunner_run_all(runner, CK_NORMAL);
    failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? 1 : 0;
}
