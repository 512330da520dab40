/*
 * The part of the engine in C: what must not be Python. Policy stays in Python.
 *
 * This library is loaded globally before Unicorn. So its definitions of some of Unicorn's internal
 * functions take precedence over Unicorn's own (the wheel is not linked -Bsymbolic). dlsym() on
 * Unicorn's own handle finds the originals. unicorn.h has Unicorn's functions and offsets.
 * shared.def has what is shared with Python. This file has what the shim's files share with each
 * other.
 */
#ifndef SHIM_H
#define SHIM_H

#include "unicorn.h"

#pragma GCC visibility push(hidden)

enum { NO_VECTOR = -1 };
/* With a vector of the local APIC's: it has no other; its handler is done, too. */
enum { APIC_ALONE = 0x100, APIC_DONE = 0x200 };
enum { FRAME_FETCHED = 1 };
enum { FLUSH_OWN = 1, FLUSH_KEPT = 2 }; /* G.exit.flush: the TLB in the CPU; those of other vcpus */
enum { KEPT_MSRS = 10, FPU_SIZE = 512 };
enum { /* G.registers.waits */
    WAITS_HALTED = 1, WAITS_REQUESTED = 2, WAITS_NMI = 4, WAITS_NMI_BLOCKED = 8, WAITS_SHADOW = 16,
    WAITS_DEBUG_HELD = 32,
};
#define NOWHERE UINT64_MAX
enum noted { NOTED_CALL, NOTED_PAGE_FAULT, NOTED_SYSCALL, NOTED_INT80, NOTED_IRET }; /* `what` */
enum { STOP_HYPERVISOR = 1, STOP_DEBUGGER = 2 }; /* G.exit.stop: who wants to leave */
enum debug_stop { NO_STOP, STOP_BREAKPOINT, STOP_WATCHPOINT, STOP_FAULT }; /* G.debug.stop */

/* Kinds of exits, by whose names prices go; PAUSE and DELIVERY are no exits. */
#define EXITS(F)                                                                                  \
    F(EXCEPTION) F(SOFT_INT) F(UNDEFINED) F(SYSCALL) F(CPUID)                                     \
    F(VMCALL) F(RDMSR) F(WRMSR) F(IN) F(OUT) F(SYSENTER)                                          \
    F(READ_CR8) F(WRITE_CR8) F(LOAD) F(STORE) F(PAUSE) F(DELIVERY)
#define EXIT_KIND(name) EXIT_##name,
enum exit_kind { EXITS(EXIT_KIND) PRICES };
enum { ANSWERED, REFUSED, NATIVE }; /* G.exit.answer to CPUID (not NATIVE), RDMSR and WRMSR */

typedef void (*function)(void);

struct page_info {
#define MEMBER(type, name, array) type name array;
#include "page_info.def"
};

struct pv_vcpu {
#define MEMBER(type, name, array) type name array;
#include "pv_vcpu.def"
};

struct call_record {
#define MEMBER(type, name, array) type name array;
#include "call_record.def"
};

enum { CALLS_KEPT = 64, TYPED_KEPT = 64 };
struct call_log { /* hv/calls.py */
    uint64_t count; /* of all calls so far; call n is at n modulo CALLS_KEPT */
    struct call_record calls[CALLS_KEPT];
    uint64_t nr_typed;
    struct typed { uint64_t mfn; struct call_record call; } typed[TYPED_KEPT];
};

enum { BELLS = 8 };
struct bell { /* hv/state/events.py */
    uint32_t port;     /* the guest's; 0: none */
    uint32_t delay_ns; /* until the backend looks, after an event there */
};

extern struct shared {
    void *uc, *cpu, *env, *tcg; /* Unicorn's structs; these are not Python's */
#define SUBJECT(name) struct name {
#define MEMBER(type, name, array) type name array;
#define END(name) } name;
#include "shared.def"
} G;

/* tlb.c */
void forget_kept_tlbs(void);
void outdate_kept_tlbs(void);

/* exits.c */
void enter_hypervisor(enum exit_kind kind, uint32_t vector);
void apply_requests(void);

/* lane.c */
enum { SYSCALL_VECTOR = 0x80, HYPERCALL_VECTOR = 0x82 }; /* of a 32-bit PV guest */
bool lane_takes_syscall(void);
bool lane_takes_soft_int(uint32_t vector);

/* bells.c */
bool lane_takes_vmcall(void);
bool lane_takes_eoi(uint32_t msr, uint64_t value);

