/*
 * The lane's changes to page tables, and the switches between them.
 *
 * The lane changes L1 entries that map the domain's own pages, and entries of higher tables that
 * lead to tables which are validated already, or to nothing. It switches to tables that are pinned.
 * It pins an L1 table, and unpins a table that stays one, or was an L1 table.
 *
 * Before anything is changed, all of a call's requests have been looked at. No request of a call
 * makes another of its requests less ordinary: no type of a frame changes, and no frame goes away. A
 * pin is alone in its call.
 *
 * The reference is hypercalls/mmu_update.py, mmuext_op.py, update_va_mapping.py, and
 * hv/pagetype.py (mod_entry, mod_l1_entry).
 */
#include "lane.h"

enum { DOMID_SELF = 0x7ff0 };
enum { NORMAL_UPDATE = 0, PRESERVE_AD = 2, COMMAND = 7 };
enum { PIN_L1_TABLE = 0, UNPIN_TABLE = 4, NEW_BASEPTR = 5, TLB_FLUSH_LOCAL = 6, INVLPG_LOCAL = 7, NEW_USER_BASEPTR = 15 };
enum { UVMF_NONE, UVMF_TLB_FLUSH, UVMF_INVLPG, UVMF_ALL = 4 };
enum { MOST_REQUESTS = 512, MOST_OPERATIONS = 2, M2P_SLOT = 256, ENTRIES = 512 };
enum { WIDE_OPERATION = 24, NARROW_OPERATION = 12 }; /* sizes of struct mmuext_op */

#define PTE_GUEST_KERNEL (1ull << 52)
#define PTE_PWT_PCD (1ull << 3 | 1ull << 4)
#define PTE_PAT (1ull << 7)
#define L1_REFERENCE (PTE_ADDRESS | PTE_P | PTE_RW | PTE_PWT_PCD | PTE_PAT)
#define LINK_REFERENCE (PTE_ADDRESS | PTE_P | PTE_RW | PTE_PWT_PCD | PTE_PS)

struct request { uint64_t ptr, value; };
struct operation { uint64_t command, arg1; };

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

    return !(entry & G.lane.l1_disallow) && is_own(mfn) &&
           (!(entry & PTE_RW) || page(mfn)->type == PGT_WRITABLE);
}

/*
 * Whether the reference that an entry holds is not the last one to its frame. The frame is the
 * domain's own, so that a later request of the same call may take the reference again.
 */
static bool may_be_dropped(uint64_t entry)
{
    struct page_info *of = page((entry & PTE_ADDRESS) >> 12);

    return of->owner == G.lane.domid && of->flags & PGC_ALLOCATED && of->count > 1;
}

bool is_plain_l1(uint64_t maddr, uint64_t entry)
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

/* Set an entry of which `is_plain_l1` is true; whether to flush the TLB. */
bool set_l1_entry(uint64_t maddr, uint64_t entry, bool preserve_ad)
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

/* ---- L1 tables as a whole ---- */

/* Whether it has no entries, which makes a table of it no work. */
static bool is_blank(uint64_t mfn)
{
    const uint64_t *entries = word(mfn << 12);

    for (int n = 0; n < ENTRIES; n++)
        if (entries[n])
            return false;
    return true;
}

/* Whether each entry of a frame may be had, if the frame is to become an L1 table. */
static bool may_become_l1(uint64_t mfn)
{
    const uint64_t *entries = word(mfn << 12);

    for (int n = 0; n < ENTRIES; n++) {
        uint64_t target = (entries[n] & PTE_ADDRESS) >> 12;
        if (entries[n] & PTE_P && (!maps_own_page(entries[n]) ||
                                   (entries[n] & PTE_RW && target == mfn)))
            return false;
    }
    return true;
}

