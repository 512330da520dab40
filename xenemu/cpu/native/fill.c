/*
 * Puts translations into the TLB.
 *
 * Unicorn's function for that asks its memory regions where the page is, every time. Here, memory
 * is one mapping, from address 0. And Unicorn's function makes the first store to each page slow,
 * to see whether there is code in the page, which tlb.c knows.
 */
#include <string.h>

#include "shim.h"

struct entry {
    uint64_t read, write, code; /* the page that may be accessed so, with TLB_* bits; or NO_PAGE */
    uint64_t paddr;
    uint64_t addend; /* from the guest's address to the host's */
    uint64_t unused[3];
};
struct io_entry {
    uint64_t addend; /* from the guest's address to Unicorn's of RAM, which slow stores ask for */
    uint32_t attrs, unused;
};
struct desc {
    uint64_t large_page, large_mask; /* what has all large pages that are here */
    int64_t window_begin, window_most;
    uint64_t used, next_victim;
    struct entry victims[VICTIMS];
    struct io_entry io_victims[VICTIMS];
    struct io_entry *io_table;
};
_Static_assert(sizeof(struct entry) == TLB_ENTRY_SIZE && sizeof(struct io_entry) == IOTLB_ENTRY_SIZE,
               "the TLB's entries");
_Static_assert(sizeof(struct desc) == TLB_DESC_SIZE && offsetof(struct desc, io_table) == TLB_IOTLB &&
               offsetof(struct desc, victims) == TLB_VICTIMS, "the TLB's description");

#define NO_PAGE UINT64_MAX

static struct desc *desc_of(char *tlb, int mode)
{
    return (struct desc *)(tlb + TLB_DESC + TLB_DESC_SIZE * mode);
}

static bool leads_to(const struct entry *entry, uint64_t page)
{
    uint64_t mask = ~0xfffull | TLB_INVALID;

    return (entry->read & mask) == page || (entry->write & mask) == page ||
           (entry->code & mask) == page;
}

static bool is_empty(const struct entry *entry)
{
    return (entry->read & entry->write & entry->code) == NO_PAGE;
}

/* INVLPG in a large page drops all of them: nobody knows which entries are of which. */
static void add_large_page(struct desc *desc, uint64_t page, uint64_t size)
{
    uint64_t mask = -size;

    if (desc->large_page == NO_PAGE) {
        desc->large_page = page & mask;
    } else {
        for (mask &= desc->large_mask; (desc->large_page ^ page) & mask;)
            mask <<= 1;
        desc->large_page &= mask;
    }
    desc->large_mask = mask;
}

/* Let a page lead to a frame of RAM; `watched` makes stores slow, for the sake of code in it. */
void fill_tlb(uint64_t page, uint64_t paddr, uint32_t attrs, int prot, int mode, uint64_t size,
              bool watched)
{
    char *tlb = FIELD(G.cpu, CPU_ENV_PTR, char *) - TLB_BEFORE_ENV;
    char *fast = tlb + TLB_FAST + 16 * mode;
    struct desc *desc = desc_of(tlb, mode);
    uint64_t at = (page >> 12) & (FIELD(fast, 0, uint64_t) / TLB_ENTRY_SIZE);
    struct entry *entry = FIELD(fast, 8, struct entry *) + at;

    FIELD(tlb, TLB_DIRTY, uint16_t) |= 1 << mode;
    if (size > 4096)
        add_large_page(desc, page, size);
    for (uint64_t i = 0; i < desc->next_victim && i < VICTIMS; i++)
        if (UNLIKELY(leads_to(&desc->victims[i], page))) {
            memset(&desc->victims[i], -1, sizeof(struct entry));
            desc->used--;
        }
    if (!is_empty(entry) && !leads_to(entry, page)) {
        uint64_t victim = desc->next_victim++ % VICTIMS;
        desc->victims[victim] = *entry;
        desc->io_victims[victim] = desc->io_table[at];
        desc->used--;
    }
    desc->io_table[at].addend = paddr - page;
    desc->io_table[at].attrs = attrs;
    entry->read = prot & PAGE_READ ? page : NO_PAGE;
    entry->write = prot & PAGE_WRITE ? page | (watched ? TLB_NOTDIRTY : 0) : NO_PAGE;
    entry->code = prot & PAGE_EXEC ? page : NO_PAGE;
    entry->paddr = paddr;
    entry->addend = (uintptr_t)G.physical.ram + paddr - page;
    desc->used++;
}

