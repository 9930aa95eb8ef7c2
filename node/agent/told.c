#include "node/agent/told.h"

uint64_t mst_told_key(const struct mst_hw_error *error)
{
    uint64_t words[] = {error->severity, error->memory_controller, error->cpu, error->bank, error->status, error->addr};
    uint64_t key = UINT64_C(0xcbf29ce484222325); /* FNV-1a */

    for (unsigned i = 0; i < sizeof(words) / sizeof(words[0]); i++)
        key = (key ^ words[i]) * UINT64_C(0x100000001b3);
    for (const char *c = error->label; *c; c++)
        key = (key ^ (unsigned char)*c) * UINT64_C(0x100000001b3);
    return key;
}

bool mst_told_may(struct mst_told_list *list, uint64_t key, uint64_t now_ms, uint64_t *ret_held)
{
    unsigned at = 0;

    *ret_held = 0;
    for (unsigned i = 0; i < MST_TOLD_KEPT; i++) {
        if (list->told[i].at_ms != 0 && list->told[i].key == key) {
            if (now_ms < list->told[i].at_ms + MST_TOLD_AGAIN_MS) {
                list->told[i].held_back++;
                return false;
            }
            *ret_held = list->told[i].held_back;
            at = i;
            break;
        }
        if (list->told[i].at_ms < list->told[at].at_ms)
            at = i;
    }
    list->told[at].key = key;
    list->told[at].at_ms = now_ms;
    list->told[at].held_back = 0;
    return true;
}
