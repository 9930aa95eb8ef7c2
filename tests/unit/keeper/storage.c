/* Main storage on this host's tmpfs: budget, areas, and what is taken over from an earlier keeper. */
#include "base/file.h"
#include "base/log.h"
#include "node/keeper/ring.h"
#include "node/keeper/takeover.h"

#include <check.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define RAM_BYTES   (2u << 20)
#define OLD         UINT64_C(0x0101010101010101)
#define BUDGET      (64u << 20)
#define SLOT        5u /* where the test puts its VM */
#define DEVICE_TEXT "device state"

static char folder[] = "/dev/shm/mst-keeper-XXXXXX";
static struct mst_why why;
static struct mst_status_area *status;
static struct mst_areas areas;
static struct mst_save_writer *writer;
static struct mst_budget budget;
static struct mst_kept kept[MST_VMS_PER_NODE];
static unsigned count;
static uint64_t disk_bytes; /* of web01's RAM area */
static struct mst_identity identity = {.cluster = "lab", .node = "n1", .node_id = 1, .host_boot_id = {1, 2, 3}};

static void setup(void)
{
    void *addr;

    strcpy(folder + strlen(folder) - 6, "XXXXXX");
    ck_assert_ptr_nonnull(mkdtemp(folder));
    ck_assert_int_eq(mst_fixed_make(folder, "status", sizeof(*status), &addr, &why), 0);
    status = addr;
    mst_status_init(status, "lab", "n1", 1, OLD, identity.host_boot_id, 1000);
    budget = (struct mst_budget){.total_bytes = BUDGET};
    memset(kept, 0, sizeof(kept));
    count = 0;
    disk_bytes = 0;
    why.text[0] = '\0';
}

static void teardown(void)
{
    char command[PATH_MAX + 16];

    mst_save_writer_free(writer);
    writer = NULL;
    mst_areas_unmap(folder, &areas, false);
    for (unsigned i = 0; i < count; i++)
        mst_areas_unmap(folder, &kept[i].areas, false);
    munmap(status, sizeof(*status));
    snprintf(command, sizeof(command), "rm -rf %s", folder);
    ck_assert_int_eq(system(command), 0);
}

/* --- what an earlier keeper, agent and QEMU leave --- */

static void slot_write(const char *vm, uint64_t epoch, unsigned slot, unsigned run_state)
{
    struct mst_vm_slot body = {.run_state = run_state,
                               .ram_bytes = areas.area[MST_AREA_RAM].bytes,
                               .save_bytes = areas.area[MST_AREA_SAVE].bytes,
                               .shadow_bytes = areas.area[MST_AREA_SHADOW].bytes,
                               .delta_bytes = areas.area[MST_AREA_DELTA].bytes,
                               .disk_bytes = areas.disk_bytes};

    snprintf(body.vm, sizeof(body.vm), "%s", vm);
    mst_pub_write(status->vms[slot].info, epoch, OLD, &body, sizeof(body));
}

static void checkpoint(void)
{
    uint8_t *device;
    uint64_t room;

    mst_save_begin(writer);
    device = mst_save_device(writer, &room);
    memcpy(device, DEVICE_TEXT, sizeof(DEVICE_TEXT));
    if (mst_save_seq(writer) == 0) {
        ck_assert_int_eq(mst_save_commit_ram(writer, sizeof(DEVICE_TEXT), 1, 1, 1), 0);
        if (areas.area[MST_AREA_SHADOW].addr)
            mst_save_shadow_from_ram(writer);
        return;
    }
    areas.area[MST_AREA_RAM].addr[7 * MST_PAGE_BYTES]++;
    ck_assert_int_eq(mst_save_stage(writer, 7), 0);
    ck_assert_int_eq(mst_save_commit(writer, sizeof(DEVICE_TEXT), 1, 1, 1), 0); /* not applied: the delta is in use */
}

