/*
 * What C does without Python for guests that wait for dom0: it rings a backend's bell, and ends an
 * interrupt of a native guest's local APIC.
 *
 * A backend that takes its time over an event may have a bell on its port (hv/event_channel.py).
 * Then an event that the guest sends there does nothing at once. C notes when it was sent, and ends
 * the slice when the backend wants to look. Python is told before anything else that it does.
 *
 * As everywhere in the lane, C takes what is plain, and leaves the rest as it found it. The
 * reference is hypercalls/event_channel_op.py, pvh/exits.py and pvh/lapic.py.
 */
#include "lane.h"

enum { EVTCHNOP_SEND = 4, PORT_SIZE = 4 };
enum { X2APIC_EOI = 0x80b };

/* The bell of a port of the guest's, or -1. */
static int find_bell(uint32_t port)
{
    for (int bell = 0; G.lane.bells && port && bell < BELLS; bell++)
        if (G.lane.bells[bell].port == port)
            return bell;
    return -1;
}

/* Between blocks, or in an exit: nothing is lent to the generated code. */
static void ring_bell(int bell)
{
    int64_t now_ns = lane_now(), end = now_ns + G.lane.bells[bell].delay_ns - G.clock.skipped_ns;

    if (G.lane.rung >> bell & 1)
        return;
    G.lane.rung |= 1u << bell;
    G.lane.rung_ns[bell] = now_ns;
    if (end < G.clock.end) { /* Engine.limit */
        G.clock.left -= G.clock.end - end;
        G.clock.end = end;
    }
}

/* A PV guest's call, if it sends to a bell. */
bool call_event_channel_op(const uint64_t *args)
{
    uint32_t port;
    int bell;

    if (args[0] != EVTCHNOP_SEND || !copy_in(&port, args[1], sizeof port) ||
        (bell = find_bell(port)) < 0)
        return false;
    take(0);
    ring_bell(bell);
    return true;
}

/* Whether a native vcpu may do without the hypervisor now. */
static bool may_go_natively(void)
{
    return G.lane.open && !G.debug.stepping;
}

/* Do what the VMCALL before RIP asks for, if it sends to a bell; whether it was done. */
bool lane_takes_vmcall(void)
{
    uint64_t *regs = lane_regs(), pointer = regs[RSI];

    if (!may_go_natively() || !code64() || (FIELD(G.env, ENV_HFLAGS, uint32_t) & HF_CPL) ||
        regs[RAX] != NR_EVENT_CHANNEL_OP || (uint32_t)regs[RDI] != EVTCHNOP_SEND ||
        (pointer & 0xfff) > 4096 - PORT_SIZE)
        return false;
    uint64_t maddr = shim_translate(pointer, false);
    if (maddr == NOWHERE)
        return false;
    int bell = find_bell(*(uint32_t *)(G.physical.ram + maddr));
    if (bell < 0)
        return false;
    uint64_t args[] = {EVTCHNOP_SEND, pointer};
    pass(EXIT_VMCALL);
    log_call(NR_EVENT_CHANNEL_OP, args, 2, 0);
    regs[RAX] = 0;
    ring_bell(bell);
    if (G.vcpu.upcall_pending && *G.vcpu.upcall_pending)
        shim_request_interrupt(INTERRUPT_VIRQ);
    return true;
}

/* End the interrupt that the CPU took last, if the local APIC has no other. */
bool lane_takes_eoi(uint32_t msr, uint64_t value)
{
    if (msr != X2APIC_EOI || value || !may_go_natively() || G.vcpu.apic_accepted == NO_VECTOR ||
        (G.vcpu.apic_accepted & (APIC_ALONE | APIC_DONE)) != APIC_ALONE)
        return false;
    pass(EXIT_WRMSR);
    G.vcpu.apic_accepted |= APIC_DONE;
    return true;
}
