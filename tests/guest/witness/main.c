// Bare-metal witness guest: boots in a fraction of a second under emulation and sleeps in hlt between beats.
#include "../ports.h"
#include "../witness.h"
#include "diskcard.h"
#include "netcard.h"

#define ALWAYS_INLINE static inline __attribute__((always_inline))

enum {
    PIT_HZ = 1193182,
    PIT_LONGEST_MS = 54, // 16-bit counter
    MULTIBOOT_HAS_COMMAND_LINE = 1 << 2,
    MULTIBOOT_HAS_MEMORY_MAP = 1 << 6,
    UART_TRANSMITTER_EMPTY = 1 << 5,
};

struct multiboot {
    uint32_t flags;
    uint32_t unused_memory[3];
    uint32_t command_line;
    uint32_t unused_modules[6];
    uint32_t map_bytes;
    uint32_t map;
};

struct memory_range {
    uint32_t entry_bytes; // without this field
    uint32_t start_low, start_high;
    uint32_t bytes_low, bytes_high;
    uint32_t type; // 1: RAM
};

extern char image_end[]; // link.ld

volatile uint32_t tick_count; // boot.S
_Noreturn void guest_main(const struct multiboot *boot);
_Noreturn void guest_exception(uint32_t top, uint32_t second);

static struct witness witness;
static struct text text;
// Of this guest only; 0: not wanted.
static uint32_t udp_host;
static uint32_t read_disk, write_disk; // a virtio-blk card
static uint32_t pmem_mib;              // persistent memory

// Work of its own between two beats, of this guest only: pages behind the witness's, each read, mixed and rewritten in
// every line, one after the other and round again. What is done in a second is what a checkpoint takes from it.
static struct {
    uint32_t page_count;     // 0: none, it sleeps
    uint32_t pages_per_beat; // then it sleeps; 0: it never does
    uint32_t *memory;
    uint32_t at;
    uint32_t done; // pages, modulo 2^32
} work;

static void serial_start(void)
{
    port_write(PORT_UART + 1, 0);    // no interrupts
    port_write(PORT_UART + 3, 0x80); // divisor latch
    port_write(PORT_UART + 0, 1);    // 115200 baud
    port_write(PORT_UART + 1, 0);
    port_write(PORT_UART + 3, 0x03); // 8n1
    port_write(PORT_UART + 2, 0x07); // FIFOs on and empty
}

static void serial_write(const struct text *t)
{
    for (size_t i = 0; i < t->length; i++) {
        while (!(port_read(PORT_UART + 5) & UART_TRANSMITTER_EMPTY))
            ;
        port_write(PORT_UART, (uint8_t)t->bytes[i]);
    }
}

_Noreturn static void stop(void)
{
    for (;;)
        __asm__ volatile("cli; hlt");
}

void guest_exception(uint32_t top, uint32_t second)
{
    text.length = 0;
    text_add_field(&text, "guest exception stack=", top);
    text_add_field(&text, ",", second);
    text_add(&text, "\n");
    serial_write(&text);
    stop();
}

// Value of NAME=NUMBER if `word` starts with it.
static void take_number(const char *word, const char *name, uint32_t *value)
{
    while (*name != '\0')
        if (*word++ != *name++)
            return;
    *value = parse_number(word, *value);
}

static struct settings read_command_line(const struct multiboot *boot)
{
    struct settings s = settings_default;
    if (!(boot->flags & MULTIBOOT_HAS_COMMAND_LINE))
        return s;
    bool word_start = true;
    for (const char *p = (const char *)boot->command_line; *p != '\0'; p++) {
        if (word_start) {
            take_number(p, "pages=", &s.page_count);
            take_number(p, "interval_ms=", &s.interval_ms);
            take_number(p, "hot=", &s.hot_count);
            take_number(p, "panic_at=", &s.panic_beat);
            take_number(p, "udp=", &udp_host);
            take_number(p, "read_disk=", &read_disk);
            take_number(p, "write_disk=", &write_disk);
            take_number(p, "pmem_mib=", &pmem_mib);
            take_number(p, "work=", &work.page_count);
            take_number(p, "work_per_beat=", &work.pages_per_beat);
        }
        word_start = *p == ' ';
    }
    return s;
}

