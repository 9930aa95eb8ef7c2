// Disks. A virtio-blk card (the first there is): `read_disk=1` compares one of its sectors with a pattern at every beat; `write_disk=1` writes the
// beat's number into its first sector and reads it back one beat later. And persistent memory (`pmem_mib=N`), in which the witness keeps its pages then.
#ifndef GUEST_DISKCARD_H
#define GUEST_DISKCARD_H

#include "../witness.h"
#include "virtio.h"

enum {
    PCI_VIRTIO_BLK = 0x10011af4,
    DISK_READ = 0,
    DISK_WRITE = 1,
    SECTOR_WORDS = 512 / 4,
    PMEM_WINDOW = 0xc0000000u, // 4 GiB and up, seen from here
    PAGE_2M = 1u << 21,
    PTE_LARGE = 0x83, // present, writable, 2 MiB
};

static struct virtio_queue disk_queue;
static struct {
    uint32_t type, reserved, sector, sector_high;
} disk_head;
static uint32_t disk_sector[SECTOR_WORDS];
static volatile uint8_t disk_status;
static uint16_t disk_base; // 0: none
static uint32_t disk_sectors;

// What the test has put there: word i of a sector.
static inline uint32_t disk_pattern(uint32_t sector, uint32_t i)
{
    return witness_mix(sector, i);
}

static inline bool disk_start(void)
{
    disk_base = virtio_start(PCI_VIRTIO_BLK, 0, &disk_queue);
    if (disk_base != 0)
        disk_sectors = port_read_4((uint16_t)(disk_base + VIRTIO_CONFIG));
    return disk_base != 0 && disk_sectors != 0;
}

// One sector between the disk and disk_sector; waits for it. A move of the VM while it waits must bring the answer along.
static inline bool disk_do(uint32_t type, uint32_t sector)
{
    uint16_t wanted = (uint16_t)(disk_queue.used_index + 1);

    disk_head.type = type;
    disk_head.sector = sector;
    disk_status = 0xff;
    disk_queue.descriptor[0].address = (uint32_t)&disk_head;
    disk_queue.descriptor[0].bytes = sizeof disk_head;
    disk_queue.descriptor[0].flags = DESCRIPTOR_NEXT;
    disk_queue.descriptor[0].next = 1;
    disk_queue.descriptor[1].address = (uint32_t)disk_sector;
    disk_queue.descriptor[1].bytes = sizeof disk_sector;
    disk_queue.descriptor[1].flags = (uint16_t)(DESCRIPTOR_NEXT | (type == DISK_READ ? DESCRIPTOR_WRITE : 0));
    disk_queue.descriptor[1].next = 2;
    disk_queue.descriptor[2].address = (uint32_t)&disk_status;
    disk_queue.descriptor[2].bytes = 1;
    disk_queue.descriptor[2].flags = DESCRIPTOR_WRITE;
    virtio_send(disk_base, 0, &disk_queue, 0);
    while (disk_queue.used_index != wanted)
        __asm__ volatile("pause" : : : "memory");
    return disk_status == 0;
}

static inline void disk_check_pattern(struct witness *w)
{
    uint32_t sector = w->beat % disk_sectors;

    witness_compare(w, w->page_count, "disk", 1, disk_do(DISK_READ, sector) ? 1 : 0);
    for (uint32_t i = 0; i < SECTOR_WORDS; i++)
        witness_compare(w, w->page_count, "disk", disk_pattern(sector, i), disk_sector[i]);
}

// The first sector, as the beat before has written it.
static inline void disk_check_written(struct witness *w)
{
    if (w->beat == 0)
        return;
    witness_compare(w, w->page_count, "disk", 1, disk_do(DISK_READ, 0) ? 1 : 0);
    for (uint32_t i = 0; i < SECTOR_WORDS; i++)
        witness_compare(w, w->page_count, "disk", i == 0 ? w->beat : disk_pattern(w->beat, i), disk_sector[i]);
}

static inline void disk_write_beat(struct witness *w)
{
    for (uint32_t i = 0; i < SECTOR_WORDS; i++)
        disk_sector[i] = i == 0 ? w->beat : disk_pattern(w->beat, i);
    witness_compare(w, w->page_count, "disk", 1, disk_do(DISK_WRITE, 0) ? 1 : 0);
}

static struct {
    uint32_t low, high;
} pmem_directory[4] __attribute__((aligned(32))), pmem_low[512] __attribute__((aligned(4096))),
    pmem_high[512] __attribute__((aligned(4096)));

// QEMU's PC puts the first NVDIMM right above 4 GiB when all of RAM lies below: paging with 64-bit entries reaches it. The first GiB stays where it is.
static inline uint32_t *pmem_map(void)
{
    for (uint32_t i = 0; i < 512; i++) {
        pmem_low[i].low = i * PAGE_2M | PTE_LARGE;
        pmem_high[i].low = i * PAGE_2M | PTE_LARGE;
        pmem_high[i].high = 1;
    }
    pmem_directory[0].low = (uint32_t)pmem_low | 1;
    pmem_directory[PMEM_WINDOW >> 30].low = (uint32_t)pmem_high | 1;
    uint32_t bits;
    __asm__ volatile("mov %%cr4, %0; or $0x20, %0; mov %0, %%cr4;" // PAE
                     "mov %1, %%cr3;"
                     "mov %%cr0, %0; or $0x80000000, %0; mov %0, %%cr0"
                     : "=&r"(bits)
                     : "r"(pmem_directory)
                     : "memory");
    return (uint32_t *)PMEM_WINDOW;
}

// Whether something remembers there: what is not backed reads as ones whatever is written.
static inline bool pmem_remembers(volatile uint32_t *at)
{
    uint32_t before = at[0];

    at[0] = ~before;
    bool good = at[0] == ~before;
    at[0] = before;
    return good;
}

#endif
