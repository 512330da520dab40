/*
 * The inside of Unicorn 2.1.4 on x86-64 Linux: the offsets in its structs, and its own functions.
 * At the start, cpu/self_check.py compares the offsets, and shim_bind() finds the functions.
 */
#ifndef UNICORN_H
#define UNICORN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define FIELD(base, offset, type) (*(type *)((char *)(base) + (offset)))
#define RETURN_ADDRESS ((uintptr_t)__builtin_return_address(0))
#define LIKELY(x) __builtin_expect(!!(x), 1)
#define UNLIKELY(x) __builtin_expect(!!(x), 0)

enum { /* struct uc_struct */
    UC_CPU = 440, UC_TCG_CTX = 0x300, UC_NO_EXIT_REQUEST = 2034,
};
enum { /* CPUState */
    CPU_CFLAGS_NEXT_TB = 24, CPU_INTERRUPT_REQUEST = 28, CPU_CLUSTER_INDEX = 0x8194, CPU_HALTED = 33176,
    CPU_EXCEPTION_INDEX = 33184, CPU_ENV_PTR = 296, CPU_TCG_EXIT_REQ = 0x81b8,
    CPU_ICOUNT_DECR = 0x8a40, CPU_WATCHPOINT_HIT = 0x8168, CPU_TB_JMP_CACHE = 0x138,
    CPU_BREAKPOINTS = 0x8148,
};
enum { /* CPUX86State */
    ENV_REGS = 0, ENV_EIP = 128, ENV_EFLAGS = 136, ENV_CC_SRC = 152, ENV_HFLAGS = 176, ENV_HFLAGS2 = 180, ENV_SEGS = 184,
    ENV_CR0 = 424, ENV_CR2 = 424 + 2 * 8, ENV_CR3 = 424 + 3 * 8, ENV_CR4 = 424 + 4 * 8,
    ENV_EFER = 592, ENV_FPSTT = 604, ENV_FPUS = 608, ENV_FPUC = 610, ENV_FPTAGS = 612, ENV_FPREGS = 624,
    ENV_FPOP = 752, ENV_FPIP = 760, ENV_FPDP = 768, ENV_MXCSR = 816, ENV_XMM = 824,
    ENV_SYSENTER_CS = 4800, ENV_SYSENTER_ESP = 4808, ENV_SYSENTER_EIP = 4816,
    ENV_STAR = 4824, ENV_LSTAR = 4840, ENV_CSTAR = 4848,
    ENV_FMASK = 4856, ENV_KERNEL_GS_BASE = 4864, ENV_TSC_AUX = 4896,
    ENV_EXCEPTION_ERROR = 5384, ENV_EXCEPTION_IS_INT = 5388, ENV_DR = 5400, ENV_DR6 = 5400 + 6 * 8,
    ENV_WATCHPOINTS = 5464, /* pointers, for DR0 to DR3; breakpoints, where DR7 says that */
    ENV_OLD_EXCEPTION = 5496, ENV_PAT = 5280, ENV_FEATURES = 5632,
};
enum { XMM_SIZE = 64 };
enum { SEG_BASE = 8, SEG_LIMIT = 16, SEG_FLAGS = 20, SEG_SIZE = 24 };
enum { /* of a segment's flags, which are as in a descriptor's upper half */
    SEGMENT_RW = 1 << 9, SEGMENT_DOWN = 1 << 10, SEGMENT_CODE = 1 << 11, SEGMENT_P = 1 << 15,
    SEGMENT_L = 1 << 21, SEGMENT_B = 1 << 22,
};
enum { ES, CS, SS, DS, FS, GS, LDTR, TR, GDTR, IDTR, SEGMENTS };
enum { /* TranslationBlock, TCGContext, TCGOp */
    TB_PC = 0, TB_SIZE = 20, TB_ICOUNT = 22, TB_CFLAGS = 24, TB_TC_PTR = 32, TB_TC_SIZE = 40,
    TB_PAGE_ADDR_1 = 0x50, CF_INVALID = 0x40000, TCG_INVALIDATIONS = 0xd8,
    TCG_CODE_GEN_BUFFER = 0xa0, TCG_CODE_GEN_BUFFER_SIZE = 0xb8, TCG_FIRST_OP = 0x7388,
    OP_NEXT = 8, OP_ARG1 = 32,
};
enum { /* CPUTLB, which lies before env; three MMU modes */
    TLB_BEFORE_ENV = 2192, TLB_DESC = 32, TLB_DESC_SIZE = 696, TLB_WINDOW_BEGIN = 16,
    TLB_VICTIMS = 48, TLB_FAST = 2128, MMU_MODES = 3, VICTIMS = 8, TLB_ENTRY_SIZE = 64,
    TLB_ADDR_WRITE = 8, TLB_ADDR_CODE = 16, TLB_ADDEND = 32,
    TLB_DIRTY = 0, TLB_IOTLB = 688, IOTLB_ENTRY_SIZE = 16, JMP_CACHE_SIZE = 4096 * 8,
};
enum { TLB_INVALID = 1 << 11, TLB_MMIO = 1 << 9, TLB_NOTDIRTY = 1 << 10, TLB_NOT_PLAIN_RAM = 0xe40, TLB_FLUSHES_PER_WINDOW = 256 };
enum { PAGE_READ = 1, PAGE_WRITE = 2, PAGE_EXEC = 4, ACCESS_READ = 0, ACCESS_WRITE = 1, ACCESS_FETCH = 2 };
enum { MMU_KSMAP = 0, MMU_USER = 1, MMU_KERNEL = 2 };
enum { EFER_SCE = 1 << 0, EFER_LME = 1 << 8, EFER_LMA = 1 << 10, EFER_NXE = 1 << 11 };
enum {
    CR0_PE = 1u << 0, CR0_EM = 1u << 2, CR0_TS = 1u << 3, CR0_ET = 1u << 4, CR0_WP = 1u << 16, CR0_NW = 1u << 29, CR0_CD = 1u << 30,
    CR0_PG = 1u << 31, CR0_DEFINED = 0xe005003f,
    CR4_DE = 1u << 3, CR4_PAE = 1u << 5, CR4_RELOADS_PDPTES = 0xb0, /* PSE, PAE, PGE */
    CR4_OSFXSR = 1u << 9, CR4_FSGSBASE = 1u << 16,
    CR4_OFFERED = 0x7fc | CR4_FSGSBASE, /* and TSD to OSXMMEXCPT: what CPUID offers */
};
enum {
    PTE_P = 1, PTE_RW = 2, PTE_US = 4, PTE_A = 1 << 5, PTE_D = 1 << 6, PTE_PS = 1 << 7,
    PTE_LARGE_PAT = 1 << 12,
};
#define PTE_ADDRESS 0x000ffffffffff000ull
#define PTE_RESERVED 0x000fff0000000000ull /* above PHYSICAL_BITS */
enum { PHYSICAL_BITS = 40 };
enum { MSR_FS_BASE = 0xc0000100, MSR_GS_BASE, MSR_KERNEL_GS_BASE };
#define PTE_NX (1ull << 63)
enum { HF_CPL = 3, HF_INHIBIT_IRQ = 1 << 3, HF_CS32 = 1 << 4, HF_SS32 = 1 << 5, HF_ADDSEG = 1 << 6 };
enum { HF_TS = 1 << 11, HF_LMA = 1 << 14, HF_CS64 = 1 << 15, HF_SMAP = 1 << 23 };
enum { HF_OF_EFLAGS = 0x23100, HF2_NMI = 1 << 2 }; /* TF, IOPL, VM: blocks have them anyway */
enum { EFLAGS_CF = 1, EFLAGS_TF = 1 << 8, EFLAGS_IF = 1 << 9, EFLAGS_NT = 1 << 14 };
enum { EFLAGS_RF = 1 << 16, EFLAGS_VM = 1 << 17, RFLAGS_ALL = 0x00277fd5 };
enum { DR6_BD = 1 << 13, DR6_BS = 1 << 14, DR7_GD = 1 << 13 };
enum { EFLAGS_OF_BLOCK = 0x73100 }; /* TF, IOPL, RF, VM, AC: what translation depends on */
enum { INTERRUPT_VIRQ = 0x100, INTERRUPT_NMI = 0x200, INTERRUPT_DEBUG = 0x80 };
enum { INTERRUPT_TS_BACK = 8, INTERRUPT_HELD_DEBUG = 0x2000 }; /* requests of nobody else */
enum { PFEC_USER = 1 << 2 };
enum { DB = 1, UD = 6, NM = 7, TS = 10, NP, SS_FAULT, GP, PF };
/* Of a block: it has one instruction, and none of the debugger's breakpoints (QEMU's CF_LAST_IO). */
enum { ONE_INSTRUCTION = 0x8001, HIDES_BREAKPOINTS = 0x8000, ANY_BLOCK = -1 };

