/*
 * The lane: ordinary work for a PV guest, which C does without Python. Its hypercalls are here.
 *
 * The lane only accepts. It does what the model would do if that is plainly allowed: it changes L1
 * entries that map the domain's own pages, and switches to page tables that are pinned. Whatever
 * is not so, it leaves to the model as it found it, and the model does it, or says why not. For
 * example, an entry that maps a foreign frame is left. So there is no refusal here.
 *
 * Before anything is changed, all of a call's requests have been looked at. No request of a call
 * makes another of its requests less ordinary: no type of a frame changes, and no frame goes away.
 *
 * The reference is hypercalls/mmu_update.py, mmuext_op.py, update_va_mapping.py, and
 * hv/pagetype.py (mod_l1_entry). A test compares both.
 */
#include <string.h>

#include "lane.h"

enum { NR_MMU_UPDATE = 1, NR_UPDATE_VA_MAPPING = 14, NR_IRET = 23, NR_MMUEXT_OP = 26 };
enum { DOMID_SELF = 0x7ff0 };
enum { PGC_ALLOCATED = 1, PGT_PINNED = 4 };
enum { NORMAL_UPDATE = 0, PRESERVE_AD = 2, COMMAND = 7 };
enum { NEW_BASEPTR = 5, TLB_FLUSH_LOCAL = 6, INVLPG_LOCAL = 7, NEW_USER_BASEPTR = 15 };
enum { UVMF_NONE, UVMF_TLB_FLUSH, UVMF_INVLPG, UVMF_ALL = 4 };
enum { MOST_REQUESTS = 512, MOST_OPERATIONS = 2, M2P_SLOT = 256 };

#define PTE_GUEST_KERNEL (1ull << 52)
#define PTE_CACHE (1ull << 3 | 1ull << 4 | 1ull << 7) /* PWT, PCD, PAT */
#define L1_REFERENCE (PTE_ADDRESS | PTE_P | PTE_RW | PTE_CACHE)

struct request { uint64_t ptr, value; };
struct operation { uint64_t command, arg1; };

static uint64_t *word(uint64_t maddr)
{
    return (uint64_t *)(G.physical.ram + (maddr & ~7ull));
}

/* Whether the hypervisor may touch this address for the guest. */
bool in_guest_range(uint64_t vaddr)
{
    if (G.lane.width == 4)
        return vaddr < 0xf5800000u;
    return vaddr < 1ull << 47 || vaddr >= 0xffff880000000000ull;
}

/* The L1 entry for a guest's address, present or not, or NULL. */
uint64_t *l1_entry(uint64_t root, uint64_t vaddr)
{
    for (uint32_t level = G.lane.levels; level > 1; level--) {
        uint64_t index = vaddr >> (12 + 9 * (level - 1)) & (G.lane.levels == 3 && level == 3 ? 3 : 511);
        if (root >= G.physical.frames)
            return NULL;
        uint64_t entry = *word(root << 12 | index << 3);
        if (!(entry & PTE_P) || ((entry & PTE_PS) && level < 4))
            return NULL;
        root = (entry & PTE_ADDRESS) >> 12;
    }
    return root < G.physical.frames ? word(root << 12 | (vaddr >> 12 & 511) << 3) : NULL;
}

/* The machine address of a 32-bit guest's memory, marked as the access marks it, or NOWHERE. */
uint64_t place32(uint64_t vaddr, bool writing)
{
    static const int shifts[] = {30, 21};
    uint64_t table = FIELD(G.env, ENV_CR3, uint64_t) >> 12;
    uint64_t wanted = PTE_P | (writing ? PTE_RW : 0);

    if (!in_guest_range(vaddr))
        return NOWHERE;
    for (int level = 0; level < 2; level++) {
        if (table >= G.physical.frames)
            return NOWHERE;
        uint64_t entry = *word(table << 12 | (vaddr >> shifts[level] & 511) << 3);
        if ((entry & wanted) != wanted || entry & PTE_PS)
            return NOWHERE;
        table = (entry & PTE_ADDRESS) >> 12;
    }
    uint64_t *entry = table < G.physical.frames ? word(table << 12 | (vaddr >> 12 & 511) << 3) : NULL;
    if (!entry || (*entry & wanted) != wanted || (*entry & PTE_ADDRESS) >> 12 >= G.physical.frames)
        return NOWHERE;
    *entry |= PTE_A | (writing ? PTE_D : 0);
    return (*entry & PTE_ADDRESS) | (vaddr & 0xfff);
}

/* The machine address that the guest reads at `vaddr`, or NOWHERE. */
static uint64_t readable(uint64_t vaddr)
{
    if (G.lane.width == 4)
        return place32(vaddr, false);
    return in_guest_range(vaddr) ? shim_translate(vaddr, false) : NOWHERE;
}

