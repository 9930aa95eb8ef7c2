// Devices on the PCI bus, and the legacy interface of virtio: one queue each, polled, no interrupts.
#ifndef GUEST_VIRTIO_H
#define GUEST_VIRTIO_H

#include "../ports.h"

#include <stdbool.h>

enum {
    PCI_ADDRESS = 0xcf8,
    PCI_DATA = 0xcfc,
    PCI_COMMAND_ALL = 7, // I/O, memory, bus master
    // Registers of the legacy interface, from BAR 0.
    VIRTIO_FEATURES = 4,
    VIRTIO_QUEUE_PAGE = 8,
    VIRTIO_QUEUE_SIZE = 12,
    VIRTIO_QUEUE_SELECT = 14,
    VIRTIO_QUEUE_NOTIFY = 16,
    VIRTIO_STATUS = 18,
    VIRTIO_CONFIG = 20,
    VIRTIO_DRIVES = 7, // acknowledged, driver, ready
    QUEUE_SIZE = 256,  // QEMU's
    DESCRIPTOR_NEXT = 1,
    DESCRIPTOR_WRITE = 2, // by the device
};

struct virtio_queue {
    struct {
        uint32_t address, address_high, bytes;
        uint16_t flags, next;
    } descriptor[QUEUE_SIZE];
    uint16_t available_flags, available_index, available[QUEUE_SIZE], available_event;
    uint8_t pad[4096 - 6 - 2 * QUEUE_SIZE];
    volatile uint16_t used_flags, used_index;
    struct {
        uint32_t id, bytes;
    } used[QUEUE_SIZE];
    uint8_t pad_end[4096 - 4 - 8 * QUEUE_SIZE];
} __attribute__((aligned(4096)));

static inline void port_write_2(uint16_t port, uint16_t value)
{
    __asm__ volatile("outw %0, %1" : : "a"(value), "Nd"(port));
}

static inline void port_write_4(uint16_t port, uint32_t value)
{
    __asm__ volatile("outl %0, %1" : : "a"(value), "Nd"(port) : "memory");
}

static inline uint32_t port_read_4(uint16_t port)
{
    uint32_t value;
    __asm__ volatile("inl %1, %0" : "=a"(value) : "Nd"(port));
    return value;
}

static inline uint32_t pci_read(uint32_t device, uint32_t at)
{
    port_write_4(PCI_ADDRESS, 0x80000000u | device << 11 | at);
    return port_read_4(PCI_DATA);
}

// Starts the first device with this vendor and kind, with one queue of it. 0: there is none, or not one as we know it.
static inline uint16_t virtio_start(uint32_t kind, uint16_t queue_number, struct virtio_queue *queue)
{
    for (uint32_t device = 0; device < 32; device++) {
        if (pci_read(device, 0) != kind)
            continue;
        uint16_t base = (uint16_t)(pci_read(device, 0x10) & 0xfffc);
        uint32_t command = pci_read(device, 4);
        port_write_4(PCI_ADDRESS, 0x80000000u | device << 11 | 4);
        port_write_4(PCI_DATA, command | PCI_COMMAND_ALL);
        port_write(base + VIRTIO_STATUS, 0);
        port_write(base + VIRTIO_STATUS, VIRTIO_DRIVES & 3);
        port_write_4(base + VIRTIO_FEATURES, 0);
        port_write_2(base + VIRTIO_QUEUE_SELECT, queue_number);
        if ((port_read_4(base + VIRTIO_QUEUE_SIZE) & 0xffff) != QUEUE_SIZE)
            return 0;
        queue->available_flags = 1; // no interrupts
        port_write_4(base + VIRTIO_QUEUE_PAGE, (uint32_t)queue / 4096);
        port_write(base + VIRTIO_STATUS, VIRTIO_DRIVES);
        return base;
    }
    return 0;
}

// Hands over the chain that begins with this descriptor.
static inline void virtio_send(uint16_t base, uint16_t queue_number, struct virtio_queue *queue, uint16_t first)
{
    queue->available[queue->available_index % QUEUE_SIZE] = first;
    __asm__ volatile("" : : : "memory");
    queue->available_index++;
    port_write_2((uint16_t)(base + VIRTIO_QUEUE_NOTIFY), queue_number);
}

#endif
