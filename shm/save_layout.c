#include "shm/save.h"

#include <errno.h>

#define PAGES_MAX         ((uint64_t)MST_VM_MEMORY_MIB_MAX * (1u << 20) / MST_PAGE_BYTES)
#define DELTA_PAGES_LEAST 256u

static_assert(PAGES_MAX <= UINT32_MAX, "page numbers of the delta table are 32 bits");
static_assert(MST_DEVICE_BYTES_MAX % MST_PAGE_BYTES == 0, "tables begin on a page");

static uint64_t page_up(uint64_t bytes)
{
    return (bytes + MST_PAGE_BYTES - 1) / MST_PAGE_BYTES * MST_PAGE_BYTES;
}

int mst_save_layout(uint64_t ram_bytes, struct mst_save_layout *ret_layout)
{
    uint64_t pages = ram_bytes / MST_PAGE_BYTES;
    uint64_t table_bytes = page_up(pages * sizeof(uint32_t));

    if (ram_bytes % MST_PAGE_BYTES != 0 || pages == 0 || pages > PAGES_MAX)
        return -EINVAL;
    ret_layout->device_off[0] = 0;
    ret_layout->device_off[1] = MST_DEVICE_BYTES_MAX;
    ret_layout->shadow_sums_off = 2 * (uint64_t)MST_DEVICE_BYTES_MAX;
    ret_layout->ram_sums_off = ret_layout->shadow_sums_off + table_bytes;
    ret_layout->bytes = ret_layout->ram_sums_off + table_bytes;
    return 0;
}

int mst_delta_layout(uint32_t capacity, struct mst_delta_layout *ret_layout)
{
    if (capacity == 0 || capacity > PAGES_MAX)
        return -EINVAL;
    ret_layout->capacity = capacity;
    ret_layout->table_off = 0;
    ret_layout->data_off = page_up((uint64_t)capacity * sizeof(struct mst_delta_entry));
    ret_layout->bytes = ret_layout->data_off + (uint64_t)capacity * MST_PAGE_BYTES;
    return 0;
}

uint32_t mst_delta_capacity(uint64_t ram_bytes)
{
    uint64_t pages = ram_bytes / MST_PAGE_BYTES;
    uint64_t capacity = pages / 4;

    if (capacity < DELTA_PAGES_LEAST)
        capacity = DELTA_PAGES_LEAST;
    if (capacity > pages)
        capacity = pages;
    return capacity > PAGES_MAX ? (uint32_t)PAGES_MAX : (uint32_t)capacity;
}