/* Copy from the guest. */
bool copy_in(void *to, uint64_t vaddr, size_t size)
{
    while (size) {
        size_t piece = 4096 - (vaddr & 0xfff) < size ? 4096 - (vaddr & 0xfff) : size;
        uint64_t maddr = readable(vaddr);
        if (maddr == NOWHERE)
            return false;
        memcpy(to, G.physical.ram + maddr, piece);
        to = (char *)to + piece;
        vaddr += piece;
        size -= piece;
    }
    return true;
}

/* ---- L1 entries ---- */

static uint64_t adjusted(uint64_t entry)
{
    if (!(entry & PTE_P))
        return entry;
    if (!(entry & PTE_US))
        return entry | G.lane.l1_kernel_bits;
    return entry & PTE_GUEST_KERNEL ? entry : entry | G.lane.l1_user_bits;
}

/* Whether an entry maps a page of the domain's that stays, as what it is used as allows. */
static bool maps_own_page(uint64_t entry)
{
    uint64_t mfn = (entry & PTE_ADDRESS) >> 12;

    return !(entry & G.lane.l1_disallow) && mfn < G.physical.frames &&
           page(mfn)->owner == G.lane.domid && page(mfn)->flags & PGC_ALLOCATED &&
           (!(entry & PTE_RW) || page(mfn)->type == PGT_WRITABLE);
}

/* Whether the reference that an entry holds is not the last one to its frame. */
static bool may_be_dropped(uint64_t entry)
{
    struct page_info *of = page((entry & PTE_ADDRESS) >> 12);

    return of->flags & PGC_ALLOCATED && of->count > 1;
}

static bool is_plain(uint64_t maddr, uint64_t entry)
{
    uint64_t mfn = maddr >> 12;

    if (mfn >= G.physical.frames || page(mfn)->type != PGT_L1 || page(mfn)->owner != G.lane.domid ||
        G.physical.code[mfn])
        return false;
    uint64_t old = *word(maddr), new = adjusted(entry);
    if (!((old ^ new) & L1_REFERENCE))
        return true;
    return (!(new & PTE_P) || maps_own_page(new)) && (!(old & PTE_P) || may_be_dropped(old));
}

/* Whether a TLB that has `old` would go wrong with `new`. */
static bool needs_flush(uint64_t old, uint64_t new)
{
    return (old & PTE_P) && ((old & ~new & (PTE_P | PTE_RW | PTE_US | PTE_A | PTE_D)) ||
                             ((old ^ new) & PTE_ADDRESS) || (new & ~old & PTE_NX));
}

/* Set an entry of which `is_plain` is true; whether to flush the TLB. */
static bool set_entry(uint64_t maddr, uint64_t entry, bool preserve_ad)
{
    uint64_t old = *word(maddr), new = adjusted(entry);
    bool moves = !(new & PTE_P) || ((old ^ new) & L1_REFERENCE);

    if ((new & PTE_P) && moves) {
        struct page_info *to = page((new & PTE_ADDRESS) >> 12);
        to->count++;
        to->type_count += !!(new & PTE_RW);
    }
    if (preserve_ad)
        new |= old & (PTE_A | PTE_D);
    *word(maddr) = new;
    if ((old & PTE_P) && moves) {
        struct page_info *from = page((old & PTE_ADDRESS) >> 12);
        from->count--;
        from->type_count -= !!(old & PTE_RW);
    }
    return needs_flush(old, new);
}

static void flush_tlb(void)
{
    G.exit.flush = FLUSH_OWN | FLUSH_KEPT;
}

/* ---- the calls ---- */

static void pay(uint32_t ns)
{
    if (ns)
        spend(ns);
}

/* Take an exit that is plain, with its price. */
void pass(enum exit_kind kind)
{
    G.counters.exits++;
    spend(G.clock.prices[kind]);
    FIELD(G.env, ENV_OLD_EXCEPTION, int32_t) = -1;
    G.lane.taken++;
}

/* Take a call that is plain: with its line in the log. */
static void begin(enum exit_kind kind, uint32_t number, const uint64_t *args, unsigned nr_args)
{
    pass(kind);
    struct call_record *record = &G.lane.log->calls[G.lane.log->count++ % CALLS_KEPT];
    *record = (struct call_record){
        .at_ns = lane_now(),
        .rip = FIELD(G.env, ENV_EIP, uint64_t),
        .number = number,
        .vcpu_id = G.lane.vcpu_id,
        .nr_args = nr_args,
    };
    memcpy(record->args, args, nr_args * sizeof *args);
    uint64_t *regs = lane_regs();
    if (kind == EXIT_SYSCALL) { /* as SYSCALL leaves them */
        regs[RCX] = record->rip;
        regs[R11] = U.read_eflags(G.env);
    }
    regs[RAX] = 0;
}

