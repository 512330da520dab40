/*
 * The native part of the engine: what must not be Python.
 *
 * This library is loaded globally before Unicorn, so that its definitions of some of Unicorn's
 * internal functions take precedence over Unicorn's own (the wheel is not linked -Bsymbolic).
 * The originals are found with dlsym() on Unicorn's own handle. Policy stays in Python; here are
 *
 *   - the exact instruction count with its deadline (helper_check_exit_request, translator_loop,
 *     tcg_gen_code, cpu_restore_state);
 *   - RDTSC, CPUID, SYSCALL and port I/O, which Unicorn does not do as a CPU does;
 *   - lazy execute permission: stores to pages that hold no translated code stay fast;
 *   - for guests that run natively in ring 0 (PVH): exceptions by their own IDT, interrupts from
 *     the local APIC and Xen's callback, VMCALL, MSRs, and a guest-physical space with holes;
 *   - the hooks that call the hypervisor, with RFLAGS and TLB flushes exchanged in `G`, and what
 *     each such call takes of the guest's time;
 *   - a look at the host now and then, and a way out when Unicorn aborts;
 *   - a debugger's breakpoints, watchpoints and steps, which the guest cannot see.
 *
 * unicorn.h has the offsets and the functions of Unicorn that are used, shim.h what is shared.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <string.h>
#include <time.h>

#include "shim.h"

struct shared G;
struct unicorn U;

/* ---- time ---- */

/*
 * What is left until the deadline is in two places: `G.clock.left`, and what of it is lent to the
 * generated code, the low half of QEMU's icount_decr. Each block begins by taking its length from
 * there. If that is not enough, or a request to leave has made the high half negative, it calls
 * helper_check_exit_request. Outside of generated code nothing is lent.
 */
enum { MAX_LENT = 0xffff };

void settle(void)
{
    uint16_t *lent = &FIELD(G.cpu, CPU_ICOUNT_DECR, uint16_t);

    G.clock.left += *lent;
    *lent = 0;
}

/* Let the price of something pass, which is no instruction. */
void spend(uint32_t ns)
{
    settle(); /* so that the next block looks at what is left */
    G.clock.left -= ns;
    G.clock.end -= ns;
    G.clock.skipped_ns += ns;
}

/* ---- calling the hypervisor ------------------------------------------------------------- */

/*
 * Put the RFLAGS that Python set into the CPU. While the guest runs, the arithmetic flags and DF
 * live elsewhere in env; between runs, all of them are in env->eflags.
 */
enum { FLAGS_RUNNING = 0x00277f00 & ~0xcd5, FLAGS_ALL = 0x00277fd5 };

static void sync_rflags(uint32_t mask)
{
    if (G.vcpu.rflags_dirty)
        U.write_eflags(G.env, G.vcpu.rflags, mask);
    G.vcpu.rflags_dirty = 0;
}

void shim_sync_rflags(void)
{
    sync_rflags(FLAGS_ALL);
}

static void apply_requests(void)
{
    sync_rflags(FLAGS_RUNNING);
    if (G.exit.flush) {
        G.exit.flush = 0;
        U.tlb_flush(G.cpu);
    }
    if (G.exit.stop)
        U.emu_stop(G.uc);
}

static void drop_held_debug_exception(void);

void enter_hypervisor(enum exit_kind kind, uint32_t vector)
{
    if (UNLIKELY(FIELD(G.cpu, CPU_INTERRUPT_REQUEST, uint32_t) & INTERRUPT_HELD_DEBUG) &&
        (kind <= EXIT_SYSCALL || kind == EXIT_SYSENTER))
        drop_held_debug_exception();
    G.counters.exits++;
    spend(G.clock.prices[kind]);
    FIELD(G.env, ENV_OLD_EXCEPTION, int32_t) = -1; /* or the next fault arrives as #DF */
    G.exit.kind = kind;
    G.exit.vector = vector;
    G.exit.answer = ANSWERED;
    G.exit.error = FIELD(G.env, ENV_EXCEPTION_ERROR, uint32_t);
    G.vcpu.rflags = U.read_eflags(G.env);
    uint64_t rip = FIELD(G.env, ENV_EIP, uint64_t);
    call_python(G.exit.enter);
    if (FIELD(G.env, ENV_EIP, uint64_t) != rip)
        forget_branch();
    if (G.debug.stepping)
        G.exit.stop |= STOP_DEBUGGER;
    apply_requests();
}

int64_t left_to_run(void)
{
    return G.clock.left + FIELD(G.cpu, CPU_ICOUNT_DECR, uint16_t);
}

int64_t left_at_refund; /* what was left after the last block that was left early */

static void load_flat(int which, uint32_t selector, uint32_t flags)
{
    char *segment = (char *)G.env + ENV_SEGS + SEG_SIZE * which;

    FIELD(segment, 0, uint32_t) = selector & 0xfffc;
    FIELD(segment, SEG_BASE, uint64_t) = 0;
    FIELD(segment, SEG_LIMIT, uint32_t) = 0xffffffff;
    FIELD(segment, SEG_FLAGS, uint32_t) = flags;
}

/* Load CS and SS for ring 0, and the mode that follows. */
static void enter_ring0(uint32_t selector, bool long_mode)
{
    uint32_t *hflags = &FIELD(G.env, ENV_HFLAGS, uint32_t);

    load_flat(CS, selector, long_mode ? 0xa09b00 : 0xc09b00);
    load_flat(SS, selector + 8, 0xc09300);
    *hflags &= ~(3u | HF_ADDSEG | HF_CS64);
    *hflags |= HF_CS32 | HF_SS32 | (long_mode ? HF_CS64 : 0);
}

/* Intel's CPUs have SYSCALL in 64-bit code alone. */
static void native_syscall(void *env, int length, uintptr_t pc)
{
    uint64_t flags = U.read_eflags(env);

    if (!(FIELD(env, ENV_EFER, uint64_t) & EFER_SCE) || !code64())
        U.raise(env, UD, 0, pc);
    FIELD(env, ENV_REGS + 1 * 8, uint64_t) = FIELD(env, ENV_EIP, uint64_t) + length;
    FIELD(env, ENV_REGS + 11 * 8, uint64_t) = flags;
    U.write_eflags(env, flags & ~FIELD(env, ENV_FMASK, uint64_t), 0x00277f00u);
    FIELD(env, ENV_EIP, uint64_t) = FIELD(env, ENV_LSTAR, uint64_t);
    enter_ring0(FIELD(env, ENV_STAR, uint64_t) >> 32, true);
}