/* Take what the entries hold, each of which may be had; whether Xen adjusts one. */
static bool take_entries(uint64_t mfn, uint64_t *adjusts)
{
    const uint64_t *entries = word(mfn << 12);
    bool other = false;

    for (int n = 0; n < ENTRIES; n++) {
        adjusts[n] = adjusted(entries[n]);
        other |= adjusts[n] != entries[n];
        if (entries[n] & PTE_P) {
            struct page_info *to = page((entries[n] & PTE_ADDRESS) >> 12);
            to->count++;
            to->type_count += !!(entries[n] & PTE_RW);
        }
    }
    return other;
}

/* Whether no entry of a table holds the last reference to its frame. */
static bool may_drop_entries(uint64_t mfn)
{
    const uint64_t *entries = word(mfn << 12);

    for (int n = 0; n < ENTRIES; n++)
        if (entries[n] & PTE_P && ((entries[n] & PTE_ADDRESS) >> 12 >= G.physical.frames ||
                                   !may_be_dropped(entries[n])))
            return false;
    return true;
}

static void drop_entries(uint64_t mfn)
{
    const uint64_t *entries = word(mfn << 12);

    for (int n = 0; n < ENTRIES; n++)
        if (entries[n] & PTE_P) {
            struct page_info *from = page((entries[n] & PTE_ADDRESS) >> 12);
            from->count--;
            from->type_count -= !!(entries[n] & PTE_RW);
        }
}

/* For the model: take what a table's entries hold. `adjusts` is the table as Xen adjusts it. */
int shim_take_l1(uint64_t mfn, uint64_t *adjusts)
{
    if (!is_own(mfn) || G.physical.code[mfn] || !may_become_l1(mfn))
        return L1_LEFT;
    return take_entries(mfn, adjusts) ? L1_ADJUSTED : L1_TAKEN;
}

/* For the model: drop what a table's entries hold. */
int shim_drop_l1(uint64_t mfn)
{
    if (!is_own(mfn) || !may_drop_entries(mfn))
        return L1_LEFT;
    drop_entries(mfn);
    return L1_TAKEN;
}

/* ---- pins ---- */

static bool is_plain_pin(uint64_t mfn)
{
    if (!is_own(mfn) || page(mfn)->flags & (PGT_PINNED | PGC_XEN_HEAP) || G.physical.code[mfn])
        return false;
    if (page(mfn)->type == PGT_L1)
        return true;
    return page(mfn)->type == PGT_WRITABLE && !page(mfn)->type_count &&
           G.lane.log->nr_typed < TYPED_KEPT && may_become_l1(mfn);
}

static void pin(uint64_t mfn)
{
    struct page_info *table = page(mfn);

    table->count++;
    table->flags |= PGT_PINNED;
    if (table->type == PGT_L1) {
        table->type_count++;
        return;
    }
    note_typed(mfn);
    if (!is_blank(mfn)) {
        take_entries(mfn, word(mfn << 12));
        spend(G.lane.l1_ns);
    }
    table->type = PGT_L1;
    table->type_count = 1;
}

static bool is_plain_unpin(uint64_t mfn)
{
    if (!is_own(mfn) || !(page(mfn)->flags & PGT_PINNED) || page(mfn)->count < 2)
        return false;
    return page(mfn)->type_count > 1 ||
           (page(mfn)->type == PGT_L1 && may_drop_entries(mfn));
}

static void unpin(uint64_t mfn)
{
    struct page_info *table = page(mfn);

    table->flags &= ~PGT_PINNED;
    table->count--;
    if (--table->type_count)
        return;
    table->type = PGT_WRITABLE;
    if (!is_blank(mfn)) {
        drop_entries(mfn);
        spend(G.lane.l1_ns);
    }
}

/* ---- entries of L2 and L3 tables, to the table below ---- */

/* Whether the domain has such a table. The lane is shut while one is validated in part. */
static bool is_table(uint64_t mfn, uint32_t type)
{
    return is_own(mfn) && page(mfn)->type == type;
}

static uint64_t adjusted_link(uint64_t entry)
{
    return entry & PTE_P ? entry | G.lane.table_bits : entry;
}

