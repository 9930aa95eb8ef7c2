#ifndef MST_BASE_TEXT_H
#define MST_BASE_TEXT_H

/* What strings from outside, from a peer or from a file, must be before they are used. Any thread. */

/* Whether name is 1..63 of a-z 0-9 - and starts with a letter or digit. 0 or -EINVAL. */
int mst_name_check(const char *name);
/* Whether address is a numeric IPv4 or IPv6 address. 0 or -EINVAL. Asks no name server. */
int mst_address_check(const char *address);
/* Whether text is valid UTF-8 without control characters (the empty text is). 0 or -EINVAL. */
int mst_text_check(const char *text);
/* Replaces each byte by '?' that keeps text from passing mst_text_check. */
void mst_text_repair(char *text);

#endif
