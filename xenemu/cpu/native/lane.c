/*
 * The lane: ordinary work for a PV guest, which C does without Python. Its gate is here, and what
 * reads the guest's memory.
 *
 * The lane only accepts. It does what the model would do if that is plainly allowed. Whatever is not
 * so, it leaves to the model as it found it, and the model does it, or says why not. For example, a
 * page-table entry that maps a foreign frame is left. The only refusal here is the answer by which a
 * kernel counts its vcpus (calls.c). A test compares the lane with the model.
 */
#include <string.h>

#include "lane.h"

enum { NR_IRET = 23, MOST_ARGUMENTS = 4 };

/*
 * A call: how many arguments it has, which of them are 32 bits wide, and for which a 32-bit guest has
 * two registers. The last two are bits by argument.
 */
struct call {
    bool (*plain)(const uint64_t *args); /* do it, with take(), or leave it */
    unsigned nr_args, ints, pairs;
};

static const struct call calls[] = {
    [1] = {call_mmu_update, 4, 1 << 1 | 1 << 3, 0},
    [3] = {call_stack_switch, 2, 0, 0},
    [5] = {call_fpu_taskswitch, 1, 1 << 0, 0},
    [10] = {call_update_descriptor, 2, 0, 1 << 0 | 1 << 1},
    [14] = {call_update_va_mapping, 3, 0, 1 << 1},
    [17] = {call_xen_version, 2, 1 << 0, 0},
    [24] = {call_vcpu_op, 3, 1 << 0 | 1 << 1, 0},
    [25] = {call_set_segment_base, 2, 1 << 0, 0},
    [26] = {call_mmuext_op, 4, 1 << 1 | 1 << 3, 0},
    [NR_EVENT_CHANNEL_OP] = {call_event_channel_op, 2, 1 << 0, 0},
};

/* The call that the guest makes. */
static struct { uint32_t number; uint64_t args[MOST_ARGUMENTS]; } made;

/* ---- the guest's memory ---- */

/* Whether the hypervisor may touch this address for the guest. */
bool in_guest_range(uint64_t vaddr)
{
    if (G.lane.width == 4)
        return vaddr < COMPAT_VIRT_START;
    return vaddr < 1ull << 47 || vaddr >= 0xffff880000000000ull;
}

/* The L1 entry for a guest's address, present or not, or NULL. */
uint64_t *l1_entry(uint64_t root, uint64_t vaddr)
{
    for (uint32_t level = G.lane.levels; level > 1; level--) {
        uint64_t index = vaddr >> (12 + 9 * (level - 1)) & (G.lane.levels == 3 && level == 3 ? 3 : 511);
        if (root >= G.physical.frames)
            return NULL;
        uint64_t entry = *word(root << 12 | index << 3);
        if (!(entry & PTE_P) || ((entry & PTE_PS) && level < 4))
            return NULL;
        root = (entry & PTE_ADDRESS) >> 12;
    }
    return root < G.physical.frames ? word(root << 12 | (vaddr >> 12 & 511) << 3) : NULL;
}

/* The machine address of a 32-bit guest's memory, marked as the access marks it, or NOWHERE. */
uint64_t place32(uint64_t vaddr, bool writing)
{
    static const int shifts[] = {30, 21};
    uint64_t table = FIELD(G.env, ENV_CR3, uint64_t) >> 12;
    uint64_t wanted = PTE_P | (writing ? PTE_RW : 0);

    if (!in_guest_range(vaddr))
        return NOWHERE;
    for (int level = 0; level < 2; level++) {
        if (table >= G.physical.frames)
            return NOWHERE;
        uint64_t entry = *word(table << 12 | (vaddr >> shifts[level] & 511) << 3);
        if ((entry & wanted) != wanted || entry & PTE_PS)
            return NOWHERE;
        table = (entry & PTE_ADDRESS) >> 12;
    }
    uint64_t *entry = table < G.physical.frames ? word(table << 12 | (vaddr >> 12 & 511) << 3) : NULL;
    if (!entry || (*entry & wanted) != wanted || (*entry & PTE_ADDRESS) >> 12 >= G.physical.frames)
        return NOWHERE;
    *entry |= PTE_A | (writing ? PTE_D : 0);
    return (*entry & PTE_ADDRESS) | (vaddr & 0xfff);
}

/* The machine address that the guest reads at `vaddr`, or NOWHERE. */
static uint64_t readable(uint64_t vaddr)
{
    if (G.lane.width == 4)
        return place32(vaddr, false);
    return in_guest_range(vaddr) ? shim_translate(vaddr, false) : NOWHERE;
}

/* Copy from the guest. */
bool copy_in(void *to, uint64_t vaddr, size_t size)
{
    while (size) {
        size_t piece = 4096 - (vaddr & 0xfff) < size ? 4096 - (vaddr & 0xfff) : size;
        uint64_t maddr = readable(vaddr);
        if (maddr == NOWHERE)
            return false;
        memcpy(to, G.physical.ram + maddr, piece);
        to = (char *)to + piece;
        vaddr += piece;
        size -= piece;
    }
    return true;
}

