#include "base/err.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>

void mst_why_write(struct mst_why *why, const char *fmt, ...)
{
    char text[MST_WHY_BYTES] = ""; /* the arguments may point into why->text */
    int saved = errno;
    va_list ap;

    if (!why)
        return;
    va_start(ap, fmt);
    if (vsnprintf(text, sizeof(text), fmt, ap) < 0)
        text[0] = '\0';
    va_end(ap);
    memcpy(why->text, text, sizeof(why->text));
    errno = saved;
}

void mst_why_prepend(struct mst_why *why, const char *fmt, ...)
{
    char text[MST_WHY_BYTES] = "";
    int saved = errno;
    size_t used;
    va_list ap;
    int n;

    if (!why)
        return;
    va_start(ap, fmt);
    n = vsnprintf(text, sizeof(text), fmt, ap);
    va_end(ap);
    if (n >= 0) {
        used = strnlen(text, sizeof(text) - 1);
        why->text[sizeof(why->text) - 1] = '\0';
        snprintf(text + used, sizeof(text) - used, ": %s", why->text);
        memcpy(why->text, text, sizeof(why->text));
    }
    errno = saved;
}

const char *mst_errname(int err)
{
    const char *name = strerrorname_np(err < 0 && err != INT_MIN ? -err : err);

    return name ? name : "E?";
}
