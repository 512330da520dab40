/*
 * The lane's ways into a 32-bit PV guest's kernel, which is in ring 1, and out of it: page faults
 * and int 0x80 that are the guest's own, and HYPERVISOR_iret.
 *
 * The reference is pv/bounce32.py and pv/exits.py. As in lane.c, only what is ordinary is done here.
 */
#include <string.h>

#include "lane.h"

enum { CR2_32 = 8 }; /* in vcpu_info */
enum { OUTER_RINGS = 2 }; /* a selector with this bit is of ring 2 or 3 */
enum { CONFORMING = 1 << 10, NO_ERROR = -1 };

/* What enter() needs to know, once it is clear that it is possible. */
struct entry {
    uint32_t words[6], esp;
    unsigned count;
    struct segment code, stack;
    uint8_t *first, *second; /* where the words lie: the second part, if they cross a page */
    size_t first_size;
};

/* A vcpu's code segment shows which of its two modes it is in. */
void see_mode32(void)
{
    G.lane.vcpu->kernel_mode = (selector_of(CS) & RPL) == KERNEL_RING32 &&
                               !(U.read_eflags(G.env) & EFLAGS_VM);
}

/* ---- segments, as an IRET at CPL 0 loads them ---- */

static bool find_code(uint32_t selector, uint64_t rip, struct segment *found)
{
    uint32_t ring = selector & RPL;

    if (!find_descriptor(selector, found))
        return false;
    uint32_t flags = found->flags;
    found->flags = (flags & ~(3u << 13)) | ring << 13; /* the engine's CPL */
    return flags & SEGMENT_S && flags & SEGMENT_CODE && flags & SEGMENT_P &&
           (flags & CONFORMING ? dpl(flags) <= ring : dpl(flags) == ring) && rip <= found->limit;
}

static bool find_stack(uint32_t selector, uint32_t ring, struct segment *found)
{
    return find_descriptor(selector, found) && found->flags & SEGMENT_S &&
           (found->flags & (SEGMENT_CODE | SEGMENT_RW)) == SEGMENT_RW && found->flags & SEGMENT_P &&
           (selector & RPL) == ring && dpl(found->flags) == ring;
}

/* Null the data segments that an outer ring may not have. */
static void drop_inner_data_segments(uint32_t ring)
{
    static const int data[] = {DS, ES, FS, GS};
    static const struct segment null = {0};

    for (unsigned n = 0; n < sizeof data / sizeof *data; n++) {
        uint32_t flags = FIELD(segment_register(data[n]), SEG_FLAGS, uint32_t);
        bool conforming = flags & SEGMENT_CODE && flags & CONFORMING;
        if (selector_of(data[n]) & 0xfffc && !conforming && dpl(flags) < ring)
            load(data[n], &null);
    }
}

static void resume(const struct segment *code, const struct segment *stack)
{
    uint32_t ring = code->selector & RPL;

    load(SS, stack);
    load(CS, code);
    drop_inner_data_segments(ring);
    G.lane.vcpu->kernel_mode = ring == KERNEL_RING32;
}

/* ---- into the kernel ---- */

/* Where the kernel's stack takes bytes; NULL where it does not, or where code has run. */
static uint8_t *stack_at(uint32_t vaddr)
{
    uint64_t maddr = place32(vaddr, true);

    return maddr == NOWHERE || G.physical.code[maddr >> 12] ? NULL : G.physical.ram + maddr;
}

/* Prepare to enter the kernel at `cs`:`handler`; false if the frame cannot be written. */
static bool prepare(struct entry *entry, uint32_t cs, uint32_t handler, int64_t error)
{
    const struct pv_vcpu *vcpu = G.lane.vcpu;
    uint32_t from = selector_of(CS), mask = G.lane.info[UPCALL_MASK];
    uint64_t seen = (U.read_eflags(G.env) & ~(uint64_t)(EFLAGS_IF | EFLAGS_IOPL)) |
                    (mask ? 0 : EFLAGS_IF);
    uint32_t esp = lane_regs()[RSP], selector = selector_of(SS);
    uint64_t base = FIELD(segment_register(SS), SEG_BASE, uint64_t);
    unsigned n = 0;

    if (!G.lane.plain_iopl || !find_code(cs, handler, &entry->code))
        return false;
    if (error != NO_ERROR)
        entry->words[n++] = error;
    entry->words[n++] = FIELD(G.env, ENV_EIP, uint64_t);
    entry->words[n++] = from | mask << 16;
    entry->words[n++] = seen;
    if (from & OUTER_RINGS) {
        entry->words[n++] = esp;
        entry->words[n++] = selector;
        esp = vcpu->kernel_sp;
        selector = vcpu->kernel_ss;
    }
    if (!find_stack(selector, cs & RPL, &entry->stack))
        return false;
    if (from & OUTER_RINGS)
        base = entry->stack.base;
    entry->count = n;
    entry->esp = esp - 4 * n;
    uint32_t at = base + entry->esp, room = 0x1000 - (at & 0xfff);
    entry->first_size = room < 4 * n ? room : 4 * n;
    entry->first = stack_at(at);
    entry->second = entry->first && room < 4 * n ? stack_at(at + room) : entry->first;
    return entry->first && entry->second;
}