static void leave_vm(bool protect_local, unsigned checkpoints)
{
    struct mst_save_map map = {.ram_bytes = RAM_BYTES, .record = status->vms[SLOT].save, .epoch = 4, .instance = OLD};

    ck_assert_int_eq(mst_areas_plan(&areas, "web01", 4, RAM_BYTES, protect_local ? MST_AREAS_LOCAL : MST_AREAS_NONE), 0);
    areas.disk_bytes = disk_bytes;
    ck_assert_msg(mst_areas_make(folder, &areas, MST_AREAS_ALL, &why) == 0, "%s", why.text);
    for (uint32_t i = 0; i < RAM_BYTES; i += 64)
        areas.area[MST_AREA_RAM].addr[i] = (uint8_t)(i >> 6);
    map.ram = areas.area[MST_AREA_RAM].addr;
    map.save = areas.area[MST_AREA_SAVE].addr;
    map.shadow = areas.area[MST_AREA_SHADOW].addr;
    map.delta = areas.area[MST_AREA_DELTA].addr;
    map.delta_capacity = areas.delta_capacity;
    ck_assert_int_eq(mst_save_writer_new(&map, &writer), 0);
    while (checkpoints--)
        checkpoint();
    slot_write("web01", 4, SLOT, MST_RUN_RUNNING);
}

static void take_over(void)
{
    ck_assert_msg(mst_takeover_read(folder, &identity, &budget, kept, &count, &why) == 0, "%s", why.text);
}

static bool there(const char *name)
{
    char path[PATH_MAX];

    snprintf(path, sizeof(path), "%s/%s", folder, name);
    return access(path, F_OK) == 0;
}

/* Publishes the slot's record again with one thing changed; its sums are right, so only the meaning is wrong. */
static void record_change(void (*change)(struct mst_save_record *record))
{
    struct mst_save_record record;
    struct mst_pub_head head;

    ck_assert_int_eq(mst_pub_read(status->vms[SLOT].save, &head, &record, sizeof(record)), 0);
    change(&record);
    mst_pub_write(status->vms[SLOT].save, head.epoch, OLD, &record, sizeof(record));
}

static void info_change(void (*change)(struct mst_vm_slot *slot))
{
    struct mst_vm_slot slot;
    struct mst_pub_head head;

    ck_assert_int_eq(mst_pub_read(status->vms[SLOT].info, &head, &slot, sizeof(slot)), 0);
    change(&slot);
    mst_pub_write(status->vms[SLOT].info, head.epoch, OLD, &slot, sizeof(slot));
}

/* --- budget, areas --- */

START_TEST(the_budget_refuses_with_numbers_and_gives_back)
{
    ck_assert_int_eq(mst_budget_take(&budget, 60u << 20, &why), 0);
    ck_assert_int_eq(mst_budget_take(&budget, (4u << 20) + 1, &why), -ENOSPC);
    ck_assert_str_eq(why.text, "needs 5 MiB of main storage; 60 of 64 MiB are in use");
    ck_assert_int_eq(mst_budget_take(&budget, 4u << 20, &why), 0);
    ck_assert_int_eq(mst_budget_take(&budget, UINT64_MAX, &why), -ENOSPC);
    mst_budget_give(&budget, 60u << 20);
    ck_assert_uint_eq(budget.used_bytes, 4u << 20);
    mst_budget_give(&budget, UINT64_MAX);
    ck_assert_uint_eq(budget.used_bytes, 0);
}
END_TEST

START_TEST(areas_have_the_names_sizes_and_rights_of_the_layout)
{
    const char *names[] = {"web01.e4.ram", "web01.e4.save", "web01.e4.shadow", "web01.e4.delta"};
    char path[PATH_MAX];
    struct stat st;

    leave_vm(true, 0);
    for (int i = 0; i < MST_AREA_KINDS; i++) {
        snprintf(path, sizeof(path), "%s/%s", folder, names[i]);
        ck_assert_int_eq(stat(path, &st), 0);
        ck_assert_uint_eq((uint64_t)st.st_size, areas.area[i].bytes);
        ck_assert_int_eq(st.st_mode & 0777, 0600);
        ck_assert_int_ge(st.st_blocks * 512, st.st_size); /* every page is there: no SIGBUS later */
    }
    mst_areas_unmap(folder, &areas, true);
    for (int i = 0; i < MST_AREA_KINDS; i++)
        ck_assert(!there(names[i]));
}
END_TEST

