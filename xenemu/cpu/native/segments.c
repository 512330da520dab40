/*
 * The segments that the lane loads: those that the guest's GDT has in its first page, and Xen's own.
 *
 * The reference is pv/descriptors.py. Intel SDM volume 3, "Segment Descriptors".
 */
#include "lane.h"

enum { TABLE_INDICATOR = 4, PER_PAGE = 512, XENS_FIRST = 14 * PER_PAGE };
enum { ACCESSED = 1 << 8, GRANULARITY = 1 << 23, DPL_SHIFT = 13 }; /* of a descriptor's high word */

char *segment_register(int which)
{
    return (char *)G.env + ENV_SEGS + SEG_SIZE * which;
}

uint32_t selector_of(int which)
{
    return FIELD(segment_register(which), 0, uint32_t);
}

uint32_t dpl(uint32_t flags)
{
    return flags >> DPL_SHIFT & 3;
}

void load(int which, const struct segment *from)
{
    char *segment = segment_register(which);

    FIELD(segment, 0, uint32_t) = from->selector;
    FIELD(segment, SEG_BASE, uint64_t) = from->base;
    FIELD(segment, SEG_LIMIT, uint32_t) = from->limit;
    FIELD(segment, SEG_FLAGS, uint32_t) = from->flags;
    shim_update_mode();
}

/* What a descriptor of code or data says. */
struct segment segment_of(uint32_t selector, uint64_t descriptor)
{
    uint32_t high = descriptor >> 32, limit = (descriptor & 0xffff) | (high & 0xf0000);

    return (struct segment){
        .selector = selector,
        .limit = high & GRANULARITY ? limit << 12 | 0xfff : limit,
        .flags = high & 0x00f0ff00,
        .base = (descriptor >> 16 & 0xffffff) | (high & 0xff000000),
    };
}

/* What a selector names, as it would be loaded; false for the LDT, and for most of the GDT. */
bool find_descriptor(uint32_t selector, struct segment *found)
{
    uint64_t index = selector >> 3, frame = G.lane.gdt_frame;

    if (index >= XENS_FIRST && index < XENS_FIRST + PER_PAGE)
        frame = G.lane.xen_gdt;
    else if (index >= PER_PAGE)
        return false;
    if (!index || selector & TABLE_INDICATOR || !frame)
        return false;
    *found = segment_of(selector, *word(frame << 12 | index % PER_PAGE << 3));
    found->flags |= ACCESSED;
    return true;
}