// Pages between the end of this image and the end of the RAM it lies in.
static uint32_t free_page_count(const struct multiboot *boot)
{
    uint32_t image = (uint32_t)image_end;
    if (!(boot->flags & MULTIBOOT_HAS_MEMORY_MAP))
        return 0;
    for (uint32_t at = boot->map; at < boot->map + boot->map_bytes;) {
        const struct memory_range *r = (const struct memory_range *)at;
        if (r->type == 1 && r->start_high == 0 && r->bytes_high == 0 && r->start_low < image &&
            r->bytes_low > image - r->start_low)
            return (r->bytes_low - (image - r->start_low)) / WITNESS_PAGE_BYTES;
        at += r->entry_bytes + (uint32_t)sizeof r->entry_bytes;
    }
    return 0;
}

// Interrupt 0 at vector 32, all others masked; a beat takes a whole number of equal ticks, as few as the PIT allows.
static uint32_t timer_start(uint32_t interval_ms)
{
    uint32_t ticks_per_beat = (interval_ms + PIT_LONGEST_MS - 1) / PIT_LONGEST_MS;
    uint32_t interval_clocks = interval_ms * (PIT_HZ / 1000) + interval_ms * (PIT_HZ % 1000) / 1000;
    uint32_t reload = interval_clocks / ticks_per_beat;

    static const struct {
        uint8_t port, value;
    } setup[] = {
        {0x20, 0x11}, {0xa0, 0x11}, // start of initialisation
        {0x21, 32},   {0xa1, 40},   // first vectors
        {0x21, 4},    {0xa1, 2},    // cascade
        {0x21, 1},    {0xa1, 1},    // 8086 mode
        {0x21, 0xfe}, {0xa1, 0xff}, // masks
        {0x43, 0x34},               // PIT channel 0, rate generator
    };
    for (size_t i = 0; i < sizeof setup / sizeof setup[0]; i++)
        port_write(setup[i].port, setup[i].value);
    port_write(0x40, (uint8_t)reload);
    port_write(0x40, (uint8_t)(reload >> 8));
    return ticks_per_beat;
}

ALWAYS_INLINE void debug_register_store(uint32_t value)
{
    __asm__ volatile("mov %0, %%dr0" : : "r"(value));
}

ALWAYS_INLINE uint32_t debug_register_load(void)
{
    uint32_t value;
    __asm__ volatile("mov %%dr0, %0" : "=r"(value));
    return value;
}

// Sleep until the tick counter has reached `due_tick`; the beat number is in EBX alone while the CPU halts.
static uint32_t sleep_holding(uint32_t beat, uint32_t due_tick)
{
    __asm__ volatile("cli" : : : "memory");
    while ((int32_t)(tick_count - due_tick) < 0)
        // sti takes effect after hlt has started: no tick can be lost between the test and the sleep.
        __asm__ volatile("sti; hlt; cli" : "+b"(beat) : : "memory");
    __asm__ volatile("sti" : : : "memory");
    return beat;
}

_Noreturn static void fail(const char *what)
{
    text.length = 0;
    text_add(&text, "guest error: ");
    text_add(&text, what);
    text_add(&text, "\n");
    serial_write(&text);
    stop();
}

// What a disk has when the guest finds it, before it writes anything: the first word of its first page or sector, and whether a witness wrote it.
static void say_disk(const char *kind, uint32_t first, bool of_a_witness)
{
    text.length = 0;
    text_add(&text, "guest disk kind=");
    text_add(&text, kind);
    text_add_field(&text, " first=", first);
    text_add(&text, of_a_witness ? " witness=yes\n" : " witness=no\n");
    serial_write(&text);
}

static void *pmem_start(void)
{
    uint32_t *disk = pmem_map();

    if (!pmem_remembers(disk) || !pmem_remembers(disk + pmem_mib * (1u << 20) / 4 - 1))
        fail("no persistent memory of that size at 4 GiB");
    say_disk("pmem", disk[WORD_GENERATION], disk[WORD_MAGIC] == WITNESS_MAGIC);
    return disk;
}

static void work_page(void)
{
    uint32_t *page = work.memory + (size_t)work.at * WITNESS_PAGE_WORDS;
    for (size_t i = 0; i < WITNESS_PAGE_WORDS; i += WITNESS_LINE_WORDS)
        page[i] = witness_mix(page[i], work.done + (uint32_t)i);
    work.at = work.at + 1 == work.page_count ? 0 : work.at + 1;
    work.done++;
}