START_TEST(protect_none_has_no_shadow_and_no_delta)
{
    ck_assert_int_eq(mst_areas_plan(&areas, "web01", 4, RAM_BYTES, MST_AREAS_NONE), 0);
    ck_assert_uint_eq(areas.area[MST_AREA_SHADOW].bytes, 0);
    ck_assert_uint_eq(areas.area[MST_AREA_DELTA].bytes, 0);
    ck_assert_uint_eq(areas.bytes, areas.area[MST_AREA_RAM].bytes + areas.area[MST_AREA_SAVE].bytes);
    ck_assert_int_eq(mst_areas_plan(&areas, "web01", 4, 4097, MST_AREAS_NONE), -EINVAL);
    areas = (struct mst_areas){0};
}
END_TEST

static off_t size_of(const char *name)
{
    char path[PATH_MAX];
    struct stat st;

    snprintf(path, sizeof(path), "%s/%s", folder, name);
    return stat(path, &st) == 0 ? st.st_size : -1;
}

START_TEST(ram_and_the_disk_behind_it_are_one_area_of_two_files)
{
    char path[PATH_MAX], byte;
    int fd;

    disk_bytes = MST_PAGE_BYTES * 3;
    leave_vm(true, 1);
    ck_assert_uint_eq(areas.area[MST_AREA_RAM].bytes, RAM_BYTES); /* the budget knows only this */
    ck_assert_int_eq(size_of("web01.e4.ram"), (off_t)(RAM_BYTES - disk_bytes));
    ck_assert_int_eq(size_of("web01.e4.disk"), (off_t)disk_bytes);
    ck_assert_int_eq(size_of("web01.e4.shadow"), RAM_BYTES);
    areas.area[MST_AREA_RAM].addr[RAM_BYTES - disk_bytes - 1] = 'r';
    areas.area[MST_AREA_RAM].addr[RAM_BYTES - disk_bytes] = 'd';
    snprintf(path, sizeof(path), "%s/web01.e4.disk", folder);
    fd = open(path, O_RDONLY | O_CLOEXEC);
    ck_assert_int_eq(pread(fd, &byte, 1, 0), 1);
    ck_assert_int_eq(byte, 'd');
    close(fd);
    snprintf(path, sizeof(path), "%s/web01.e4.ram", folder);
    fd = open(path, O_RDONLY | O_CLOEXEC);
    ck_assert_int_eq(pread(fd, &byte, 1, (off_t)(RAM_BYTES - disk_bytes - 1)), 1);
    ck_assert_int_eq(byte, 'r');
    close(fd);
    mst_areas_unmap(folder, &areas, true);
    ck_assert(!there("web01.e4.ram") && !there("web01.e4.disk"));
}
END_TEST

START_TEST(areas_whose_disk_cannot_be_made_leave_nothing)
{
    char path[PATH_MAX];

    snprintf(path, sizeof(path), "%s/web01.e4.disk", folder); /* what is no file is not removed for it */
    ck_assert_int_eq(mkdir(path, 0700), 0);
    ck_assert_int_eq(mst_areas_plan(&areas, "web01", 4, RAM_BYTES, MST_AREAS_LOCAL), 0);
    areas.disk_bytes = MST_PAGE_BYTES;
    ck_assert_int_lt(mst_areas_make(folder, &areas, MST_AREAS_ALL, &why), 0);
    ck_assert_ptr_nonnull(strstr(why.text, "web01.e4.disk"));
    ck_assert(!there("web01.e4.ram") && !areas.area[MST_AREA_RAM].addr);
    areas = (struct mst_areas){0};
}
END_TEST

static ino_t inode_of(const char *name)
{
    char path[PATH_MAX];
    struct stat st;

    snprintf(path, sizeof(path), "%s/%s", folder, name);
    ck_assert_int_eq(stat(path, &st), 0);
    return st.st_ino;
}

