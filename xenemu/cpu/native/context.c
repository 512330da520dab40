/*
 * The part of a vcpu's registers that Unicorn keeps in another form: FPU and SSE, the mode, the
 * breakpoints that DR7 arms. cpu/context.py has the registers by name. Intel SDM volume 1, section
 * 10.5.1 (the layout of FXSAVE64); volume 3, section 17.2.
 */
#include <string.h>

#include "shim.h"

enum { FX_STATUS = 2, FX_TAGS = 4, FX_OPCODE = 6, FX_IP = 8, FX_DP = 16, FX_MXCSR = 24,
       FX_MXCSR_MASK = 28, FX_ST = 32, FX_XMM = 160, FX_SIZE = 512 };
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

/* Write the FPU's and SSE's state as FXSAVE64 does; `area` has 512 bytes. */
void shim_store_fpu(char *area)
{
    uint32_t top = FIELD(G.env, ENV_FPSTT, uint32_t) & TOP;
    uint8_t valid = 0;

    memset(area, 0, FX_SIZE);
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

void shim_load_fpu(const char *area)
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
void shim_load_mode(uint64_t rflags, uint32_t cpl, bool shadow, bool nmi_blocked)
{
    uint32_t *hflags = &FIELD(G.env, ENV_HFLAGS, uint32_t);
    uint32_t *hflags2 = &FIELD(G.env, ENV_HFLAGS2, uint32_t);

    U.write_eflags(G.env, rflags, RFLAGS_ALL);
    U.update_hflags(G.env);
    *hflags &= ~(HF_CPL | HF_INHIBIT_IRQ | HF_OF_EFLAGS);
    *hflags |= cpl | (shadow ? HF_INHIBIT_IRQ : 0);
    *hflags2 = (*hflags2 & ~HF2_NMI) | (nmi_blocked ? HF2_NMI : 0);
    G.vcpu.rflags = U.read_eflags(G.env);
    G.vcpu.rflags_dirty = 0;
    forget_branch();
}

uint64_t shim_store_rflags(void)
{
    shim_sync_rflags();
    return U.read_eflags(G.env);
}
