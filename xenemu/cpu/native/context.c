/*
 * A vcpu's registers, out of the CPU and into it. G.registers has them in between, each in the form
 * that a guest knows. Unicorn keeps some in another form: FPU and SSE, the mode, the breakpoints
 * that DR7 arms. cpu/context.py has the registers by name. Intel SDM volume 1, section 10.5.1 (the
 * layout of FXSAVE64); volume 3, section 17.2.
 */
#include <string.h>

#include "shim.h"

enum { FX_STATUS = 2, FX_TAGS = 4, FX_OPCODE = 6, FX_IP = 8, FX_DP = 16, FX_MXCSR = 24,
       FX_MXCSR_MASK = 28, FX_ST = 32, FX_XMM = 160 };
enum { X87_REGISTERS = 8, X87_SIZE = 10, XMM_REGISTERS = 16, TOP_SHIFT = 11, TOP = 7 };

static char *st(unsigned n)
{
    unsigned top = FIELD(G.env, ENV_FPSTT, uint32_t);

    return (char *)G.env + ENV_FPREGS + 16 * ((top + n) & TOP);
}

static char *xmm(unsigned n)
{
    return (char *)G.env + ENV_XMM + XMM_SIZE * n;
}

/* Write the FPU's and SSE's state as FXSAVE64 does. */
static void store_fpu(uint8_t *area)
{
    uint32_t top = FIELD(G.env, ENV_FPSTT, uint32_t) & TOP;
    uint8_t valid = 0;

    memset(area, 0, FPU_SIZE);
    for (int i = 0; i < X87_REGISTERS; i++)
        if (!FIELD(G.env, ENV_FPTAGS + i, uint8_t)) /* 1 is empty */
            valid |= 1 << i;
    FIELD(area, 0, uint16_t) = FIELD(G.env, ENV_FPUC, uint16_t);
    FIELD(area, FX_STATUS, uint16_t) =
        (FIELD(G.env, ENV_FPUS, uint16_t) & ~(TOP << TOP_SHIFT)) | top << TOP_SHIFT;
    FIELD(area, FX_TAGS, uint8_t) = valid;
    FIELD(area, FX_OPCODE, uint16_t) = FIELD(G.env, ENV_FPOP, uint16_t);
    FIELD(area, FX_IP, uint64_t) = FIELD(G.env, ENV_FPIP, uint64_t);
    FIELD(area, FX_DP, uint64_t) = FIELD(G.env, ENV_FPDP, uint64_t);
    FIELD(area, FX_MXCSR, uint32_t) = FIELD(G.env, ENV_MXCSR, uint32_t);
    FIELD(area, FX_MXCSR_MASK, uint32_t) = 0xffff;
    for (int i = 0; i < X87_REGISTERS; i++)
        memcpy(area + FX_ST + 16 * i, st(i), X87_SIZE);
    for (int i = 0; i < XMM_REGISTERS; i++)
        memcpy(area + FX_XMM + 16 * i, xmm(i), 16);
}

void shim_load_fpu(const uint8_t *area)
{
    uint16_t status = FIELD(area, FX_STATUS, uint16_t);

    FIELD(G.env, ENV_FPUC, uint16_t) = FIELD(area, 0, uint16_t);
    FIELD(G.env, ENV_FPUS, uint16_t) = status & ~(TOP << TOP_SHIFT);
    FIELD(G.env, ENV_FPSTT, uint32_t) = status >> TOP_SHIFT & TOP;
    for (int i = 0; i < X87_REGISTERS; i++)
        FIELD(G.env, ENV_FPTAGS + i, uint8_t) = !(FIELD(area, FX_TAGS, uint8_t) >> i & 1);
    FIELD(G.env, ENV_FPOP, uint16_t) = FIELD(area, FX_OPCODE, uint16_t);
    FIELD(G.env, ENV_FPIP, uint64_t) = FIELD(area, FX_IP, uint64_t);
    FIELD(G.env, ENV_FPDP, uint64_t) = FIELD(area, FX_DP, uint64_t);
    FIELD(G.env, ENV_MXCSR, uint32_t) = FIELD(area, FX_MXCSR, uint32_t);
    for (int i = 0; i < X87_REGISTERS; i++)
        memcpy(st(i), area + FX_ST + 16 * i, X87_SIZE);
    for (int i = 0; i < XMM_REGISTERS; i++)
        memcpy(xmm(i), area + FX_XMM + 16 * i, 16);
    U.update_fp_status(G.env);
    U.update_mxcsr_status(G.env);
}

