/*
 * Breakpoints and watchpoints: the guest's own, in its debug registers, and the debugger's.
 */
#include "shim.h"

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
            if (flags & OF_DEBUGGER)
                outdate_kept_tlbs();
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
 * An access to a watched page. If the access hits a watchpoint, the instruction is run again as a
 * block of its own. After that the CPU raises #DB, or the debugger has the guest.
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
 * The debugger's breakpoints. They are in the CPU's list, before the guest's, only while a block is
 * translated. So the guest's debug registers do not meet them.
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

void *show_breakpoints(void *tb)
{
    void **list = &FIELD(G.cpu, CPU_BREAKPOINTS, void *), *guests = *list;

    if (breakpoint_count && !(FIELD(tb, TB_CFLAGS, uint32_t) & HIDES_BREAKPOINTS)) {
        breakpoints[breakpoint_count - 1].next = guests;
        *list = breakpoints;
    }
    return guests;
}

void hide_breakpoints(void *guests)
{
    FIELD(G.cpu, CPU_BREAKPOINTS, void *) = guests;
}

/* Of another engine: the guest's, too. */
void forget_debugging(void)
{
    G.debug.stepping = G.debug.stop = G.debug.caught_faults = 0;
    G.debug.let_fault = NOWHERE;
    breakpoint_count = 0;
    for (int i = 0; i < MAX_WATCHPOINTS; i++)
        watchpoints[i].length = 0;
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
 * A breakpoint that MOV SS or POP SS hits traps after the next instruction, or where that leads. If
 * that is in Xen, Xen drops the trap.
 */
static void hold_debug_exception(void *cpu)
{
    FIELD(cpu, CPU_INTERRUPT_REQUEST, uint32_t) |= INTERRUPT_HELD_DEBUG;
    FIELD(cpu, CPU_EXCEPTION_INDEX, int32_t) = -1;
    U.loop_exit_restore(cpu, 0);
}

void drop_held_debug_exception(void)
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

/* The watchpoint that DR0 + n has armed. NULL if DR7 arms a breakpoint there, or nothing. */
static struct watchpoint *armed(int n)
{
    uint64_t dr7 = FIELD(G.env, ENV_DR + 7 * 8, uint64_t);
    bool enabled = dr7 >> 2 * n & 3, of_data = dr7 >> (16 + 4 * n) & 1;

    return enabled && of_data ? FIELD(G.env, ENV_WATCHPOINTS + 8 * n, struct watchpoint *) : NULL;
}

/* A bit for each of DR0 to DR3 that has been hit, if a #DB for that waits to be raised. */
uint32_t debug_hits(void)
{
    uint32_t hits = 0;

    if (!FIELD(G.cpu, CPU_WATCHPOINT_HIT, void *))
        return 0;
    for (int n = 0; n < GUEST_WATCHPOINTS; n++) {
        struct watchpoint *watchpoint = armed(n);
        if (watchpoint && (watchpoint->flags & WATCH_ACCESS * WATCH_HIT_READ))
            hits |= 1u << n;
    }
    return hits;
}

/*
 * Load all debug registers, in place of those that are armed. Hits of the new ones may be waiting.
 */
void load_debug(const uint64_t *registers, uint32_t hits)
{
    U.update_dr7(G.env, 0);
    FIELD(G.cpu, CPU_WATCHPOINT_HIT, void *) = NULL;
    for (int n = 0; n < 7; n++)
        FIELD(G.env, ENV_DR + 8 * n, uint64_t) = registers[n];
    U.update_dr7(G.env, registers[7]);
    for (int n = 0; n < GUEST_WATCHPOINTS; n++) {
        struct watchpoint *watchpoint = armed(n);
        if (!watchpoint || !(hits >> n & 1))
            continue;
        watchpoint->flags |= (watchpoint->flags & WATCH_ACCESS) * WATCH_HIT_READ;
        FIELD(G.cpu, CPU_WATCHPOINT_HIT, void *) = watchpoint;
    }
}