static bool is_plain_link(uint64_t maddr, uint64_t entry)
{
    uint64_t mfn = maddr >> 12;
    uint32_t level = page(mfn)->type;

    /* A 32-bit guest's L3 is a root, with rules of its own. */
    if ((level != PGT_L2 && (level != PGT_L3 || G.lane.width == 4)) || !is_table(mfn, level) ||
        G.physical.code[mfn])
        return false;
    uint64_t old = *word(maddr), new = adjusted_link(entry);
    if (new & PTE_P && !((old ^ new) & (LINK_REFERENCE | G.lane.table_disallow)))
        return true;
    if (new & PTE_P && (new & G.lane.table_disallow ||
                        !is_table((new & PTE_ADDRESS) >> 12, level - 1)))
        return false;
    uint64_t from = (old & PTE_ADDRESS) >> 12;
    return !(old & PTE_P) || (page(from)->type == level - 1 && page(from)->flags & PGT_PINNED);
}

/* Set an entry of which `is_plain_link` is true; whether to flush the TLB. */
static bool set_link(uint64_t maddr, uint64_t entry, bool preserve_ad)
{
    uint64_t old = *word(maddr), new = adjusted_link(entry);
    bool moves = !(new & PTE_P) || ((old ^ new) & (LINK_REFERENCE | G.lane.table_disallow));

    if ((new & PTE_P) && moves) {
        struct page_info *to = page((new & PTE_ADDRESS) >> 12);
        to->count++;
        to->type_count++;
    }
    if (preserve_ad)
        new |= old & (PTE_A | PTE_D);
    *word(maddr) = new;
    if ((old & PTE_P) && moves) {
        struct page_info *from = page((old & PTE_ADDRESS) >> 12);
        from->count--;
        from->type_count--;
    }
    return needs_flush(old, new);
}

static bool is_plain(uint64_t maddr, uint64_t entry)
{
    return is_plain_l1(maddr, entry) ||
           (maddr >> 12 < G.physical.frames && is_plain_link(maddr, entry));
}

static bool set_entry(uint64_t maddr, uint64_t entry, bool preserve_ad)
{
    return (page(maddr >> 12)->type == PGT_L1 ? set_l1_entry : set_link)(maddr, entry, preserve_ad);
}

void flush_tlb(void)
{
    G.exit.flush = FLUSH_OWN | FLUSH_KEPT;
}

/* ---- the calls ---- */

/* How many requests the model reads at once: those up to the end of the page, at least one. */
static uint64_t requests_at(uint64_t at, uint64_t most)
{
    uint64_t whole = (0x1000 - (at & 0xfff)) / sizeof(struct request);

    return !whole ? 1 : whole < most ? whole : most;
}

/* Whether a request could change where the later pages of a call's requests are, or their marks. */
static bool may_move(uint64_t requests, uint64_t size, uint64_t maddr)
{
    uint64_t root = FIELD(G.env, ENV_CR3, uint64_t) >> 12, last = (requests + size - 1) >> 12;

    if (page(maddr >> 12)->type != PGT_L1)
        return requests >> 12 != last;
    for (uint64_t at = (requests >> 12) + 1; at <= last; at++)
        if (l1_entry(root, at << 12) == word(maddr))
            return true;
    return false;
}

bool call_mmu_update(const uint64_t *args)
{
    static struct request requests[MOST_REQUESTS];
    uint64_t count = args[1], size = count * sizeof *requests;

    if (!count || count > MOST_REQUESTS || args[2] || args[3] != DOMID_SELF)
        return false;
    for (uint64_t n = 0, read = 0; n < count; n++) {
        if (n == read) {
            read += requests_at(args[0] + n * sizeof *requests, count - n);
            if (!copy_in(requests + n, args[0] + n * sizeof *requests, (read - n) * sizeof *requests))
                return false;
        }
        unsigned command = requests[n].ptr & COMMAND;
        uint64_t maddr = requests[n].ptr - command;
        if ((command != NORMAL_UPDATE && command != PRESERVE_AD) ||
            !is_plain(maddr, requests[n].value) || may_move(args[0], size, maddr))
            return false;
    }
    take(0);
    for (uint64_t n = 0; n < count; n++) {
        unsigned command = requests[n].ptr & COMMAND;
        if (set_entry(requests[n].ptr - command, requests[n].value, command == PRESERVE_AD))
            flush_tlb();
    }
    spend(count * G.lane.request_ns);
    return true;
}