/* _i 1: its disk was removed by somebody, and then nothing is handed over. */
START_TEST(ram_and_disk_of_a_qemu_that_waits_are_handed_over_together_or_not_at_all)
{
    struct mst_areas image;
    ino_t ram, disk;
    char path[PATH_MAX];

    ck_assert_int_eq(mst_areas_plan(&image, "web01", 4, RAM_BYTES, MST_AREAS_IMAGE), 0);
    ck_assert_int_eq(mst_areas_plan(&areas, "web01", 5, RAM_BYTES, MST_AREAS_MIRROR), 0);
    areas.disk_bytes = MST_PAGE_BYTES * 3;
    ck_assert_int_eq(mst_ram_make(folder, &image, RAM_BYTES, areas.disk_bytes, &why), 0);
    ck_assert_int_eq(size_of("web01.e4.ram"), (off_t)(RAM_BYTES - areas.disk_bytes));
    ck_assert_int_eq(size_of("web01.e4.disk"), (off_t)areas.disk_bytes);
    ram = inode_of("web01.e4.ram");
    disk = inode_of("web01.e4.disk");
    if (_i == 1) {
        snprintf(path, sizeof(path), "%s/web01.e4.disk", folder);
        ck_assert_int_eq(unlink(path), 0);
        ck_assert_int_eq(mst_ram_hand_over(folder, &image, &areas), -ENOENT);
        ck_assert(!areas.ram_there && there("web01.e4.ram") && !there("web01.e5.ram"));
        mst_ram_remove(folder, &image);
        ck_assert(!there("web01.e4.ram"));
        return;
    }
    ck_assert_int_eq(mst_ram_hand_over(folder, &image, &areas), 0);
    ck_assert(areas.ram_there && !there("web01.e4.ram") && !there("web01.e4.disk"));
    ck_assert_int_eq(mst_areas_make(folder, &areas, MST_AREAS_ALL, &why), 0);
    ck_assert_uint_eq(inode_of("web01.e5.ram"), ram); /* whoever has them mapped has the VM's memory */
    ck_assert_uint_eq(inode_of("web01.e5.disk"), disk);
    mst_areas_unmap(folder, &areas, true);
    ck_assert(!there("web01.e5.ram") && !there("web01.e5.disk") && !there("web01.e5.shadow"));
}
END_TEST

START_TEST(shadow_and_delta_are_made_behind_what_a_guest_runs_with)
{
    char path[PATH_MAX];

    ck_assert_int_eq(mst_areas_plan(&areas, "web01", 4, RAM_BYTES, MST_AREAS_LOCAL), 0);
    ck_assert_int_eq(mst_areas_make(folder, &areas, MST_AREAS_FIRST, &why), 0);
    ck_assert(areas.area[MST_AREA_RAM].addr && areas.area[MST_AREA_SAVE].addr && !mst_areas_whole(&areas));
    ck_assert(there("web01.e4.ram") && there("web01.e4.save") && !there("web01.e4.shadow") && !there("web01.e4.delta"));
    areas.area[MST_AREA_RAM].addr[5] = 'r';

    snprintf(path, sizeof(path), "%s/web01.e4.delta", folder); /* what is no file is not removed for it */
    ck_assert_int_eq(mkdir(path, 0700), 0);
    ck_assert_int_lt(mst_areas_make(folder, &areas, MST_AREAS_REST, &why), 0);
    ck_assert_ptr_nonnull(strstr(why.text, "web01.e4.delta"));
    ck_assert(!there("web01.e4.shadow") && !areas.area[MST_AREA_SHADOW].addr && !mst_areas_whole(&areas));
    ck_assert(there("web01.e4.ram") && areas.area[MST_AREA_RAM].addr[5] == 'r');

    ck_assert_int_eq(rmdir(path), 0);
    ck_assert_int_eq(mst_areas_make(folder, &areas, MST_AREAS_REST, &why), 0);
    ck_assert(mst_areas_whole(&areas) && there("web01.e4.shadow") && there("web01.e4.delta"));
    ck_assert(areas.area[MST_AREA_RAM].addr[5] == 'r');
}
END_TEST

START_TEST(areas_that_do_not_fit_the_tmpfs_leave_nothing)
{
    ck_assert_int_eq(mst_areas_plan(&areas, "huge", 1, UINT64_C(65536) << 20, MST_AREAS_LOCAL), 0);
    ck_assert_int_eq(mst_areas_make(folder, &areas, MST_AREAS_ALL, &why), -ENOSPC);
    ck_assert_ptr_nonnull(strstr(why.text, "huge.e1.ram"));
    ck_assert(!there("huge.e1.ram"));
    areas = (struct mst_areas){0};
}
END_TEST

