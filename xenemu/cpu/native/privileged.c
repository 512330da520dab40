/*
 * The lane's privileged instructions: those that Xen emulates for a kernel, in their plain forms.
 *
 * The reference is pv/emulate.py. As in lane.c, only what is ordinary is done here.
 */
#include "lane.h"

enum { CLI = 0xfa, STI = 0xfb };

/* CLI and STI do nothing: a PV guest's events are masked in its vcpu_info. */
static bool is_cli_sti(uint8_t opcode)
{
    return (opcode == CLI || opcode == STI) && G.lane.plain_iopl && G.lane.vcpu->iopl;
}

/* After the #GP of a kernel's, whose instruction is at RIP. */
bool privileged_instruction(void)
{
    uint64_t rip = FIELD(G.env, ENV_EIP, uint64_t), rflags = U.read_eflags(G.env), at = rip;
    uint8_t opcode;

    if (FIELD(G.env, ENV_EXCEPTION_ERROR, uint32_t) & 0xffff || !G.lane.vcpu->kernel_mode ||
        rflags & EFLAGS_TF || is_upcall_due(G.lane.info[UPCALL_MASK]))
        return false;
    if (G.lane.width == 4)
        at = (uint32_t)(rip + FIELD(segment_register(CS), SEG_BASE, uint64_t));
    if (!copy_in(&opcode, at, sizeof opcode) || !is_cli_sti(opcode))
        return false;
    pass(EXIT_EXCEPTION);
    if (rflags & EFLAGS_RF)
        set_rflags(rflags & ~(uint64_t)EFLAGS_RF);
    jump(rip + 1);
    spend(G.lane.emulation_ns);
    return true;
}
