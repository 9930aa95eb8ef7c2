#ifndef MST_SHM_PUT_H
#define MST_SHM_PUT_H

/* For shm/ and mirror/ only: every store into main storage goes through here, so that there is one place that says how stores are ordered, and
 * so that a test can end the writer between any two bytes.
 *
 * The reader is a NIC or another process. Bulk bytes are plain copies: nobody may look at them before a record names them.
 * Records are 8-byte words stored with release order, each visible after everything before it. A barrier stands where what follows
 * must not be seen earlier either. GCC's __atomic functions (C11 memory model) because the words are not declared _Atomic: the same
 * structs are read from private copies. */

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#ifdef MST_FAULT_POINTS
enum mst_put_kind { MST_PUT_BYTES, MST_PUT_RELEASE_U64, MST_PUT_BARRIER };
/* Tests: takes the place of the store when not NULL (dst and src are NULL for a barrier). */
extern void (*mst_put_hook)(enum mst_put_kind kind, void *dst, const void *src, size_t len);
#define MST_PUT_HOOKED(kind, dst, src, len) (mst_put_hook ? (mst_put_hook(kind, dst, src, len), 1) : 0)
#else
#define MST_PUT_HOOKED(kind, dst, src, len) 0
#endif

static inline void mst_put_bytes(void *dst, const void *src, size_t len)
{
    if (!MST_PUT_HOOKED(MST_PUT_BYTES, dst, src, len))
        memcpy(dst, src, len);
}

static inline void mst_put_u64(void *dst, uint64_t value)
{
    if (!MST_PUT_HOOKED(MST_PUT_RELEASE_U64, dst, &value, sizeof(value)))
        __atomic_store_n((uint64_t *)dst, value, __ATOMIC_RELEASE);
}

/* len: multiple of 8; dst and src 8-byte aligned. */
static inline void mst_put_words(void *dst, const void *src, size_t len)
{
    for (size_t off = 0; off < len; off += 8) {
        uint64_t word;
        memcpy(&word, (const uint8_t *)src + off, sizeof(word));
        mst_put_u64((uint8_t *)dst + off, word);
    }
}

/* Stores after this are seen only after stores before it. */
static inline void mst_put_barrier(void)
{
    if (MST_PUT_HOOKED(MST_PUT_BARRIER, NULL, NULL, 0))
        return;
#if defined(__SANITIZE_THREAD__) && !defined(__clang__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wtsan" /* the sanitizer does not model fences: it may miss a race, it invents none here */
#endif
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
#if defined(__SANITIZE_THREAD__) && !defined(__clang__)
#pragma GCC diagnostic pop
#endif
}

/* Copies words out of memory that another process may be writing. len: multiple of 8; both 8-byte aligned. */
static inline void mst_get_words(void *dst, const void *src, size_t len)
{
    for (size_t off = 0; off < len; off += 8) {
        uint64_t word = __atomic_load_n((const uint64_t *)((const uint8_t *)src + off), __ATOMIC_ACQUIRE);
        memcpy((uint8_t *)dst + off, &word, sizeof(word));
    }
}

#endif