START_TEST(a_link_in_place_of_the_folder_is_refused)
{
    char path[PATH_MAX];

    snprintf(path, sizeof(path), "%s/link", folder);
    ck_assert_int_eq(symlink("/tmp", path), 0);
    ck_assert_int_eq(mst_folder_make(path, &why), -EPERM);
    snprintf(path, sizeof(path), "%s/new/deep", folder);
    ck_assert_int_eq(mst_folder_make(path, &why), 0);
}
END_TEST

/* --- takeover --- */

START_TEST(a_vm_with_a_whole_save_is_kept_with_its_bytes)
{
    leave_vm(true, 2);
    take_over();
    ck_assert_uint_eq(count, 1);
    ck_assert_str_eq(kept[0].areas.vm, "web01");
    ck_assert_uint_eq(kept[0].areas.epoch, 4);
    ck_assert_uint_eq(kept[0].record.seq, 2);
    ck_assert_uint_eq(kept[0].record.delta_pages, 1);
    ck_assert_uint_eq(budget.used_bytes, areas.bytes);
    ck_assert_int_eq(memcmp(kept[0].areas.area[MST_AREA_RAM].addr, areas.area[MST_AREA_RAM].addr, RAM_BYTES), 0);
}
END_TEST

START_TEST(a_vm_with_a_disk_is_kept_with_both_files)
{
    static const char *const keep[] = {"status", NULL};

    disk_bytes = MST_PAGE_BYTES * 5;
    leave_vm(true, 2);
    take_over();
    ck_assert_uint_eq(count, 1);
    ck_assert_uint_eq(kept[0].areas.disk_bytes, disk_bytes);
    ck_assert_int_eq(memcmp(kept[0].areas.area[MST_AREA_RAM].addr, areas.area[MST_AREA_RAM].addr, RAM_BYTES), 0);
    ck_assert_int_eq(mst_takeover_sweep(folder, kept, count, keep), 0);
    ck_assert(there("web01.e4.ram") && there("web01.e4.disk"));
}
END_TEST

START_TEST(a_vm_whose_disk_is_gone_or_of_another_size_is_dropped)
{
    char path[PATH_MAX];

    disk_bytes = MST_PAGE_BYTES * 5;
    leave_vm(true, 2);
    snprintf(path, sizeof(path), "%s/web01.e4.disk", folder);
    switch (_i) {
    case 0:
        ck_assert_int_eq(unlink(path), 0);
        break;
    case 1:
        ck_assert_int_eq(truncate(path, MST_PAGE_BYTES * 4), 0);
        break;
    case 2: /* the slot says that it has another one */
        areas.disk_bytes += MST_PAGE_BYTES;
        slot_write("web01", 4, SLOT, MST_RUN_RUNNING);
        break;
    case 3: /* as large as all of RAM */
        areas.disk_bytes = RAM_BYTES;
        slot_write("web01", 4, SLOT, MST_RUN_RUNNING);
        break;
    default: /* no whole page */
        areas.disk_bytes++;
        slot_write("web01", 4, SLOT, MST_RUN_RUNNING);
        break;
    }
    areas.disk_bytes = disk_bytes;
    take_over();
    ck_assert_uint_eq(count, 0);
    ck_assert_uint_eq(budget.used_bytes, 0);
}
END_TEST

START_TEST(a_save_of_a_stopped_guest_is_kept_too)
{
    leave_vm(false, 1);
    take_over();
    ck_assert_uint_eq(count, 1);
    ck_assert_uint_eq(kept[0].record.source, MST_SAVE_RAM);
}
END_TEST

START_TEST(a_vm_without_a_save_is_dropped)
{
    leave_vm(true, 0);
    take_over();
    ck_assert_uint_eq(count, 0);
    ck_assert_uint_eq(budget.used_bytes, 0);
}
END_TEST

START_TEST(no_status_area_means_nothing_is_kept)
{
    char path[PATH_MAX];

    leave_vm(true, 1);
    snprintf(path, sizeof(path), "%s/status", folder);
    ck_assert_int_eq(unlink(path), 0);
    take_over();
    ck_assert_uint_eq(count, 0);
}
END_TEST