void helper_syscall_x86_64(void *env, int next_eip_addend)
{
    if (G.vcpu.native) {
        native_syscall(env, next_eip_addend, RETURN_ADDRESS);
        return;
    }
    FIELD(env, ENV_EIP, uint64_t) += next_eip_addend;
    G.exit.by_iret = 0;
    enter_hypervisor(EXIT_SYSCALL, 0);
    if (G.exit.by_iret) /* the block that called would trap at once for TF, as a SYSRET does */
        U.loop_exit_restore(G.cpu, 0);
}

void helper_sysenter_x86_64(void *env, int next_eip_addend)
{
    uint32_t selector = FIELD(env, ENV_SYSENTER_CS, uint32_t);

    if (!G.vcpu.native) {
        FIELD(env, ENV_EIP, uint64_t) += next_eip_addend;
        enter_hypervisor(EXIT_SYSENTER, 0);
        U.loop_exit_restore(G.cpu, 0); /* the block that called would trap for a TF that it had */
    }
    if (!(selector & 0xfffc))
        U.raise(env, GP, 0, RETURN_ADDRESS);
    U.write_eflags(env, U.read_eflags(env) & ~(uint64_t)EFLAGS_IF, EFLAGS_IF | 1u << 16 | 1u << 17);
    enter_ring0(selector, FIELD(env, ENV_HFLAGS, uint32_t) & HF_LMA);
    FIELD(env, ENV_REGS + 4 * 8, uint64_t) = FIELD(env, ENV_SYSENTER_ESP, uint64_t);
    FIELD(env, ENV_EIP, uint64_t) = FIELD(env, ENV_SYSENTER_EIP, uint64_t);
}

void helper_cpuid_x86_64(void *env)
{
    enter_hypervisor(EXIT_CPUID, 0);
    if (G.exit.answer == REFUSED)
        U.raise(env, GP, 0, RETURN_ADDRESS);
}

/* ---- the instruction count --------------------------------------------------------------- */

static int64_t sleb128(const uint8_t **at)
{
    int64_t value = 0;
    int shift = 0;
    uint8_t byte;

    do {
        byte = *(*at)++;
        value |= (int64_t)(byte & 0x7f) << shift;
        shift += 7;
    } while (byte & 0x80);
    if (shift < 64 && (byte & 0x40))
        value |= -((int64_t)1 << shift);
    return value;
}

/* The translated block that contains host address `pc`, or NULL. */
static void *block_at(uintptr_t pc)
{
    if (pc - FIELD(G.tcg, TCG_CODE_GEN_BUFFER, uintptr_t) >=
        FIELD(G.tcg, TCG_CODE_GEN_BUFFER_SIZE, uintptr_t))
        return NULL;
    return U.tb_lookup(G.tcg, pc);
}

/* How many instructions of the block that contains host address `pc` have not completed. */
int64_t unfinished(uintptr_t pc)
{
    void *tb = block_at(pc);

    if (!tb)
        return 0;
    int n = FIELD(tb, TB_ICOUNT, uint16_t);
    uintptr_t host = FIELD(tb, TB_TC_PTR, uintptr_t);
    const uint8_t *data = (uint8_t *)host + FIELD(tb, TB_TC_SIZE, uint64_t);
    for (int i = 0; i < n; i++) {
        sleb128(&data); /* pc */
        sleb128(&data); /* cc_op */
        host += sleb128(&data);
        if (host > pc - 1)
            return n - i;
    }
    return 0;
}

static __attribute__((noinline, cold)) void leave_before_block(uint32_t instructions, uintptr_t pc)
{
    if (FIELD(G.cpu, CPU_ICOUNT_DECR, int32_t) >= 0) { /* nobody else asked: the deadline */
        if (G.clock.left <= 0)
            U.emu_stop(G.uc);
        else /* then a block of exactly what is left */
            FIELD(G.cpu, CPU_CFLAGS_NEXT_TB, uint32_t) = (uint32_t)G.clock.left;
    }
    FIELD(G.cpu, CPU_TCG_EXIT_REQ, uint32_t) = 0;
    G.clock.left -= instructions;
    U.loop_exit_restore(G.cpu, pc); /* refunds the block */
}

/*
 * Ask now and then, by the host's clock, whether the guest is to stop. Only that may depend on it.
 * This is a block's start, where registers are not all in place.
 */
enum { LOOK_EVERY_NS = 50 * 1000 * 1000 };

static void look_at_host(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC_COARSE, &now);
    int64_t now_ns = now.tv_sec * 1000000000ll + now.tv_nsec;
    if (now_ns - G.clock.looked_ns < LOOK_EVERY_NS)
        return;
    G.clock.looked_ns = now_ns;
    call_python(G.exit.look);
    if (G.exit.stop)
        U.emu_stop(G.uc);
}

/*
 * What a block's start does, where none may begin: an exception whose handler cannot be fetched
 * is delivered again and again.
 */
void look_between_blocks(void)
{
    look_at_host();
    if (left_to_run() <= 0)
        U.emu_stop(G.uc);
}

/*
 * The rare case at the start of a block, whose length has been taken and did not fit. It comes at
 * least every MAX_LENT instructions, and after each exit, access to a device, and translation.
 */
void helper_check_exit_request_x86_64(void *unused, uint32_t instructions)
{
    uint32_t *decr = &FIELD(G.cpu, CPU_ICOUNT_DECR, uint32_t);

    (void)unused;
    *decr += instructions;
    settle();
    look_at_host();
    if ((int32_t)*decr < 0 || G.clock.left < instructions)
        leave_before_block(instructions, RETURN_ADDRESS);
    *decr = (G.clock.left < MAX_LENT ? G.clock.left : MAX_LENT);
    G.clock.left -= *decr;
    *decr -= instructions;
}

/*
 * Unicorn begins each block with a call, helper_check_exit_request(uc, 0). Its arguments are made
 * a pattern and the block's length; the code that loads the first becomes the inline count:
 *
 *     48 bf PATTERN   movabs $PATTERN, %rdi         81 6d f0 LENGTH   subl $length, -0x10(%rbp)
 *                                                   79 xx             jns  behind the call
 *                                                   90                nop
 *     be LENGTH       mov $length, %esi             the same
 *     ff 15 or e8     call                          the same
 */