static void work_until(uint32_t due_tick)
{
    __asm__ volatile("sti" : : : "memory"); // before the first beat nobody has slept yet
    for (uint32_t n = 0; (work.pages_per_beat == 0 || n < work.pages_per_beat) && (int32_t)(tick_count - due_tick) < 0; n++)
        work_page();
}

static void work_line(void)
{
    text.length = 0;
    text_add_field(&text, "work ", work.done);
    text_add(&text, "\n");
    serial_write(&text);
}

void guest_main(const struct multiboot *boot)
{
    serial_start();
    struct settings s = read_command_line(boot);
    uint32_t limit = free_page_count(boot);
    if (limit == 0)
        fail("no memory map from the loader");
    void *pages = image_end;
    if (pmem_mib != 0) {
        pages = pmem_start();
        limit = pmem_mib * ((1u << 20) / WITNESS_PAGE_BYTES);
    }
    uint32_t page_count = clamp(s.page_count, 1, limit);
    uint32_t hot_count = clamp(s.hot_count, 1, page_count);
    uint32_t interval_ms = clamp(s.interval_ms, 5, 3600000);
    work.page_count = clamp(work.page_count, 0, limit - page_count);
    work.memory = (uint32_t *)pages + (size_t)page_count * WITNESS_PAGE_WORDS;

    witness_boot_line(&text, "witness", page_count, interval_ms);
    serial_write(&text);

    if (udp_host != 0 && !netcard_start(udp_host))
        fail("no virtio network card with a legacy interface");
    if ((read_disk != 0 || write_disk != 0) && (!disk_start() || !disk_do(DISK_READ, 0)))
        fail("no virtio disk with a legacy interface that can be read");
    if (disk_base != 0)
        say_disk("virtio", disk_sector[0], disk_sector[1] == disk_pattern(disk_sector[0], 1));

    uint32_t seed;
    __asm__ volatile("rdtsc" : "=a"(seed) : : "edx");
    witness_start(&witness, pages, page_count, hot_count, seed);

    // The beat number lives in EBX (sleep_holding), DR0, the UART's scratch register, NVRAM, the stack and `witness`.
    nvram_store(0);
    port_write(PORT_UART_SCRATCH, 0);
    debug_register_store(0);
    volatile uint32_t stack_beat = 0;
    uint32_t held_beat = 0;

    uint32_t ticks_per_beat = timer_start(interval_ms);
    uint32_t due_tick = 0;
    bool announced = false;
    for (;;) {
        due_tick += ticks_per_beat;
        if ((int32_t)(tick_count - due_tick) > 0)
            due_tick = tick_count; // a beat that took longer than its interval is not made up for
        if (work.page_count != 0)
            work_until(due_tick);
        held_beat = sleep_holding(held_beat, due_tick);

        witness_check_place(&witness, "register", held_beat);
        witness_check_place(&witness, "debug-register", debug_register_load());
        witness_check_place(&witness, "stack", stack_beat);
        witness_check_place(&witness, "nvram", nvram_load());
        witness_compare(&witness, page_count, "uart-scratch", witness.beat & 0xff, port_read(PORT_UART_SCRATCH));
        if (read_disk != 0)
            disk_check_pattern(&witness);
        if (write_disk != 0)
            disk_check_written(&witness);
        witness_beat(&witness);
        if (write_disk != 0)
            disk_write_beat(&witness);

        held_beat = witness.beat;
        debug_register_store(held_beat);
        stack_beat = held_beat;
        nvram_store(held_beat);
        port_write(PORT_UART_SCRATCH, (uint8_t)held_beat);

        if (witness.broken && !announced) {
            announced = true;
            witness_broken_line(&text, &witness);
            serial_write(&text);
        }
        uint32_t ticks = tick_count;
        uint32_t beats = ticks / ticks_per_beat;
        uint32_t rest_ms = ticks % ticks_per_beat * interval_ms / ticks_per_beat;
        // interval_ms * beats passes 32 bits after 49 days: add seconds and milliseconds apart.
        uint32_t millis = interval_ms % 1000 * (beats % 1000) + rest_ms;
        uint32_t seconds = interval_ms / 1000 * beats + beats / 1000 * (interval_ms % 1000) + millis / 1000;
        witness_beat_line(&text, &witness, seconds, millis % 1000);
        serial_write(&text);
        netcard_send(&text);
        if (work.page_count != 0)
            work_line();

        if (witness.beat == s.panic_beat)
            port_write(PORT_PVPANIC, 1);
    }
}