/* Load RFLAGS, and make the mode what it, the control registers and segments say. */
static void load_mode(uint64_t rflags, uint32_t cpl, uint32_t waits)
{
    uint32_t *hflags = &FIELD(G.env, ENV_HFLAGS, uint32_t);
    uint32_t *hflags2 = &FIELD(G.env, ENV_HFLAGS2, uint32_t);

    U.write_eflags(G.env, rflags, RFLAGS_ALL);
    U.update_hflags(G.env);
    *hflags &= ~(HF_CPL | HF_INHIBIT_IRQ | HF_OF_EFLAGS);
    *hflags |= cpl | (waits & WAITS_SHADOW ? HF_INHIBIT_IRQ : 0);
    *hflags2 = (*hflags2 & ~HF2_NMI) | (waits & WAITS_NMI_BLOCKED ? HF2_NMI : 0);
    G.vcpu.rflags = U.read_eflags(G.env);
    G.vcpu.rflags_dirty = 0;
    forget_branch();
}

/* Where the CPU keeps MSRs; cpu/context.py has their numbers. */
static const struct { unsigned offset, size; } msr_places[KEPT_MSRS] = {
    {ENV_SYSENTER_CS, 4}, {ENV_SYSENTER_ESP, 8}, {ENV_SYSENTER_EIP, 8}, {ENV_PAT, 8},
    {ENV_STAR, 8}, {ENV_LSTAR, 8}, {ENV_CSTAR, 8}, {ENV_FMASK, 8}, {ENV_KERNEL_GS_BASE, 8},
    {ENV_TSC_AUX, 8},
};
enum { SEGMENT_ATTRIBUTES = 0xf0ff00 };

static uint32_t waits(void)
{
    uint32_t request = FIELD(G.cpu, CPU_INTERRUPT_REQUEST, uint32_t);

    return (FIELD(G.cpu, CPU_HALTED, uint32_t) ? WAITS_HALTED : 0) |
           (request & INTERRUPT_VIRQ ? WAITS_REQUESTED : 0) |
           (request & INTERRUPT_NMI ? WAITS_NMI : 0) |
           (request & INTERRUPT_HELD_DEBUG ? WAITS_DEBUG_HELD : 0) |
           (FIELD(G.env, ENV_HFLAGS2, uint32_t) & HF2_NMI ? WAITS_NMI_BLOCKED : 0) |
           (FIELD(G.env, ENV_HFLAGS, uint32_t) & HF_INHIBIT_IRQ ? WAITS_SHADOW : 0);
}

/* Write the registers of the vcpu in the CPU to G.registers. */
void shim_store(void)
{
    struct registers *to = &G.registers;

    shim_sync_rflags();
    memcpy(to->general, (char *)G.env + ENV_REGS, sizeof to->general);
    to->rip = FIELD(G.env, ENV_EIP, uint64_t);
    to->rflags = U.read_eflags(G.env);
    for (int i = 0; i < SEGMENTS; i++) {
        char *segment = (char *)G.env + ENV_SEGS + SEG_SIZE * i;
        to->selectors[i] = FIELD(segment, 0, uint32_t);
        to->bases[i] = FIELD(segment, SEG_BASE, uint64_t);
        to->limits[i] = FIELD(segment, SEG_LIMIT, uint32_t);
        to->attributes[i] = FIELD(segment, SEG_FLAGS, uint32_t) & SEGMENT_ATTRIBUTES;
    }
    to->cr0 = FIELD(G.env, ENV_CR0, uint64_t);
    to->cr2 = FIELD(G.env, ENV_CR2, uint64_t);
    to->cr3 = FIELD(G.env, ENV_CR3, uint64_t);
    to->cr4 = FIELD(G.env, ENV_CR4, uint64_t);
    to->efer = FIELD(G.env, ENV_EFER, uint64_t);
    to->cpl = FIELD(G.env, ENV_HFLAGS, uint32_t) & HF_CPL;
    memcpy(to->debug, (char *)G.env + ENV_DR, sizeof to->debug);
    for (int i = 0; i < KEPT_MSRS; i++) {
        to->msrs[i] = 0;
        memcpy(&to->msrs[i], (char *)G.env + msr_places[i].offset, msr_places[i].size);
    }
    store_fpu(to->fpu);
    to->waits = waits();
    to->debug_hits = debug_hits();
    to->upcall = G.vcpu.upcall_pending ? (uint64_t)(G.vcpu.upcall_pending - G.physical.ram)
                                       : NOWHERE;
    to->callback_vector = G.vcpu.callback_vector;
    to->apic_vector = G.vcpu.apic_vector;
    to->apic_accepted = G.vcpu.apic_accepted;
    to->delivered_kind = G.vcpu.delivered_kind;
    to->delivered_vector = G.vcpu.delivered_vector;
    to->undefined_bits = G.vcpu.undefined_bits;
    to->undefined_rip = G.vcpu.undefined_rip;
    to->undefined_bytes = G.vcpu.undefined_bytes;
    memcpy(to->undefined_code, G.vcpu.undefined_code, sizeof to->undefined_code);
}