static const uint64_t PATTERN = 0x78656e656d750001;

static void *show_breakpoints(void *tb);
static void hide_breakpoints(void *guests);

void translator_loop_x86_64(const void *ops, void *db, void *cpu, void *tb, int max_insns)
{
    void *guests = show_breakpoints(tb);
    translate_block(ops, db, cpu, tb, max_insns);
    hide_breakpoints(guests);
    G.counters.blocks_translated++;
    settle(); /* what only translates is slow: the next block looks at the host's clock */
    void *op = FIELD(G.tcg, TCG_FIRST_OP, void *);
    if (FIELD(op, OP_ARG1, void *) != G.uc)
        return; /* tcg_gen_code will see that */
    FIELD(op, OP_ARG1, uint64_t) = PATTERN;
    op = FIELD(op, OP_NEXT, void *);
    FIELD(op, OP_ARG1, uint64_t) = FIELD(tb, TB_ICOUNT, uint16_t);
}

/*
 * Most of what a boot translates runs a few times only: to optimize it costs more than it gains.
 */
void tcg_optimize_x86_64(void *tcg_ctx)
{
    (void)tcg_ctx;
}

int tcg_gen_code_x86_64(void *tcg_ctx, void *tb)
{
    int size = U.gen_code(tcg_ctx, tb);
    uint8_t *code = FIELD(tb, TB_TC_PTR, uint8_t *);
    uint32_t length = FIELD(tb, TB_ICOUNT, uint16_t);

    if (size < 0) /* no room: Unicorn starts afresh */
        return size;
    if (memcmp(code, "\x48\xbf", 2) || memcmp(code + 2, &PATTERN, 8) || code[10] != 0xbe) {
        G.counters.uncounted++;
        return size;
    }
    int call = code[15] == 0xff ? 6 : 5;
    memcpy(code, "\x81\x6d\xf0", 3);
    memcpy(code + 3, &length, 4);
    code[7] = 0x79;
    code[8] = 6 + call;
    code[9] = 0x90;
    return size;
}

/* ---- indirect jumps ---- */

/*
 * Unicorn's helper_lookup_tb_ptr finds a block in two dependent loads, and forgets all of them at
 * each TLB flush. This table has what is needed in one cache line, and outlives flushes: an entry
 * of an older generation is good again if its block is still valid, and the TLB says that the same
 * frame is mapped for execution there.
 */
enum { JUMPS = 8192 };

static struct jump {
    uint64_t pc;
    uint32_t flags, generation;
    uint32_t host, tb;       /* offsets in the code buffer */
    uintptr_t addend;        /* the TLB's, from the guest's page to the host's */
} jumps[JUMPS];
static uint32_t generation = 1;
static uint64_t invalidations; /* of blocks, when last looked */

/* The last jump that was looked up: a host address in its block, and where it led. */
static uintptr_t jump_block;
static uint64_t jump_target;

/* The TLB's addend for code at `pc`, or 0 if it has no such entry; `flags` are a block's. */
uintptr_t code_addend(void *env, uint64_t pc, uint32_t flags)
{
    char *fast = (char *)env - TLB_BEFORE_ENV + TLB_FAST + 16 * ((flags & 3) == 3 ? 1 : 2);
    char *entry = FIELD(fast, 8, char *) + ((pc >> 6) & FIELD(fast, 0, uint64_t));

    return FIELD(entry, TLB_ADDR_CODE, uint64_t) == (pc & ~0xfffull)
               ? FIELD(entry, TLB_ADDEND, uintptr_t) : 0;
}

static __attribute__((noinline)) void *look_up(void *env, struct jump *jump, uint64_t pc,
                                               uint32_t flags)
{
    char *buffer = FIELD(G.tcg, TCG_CODE_GEN_BUFFER, char *);

    if (jump->pc == pc && jump->flags == flags &&
        !(FIELD(buffer + jump->tb, TB_CFLAGS, uint32_t) & CF_INVALID) &&
        jump->addend == code_addend(env, pc, flags)) {
        jump->generation = generation;
        return buffer + jump->host;
    }
    char *host = U.lookup_tb(env);
    uint64_t hash = pc ^ pc >> 6;
    char *tb = FIELD(G.cpu, CPU_TB_JMP_CACHE + 8 * ((hash >> 6 & 0xfc0) | (hash & 0x3f)), char *);
    uintptr_t addend = code_addend(env, pc, flags);
    if (tb && FIELD(tb, TB_TC_PTR, char *) == host && FIELD(tb, TB_PC, uint64_t) == pc &&
        FIELD(tb, TB_PAGE_ADDR_1, uint64_t) == -1ull && addend && !(flags & HF_SMAP))
        *jump = (struct jump){pc, flags, generation, host - buffer, tb - buffer, addend};
    return host;
}

void *helper_lookup_tb_ptr_x86_64(void *env)
{
    uint64_t cs_base = FIELD(env, ENV_SEGS + SEG_SIZE * CS + SEG_BASE, uint64_t);
    uint64_t pc = FIELD(env, ENV_EIP, uint64_t);
    uint32_t flags = FIELD(env, ENV_HFLAGS, uint32_t) |
                     (FIELD(env, ENV_EFLAGS, uint32_t) & EFLAGS_OF_BLOCK);
    struct jump *jump = &jumps[(pc ^ pc >> 12) % JUMPS];

    jump_block = RETURN_ADDRESS;
    jump_target = pc;
    if (UNLIKELY(cs_base))
        return U.lookup_tb(env);
    if (UNLIKELY(FIELD(G.tcg, TCG_INVALIDATIONS, uint64_t) != invalidations)) {
        invalidations = FIELD(G.tcg, TCG_INVALIDATIONS, uint64_t);
        generation++;
    }
    if (jump->pc == pc && jump->flags == flags && jump->generation == generation)
        return FIELD(G.tcg, TCG_CODE_GEN_BUFFER, char *) + jump->host;
    return look_up(env, jump, pc, flags);
}

/* A page was flushed from the TLB. */
void tb_flush_jmp_cache_x86_64(void *cpu, uint64_t vaddr)
{
    generation++;
    U.flush_jmp_cache(cpu, vaddr);
}

void forget_branch(void)
{
    jump_block = 0;
}

