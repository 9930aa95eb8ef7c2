// A virtio network card, legacy interface, sending only: each beat line as a UDP broadcast, from 10.9.0.N to 10.9.0.255, port 7777.
#ifndef GUEST_NETCARD_H
#define GUEST_NETCARD_H

#include "../witness.h"
#include "virtio.h"

enum {
    PCI_VIRTIO_NET = 0x10001af4,
    VIRTIO_MAC = VIRTIO_CONFIG,
    QUEUE_SEND = 1,
    FRAME_HEAD = 10 + 14 + 20 + 8,
    UDP_PORT = 7777,
};

static struct virtio_queue netcard_queue;
static uint8_t netcard_frame[8][256]; // the card may not have sent the last one yet
static uint16_t netcard_base;         // 0: none
static uint8_t netcard_host;

// False: there is no card, or not one as we know it.
static inline bool netcard_start(uint32_t host)
{
    netcard_base = virtio_start(PCI_VIRTIO_NET, QUEUE_SEND, &netcard_queue);
    netcard_host = (uint8_t)host;
    return netcard_base != 0;
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
    virtio_send(netcard_base, QUEUE_SEND, &netcard_queue, slot);
}

#endif
