/*
 * Exceptions: who gets them, and what the CPU does before that. Unicorn does some of it otherwise.
 * Intel SDM volume 3, chapter 6; volume 2, INT n.
 */
#include <string.h>

#include "shim.h"

enum delivering delivering; /* left as it is when delivery faults: then the fault is delivered */
static uint64_t restart;    /* the RIP of what is delivered, if that fails */

/*
 * Whether the debugger wants to see a fault before the guest does. The fault's instruction is at
 * RIP, and has had no effect. It faults again when the guest goes on. An interrupt would be lost.
 */
static bool debugger_catches(uint32_t vector)
{
    uint64_t rip = FIELD(G.env, ENV_EIP, uint64_t);
    bool comes_again = rip == G.debug.let_fault;

    if (!(G.debug.caught_faults >> vector & 1) || delivering == AN_INTERRUPT)
        return false;
    G.debug.let_fault = comes_again ? NOWHERE : rip;
    if (comes_again)
        return false;
    if (left_to_run() != left_at_refund) /* an instruction that always faults was counted */
        G.clock.left++;
    FIELD(G.env, ENV_OLD_EXCEPTION, int32_t) = -1;
    delivering = NOTHING;
    G.debug.stop = STOP_FAULT;
    G.debug.access = vector;
    G.exit.stop |= STOP_DEBUGGER;
    U.emu_stop(G.uc);
    return true;
}

/* ---- delivery by the guest's own IDT ---- */

static uint64_t soft_rip; /* of the last INT n, INT3 or INTO */
static uint32_t soft_length;

void helper_raise_interrupt_x86_64(void *env, int vector, int length)
{
    soft_rip = FIELD(env, ENV_EIP, uint64_t);
    soft_length = length;
    U.raise_interrupt(env, vector, length);
}

void helper_into_x86_64(void *env, int length)
{
    soft_rip = FIELD(env, ENV_EIP, uint64_t);
    soft_length = length;
    U.into(env, length);
}

/* Before an interrupt is delivered. */
void begin_interrupt(void)
{
    wrap_rip();
    delivering = G.vcpu.delivered_kind = AN_INTERRUPT;
    restart = FIELD(G.env, ENV_EIP, uint64_t);
}

/*
 * Deliver an exception, or an INT n. If that faults, Unicorn calls on_interrupt anew, from outside
 * of this function. `rip` is the instruction's address. The instruction may be one that traps.
 */
static void deliver(uint32_t vector, uint64_t rip)
{
    uint32_t *error = &FIELD(G.env, ENV_EXCEPTION_ERROR, uint32_t);
    bool soft = FIELD(G.env, ENV_EXCEPTION_IS_INT, uint32_t);

    /*
     * For a refused gate in long mode, the engine gives n * 16 + 2 where the CPU gives n * 8 + 2.
     */
    if (vector >= 11 && vector <= GP && (*error & 2) && (FIELD(G.env, ENV_HFLAGS, uint32_t) & HF_LMA))
        *error = (*error - 2) / 2 + 2;
    if (delivering >= AN_EXCEPTION && vector >= TS && vector <= GP)
        *error |= 1; /* EXT */
    spend(G.clock.prices[EXIT_DELIVERY]);
    look_between_blocks();
    if (vector == DB)
        FIELD(G.env, ENV_DR + 7 * 8, uint64_t) &= ~(uint64_t)DR7_GD;
    FIELD(G.cpu, CPU_EXCEPTION_INDEX, int32_t) = vector;
    enum delivering before = delivering;
    delivering = soft ? A_SOFTWARE_INTERRUPT : AN_EXCEPTION;
    if (before == NOTHING) {
        G.vcpu.delivered_kind = delivering;
        G.vcpu.delivered_vector = vector;
    }
    restart = rip;
    FIELD(G.env, ENV_HFLAGS, uint32_t) &= ~HF_INHIBIT_IRQ; /* of the instruction before */
    U.do_interrupt(G.cpu);
    delivering = NOTHING;
    FIELD(G.env, ENV_EXCEPTION_IS_INT, uint32_t) = 0;
    if (G.debug.stepping)
        U.emu_stop(G.uc);
}

/*
 * Whether a #NM must be a #UD. The engine looks at CR0.TS first. A CPU looks at CR0.EM first, and
 * for SSE also at CR4.OSFXSR. FXSAVE, FXRSTOR and the x87's instructions have #NM for both.
 */
static bool no_such_simd(const struct instruction *in)
{
    uint32_t op = in->opcode & 0xff;

    if (in->opcode >> 8 == 0 || (in->opcode == 0x0fae && (behind_opcode(in, 0) >> 3 & 7) < 2))
        return false;
    bool mmx = !in->mandatory_prefix && (in->opcode >> 16 || (op >= 0x60 && op < 0x80) ||
                                         (op >= 0xc4 && op != 0xc6));
    return (FIELD(G.env, ENV_CR0, uint64_t) & CR0_EM) ||
           (!mmx && !(FIELD(G.env, ENV_CR4, uint64_t) & CR4_OSFXSR));
}