/* All blocks are gone: this engine's, or those of one that is closed while this one runs. */
void tb_flush_x86_64(void *cpu)
{
    if (cpu == G.cpu) {
        memset(jumps, 0, sizeof jumps);
        jump_block = 0;
    }
    U.tb_flush(cpu);
}

/*
 * Where the jump stands that led to RIP, a linear address; 0 if none did, or it is not known. A
 * jump within a page is not looked up, but there a fetch cannot fail either.
 */
uint64_t shim_came_from(void)
{
    void *tb = block_at(jump_block);

    if (!tb || jump_target != FIELD(G.env, ENV_EIP, uint64_t))
        return 0;
    uint64_t at = FIELD(tb, TB_PC, uint64_t);
    const uint8_t *data = FIELD(tb, TB_TC_PTR, uint8_t *) + FIELD(tb, TB_TC_SIZE, uint64_t);
    for (int n = FIELD(tb, TB_ICOUNT, uint16_t); n > 0; n--) {
        at += sleb128(&data);
        sleb128(&data); /* cc_op */
        sleb128(&data); /* host address */
    }
    return at;
}

bool cpu_restore_state_x86_64(void *cpu, uintptr_t pc, bool will_exit)
{
    if (will_exit) {
        G.clock.left += unfinished(pc);
        left_at_refund = left_to_run();
    }
    return U.restore_state(cpu, pc, will_exit);
}

static int64_t now_ns(uintptr_t pc)
{
    int64_t left = G.clock.left + FIELD(G.cpu, CPU_ICOUNT_DECR, uint16_t);

    return G.clock.end - left - unfinished(pc) + G.clock.skipped_ns;
}

/* ---- instructions that Unicorn gets wrong ------------------------------------------------- */

static void rdtsc(void *env, uintptr_t pc)
{
    if ((FIELD(env, ENV_CR4, uint64_t) & 4) && (FIELD(env, ENV_HFLAGS, uint32_t) & 3))
        U.raise(env, GP, 0, pc);
    uint64_t tsc = now_ns(pc);
    FIELD(env, ENV_REGS, uint64_t) = (uint32_t)tsc;
    FIELD(env, ENV_REGS + 2 * 8, uint64_t) = tsc >> 32;
}

void helper_rdtsc_x86_64(void *env)
{
    rdtsc(env, RETURN_ADDRESS);
}

void helper_rdtscp_x86_64(void *env)
{
    rdtsc(env, RETURN_ADDRESS);
    FIELD(env, ENV_REGS + 1 * 8, uint64_t) = (uint32_t)FIELD(env, ENV_TSC_AUX, uint64_t);
}

/* #GP unless the guest may use the port: by IOPL, or natively by its TSS's bitmap. */
static void check_port(void *env, uint32_t port, int log_size, uintptr_t pc)
{
    if ((FIELD(env, ENV_HFLAGS, uint32_t) & 3) <= ((FIELD(env, ENV_EFLAGS, uint64_t) >> 12) & 3))
        return;
    if (!G.vcpu.native)
        U.raise(env, GP, 0, pc);
    AT_INSTRUCTION(pc, U.check_io[log_size](env, port));
}

static uint32_t port_exit(enum exit_kind kind, uint32_t port, int log_size, uint32_t value)
{
    G.exit.port = port;
    G.exit.size = 1u << log_size;
    G.exit.value = value;
    if (G.vcpu.ports && G.vcpu.ports[port & 0xffff])
        enter_hypervisor(kind, 0);
    else
        spend(G.clock.prices[kind]);
    return G.exit.value;
}

#define PORT_IO(suffix, log_size, ones)                                                          \
    uint64_t helper_in##suffix##_x86_64(void *env, uint32_t port)                                \
    {                                                                                            \
        check_port(env, port, log_size, RETURN_ADDRESS);                                         \
        return port_exit(EXIT_IN, port, log_size, ones) & ones;                                  \
    }                                                                                            \
    void helper_out##suffix##_x86_64(void *env, uint32_t port, uint32_t value)                   \
    {                                                                                            \
        check_port(env, port, log_size, RETURN_ADDRESS);                                         \
        port_exit(EXIT_OUT, port, log_size, value & ones);                                       \
    }
PORT_IO(b, 0, 0xffu)
PORT_IO(w, 1, 0xffffu)
PORT_IO(l, 2, 0xffffffffu)

/* A CPU's PAUSE takes its time, and loops that delay count on it. */
void helper_pause_x86_64(void *env, int next_eip_addend)
{
    spend(G.clock.prices[EXIT_PAUSE]);
    U.pause(env, next_eip_addend);
}

/* MSRs: the few that context switches write stay here, the hypervisor judges the rest. */
enum { MSR_FS_BASE = 0xc0000100, MSR_KERNEL_GS_BASE = 0xc0000102 };

void helper_rdmsr_x86_64(void *env)
{
    uint64_t *regs = &FIELD(env, ENV_REGS, uint64_t);

    if (!G.vcpu.native) { /* Unicorn's own API; a PV guest's has faulted */
        U.rdmsr(env);
        return;
    }
    enter_hypervisor(EXIT_RDMSR, 0);
    if (G.exit.answer == REFUSED)
        U.raise(env, GP, 0, RETURN_ADDRESS);
    if (G.exit.answer == NATIVE) {
        U.rdmsr(env);
    } else {
        regs[0] = (uint32_t)G.exit.value;
        regs[2] = G.exit.value >> 32;
    }
}

void helper_wrmsr_x86_64(void *env)
{
    uint64_t *regs = &FIELD(env, ENV_REGS, uint64_t);
    uint32_t number = regs[1];

    G.exit.value = (uint32_t)regs[0] | regs[2] << 32;
    if (!G.vcpu.native) {
        U.wrmsr(env);
        return;
    }
    if (number >= MSR_FS_BASE && number <= MSR_KERNEL_GS_BASE) {
        if (!canonical(G.exit.value))
            U.raise(env, GP, 0, RETURN_ADDRESS);
        U.wrmsr(env);
        return;
    }
    enter_hypervisor(EXIT_WRMSR, 0);
    if (G.exit.answer == REFUSED)
        U.raise(env, GP, 0, RETURN_ADDRESS);
    if (G.exit.answer == NATIVE)
        U.wrmsr(env);
}

