/*
 * What the files of the lane share. lane.c has its gate, pagetables.c and calls.c the hypercalls,
 * bounce.c and bounce32.c the ways into the guest's kernel and out of it, segments.c what these load,
 * privileged.c and stores.c the instructions that the hypervisor emulates.
 */
#ifndef LANE_H
#define LANE_H

#include "shim.h"

#pragma GCC visibility push(hidden)

enum { FLAT_CS32 = 0xe023, FLAT_CS64 = 0xe033, FLAT_SS64 = 0xe02b };
enum { PGT_L1 = 1, PGT_L2, PGT_L3, PGT_SEG_DESC = 5, PGT_WRITABLE = 7 };
enum { PGC_ALLOCATED = 1, PGC_XEN_HEAP = 2, PGT_PINNED = 4 };
#define COMPAT_VIRT_START 0xf5800000u /* where Xen begins for a 32-bit guest */
enum { RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8, R9, R10, R11 };
enum { RPL = 3, KERNEL_RING32 = 1 };
enum { UPCALL_PENDING = 0, UPCALL_MASK = 1 }; /* in vcpu_info */
enum { EFLAGS_FIXED = 2, EFLAGS_IOPL = 3 << 12, EFLAGS_AC = 1 << 18, EFLAGS_ALL = 0x3f7fd7 };
enum { SEGMENT_S = 1 << 12 };

static inline struct page_info *page(uint64_t mfn)
{
    return &G.physical.info[mfn];
}

/* Whether a frame is the domain's own, and in use. */
static inline bool is_own(uint64_t mfn)
{
    return mfn < G.physical.frames && page(mfn)->owner == G.lane.domid &&
           page(mfn)->flags & PGC_ALLOCATED;
}

static inline uint64_t *word(uint64_t maddr)
{
    return (uint64_t *)(G.physical.ram + (maddr & ~7ull));
}

static inline uint64_t *lane_regs(void)
{
    return &FIELD(G.env, ENV_REGS, uint64_t);
}

static inline void jump(uint64_t rip)
{
    FIELD(G.env, ENV_EIP, uint64_t) = rip;
    forget_branch();
}

static inline void set_rflags(uint64_t rflags)
{
    G.vcpu.rflags = rflags;
    G.vcpu.rflags_dirty = 1;
}

/* Whether the hypervisor would have an upcall to deliver, with this mask. */
static inline bool is_upcall_due(bool masked)
{
    return G.lane.info[UPCALL_PENDING] && !masked;
}

static inline uint64_t lane_now(void)
{
    return G.clock.end - G.clock.left + G.clock.skipped_ns;
}

/* notes.c */
void note_done(const struct note *done);

/* Note what was done, if somebody watches. */
#define NOTE(...)                                                                                \
    do {                                                                                         \
        if (!LIKELY(!G.notes.room))                                                              \
            note_done(&(struct note){.vcpu_id = G.lane.vcpu_id, __VA_ARGS__});                   \
    } while (0)

/* lane.c */
bool in_guest_range(uint64_t vaddr);
uint64_t *l1_entry(uint64_t root, uint64_t vaddr);
uint64_t place32(uint64_t vaddr, bool writing);
bool copy_in(void *to, uint64_t vaddr, size_t size);
void pass(enum exit_kind kind);
void log_call(uint32_t number, const uint64_t *args, unsigned nr_args, int64_t result);
void take(int64_t result);
void note_typed(uint64_t mfn);
bool may_go(void);

/* pagetables.c */
void flush_tlb(void);
bool is_plain_l1(uint64_t maddr, uint64_t entry);
bool set_l1_entry(uint64_t maddr, uint64_t entry, bool preserve_ad);
bool call_mmu_update(const uint64_t *args);
bool call_update_va_mapping(const uint64_t *args);
bool call_mmuext_op(const uint64_t *args);

/* calls.c */
bool call_stack_switch(const uint64_t *args);
bool call_fpu_taskswitch(const uint64_t *args);
bool call_update_descriptor(const uint64_t *args);
bool call_set_segment_base(const uint64_t *args);
bool call_xen_version(const uint64_t *args);
bool call_vcpu_op(const uint64_t *args);

/* bells.c */
enum { NR_EVENT_CHANNEL_OP = 32 };
bool call_event_channel_op(const uint64_t *args);

/* segments.c */
struct segment { uint32_t selector, limit, flags; uint64_t base; };
char *segment_register(int which);
uint32_t selector_of(int which);
uint32_t dpl(uint32_t flags);
void load(int which, const struct segment *from);
struct segment segment_of(uint32_t selector, uint64_t descriptor);
bool find_descriptor(uint32_t selector, struct segment *found);

/* bounce.c */
bool iret64(void);
bool syscall_from_user(void);

/* bounce32.c */
void see_mode32(void);
bool page_fault32(uint64_t vaddr, uint32_t error);
bool int80_32(void);
bool iret32(void);

/* privileged.c */
enum { LONGEST = 15 }; /* bytes of an instruction */
bool fetch(uint8_t code[LONGEST]);
void complete(unsigned length);
bool privileged_instruction(void);

/* stores.c */
bool store_to_table(uint64_t vaddr, uint64_t maddr);

#pragma GCC visibility pop

#endif