/* ---- a look at Unicorn's own function ------------------------------------------------------ */

/* One large page after another, pages that push others out, and pages that come back. */
static const struct {
    uint64_t page, size;
    int prot;
} EXAMPLES[] = {
    {0x200000, 1 << 21, PAGE_READ}, {0x201000, 4096, PAGE_READ | PAGE_WRITE},
    {0x40201000, 4096, PAGE_READ | PAGE_WRITE | PAGE_EXEC}, {0x201000, 4096, PAGE_READ},
    {0x80201000, 1 << 21, PAGE_EXEC}, {0x40201000, 4096, PAGE_READ},
    {0xffff800000201000, 1 << 21, PAGE_READ | PAGE_WRITE}, {0x201000, 4096, PAGE_WRITE},
    {0x1000201000, 4096, PAGE_READ}, {0x2000201000, 4096, PAGE_READ}, {0x3000201000, 4096, PAGE_READ},
    {0x4000201000, 4096, PAGE_READ}, {0x5000201000, 4096, PAGE_READ}, {0x6000201000, 4096, PAGE_READ},
    {0x7000201000, 4096, PAGE_READ}, {0x201000, 4096, PAGE_READ}, {0x201000, 4096, PAGE_EXEC},
};
enum { NR_EXAMPLES = sizeof EXAMPLES / sizeof *EXAMPLES };

/* Whether both functions leave the same in the TLB, which is empty after that. */
bool shim_fills_as_unicorn(void)
{
    char *tlb = FIELD(G.cpu, CPU_ENV_PTR, char *) - TLB_BEFORE_ENV;
    static struct desc descs[2][NR_EXAMPLES];
    static struct entry entries[2][NR_EXAMPLES];
    static struct io_entry io_entries[2][NR_EXAMPLES];
    uint64_t paddr = (G.physical.frames - 1) << 12;

    U.tlb_flush(G.cpu);
    for (int own = 0; own < 2; own++) {
        memset(desc_of(tlb, MMU_KERNEL)->io_victims, 0, sizeof descs[0][0].io_victims);
        for (int i = 0; i < NR_EXAMPLES; i++) {
            uint64_t page = EXAMPLES[i].page, size = EXAMPLES[i].size;
            if (own)
                fill_tlb(page, paddr, 0, EXAMPLES[i].prot, MMU_KERNEL, size, true);
            else
                U.tlb_set_page(G.cpu, page, paddr, 0, EXAMPLES[i].prot, MMU_KERNEL, size);
            char *fast = tlb + TLB_FAST + 16 * MMU_KERNEL;
            uint64_t at = (page >> 12) & (FIELD(fast, 0, uint64_t) / TLB_ENTRY_SIZE);
            entries[own][i] = FIELD(fast, 8, struct entry *)[at];
            io_entries[own][i] = desc_of(tlb, MMU_KERNEL)->io_table[at];
            descs[own][i] = *desc_of(tlb, MMU_KERNEL);
            descs[own][i].window_begin = descs[own][i].window_most = 0; /* these are flushes' */
            descs[own][i].io_table = NULL; /* a flush may make another */
            for (int victim = 0; victim < VICTIMS; victim++)
                descs[own][i].io_victims[victim].unused = 0;
            io_entries[own][i].unused = 0;
        }
        U.tlb_flush(G.cpu);
    }
    return !memcmp(descs[0], descs[1], sizeof *descs) &&
           !memcmp(entries[0], entries[1], sizeof *entries) &&
           !memcmp(io_entries[0], io_entries[1], sizeof *io_entries);
}