/* pagetables.c */
enum { L1_LEFT, L1_TAKEN, L1_ADJUSTED }; /* answers to Python */

/* bounce.c */
bool lane_takes_exception(uint32_t vector);

/* count.c */
extern int64_t left_at_refund; /* what was left after the last block that was left early */
int64_t left_to_run(void);
int64_t now_ns(uintptr_t pc);
void settle(void);
void spend(uint32_t ns);
void look_between_blocks(void);
int64_t sleb128(const uint8_t **at);
void *block_at(uintptr_t pc);
int64_t unfinished(uintptr_t pc);
void forget_unfinished(void);

/*
 * Call a function of Unicorn's that raises with its own return address, which is here. What it
 * raises is then the fault of the instruction at host address `pc`.
 */
#define AT_INSTRUCTION(pc, call)                                                                 \
    do {                                                                                         \
        G.clock.left += unfinished(pc);                                                          \
        U.restore_state(G.cpu, pc, true);                                                        \
        call;                                                                                    \
        G.clock.left -= unfinished(pc);                                                          \
    } while (0)

/* abort.c */
enum { GAVE_UP = -1 };
int run_or_give_up(uint64_t rip);
void call_python(void (*function)(void));

/* jumps.c */
void age_jumps(void);
void forget_jumps(void);
void forget_branch(void); /* what shim_came_from() would say */
uintptr_t code_addend(void *env, uint64_t pc, uint32_t flags);

/* debug.c */
void *show_breakpoints(void *tb);
void hide_breakpoints(void *guests);
void drop_held_debug_exception(void);
void forget_debugging(void);
uint32_t debug_hits(void);
void load_debug(const uint64_t *registers, uint32_t hits);

/* tlb.c */
uint64_t *machine_entry(uint64_t paddr);

/* fill.c */
void fill_tlb(uint64_t page, uint64_t paddr, uint32_t attrs, int prot, int mode, uint64_t size,
              bool watched);

/* coverage.c */
void note_block(const void *tb);

/* translate.c */
bool wrap_rip(void);
void translate_block(const void *ops, void *db, void *cpu, void *tb, int max_insns);

/* branches.c */
void unmake_branch(void);

/* faults.c */
struct access {
    bool faults;    /* its page is not in the TLB, and nothing has put it there */
    int kind, size;
    uint64_t vaddr, cr2; /* CR2 as it was before */
};
extern struct access missed;
/* As hv/cpu.py's Event. */
enum delivering { NOTHING, A_SOFTWARE_INTERRUPT, AN_EXCEPTION, AN_INTERRUPT };
extern enum delivering delivering;
void begin_interrupt(void);
bool take_ts_back(bool faults);

/* decode.c */
enum { NO_SEGMENT = -1 };
struct instruction {
    uint8_t bytes[15], available; /* as many as could be read */
    uint8_t modrm;                /* where it would be: what follows the opcode */
    uint8_t rex;
    bool mandatory_prefix;        /* 66, F2 or F3 */
    bool operand_size_prefix;
    bool address_size_prefix;
    int segment;                  /* of an override that counts, or NO_SEGMENT */
    uint32_t opcode;              /* with its escape bytes: 0x0F38xx */
};
unsigned peek_code(uint64_t at, uint8_t *bytes, unsigned wanted);
bool decode(struct instruction *in);
uint8_t behind_opcode(const struct instruction *in, unsigned n);
int operand_bits(const struct instruction *in);
int segment_of_access(const struct instruction *in, int access, uint64_t vaddr);

static inline bool code64(void)
{
    return FIELD(G.env, ENV_HFLAGS, uint32_t) & HF_CS64;
}

static inline bool canonical(uint64_t address)
{
    int64_t high = (int64_t)address >> 47;
    return high == 0 || high == -1;
}

#pragma GCC visibility pop

/* Python calls them, too. */
bool shim_fills_as_unicorn(void);
void shim_sync_rflags(void);
void shim_request_interrupt(uint32_t kind);
uint64_t shim_came_from(void);
uint64_t shim_translate(uint64_t vaddr, bool writing);
void shim_flush_page(uint64_t vaddr);
void shim_update_mode(void);
int shim_take_l1(uint64_t mfn, uint64_t *adjusts);
int shim_drop_l1(uint64_t mfn);

/* Unicorn calls them, too. */
int cpu_watchpoint_address_matches_x86_64(void *cpu, uint64_t page, uint64_t length);
void tb_flush_x86_64(void *cpu);

#endif
