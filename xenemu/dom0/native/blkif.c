/*
 * The ring of a block device, and its ordinary requests: a read or write of 64-bit layout, by grants of version 1
 * that nobody else uses, to frames of plain RAM. block_lane.py has the same struct, and says more.
 * Whatever is not ordinary is left where it is. The model in Python takes it, and says what is wrong.
 */
#include <errno.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/uio.h>

#define MEMBER(type, name, array) type name array;
struct page_info {
#include "../../cpu/native/page_info.def"
};
#define MEMBER(type, name, array) type name array;
struct lane {
#include "block_lane.def"
};
#undef MEMBER

enum { /* blkif.h, ring.h, grant_table.h, mm.h */
    READ = 0, WRITE = 1, INDIRECT = 6, DIRECT_SEGMENTS = 11, REQ_PROD = 0, SLOTS = 64,
    REQ_EVENT = 4, RSP_PROD = 8, RSP_EVENT = 12, RESPONSE_SIZE = 16,
    SLOT_SIZE = 112, PERMIT_ACCESS = 1, READONLY = 4, WRITABLE_PAGE = 7,
};
enum { PAGE_SHIFT = 12, PAGE_SIZE = 4096, GRANTS_PER_PAGE = 512, SECTOR_SHIFT = 9, LAST_SECTOR = 7 };
enum found { NOTHING, ORDINARY, OTHER };

struct segment {
    uint32_t ref;
    uint8_t first, last;
    uint16_t pad;
};

static uint64_t load(const uint8_t *from, unsigned size)
{
    uint64_t value = 0;

    memcpy(&value, from, size);
    return value;
}

static void store32(uint8_t *to, uint32_t value)
{
    memcpy(to, &value, sizeof value);
}

static uint8_t *index_at(const struct lane *lane, uint32_t offset)
{
    return lane->ram + lane->ring[0] * PAGE_SIZE + offset;
}

/* How many bytes of the ring lie together from `offset` on, at most `size`, and where. */
static uint32_t piece_of_ring(const struct lane *lane, uint32_t offset, uint32_t size, uint8_t **at)
{
    uint32_t inside = offset % PAGE_SIZE;

    *at = lane->ram + lane->ring[offset / PAGE_SIZE] * PAGE_SIZE + inside;
    return size < PAGE_SIZE - inside ? size : PAGE_SIZE - inside;
}

static void read_ring(const struct lane *lane, uint32_t offset, uint8_t *to, uint32_t size)
{
    uint8_t *at;

    for (uint32_t n; size; to += n, offset += n, size -= n) {
        n = piece_of_ring(lane, offset, size, &at);
        memcpy(to, at, n);
    }
}

static void write_ring(const struct lane *lane, uint32_t offset, const uint8_t *from, uint32_t size)
{
    uint8_t *at;

    for (uint32_t n; size; from += n, offset += n, size -= n) {
        n = piece_of_ring(lane, offset, size, &at);
        memcpy(at, from, n);
    }
}

static uint32_t slot_at(const struct lane *lane, uint32_t index)
{
    return SLOTS + (index & (lane->slots - 1)) * SLOT_SIZE;
}

/* Whether a page of the ring has code: then somebody must be told of what is stored there. */
static bool ring_has_code(const struct lane *lane)
{
    for (uint32_t i = 0; i < lane->ring_pages; i++)
        if (lane->code[lane->ring[i]])
            return true;
    return false;
}

/* The frame of a grant for dom0, if it is ordinary: as hv/grant_copy.py, _ordinary_frames. */
static bool find_frame(const struct lane *lane, uint32_t ref, bool into, uint64_t *found)
{
    if (ref / GRANTS_PER_PAGE >= lane->grant_frame_count)
        return false;
    for (uint32_t i = 0; i < lane->active_count; i++)
        if (lane->active[i] == ref)
            return false;
    uint64_t table = lane->grant_frames[ref / GRANTS_PER_PAGE];
    uint64_t entry = load(lane->ram + table * PAGE_SIZE + ref % GRANTS_PER_PAGE * 8, 8);
    uint32_t flags = (uint32_t)entry & ~(into ? 0u : READONLY);
    uint64_t frame = entry >> 32;
    if (flags != PERMIT_ACCESS)
        return false;
    if (lane->p2m) {
        if (frame >= lane->gfns || !lane->p2m[frame])
            return false;
        frame = lane->p2m[frame] - 1;
    }
    if (frame >= lane->frames)
        return false;
    const struct page_info *page = (const struct page_info *)lane->page_info + frame;
    if (page->owner != lane->domid || page->type != WRITABLE_PAGE || (into && lane->code[frame]))
        return false;
    *found = frame;
    return true;
}