/* ---- breakpoints: the guest's own, in its debug registers, and the debugger's --------------- */

/* Unicorn calls these functions and leaves them empty; `flags` tell whose a watchpoint is. */
enum { GUEST_WATCHPOINTS = 4, MAX_WATCHPOINTS = GUEST_WATCHPOINTS + 16 };
enum { WATCH_HIT_READ = 0x40, WATCH_ACCESS = 3, OF_DEBUGGER = 0x10 };

struct watchpoint {  /* as CPUWatchpoint begins */
    uint64_t vaddr, length, hit_address;
    uint32_t attributes;
    int flags;
};
static struct watchpoint watchpoints[MAX_WATCHPOINTS];

static bool covers(const struct watchpoint *watchpoint, uint64_t vaddr, uint64_t length)
{
    return watchpoint->length && watchpoint->vaddr < vaddr + length &&
           vaddr < watchpoint->vaddr + watchpoint->length;
}

int cpu_watchpoint_address_matches_x86_64(void *cpu, uint64_t page, uint64_t length)
{
    int flags = 0;

    (void)cpu;
    for (int i = 0; i < MAX_WATCHPOINTS; i++)
        if (covers(&watchpoints[i], page, length))
            flags |= watchpoints[i].flags;
    return flags;
}

int cpu_watchpoint_insert_x86_64(void *cpu, uint64_t vaddr, uint64_t length, int flags, void **out)
{
    for (int i = flags & OF_DEBUGGER ? GUEST_WATCHPOINTS : 0; i < MAX_WATCHPOINTS; i++)
        if (!watchpoints[i].length) {
            watchpoints[i] = (struct watchpoint){.vaddr = vaddr, .length = length, .flags = flags};
            *out = &watchpoints[i];
            U.tlb_flush_page(cpu, vaddr);
            U.tlb_flush_page(cpu, vaddr + length - 1);
            return 0;
        }
    return -1;
}

void cpu_watchpoint_remove_by_ref_x86_64(void *cpu, void *reference)
{
    struct watchpoint *watchpoint = reference;

    U.tlb_flush_page(cpu, watchpoint->vaddr);
    U.tlb_flush_page(cpu, watchpoint->vaddr + watchpoint->length - 1);
    watchpoint->length = 0;
}

/* DR6 tells of the last debug exception only. */
static void forget_hits(void)
{
    for (int i = 0; i < GUEST_WATCHPOINTS; i++)
        watchpoints[i].flags &= ~(WATCH_ACCESS * WATCH_HIT_READ);
}

/* Whether the instruction at host address `pc` shares its block with others. */
static bool in_company(uintptr_t pc)
{
    void *tb = block_at(pc);

    return tb && FIELD(tb, TB_ICOUNT, uint16_t) > 1;
}

/* Run the instruction at host address `pc` again, as a block of its own; does not return. */
static void run_again_alone(void *cpu, uintptr_t pc)
{
    FIELD(cpu, CPU_CFLAGS_NEXT_TB, uint32_t) = ONE_INSTRUCTION;
    U.loop_exit_restore(cpu, pc);
}

/*
 * An access to a watched page. If it hits, the instruction is run again as a block of its own,
 * and behind that the CPU raises #DB, or the debugger has the guest.
 */
void cpu_check_watchpoint_x86_64(void *cpu, uint64_t vaddr, uint64_t length, uint32_t attributes,
                                 int flags, uintptr_t pc)
{
    (void)attributes;
    for (int i = 0; i < MAX_WATCHPOINTS; i++) {
        struct watchpoint *watchpoint = &watchpoints[i];
        if (!(watchpoint->flags & flags & WATCH_ACCESS) || !covers(watchpoint, vaddr, length))
            continue;
        if (watchpoint->flags & OF_DEBUGGER) {
            if (in_company(pc))
                run_again_alone(cpu, pc);
            G.debug.stop = STOP_WATCHPOINT;
            G.debug.address = watchpoint->vaddr;
            G.debug.access = watchpoint->flags & WATCH_ACCESS;
            G.exit.stop |= STOP_DEBUGGER;
            U.emu_stop(G.uc);
            continue;
        }
        if (in_company(pc))
            run_again_alone(cpu, pc);
        if (!FIELD(cpu, CPU_WATCHPOINT_HIT, void *))
            forget_hits();
        watchpoint->flags |= (flags & WATCH_ACCESS) * WATCH_HIT_READ;
        FIELD(cpu, CPU_WATCHPOINT_HIT, void *) = watchpoint;
        shim_request_interrupt(INTERRUPT_DEBUG);
    }
}

/*
 * The debugger's breakpoints. Only while a block is translated do they stand in the CPU's list,
 * before the guest's, so that the guest's debug registers do not meet them.
 */
enum { MAX_BREAKPOINTS = 256 };

struct breakpoint {  /* as CPUBreakpoint begins */
    uint64_t pc;
    int flags;
    struct breakpoint *next;
    void *previous;
};
static struct breakpoint breakpoints[MAX_BREAKPOINTS];
static unsigned breakpoint_count;

static void *show_breakpoints(void *tb)
{
    void **list = &FIELD(G.cpu, CPU_BREAKPOINTS, void *), *guests = *list;

    if (breakpoint_count && !(FIELD(tb, TB_CFLAGS, uint32_t) & HIDES_BREAKPOINTS)) {
        breakpoints[breakpoint_count - 1].next = guests;
        *list = breakpoints;
    }
    return guests;
}

static void hide_breakpoints(void *guests)
{
    FIELD(G.cpu, CPU_BREAKPOINTS, void *) = guests;
}

/* Set the linear addresses at which the debugger gets the guest; false if there are too many. */
bool shim_set_breakpoints(const uint64_t *pcs, unsigned count)
{
    if (count > MAX_BREAKPOINTS)
        return false;
    for (unsigned i = 0; i < count; i++)
        breakpoints[i] = (struct breakpoint){pcs[i], OF_DEBUGGER, &breakpoints[i + 1], NULL};
    breakpoint_count = count;
    tb_flush_x86_64(G.cpu);
    return true;
}

/* Watch `length` bytes at a linear address for the debugger; false if there are too many. */
bool shim_watch(uint64_t vaddr, uint64_t length, int access)
{
    void *reference;

    return !cpu_watchpoint_insert_x86_64(G.cpu, vaddr, length, access | OF_DEBUGGER, &reference);
}