/* ---- what was done ---- */

/* Take an exit that is plain, with its price. */
void pass(enum exit_kind kind)
{
    G.counters.exits++;
    spend(G.clock.prices[kind]);
    FIELD(G.env, ENV_OLD_EXCEPTION, int32_t) = -1;
    G.lane.taken++;
}

void log_call(uint32_t number, const uint64_t *args, unsigned nr_args, int64_t result)
{
    struct call_record *record = &G.lane.log->calls[G.lane.log->count++ % CALLS_KEPT];

    *record = (struct call_record){
        .at_ns = lane_now(),
        .rip = FIELD(G.env, ENV_EIP, uint64_t),
        .result = result,
        .number = number,
        .vcpu_id = G.lane.vcpu_id,
        .nr_args = nr_args,
    };
    memcpy(record->args, args, nr_args * sizeof *args);
}

/* Take the call that the guest makes, which is plain: with its line in the log, and its result. */
void take(int64_t result)
{
    uint64_t *regs = lane_regs();
    bool wide = G.lane.width == 8;

    pass(wide ? EXIT_SYSCALL : EXIT_SOFT_INT);
    log_call(made.number, made.args, calls[made.number].nr_args, result);
    if (wide) { /* as SYSCALL leaves them */
        regs[RCX] = FIELD(G.env, ENV_EIP, uint64_t);
        regs[R11] = U.read_eflags(G.env);
    }
    regs[RAX] = wide ? (uint64_t)result : (uint32_t)result;
}

/* Note that the call which was taken last has given a frame its type. */
void note_typed(uint64_t mfn)
{
    struct call_log *log = G.lane.log;

    log->typed[log->nr_typed++] =
        (struct typed){.mfn = mfn, .call = log->calls[(log->count - 1) % CALLS_KEPT]};
}

/* ---- the gate ---- */

/* Whether the vcpu may do without the hypervisor now. A 64-bit one must be in 64-bit code. */
bool may_go(void)
{
    return G.lane.open && !G.debug.stepping && (G.lane.width == 4 || code64()) &&
           !(FIELD(G.cpu, CPU_INTERRUPT_REQUEST, uint32_t) & INTERRUPT_HELD_DEBUG);
}

/* Others are 0. */
static void find_arguments(const struct call *call)
{
    static const int wide[] = {RDI, RSI, RDX, R10}, narrow[] = {RBX, RCX, RDX, RSI};
    const uint64_t *regs = lane_regs();

    memset(made.args, 0, sizeof made.args);
    for (unsigned n = 0, at = 0; n < call->nr_args; n++) {
        uint64_t value = regs[G.lane.width == 8 ? wide[at] : narrow[at]];
        at++;
        if (G.lane.width == 4 || call->ints >> n & 1)
            value = (uint32_t)value;
        if (G.lane.width == 4 && call->pairs >> n & 1)
            value |= regs[narrow[at++]] << 32;
        made.args[n] = value;
    }
}

static bool hypercall(uint64_t number)
{
    if (number >= sizeof calls / sizeof *calls || !calls[number].plain ||
        (G.lane.width == 8 && (selector_of(CS) != FLAT_CS64 || selector_of(SS) != FLAT_SS64)) ||
        is_upcall_due(G.lane.info[UPCALL_MASK]))
        return false;
    made.number = number;
    find_arguments(&calls[number]);
    if (!calls[number].plain(made.args))
        return false;
    const struct call_record *record = &G.lane.log->calls[(G.lane.log->count - 1) % CALLS_KEPT];
    NOTE(.what = NOTED_CALL, .number = number, .at_ns = record->at_ns, .until_ns = lane_now(),
         .args = {made.args[0], made.args[1], made.args[2], made.args[3]},
         .result = record->result);
    return true;
}

/* Do what a SYSCALL of a 64-bit guest's asks for, if that is ordinary; whether it was done. */
bool lane_takes_syscall(void)
{
    uint64_t number = *lane_regs();

    if (!may_go() || G.lane.width != 8)
        return false;
    if (!G.lane.vcpu->kernel_mode ? !syscall_from_user()
        : number == NR_IRET       ? !iret64()
                                  : !hypercall(number))
        return false;
    apply_requests();
    return true;
}

/* The same for a hypercall of a 32-bit guest's kernel, which is in ring 1. */
static bool int82(void)
{
    uint32_t number = *lane_regs();

    if (!G.lane.vcpu->kernel_mode)
        return false;
    return number == NR_IRET ? iret32() : hypercall(number);
}

/* The same for an INT n of a 32-bit guest's. */
bool lane_takes_soft_int(uint32_t vector)
{
    if (!may_go() || G.lane.width != 4)
        return false;
    see_mode32();
    if (!(vector == HYPERCALL_VECTOR ? int82() : vector == SYSCALL_VECTOR && int80_32()))
        return false;
    apply_requests();
    return true;
}
