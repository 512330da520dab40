/*
 * Indirect jumps: which block comes next, and where the last jump stands.
 *
 * Unicorn's helper_lookup_tb_ptr finds a block in two dependent loads, and forgets all blocks at
 * each TLB flush. This table has everything that is needed in one cache line, and it outlives
 * flushes. An entry of an older generation is good again under two conditions: its block is still
 * valid, and the TLB says that the same frame is mapped for execution there.
 */
#include <string.h>

#include "shim.h"

enum { JUMPS = 8192 };

static struct jump {
    uint64_t pc;
    uint32_t flags, generation;
    uint32_t host, tb;       /* offsets in the code buffer */
    uintptr_t addend;        /* the TLB's, from the guest's page to the host's */
} jumps[JUMPS];
static uint32_t generation = 1;
static uint64_t invalidations; /* of blocks, when last looked */

/* The last jump that was looked up: a host address in its block, and where it led. */
static uintptr_t jump_block;
static uint64_t jump_target;

/* The TLB's addend for code at `pc`, or 0 if it has no such entry; `flags` are a block's. */
uintptr_t code_addend(void *env, uint64_t pc, uint32_t flags)
{
    char *fast = (char *)env - TLB_BEFORE_ENV + TLB_FAST + 16 * ((flags & 3) == 3 ? 1 : 2);
    char *entry = FIELD(fast, 8, char *) + ((pc >> 6) & FIELD(fast, 0, uint64_t));

    return FIELD(entry, TLB_ADDR_CODE, uint64_t) == (pc & ~0xfffull)
               ? FIELD(entry, TLB_ADDEND, uintptr_t) : 0;
}

static __attribute__((noinline)) void *look_up(void *env, struct jump *jump, uint64_t pc,
                                               uint32_t flags)
{
    char *buffer = FIELD(G.tcg, TCG_CODE_GEN_BUFFER, char *);

    if (jump->pc == pc && jump->flags == flags &&
        !(FIELD(buffer + jump->tb, TB_CFLAGS, uint32_t) & CF_INVALID) &&
        jump->addend == code_addend(env, pc, flags)) {
        jump->generation = generation;
        return buffer + jump->host;
    }
    char *host = U.lookup_tb(env);
    uint64_t hash = pc ^ pc >> 6;
    char *tb = FIELD(G.cpu, CPU_TB_JMP_CACHE + 8 * ((hash >> 6 & 0xfc0) | (hash & 0x3f)), char *);
    uintptr_t addend = code_addend(env, pc, flags);
    if (tb && FIELD(tb, TB_TC_PTR, char *) == host && FIELD(tb, TB_PC, uint64_t) == pc &&
        FIELD(tb, TB_PAGE_ADDR_1, uint64_t) == -1ull && addend && !(flags & HF_SMAP))
        *jump = (struct jump){pc, flags, generation, host - buffer, tb - buffer, addend};
    return host;
}

void *helper_lookup_tb_ptr_x86_64(void *env)
{
    uint64_t cs_base = FIELD(env, ENV_SEGS + SEG_SIZE * CS + SEG_BASE, uint64_t);
    uint64_t pc = FIELD(env, ENV_EIP, uint64_t);
    uint32_t flags = FIELD(env, ENV_HFLAGS, uint32_t) |
                     (FIELD(env, ENV_EFLAGS, uint32_t) & EFLAGS_OF_BLOCK);
    struct jump *jump = &jumps[(pc ^ pc >> 12) % JUMPS];

    jump_block = RETURN_ADDRESS;
    jump_target = pc;
    if (UNLIKELY(cs_base))
        return U.lookup_tb(env);
    if (UNLIKELY(FIELD(G.tcg, TCG_INVALIDATIONS, uint64_t) != invalidations)) {
        invalidations = FIELD(G.tcg, TCG_INVALIDATIONS, uint64_t);
        generation++;
    }
    if (jump->pc == pc && jump->flags == flags && jump->generation == generation)
        return FIELD(G.tcg, TCG_CODE_GEN_BUFFER, char *) + jump->host;
    return look_up(env, jump, pc, flags);
}

/* The TLB, or some of it, was flushed. */
void age_jumps(void)
{
    generation++;
}

/* A page was flushed from the TLB. */
void tb_flush_jmp_cache_x86_64(void *cpu, uint64_t vaddr)
{
    generation++;
    U.flush_jmp_cache(cpu, vaddr);
}

void forget_branch(void)
{
    jump_block = 0;
}

void forget_jumps(void)
{
    memset(jumps, 0, sizeof jumps);
    jump_block = 0;
}

/* All blocks are gone: this engine's, or those of another engine that is closed during a run. */
void tb_flush_x86_64(void *cpu)
{
    if (cpu == G.cpu)
        forget_jumps();
    forget_unfinished();
    U.tb_flush(cpu);
}

/*
 * The linear address of the jump that led to RIP; 0 if no jump did, or if it is not known. A jump
 * within a page is not looked up. But a fetch within that page cannot fail either.
 */
uint64_t shim_came_from(void)
{
    void *tb = block_at(jump_block);

    if (!tb || jump_target != FIELD(G.env, ENV_EIP, uint64_t))
        return 0;
    uint64_t at = FIELD(tb, TB_PC, uint64_t);
    const uint8_t *data = FIELD(tb, TB_TC_PTR, uint8_t *) + FIELD(tb, TB_TC_SIZE, uint64_t);
    for (int n = FIELD(tb, TB_ICOUNT, uint16_t); n > 0; n--) {
        at += sleb128(&data);
        sleb128(&data); /* cc_op */
        sleb128(&data); /* host address */
    }
    return at;
}
