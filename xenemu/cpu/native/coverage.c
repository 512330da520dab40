/*
 * What the guest ran. A block is translated just before it runs for the first time. So it is enough
 * to note each translation, and a block that runs again costs nothing. A block that is translated
 * again is noted again; cpu/coverage.py keeps the first.
 *
 * That does not say which vcpu ran a block that several run. If somebody wants to know, each vcpu
 * has blocks of its own: each translates what it runs.
 */
#include "shim.h"

/*
 * Note a block that was translated. When there is no room for another, Python takes those that are
 * noted. Whatever becomes of that, the next block is the first again.
 */
void note_block(const void *tb)
{
    struct coverage *coverage = &G.coverage;

    if (LIKELY(!coverage->room))
        return;
    struct block *block = (struct block *)coverage->blocks + coverage->noted;
    block->pc = FIELD(tb, TB_PC, uint64_t);
    block->at = G.clock.end - left_to_run();
    block->bytes = FIELD(tb, TB_SIZE, uint16_t);
    block->instructions = FIELD(tb, TB_ICOUNT, uint16_t);
    block->paged = FIELD(G.env, ENV_CR0, uint64_t) >> 31 & 1;
    block->vcpu = coverage->vcpu;
    if (++coverage->noted == coverage->room) {
        call_python(coverage->full);
        coverage->noted = 0;
    }
}

/*
 * From now on, run and note the blocks of a vcpu; not while the guest runs. QEMU keeps the blocks of
 * different clusters of CPUs apart, as their features may differ. Here, each vcpu is a cluster.
 */
void shim_turn_to_blocks_of(uint32_t vcpu)
{
    G.coverage.vcpu = vcpu;
    FIELD(G.cpu, CPU_CLUSTER_INDEX, uint32_t) = vcpu;
    forget_jumps();
}

/* Translate again all that runs from now on. */
void shim_forget_blocks(void)
{
    tb_flush_x86_64(G.cpu);
}
