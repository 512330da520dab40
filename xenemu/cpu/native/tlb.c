/*
 * The TLB, and memory as a guest sees it.
 *
 * Unicorn makes every store to a page that is mapped executable slow, for the sake of
 * self-modifying code. So a mapping gets its execute permission only when something is fetched
 * through it. A frame that was once fetched from (G.physical.code) keeps slow stores, whatever
 * mapping leads to it. Such a frame may have fast mappings at its first fetch. Then all mappings
 * are dropped.
 */
#include <stdlib.h>
#include <string.h>

#include "shim.h"

static int filling_for;
static uint64_t dirty_frame;

enum { APIC_GFN = 0xFEE00 };

/* The machine address of a native guest's physical address. */
static uint64_t machine_address(uint64_t paddr)
{
    uint64_t gfn = paddr >> 12, offset = paddr & 0xfff;

    if (gfn == APIC_GFN)
        return G.physical.apic | offset;
    uint32_t entry = gfn < G.physical.gfns ? G.physical.p2m[gfn] : 0;
    return (entry ? (uint64_t)(entry - 1) << 12 : G.physical.hole) | offset;
}

/* A word of RAM at an address of the guest's, or NULL where there is none. */
uint64_t *machine_entry(uint64_t paddr)
{
    if (G.physical.p2m)
        paddr = machine_address(paddr);
    return paddr >> 12 < G.physical.frames ? (uint64_t *)(G.physical.ram + paddr) : NULL;
}

void tlb_set_page_with_attrs_x86_64(void *, uint64_t, uint64_t, uint32_t, int, int, uint64_t);

/* Code that is not 64-bit goes on at 0 after 4 GiB. The engine would fetch from beyond. */
static bool wraps(int access, uint64_t vaddr)
{
    return access == ACCESS_FETCH && UNLIKELY(vaddr >> 32) && !code64();
}

struct translation {
    uint64_t paddr; /* of the page */
    uint64_t size;  /* of the page as its entry has it, which may be a large one */
    int prot;
};

/*
 * Walk four levels of tables in RAM, as x86_cpu_tlb_fill does, but in place. False for what is left
 * to that function: faults, other kinds of tables, holes. Then nothing but accessed bits has
 * changed.
 */
static inline bool walk(uint64_t vaddr, int access, int mode, struct translation *found)
{
    uint64_t cr0 = FIELD(G.env, ENV_CR0, uint64_t), efer = FIELD(G.env, ENV_EFER, uint64_t);
    uint64_t address = FIELD(G.env, ENV_CR3, uint64_t), all = PTE_RW | PTE_US, any = 0, *entry;
    uint64_t size = 1ull << 48, linear = vaddr;

    if (wraps(access, vaddr))
        linear = (uint32_t)vaddr;
    if (!(efer & EFER_LMA) || !(cr0 & CR0_PG) || mode == MMU_KSMAP || !canonical(vaddr) ||
        (FIELD(G.env, ENV_CR4, uint64_t) & ~(uint64_t)CR4_OFFERED))
        return false;
    for (int level = 4;; level--) {
        address &= PTE_ADDRESS;
        size >>= 9;
        entry = machine_entry(address + linear / size % 512 * 8);
        if (!entry || !(*entry & PTE_P) || (*entry & PTE_RESERVED))
            return false;
        all &= *entry;
        any |= *entry;
        address = *entry;
        bool large = *entry & PTE_PS;
        if (level == 1 || (large && level < 4))
            break;
        if (large)
            return false;
        if (!(*entry & PTE_A))
            *entry |= PTE_A;
    }
    bool user = mode == MMU_USER;
    bool writable = (all & PTE_RW) || !(user || (cr0 & CR0_WP));
    bool large = size > 4096;
    if ((user && !(all & PTE_US)) || (access == ACCESS_WRITE && !writable) ||
        ((any & PTE_NX) && (access == ACCESS_FETCH || !(efer & EFER_NXE))) ||
        (large && (address & PTE_ADDRESS & (size - 1) & ~(uint64_t)PTE_LARGE_PAT)))
        return false;
    uint64_t seen = PTE_A | (access == ACCESS_WRITE ? PTE_D : 0);
    if ((*entry & seen) != seen)
        *entry |= seen;
    found->prot = PAGE_READ | (any & PTE_NX ? 0 : PAGE_EXEC) |
                  (writable && (*entry & PTE_D) ? PAGE_WRITE : 0);
    found->paddr = ((address & PTE_ADDRESS & ~(size - 1)) | (linear & (size - 1))) & ~0xfffull;
    found->size = size;
    return true;
}

/*
 * Where the kernel's memory at a linear address is: a machine address. The entries on the way are
 * marked as an access would mark them. NOWHERE where there is none, and for what `walk` leaves.
 */
