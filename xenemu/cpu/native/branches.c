/*
 * Branches to where no code can be. A CPU faults at the branch, as if the branch had not been made.
 * The engine branches, and faults at the fetch. The CPU that guests see is Intel's. Intel SDM
 * volume 2, CALL, JMP, RET, IRET, SYSEXIT, SYSRET.
 */
#include "shim.h"

static uint64_t *rsp_of(void *env)
{
    return &FIELD(env, ENV_REGS + 4 * 8, uint64_t);
}

/* What a near branch does to the stack pointer, which has not happened if it faults. */
static int64_t moved_stack_by(const struct instruction *in)
{
    int64_t word = code64() ? 8 : operand_bits(in) / 8;

    switch (in->opcode) {
    case 0xe8:
        return -word;
    case 0xff:
        return (behind_opcode(in, 0) >> 3 & 7) == 2 ? -word : 0;
    case 0xc3:
        return word;
    case 0xc2:
        return word + (behind_opcode(in, 0) | behind_opcode(in, 1) << 8);
    default:
        return 0;
    }
}

/* Put RIP on the near branch that led to where RIP is, as if the branch had not been made. */
void unmake_branch(void)
{
    uint64_t at = shim_came_from(), *rsp = rsp_of(G.env);
    uint64_t cs_base = FIELD(G.env, ENV_SEGS + SEG_SIZE * CS + SEG_BASE, uint64_t);
    struct instruction in;
    uint64_t target = FIELD(G.env, ENV_EIP, uint64_t);

    forget_branch();
    if (!at)
        return;
    FIELD(G.env, ENV_EIP, uint64_t) = code64() ? at : (uint32_t)(at - cs_base);
    if (!decode(&in)) {
        FIELD(G.env, ENV_EIP, uint64_t) = target;
        return;
    }
    uint64_t before = *rsp - moved_stack_by(&in);
    if (code64())
        *rsp = before;
    else if (FIELD(G.env, ENV_HFLAGS, uint32_t) & HF_SS32)
        *rsp = (uint32_t)before;
    else
        FIELD(rsp, 0, uint16_t) = before;
}

/*
 * The originals below raise with their own return address. That must be the address in the
 * generated code. It is, if the call comes last, because the compiler then makes a jump of it. A
 * guest tests that it does.
 */

void helper_sysret_x86_64(void *env, int log_size)
{
    uint32_t hflags = FIELD(env, ENV_HFLAGS, uint32_t);
    bool to_64_bits = log_size == 2;

    forget_branch();
    if (!(hflags & HF_CS64))
        U.raise(env, UD, 0, RETURN_ADDRESS);
    if (!(hflags & 3) && (FIELD(env, ENV_EFER, uint64_t) & EFER_SCE) && to_64_bits &&
        !canonical(FIELD(env, ENV_REGS + 1 * 8, uint64_t)))
        U.raise(env, GP, 0, RETURN_ADDRESS);
    U.sysret(env, log_size);
}

void helper_sysexit_x86_64(void *env, int log_size)
{
    bool to_64_bits = log_size == 2;

    forget_branch();
    if (!(FIELD(env, ENV_SYSENTER_CS, uint32_t) & 0xfffc) ||
        (to_64_bits && (!canonical(FIELD(env, ENV_REGS + 1 * 8, uint64_t)) ||
                        !canonical(FIELD(env, ENV_REGS + 2 * 8, uint64_t)))))
        U.raise(env, GP, 0, RETURN_ADDRESS);
    U.sysexit(env, log_size);
}

/* Whether a selector is of a 64-bit code segment. */
static bool leads_to_64_bits(uint32_t selector, uintptr_t pc)
{
    char *table = (char *)G.env + ENV_SEGS + SEG_SIZE * (selector & 4 ? LDTR : GDTR);
    uint32_t index = selector & 0xfff8;

    return index + 7 <= FIELD(table, SEG_LIMIT, uint32_t) &&
           (U.load_long(G.env, FIELD(table, SEG_BASE, uint64_t) + index + 4, MMU_KERNEL, pc) &
            SEGMENT_L);
}

void helper_iret_protected_x86_64(void *env, int log_size, int next_eip)
{
    uint64_t rsp = *rsp_of(env);

    forget_branch();
    if (log_size == 2 && !(FIELD(env, ENV_EFLAGS, uint64_t) & EFLAGS_NT) &&
        UNLIKELY(!canonical(U.load_quad(env, rsp, MMU_KERNEL, RETURN_ADDRESS))) &&
        leads_to_64_bits(U.load_long(env, rsp + 8, MMU_KERNEL, RETURN_ADDRESS), RETURN_ADDRESS))
        U.raise(env, GP, 0, RETURN_ADDRESS);
    U.iret(env, log_size, next_eip);
}
