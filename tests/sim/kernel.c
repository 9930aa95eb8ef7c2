#include "tests/sim/kernel.h"

#include <protobuf-c/protobuf-c.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

struct sim_kernel K;

struct sim_chunk {
    struct sim_chunk *next;
    size_t used, room;
    uint64_t bytes[];
};

#define CHUNK_BYTES (96u << 10)

struct sim_block {
    struct sim_block *next, **back;
    struct sim_proc *proc;
    size_t bytes;
    void *base;
    uint64_t magic; /* last: what runs under the start of a block meets it */
};
#if defined(__SANITIZE_ADDRESS__)
#define SIM_ASAN
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define SIM_ASAN
#endif
#endif
#define BLOCK_MAGIC UINT64_C(0x51b10cb10cb10c51)
#define BLOCK_ALIGN 64u
#define BLOCK_LARGE (16u << 10)

/* --- chance --- */

uint64_t sim_mix(uint64_t *state)
{
    uint64_t z = *state += UINT64_C(0x9e3779b97f4a7c15); /* splitmix64 */

    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    return z ^ (z >> 31);
}

uint64_t sim_random(void)
{
    return sim_mix(&K.chance);
}

uint32_t sim_dice(uint32_t n)
{
    return n ? (uint32_t)(sim_random() >> 32) % n : 0;
}

uint64_t sim_between(uint64_t low, uint64_t high)
{
    return low + (high > low ? sim_random() % (high - low + 1) : 0);
}

bool sim_chance(uint32_t per_mille)
{
    return sim_dice(1000) < per_mille;
}

/* --- large memory --- */

#ifdef SIM_ASAN /* which sees whether what is freed is used: nothing is kept */

void *sim_large(size_t bytes)
{
    void *at = calloc(1, bytes);

    if (!at)
        abort();
    return at;
}

void sim_large_free(void *at)
{
    free(at);
}

#else

/* Mappings go from one owner to the next, and from story to story; those that lie here are all zero. Most of a long one was never touched: only the pages
 * that the kernel has ever given it are cleared. To give them back and be given others costs ten times as much. */
struct large {
    struct large *next;
    size_t bytes, room; /* wanted; there are, with this head */
    uint64_t head_to_64_bytes[5];
    uint8_t data[];
};
static_assert(sizeof(struct large) == BLOCK_ALIGN, "data begins with a cache line");
#define LARGE_PAGE  4096u
#define LARGE_SHORT (256u << 10)
static struct large *large_free[48]; /* by log2 of the room */

static unsigned large_class(size_t bytes)
{
    unsigned log2 = 12;

    while ((size_t)1 << log2 < bytes)
        log2++;
    return log2;
}

