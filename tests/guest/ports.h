// Port I/O and the device registers in which a guest keeps its beat number, for both guests.
// A move of the VM has to carry these with the device state; memory alone cannot bring them back.
#ifndef GUEST_PORTS_H
#define GUEST_PORTS_H

#include <stdint.h>

enum {
    PORT_CMOS_INDEX = 0x70,
    PORT_CMOS_DATA = 0x71,
    PORT_UART = 0x3f8,
    PORT_UART_SCRATCH = PORT_UART + 7,
    PORT_PVPANIC = 0x505,
    // Four NVRAM bytes that neither QEMU, nor SeaBIOS, nor Linux uses.
    CMOS_BEAT = 0x70,
};

static inline void port_write(uint16_t port, uint8_t value)
{
    __asm__ volatile("outb %0, %1" : : "a"(value), "Nd"(port));
}

static inline uint8_t port_read(uint16_t port)
{
    uint8_t value;
    __asm__ volatile("inb %1, %0" : "=a"(value) : "Nd"(port));
    return value;
}

static inline void nvram_store(uint32_t beat)
{
    for (unsigned i = 0; i < 4; i++) {
        port_write(PORT_CMOS_INDEX, (uint8_t)(CMOS_BEAT + i));
        port_write(PORT_CMOS_DATA, (uint8_t)(beat >> (8 * i)));
    }
}

static inline uint32_t nvram_load(void)
{
    uint32_t beat = 0;
    for (unsigned i = 0; i < 4; i++) {
        port_write(PORT_CMOS_INDEX, (uint8_t)(CMOS_BEAT + i));
        beat |= (uint32_t)port_read(PORT_CMOS_DATA) << (8 * i);
    }
    return beat;
}

#endif