uint64_t shim_translate(uint64_t vaddr, bool writing)
{
    struct translation found;

    if (!walk(vaddr, writing ? ACCESS_WRITE : ACCESS_READ, MMU_KERNEL, &found))
        return NOWHERE;
    uint64_t maddr = G.physical.p2m ? machine_address(found.paddr) : found.paddr;
    return maddr >> 12 < G.physical.frames ? maddr | (vaddr & 0xfff) : NOWHERE;
}

/* Unicorn's own walk, of all other tables and for faults: entries where the guest has them. */
uint64_t x86_ldq_phys_x86_64(void *cpu, uint64_t paddr)
{
    uint64_t *entry = machine_entry(paddr);

    (void)cpu;
    return entry ? *entry : UINT64_MAX;
}

uint32_t x86_ldl_phys_x86_64(void *cpu, uint64_t paddr)
{
    uint32_t *entry = (uint32_t *)machine_entry(paddr);

    (void)cpu;
    return entry ? *entry : UINT32_MAX;
}

void x86_stl_phys_notdirty_x86_64(void *cpu, uint64_t paddr, uint32_t value)
{
    uint32_t *entry = (uint32_t *)machine_entry(paddr);

    (void)cpu;
    if (entry)
        *entry = value;
}

bool x86_cpu_tlb_fill_x86_64(void *cpu, uint64_t vaddr, int size, int access, int mode, bool probe,
                             uintptr_t pc)
{
    struct translation found;

    G.counters.fills++;
    filling_for = access;
    if (walk(vaddr, access, mode, &found)) {
        tlb_set_page_with_attrs_x86_64(cpu, vaddr & ~0xfffull, found.paddr, 0, found.prot, mode,
                                       found.size);
        return true;
    }
    if (!probe)
        missed = (struct access){true, access, size, vaddr, FIELD(G.env, ENV_CR2, uint64_t)};
    bool filled = (!wraps(access, vaddr) || /* for its fault, if it has one */
                   U.tlb_fill(cpu, (uint32_t)vaddr, size, access, mode, probe, pc)) &&
                  U.tlb_fill(cpu, vaddr, size, access, mode, probe, pc);
    if (!probe)
        missed.faults = false;
    return filled;
}

void tlb_set_page_with_attrs_x86_64(void *cpu, uint64_t vaddr, uint64_t paddr, uint32_t attrs,
                                    int prot, int mode, uint64_t size)
{
    if (G.physical.p2m)
        paddr = machine_address(paddr);
    uint64_t frame = paddr >> 12;

    if (frame >= G.physical.frames) { /* no memory: ones are fetched, an undefined instruction */
        if (filling_for == ACCESS_FETCH) {
            paddr = G.physical.ones;
            prot = PAGE_EXEC;
        } else {
            prot &= ~PAGE_EXEC;
        }
    } else if (!(G.physical.code[frame] & FRAME_FETCHED)) {
        if (filling_for == ACCESS_FETCH) {
            G.physical.code[frame] |= FRAME_FETCHED;
            G.counters.code_frames++;
            if (G.physical.written[frame]) {
                G.physical.written[frame] = 0;
                outdate_kept_tlbs();
                U.tlb_flush(cpu);
            }
        } else {
            prot &= ~PAGE_EXEC;
            if (prot & PAGE_WRITE)
                G.physical.written[frame] = 1;
        }
    }
    if ((prot & PAGE_WRITE) && frame < G.physical.frames &&
        (G.physical.table_types >> G.physical.info[frame].type & 1))
        G.counters.exposed = frame + 1;
    if (frame < G.physical.frames && !cpu_watchpoint_address_matches_x86_64(cpu, vaddr, 4096))
        fill_tlb(vaddr & ~0xfffull, paddr & ~0xfffull, attrs, prot, mode, size,
                 G.physical.code[frame] & FRAME_FETCHED);
    else
        U.tlb_set_page(cpu, vaddr, paddr, attrs, prot, mode, size);
}

/* A store on the slow path: first this one, with the frame, then tlb_set_dirty. */
void tb_invalidate_phys_page_fast_x86_64(void *uc, void *pages, uint64_t ram, int size, uintptr_t pc)
{
    dirty_frame = ram >> 12;
    if (dirty_frame >= G.physical.frames || (G.physical.code[dirty_frame] & FRAME_FETCHED))
        U.invalidate_fast(uc, pages, ram, size, pc);
}

void tlb_set_dirty_x86_64(void *cpu, uint64_t vaddr)
{
    if (dirty_frame >= G.physical.frames || !(G.physical.code[dirty_frame] & FRAME_FETCHED))
        U.tlb_set_dirty(cpu, vaddr);
}

/*
 * Unicorn walks the whole TLB for each block that it translates. One slot and the victims will do.
 */
