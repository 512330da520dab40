/*
 * Exceptions: to whom they go, and what the CPU does before that, which Unicorn does otherwise.
 */
#include "shim.h"

/*
 * Whether the debugger wants to see a fault before the guest does. Its instruction is at RIP, has
 * had no effect, and faults again when it goes on.
 */
static bool debugger_catches(uint32_t vector)
{
    uint64_t rip = FIELD(G.env, ENV_EIP, uint64_t);
    bool comes_again = rip == G.let_fault;

    if (!(G.caught_faults >> vector & 1))
        return false;
    G.let_fault = comes_again ? NOWHERE : rip;
    if (comes_again)
        return false;
    if (left_to_run() != left_at_refund) /* an instruction that always faults was counted */
        G.left++;
    FIELD(G.env, ENV_OLD_EXCEPTION, int32_t) = -1;
    G.debug_stop = STOP_FAULT;
    G.debug_access = vector;
    G.stop |= STOP_DEBUGGER;
    U.emu_stop(G.uc);
    return true;
}

/* Deliver an exception by the guest's own IDT. */
bool delivering; /* something that is not INT n: what faults meanwhile says EXT */

static void deliver(uint32_t vector)
{
    uint32_t *error = &FIELD(G.env, ENV_EXCEPTION_ERROR, uint32_t);
    bool nested = delivering;

    /* A refused gate in long mode: the engine gives n * 16 + 2 where the CPU gives n * 8 + 2. */
    if (vector >= 11 && vector <= GP && (*error & 2) && (FIELD(G.env, ENV_HFLAGS, uint32_t) & HF_LMA))
        *error = (*error - 2) / 2 + 2;
    if (nested && vector >= 10 && vector <= GP)
        *error |= 1;
    if (vector == DB)
        FIELD(G.env, ENV_DR + 7 * 8, uint64_t) &= ~(uint64_t)DR7_GD;
    FIELD(G.cpu, CPU_EXCEPTION_INDEX, int32_t) = vector;
    delivering = !FIELD(G.env, ENV_EXCEPTION_IS_INT, uint32_t);
    U.do_interrupt(G.cpu);
    delivering = false;
    FIELD(G.env, ENV_EXCEPTION_IS_INT, uint32_t) = 0;
    if (G.stepping)
        U.emu_stop(G.uc);
}

static void on_interrupt(void *uc, uint32_t vector, void *data)
{
    (void)uc, (void)data;
    if (UNLIKELY(G.caught_faults) && !FIELD(G.env, ENV_EXCEPTION_IS_INT, uint32_t) &&
        debugger_catches(vector))
        return;
    if (G.native) {
        deliver(vector);
        return;
    }
    bool soft = FIELD(G.env, ENV_EXCEPTION_IS_INT, uint32_t);
    FIELD(G.env, ENV_EXCEPTION_IS_INT, uint32_t) = 0;
    enter_hypervisor(soft ? EXIT_SOFT_INT : EXIT_EXCEPTION, vector);
}

/* Whether a VMCALL or VMMCALL is at this address, by the mapping that it was fetched through. */
static bool is_vmcall(uint64_t at)
{
    if (U.load_code(G.env, at) != 0x0f || U.load_code(G.env, at + 1) != 0x01)
        return false;
    uint32_t operand = U.load_code(G.env, at + 2);
    return operand == 0xc1 || operand == 0xd9;
}

static bool on_undefined(void *uc, void *data)
{
    (void)uc, (void)data;
    if (!G.native) {
        if (!debugger_catches(UD))
            enter_hypervisor(EXIT_UNDEFINED, UD);
        return true;
    }
    uint64_t rip = FIELD(G.env, ENV_EIP, uint64_t);
    uint64_t cs_base = FIELD(G.env, ENV_SEGS + SEG_SIZE * CS + SEG_BASE, uint64_t);

    FIELD(G.env, ENV_OLD_EXCEPTION, int32_t) = -1;
    if (!is_vmcall(cs_base + rip) && debugger_catches(UD))
        return true;
    if (is_vmcall(cs_base + rip)) {
        FIELD(G.env, ENV_EIP, uint64_t) = rip + 3;
        enter_hypervisor(EXIT_VMCALL, 0);
        if ((FIELD(G.env, ENV_EFLAGS, uint64_t) & EFLAGS_TF) &&
            FIELD(G.env, ENV_EIP, uint64_t) != rip) { /* and not to be made again */
            FIELD(G.env, ENV_DR6, uint64_t) |= DR6_BS;
            deliver(DB);
        }
    } else {
        deliver(UD);
    }
    return true;
}

void *shim_hook_interrupt(void) { return on_interrupt; }
void *shim_hook_undefined(void) { return on_undefined; }
