/*
 * The lane's ways into a 64-bit PV guest's kernel and out of it: page faults and system calls that
 * are the guest's own, and HYPERVISOR_iret.
 *
 * The reference is pv/traps.py and pv/exits.py. As in lane.c, only what is ordinary is done here,
 * and all else is left as it was.
 */
#include <string.h>

#include "lane.h"

enum { CR2_64 = 16 }; /* in vcpu_info */
enum { PFEC_P = 1, PFEC_W = 2, PFEC_RSVD = 8, PFEC_I = 16 };
enum { EFLAGS_DF = 1 << 10, VGCF_IN_SYSCALL = 1 << 8 };
enum { RING3 = 3, GOOD = SEGMENT_S | SEGMENT_P };

#define XEN_START 0xffff800000000000ull
#define XEN_END 0xffff880000000000ull
#define STACK_REACH 64 /* of the longest frame */

/* What bounce() needs to know, once it is clear that it is possible. */
struct frame {
    uint64_t words[8], rsp;
    unsigned count;
    uint8_t *first, *second; /* where it lies: the second part, if it crosses a page */
    size_t first_size;
    bool from_user;
};

static uint64_t *cr3(void)
{
    return &FIELD(G.env, ENV_CR3, uint64_t);
}

static void toggle_guest_mode(void)
{
    struct pv_vcpu *vcpu = G.lane.vcpu;
    uint64_t *gs = &FIELD(segment_register(GS), SEG_BASE, uint64_t);
    uint64_t base = *gs;

    vcpu->kernel_mode = !vcpu->kernel_mode;
    *gs = vcpu->inactive_gs;
    vcpu->inactive_gs = base;
    *cr3() = (vcpu->kernel_mode ? vcpu->kernel_root : vcpu->user_root) << 12;
    G.exit.flush |= FLUSH_OWN;
}

/* ---- segments ---- */

static const struct segment flat_code = {FLAT_CS64, 0xffffffff, 0x00a0fb00, 0};
static const struct segment flat_stack = {FLAT_SS64, 0xffffffff, 0x00c0f300, 0};

/*
 * What a selector of ring 3 names, if that is a segment of that ring that has all `needed` bits, and
 * none of `refused`.
 */
static bool find_segment(uint32_t selector, const struct segment *flat, uint32_t needed,
                         uint32_t refused, struct segment *found)
{
    if (selector == flat->selector) {
        *found = *flat;
        return true;
    }
    return find_descriptor(selector, found) && (found->flags & needed) == needed &&
           !(found->flags & refused) && dpl(found->flags) == RING3;
}

/* ---- into the kernel ---- */

/* Where the kernel's stack takes bytes; NULL where it does not, or where code has run. */
static uint8_t *stack_at(uint64_t vaddr)
{
    uint64_t maddr = in_guest_range(vaddr) ? shim_translate(vaddr, true) : NOWHERE;

    return maddr == NOWHERE || G.physical.code[maddr >> 12] ? NULL : G.physical.ram + maddr;
}

/*
 * Prepare to enter the kernel with such an error code, or without one if it is negative. False if
 * the frame cannot be written.
 */