/* Unicorn's own functions. */
extern struct unicorn {
    void (*loop_exit_restore)(void *cpu, uintptr_t pc);
    int (*emu_stop)(void *uc);
    int (*emu_start)(void *uc, uint64_t begin, uint64_t until, uint64_t timeout, uint64_t count);
    void (*raise)(void *env, int vector, int error, uintptr_t pc);
    bool (*restore_state)(void *cpu, uintptr_t pc, bool will_exit);
    void *(*tb_lookup)(void *tcg_ctx, uintptr_t pc);
    void (*translator_loop)(const void *ops, void *db, void *cpu, void *tb, int max_insns);
    int (*gen_code)(void *tcg_ctx, void *tb);
    void *(*lookup_tb)(void *env);
    void (*flush_jmp_cache)(void *cpu, uint64_t vaddr);
    void (*tb_flush)(void *cpu);
    bool (*tlb_fill)(void *, uint64_t, int, int, int, bool, uintptr_t);
    void (*tlb_set_page)(void *, uint64_t, uint64_t, uint32_t, int, int, uint64_t);
    void (*tlb_set_dirty)(void *cpu, uint64_t vaddr);
    void (*tlb_flush_by_mmuidx)(void *cpu, uint16_t modes);
    void (*invalidate_fast)(void *uc, void *pages, uint64_t ram, int size, uintptr_t pc);
    void (*invalidate_range)(void *uc, uint64_t start, uint64_t end);
    uint64_t (*read_eflags)(void *env);
    void (*write_eflags)(void *env, uint64_t value, uint32_t mask);
    void (*tlb_flush)(void *cpu);
    void (*tlb_flush_page)(void *cpu, uint64_t vaddr);
    void (*do_interrupt)(void *cpu);
    void (*hard_interrupt)(void *env, int vector, int is_hw);
    bool (*exec_interrupt)(void *cpu, int request);
    uint32_t (*load_code)(void *env, uint64_t vaddr);
    void *(*host_address)(void *env, uint64_t vaddr, int access, int mmu_mode);
    void (*raise_interrupt)(void *env, int vector, int length);
    void (*into)(void *env, int length);
    void (*rdmsr)(void *env);
    void (*wrmsr)(void *env);
    void (*check_io[3])(void *env, uint32_t port);
    void (*write_cr)(void *env, int which, uint64_t value);
    uint64_t (*read_cr)(void *env, int which);
    void (*set_dr)(void *env, int which, uint64_t value);
    uint64_t (*get_dr)(void *env, int which);
    void (*lldt)(void *env, int selector);
    void (*ltr)(void *env, int selector);
    uint32_t (*load_long)(void *env, uint64_t vaddr, int mmu_mode, uintptr_t pc);
    uint64_t (*load_quad)(void *env, uint64_t vaddr, int mmu_mode, uintptr_t pc);
    void (*sysret)(void *env, int log_size);
    void (*sysexit)(void *env, int log_size);
    void (*iret)(void *env, int log_size, int next_eip);
    void (*update_dr7)(void *env, uint64_t value);
    void (*breakpoint)(void *cpu);
    void (*update_hflags)(void *env);
    void (*update_fp_status)(void *env);
    void (*update_mxcsr_status)(void *env);
    void (*pause)(void *env, int next_eip_addend);
    int (*mmio_map)(void *uc, uint64_t address, size_t size, void *read, void *read_data,
                    void *write, void *write_data);
} U __attribute__((visibility("hidden")));

#endif