START_TEST(a_status_area_of_another_size_means_nothing_is_kept)
{
    char path[PATH_MAX];

    leave_vm(true, 1);
    snprintf(path, sizeof(path), "%s/status", folder);
    ck_assert_int_eq(truncate(path, _i ? (off_t)sizeof(*status) + 1 : 4096), 0);
    take_over();
    ck_assert_uint_eq(count, 0);
    ck_assert_int_eq(truncate(path, (off_t)sizeof(*status)), 0); /* teardown reads it */
}
END_TEST

START_TEST(a_status_area_of_somebody_else_means_nothing_is_kept)
{
    static const uint8_t boots[][16] = {{1, 2, 3}, {1, 2, 3}, {1, 2, 3}, {9}};
    static const char *const clusters[] = {"other", "lab", "lab", "lab"}, *const nodes[] = {"n1", "n2", "n1", "n1"};

    leave_vm(true, 1);
    mst_status_init(status, clusters[_i], nodes[_i], _i == 2 ? 2 : 1, OLD, boots[_i], 1);
    take_over();
    ck_assert_uint_eq(count, 0);
}
END_TEST

START_TEST(a_torn_superblock_means_nothing_is_kept)
{
    leave_vm(true, 1);
    ((uint8_t *)status)[100] ^= 1;
    take_over();
    ck_assert_uint_eq(count, 0);
}
END_TEST

static void other_source(struct mst_save_record *r)
{
    r->source = 77;
}
static void huge_device(struct mst_save_record *r)
{
    r->device_bytes = UINT64_C(1) << 40;
}
static void third_device_slot(struct mst_save_record *r)
{
    r->device_slot = 2;
}
static void other_device(struct mst_save_record *r)
{
    r->device_crc32c ^= 1;
}
static void huge_delta(struct mst_save_record *r)
{
    r->delta_pages = UINT32_MAX;
}
static void other_delta(struct mst_save_record *r)
{
    r->delta_table_crc32c ^= 1;
}
static void other_ram(struct mst_save_record *r)
{
    r->ram_bytes = UINT64_C(1) << 50;
}
static void other_digest(struct mst_save_record *r)
{
    r->ram_digest ^= 1;
}

START_TEST(a_record_that_does_not_make_sense_is_dropped)
{
    static void (*const changes[])(struct mst_save_record *) = {other_source, huge_device, third_device_slot, other_device,
                                                                huge_delta,   other_delta, other_ram,         other_digest};

    leave_vm(true, 2);
    record_change(changes[_i]);
    take_over();
    ck_assert_uint_eq(count, 0);
    ck_assert_uint_eq(budget.used_bytes, 0);
}
END_TEST

static void no_name(struct mst_vm_slot *s)
{
    memset(s->vm, 0, sizeof(s->vm));
}
static void path_as_name(struct mst_vm_slot *s)
{
    strcpy(s->vm, "../../etc/passwd");
}
static void endless_name(struct mst_vm_slot *s)
{
    memset(s->vm, 'a', sizeof(s->vm));
}
static void huge_ram(struct mst_vm_slot *s)
{
    s->ram_bytes = UINT64_MAX;
}
static void odd_ram(struct mst_vm_slot *s)
{
    s->ram_bytes += 1;
}
static void no_shadow(struct mst_vm_slot *s)
{
    s->shadow_bytes = 0;
}
static void short_save(struct mst_vm_slot *s)
{
    s->save_bytes -= 4096;
}
static void empty_slot(struct mst_vm_slot *s)
{
    s->run_state = MST_RUN_EMPTY;
}

START_TEST(a_slot_that_does_not_make_sense_is_dropped)
{
    static void (*const changes[])(struct mst_vm_slot *) = {no_name, path_as_name, endless_name, huge_ram,
                                                            odd_ram, no_shadow,    short_save,   empty_slot};

    leave_vm(true, 2);
    info_change(changes[_i]);
    take_over();
    ck_assert_uint_eq(count, 0);
    ck_assert_uint_eq(budget.used_bytes, 0);
}
END_TEST

START_TEST(a_save_of_another_epoch_than_its_slot_is_dropped)
{
    leave_vm(true, 1);
    slot_write("web01", 5, SLOT, MST_RUN_RUNNING);
    take_over();
    ck_assert_uint_eq(count, 0);
}
END_TEST