void tlb_reset_dirty_by_vaddr_x86_64(void *cpu, uint64_t start, uint64_t length)
{
    char *tlb = FIELD(cpu, CPU_ENV_PTR, char *) - TLB_BEFORE_ENV;

    for (uint64_t page = start; page < start + length; page += 4096)
        for (int mode = 0; mode < MMU_MODES; mode++) {
            char *fast = tlb + TLB_FAST + 16 * mode;
            char *victims = tlb + TLB_DESC + TLB_DESC_SIZE * mode + TLB_VICTIMS;
            char *slot = FIELD(fast, 8, char *) + ((page >> 6) & FIELD(fast, 0, uint64_t));
            for (int i = -1; i < VICTIMS; i++) {
                char *entry = i < 0 ? slot : victims + TLB_ENTRY_SIZE * i;
                uint64_t *write = &FIELD(entry, TLB_ADDR_WRITE, uint64_t);
                if ((*write & ~0xfffull) == page && !(*write & TLB_NOT_PLAIN_RAM))
                    *write |= TLB_NOTDIRTY;
            }
        }
}

/* Unicorn resizes the TLB in windows of the host's clock. Here a window is a number of flushes. */
void tlb_flush_by_mmuidx_x86_64(void *cpu, uint16_t modes)
{
    char *tlb = FIELD(cpu, CPU_ENV_PTR, char *) - TLB_BEFORE_ENV;
    bool expired = ++G.counters.flushes % TLB_FLUSHES_PER_WINDOW == 0;

    age_jumps();
    for (int mode = 0; mode < MMU_MODES; mode++)
        FIELD(tlb, TLB_DESC + TLB_DESC_SIZE * mode + TLB_WINDOW_BEGIN, int64_t) =
            expired ? 0 : INT64_MAX / 2;
    U.tlb_flush_by_mmuidx(cpu, modes);
}

/* ---- a TLB for each vcpu ------------------------------------------------------------------ */

/*
 * A vcpu keeps its TLB while another one is in the CPU. That TLB is Unicorn's struct, which has
 * pointers to the tables. It is out of date once something else than the vcpu itself has changed
 * what it may have: the hypervisor has taken something from the guest, a frame has become code, or
 * the debugger watches an address. Such things are rare, so they put all kept TLBs out of date.
 */
enum { MAX_VCPUS = 128 };

static struct kept {
    bool here; /* and not in the CPU, or never made */
    uint64_t date;
    char tlb[TLB_BEFORE_ENV];
} *kept[MAX_VCPUS];
static uint64_t date = 1; /* 0 is never up to date */

void outdate_kept_tlbs(void)
{
    date++;
}

static void **table_of(char *tlb, int mode)
{
    return &FIELD(tlb, TLB_FAST + 16 * mode + 8, void *);
}

static void **iotlb_of(char *tlb, int mode)
{
    return &FIELD(tlb, TLB_DESC + TLB_DESC_SIZE * mode + TLB_IOTLB, void *);
}

static void free_tables(char *tlb)
{
    for (int mode = 0; mode < MMU_MODES; mode++) {
        free(*table_of(tlb, mode));
        free(*iotlb_of(tlb, mode));
    }
}

/* All of an engine. */
void forget_kept_tlbs(void)
{
    for (int vcpu = 0; vcpu < MAX_VCPUS; vcpu++) {
        if (kept[vcpu] && kept[vcpu]->here)
            free_tables(kept[vcpu]->tlb);
        free(kept[vcpu]);
        kept[vcpu] = NULL;
    }
}

static void *allocate(size_t size)
{
    void *memory = malloc(size);

    if (!memory)
        abort(); /* as Unicorn would for its own */
    return memory;
}

static struct kept *kept_of(unsigned vcpu)
{
    if (!kept[vcpu]) {
        kept[vcpu] = allocate(sizeof *kept[vcpu]);
        kept[vcpu]->here = false;
    }
    return kept[vcpu];
}

/* Make a TLB of the size of another one. Its first flush will empty it. */
static void make_tlb(struct kept *made, const char *like)
{
    memcpy(made->tlb, like, TLB_BEFORE_ENV);
    for (int mode = 0; mode < MMU_MODES; mode++) {
        size_t mask = FIELD(like, TLB_FAST + 16 * mode, uint64_t);
        size_t entries = mask / TLB_ENTRY_SIZE + 1;
        *table_of(made->tlb, mode) = allocate(entries * TLB_ENTRY_SIZE);
        *iotlb_of(made->tlb, mode) = allocate(entries * IOTLB_ENTRY_SIZE);
    }
    FIELD(made->tlb, TLB_DIRTY, uint16_t) = (1 << MMU_MODES) - 1;
    made->here = true;
    made->date = 0;
}

