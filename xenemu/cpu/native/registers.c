/*
 * Loading control, debug and system segment registers. The engine accepts values that a CPU
 * refuses. This is for native guests. A PV guest's load faults, and the hypervisor judges it. Intel
 * SDM volume 2, LLDT, LTR, MOV to control registers, MOV to debug registers, RDPMC; volume 3,
 * sections 2.5 and 4.4.1, chapter 17.
 */
#include "shim.h"

/* A register's value in the current mode. Outside 64-bit code the engine leaves old upper bits. */
static uint64_t operand(uint64_t value)
{
    return code64() ? value : (uint32_t)value;
}

static void refuse(bool bad, uint32_t error, uintptr_t pc)
{
    if (UNLIKELY(bad))
        U.raise(G.env, GP, error, pc);
}

/* ---- control registers ---- */

enum {
    PDPTES = 4, PDPTE_RESERVED = 0x1e6, /* of one that is present, below the address */
};

/* With PAE paging, a load of CR3 reads four entries. Whether one of them is not allowed. */
static bool bad_pdpte(uint64_t cr3)
{
    uint64_t *entry = machine_entry(cr3 & 0xffffffe0);

    for (int i = 0; entry && i < PDPTES; i++)
        if ((entry[i] & PTE_P) && (entry[i] & PDPTE_RESERVED || entry[i] >> PHYSICAL_BITS))
            return true;
    return false;
}

/* Whether paging with PAE, and not in long mode, is on with these values. */
static bool pae_paging(uint64_t cr0, uint64_t cr4)
{
    return (cr0 & CR0_PG) && (cr4 & CR4_PAE) && !(FIELD(G.env, ENV_EFER, uint64_t) & EFER_LME);
}

static bool bad_cr0(uint64_t value)
{
    uint64_t cr4 = FIELD(G.env, ENV_CR4, uint64_t), old = FIELD(G.env, ENV_CR0, uint64_t);
    uint32_t cs = FIELD(G.env, ENV_SEGS + SEG_SIZE * CS + SEG_FLAGS, uint32_t);
    bool turned_on = (value & ~old & CR0_PG);

    if (value >> 32 || ((value & CR0_PG) && !(value & CR0_PE)) ||
        ((value & CR0_NW) && !(value & CR0_CD)) || (!(value & CR0_PG) && code64()))
        return true;
    if (turned_on && (FIELD(G.env, ENV_EFER, uint64_t) & EFER_LME))
        return !(cr4 & CR4_PAE) || (cs & SEGMENT_L);
    return turned_on && pae_paging(value, cr4) && bad_pdpte(FIELD(G.env, ENV_CR3, uint64_t));
}

static bool bad_cr3(uint64_t value)
{
    if (FIELD(G.env, ENV_HFLAGS, uint32_t) & HF_LMA)
        return value >> PHYSICAL_BITS;
    return pae_paging(FIELD(G.env, ENV_CR0, uint64_t), FIELD(G.env, ENV_CR4, uint64_t)) &&
           bad_pdpte(value);
}

static bool bad_cr4(uint64_t value)
{
    uint64_t cr0 = FIELD(G.env, ENV_CR0, uint64_t), old = FIELD(G.env, ENV_CR4, uint64_t);

    if ((value & ~(uint64_t)CR4_OFFERED) ||
        ((FIELD(G.env, ENV_HFLAGS, uint32_t) & HF_LMA) && !(value & CR4_PAE)))
        return true;
    return ((value ^ old) & CR4_RELOADS_PDPTES) && pae_paging(cr0, value) &&
           bad_pdpte(FIELD(G.env, ENV_CR3, uint64_t));
}

void helper_write_crN_x86_64(void *env, int which, uint64_t value)
{
    uintptr_t pc = RETURN_ADDRESS;

    if (G.vcpu.native) {
        value = operand(value);
        refuse(which == 0 ? bad_cr0(value) : which == 3 ? bad_cr3(value) :
               which == 4 ? bad_cr4(value) : which == 8 ? value > 15 : false, 0, pc);
        if (which == 0)
            value &= CR0_DEFINED;
        if (which == 8) {
            G.exit.value = value;
            enter_hypervisor(EXIT_WRITE_CR8, 0);
            return;
        }
    }
    U.write_cr(env, which, value);
}

uint64_t helper_read_crN_x86_64(void *env, int which)
{
    if (!G.vcpu.native || which != 8)
        return U.read_cr(env, which);
    enter_hypervisor(EXIT_READ_CR8, 0);
    return G.exit.value;
}

/* ---- debug registers ---- */

enum {
    DR6_FIXED = 0xffff0ff0, DR6_DEFINED = 0xe00f,
    DR7_FIXED = 0x400, DR7_DEFINED = 0xffff23ff,
};

