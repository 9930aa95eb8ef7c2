// The witness: a working set of pages that proves, at every beat, that no part of it is stale, torn or damaged.
// One implementation for the bare-metal guest and the Linux guest: freestanding, 32-bit arithmetic only (no libgcc).
//
// The set is written round-robin, `hot` pages a beat, so page contents form one chain in order of writing: each page
// holds its index, its generation (the beat that wrote it) and a link that hashes the link of the page written before
// it. All 64 lines of a page carry the generation and words derived from the link. What every page must hold follows
// from the beat number, which the caller keeps in CPU and device registers as well as here, and from `head_link`, the
// link of the newest page. So neither a single old page, nor an old copy of this struct, nor a page of another boot
// with the same generation can pass.
#ifndef GUEST_WITNESS_H
#define GUEST_WITNESS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
    WITNESS_PAGE_BYTES = 4096,
    WITNESS_PAGE_WORDS = WITNESS_PAGE_BYTES / 4,
    WITNESS_LINE_WORDS = 64 / 4, // a cache line: the smallest unit a copy can tear at
    // Words of the first line; every other line starts with the generation and is pattern from there.
    WORD_GENERATION = 0,
    WORD_INDEX,
    WORD_LINK,
    WORD_PREVIOUS_LINK,
    WORD_MAGIC,
    WORD_PATTERN,
};

#define WITNESS_MAGIC  0x4e54534du // "MSTN": lets tests find the pages in a RAM file
#define WITNESS_SPREAD 0x9e3779b1u

struct witness {
    uint32_t *memory; // page_count pages
    uint32_t page_count;
    uint32_t hot_count; // pages rewritten per beat, 1..page_count
    uint32_t beat;      // beats completed
    uint32_t head_link; // link of the page written last
    // The first fault found; it stays, as a state that was once wrong is never right again.
    bool broken;
    uint32_t bad_page; // page_count: not a page, but CPU, device or bookkeeping state
    uint32_t want, have;
    const char *what; // which comparison failed
};

static inline uint32_t witness_mix(uint32_t a, uint32_t b)
{
    uint32_t x = a ^ (b * WITNESS_SPREAD);
    x = (x ^ (x >> 16)) * 0x85ebca6bu;
    x = (x ^ (x >> 13)) * 0xc2b2ae35u;
    return x ^ (x >> 16);
}

static inline uint32_t witness_link(uint32_t previous_link, uint32_t index, uint32_t generation)
{
    return witness_mix(witness_mix(previous_link, index), generation);
}

// The page the next write goes to: beat * hot_count mod page_count, by doubling, as the product needs 64 bits.
static inline uint32_t witness_cursor(const struct witness *w, uint32_t beat)
{
    uint32_t result = 0;
    uint32_t addend = w->hot_count % w->page_count;
    for (; beat != 0; beat >>= 1) {
        if (beat & 1)
            result = (result + addend) % w->page_count;
        addend = (addend + addend) % w->page_count;
    }
    return result;
}

static inline bool witness_compare(struct witness *w, uint32_t page, const char *what, uint32_t want, uint32_t have)
{
    if (want != have && !w->broken) {
        w->broken = true;
        w->bad_page = page;
        w->want = want;
        w->have = have;
        w->what = what;
    }
    return want == have;
}

static inline void witness_write_page(struct witness *w, uint32_t index, uint32_t generation)
{
    uint32_t *page = w->memory + (size_t)index * WITNESS_PAGE_WORDS;
    uint32_t link = witness_link(w->head_link, index, generation);
    uint32_t spread = 0;
    for (size_t i = 0; i < WITNESS_PAGE_WORDS; i++, spread += WITNESS_SPREAD)
        page[i] = i % WITNESS_LINE_WORDS == WORD_GENERATION ? generation : link ^ spread;
    page[WORD_INDEX] = index;
    page[WORD_LINK] = link;
    page[WORD_PREVIOUS_LINK] = w->head_link;
    page[WORD_MAGIC] = WITNESS_MAGIC;
    w->head_link = link;
}

// The seed must differ from boot to boot.
static inline void witness_start(struct witness *w, void *memory, uint32_t page_count, uint32_t hot_count, uint32_t seed)
{
    *w = (struct witness){.memory = memory, .page_count = page_count, .hot_count = hot_count, .head_link = seed};
    for (uint32_t i = 0; i < page_count; i++)
        witness_write_page(w, i, 0);
}

// Reads two words of each line: its generation, and one pattern word whose place moves from beat to beat; or, with
// `all_words`, everything.
static inline bool witness_check_page(struct witness *w, uint32_t index, uint32_t generation, uint32_t link, bool all_words)
{
    const volatile uint32_t *page = w->memory + (size_t)index * WITNESS_PAGE_WORDS;
    if (!witness_compare(w, index, "generation", generation, page[WORD_GENERATION]) ||
        !witness_compare(w, index, "index", index, page[WORD_INDEX]) ||
        !witness_compare(w, index, "link", link, page[WORD_LINK]) ||
        !witness_compare(w, index, "chain", witness_link(page[WORD_PREVIOUS_LINK], index, generation), link) ||
        !witness_compare(w, index, "magic", WITNESS_MAGIC, page[WORD_MAGIC]))
        return false;
    size_t first = all_words ? 1 : 1 + w->beat % (WITNESS_LINE_WORDS - 1);
    size_t last = all_words ? WITNESS_LINE_WORDS - 1 : first;
    for (size_t line = 0; line < WITNESS_PAGE_WORDS; line += WITNESS_LINE_WORDS) {
        if (!witness_compare(w, index, "line", generation, page[line]))
            return false;
        for (size_t i = line + first; i <= line + last; i++)
            if (i >= WORD_PATTERN && !witness_compare(w, index, "pattern", link ^ ((uint32_t)i * WITNESS_SPREAD), page[i]))
                return false;
    }
    return true;
}