static bool prepare(struct frame *frame, int64_t error, uint64_t rcx, uint64_t r11)
{
    const struct pv_vcpu *vcpu = G.lane.vcpu;
    uint64_t rsp = lane_regs()[RSP], rflags = U.read_eflags(G.env), own = *cr3();
    bool mask = G.lane.info[UPCALL_MASK], from_user = !vcpu->kernel_mode;
    uint64_t cs = (from_user ? selector_of(CS) : selector_of(CS) & ~RPL) |
                  (uint64_t)G.lane.info[UPCALL_MASK] << 32;
    uint64_t seen = (rflags & ~(uint64_t)(EFLAGS_IF | EFLAGS_IOPL)) | (mask ? 0 : EFLAGS_IF);
    unsigned n = 0;

    if (!G.lane.plain_iopl)
        return false;
    frame->words[n++] = rcx;
    frame->words[n++] = r11;
    if (error >= 0)
        frame->words[n++] = error;
    frame->words[n++] = FIELD(G.env, ENV_EIP, uint64_t);
    frame->words[n++] = cs;
    frame->words[n++] = seen;
    frame->words[n++] = rsp;
    frame->words[n++] = selector_of(SS);
    frame->count = n;
    frame->from_user = from_user;
    uint64_t top = (from_user ? vcpu->kernel_sp : rsp) & -16ull;
    if (top > XEN_START && top < XEN_END + STACK_REACH)
        return false;
    frame->rsp = top - 8 * n;
    uint64_t room = 0x1000 - (frame->rsp & 0xfff);
    frame->first_size = room < 8 * n ? room : 8 * n;
    if (from_user)
        *cr3() = vcpu->kernel_root << 12; /* the tables through which the frame is written */
    frame->first = stack_at(frame->rsp);
    frame->second = frame->first && room < 8 * n ? stack_at(frame->rsp + room) : frame->first;
    *cr3() = own;
    return frame->first && frame->second;
}

static void bounce(const struct frame *frame, uint64_t handler, bool masks)
{
    uint64_t *regs = lane_regs(), rflags = U.read_eflags(G.env);
    size_t size = 8 * frame->count - frame->first_size;

    if (frame->from_user)
        toggle_guest_mode();
    memcpy(frame->first, frame->words, frame->first_size);
    if (size)
        memcpy(frame->second, (char *)frame->words + frame->first_size, size);
    rflags &= ~(uint64_t)(EFLAGS_TF | EFLAGS_VM | EFLAGS_RF | EFLAGS_NT | EFLAGS_AC);
    set_rflags(rflags);
    jump(handler);
    regs[RSP] = frame->rsp;
    regs[RCX] = handler;
    regs[R11] = rflags;
    if (selector_of(SS) != FLAT_SS64)
        load(SS, &flat_stack);
    if (selector_of(CS) != FLAT_CS64)
        load(CS, &flat_code);
    if (masks)
        G.lane.info[UPCALL_MASK] |= 1;
}

/*
 * The machine address of an L1 table's byte, to which a kernel has stored that may only read it; or
 * NOWHERE, if it is none.
 */
static uint64_t byte_of_table(uint64_t vaddr)
{
    uint64_t *entry;

    if (!G.lane.vcpu->kernel_mode || !G.lane.writable_tables)
        return NOWHERE;
    entry = l1_entry(G.lane.vcpu->kernel_root, vaddr);
    if (!entry || (*entry & (PTE_P | PTE_RW)) != PTE_P)
        return NOWHERE;
    uint64_t table = (*entry & PTE_ADDRESS) >> 12;
    bool is_table = table < G.physical.frames && page(table)->owner == G.lane.domid &&
                    page(table)->type == PGT_L1;
    return is_table ? table << 12 | (vaddr & 0xfff) : NOWHERE;
}

static bool page_fault64(uint64_t vaddr, uint32_t error)
{
    uint64_t cr2_at = (uint64_t)(G.lane.info + CR2_64 - G.physical.ram);
    struct frame frame;

    if (!G.lane.pf_handler || G.physical.code[cr2_at >> 12])
        return false;
    if (!prepare(&frame, error, lane_regs()[RCX], lane_regs()[R11]))
        return false;
    pass(EXIT_EXCEPTION);
    G.lane.vcpu->cr2 = vaddr;
    memcpy(G.lane.info + CR2_64, &vaddr, sizeof vaddr);
    NOTE(.what = NOTED_PAGE_FAULT, .at_ns = lane_now(), .args = {vaddr, error},
         .user = frame.from_user);
    bounce(&frame, G.lane.pf_handler, G.lane.pf_masks);
    return true;
}