void shim_unwatch_all(void)
{
    for (int i = GUEST_WATCHPOINTS; i < MAX_WATCHPOINTS; i++)
        if (watchpoints[i].length)
            cpu_watchpoint_remove_by_ref_x86_64(G.cpu, &watchpoints[i]);
}

/*
 * What MOV SS or POP SS hits traps after the next instruction, or where that leads. Xen drops what
 * traps in Xen.
 */
static void hold_debug_exception(void *cpu)
{
    FIELD(cpu, CPU_INTERRUPT_REQUEST, uint32_t) |= INTERRUPT_HELD_DEBUG;
    FIELD(cpu, CPU_EXCEPTION_INDEX, int32_t) = -1;
    U.loop_exit_restore(cpu, 0);
}

static void drop_held_debug_exception(void)
{
    FIELD(G.cpu, CPU_INTERRUPT_REQUEST, uint32_t) &= ~INTERRUPT_HELD_DEBUG;
    FIELD(G.cpu, CPU_WATCHPOINT_HIT, void *) = NULL;
}

/* The engine counts the instruction that a breakpoint keeps from running. */
void breakpoint_handler_x86_64(void *cpu)
{
    uint64_t pc = FIELD(G.env, ENV_SEGS + SEG_SIZE * CS + SEG_BASE, uint64_t) +
                  FIELD(G.env, ENV_EIP, uint64_t);

    if (FIELD(cpu, CPU_WATCHPOINT_HIT, void *)) {
        if (FIELD(G.env, ENV_HFLAGS, uint32_t) & HF_INHIBIT_IRQ)
            hold_debug_exception(cpu);
    } else {
        G.clock.left++;
        for (unsigned i = 0; i < breakpoint_count && !G.debug.stepping; i++)
            if (breakpoints[i].pc == pc) {
                G.debug.stop = STOP_BREAKPOINT;
                G.exit.stop |= STOP_DEBUGGER;
                U.emu_stop(G.uc);
                return;
            }
    }
    U.breakpoint(cpu);
}

/* Load DR7 as MOV does, arming what it enables. */
void shim_set_dr7(uint64_t value)
{
    U.update_dr7(G.env, value);
}

/* ---- interrupts of native guests ------------------------------------------------------------ */

/* A step that an interrupt forestalls ends at its handler. */
static void stop_at_handler(void)
{
    if (!G.debug.stepping)
        return;
    FIELD(G.cpu, CPU_CFLAGS_NEXT_TB, uint32_t) = ANY_BLOCK;
    U.emu_stop(G.uc);
}

bool x86_cpu_exec_interrupt_x86_64(void *cpu, int request)
{
    uint32_t *requested = &FIELD(cpu, CPU_INTERRUPT_REQUEST, uint32_t);

    if (UNLIKELY(request & INTERRUPT_TS_BACK) && !take_ts_back(false))
        return false;
    if (UNLIKELY(request & INTERRUPT_HELD_DEBUG)) {
        if (FIELD(G.env, ENV_HFLAGS, uint32_t) & HF_INHIBIT_IRQ)
            return false;
        *requested &= ~INTERRUPT_HELD_DEBUG;
        U.breakpoint(cpu);
    }
    if ((request & INTERRUPT_NMI) || !(request & INTERRUPT_VIRQ)) {
        begin_interrupt();
        bool taken = U.exec_interrupt(cpu, request & ~INTERRUPT_VIRQ);
        delivering = NOTHING;
        if (taken)
            stop_at_handler();
        return taken;
    }
    bool callback =
        G.vcpu.callback_vector != NO_VECTOR && G.vcpu.upcall_pending && *G.vcpu.upcall_pending;
    int vector = callback ? G.vcpu.callback_vector : G.vcpu.apic_vector;
    if (vector == NO_VECTOR) {
        *requested &= ~INTERRUPT_VIRQ;
        return false;
    }
    if (!(FIELD(G.env, ENV_EFLAGS, uint64_t) & EFLAGS_IF) ||
        (FIELD(G.env, ENV_HFLAGS, uint32_t) & HF_INHIBIT_IRQ))
        return false;
    if (!callback) {
        G.vcpu.apic_accepted = vector;
        G.vcpu.apic_vector = NO_VECTOR;
    }
    begin_interrupt();
    U.hard_interrupt(G.env, vector, 1);
    delivering = NOTHING;
    stop_at_handler();
    return true;
}

/* Make the CPU look for interrupts at the next block. */
void shim_request_interrupt(uint32_t kind)
{
    FIELD(G.cpu, CPU_INTERRUPT_REQUEST, uint32_t) |= kind;
    FIELD(G.cpu, CPU_ICOUNT_DECR + 2, uint16_t) = 0xffff;
}

/* ---- the TLB ------------------------------------------------------------------------------ */

/*
 * Unicorn makes every store to a page that is mapped executable slow, for the sake of
 * self-modifying code. So a mapping gets its execute permission only when something is fetched
 * through it. A frame once fetched from (G.physical.code) keeps slow stores, whatever it is mapped
 * by; when a frame that may have fast mappings becomes one, all mappings are dropped.
 */
static int filling_for;
static uint64_t dirty_frame;

/* Where a native guest's frame lies in the machine. */
static uint64_t machine_address(uint64_t paddr)
{
    uint64_t gfn = paddr >> 12;

    if (gfn < G.physical.frames && G.physical.populated[gfn])
        return paddr;
    for (uint64_t i = 0; i < G.physical.overrides; i++)
        if (G.physical.override_gfn[i] == gfn)
            return G.physical.override_maddr[i];
    return G.physical.hole;
}

/* A word of RAM at an address of the guest's, or NULL where there is none. */
uint64_t *machine_entry(uint64_t paddr)
{
    if (G.physical.populated)
        paddr = machine_address(paddr & ~0xfffull) | (paddr & 0xfff);
    return paddr >> 12 < G.physical.frames ? (uint64_t *)(G.physical.ram + paddr) : NULL;
}

void tlb_set_page_with_attrs_x86_64(void *, uint64_t, uint64_t, uint32_t, int, int, uint64_t);

/* Code that is not 64-bit goes on at 0 after 4 GiB; the engine fetches from beyond. */
static bool wraps(int access, uint64_t vaddr)
{
    return access == ACCESS_FETCH && UNLIKELY(vaddr >> 32) && !code64();
}