static int64_t executed_without_ts; /* the count when CR0.TS was hidden for one instruction */

static int64_t executed(void)
{
    return G.clock.end - left_to_run();
}

/* Run the instruction at RIP, which the engine has not, as if CR0.TS were clear. */
static void run_whatever_ts(void)
{
    FIELD(G.env, ENV_HFLAGS, uint32_t) &= ~HF_TS;
    FIELD(G.cpu, CPU_INTERRUPT_REQUEST, uint32_t) |= INTERRUPT_TS_BACK;
    FIELD(G.cpu, CPU_CFLAGS_NEXT_TB, uint32_t) = ONE_INSTRUCTION;
    G.clock.left++;
    executed_without_ts = executed();
}

/* The instruction has run, or faults; false if it is still to run. */
bool take_ts_back(bool faults)
{
    if (!faults && executed() == executed_without_ts)
        return false;
    FIELD(G.cpu, CPU_INTERRUPT_REQUEST, uint32_t) &= ~INTERRUPT_TS_BACK;
    if (FIELD(G.env, ENV_CR0, uint64_t) & CR0_TS)
        FIELD(G.env, ENV_HFLAGS, uint32_t) |= HF_TS;
    return true;
}

/* The engine also has #NM for CRC32 and MOVBE, which have none; 0 if it was not one of them. */
static uint32_t fault_of_ts(void)
{
    struct instruction in;

    if (!decode(&in))
        return NM;
    if (in.opcode == 0x0f38f0 || in.opcode == 0x0f38f1) {
        run_whatever_ts();
        return 0;
    }
    return G.vcpu.native && no_such_simd(&in) ? UD : NM;
}

struct access missed; /* the last that was not in the TLB */

/*
 * The engine has #GP for each access to an address that is not canonical. A CPU has #SS if the
 * access is by the stack's segment. For a branch, it faults at the branch, and not at the target.
 */
static uint32_t fault_of_stray(void)
{
    struct instruction in;

    if (delivering != NOTHING) /* what is written then goes to the stack */
        return missed.kind == ACCESS_WRITE ? SS_FAULT : GP;
    if (missed.kind == ACCESS_FETCH) {
        if (!canonical(FIELD(G.env, ENV_EIP, uint64_t)))
            unmake_branch();
        return GP;
    }
    return decode(&in) && segment_of_access(&in, missed.kind, missed.vaddr) == SS ? SS_FAULT : GP;
}

/* Whether a segment of code that is not 64-bit forbids an access to this linear address. */
static bool forbids(int which, int kind, uint64_t vaddr, uint32_t size)
{
    char *segment = (char *)G.env + ENV_SEGS + SEG_SIZE * which;
    uint32_t flags = FIELD(segment, SEG_FLAGS, uint32_t), limit = FIELD(segment, SEG_LIMIT, uint32_t);
    uint64_t first = (uint32_t)(vaddr - FIELD(segment, SEG_BASE, uint64_t));
    uint64_t last = first + (size ? size - 1 : 0);
    bool code = flags & SEGMENT_CODE, read_or_write = flags & SEGMENT_RW;

    if (!(flags & SEGMENT_P))
        return true;
    if (kind == ACCESS_FETCH)
        return last > limit;
    if (kind == ACCESS_WRITE ? code || !read_or_write : code && !read_or_write)
        return true;
    if (!code && (flags & SEGMENT_DOWN))
        return first <= limit || last > (flags & SEGMENT_B ? 0xffffffff : 0xffff);
    return last > limit;
}

/*
 * The engine does not look at the limits and rights of segments. An access that violates them may
 * show as a page fault. Such a page fault becomes what the CPU has instead, since a CPU looks at
 * the segment first.
 */
static uint32_t fault_of_miss(void)
{
    struct instruction in;
    bool user = FIELD(G.env, ENV_EXCEPTION_ERROR, uint32_t) & PFEC_USER;
    int segment = CS;

    if (code64() || delivering != NOTHING ||
        (!user && (FIELD(G.env, ENV_HFLAGS, uint32_t) & 3) == 3)) /* the CPU's own */
        return PF;
    if (missed.kind != ACCESS_FETCH)
        segment = decode(&in) ? segment_of_access(&in, missed.kind, missed.vaddr) : NO_SEGMENT;
    if (segment == NO_SEGMENT || !forbids(segment, missed.kind, missed.vaddr, missed.size))
        return PF;
    if (missed.kind == ACCESS_FETCH &&
        FIELD(G.env, ENV_EIP, uint64_t) > FIELD(G.env, ENV_SEGS + SEG_SIZE * CS + SEG_LIMIT, uint32_t))
        unmake_branch();
    FIELD(G.env, ENV_CR2, uint64_t) = missed.cr2;
    FIELD(G.env, ENV_EXCEPTION_ERROR, uint32_t) = 0;
    FIELD(G.env, ENV_OLD_EXCEPTION, int32_t) = GP;
    return segment == SS ? SS_FAULT : GP;
}