/* #UD for DR4 and DR5 with debug extensions, else #DB for any while DR7 guards them. */
static void check_debug_register(int which, uintptr_t pc)
{
    uint64_t *dr = &FIELD(G.env, ENV_DR, uint64_t);

    if ((which == 4 || which == 5) && (FIELD(G.env, ENV_CR4, uint64_t) & CR4_DE))
        U.raise(G.env, UD, 0, pc);
    if (dr[7] & DR7_GD) {
        dr[6] |= DR6_BD;
        U.raise(G.env, DB, 0, pc);
    }
}

void helper_set_dr_x86_64(void *env, int which, uint64_t value)
{
    uintptr_t pc = RETURN_ADDRESS;

    if (G.vcpu.native) {
        value = operand(value);
        check_debug_register(which, pc);
        refuse(which >= 4 && value >> 32, 0, pc);
        if (which == 4 || which == 6)
            value = (value & DR6_DEFINED) | DR6_FIXED;
        else if (which == 5 || which == 7)
            value = (value & DR7_DEFINED) | DR7_FIXED;
    }
    U.set_dr(env, which, value);
}

uint64_t helper_get_dr_x86_64(void *env, int which)
{
    if (G.vcpu.native)
        check_debug_register(which, RETURN_ADDRESS);
    return U.get_dr(env, which);
}

/* ---- the local descriptor table and the task ---- */

enum {
    TYPE_LDT = 2, TYPE_TSS = 9, NOT_OF_MEMORY = 0x1f00, /* type and S */
};

/*
 * The checks of a system descriptor that the engine leaves out: in long mode, that the upper half
 * has no type and the base is canonical, and that a TSS is not a 16-bit one.
 */
static void check_system_descriptor(uint32_t selector, uint32_t type, uintptr_t pc)
{
    char *gdtr = (char *)G.env + ENV_SEGS + SEG_SIZE * GDTR;
    uint32_t index = selector & 0xfff8;
    uint64_t at = FIELD(gdtr, SEG_BASE, uint64_t) + index;
    uint32_t high, base, rest;

    if (!(FIELD(G.env, ENV_HFLAGS, uint32_t) & HF_LMA) || (selector & 4) ||
        index + 15 > FIELD(gdtr, SEG_LIMIT, uint32_t))
        return;
    high = U.load_long(G.env, at + 4, MMU_KERNEL, pc);
    base = U.load_long(G.env, at + 8, MMU_KERNEL, pc);
    rest = U.load_long(G.env, at + 12, MMU_KERNEL, pc);
    refuse((high & NOT_OF_MEMORY) >> 8 != type, selector & 0xfffc, pc);
    if (high & SEGMENT_P) /* else the engine has #NP */
        refuse((rest & NOT_OF_MEMORY) || !canonical((uint64_t)base << 32), selector & 0xfffc, pc);
}

void helper_lldt_x86_64(void *env, int selector)
{
    uintptr_t pc = RETURN_ADDRESS;

    if (selector & 0xfffc)
        check_system_descriptor(selector & 0xffff, TYPE_LDT, pc);
    AT_INSTRUCTION(pc, U.lldt(env, selector));
}

void helper_ltr_x86_64(void *env, int selector)
{
    uintptr_t pc = RETURN_ADDRESS;

    refuse(!(selector & 0xfffc), 0, pc);
    check_system_descriptor(selector & 0xffff, TYPE_TSS, pc);
    AT_INSTRUCTION(pc, U.ltr(env, selector));
}

/* ---- performance counters: there are none, so that the number of any is refused ---- */

void helper_rdpmc_x86_64(void *env)
{
    U.raise(env, GP, 0, 0); /* as what always faults, it counts */
}

/* ---- the mode ---- */

/* Make the CPU's mode what CS, SS, DS and ES say. */
void shim_update_mode(void)
{
    char *segments = (char *)G.env + ENV_SEGS;
    uint32_t cs = FIELD(segments, SEG_SIZE * CS + SEG_FLAGS, uint32_t);
    uint32_t ss = FIELD(segments, SEG_SIZE * SS + SEG_FLAGS, uint32_t);
    uint32_t *hflags = &FIELD(G.env, ENV_HFLAGS, uint32_t);
    uint32_t mode = cs >> 13 & HF_CPL;

    if (cs & SEGMENT_L) {
        mode |= HF_CS64 | HF_CS32 | HF_SS32;
    } else {
        mode |= (cs & SEGMENT_B ? HF_CS32 : 0) | (ss & SEGMENT_B ? HF_SS32 : 0);
        if (!(mode & HF_CS32) || FIELD(segments, SEG_SIZE * SS + SEG_BASE, uint64_t) ||
            FIELD(segments, SEG_SIZE * DS + SEG_BASE, uint64_t) ||
            FIELD(segments, SEG_SIZE * ES + SEG_BASE, uint64_t))
            mode |= HF_ADDSEG;
    }
    *hflags &= ~(HF_CPL | HF_CS32 | HF_SS32 | HF_ADDSEG | HF_CS64);
    *hflags |= mode;
}