static void enter(const struct entry *entry, uint32_t handler, bool masks)
{
    size_t rest = 4 * entry->count - entry->first_size;

    memcpy(entry->first, entry->words, entry->first_size);
    if (rest)
        memcpy(entry->second, (const char *)entry->words + entry->first_size, rest);
    set_rflags(U.read_eflags(G.env) &
               ~(uint64_t)(EFLAGS_TF | EFLAGS_VM | EFLAGS_RF | EFLAGS_NT));
    jump(handler);
    lane_regs()[RSP] = entry->esp;
    if (masks)
        G.lane.info[UPCALL_MASK] |= 1;
    resume(&entry->code, &entry->stack);
}

bool page_fault32(uint64_t vaddr, uint32_t error)
{
    uint64_t cr2_at = (uint64_t)(G.lane.info + CR2_32 - G.physical.ram);
    struct entry entry;

    if (G.physical.code[cr2_at >> 12])
        return false;
    if (!prepare(&entry, G.lane.pf_cs, G.lane.pf_handler, error))
        return false;
    pass(EXIT_EXCEPTION);
    G.lane.vcpu->cr2 = vaddr;
    memcpy(G.lane.info + CR2_32, &vaddr, sizeof(uint32_t));
    NOTE(.what = NOTED_PAGE_FAULT, .at_ns = lane_now(), .args = {vaddr, error},
         .user = !G.lane.vcpu->kernel_mode);
    enter(&entry, G.lane.pf_handler, G.lane.pf_masks);
    return true;
}

/* A system call, by a gate that anybody may use. */
bool int80_32(void)
{
    struct entry entry;

    if (!prepare(&entry, G.lane.int80_cs, G.lane.int80_handler, NO_ERROR))
        return false;
    pass(EXIT_SOFT_INT);
    NOTE(.what = NOTED_INT80, .at_ns = lane_now(), .user = !G.lane.vcpu->kernel_mode);
    enter(&entry, G.lane.int80_handler, G.lane.int80_masks);
    return true;
}

/* ---- out of it ---- */

bool iret32(void)
{
    struct { uint32_t eax, eip, cs, eflags; } frame;
    struct { uint32_t esp, ss; } outer;
    struct segment code, stack;
    uint64_t *regs = lane_regs();
    uint32_t at = regs[RSP]; /* linear */

    if (!G.lane.plain_iopl || !copy_in(&frame, at, sizeof frame))
        return false;
    uint32_t cs = frame.cs & 0xffff;
    bool masked = !(frame.eflags & EFLAGS_IF);
    if (frame.eflags & (EFLAGS_VM | EFLAGS_TF) || !(cs & RPL) || is_upcall_due(masked))
        return false;
    outer.esp = at + sizeof frame;
    outer.ss = selector_of(SS);
    if (cs & OUTER_RINGS && !copy_in(&outer, outer.esp, sizeof outer))
        return false;
    if (!find_code(cs, frame.eip, &code) || !find_stack(outer.ss & 0xffff, cs & RPL, &stack))
        return false;
    pass(EXIT_SOFT_INT);
    NOTE(.what = NOTED_IRET, .at_ns = lane_now(), .user = (cs & RPL) != KERNEL_RING32);
    G.lane.info[UPCALL_MASK] = masked;
    regs[RAX] = frame.eax;
    regs[RSP] = outer.esp;
    set_rflags((frame.eflags & EFLAGS_ALL & ~(uint64_t)EFLAGS_IOPL) | EFLAGS_IF | EFLAGS_FIXED);
    jump(frame.eip);
    resume(&code, &stack);
    return true;
}
