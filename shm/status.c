#include "shm/publish.h"
#include "shm/put.h"

#include <errno.h>

static bool terminated(const char *text, size_t size)
{
    return memchr(text, '\0', size) != NULL;
}

static void name_copy(char to[MST_NAME_BYTES], const char *from)
{
    memcpy(to, from, strnlen(from, MST_NAME_BYTES - 1));
}

void mst_status_init(struct mst_status_area *area, const char *cluster, const char *node, uint32_t node_id, uint64_t instance,
                     const uint8_t host_boot_id[16], uint64_t started_wall_ms)
{
    struct mst_superblock super = {
        .magic = MST_STATUS_MAGIC,
        .layout_version = MST_LAYOUT_VERSION,
        .area_bytes = sizeof(struct mst_status_area),
        .instance = instance,
        .node_id = node_id,
        .started_wall_ms = started_wall_ms,
    };

    memcpy(super.host_boot_id, host_boot_id, sizeof(super.host_boot_id));
    name_copy(super.node, node);
    name_copy(super.cluster, cluster);
    super.crc32c = mst_crc32c(&super, offsetof(struct mst_superblock, crc32c));
    mst_put_words(&area->super, &super, sizeof(super));
    mst_put_barrier();
}

int mst_superblock_check(const struct mst_superblock *copy, struct mst_why *why)
{
    if (copy->magic != MST_STATUS_MAGIC)
        return mst_why_set(why, -EBADMSG, "superblock: magic is %016llx, not a status area", (unsigned long long)copy->magic);
    /* Before the sum: another version may keep it elsewhere. */
    if (copy->layout_version != MST_LAYOUT_VERSION)
        return mst_why_set(why, -EPROTONOSUPPORT, "superblock: layout version %u, this program reads version %u",
                           copy->layout_version, MST_LAYOUT_VERSION);
    if (copy->crc32c != mst_crc32c(copy, offsetof(struct mst_superblock, crc32c)))
        return mst_why_set(why, -EBADMSG, "superblock: checksum is wrong");
    if (copy->area_bytes != sizeof(struct mst_status_area))
        return mst_why_set(why, -EBADMSG, "superblock: area of %u bytes, expected %zu", copy->area_bytes,
                           sizeof(struct mst_status_area));
    if (!terminated(copy->node, sizeof(copy->node)) || !terminated(copy->cluster, sizeof(copy->cluster)))
        return mst_why_set(why, -EBADMSG, "superblock: name of node or cluster has no end");
    if (copy->node_id == 0 || copy->node_id > MST_NODE_ID_MAX)
        return mst_why_set(why, -EBADMSG, "superblock: node id %u is not in 1..%u", copy->node_id, MST_NODE_ID_MAX);
    return 0;
}

void mst_beat_write(struct mst_beat_line *line, const struct mst_beat_line *value)
{
    struct mst_beat_line next = *value;

    next.crc32c = mst_crc32c(&next, offsetof(struct mst_beat_line, crc32c));
    mst_put_words(line, &next, sizeof(next));
}

int mst_beat_check(const struct mst_beat_line *copy)
{
    return copy->crc32c == mst_crc32c(copy, offsetof(struct mst_beat_line, crc32c)) ? 0 : -EBADMSG;
}

/* Whether the entry at index is whole, in its place, and safe to print. */
static bool fault_entry_good(const struct mst_fault_entry *entry, unsigned index)
{
    return entry->sequence != 0 && (entry->sequence - 1) % MST_FAULT_LOG_ENTRIES == index &&
           entry->crc32c == mst_crc32c(entry, offsetof(struct mst_fault_entry, crc32c)) &&
           terminated(entry->vm, sizeof(entry->vm)) && terminated(entry->text, sizeof(entry->text));
}

void mst_fault_log_append(struct mst_status_area *area, const struct mst_fault_entry *entry)
{
    struct mst_fault_entry next = *entry;

    next.sequence = 0;
    for (unsigned i = 0; i < MST_FAULT_LOG_ENTRIES; i++) {
        if (fault_entry_good(&area->faults[i], i) && area->faults[i].sequence > next.sequence)
            next.sequence = area->faults[i].sequence;
    }
    next.sequence++;
    next.vm[sizeof(next.vm) - 1] = '\0';
    next.text[sizeof(next.text) - 1] = '\0';
    next.crc32c = mst_crc32c(&next, offsetof(struct mst_fault_entry, crc32c));
    mst_put_words(&area->faults[(next.sequence - 1) % MST_FAULT_LOG_ENTRIES], &next, sizeof(next));
    mst_put_barrier();
}

unsigned mst_fault_log_list(const struct mst_fault_entry copy[MST_FAULT_LOG_ENTRIES], struct mst_fault_entry *out, unsigned max)
{
    uint64_t below = UINT64_MAX; /* only entries older than the last one listed */
    unsigned count = 0;

    while (count < max) {
        const struct mst_fault_entry *newest = NULL;
        for (unsigned i = 0; i < MST_FAULT_LOG_ENTRIES; i++) {
            if (!fault_entry_good(&copy[i], i) || copy[i].sequence >= below)
                continue;
            if (!newest || copy[i].sequence > newest->sequence)
                newest = &copy[i];
        }
        if (!newest)
            break;
        below = newest->sequence;
        out[count++] = *newest;
    }
    return count;
}
