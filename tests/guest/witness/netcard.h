// A virtio network card, legacy interface, sending only: each beat line as a UDP broadcast, from 10.9.0.N to 10.9.0.255, port 7777.
#ifndef GUEST_NETCARD_H
#define GUEST_NETCARD_H

#include "../ports.h"
#include "../witness.h"

enum {
    PCI_ADDRESS = 0xcf8,
    PCI_DATA = 0xcfc,
    PCI_VIRTIO_NET = 0x10001af4,
    PCI_COMMAND_ALL = 7, // I/O, memory, bus master
    // Registers of the legacy interface, from BAR 0.
    VIRTIO_FEATURES = 4,
    VIRTIO_QUEUE_PAGE = 8,
    VIRTIO_QUEUE_SIZE = 12,
    VIRTIO_QUEUE_SELECT = 14,
    VIRTIO_QUEUE_NOTIFY = 16,
    VIRTIO_STATUS = 18,
    VIRTIO_MAC = 20,
    VIRTIO_DRIVES = 7, // acknowledged, driver, ready
    QUEUE_SEND = 1,
    QUEUE_SIZE = 256, // QEMU's
    FRAME_HEAD = 10 + 14 + 20 + 8,
    UDP_PORT = 7777,
};

static struct {
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
} netcard_queue __attribute__((aligned(4096)));
static uint8_t netcard_frame[8][256]; // the card may not have sent the last one yet
static uint16_t netcard_base;         // 0: none
static uint8_t netcard_host;

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

// False: there is no card, or not one as we know it.
static inline bool netcard_start(uint32_t host)
{
    for (uint32_t device = 0; device < 32; device++) {
        if (pci_read(device, 0) != PCI_VIRTIO_NET)
            continue;
        uint16_t base = (uint16_t)(pci_read(device, 0x10) & 0xfffc);
        uint32_t command = pci_read(device, 4);
        port_write_4(PCI_ADDRESS, 0x80000000u | device << 11 | 4);
        port_write_4(PCI_DATA, command | PCI_COMMAND_ALL);
        port_write(base + VIRTIO_STATUS, 0);
        port_write(base + VIRTIO_STATUS, VIRTIO_DRIVES & 3);
        port_write_4(base + VIRTIO_FEATURES, 0);
        port_write_2(base + VIRTIO_QUEUE_SELECT, QUEUE_SEND);
        if ((port_read_4(base + VIRTIO_QUEUE_SIZE) & 0xffff) != QUEUE_SIZE)
            return false;
        netcard_queue.available_flags = 1; // no interrupts
        port_write_4(base + VIRTIO_QUEUE_PAGE, (uint32_t)&netcard_queue / 4096);
        port_write(base + VIRTIO_STATUS, VIRTIO_DRIVES);
        netcard_base = base;
        netcard_host = (uint8_t)host;
        return true;
    }
    return false;
}

static inline void put_2(uint8_t *at, uint32_t value) // as the network has it
{
    at[0] = (uint8_t)(value >> 8);
    at[1] = (uint8_t)value;
}

static inline void netcard_send(const struct text *t)
{
    uint8_t *frame = netcard_frame[netcard_queue.available_index % 8], *eth = frame + 10, *ip = eth + 14, *udp = ip + 20;
    static const uint8_t ip_head[20] = {0x45, 0, 0, 0, 0, 0, 0, 0, 64, 17, 0, 0, 10, 9, 0, 0, 10, 9, 0, 255};
    uint32_t bytes = t->length < 256 - FRAME_HEAD ? (uint32_t)t->length : 256 - FRAME_HEAD, sum = 0;

    if (netcard_base == 0)
        return;
    for (uint32_t i = 0; i < FRAME_HEAD; i++)
        frame[i] = 0;
    for (uint16_t i = 0; i < 6; i++) {
        eth[i] = 0xff;
        eth[6 + i] = port_read((uint16_t)(netcard_base + VIRTIO_MAC + i));
    }
    put_2(eth + 12, 0x0800);
    for (uint32_t i = 0; i < 20; i++)
        ip[i] = ip_head[i];
    put_2(ip + 2, 28 + bytes);
    ip[15] = netcard_host;
    for (uint32_t i = 0; i < 20; i += 2)
        sum += (uint32_t)ip[i] << 8 | ip[i + 1];
    put_2(ip + 10, ~(sum + (sum >> 16)));
    put_2(udp, UDP_PORT);
    put_2(udp + 2, UDP_PORT);
    put_2(udp + 4, 8 + bytes); // and no checksum
    for (uint32_t i = 0; i < bytes; i++)
        udp[8 + i] = (uint8_t)t->bytes[i];
    uint16_t slot = netcard_queue.available_index % 8;
    netcard_queue.descriptor[slot].address = (uint32_t)frame;
    netcard_queue.descriptor[slot].bytes = FRAME_HEAD + bytes;
    netcard_queue.available[netcard_queue.available_index % QUEUE_SIZE] = slot;
    __asm__ volatile("" : : : "memory");
    netcard_queue.available_index++;
    port_write_2((uint16_t)(netcard_base + VIRTIO_QUEUE_NOTIFY), QUEUE_SEND);
}

#endif