static bool mmu_update(enum exit_kind kind, const uint64_t *args)
{
    static struct request requests[MOST_REQUESTS];
    uint64_t count = args[1];

    if (!count || count > MOST_REQUESTS || args[2] || args[3] != DOMID_SELF ||
        !copy_in(requests, args[0], count * sizeof *requests))
        return false;
    for (uint64_t n = 0; n < count; n++) {
        unsigned command = requests[n].ptr & COMMAND;
        if ((command != NORMAL_UPDATE && command != PRESERVE_AD) ||
            !is_plain(requests[n].ptr - command, requests[n].value))
            return false;
    }
    begin(kind, NR_MMU_UPDATE, args, 4);
    for (uint64_t n = 0; n < count; n++) {
        unsigned command = requests[n].ptr & COMMAND;
        if (set_entry(requests[n].ptr - command, requests[n].value, command == PRESERVE_AD))
            flush_tlb();
    }
    pay(count * G.lane.request_ns);
    return true;
}

static bool update_va_mapping(enum exit_kind kind, const uint64_t *args)
{
    uint64_t flags = args[2], maddr;

    if (flags != UVMF_NONE && (flags & ~(uint64_t)UVMF_ALL) != UVMF_TLB_FLUSH &&
        (flags & ~(uint64_t)UVMF_ALL) != UVMF_INVLPG)
        return false;
    if (!in_guest_range(args[0]))
        return false;
    uint64_t *entry = l1_entry(FIELD(G.env, ENV_CR3, uint64_t) >> 12, args[0]);
    if (!entry)
        return false;
    maddr = (uint64_t)((uint8_t *)entry - G.physical.ram);
    if (!is_plain(maddr, args[1]))
        return false;
    begin(kind, NR_UPDATE_VA_MAPPING, args, 3);
    if (set_entry(maddr, args[1], false))
        flush_tlb();
    if ((flags & 3) == UVMF_TLB_FLUSH)
        flush_tlb();
    else if ((flags & 3) == UVMF_INVLPG)
        shim_flush_page(args[0]);
    return true;
}

/* Whether a frame, or none, can be a root at once, and the one that it replaces stays a table. */
static bool may_replace(uint64_t old, uint64_t mfn)
{
    if (mfn == old)
        return true;
    if (old && (page(old)->type_count < 2 || page(old)->count < 2))
        return false;
    return !mfn || (mfn < G.physical.frames && page(mfn)->owner == G.lane.domid &&
                    page(mfn)->type == G.lane.root_type && page(mfn)->flags & PGT_PINNED);
}

static void replace_root(uint64_t *root, uint64_t mfn)
{
    if (mfn) {
        page(mfn)->count++;
        page(mfn)->type_count++;
    }
    if (*root) {
        page(*root)->count--;
        page(*root)->type_count--;
    }
    *root = mfn;
}

static void new_baseptr(uint64_t mfn)
{
    if (mfn == G.lane.vcpu->kernel_root) {
        flush_tlb();
        return;
    }
    if (G.lane.width == 8 && !G.lane.m2p_strict)
        *word(mfn << 12 | M2P_SLOT << 3) = G.lane.m2p_entry;
    replace_root(&G.lane.vcpu->kernel_root, mfn);
    FIELD(G.env, ENV_CR3, uint64_t) = mfn << 12;
    G.exit.flush |= FLUSH_OWN;
}

static void new_user_baseptr(uint64_t mfn)
{
    if (mfn == G.lane.vcpu->user_root)
        return;
    if (mfn && G.lane.m2p_strict)
        *word(mfn << 12 | M2P_SLOT << 3) = 0;
    replace_root(&G.lane.vcpu->user_root, mfn);
}

static bool is_plain_operation(const struct operation *op)
{
    const struct pv_vcpu *vcpu = G.lane.vcpu;

    switch (op->command) {
    case NEW_BASEPTR:
        return op->arg1 && vcpu->kernel_root != vcpu->user_root &&
               may_replace(vcpu->kernel_root, op->arg1);
    case NEW_USER_BASEPTR:
        return G.lane.width == 8 && vcpu->kernel_root != vcpu->user_root &&
               may_replace(vcpu->user_root, op->arg1);
    case TLB_FLUSH_LOCAL:
    case INVLPG_LOCAL:
        return true;
    }
    return false;
}