static void load_waits(const struct registers *from)
{
    FIELD(G.cpu, CPU_HALTED, uint32_t) = from->waits & WAITS_HALTED ? 1 : 0;
    FIELD(G.cpu, CPU_EXCEPTION_INDEX, int32_t) = -1;
    FIELD(G.cpu, CPU_INTERRUPT_REQUEST, uint32_t) = 0;
    G.vcpu.upcall_pending = from->upcall == NOWHERE ? NULL : G.physical.ram + from->upcall;
    G.vcpu.callback_vector = from->callback_vector;
    G.vcpu.apic_vector = from->apic_vector;
    G.vcpu.apic_accepted = from->apic_accepted;
    if (from->waits & WAITS_REQUESTED)
        shim_request_interrupt(INTERRUPT_VIRQ);
    if (from->waits & WAITS_NMI)
        shim_request_interrupt(INTERRUPT_NMI);
    if (from->debug_hits)
        shim_request_interrupt(from->waits & WAITS_DEBUG_HELD ? INTERRUPT_HELD_DEBUG
                                                              : INTERRUPT_DEBUG);
}

/* Put the vcpu of G.registers into the CPU. The TLB remains as it is. */
void shim_load(void)
{
    const struct registers *from = &G.registers;

    memcpy((char *)G.env + ENV_REGS, from->general, sizeof from->general);
    FIELD(G.env, ENV_EIP, uint64_t) = from->rip;
    for (int i = 0; i < SEGMENTS; i++) {
        char *segment = (char *)G.env + ENV_SEGS + SEG_SIZE * i;
        FIELD(segment, 0, uint32_t) = from->selectors[i];
        FIELD(segment, SEG_BASE, uint64_t) = from->bases[i];
        FIELD(segment, SEG_LIMIT, uint32_t) = from->limits[i];
        FIELD(segment, SEG_FLAGS, uint32_t) = from->attributes[i];
    }
    FIELD(G.env, ENV_CR0, uint64_t) = from->cr0;
    FIELD(G.env, ENV_CR2, uint64_t) = from->cr2;
    FIELD(G.env, ENV_CR3, uint64_t) = from->cr3;
    FIELD(G.env, ENV_CR4, uint64_t) = from->cr4;
    FIELD(G.env, ENV_EFER, uint64_t) = from->efer;
    for (int i = 0; i < KEPT_MSRS; i++)
        memcpy((char *)G.env + msr_places[i].offset, &from->msrs[i], msr_places[i].size);
    shim_load_fpu(from->fpu);
    load_waits(from);
    G.vcpu.delivered_kind = from->delivered_kind;
    G.vcpu.delivered_vector = from->delivered_vector;
    G.vcpu.undefined_bits = from->undefined_bits;
    G.vcpu.undefined_rip = from->undefined_rip;
    G.vcpu.undefined_bytes = from->undefined_bytes;
    memcpy(G.vcpu.undefined_code, from->undefined_code, sizeof from->undefined_code);
    load_debug(from->debug, from->debug_hits);
    load_mode(from->rflags, from->cpl, from->waits);
}
