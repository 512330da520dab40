/*
 * From the guest to the hypervisor and back.
 *
 * This file has the call of Python. RFLAGS and TLB flushes are exchanged in `G`, and each call
 * takes some of the guest's time. It has SYSCALL, SYSENTER and CPUID, which are such calls for
 * every kind of guest. And it has the run itself. Intel SDM volume 2, SYSCALL, SYSENTER.
 */
#include "shim.h"

/*
 * Put the RFLAGS that Python set into the CPU. While the guest runs, the arithmetic flags and DF
 * live elsewhere in env. Between runs, all flags are in env->eflags.
 */
enum { FLAGS_RUNNING = 0x00277f00 & ~0xcd5 };

static void sync_rflags(uint32_t mask)
{
    if (G.vcpu.rflags_dirty)
        U.write_eflags(G.env, G.vcpu.rflags, mask);
    G.vcpu.rflags_dirty = 0;
}

void shim_sync_rflags(void)
{
    sync_rflags(RFLAGS_ALL);
}

void apply_requests(void)
{
    sync_rflags(FLAGS_RUNNING);
    if (G.exit.flush) {
        if (G.exit.flush & FLUSH_KEPT)
            outdate_kept_tlbs();
        G.exit.flush = 0;
        U.tlb_flush(G.cpu);
    }
    if (G.exit.stop)
        U.emu_stop(G.uc);
}

void enter_hypervisor(enum exit_kind kind, uint32_t vector)
{
    if (UNLIKELY(FIELD(G.cpu, CPU_INTERRUPT_REQUEST, uint32_t) & INTERRUPT_HELD_DEBUG) &&
        (kind <= EXIT_SYSCALL || kind == EXIT_SYSENTER))
        drop_held_debug_exception();
    G.counters.exits++;
    spend(G.clock.prices[kind]);
    FIELD(G.env, ENV_OLD_EXCEPTION, int32_t) = -1; /* or the next fault arrives as #DF */
    G.exit.kind = kind;
    G.exit.vector = vector;
    G.exit.answer = ANSWERED;
    G.exit.error = FIELD(G.env, ENV_EXCEPTION_ERROR, uint32_t);
    G.vcpu.rflags = U.read_eflags(G.env);
    uint64_t rip = FIELD(G.env, ENV_EIP, uint64_t);
    call_python(G.exit.enter);
    if (FIELD(G.env, ENV_EIP, uint64_t) != rip)
        forget_branch();
    if (G.debug.stepping)
        G.exit.stop |= STOP_DEBUGGER;
    apply_requests();
}

static void load_flat(int which, uint32_t selector, uint32_t flags)
{
    char *segment = (char *)G.env + ENV_SEGS + SEG_SIZE * which;

    FIELD(segment, 0, uint32_t) = selector & 0xfffc;
    FIELD(segment, SEG_BASE, uint64_t) = 0;
    FIELD(segment, SEG_LIMIT, uint32_t) = 0xffffffff;
    FIELD(segment, SEG_FLAGS, uint32_t) = flags;
}

/* Load CS and SS for ring 0, and the mode that follows. */
static void enter_ring0(uint32_t selector, bool long_mode)
{
    uint32_t *hflags = &FIELD(G.env, ENV_HFLAGS, uint32_t);

    load_flat(CS, selector, long_mode ? 0xa09b00 : 0xc09b00);
    load_flat(SS, selector + 8, 0xc09300);
    *hflags &= ~(3u | HF_ADDSEG | HF_CS64);
    *hflags |= HF_CS32 | HF_SS32 | (long_mode ? HF_CS64 : 0);
}

/* Intel's CPUs have SYSCALL in 64-bit code alone. */
static void native_syscall(void *env, int length, uintptr_t pc)
{
    uint64_t flags = U.read_eflags(env);

    if (!(FIELD(env, ENV_EFER, uint64_t) & EFER_SCE) || !code64())
        U.raise(env, UD, 0, pc);
    FIELD(env, ENV_REGS + 1 * 8, uint64_t) = FIELD(env, ENV_EIP, uint64_t) + length;
    FIELD(env, ENV_REGS + 11 * 8, uint64_t) = flags;
    U.write_eflags(env, flags & ~FIELD(env, ENV_FMASK, uint64_t), 0x00277f00u);
    FIELD(env, ENV_EIP, uint64_t) = FIELD(env, ENV_LSTAR, uint64_t);
    enter_ring0(FIELD(env, ENV_STAR, uint64_t) >> 32, true);
}

void helper_syscall_x86_64(void *env, int next_eip_addend)
{
    if (G.vcpu.native) {
        native_syscall(env, next_eip_addend, RETURN_ADDRESS);
        return;
    }
    FIELD(env, ENV_EIP, uint64_t) += next_eip_addend;
    G.exit.by_iret = 0;
    if (lane_takes_syscall())
        return;
    enter_hypervisor(EXIT_SYSCALL, 0);
    if (G.exit.by_iret) /* the block that called would trap at once for TF, as a SYSRET does */
        U.loop_exit_restore(G.cpu, 0);
}

void helper_sysenter_x86_64(void *env, int next_eip_addend)
{
    uint32_t selector = FIELD(env, ENV_SYSENTER_CS, uint32_t);

    if (!G.vcpu.native) {
        FIELD(env, ENV_EIP, uint64_t) += next_eip_addend;
        enter_hypervisor(EXIT_SYSENTER, 0);
        U.loop_exit_restore(G.cpu, 0); /* the block that called would trap for a TF that it had */
    }
    if (!(selector & 0xfffc))
        U.raise(env, GP, 0, RETURN_ADDRESS);
    U.write_eflags(env, U.read_eflags(env) & ~(uint64_t)EFLAGS_IF, EFLAGS_IF | 1u << 16 | 1u << 17);
    enter_ring0(selector, FIELD(env, ENV_HFLAGS, uint32_t) & HF_LMA);
    FIELD(env, ENV_REGS + 4 * 8, uint64_t) = FIELD(env, ENV_SYSENTER_ESP, uint64_t);
    FIELD(env, ENV_EIP, uint64_t) = FIELD(env, ENV_SYSENTER_EIP, uint64_t);
}

void helper_cpuid_x86_64(void *env)
{
    enter_hypervisor(EXIT_CPUID, 0);
    if (G.exit.answer == REFUSED)
        U.raise(env, GP, 0, RETURN_ADDRESS);
}

/* Run from `rip` until the deadline or a stop; returns a uc_err, or GAVE_UP. */
int shim_run(uint64_t rip)
{
    G.exit.stop = 0;
    shim_sync_rflags();
    apply_requests();
    if (G.vcpu.native && G.vcpu.apic_vector != NO_VECTOR)
        shim_request_interrupt(INTERRUPT_VIRQ);
    FIELD(G.env, ENV_OLD_EXCEPTION, int32_t) = -1;
    delivering = NOTHING;
    missed.faults = false;
    FIELD(G.cpu, CPU_CFLAGS_NEXT_TB, uint32_t) = G.debug.stepping ? ONE_INSTRUCTION : ANY_BLOCK;
    int error = run_or_give_up(rip);
    settle();
    wrap_rip();
    G.vcpu.rflags = U.read_eflags(G.env);
    return error;
}