START_TEST(a_file_that_is_gone_or_was_cut_or_is_a_link_drops_the_vm)
{
    char path[PATH_MAX];

    leave_vm(true, 1);
    snprintf(path, sizeof(path), "%s/web01.e4.shadow", folder);
    if (_i == 0)
        ck_assert_int_eq(truncate(path, RAM_BYTES - 4096), 0);
    else
        ck_assert_int_eq(unlink(path), 0);
    if (_i == 2)
        ck_assert_int_eq(symlink("/dev/zero", path), 0);
    if (_i == 3)
        ck_assert_int_eq(mkfifo(path, 0600), 0);
    take_over();
    ck_assert_uint_eq(count, 0);
    ck_assert_uint_eq(budget.used_bytes, 0);
}
END_TEST

START_TEST(the_same_vm_and_epoch_twice_is_kept_once)
{
    leave_vm(true, 1);
    memcpy(status->vms[9].info, status->vms[SLOT].info, sizeof(status->vms[9].info));
    memcpy(status->vms[9].save, status->vms[SLOT].save, sizeof(status->vms[9].save));
    take_over();
    ck_assert_uint_eq(count, 1);
}
END_TEST

START_TEST(a_budget_that_became_smaller_drops_what_does_not_fit)
{
    leave_vm(true, 1);
    budget.total_bytes = RAM_BYTES;
    take_over();
    ck_assert_uint_eq(count, 0);
}
END_TEST

START_TEST(the_sweep_removes_what_is_not_kept_and_nothing_else)
{
    static const char *const keep[] = {"status", NULL};
    char path[PATH_MAX];

    leave_vm(true, 1);
    snprintf(path, sizeof(path), "%s/web01.e3.ram", folder);
    ck_assert_int_eq(mst_file_write_durable(path, "x", 1, 0600), 0);
    snprintf(path, sizeof(path), "%s/grant", folder);
    ck_assert_int_eq(mst_file_write_durable(path, "x", 1, 0600), 0);
    take_over();
    ck_assert_int_eq(mst_takeover_sweep(folder, kept, count, keep), 2);
    ck_assert(there("status") && there("web01.e4.ram") && there("web01.e4.save") && there("web01.e4.shadow") &&
              there("web01.e4.delta"));
    ck_assert(!there("web01.e3.ram") && !there("grant"));
}
END_TEST

/* Any one byte of slot and record changed: kept only when the bytes are those of the whole save all the same. */
START_TEST(no_flipped_byte_of_the_slot_gets_through)
{
    uint8_t *entry = (uint8_t *)&status->vms[SLOT];

    mst_log_level_set(MST_LOG_ERROR);
    leave_vm(true, 2);
    for (size_t i = 0; i < sizeof(struct mst_vm_entry); i++) {
        uint8_t was = entry[i];

        entry[i] = (uint8_t)(was ^ 0x5a);
        take_over();
        if (count) { /* the other slot of the pair was whole: an older record, or the byte was not in use */
            ck_assert_uint_le(kept[0].record.seq, 2);
            ck_assert_str_eq(kept[0].areas.vm, "web01");
            mst_areas_unmap(folder, &kept[0].areas, false);
            mst_budget_give(&budget, kept[0].areas.bytes);
        }
        count = 0;
        entry[i] = was;
    }
}
END_TEST

/* --- console ring --- */

START_TEST(the_ring_keeps_the_newest_bytes_and_counts_all)
{
    static struct mst_ring ring;
    uint8_t piece[1000], out[1000];
    uint64_t written = 0, offset = 0;

    ring.end = 0;
    while (written < 3 * MST_RING_BYTES) {
        for (size_t i = 0; i < sizeof(piece); i++)
            piece[i] = (uint8_t)((written + i) * 7 >> 3);
        mst_ring_append(&ring, piece, sizeof(piece));
        written += sizeof(piece);
    }
    ck_assert_uint_eq(ring.end, written);
    ck_assert_uint_eq(mst_ring_begin(&ring), written - MST_RING_BYTES);
    for (size_t n; (n = mst_ring_read(&ring, &offset, out, sizeof(out))) > 0; offset += n) {
        ck_assert_uint_ge(offset, written - MST_RING_BYTES);
        for (size_t i = 0; i < n; i++)
            ck_assert_uint_eq(out[i], (uint8_t)((offset + i) * 7 >> 3));
    }
    ck_assert_uint_eq(offset, written);
    offset = UINT64_MAX;
    ck_assert_uint_eq(mst_ring_read(&ring, &offset, out, sizeof(out)), 0);
    ck_assert_uint_eq(offset, written);
}
END_TEST

