/*
 * The lane's privileged instructions of a kernel, in their plain forms.
 *
 * The reference is pv/emulate.py. As in lane.c, only what is ordinary is done here.
 */
#include "lane.h"

enum { TWO_BYTES = 0x0f, CLI = 0xfa, STI = 0xfb, MOV_FROM_CR = 0x20, RDMSR = 0x32 };

/* Read the code at RIP; false if it comes near the end of its page. */
bool fetch(uint8_t code[LONGEST])
{
    uint64_t at = FIELD(G.env, ENV_EIP, uint64_t);

    if (G.lane.width == 4)
        at = (uint32_t)(at + FIELD(segment_register(CS), SEG_BASE, uint64_t));
    return (at & 0xfff) <= 0x1000 - LONGEST && copy_in(code, at, LONGEST);
}

/* Take an instruction that is plain, with its price. */
void complete(unsigned length)
{
    uint64_t rflags = U.read_eflags(G.env);

    pass(EXIT_EXCEPTION);
    if (rflags & EFLAGS_RF)
        set_rflags(rflags & ~(uint64_t)EFLAGS_RF);
    jump(FIELD(G.env, ENV_EIP, uint64_t) + length);
    spend(G.lane.emulation_ns);
}

/* CLI and STI do nothing: a PV guest's events are masked in its vcpu_info. */
static bool cli_sti(unsigned length)
{
    if (!G.lane.plain_iopl || !G.lane.vcpu->iopl)
        return false;
    complete(length);
    return true;
}

/* MOV from CR2. */
static bool read_cr2(uint8_t rex, uint8_t modrm, unsigned length)
{
    uint64_t cr2 = G.lane.vcpu->cr2;

    if ((modrm >> 3 & 7) != 2 || rex & 4)
        return false;
    complete(length);
    lane_regs()[(modrm & 7) | (rex & 1) << 3] = code64() ? cr2 : (uint32_t)cr2;
    return true;
}

/* RDMSR of the base of a segment. */
static bool read_base(unsigned length)
{
    uint64_t *regs = lane_regs(), value;

    switch ((uint32_t)regs[RCX]) {
    case MSR_FS_BASE: value = FIELD(segment_register(FS), SEG_BASE, uint64_t); break;
    case MSR_GS_BASE: value = FIELD(segment_register(GS), SEG_BASE, uint64_t); break;
    case MSR_KERNEL_GS_BASE: value = G.lane.vcpu->inactive_gs; break;
    default: return false;
    }
    if (G.lane.width != 8)
        return false;
    complete(length);
    regs[RAX] = (uint32_t)value;
    regs[RDX] = value >> 32;
    return true;
}

/* After the #GP of a kernel's, whose instruction is at RIP. */
bool privileged_instruction(void)
{
    uint8_t code[LONGEST], rex = 0;
    unsigned n = 0;

    if (FIELD(G.env, ENV_EXCEPTION_ERROR, uint32_t) & 0xffff || !G.lane.vcpu->kernel_mode ||
        U.read_eflags(G.env) & EFLAGS_TF || is_upcall_due(G.lane.info[UPCALL_MASK]) || !fetch(code))
        return false;
    if (code64() && (code[n] & 0xf0) == 0x40)
        rex = code[n++];
    if (code[n] == CLI || code[n] == STI)
        return cli_sti(n + 1);
    if (code[n] != TWO_BYTES)
        return false;
    if (code[n + 1] == MOV_FROM_CR)
        return read_cr2(rex, code[n + 2], n + 3);
    return code[n + 1] == RDMSR && read_base(n + 2);
}