static bool page_fault(void)
{
    uint64_t vaddr = FIELD(G.env, ENV_CR2, uint64_t);
    uint32_t error = FIELD(G.env, ENV_EXCEPTION_ERROR, uint32_t);

    if (!in_guest_range(vaddr))
        return false;
    if ((error & (PFEC_P | PFEC_W | PFEC_RSVD | PFEC_I)) == (PFEC_P | PFEC_W)) {
        uint64_t maddr = byte_of_table(vaddr);
        if (maddr != NOWHERE)
            return store_to_table(vaddr, maddr);
    }
    error &= ~(uint32_t)PFEC_USER;
    if (!G.lane.vcpu->kernel_mode)
        error |= PFEC_USER;
    return (G.lane.width == 8 ? page_fault64 : page_fault32)(vaddr, error);
}

bool syscall_from_user(void)
{
    uint64_t *regs = lane_regs(), rip = FIELD(G.env, ENV_EIP, uint64_t);
    struct frame frame;

    if (!G.lane.syscall_handler ||
        is_upcall_due(G.lane.info[UPCALL_MASK] || G.lane.syscall_masks) ||
        !prepare(&frame, -1, rip, U.read_eflags(G.env)))
        return false;
    pass(EXIT_SYSCALL);
    NOTE(.what = NOTED_SYSCALL, .at_ns = lane_now(), .user = true);
    bounce(&frame, G.lane.syscall_handler, G.lane.syscall_masks);
    set_rflags(G.vcpu.rflags & ~(uint64_t)EFLAGS_DF);
    regs[R11] = G.vcpu.rflags;
    return true;
}

/* ---- out of it ---- */

bool iret64(void)
{
    struct { uint64_t rax, r11, rcx, flags, rip, cs, rflags, rsp, ss; } frame;
    uint64_t *regs = lane_regs();
    struct segment code, stack;

    if (!G.lane.plain_iopl || !copy_in(&frame, regs[RSP], sizeof frame))
        return false;
    bool to_user = (frame.cs & RPL) == RPL, in_syscall = frame.flags & VGCF_IN_SYSCALL;
    bool masked = !(frame.rflags & EFLAGS_IF);
    uint64_t rflags = (frame.rflags & EFLAGS_ALL & ~(uint64_t)(EFLAGS_IOPL | EFLAGS_VM)) |
                      EFLAGS_IF | EFLAGS_FIXED;
    if ((to_user && !G.lane.vcpu->user_root) || rflags & EFLAGS_TF || !canonical(frame.rip) ||
        is_upcall_due(masked))
        return false;
    uint32_t cs = (frame.cs & 0xffff) | RPL, ss = (frame.ss & 0xffff) | RPL;
    if (in_syscall && cs == FLAT_CS32)
        return false;
    if (in_syscall) { /* SYSRET has selectors of its own */
        cs = FLAT_CS64;
        ss = FLAT_SS64;
    }
    if (!find_segment(cs, &flat_code, GOOD | SEGMENT_CODE | SEGMENT_L, SEGMENT_B, &code) ||
        !find_segment(ss, &flat_stack, GOOD | SEGMENT_RW, SEGMENT_CODE, &stack))
        return false;
    pass(EXIT_SYSCALL);
    NOTE(.what = NOTED_IRET, .at_ns = lane_now(), .user = to_user);
    if (to_user)
        toggle_guest_mode();
    G.lane.info[UPCALL_MASK] = masked;
    regs[RAX] = frame.rax;
    regs[RSP] = frame.rsp;
    regs[RCX] = in_syscall ? frame.rip : frame.rcx;
    regs[R11] = in_syscall ? rflags : frame.r11;
    set_rflags(in_syscall ? rflags & ~(uint64_t)EFLAGS_RF : rflags);
    load(SS, &stack);
    load(CS, &code);
    jump(frame.rip);
    return true;
}

/* Do what an exception of a PV guest's leads to, if that is ordinary; whether it was done. */
bool lane_takes_exception(uint32_t vector)
{
    if ((vector != PF && vector != GP) || !may_go())
        return false;
    if (G.lane.width == 4)
        see_mode32();
    if (!(vector == PF ? page_fault() : privileged_instruction()))
        return false;
    apply_requests();
    return true;
}
