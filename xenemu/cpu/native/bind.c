/*
 * Where the shim meets Unicorn and Python: Unicorn's original functions, the engine that is
 * attached, and tables of what the shim shares with Python (shared.def).
 */
#include <dlfcn.h>

#include "shim.h"

struct shared G;
struct unicorn U;

/*
 * A table of each shared subject, with the subject's place; the last entry has the struct's size.
 */
struct member {
    const char *name, *type;
    uint32_t offset, count; /* of elements, if it is an array */
};
#define SUBJECT(name)                                                                             \
    const struct member *shim_##name(void **place)                                                \
    {                                                                                             \
        typedef struct name subject;                                                              \
        *place = &G.name;                                                                         \
        static const struct member members[] = {
#define MEMBER(type, name, array)                                                                 \
    {#name, #type, offsetof(subject, name), sizeof(((subject *)0)->name) / sizeof(type)},
#define END(name)                                                                                 \
            {NULL, NULL, sizeof(subject), 0}};                                                    \
        return members;                                                                           \
    }
#include "shared.def"

/* Tables of the records that Python declares as well. */
#define RECORD page_info
#define RECORD_TABLE shim_page_info
#define RECORD_FIELDS "page_info.def"
#include "record_table.h"
#define RECORD pv_vcpu
#define RECORD_TABLE shim_pv_vcpu
#define RECORD_FIELDS "pv_vcpu.def"
#include "record_table.h"
#define RECORD call_record
#define RECORD_TABLE shim_call_record
#define RECORD_FIELDS "call_record.def"
#include "record_table.h"

/* The constants that Python uses: the exits, and what else is named here; the last has no name. */
struct constant {
    const char *name;
    int64_t value;
};

const struct constant *shim_constants(void)
{
#define EXIT_CONSTANT(name) {"EXIT_" #name, EXIT_##name},
#define CONSTANT(name) {#name, name},
    static const struct constant constants[] = {
        EXITS(EXIT_CONSTANT)
        CONSTANT(ANSWERED) CONSTANT(REFUSED) CONSTANT(NATIVE)
        CONSTANT(STOP_HYPERVISOR) CONSTANT(STOP_DEBUGGER)
        CONSTANT(STOP_BREAKPOINT) CONSTANT(STOP_WATCHPOINT) CONSTANT(STOP_FAULT)
        CONSTANT(GAVE_UP) CONSTANT(NO_VECTOR) CONSTANT(FLUSH_OWN) CONSTANT(FLUSH_KEPT)
        CONSTANT(CALLS_KEPT) CONSTANT(BELLS) CONSTANT(APIC_ALONE) CONSTANT(APIC_DONE)
        CONSTANT(L1_LEFT) CONSTANT(L1_ADJUSTED)
        CONSTANT(NOTED_CALL) CONSTANT(NOTED_PAGE_FAULT) CONSTANT(NOTED_SYSCALL)
        CONSTANT(NOTED_INT80) CONSTANT(NOTED_IRET)
        CONSTANT(WAITS_HALTED) CONSTANT(WAITS_REQUESTED) CONSTANT(WAITS_NMI)
        CONSTANT(WAITS_NMI_BLOCKED) CONSTANT(WAITS_SHADOW) CONSTANT(WAITS_DEBUG_HELD)
        CONSTANT(INTERRUPT_VIRQ) CONSTANT(INTERRUPT_NMI) CONSTANT(INTERRUPT_DEBUG)
        CONSTANT(INTERRUPT_HELD_DEBUG)
        CONSTANT(UC_NO_EXIT_REQUEST)
        CONSTANT(CPU_INTERRUPT_REQUEST) CONSTANT(CPU_HALTED) CONSTANT(CPU_EXCEPTION_INDEX)
        CONSTANT(ENV_REGS) CONSTANT(ENV_EIP) CONSTANT(ENV_HFLAGS) CONSTANT(ENV_SEGS)
        CONSTANT(ENV_CR0) CONSTANT(ENV_CR2) CONSTANT(ENV_EFER) CONSTANT(ENV_DR)
        CONSTANT(ENV_FPSTT) CONSTANT(ENV_FPUS) CONSTANT(ENV_FPUC) CONSTANT(ENV_MXCSR) CONSTANT(ENV_XMM)
        CONSTANT(ENV_SYSENTER_CS) CONSTANT(ENV_SYSENTER_ESP) CONSTANT(ENV_SYSENTER_EIP)
        CONSTANT(ENV_STAR) CONSTANT(ENV_LSTAR) CONSTANT(ENV_CSTAR) CONSTANT(ENV_FMASK)
        CONSTANT(ENV_KERNEL_GS_BASE) CONSTANT(ENV_TSC_AUX) CONSTANT(ENV_PAT)
        CONSTANT(ENV_OLD_EXCEPTION) CONSTANT(ENV_FEATURES)
        CONSTANT(ENV_FPOP) CONSTANT(ENV_FPIP) CONSTANT(ENV_FPDP) CONSTANT(ENV_FPREGS)
        CONSTANT(ENV_FPTAGS) CONSTANT(ENV_HFLAGS2)
        CONSTANT(SEG_BASE) CONSTANT(SEG_LIMIT) CONSTANT(SEG_SIZE) CONSTANT(XMM_SIZE)
        CONSTANT(HF_CPL) CONSTANT(HF_INHIBIT_IRQ) CONSTANT(HF_TS) CONSTANT(HF_CS64) CONSTANT(HF2_NMI)
        {NULL, 0},
    };
    return constants;
}

/* Where the engine's CPUX86State and CPUState are. */
void *shim_env(void) { return G.env; }
void *shim_cpu(void) { return G.cpu; }

/* Find Unicorn's originals; returns the name of the first one missing, or NULL. */
const char *shim_bind(void *unicorn)
{
    static const struct { const char *name; void *slot; } wanted[] = {
        {"cpu_loop_exit_restore_x86_64", &U.loop_exit_restore},
        {"uc_emu_stop", &U.emu_stop},
        {"uc_emu_start", &U.emu_start},
        {"raise_exception_err_ra_x86_64", &U.raise},
        {"cpu_restore_state_x86_64", &U.restore_state},
        {"tcg_tb_lookup_x86_64", &U.tb_lookup},
        {"translator_loop_x86_64", &U.translator_loop},
        {"tcg_gen_code_x86_64", &U.gen_code},
        {"helper_lookup_tb_ptr_x86_64", &U.lookup_tb},
        {"tb_flush_jmp_cache_x86_64", &U.flush_jmp_cache},
        {"tb_flush_x86_64", &U.tb_flush},
        {"x86_cpu_tlb_fill_x86_64", &U.tlb_fill},
        {"tlb_set_page_with_attrs_x86_64", &U.tlb_set_page},
        {"tlb_set_dirty_x86_64", &U.tlb_set_dirty},
        {"tlb_flush_by_mmuidx_x86_64", &U.tlb_flush_by_mmuidx},
        {"tb_invalidate_phys_page_fast_x86_64", &U.invalidate_fast},
        {"tb_invalidate_phys_range_x86_64", &U.invalidate_range},
        {"helper_read_eflags_x86_64", &U.read_eflags},
        {"helper_write_eflags_x86_64", &U.write_eflags},
        {"tlb_flush_x86_64", &U.tlb_flush},
        {"tlb_flush_page_x86_64", &U.tlb_flush_page},
        {"x86_cpu_do_interrupt_x86_64", &U.do_interrupt},
        {"do_interrupt_x86_hardirq_x86_64", &U.hard_interrupt},
        {"x86_cpu_exec_interrupt_x86_64", &U.exec_interrupt},
        {"cpu_ldub_code_x86_64", &U.load_code},
        {"tlb_vaddr_to_host_x86_64", &U.host_address},
        {"helper_raise_interrupt_x86_64", &U.raise_interrupt},
        {"helper_into_x86_64", &U.into},
        {"helper_rdmsr_x86_64", &U.rdmsr},
        {"helper_wrmsr_x86_64", &U.wrmsr},
        {"helper_write_crN_x86_64", &U.write_cr},
        {"helper_read_crN_x86_64", &U.read_cr},
        {"helper_set_dr_x86_64", &U.set_dr},
        {"helper_get_dr_x86_64", &U.get_dr},
        {"helper_lldt_x86_64", &U.lldt},
        {"helper_ltr_x86_64", &U.ltr},
        {"cpu_ldl_mmuidx_ra_x86_64", &U.load_long},
        {"cpu_ldq_mmuidx_ra_x86_64", &U.load_quad},
        {"helper_sysret_x86_64", &U.sysret},
        {"helper_sysexit_x86_64", &U.sysexit},
        {"helper_iret_protected_x86_64", &U.iret},
        {"cpu_x86_update_dr7_x86_64", &U.update_dr7},
        {"breakpoint_handler_x86_64", &U.breakpoint},
        {"x86_update_hflags_x86_64", &U.update_hflags},
        {"update_fp_status_x86_64", &U.update_fp_status},
        {"update_mxcsr_status_x86_64", &U.update_mxcsr_status},
        {"helper_pause_x86_64", &U.pause},
        {"uc_mmio_map", &U.mmio_map},
        {"helper_check_iob_x86_64", &U.check_io[0]},
        {"helper_check_iow_x86_64", &U.check_io[1]},
        {"helper_check_iol_x86_64", &U.check_io[2]},
    };
    for (unsigned i = 0; i < sizeof wanted / sizeof *wanted; i++) {
        void *found = dlsym(unicorn, wanted[i].name);
        if (!found)
            return wanted[i].name;
        *(void **)wanted[i].slot = found;
    }
    return 0;
}

/* Take over an engine: its handle is in `uc`. */
void shim_attach(void *uc)
{
    G.uc = uc;
    G.cpu = FIELD(uc, UC_CPU, void *);
    G.env = FIELD(G.cpu, CPU_ENV_PTR, void *);
    G.tcg = FIELD(uc, UC_TCG_CTX, void *);
    forget_jumps();
    forget_unfinished();
    forget_kept_tlbs();
    G.vcpu.callback_vector = G.vcpu.apic_vector = G.vcpu.apic_accepted = NO_VECTOR;
    G.vcpu.rflags = U.read_eflags(G.env);
    forget_debugging();
}