START_TEST(a_piece_larger_than_the_ring_leaves_its_end)
{
    static struct mst_ring ring;
    static uint8_t piece[MST_RING_BYTES + 10];
    uint64_t offset = 0;
    uint8_t out[4];

    memset(piece, 'a', sizeof(piece));
    memcpy(piece + 10, "head", 4);
    ring.end = 5;
    mst_ring_append(&ring, piece, sizeof(piece));
    ck_assert_uint_eq(ring.end, sizeof(piece) + 5);
    ck_assert_uint_eq(mst_ring_read(&ring, &offset, out, 4), 4);
    ck_assert_int_eq(memcmp(out, "head", 4), 0);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("storage");
    TCase *tc = tcase_create("storage");
    SRunner *runner;
    int failed;

    tcase_set_timeout(tc, 60);
    tcase_add_checked_fixture(tc, setup, teardown);
    tcase_add_test(tc, the_budget_refuses_with_numbers_and_gives_back);
    tcase_add_test(tc, areas_have_the_names_sizes_and_rights_of_the_layout);
    tcase_add_test(tc, protect_none_has_no_shadow_and_no_delta);
    tcase_add_test(tc, ram_and_the_disk_behind_it_are_one_area_of_two_files);
    tcase_add_test(tc, areas_whose_disk_cannot_be_made_leave_nothing);
    tcase_add_loop_test(tc, ram_and_disk_of_a_qemu_that_waits_are_handed_over_together_or_not_at_all, 0, 2);
    tcase_add_test(tc, shadow_and_delta_are_made_behind_what_a_guest_runs_with);
    tcase_add_test(tc, areas_that_do_not_fit_the_tmpfs_leave_nothing);
    tcase_add_test(tc, a_link_in_place_of_the_folder_is_refused);
    tcase_add_test(tc, a_vm_with_a_whole_save_is_kept_with_its_bytes);
    tcase_add_test(tc, a_vm_with_a_disk_is_kept_with_both_files);
    tcase_add_loop_test(tc, a_vm_whose_disk_is_gone_or_of_another_size_is_dropped, 0, 5);
    tcase_add_test(tc, a_save_of_a_stopped_guest_is_kept_too);
    tcase_add_test(tc, a_vm_without_a_save_is_dropped);
    tcase_add_test(tc, no_status_area_means_nothing_is_kept);
    tcase_add_loop_test(tc, a_status_area_of_another_size_means_nothing_is_kept, 0, 2);
    tcase_add_loop_test(tc, a_status_area_of_somebody_else_means_nothing_is_kept, 0, 4);
    tcase_add_test(tc, a_torn_superblock_means_nothing_is_kept);
    tcase_add_loop_test(tc, a_record_that_does_not_make_sense_is_dropped, 0, 8);
    tcase_add_loop_test(tc, a_slot_that_does_not_make_sense_is_dropped, 0, 8);
    tcase_add_test(tc, a_save_of_another_epoch_than_its_slot_is_dropped);
    tcase_add_loop_test(tc, a_file_that_is_gone_or_was_cut_or_is_a_link_drops_the_vm, 0, 4);
    tcase_add_test(tc, the_same_vm_and_epoch_twice_is_kept_once);
    tcase_add_test(tc, a_budget_that_became_smaller_drops_what_does_not_fit);
    tcase_add_test(tc, the_sweep_removes_what_is_not_kept_and_nothing_else);
    tcase_add_test(tc, no_flipped_byte_of_the_slot_gets_through);
    tcase_add_test(tc, the_ring_keeps_the_newest_bytes_and_counts_all);
    tcase_add_test(tc, a_piece_larger_than_the_ring_leaves_its_end);
    suite_add_tcase(suite, tc);
    runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? 1 : 0;
}