/* Let a vcpu that leaves the CPU keep its TLB, and give the other one what it has kept. */
void shim_switch_tlb(unsigned from, unsigned to)
{
    char *tlb = FIELD(G.cpu, CPU_ENV_PTR, char *) - TLB_BEFORE_ENV;
    struct kept *leaving = kept_of(from), *coming = kept_of(to);

    G.lane.open = 0; /* it is the leaving vcpu's */
    if (G.exit.flush & FLUSH_KEPT)
        outdate_kept_tlbs();
    if (leaving->here) /* from before the machine went back to a snapshot */
        free_tables(leaving->tlb);
    memcpy(leaving->tlb, tlb, TLB_BEFORE_ENV);
    leaving->here = true;
    leaving->date = G.exit.flush ? 0 : date;
    if (!coming->here)
        make_tlb(coming, tlb);
    memcpy(tlb, coming->tlb, TLB_BEFORE_ENV);
    coming->here = false;
    G.exit.flush = coming->date == date ? 0 : FLUSH_OWN;
    memset((char *)G.cpu + CPU_TB_JMP_CACHE, 0, JMP_CACHE_SIZE);
    age_jumps();
}

static bool maps_a_table_writable(const char *entry)
{
    uint64_t vaddr = FIELD(entry, TLB_ADDR_WRITE, uint64_t);
    uint64_t frame = ((vaddr & ~0xfffull) + FIELD(entry, TLB_ADDEND, uint64_t) -
                      (uintptr_t)G.physical.ram) >> 12;

    return !(vaddr & (TLB_INVALID | TLB_MMIO)) && frame < G.physical.frames &&
           (G.physical.table_types >> G.physical.info[frame].type & 1);
}

static bool tlb_exposes_table(char *tlb)
{
    for (int mode = 0; mode < MMU_MODES; mode++) {
        char *victims = tlb + TLB_DESC + TLB_DESC_SIZE * mode + TLB_VICTIMS;
        char *table = *table_of(tlb, mode);
        uint64_t mask = FIELD(tlb, TLB_FAST + 16 * mode, uint64_t);
        for (uint64_t at = 0; at <= mask; at += TLB_ENTRY_SIZE)
            if (maps_a_table_writable(table + at))
                return true;
        for (int i = 0; i < VICTIMS; i++)
            if (maps_a_table_writable(victims + TLB_ENTRY_SIZE * i))
                return true;
    }
    return false;
}

/* Whether a guest could write to one of its page tables through a TLB: a bug of xenemu's. */
bool shim_tlbs_expose_table(void)
{
    char *tlb = FIELD(G.cpu, CPU_ENV_PTR, char *) - TLB_BEFORE_ENV;

    if (!G.exit.flush && tlb_exposes_table(tlb))
        return true;
    for (int vcpu = 0; vcpu < MAX_VCPUS && !(G.exit.flush & FLUSH_KEPT); vcpu++)
        if (kept[vcpu] && kept[vcpu]->here && kept[vcpu]->date == date &&
            tlb_exposes_table(kept[vcpu]->tlb))
            return true;
    return false;
}

/* ---- guest frames without memory ---------------------------------------------------------- */

/* They read as ones; but the local APIC's page answers for itself. */
static uint64_t access_beyond_ram(enum exit_kind kind, uint64_t address, unsigned size,
                                  uint64_t value)
{
    spend(G.clock.prices[kind]);
    if (address - G.physical.apic >= 4096)
        return value;
    G.counters.exits++;
    G.exit.kind = kind;
    G.exit.port = address - G.physical.apic;
    G.exit.size = size;
    G.exit.value = value;
    call_python(G.exit.enter);
    if (G.exit.stop)
        U.emu_stop(G.uc);
    return G.exit.value;
}

static uint64_t load_beyond_ram(void *uc, uint64_t offset, unsigned size, void *start)
{
    (void)uc;
    return access_beyond_ram(EXIT_LOAD, (uintptr_t)start + offset, size, -1ull >> (64 - 8 * size));
}

static void store_beyond_ram(void *uc, uint64_t offset, unsigned size, uint64_t value, void *start)
{
    (void)uc;
    access_beyond_ram(EXIT_STORE, (uintptr_t)start + offset, size, value);
}

/* Have accesses to these machine addresses come here. No memory is there. Returns a uc_err. */
int shim_map_beyond_ram(uint64_t start, uint64_t end)
{
    void *first = (void *)(uintptr_t)start;

    return U.mmio_map(G.uc, start, end - start, load_beyond_ram, first, store_beyond_ram, first);
}

void shim_flush_page(uint64_t vaddr)
{
    outdate_kept_tlbs();
    U.tlb_flush_page(G.cpu, vaddr);
}

/* Drop the translations of a frame that the hypervisor wrote to. */
void shim_invalidate(uint64_t frame)
{
    U.invalidate_range(G.uc, frame << 12, (frame + 1) << 12);
}