void *sim_large(size_t bytes)
{
    unsigned class = large_class(bytes + sizeof(struct large));
    struct large *one = large_free[class];

    if (one) {
        large_free[class] = one->next;
    } else {
        one = mmap(NULL, (size_t)1 << class, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (one == MAP_FAILED)
            abort();
        (void)madvise(one, (size_t)1 << class, MADV_NOHUGEPAGE); /* a kernel without huge pages refuses that */
        one->room = (size_t)1 << class;
    }
    one->bytes = bytes;
    return one->data;
}

static void long_clear(struct large *one)
{
    uint8_t *at = one->data, *end = one->data + one->bytes;
    unsigned char there[256];

    while (at < end) {
        uint8_t *page = (uint8_t *)one + (size_t)(at - (uint8_t *)one) / LARGE_PAGE * LARGE_PAGE;
        size_t span = (size_t)(end - page) < sizeof(there) * LARGE_PAGE ? (size_t)(end - page) : sizeof(there) * LARGE_PAGE;

        if (mincore(page, span, there) < 0)
            abort();
        for (size_t i = 0; i < span; i += LARGE_PAGE, page += LARGE_PAGE) {
            size_t len = (size_t)(end - page) < LARGE_PAGE ? (size_t)(end - page) : LARGE_PAGE;

            if (there[i / LARGE_PAGE] & 1)
                memset(at, 0, len - (size_t)(at - page));
            at = page + len;
        }
    }
}

void sim_large_free(void *at)
{
    struct large *one;
    unsigned class;

    if (!at)
        return;
    one = (struct large *)((uintptr_t)at - sizeof(*one));
    if (one->bytes <= LARGE_SHORT)
        memset(one->data, 0, one->bytes);
    else
        long_clear(one);
    class = large_class(one->room);
    one->next = large_free[class];
    large_free[class] = one;
}

#endif

/* --- memory of the run --- */

void *sim_keep(size_t bytes)
{
    size_t words = (bytes + 15) / 16 * 2;
    struct sim_chunk *chunk = K.chunks;
    void *at;

    if (!chunk || chunk->used + words > chunk->room) {
        size_t room = words > CHUNK_BYTES / 8 ? words : CHUNK_BYTES / 8;

        chunk = sim_large(sizeof(*chunk) + room * 8);
        chunk->room = room;
        chunk->next = K.chunks;
        K.chunks = chunk;
    }
    at = &chunk->bytes[chunk->used];
    chunk->used += words;
    return at;
}

/* --- memory of processes --- */

void *sim_malloc(size_t bytes);
void *sim_calloc(size_t count, size_t bytes);
void *sim_realloc(void *old, size_t bytes);
void *sim_aligned_alloc(size_t align, size_t bytes);
void sim_free(void *at);

static size_t block_room(size_t bytes)
{
    return bytes + sizeof(struct sim_block) + (size_t)2 * BLOCK_ALIGN;
}

#ifdef SIM_ASAN

static void *block_base(size_t bytes)
{
    return calloc(1, block_room(bytes));
}

static void block_free(struct sim_block *block)
{
    free(block->base);
}

#else

/* Most blocks are parts of messages, and live for one event. Free ones lie by size and stay for the next story. */
#define BLOCK_SMALL 1024u
#define SMALL_STEP  64u
struct small {
    struct small *next;
};
static_assert(sizeof(struct sim_block) <= SMALL_STEP, "four steps more than the block");
static struct small *small_free[BLOCK_SMALL / SMALL_STEP + 4];

static void *block_base(size_t bytes)
{
    size_t steps = (block_room(bytes) + SMALL_STEP - 1) / SMALL_STEP;
    struct small *one;

    if (bytes >= BLOCK_LARGE)
        return sim_large(block_room(bytes));
    if (bytes >= BLOCK_SMALL || !small_free[steps])
        return calloc(steps, SMALL_STEP);
    one = small_free[steps];
    small_free[steps] = one->next;
    return memset(one, 0, block_room(bytes));
}

static void block_free(struct sim_block *block)
{
    size_t bytes = block->bytes, steps = (block_room(bytes) + SMALL_STEP - 1) / SMALL_STEP;
    struct small *one = block->base;

    if (bytes >= BLOCK_LARGE) {
        sim_large_free(block->base);
    } else if (bytes >= BLOCK_SMALL) {
        free(block->base);
    } else {
        one->next = small_free[steps];
        small_free[steps] = one;
    }
}

#endif

static void *block_aligned(size_t bytes, size_t align)
{
    struct sim_proc *proc = K.current;
    uint8_t *base = block_base(bytes += align > BLOCK_ALIGN ? align : 0);
    struct sim_block *block;
    uintptr_t data;

    if (!base)
        abort();
    data = ((uintptr_t)base + sizeof(*block) + align - 1) / align * align;
    block = (struct sim_block *)(data - sizeof(*block));
    block->magic = BLOCK_MAGIC;
    block->bytes = bytes;
    block->base = base;
    block->proc = proc;
    if (proc) {
        block->next = proc->blocks;
        if (block->next)
            block->next->back = &block->next;
        block->back = &proc->blocks;
        proc->blocks = block;
        proc->blocks_count++;
        proc->blocks_bytes += bytes;
    }
    return (void *)data;
}

static void *block_new(size_t bytes)
{
    return block_aligned(bytes, BLOCK_ALIGN);
}

void *sim_malloc(size_t bytes)
{
    return block_new(bytes);
}

void *sim_calloc(size_t count, size_t bytes)
{
    return block_new(count * bytes);
}

void *sim_aligned_alloc(size_t align, size_t bytes)
{
    return block_aligned(bytes, align > BLOCK_ALIGN ? align : BLOCK_ALIGN);
}

void sim_free(void *at)
{
    struct sim_block *block = at ? (struct sim_block *)((uintptr_t)at - sizeof(*block)) : NULL;

    if (!block)
        return;
    if (block->magic != BLOCK_MAGIC)
        abort();
    if (block->proc) {
        *block->back = block->next;
        if (block->next)
            block->next->back = block->back;
        block->proc->blocks_count--;
        block->proc->blocks_bytes -= block->bytes;
    }
    block->magic = 0;
    block_free(block);
}

void *sim_realloc(void *old, size_t bytes)
{
    struct sim_block *block = old ? (struct sim_block *)((uintptr_t)old - sizeof(*block)) : NULL;
    void *at = block_new(bytes);

    if (block)
        memcpy(at, old, block->bytes < bytes ? block->bytes : bytes);
    sim_free(old);
    return at;
}

static void blocks_free(struct sim_proc *proc)
{
    struct sim_block *block;

    while ((block = proc->blocks)) {
        proc->blocks = block->next;
        block_free(block);
    }
    proc->blocks_count = proc->blocks_bytes = 0;
}

/* --- trace hash --- */

void sim_hash_u64(uint64_t value)
{
    K.hash = (K.hash ^ value) * UINT64_C(0x9fb21c651e98df25);
    K.hash ^= K.hash >> 29;
}

void sim_hash(const void *data, size_t len)
{
    const uint8_t *at = data;
    uint64_t word;

    for (; len >= 8; len -= 8, at += 8) {
        memcpy(&word, at, 8);
        sim_hash_u64(word);
    }
    word = len;
    memcpy(&word, at, len);
    sim_hash_u64(word);
}

/* --- events --- */

static bool sooner(const struct sim_event *a, const struct sim_event *b)
{
    return a->at_ns != b->at_ns ? a->at_ns < b->at_ns : a->seq < b->seq;
}

static void push(struct sim_event event)
{
    unsigned i;

    if (K.heap_count == K.heap_room) {
        K.heap_room = K.heap_room ? 2 * K.heap_room : 1024;
        K.heap = realloc(K.heap, K.heap_room * sizeof(*K.heap));
        if (!K.heap)
            abort();
    }
    for (i = K.heap_count++; i > 0 && sooner(&event, &K.heap[(i - 1) / 2]); i = (i - 1) / 2)
        K.heap[i] = K.heap[(i - 1) / 2];
    K.heap[i] = event;
}

static struct sim_event pop(void)
{
    struct sim_event first = K.heap[0], last = K.heap[--K.heap_count];
    unsigned i = 0;

    for (;;) {
        unsigned child = 2 * i + 1;

        if (child >= K.heap_count)
            break;
        if (child + 1 < K.heap_count && sooner(&K.heap[child + 1], &K.heap[child]))
            child++;
        if (!sooner(&K.heap[child], &last))
            break;
        K.heap[i] = K.heap[child];
        i = child;
    }
    K.heap[i] = last;
    return first;
}

void sim_at(struct sim_proc *proc, uint64_t delay_ns, sim_fn fn, void *arg)
{
    struct sim_event event = {.at_ns = K.now_ns + delay_ns, .seq = ++K.seq, .fn = fn, .arg = arg, .proc = proc};

    event.life = proc ? proc->life : 0;
    if (proc && !proc->alive)
        return;
    push(event);
}

static void hold(struct sim_proc *proc, const struct sim_event *event)
{
    if (proc->held_count == proc->held_room) {
        proc->held_room = proc->held_room ? 2 * proc->held_room : 16;
        proc->held = realloc(proc->held, proc->held_room * sizeof(*proc->held));
        if (!proc->held)
            abort();
    }
    proc->held[proc->held_count++] = *event;
}

/* What _exit leaves; the stack below is as it was. */
static void run_until_left(struct sim_proc *proc, sim_fn fn, void *arg)
{
    jmp_buf out, *before = proc->out;

    proc->out = &out;
    if (_setjmp(out) == 0)
        fn(arg);
    proc->out = before;
}

_Noreturn void sim_leave(void)
{
    if (!K.current || !K.current->out)
        abort();
    longjmp(*K.current->out, 1);
}

static void dispatch(struct sim_proc *proc, sim_fn fn, void *arg)
{
    struct sim_proc *before = K.current;

    K.current = proc;
    if (proc)
        proc->depth++;
    if (proc && proc->exits)
        run_until_left(proc, fn, arg);
    else
        fn(arg);
    K.current = before;
    if (proc && --proc->depth == 0 && !proc->alive)
        blocks_free(proc);
}

void sim_as(struct sim_proc *proc, sim_fn fn, void *arg)
{
    if (!proc->alive)
        return;
    if (proc->stopped) {
        sim_at(proc, 0, fn, arg);
        return;
    }
    dispatch(proc, fn, arg);
}

void sim_run_until(uint64_t until_ns)
{
    while (!K.over && K.heap_count > 0 && K.heap[0].at_ns <= until_ns) {
        struct sim_event event = pop();

        if (event.proc && (!event.proc->alive || event.proc->life != event.life))
            continue;
        if (event.proc && event.proc->stopped) {
            hold(event.proc, &event);
            continue;
        }
        K.now_ns = event.at_ns;
        K.events++;
        sim_hash_u64(event.at_ns ^ (event.seq << 20));
        dispatch(event.proc, event.fn, event.arg);
        if (K.after && event.proc)
            K.after(event.proc);
    }
    if (!K.over && until_ns > K.now_ns)
        K.now_ns = until_ns;
}

/* --- processes --- */

void sim_proc_start(struct sim_proc *proc)
{
    if (proc->alive || proc->depth > 0)
        abort();
    proc->alive = true;
    proc->stopped = false;
    proc->life = ++K.next_life;
    proc->held_count = 0;
    proc->lazy = NULL;
    proc->stopped_ns = proc->continued_ns = 0;
}

void sim_proc_kill(struct sim_proc *proc)
{
    proc->alive = false;
    proc->stopped = false;
    proc->life = ++K.next_life;
    proc->held_count = 0;
    proc->lazy = NULL;
    if (proc->depth == 0)
        blocks_free(proc);
}

void sim_proc_stop(struct sim_proc *proc)
{
    if (proc->alive && !proc->stopped)
        proc->stopped_ns = K.now_ns;
    if (proc->alive)
        proc->stopped = true;
}

void sim_proc_cont(struct sim_proc *proc)
{
    if (!proc->alive || !proc->stopped)
        return;
    proc->stopped = false;
    proc->continued_ns = K.now_ns;
    for (unsigned i = 0; i < proc->held_count; i++) {
        struct sim_event event = proc->held[i];

        event.at_ns = K.now_ns;
        event.seq = ++K.seq;
        push(event);
    }
    proc->held_count = 0;
}

bool sim_muted(void)
{
    return K.over || (K.current && !K.current->alive);
}

void sim_lazy_run(struct sim_proc *proc)
{
    void (*lazy)(void *) = proc->lazy;

    if (!lazy || !proc->alive || proc->stopped || K.now_ns < proc->lazy_due_ns)
        return;
    proc->lazy_due_ns = K.now_ns + proc->lazy_every_ns;
    dispatch(proc, lazy, proc->lazy_arg);
}

/* --- life --- */

void sim_begin(uint64_t seed, FILE *story)
{
    memset(&K, 0, sizeof(K));
    K.chance = seed * UINT64_C(0x2545f4914f6cdd1d) + 1;
    K.hash = UINT64_C(0xcbf29ce484222325) ^ seed;
    K.story = story;
    K.now_ns = 1000 * SIM_S; /* nobody takes 0 for never */
}

void sim_end(void)
{
    struct sim_chunk *chunk;

    while ((chunk = K.chunks)) {
        K.chunks = chunk->next;
        sim_large_free(chunk);
    }
    free(K.heap);
    memset(&K, 0, sizeof(K));
}

void sim_say(const char *fmt, ...)
{
    uint64_t ms = (K.now_ns - 1000 * SIM_S) / SIM_MS;
    va_list args;

    if (!K.story)
        return;
    fprintf(K.story, "%6u.%03u %-11s ", (unsigned)(ms / 1000), (unsigned)(ms % 1000), K.current ? K.current->name : "*");
    va_start(args, fmt);
    vfprintf(K.story, fmt, args);
    va_end(args);
    fputc('\n', K.story);
}

/* --- protobuf-c's memory --- */

static void *pb_alloc(void *data, size_t bytes)
{
    (void)data;
    return block_new(bytes);
}

static void pb_free(void *data, void *at)
{
    (void)data;
    sim_free(at);
}

static ProtobufCAllocator pb_allocator = {.alloc = pb_alloc, .free = pb_free};

ProtobufCMessage *sim_pb_unpack(const ProtobufCMessageDescriptor *descriptor, ProtobufCAllocator *allocator, size_t len,
                                const uint8_t *data);
void sim_pb_free(ProtobufCMessage *message, ProtobufCAllocator *allocator);

ProtobufCMessage *sim_pb_unpack(const ProtobufCMessageDescriptor *descriptor, ProtobufCAllocator *allocator, size_t len,
                                const uint8_t *data)
{
    return protobuf_c_message_unpack(descriptor, allocator ? allocator : &pb_allocator, len, data);
}

void sim_pb_free(ProtobufCMessage *message, ProtobufCAllocator *allocator)
{
    protobuf_c_message_free_unpacked(message, allocator ? allocator : &pb_allocator);
}

size_t sim_malloc_usable_size(void *at);
size_t sim_malloc_usable_size(void *at)
{
    return at ? ((struct sim_block *)((uintptr_t)at - sizeof(struct sim_block)))->bytes : 0;
}