/*
 * Walk four levels of tables in RAM, as x86_cpu_tlb_fill does, but in place; false, with nothing
 * but accessed bits changed, where that must do it: faults, other kinds of tables, holes.
 */
static bool walk(uint64_t vaddr, int access, int mode)
{
    uint64_t cr0 = FIELD(G.env, ENV_CR0, uint64_t), efer = FIELD(G.env, ENV_EFER, uint64_t);
    uint64_t address = FIELD(G.env, ENV_CR3, uint64_t), all = PTE_RW | PTE_US, any = 0, *entry;
    uint64_t size = 1ull << 48, linear = vaddr;

    if (wraps(access, vaddr))
        linear = (uint32_t)vaddr;
    if (!(efer & EFER_LMA) || !(cr0 & CR0_PG) || mode == MMU_KSMAP || !canonical(vaddr) ||
        (FIELD(G.env, ENV_CR4, uint64_t) & ~(uint64_t)CR4_OFFERED))
        return false;
    for (int level = 4;; level--) {
        address &= PTE_ADDRESS;
        size >>= 9;
        entry = machine_entry(address + linear / size % 512 * 8);
        if (!entry || !(*entry & PTE_P) || (*entry & PTE_RESERVED))
            return false;
        all &= *entry;
        any |= *entry;
        address = *entry;
        bool large = *entry & PTE_PS;
        if (level == 1 || (large && level < 4))
            break;
        if (large)
            return false;
        if (!(*entry & PTE_A))
            *entry |= PTE_A;
    }
    bool user = mode == MMU_USER;
    bool writable = (all & PTE_RW) || !(user || (cr0 & CR0_WP));
    bool large = size > 4096;
    if ((user && !(all & PTE_US)) || (access == ACCESS_WRITE && !writable) ||
        ((any & PTE_NX) && (access == ACCESS_FETCH || !(efer & EFER_NXE))) ||
        (large && (address & PTE_ADDRESS & (size - 1) & ~(uint64_t)PTE_LARGE_PAT)))
        return false;
    uint64_t seen = PTE_A | (access == ACCESS_WRITE ? PTE_D : 0);
    if ((*entry & seen) != seen)
        *entry |= seen;
    int prot = PAGE_READ | (any & PTE_NX ? 0 : PAGE_EXEC) |
               (writable && (*entry & PTE_D) ? PAGE_WRITE : 0);
    uint64_t page = ((address & PTE_ADDRESS & ~(size - 1)) | (linear & (size - 1))) & ~0xfffull;
    tlb_set_page_with_attrs_x86_64(G.cpu, vaddr & ~0xfffull, page, 0, prot, mode, size);
    return true;
}

bool x86_cpu_tlb_fill_x86_64(void *cpu, uint64_t vaddr, int size, int access, int mode, bool probe,
                             uintptr_t pc)
{
    G.counters.fills++;
    filling_for = access;
    if (walk(vaddr, access, mode))
        return true;
    if (!probe)
        missed = (struct access){true, access, size, vaddr, FIELD(G.env, ENV_CR2, uint64_t)};
    bool filled = (!wraps(access, vaddr) || /* for its fault, if it has one */
                   U.tlb_fill(cpu, (uint32_t)vaddr, size, access, mode, probe, pc)) &&
                  U.tlb_fill(cpu, vaddr, size, access, mode, probe, pc);
    if (!probe)
        missed.faults = false;
    return filled;
}

void tlb_set_page_with_attrs_x86_64(void *cpu, uint64_t vaddr, uint64_t paddr, uint32_t attrs,
                                    int prot, int mode, uint64_t size)
{
    if (G.physical.populated)
        paddr = machine_address(paddr);
    uint64_t frame = paddr >> 12;

    if (frame >= G.physical.frames) { /* no memory: ones are fetched, an undefined instruction */
        if (filling_for == ACCESS_FETCH) {
            paddr = G.physical.ones;
            prot = PAGE_EXEC;
        } else {
            prot &= ~PAGE_EXEC;
        }
    } else if (!(G.physical.code[frame] & FRAME_FETCHED)) {
        if (filling_for == ACCESS_FETCH) {
            G.physical.code[frame] |= FRAME_FETCHED;
            G.counters.code_frames++;
            if (G.physical.written[frame]) {
                G.physical.written[frame] = 0;
                U.tlb_flush(cpu);
            }
        } else {
            prot &= ~PAGE_EXEC;
            if (prot & PAGE_WRITE)
                G.physical.written[frame] = 1;
        }
    }
    U.tlb_set_page(cpu, vaddr, paddr, attrs, prot, mode, size);
}

/* A store on the slow path: first this one, with the frame, then tlb_set_dirty. */
void tb_invalidate_phys_page_fast_x86_64(void *uc, void *pages, uint64_t ram, int size, uintptr_t pc)
{
    dirty_frame = ram >> 12;
    if (dirty_frame >= G.physical.frames || (G.physical.code[dirty_frame] & FRAME_FETCHED))
        U.invalidate_fast(uc, pages, ram, size, pc);
}

void tlb_set_dirty_x86_64(void *cpu, uint64_t vaddr)
{
    if (dirty_frame >= G.physical.frames || !(G.physical.code[dirty_frame] & FRAME_FETCHED))
        U.tlb_set_dirty(cpu, vaddr);
}

/* Unicorn walks the whole TLB for each block it translates; one slot and the victims will do. */
void tlb_reset_dirty_by_vaddr_x86_64(void *cpu, uint64_t start, uint64_t length)
{
    char *tlb = FIELD(cpu, CPU_ENV_PTR, char *) - TLB_BEFORE_ENV;

    for (uint64_t page = start; page < start + length; page += 4096)
        for (int mode = 0; mode < MMU_MODES; mode++) {
            char *fast = tlb + TLB_FAST + 16 * mode;
            char *victims = tlb + TLB_DESC + TLB_DESC_SIZE * mode + TLB_VICTIMS;
            char *slot = FIELD(fast, 8, char *) + ((page >> 6) & FIELD(fast, 0, uint64_t));
            for (int i = -1; i < VICTIMS; i++) {
                char *entry = i < 0 ? slot : victims + TLB_ENTRY_SIZE * i;
                uint64_t *write = &FIELD(entry, TLB_ADDR_WRITE, uint64_t);
                if ((*write & ~0xfffull) == page && !(*write & TLB_NOT_PLAIN_RAM))
                    *write |= TLB_NOTDIRTY;
            }
        }
}

