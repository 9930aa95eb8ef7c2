// First process of the Linux guest, /init of an initramfs: the witness, and beside it the server of serve.h when `serve=HOST` asks for it.
#include "../ports.h"
#include "../witness.h"
#include "serve.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/io.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/sysinfo.h>
#include <sys/wait.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

static void console_write(const struct text *t)
{
    for (size_t done = 0; done < t->length;) {
        ssize_t n = write(STDOUT_FILENO, t->bytes + done, t->length - done);
        if (n < 0 && errno != EINTR)
            return; // nobody to tell
        done += n > 0 ? (size_t)n : 0;
    }
}

_Noreturn static void fail(const char *what)
{
    struct text t = {.length = 0};
    text_add(&t, "guest error: ");
    text_add(&t, what);
    text_add_field(&t, " errno=", (uint32_t)errno);
    text_add(&t, "\n");
    console_write(&t);
    exit(1); // kernel panic, which is the right end of a witness that cannot witness
}

// Absent from the initramfs: built in, or not wanted.
static void load_module(const char *path)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return;
    if (syscall(SYS_finit_module, fd, "", 0) != 0 && errno != EEXIST)
        fail(path);
    close(fd);
}

// In the order in which they need each other.
static const char *const network_modules[] = {"/virtio_ring.ko",           "/virtio.ko",     "/virtio_pci_modern_dev.ko",
                                              "/virtio_pci_legacy_dev.ko", "/virtio_pci.ko", "/failover.ko",
                                              "/net_failover.ko",          "/virtio_net.ko"};

static pid_t start_server(uint32_t host)
{
    for (unsigned i = 0; i < sizeof(network_modules) / sizeof(network_modules[0]); i++)
        load_module(network_modules[i]);
    pid_t pid = serve_start(host);
    if (pid < 0)
        fail("the server does not start");
    return pid;
}

// The kernel hands NAME=NUMBER words it does not know to init as environment.
static uint32_t setting(const char *name, uint32_t fallback)
{
    const char *value = getenv(name);
    return value == NULL ? fallback : parse_number(value, fallback);
}

// Sleep until `due`; the beat number is in R12 alone, which the kernel saves and restores on every switch.
static uint32_t sleep_holding(uint32_t beat, const struct timespec *due)
{
    register uint64_t held __asm__("r12") = beat;
    register struct timespec *remaining __asm__("r10") = NULL;
    long result;
    do {
        result = SYS_clock_nanosleep;
        __asm__ volatile("syscall"
                         : "+a"(result), "+r"(held)
                         : "D"((long)CLOCK_MONOTONIC), "S"((long)TIMER_ABSTIME), "d"(due), "r"(remaining)
                         : "rcx", "r11", "memory");
    } while (result == -EINTR);
    return (uint32_t)held;
}

static int64_t to_ms(const struct timespec *t)
{
    return (int64_t)t->tv_sec * 1000 + t->tv_nsec / 1000000;
}

int main(void)
{
    static struct witness witness;
    static struct text text;

    struct termios console;
    if (tcgetattr(STDOUT_FILENO, &console) == 0) {
        cfmakeraw(&console); // "\n", not "\r\n": the same bytes as the bare-metal guest
        tcsetattr(STDOUT_FILENO, TCSANOW, &console);
    }
    load_module("/pvpanic.ko"); // without it a kernel panic stops the guest in silence
    load_module("/pvpanic-mmio.ko");
    if (ioperm(PORT_CMOS_INDEX, 2, 1) != 0 || ioperm(PORT_UART_SCRATCH, 1, 1) != 0)
        fail("ioperm");
    uint32_t host = clamp(setting("serve", 0), 0, 253);
    pid_t server = host == 0 ? 0 : start_server(host);

    struct sysinfo memory;
    sysinfo(&memory);
    // Leave the kernel a little room: a witness killed for want of memory proves nothing.
    uint64_t free_page_count = (uint64_t)memory.freeram * memory.mem_unit / WITNESS_PAGE_BYTES * 7 / 8;
    uint32_t page_count = clamp(setting("pages", settings_default.page_count), 1, (uint32_t)free_page_count);
    uint32_t hot_count = clamp(setting("hot", settings_default.hot_count), 1, page_count);
    uint32_t interval_ms = clamp(setting("interval_ms", settings_default.interval_ms), 5, 3600000);
    uint32_t panic_beat = setting("panic_at", settings_default.panic_beat);
    void *pages = mmap(NULL, (size_t)page_count * WITNESS_PAGE_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (pages == MAP_FAILED)
        fail("mmap");

    witness_boot_line(&text, "linux", page_count, interval_ms);
    console_write(&text);

    struct timespec wall;
    clock_gettime(CLOCK_REALTIME, &wall);
    witness_start(&witness, pages, page_count, hot_count, witness_mix((uint32_t)wall.tv_sec, (uint32_t)wall.tv_nsec));

    // The beat number lives in R12 (sleep_holding), the UART's scratch register, NVRAM, the stack and `witness`.
    nvram_store(0);
    port_write(PORT_UART_SCRATCH, 0);
    volatile uint32_t stack_beat = 0;
    uint32_t held_beat = 0;

    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    int64_t due_ms = to_ms(&now);
    bool announced = false;
    for (;;) {
        due_ms += interval_ms;
        clock_gettime(CLOCK_MONOTONIC, &now);
        if (to_ms(&now) > due_ms)
            due_ms = to_ms(&now); // a beat that took longer than its interval is not made up for
        struct timespec due = {.tv_sec = due_ms / 1000, .tv_nsec = due_ms % 1000 * 1000000};
        held_beat = sleep_holding(held_beat, &due);

        witness_check_place(&witness, "register", held_beat);
        witness_check_place(&witness, "stack", stack_beat);
        witness_check_place(&witness, "nvram", nvram_load());
        witness_compare(&witness, page_count, "uart-scratch", witness.beat & 0xff, port_read(PORT_UART_SCRATCH));
        witness_beat(&witness);

        held_beat = witness.beat;
        stack_beat = held_beat;
        nvram_store(held_beat);
        port_write(PORT_UART_SCRATCH, (uint8_t)held_beat);

        if (witness.broken && !announced) {
            announced = true;
            witness_broken_line(&text, &witness);
            console_write(&text);
        }
        if (server != 0 && waitpid(server, NULL, WNOHANG) != 0)
            fail("the server has ended");
        clock_gettime(CLOCK_MONOTONIC, &now);
        witness_beat_line(&text, &witness, (uint32_t)now.tv_sec, (uint32_t)(now.tv_nsec / 1000000));
        console_write(&text);

        if (witness.beat == panic_beat) {
            tcdrain(STDOUT_FILENO);
            exit(1); // the kernel panics when init ends
        }
    }
}