// Verify everything as beat number w->beat left it, newest page first: walking back along the chain, the generation
// falls by one every hot_count pages and each page names the link of the next one. The oldest hot_count pages are about
// to be rewritten and read in full, so that even one wrong bit is seen before it is overwritten.
static inline void witness_check(struct witness *w)
{
    uint32_t link = w->head_link;
    uint32_t generation = w->beat;
    uint32_t left = w->hot_count;
    uint32_t index = witness_cursor(w, w->beat);
    for (uint32_t i = 0; i < w->page_count; i++) {
        index = (index == 0 ? w->page_count : index) - 1;
        bool next_to_go = i >= w->page_count - w->hot_count;
        if (!witness_check_page(w, index, generation, link, next_to_go))
            return;
        link = w->memory[(size_t)index * WITNESS_PAGE_WORDS + WORD_PREVIOUS_LINK];
        if (generation != 0 && --left == 0) {
            left = w->hot_count;
            generation--;
        }
    }
}

// The beat number as another place has it.
static inline void witness_check_place(struct witness *w, const char *what, uint32_t have)
{
    witness_compare(w, w->page_count, what, w->beat, have);
}

// One beat: check first, or a stale page would be overwritten before anybody saw it.
static inline void witness_beat(struct witness *w)
{
    if (!w->broken)
        witness_check(w);
    uint32_t index = witness_cursor(w, w->beat);
    w->beat++;
    for (uint32_t i = 0; i < w->hot_count; i++) {
        witness_write_page(w, index, w->beat);
        index = index + 1 == w->page_count ? 0 : index + 1;
    }
}

// Output: the same bytes from both guests.
struct text {
    char bytes[256];
    size_t length;
};

static inline void text_add(struct text *t, const char *s)
{
    while (*s != '\0' && t->length < sizeof t->bytes)
        t->bytes[t->length++] = *s++;
}

static inline void text_add_number(struct text *t, uint32_t value, unsigned least_digits)
{
    char digits[11];
    char *p = digits + sizeof digits - 1;
    *p = '\0';
    for (unsigned n = 0; n < least_digits || value != 0; n++, value /= 10)
        *--p = (char)('0' + value % 10);
    text_add(t, p);
}

static inline void text_add_field(struct text *t, const char *name, uint32_t value)
{
    text_add(t, name);
    text_add_number(t, value, 1);
}

static inline void witness_boot_line(struct text *t, const char *kind, uint32_t page_count, uint32_t interval_ms)
{
    t->length = 0;
    text_add(t, "guest boot kind=");
    text_add(t, kind);
    text_add_field(t, " pages=", page_count);
    text_add_field(t, " interval_ms=", interval_ms);
    text_add(t, "\n");
}

static inline void witness_beat_line(struct text *t, const struct witness *w, uint32_t seconds, uint32_t millis)
{
    t->length = 0;
    text_add_field(t, "beat ", w->beat);
    text_add_field(t, " t=", seconds);
    text_add(t, ".");
    text_add_number(t, millis, 3);
    if (w->broken) {
        text_add_field(t, " witness=BROKEN page=", w->bad_page);
        text_add_field(t, " want=", w->want);
        text_add_field(t, " have=", w->have);
    } else {
        text_add(t, " witness=ok");
    }
    text_add(t, "\n");
}

// Printed once, before the first BROKEN line: the contract's line has no room for which comparison failed.
static inline void witness_broken_line(struct text *t, const struct witness *w)
{
    t->length = 0;
    text_add(t, "guest broken what=");
    text_add(t, w->what);
    text_add(t, w->bad_page == w->page_count ? " (state)\n" : " (page)\n");
}

// Reads decimal digits; what is not a number keeps the fallback.
static inline uint32_t parse_number(const char *s, uint32_t fallback)
{
    uint32_t value = 0;
    const char *p = s;
    for (; *p >= '0' && *p <= '9'; p++) {
        uint32_t digit = (uint32_t)(*p - '0');
        if (value > (UINT32_MAX - digit) / 10)
            return fallback;
        value = value * 10 + digit;
    }
    return p == s || (*p != '\0' && *p != ' ') ? fallback : value;
}

static inline uint32_t clamp(uint32_t value, uint32_t least, uint32_t most)
{
    return value < least ? least : value > most ? most : value;
}

// What both guests accept on their command line; NAME=NUMBER.
struct settings {
    uint32_t page_count;
    uint32_t interval_ms;
    uint32_t hot_count;
    uint32_t panic_beat; // 0: never
};

static const struct settings settings_default = {.page_count = 64, .interval_ms = 200, .hot_count = 8};

#endif