/* The TLB is resized by a host clock's window; make that a number of flushes instead. */
void tlb_flush_by_mmuidx_x86_64(void *cpu, uint16_t modes)
{
    char *tlb = FIELD(cpu, CPU_ENV_PTR, char *) - TLB_BEFORE_ENV;
    bool expired = ++G.counters.flushes % TLB_FLUSHES_PER_WINDOW == 0;

    generation++;
    for (int mode = 0; mode < MMU_MODES; mode++)
        FIELD(tlb, TLB_DESC + TLB_DESC_SIZE * mode + TLB_WINDOW_BEGIN, int64_t) =
            expired ? 0 : INT64_MAX / 2;
    U.tlb_flush_by_mmuidx(cpu, modes);
}

/* ---- guest frames without memory ---------------------------------------------------------- */

/* They read as ones; but the local APIC's page answers for itself. */
static uint64_t access_beyond_ram(enum exit_kind kind, uint64_t address, unsigned size,
                                  uint64_t value)
{
    spend(G.clock.prices[kind]);
    if (address - G.physical.apic >= 4096)
        return value;
    G.counters.exits++;
    G.exit.kind = kind;
    G.exit.port = address - G.physical.apic;
    G.exit.size = size;
    G.exit.value = value;
    call_python(G.exit.enter);
    if (G.exit.stop)
        U.emu_stop(G.uc);
    return G.exit.value;
}

static uint64_t load_beyond_ram(void *uc, uint64_t offset, unsigned size, void *start)
{
    (void)uc;
    return access_beyond_ram(EXIT_LOAD, (uintptr_t)start + offset, size, -1ull >> (64 - 8 * size));
}

static void store_beyond_ram(void *uc, uint64_t offset, unsigned size, uint64_t value, void *start)
{
    (void)uc;
    access_beyond_ram(EXIT_STORE, (uintptr_t)start + offset, size, value);
}

/* Have accesses to these machine addresses, at which no memory is, come here; returns a uc_err. */
int shim_map_beyond_ram(uint64_t start, uint64_t end)
{
    void *first = (void *)(uintptr_t)start;

    return U.mmio_map(G.uc, start, end - start, load_beyond_ram, first, store_beyond_ram, first);
}

/* ---- Python's side ------------------------------------------------------------------------- */

/* A table of each subject that is shared, with its place; the last entry has the struct's size. */
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
        CONSTANT(GAVE_UP) CONSTANT(NO_VECTOR) CONSTANT(MAX_OVERRIDES)
        CONSTANT(INTERRUPT_VIRQ) CONSTANT(INTERRUPT_NMI)
        CONSTANT(UC_NO_EXIT_REQUEST)
        CONSTANT(CPU_INTERRUPT_REQUEST) CONSTANT(CPU_HALTED) CONSTANT(CPU_EXCEPTION_INDEX)
        CONSTANT(ENV_REGS) CONSTANT(ENV_EIP) CONSTANT(ENV_HFLAGS) CONSTANT(ENV_SEGS)
        CONSTANT(ENV_CR0) CONSTANT(ENV_CR2) CONSTANT(ENV_EFER) CONSTANT(ENV_DR)
        CONSTANT(ENV_FPSTT) CONSTANT(ENV_FPUS) CONSTANT(ENV_FPUC) CONSTANT(ENV_MXCSR) CONSTANT(ENV_XMM)
        CONSTANT(ENV_SYSENTER_CS) CONSTANT(ENV_SYSENTER_ESP) CONSTANT(ENV_SYSENTER_EIP)
        CONSTANT(ENV_STAR) CONSTANT(ENV_LSTAR) CONSTANT(ENV_CSTAR) CONSTANT(ENV_FMASK)
        CONSTANT(ENV_KERNEL_GS_BASE) CONSTANT(ENV_TSC_AUX) CONSTANT(ENV_PAT)
        CONSTANT(ENV_OLD_EXCEPTION) CONSTANT(ENV_FEATURES) CONSTANT(ENV_SAVED)
        CONSTANT(SEG_BASE) CONSTANT(SEG_LIMIT) CONSTANT(SEG_SIZE) CONSTANT(XMM_SIZE)
        CONSTANT(HF_CS64) CONSTANT(HF_TS)
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
    memset(jumps, 0, sizeof jumps);
    jump_block = 0;
    G.vcpu.callback_vector = G.vcpu.apic_vector = G.vcpu.apic_accepted = NO_VECTOR;
    G.vcpu.rflags = U.read_eflags(G.env);
    G.debug.stepping = G.debug.stop = G.debug.caught_faults = 0;
    G.debug.let_fault = NOWHERE;
    breakpoint_count = 0;
    for (int i = 0; i < MAX_WATCHPOINTS; i++)
        watchpoints[i].length = 0;
}

/* Run from `rip` until the deadline or a stop; returns a uc_err, or GAVE_UP. */
int shim_run(uint64_t rip)
{
    G.exit.stop = 0;
    shim_sync_rflags();
    apply_requests();
    if (G.vcpu.native && G.vcpu.apic_vector != NO_VECTOR)
        shim_request_interrupt(INTERRUPT_VIRQ);
    FIELD(G.env, ENV_OLD_EXCEPTION, int32_t) = -1;
    delivering = NOTHING;
    missed.faults = false;
    FIELD(G.cpu, CPU_CFLAGS_NEXT_TB, uint32_t) = G.debug.stepping ? ONE_INSTRUCTION : ANY_BLOCK;
    int error = run_or_give_up(rip);
    settle();
    wrap_rip();
    G.vcpu.rflags = U.read_eflags(G.env);
    return error;
}

/* Read the RFLAGS of registers that were loaded behind the CPU's back. */
void shim_reload_rflags(void)
{
    G.vcpu.rflags = U.read_eflags(G.env);
    G.vcpu.rflags_dirty = 0;
}

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

void shim_flush_page(uint64_t vaddr)
{
    U.tlb_flush_page(G.cpu, vaddr);
}

/* Drop the translations of a frame that the hypervisor wrote to. */
void shim_invalidate(uint64_t frame)
{
    U.invalidate_range(G.uc, frame << 12, (frame + 1) << 12);
}
