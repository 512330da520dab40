/*
 * The lane's small hypercalls: those of a context switch, and those that a kernel makes very often.
 *
 * The reference is hypercalls/pv_misc.py, descriptors.py, xen_version.py and vcpu_op.py. As in
 * lane.c, only what is ordinary is done here.
 */
#include "lane.h"

enum { ENOENT = 2 };
enum { XENVER_VERSION = 0, VCPUOP_IS_UP = 3 };
enum { BASE_FS, BASE_GS_USER, BASE_GS_KERNEL, GS_USER_SELECTOR };

static uint32_t kernel_ring(void)
{
    return G.lane.width == 8 ? 3 : KERNEL_RING32;
}

/* What Xen keeps for later: a selector that is no more privileged than the kernel. */
bool call_stack_switch(const uint64_t *args)
{
    uint32_t selector = args[0] & 0xffff, ring = kernel_ring();

    take(0);
    G.lane.vcpu->kernel_ss = (selector & RPL) >= ring ? selector : (selector & ~RPL) | ring;
    G.lane.vcpu->kernel_sp = args[1];
    return true;
}

bool call_fpu_taskswitch(const uint64_t *args)
{
    uint64_t *cr0 = &FIELD(G.env, ENV_CR0, uint64_t);
    uint32_t *hflags = &FIELD(G.env, ENV_HFLAGS, uint32_t);
    bool set = args[0];

    take(0);
    G.lane.vcpu->task_switched = set;
    *cr0 = (*cr0 & ~(uint64_t)CR0_TS) | (set ? CR0_TS : 0);
    *hflags = (*hflags & ~(uint32_t)HF_TS) | (set ? HF_TS : 0);
    return true;
}

/* A descriptor that is not present, or of code or data, into a page that stays what it is. */
bool call_update_descriptor(const uint64_t *args)
{
    uint64_t mfn = args[0] >> 12, descriptor = args[1];
    struct segment segment = segment_of(0, descriptor);

    if (args[0] & 7 || !is_own(mfn) || G.physical.code[mfn] ||
        (page(mfn)->type != PGT_SEG_DESC && page(mfn)->type != PGT_WRITABLE))
        return false;
    if (segment.flags & SEGMENT_P) {
        uint32_t ring = kernel_ring();
        bool narrow = G.lane.width == 4;
        if (!(segment.flags & SEGMENT_S) || (narrow && segment.flags & SEGMENT_L))
            return false;
        if (narrow && !segment.base && segment.limit >= COMPAT_VIRT_START)
            descriptor |= 0xf00000000ffffull; /* the limit: up to the end */
        if (dpl(segment.flags) < ring)
            descriptor = (descriptor & ~(3ull << 45)) | (uint64_t)ring << 45;
    }
    take(0);
    *word(args[0]) = descriptor;
    return true;
}

static uint64_t *base_of(int which)
{
    return &FIELD(segment_register(which), SEG_BASE, uint64_t);
}

static void set_null_user_gs(uint32_t selector)
{
    char *gs = segment_register(GS);

    FIELD(gs, 0, uint32_t) = selector;
    FIELD(gs, SEG_LIMIT, uint32_t) = 0;
    FIELD(gs, SEG_FLAGS, uint32_t) = 0;
    G.lane.vcpu->inactive_gs = 0;
}

/* Of a 64-bit guest. */
bool call_set_segment_base(const uint64_t *args)
{
    uint64_t which = args[0], base = args[1];

    if (G.lane.width != 8 || which > GS_USER_SELECTOR ||
        (which == GS_USER_SELECTOR ? base & 0xffff & ~RPL : !canonical(base)))
        return false;
    take(0);
    if (which == BASE_FS)
        *base_of(FS) = base;
    else if (which == BASE_GS_USER)
        G.lane.vcpu->inactive_gs = base;
    else if (which == BASE_GS_KERNEL)
        *base_of(GS) = base;
    else
        set_null_user_gs(base & RPL);
    return true;
}

bool call_xen_version(const uint64_t *args)
{
    if (args[0] != XENVER_VERSION)
        return false;
    take(G.lane.xen_version);
    return true;
}

/* Whether a vcpu is up that is not there: so a kernel finds how many there are, thousands of times. */
bool call_vcpu_op(const uint64_t *args)
{
    if (args[0] != VCPUOP_IS_UP || args[1] < G.lane.nr_vcpus)
        return false;
    take(-ENOENT);
    return true;
}
