#include "base/text.h"

#include "base/limits.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netdb.h>
#include <stdint.h>
#include <string.h>
#include <sys/socket.h>

int mst_name_check(const char *name)
{
    size_t len = strnlen(name, MST_NAME_BYTES);

    if (len == 0 || len >= MST_NAME_BYTES || name[0] == '-')
        return -EINVAL;
    for (size_t i = 0; i < len; i++) {
        char c = name[i];
        if (!((c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '-'))
            return -EINVAL;
    }
    return 0;
}

/* Bytes of the UTF-8 sequence at text when it is one printable character, 0 when it is not (also for overlong forms,
 * surrogates and the control characters C0, DEL, C1). text is terminated: the terminator ends every loop here. */
static size_t printable_bytes(const unsigned char *text)
{
    static const uint32_t least[] = {0, 0, 0x80, 0x800, 0x10000};
    size_t len;
    uint32_t point;

    if (text[0] < 0x80)
        return text[0] >= 0x20 && text[0] != 0x7f;
    if (text[0] >= 0xc2 && text[0] <= 0xdf)
        len = 2;
    else if ((text[0] & 0xf0) == 0xe0)
        len = 3;
    else if (text[0] >= 0xf0 && text[0] <= 0xf4)
        len = 4;
    else
        return 0;
    point = text[0] & (0x7fu >> len);
    for (size_t i = 1; i < len; i++) {
        if ((text[i] & 0xc0) != 0x80)
            return 0;
        point = point << 6 | (text[i] & 0x3fu);
    }
    if (point < least[len] || point > 0x10ffff || (point >= 0xd800 && point <= 0xdfff) || point < 0xa0)
        return 0;
    return len;
}

int mst_text_check(const char *text)
{
    const unsigned char *at = (const unsigned char *)text;

    while (*at) {
        size_t n = printable_bytes(at);
        if (n == 0)
            return -EINVAL;
        at += n;
    }
    return 0;
}

void mst_text_repair(char *text)
{
    unsigned char *at = (unsigned char *)text;

    while (*at) {
        size_t n = printable_bytes(at);
        if (n == 0)
            *at = '?';
        at += n ? n : 1;
    }
}

int mst_address_check(const char *address)
{
    struct addrinfo hints = {.ai_flags = AI_NUMERICHOST, .ai_socktype = SOCK_STREAM};
    struct addrinfo *info = NULL;
    struct in_addr v4;

    if (address[0] == '\0' || strnlen(address, MST_NAME_BYTES) >= MST_NAME_BYTES)
        return -EINVAL;
    if (!strchr(address, ':')) /* getaddrinfo would take 10.7.1 for 10.7.0.1 */
        return inet_pton(AF_INET, address, &v4) == 1 ? 0 : -EINVAL;
    if (getaddrinfo(address, NULL, &hints, &info) != 0)
        return -EINVAL;
    freeaddrinfo(info);
    return 0;
}