static bool mmuext_op(enum exit_kind kind, const uint64_t *args)
{
    struct { uint32_t command, padding; uint64_t arg1, arg2; } wide[MOST_OPERATIONS];
    struct { uint32_t command, arg1, arg2; } narrow[MOST_OPERATIONS];
    struct operation ops[MOST_OPERATIONS];
    uint64_t count = args[1];

    if (!count || count > MOST_OPERATIONS || args[2] || args[3] != DOMID_SELF)
        return false;
    if (!(G.lane.width == 8 ? copy_in(wide, args[0], count * sizeof *wide)
                            : copy_in(narrow, args[0], count * sizeof *narrow)))
        return false;
    for (uint64_t n = 0; n < count; n++) {
        ops[n] = G.lane.width == 8 ? (struct operation){wide[n].command, wide[n].arg1}
                                   : (struct operation){narrow[n].command, narrow[n].arg1};
        if (!is_plain_operation(&ops[n]) || (n && ops[n].command == ops[0].command))
            return false;
    }
    begin(kind, NR_MMUEXT_OP, args, 4);
    for (uint64_t n = 0; n < count; n++) {
        uint64_t arg = ops[n].arg1;
        if (ops[n].command == NEW_BASEPTR)
            new_baseptr(arg);
        else if (ops[n].command == NEW_USER_BASEPTR)
            new_user_baseptr(arg);
        else if (ops[n].command == TLB_FLUSH_LOCAL)
            flush_tlb();
        else if (canonical(arg))
            shim_flush_page(arg);
    }
    pay(count * G.lane.operation_ns);
    return true;
}

/* Whether the vcpu may do without the hypervisor now. A 64-bit one must be in 64-bit code. */
bool may_go(void)
{
    return G.lane.open && !G.debug.stepping && (G.lane.width == 4 || code64()) &&
           !(FIELD(G.cpu, CPU_INTERRUPT_REQUEST, uint32_t) & INTERRUPT_HELD_DEBUG);
}

static void arguments64(uint32_t number, uint64_t *args)
{
    const uint64_t *regs = lane_regs();

    args[0] = regs[RDI];
    args[1] = regs[RSI];
    args[2] = regs[RDX];
    args[3] = regs[R10];
    if (number != NR_UPDATE_VA_MAPPING) {
        args[1] = (uint32_t)args[1];
        args[3] = (uint32_t)args[3];
    }
}

static void arguments32(uint32_t number, uint64_t *args)
{
    const uint64_t *regs = lane_regs();

    args[0] = (uint32_t)regs[RBX];
    args[1] = (uint32_t)regs[RCX];
    args[2] = (uint32_t)regs[RDX];
    args[3] = (uint32_t)regs[RSI];
    if (number == NR_UPDATE_VA_MAPPING) { /* its entry has two registers */
        args[1] |= args[2] << 32;
        args[2] = args[3];
    }
}

static bool hypercall(enum exit_kind kind, uint64_t number)
{
    static bool (*const calls[])(enum exit_kind, const uint64_t *) = {
        [NR_MMU_UPDATE] = mmu_update,
        [NR_UPDATE_VA_MAPPING] = update_va_mapping,
        [NR_MMUEXT_OP] = mmuext_op,
    };
    uint64_t args[4];

    if (number >= sizeof calls / sizeof *calls || !calls[number] ||
        (kind == EXIT_SYSCALL && (selector_of(CS) != FLAT_CS64 || selector_of(SS) != FLAT_SS64)) ||
        is_upcall_due(G.lane.info[UPCALL_MASK]))
        return false;
    (G.lane.width == 8 ? arguments64 : arguments32)(number, args);
    if (!calls[number](kind, args))
        return false;
    const struct call_record *record = &G.lane.log->calls[(G.lane.log->count - 1) % CALLS_KEPT];
    NOTE(.what = NOTED_CALL, .number = number, .at_ns = record->at_ns, .until_ns = lane_now(),
         .args = {args[0], args[1], args[2], args[3]});
    return true;
}

/* Do what a SYSCALL of a 64-bit guest's asks for, if that is ordinary; whether it was done. */
bool lane_takes_syscall(void)
{
    uint64_t number = *lane_regs();

    if (!may_go() || G.lane.width != 8)
        return false;
    if (!G.lane.vcpu->kernel_mode ? !syscall_from_user()
        : number == NR_IRET       ? !iret64()
                                  : !hypercall(EXIT_SYSCALL, number))
        return false;
    apply_requests();
    return true;
}

/* The same for a hypercall of a 32-bit guest's kernel, which is in ring 1. */
static bool int82(void)
{
    uint32_t number = *lane_regs();

    if (!G.lane.vcpu->kernel_mode)
        return false;
    return number == NR_IRET ? iret32() : hypercall(EXIT_SOFT_INT, number);
}

/* The same for an INT n of a 32-bit guest's. */
bool lane_takes_soft_int(uint32_t vector)
{
    if (!may_go() || G.lane.width != 4)
        return false;
    see_mode32();
    if (!(vector == HYPERCALL_VECTOR ? int82() : vector == SYSCALL_VECTOR && int80_32()))
        return false;
    apply_requests();
    return true;
}