bool call_update_va_mapping(const uint64_t *args)
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
    if (!is_plain_l1(maddr, args[1]))
        return false;
    take(0);
    if (set_l1_entry(maddr, args[1], false))
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
                    page(mfn)->type == G.lane.root_type && page(mfn)->flags & PGT_PINNED &&
                    !G.physical.code[mfn]); /* a slot of it may be written */
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
        return op->arg1 &&
               (op->arg1 == vcpu->kernel_root || (vcpu->kernel_root != vcpu->user_root &&
                                                  may_replace(vcpu->kernel_root, op->arg1)));
    case NEW_USER_BASEPTR:
        return G.lane.width == 8 && vcpu->kernel_root != vcpu->user_root &&
               may_replace(vcpu->user_root, op->arg1);
    case TLB_FLUSH_LOCAL:
    case INVLPG_LOCAL:
        return true;
    case PIN_L1_TABLE:
        return is_plain_pin(op->arg1);
    case UNPIN_TABLE:
        return is_plain_unpin(op->arg1);
    }
    return false;
}

static bool read_operation(uint64_t at, struct operation *op)
{
    struct { uint32_t command, padding; uint64_t arg1, arg2; } wide;
    struct { uint32_t command, arg1, arg2; } narrow;

    _Static_assert(sizeof wide == WIDE_OPERATION && sizeof narrow == NARROW_OPERATION, "Xen's ABI");
    if (!(G.lane.width == 8 ? copy_in(&wide, at, sizeof wide) : copy_in(&narrow, at, sizeof narrow)))
        return false;
    *op = G.lane.width == 8 ? (struct operation){wide.command, wide.arg1}
                            : (struct operation){narrow.command, narrow.arg1};
    return true;
}

/* Whether another root maps the same pages, by the same L1 entries, at some addresses. */
static bool has_same_pages(uint64_t root, uint64_t at, uint64_t size)
{
    uint64_t own = FIELD(G.env, ENV_CR3, uint64_t) >> 12;

    return l1_entry(root, at) == l1_entry(own, at) &&
           l1_entry(root, at + size - 1) == l1_entry(own, at + size - 1);
}

bool call_mmuext_op(const uint64_t *args)
{
    struct operation ops[MOST_OPERATIONS];
    uint64_t count = args[1], at = args[0], size = G.lane.width == 8 ? WIDE_OPERATION : NARROW_OPERATION;

    if (!count || count > MOST_OPERATIONS || args[2] || args[3] != DOMID_SELF)
        return false;
    for (uint64_t n = 0; n < count; n++, at += size) {
        if (n && ops[0].command == NEW_BASEPTR && !has_same_pages(ops[0].arg1, at, size))
            return false;
        if (!read_operation(at, &ops[n]))
            return false;
        bool of_table = ops[n].command == PIN_L1_TABLE || ops[n].command == UNPIN_TABLE;
        if (!is_plain_operation(&ops[n]) || (n && ops[n].command == ops[0].command) ||
            (of_table && count > 1)) /* it could make the other less ordinary */
            return false;
    }
    take(0);
    for (uint64_t n = 0; n < count; n++) {
        uint64_t arg = ops[n].arg1;
        if (ops[n].command == NEW_BASEPTR)
            new_baseptr(arg);
        else if (ops[n].command == NEW_USER_BASEPTR)
            new_user_baseptr(arg);
        else if (ops[n].command == TLB_FLUSH_LOCAL)
            flush_tlb();
        else if (ops[n].command == PIN_L1_TABLE)
            pin(arg);
        else if (ops[n].command == UNPIN_TABLE)
            unpin(arg);
        else if (canonical(arg))
            shim_flush_page(arg);
    }
    spend(count * G.lane.operation_ns);
    return true;
}