static bool find_pieces(struct lane *lane, const uint8_t *segments, uint32_t count)
{
    bool into = lane->operation == READ;
    struct iovec *piece = (struct iovec *)lane->pieces - 1;
    const uint8_t *end = NULL;

    lane->size = 0;
    for (uint32_t i = 0; i < count; i++) {
        struct segment segment;
        uint64_t frame;
        memcpy(&segment, segments + i * sizeof segment, sizeof segment);
        if (segment.last > LAST_SECTOR || segment.first > segment.last ||
            !find_frame(lane, segment.ref, into, &frame))
            return false;
        uint8_t *start = lane->ram + frame * PAGE_SIZE + (segment.first << SECTOR_SHIFT);
        size_t size = (size_t)(segment.last - segment.first + 1) << SECTOR_SHIFT;
        if (start == end)
            piece->iov_len += size;
        else
            *++piece = (struct iovec){start, size};
        end = start + size;
        lane->size += size;
    }
    lane->piece_count = (uint32_t)(piece + 1 - (struct iovec *)lane->pieces);
    return true;
}

/*
 * Look at the next request, and take it if it is ordinary. If there is none, and `idle`, ask for an
 * event at the next one.
 */
int blkif_next(struct lane *lane, int idle)
{
    uint8_t slot[SLOT_SIZE];
    const uint8_t *segments = slot + 24;
    uint32_t prod = (uint32_t)load(index_at(lane, REQ_PROD), 4);
    uint32_t count;
    uint64_t sector, frame;

    if (prod - lane->rsp_prod > lane->slots || ring_has_code(lane))
        return OTHER;
    if (prod - lane->rsp_prod <= lane->req_cons - lane->rsp_prod) {
        if (idle)
            store32(index_at(lane, REQ_EVENT), lane->req_cons + 1);
        return NOTHING;
    }
    read_ring(lane, slot_at(lane, lane->req_cons), slot, SLOT_SIZE);
    lane->operation = slot[0];
    count = slot[1];
    if (lane->operation == INDIRECT) {
        lane->operation = slot[1];
        count = (uint32_t)load(slot + 2, 2);
        if (count > lane->most_segments || !find_frame(lane, load(slot + 28, 4), false, &frame))
            return OTHER;
        segments = lane->ram + frame * PAGE_SIZE;
    } else if (count > DIRECT_SEGMENTS) {
        return OTHER;
    }
    if (!count || lane->operation > (lane->read_only ? READ : WRITE))
        return OTHER;
    lane->id = load(slot + 8, 8);
    sector = load(slot + 16, 8);
    if (!find_pieces(lane, segments, count) || lane->size > lane->disk_size ||
        sector > (lane->disk_size - lane->size) >> SECTOR_SHIFT)
        return OTHER;
    lane->offset = sector << SECTOR_SHIFT;
    return ORDINARY;
}

/* Move the bytes of the request that was taken; how many were moved, or -errno. */
int64_t blkif_move(const struct lane *lane, int descriptor)
{
    const struct iovec *pieces = (const struct iovec *)lane->pieces;
    int count = (int)lane->piece_count;
    int64_t moved = lane->operation == READ ? preadv(descriptor, pieces, count, lane->offset)
                                            : pwritev(descriptor, pieces, count, lane->offset);

    return moved < 0 ? -errno : moved;
}

/* Put the response to the request that was taken. */
void blkif_answer(const struct lane *lane, int status)
{
    uint8_t response[RESPONSE_SIZE] = {0};
    int16_t value = (int16_t)status;

    memcpy(response, &lane->id, sizeof lane->id);
    response[8] = (uint8_t)lane->operation;
    memcpy(response + 10, &value, sizeof value);
    write_ring(lane, slot_at(lane, lane->rsp_prod), response, sizeof response);
}

/* Show the frontend the responses before `prod`: whether it wants an event, or -1. */
int blkif_push(const struct lane *lane, uint32_t prod)
{
    if (ring_has_code(lane))
        return -1;
    uint32_t old = (uint32_t)load(index_at(lane, RSP_PROD), 4);
    store32(index_at(lane, RSP_PROD), prod);
    uint32_t wanted = (uint32_t)load(index_at(lane, RSP_EVENT), 4);
    return prod - wanted < prod - old;
}

struct row {
    const char *name, *type;
    uint32_t offset, count;
};

#define MEMBER(type, name, array) \
    {#name, #type, offsetof(struct lane, name), \
     sizeof(((struct lane *)0)->name) / sizeof(type)},
static const struct row rows[] = {
#include "block_lane.def"
    {NULL, NULL, sizeof(struct lane), 0},
};
#undef MEMBER

/* The struct's fields, for block_lane.py, which makes the same struct. */
const struct row *blkif_rows(void)
{
    return rows;
}
