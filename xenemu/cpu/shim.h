/* What the files of the shim share with each other and with Python (cpu/shim.py). */
#ifndef SHIM_H
#define SHIM_H

#include "unicorn.h"

#pragma GCC visibility push(hidden)

enum { MAX_OVERRIDES = 512, NO_VECTOR = -1 };
enum { FRAME_FETCHED = 1 };
#define NOWHERE UINT64_MAX
enum { STOP_HYPERVISOR = 1, STOP_DEBUGGER = 2 }; /* G.stop: who wants to leave */
enum debug_stop { NO_STOP, STOP_BREAKPOINT, STOP_WATCHPOINT, STOP_FAULT }; /* G.debug_stop */

enum exit_kind {
    EXIT_EXCEPTION, EXIT_SOFT_INT, EXIT_UNDEFINED, EXIT_SYSCALL, EXIT_CPUID,
    EXIT_VMCALL, EXIT_RDMSR, EXIT_WRMSR, EXIT_IN, EXIT_OUT, EXIT_SYSENTER,
    EXIT_READ_CR8, EXIT_WRITE_CR8, EXIT_LOAD, EXIT_STORE,
    PAUSE, DELIVERY, /* no exits, but they have prices */
    PRICES
};
enum { ANSWERED, REFUSED, NATIVE }; /* G.answer to CPUID (not NATIVE), RDMSR and WRMSR */

/* What Python and these files share; the same in cpu/shim.py. */
extern struct shared {
    int64_t left;         /* instructions until the deadline */
    int64_t end;          /* the deadline, in instructions since start */
    int64_t skipped_ns;   /* time that passed without instructions: idle, or a price */
    uint64_t rflags;      /* valid while the hypervisor is called and between runs */
    uint32_t rflags_dirty, flush, stop;
    uint32_t kind, vector, error;
    uint32_t answer;      /* what became of a CPUID, RDMSR or WRMSR */
    uint32_t by_iret;     /* the hypervisor leaves by IRET, whose target runs before TF traps */
    uint32_t native;      /* the guest has its own IDT and ring 0 */
    uint32_t port;        /* of EXIT_IN and EXIT_OUT; of EXIT_LOAD and EXIT_STORE, the offset */
    uint32_t size;        /* in bytes, of such an access, or of the instruction of EXIT_SOFT_INT */
    uint64_t value;       /* written to or read from the port, MSR, CR8 or local APIC */
    uint32_t prices[PRICES]; /* nanoseconds that each exit takes of the guest's time */
    uint8_t *code;        /* a byte per frame: ever fetched from */
    uint8_t *written;     /* a byte per frame: ever mapped for fast stores */
    uint64_t frames;
    uint8_t *ram;         /* machine memory */
    void (*enter)(void);  /* the hypervisor */
    void (*look)(void);   /* whether the host wants the guest to stop; it reads no registers */
    int64_t looked_ns;    /* when that was last asked, by the host's clock */
    uint64_t random;      /* the state of what RDRAND and RDSEED read */
    uint64_t exits, flushes, fills, blocks_translated, code_frames;
    uint64_t uncounted;   /* blocks that do not begin as expected */
    void *uc, *cpu, *env, *tcg;
    /* The last undefined instruction, but for UD2 and the like. */
    uint64_t undefined_rip;
    uint32_t undefined_bits; /* of its code: 16, 32, 64; 0 if there was none */
    uint8_t undefined_bytes, undefined_code[15];
    /* For native guests. */
    uint8_t *ports;           /* a byte per port: whether the hypervisor wants to know */
    uint8_t *populated;       /* a byte per frame: guest frame n is machine frame n */
    uint64_t hole;            /* machine address that answers for guest frames without memory */
    uint64_t ones;            /* machine address of what is fetched from there */
    uint64_t apic;            /* machine address of the local APIC's page */
    uint64_t overrides;       /* how many guest frames lie elsewhere */
    uint64_t override_gfn[MAX_OVERRIDES], override_maddr[MAX_OVERRIDES];
    uint8_t *upcall_pending;  /* the vcpu's byte in its vcpu_info, or NULL */
    int32_t callback_vector;  /* raised while that byte is set */
    int32_t apic_vector;      /* the local APIC's next interrupt */
    int32_t apic_accepted;    /* the last of them that the CPU took */
    uint32_t delivered_vector; /* of what was to be delivered last, but for faults in doing so */
    uint32_t delivered_kind;   /* an enum delivering */
    /* For the debugger. */
    uint32_t stepping;        /* leave after one instruction, or where an exit or interrupt leads */
    uint32_t debug_stop;      /* why the debugger has the guest */
    uint32_t debug_access;    /* of STOP_WATCHPOINT: read or write; of STOP_FAULT: the vector */
    uint64_t debug_address;   /* of STOP_WATCHPOINT: what was accessed */
    uint32_t caught_faults;   /* a bit per vector whose faults stop the guest before it has them */
    uint64_t let_fault;       /* where the fault that stopped it comes again, and is the guest's */
} G;

/* shim.c */
extern int64_t left_at_refund;
int64_t left_to_run(void);
void settle(void);
void spend(uint32_t ns);
void look_between_blocks(void);
void enter_hypervisor(enum exit_kind kind, uint32_t vector);
int64_t unfinished(uintptr_t pc);
uint64_t *machine_entry(uint64_t paddr);

/*
 * Call a function of Unicorn's that raises with its own return address, which is here: what it
 * raises is the fault of the instruction at host address `pc`.
 */
#define AT_INSTRUCTION(pc, call)                                                                 \
    do {                                                                                         \
        G.left += unfinished(pc);                                                                \
        U.restore_state(G.cpu, pc, true);                                                        \
        call;                                                                                    \
        G.left -= unfinished(pc);                                                                \
    } while (0)

/* abort.c */
enum { GAVE_UP = -1 };
int run_or_give_up(uint64_t rip);
void call_python(void (*function)(void));

void forget_branch(void); /* what shim_came_from() would say */

uintptr_t code_addend(void *env, uint64_t pc, uint32_t flags);

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
enum delivering { NOTHING, A_SOFTWARE_INTERRUPT, AN_EXCEPTION, AN_INTERRUPT }; /* as hv/cpu.py's Event */
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
void shim_request_interrupt(uint32_t kind);
uint64_t shim_came_from(void);

#endif
