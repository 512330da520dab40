/*
 * Interrupts of native guests: Xen's callback, the local APIC's, NMI, and what else is requested.
 */
#include "shim.h"

/* A step that an interrupt forestalls ends at its handler. */
static void stop_at_handler(void)
{
    if (!G.debug.stepping)
        return;
    FIELD(G.cpu, CPU_CFLAGS_NEXT_TB, uint32_t) = ANY_BLOCK;
    U.emu_stop(G.uc);
}

bool x86_cpu_exec_interrupt_x86_64(void *cpu, int request)
{
    uint32_t *requested = &FIELD(cpu, CPU_INTERRUPT_REQUEST, uint32_t);

    if (UNLIKELY(request & INTERRUPT_TS_BACK) && !take_ts_back(false))
        return false;
    if (UNLIKELY(request & INTERRUPT_HELD_DEBUG)) {
        if (FIELD(G.env, ENV_HFLAGS, uint32_t) & HF_INHIBIT_IRQ)
            return false;
        *requested &= ~INTERRUPT_HELD_DEBUG;
        U.breakpoint(cpu);
    }
    if ((request & INTERRUPT_NMI) || !(request & INTERRUPT_VIRQ)) {
        begin_interrupt();
        bool taken = U.exec_interrupt(cpu, request & ~INTERRUPT_VIRQ);
        delivering = NOTHING;
        if (taken)
            stop_at_handler();
        return taken;
    }
    bool callback =
        G.vcpu.callback_vector != NO_VECTOR && G.vcpu.upcall_pending && *G.vcpu.upcall_pending;
    int vector = callback ? G.vcpu.callback_vector : G.vcpu.apic_vector;
    if (vector == NO_VECTOR) {
        *requested &= ~INTERRUPT_VIRQ;
        return false;
    }
    if (!(FIELD(G.env, ENV_EFLAGS, uint64_t) & EFLAGS_IF) ||
        (FIELD(G.env, ENV_HFLAGS, uint32_t) & HF_INHIBIT_IRQ))
        return false;
    if (!callback) {
        G.vcpu.apic_accepted = vector;
        G.vcpu.apic_vector = NO_VECTOR;
    }
    begin_interrupt();
    U.hard_interrupt(G.env, vector & 0xff, 1);
    delivering = NOTHING;
    stop_at_handler();
    return true;
}

/* Make the CPU look for interrupts at the next block. */
void shim_request_interrupt(uint32_t kind)
{
    FIELD(G.cpu, CPU_INTERRUPT_REQUEST, uint32_t) |= kind;
    FIELD(G.cpu, CPU_ICOUNT_DECR + 2, uint16_t) = 0xffff;
}
