/*
 * Instructions that Unicorn gets wrong: RDTSC, PUSHF, port I/O, PAUSE, RDMSR and WRMSR.
 *
 * Intel SDM volume 2, under their names.
 */
#include "shim.h"

static void rdtsc(void *env, uintptr_t pc)
{
    if ((FIELD(env, ENV_CR4, uint64_t) & 4) && (FIELD(env, ENV_HFLAGS, uint32_t) & 3))
        U.raise(env, GP, 0, pc);
    uint64_t tsc = now_ns(pc);
    FIELD(env, ENV_REGS, uint64_t) = (uint32_t)tsc;
    FIELD(env, ENV_REGS + 2 * 8, uint64_t) = tsc >> 32;
}

void helper_rdtsc_x86_64(void *env)
{
    rdtsc(env, RETURN_ADDRESS);
}

void helper_rdtscp_x86_64(void *env)
{
    rdtsc(env, RETURN_ADDRESS);
    FIELD(env, ENV_REGS + 1 * 8, uint64_t) = (uint32_t)FIELD(env, ENV_TSC_AUX, uint64_t);
}

/* PUSHF. The engine would store RF, because it clears RF only at the end of a block. */
uint64_t helper_read_eflags_x86_64(void *env)
{
    return U.read_eflags(env) & ~(uint64_t)(EFLAGS_RF | EFLAGS_VM);
}

/* #GP unless the guest may use the port: by IOPL, or natively by its TSS's bitmap. */
static void check_port(void *env, uint32_t port, int log_size, uintptr_t pc)
{
    if ((FIELD(env, ENV_HFLAGS, uint32_t) & 3) <= ((FIELD(env, ENV_EFLAGS, uint64_t) >> 12) & 3))
        return;
    if (!G.vcpu.native)
        U.raise(env, GP, 0, pc);
    AT_INSTRUCTION(pc, U.check_io[log_size](env, port));
}

static uint32_t port_exit(enum exit_kind kind, uint32_t port, int log_size, uint32_t value)
{
    G.exit.port = port;
    G.exit.size = 1u << log_size;
    G.exit.value = value;
    if (G.vcpu.ports && G.vcpu.ports[port & 0xffff])
        enter_hypervisor(kind, 0);
    else
        spend(G.clock.prices[kind]);
    return G.exit.value;
}

#define PORT_IO(suffix, log_size, ones)                                                          \
    uint64_t helper_in##suffix##_x86_64(void *env, uint32_t port)                                \
    {                                                                                            \
        check_port(env, port, log_size, RETURN_ADDRESS);                                         \
        return port_exit(EXIT_IN, port, log_size, ones) & ones;                                  \
    }                                                                                            \
    void helper_out##suffix##_x86_64(void *env, uint32_t port, uint32_t value)                   \
    {                                                                                            \
        check_port(env, port, log_size, RETURN_ADDRESS);                                         \
        port_exit(EXIT_OUT, port, log_size, value & ones);                                       \
    }
PORT_IO(b, 0, 0xffu)
PORT_IO(w, 1, 0xffffu)
PORT_IO(l, 2, 0xffffffffu)

/*
 * A CPU's PAUSE takes its time, and loops that delay count on it. So many of them in a slice say
 * that the vcpu waits for another one.
 */
void helper_pause_x86_64(void *env, int next_eip_addend)
{
    spend(G.clock.prices[EXIT_PAUSE]);
    if (G.clock.pauses && !--G.clock.pauses) {
        G.exit.stop |= STOP_HYPERVISOR;
        U.emu_stop(G.uc);
    }
    U.pause(env, next_eip_addend);
}

/* MSRs: the few that context switches write stay here, the hypervisor judges the rest. */

void helper_rdmsr_x86_64(void *env)
{
    uint64_t *regs = &FIELD(env, ENV_REGS, uint64_t);

    if (!G.vcpu.native) { /* Unicorn's own API; a PV guest's has faulted */
        U.rdmsr(env);
        return;
    }
    enter_hypervisor(EXIT_RDMSR, 0);
    if (G.exit.answer == REFUSED)
        U.raise(env, GP, 0, RETURN_ADDRESS);
    if (G.exit.answer == NATIVE) {
        U.rdmsr(env);
    } else {
        regs[0] = (uint32_t)G.exit.value;
        regs[2] = G.exit.value >> 32;
    }
}

void helper_wrmsr_x86_64(void *env)
{
    uint64_t *regs = &FIELD(env, ENV_REGS, uint64_t);
    uint32_t number = regs[1];

    G.exit.value = (uint32_t)regs[0] | regs[2] << 32;
    if (!G.vcpu.native) {
        U.wrmsr(env);
        return;
    }
    if (number >= MSR_FS_BASE && number <= MSR_KERNEL_GS_BASE) {
        if (!canonical(G.exit.value))
            U.raise(env, GP, 0, RETURN_ADDRESS);
        U.wrmsr(env);
        return;
    }
    if (lane_takes_eoi(number, G.exit.value))
        return;
    enter_hypervisor(EXIT_WRMSR, 0);
    if (G.exit.answer == REFUSED)
        U.raise(env, GP, 0, RETURN_ADDRESS);
    if (G.exit.answer == NATIVE)
        U.wrmsr(env);
}