static void on_interrupt(void *uc, uint32_t vector, void *data)
{
    bool soft = FIELD(G.env, ENV_EXCEPTION_IS_INT, uint32_t);
    uint64_t *rip = &FIELD(G.env, ENV_EIP, uint64_t);

    (void)uc, (void)data;
    wrap_rip();
    if (missed.faults && vector == GP)
        vector = fault_of_stray();
    else if (missed.faults && vector == PF)
        vector = fault_of_miss();
    missed.faults = false;
    if (delivering != NOTHING)
        *rip = restart;
    if (FIELD(G.cpu, CPU_INTERRUPT_REQUEST, uint32_t) & INTERRUPT_TS_BACK)
        take_ts_back(true);
    if (UNLIKELY(vector == NM) && !soft && !(vector = fault_of_ts()))
        return;
    if (UNLIKELY(G.debug.caught_faults) && !soft && debugger_catches(vector))
        return;
    if (G.vcpu.native) {
        if (soft)
            *rip = soft_rip; /* the engine knows where it goes on */
        deliver(vector, *rip);
        return;
    }
    FIELD(G.env, ENV_EXCEPTION_IS_INT, uint32_t) = 0;
    G.exit.size = soft_length;
    if (!(soft ? lane_takes_soft_int(vector) : lane_takes_exception(vector)))
        enter_hypervisor(soft ? EXIT_SOFT_INT : EXIT_EXCEPTION, vector);
    look_between_blocks();
}

/* Whether a VMCALL or VMMCALL is at this address, by the mapping that it was fetched through. */
static bool is_vmcall(uint64_t at)
{
    if (U.load_code(G.env, at) != 0x0f || U.load_code(G.env, at + 1) != 0x01)
        return false;
    uint32_t operand = U.load_code(G.env, at + 2);
    return operand == 0xc1 || operand == 0xd9;
}

/* The engine does not know ICEBP. It is a #DB after itself, whatever the DPL of its gate. */
static bool is_icebp(uint64_t rip)
{
    struct instruction in;

    if (!decode(&in) || in.opcode != 0xf1)
        return false;
    FIELD(G.env, ENV_EIP, uint64_t) = code64() ? rip + in.modrm : (uint32_t)(rip + in.modrm);
    if (G.vcpu.native)
        deliver(DB, rip);
    else
        enter_hypervisor(EXIT_EXCEPTION, DB);
    return true;
}

/*
 * Remember an undefined instruction for the report, unless it is meant to be undefined (UD2, say).
 */
static void note_undefined(uint64_t at)
{
    uint8_t code[sizeof G.vcpu.undefined_code];
    unsigned n = peek_code(at, code, 2);
    bool meant = n == 2 && code[0] == 0x0f &&
                 (code[1] == 0x0b || code[1] == 0xb9 || code[1] == 0xff); /* UD2, UD1, UD0 */

    if (n < 2 || meant)
        return;
    G.vcpu.undefined_bytes = peek_code(at, code, sizeof code);
    memcpy(G.vcpu.undefined_code, code, sizeof code);
    G.vcpu.undefined_rip = FIELD(G.env, ENV_EIP, uint64_t);
    G.vcpu.undefined_bits = code64() ? 64 : FIELD(G.env, ENV_HFLAGS, uint32_t) & HF_CS32 ? 32 : 16;
}

static bool on_undefined(void *uc, void *data)
{
    uint64_t rip = FIELD(G.env, ENV_EIP, uint64_t);
    uint64_t cs_base = FIELD(G.env, ENV_SEGS + SEG_SIZE * CS + SEG_BASE, uint64_t);

    (void)uc, (void)data;
    FIELD(G.env, ENV_OLD_EXCEPTION, int32_t) = -1;
    if (G.vcpu.native && is_vmcall(cs_base + rip)) {
        FIELD(G.env, ENV_EIP, uint64_t) = rip + 3;
        if (!lane_takes_vmcall())
            enter_hypervisor(EXIT_VMCALL, 0);
        if ((FIELD(G.env, ENV_EFLAGS, uint64_t) & EFLAGS_TF) &&
            FIELD(G.env, ENV_EIP, uint64_t) != rip) { /* and not to be made again */
            FIELD(G.env, ENV_DR6, uint64_t) |= DR6_BS;
            deliver(DB, FIELD(G.env, ENV_EIP, uint64_t));
        }
    } else if (is_icebp(rip) || debugger_catches(UD)) {
        return true;
    } else {
        note_undefined(cs_base + rip);
        if (G.vcpu.native)
            deliver(UD, rip);
        else
            enter_hypervisor(EXIT_UNDEFINED, UD);
    }
    return true;
}

void *shim_hook_interrupt(void) { return on_interrupt; }
void *shim_hook_undefined(void) { return on_undefined; }
