#ifndef MST_BASE_ERR_H
#define MST_BASE_ERR_H

#include <stdarg.h>

/* Errors are negative errno values. Where a person is to read the reason, a struct mst_why travels beside the error:
 * one sentence that says what happened, where, and what to do. */

#define MST_WHY_BYTES 400

struct mst_why {
    char text[MST_WHY_BYTES]; /* always terminated; empty when nothing was said */
};

static inline int mst_err_same(int err) /* lets a caller drop the value of the macros below */
{
    return err;
}

/* mst_why_set(why, err, fmt, ...) writes the sentence, cut at MST_WHY_BYTES - 1. why may be NULL (the reason is then dropped).
 * Its value is err, so that `return mst_why_set(why, -EINVAL, ...)` is one line; a macro, so that static analysis sees which error
 * comes back. errno is left alone, err is evaluated once, after the sentence. Any thread. */
#define mst_why_set(why, err, ...) (mst_why_write((why), __VA_ARGS__), mst_err_same(err))
__attribute__((format(printf, 2, 3))) void mst_why_write(struct mst_why *why, const char *fmt, ...);

/* mst_why_prefix(why, err, fmt, ...) puts "prefix: " before what is there already. why may be NULL. Its value is err. */
#define mst_why_prefix(why, err, ...) (mst_why_prepend((why), __VA_ARGS__), mst_err_same(err))
__attribute__((format(printf, 2, 3))) void mst_why_prepend(struct mst_why *why, const char *fmt, ...);

/* mst_errname returns "ENOENT" and the like for err or -err, "E?" when unknown. Static string. Any thread. */
const char *mst_errname(int err);

#endif
