/*
 * The exact instruction count with its deadline, virtual time, and a look at the host now and then.
 */
#include <string.h>
#include <time.h>

#include "shim.h"

/*
 * The instructions that are left until the deadline are in two places. One part is lent to the
 * generated code, in the low half of QEMU's icount_decr. The rest is in `G.clock.left`. Each block
 * begins by taking its length from the lent part. If too little is left there, or if a request to
 * leave has made the high half negative, the block calls helper_check_exit_request. Outside of
 * generated code nothing is lent.
 *
 * For example, the deadline is 100,000 instructions away. Then 65,535 are lent, and 34,465 are in
 * `left`. A block of 10 instructions lowers the lent part to 65,525, without a call.
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

int64_t left_to_run(void)
{
    return G.clock.left + FIELD(G.cpu, CPU_ICOUNT_DECR, uint16_t);
}

int64_t left_at_refund; /* what was left after the last block that was left early */

int64_t sleb128(const uint8_t **at)
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

static bool generated(uintptr_t pc)
{
    return pc - FIELD(G.tcg, TCG_CODE_GEN_BUFFER, uintptr_t) <
           FIELD(G.tcg, TCG_CODE_GEN_BUFFER_SIZE, uintptr_t);
}

/* The translated block that contains host address `pc`, or NULL. */
void *block_at(uintptr_t pc)
{
    return generated(pc) ? U.tb_lookup(G.tcg, pc) : NULL;
}

static int64_t find_unfinished(uintptr_t pc)
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

/*
 * The answers of the last few host addresses. A loop that reads the TSC asks for the same ones
 * again and again. They hold until another block is generated there.
 */
enum { ANSWERS = 64 };

static struct answer {
    uintptr_t pc;
    int64_t unfinished;
} answers[ANSWERS];
static uintptr_t last_answer; /* the highest `pc` of them */

void forget_unfinished(void)
{
    memset(answers, 0, sizeof answers);
    last_answer = 0;
}

/* How many instructions of the block that contains host address `pc` have not completed. */
int64_t unfinished(uintptr_t pc)
{
    struct answer *answer = &answers[(pc ^ pc >> 6) % ANSWERS];

    if (!generated(pc))
        return 0;
    if (answer->pc != pc) {
        *answer = (struct answer){pc, find_unfinished(pc)};
        if (pc > last_answer)
            last_answer = pc;
    }
    return answer->unfinished;
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
 * Ask now and then, by the host's clock, whether the guest is to stop. Nothing else may depend on
 * the answer. This is at a block's start, where not all registers are in place.
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
 * Do what a block's start does, where no block may begin: an exception is delivered again and
 * again, because its handler cannot be fetched.
 */
void look_between_blocks(void)
{
    look_at_host();
    if (left_to_run() <= 0)
        U.emu_stop(G.uc);
}

/*
 * The rare case at the start of a block: its length has been taken, and did not fit. The case comes
 * at least every MAX_LENT instructions. It also comes after each exit, each access to a device, and
 * each translation.
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
 *                                                   79 xx             jns  after the call
 *                                                   90                nop
 *     be LENGTH       mov $length, %esi             the same
 *     ff 15 or e8     call                          the same
 */
static const uint64_t PATTERN = 0x78656e656d750001;

void translator_loop_x86_64(const void *ops, void *db, void *cpu, void *tb, int max_insns)
{
    void *guests = show_breakpoints(tb);
    translate_block(ops, db, cpu, tb, max_insns);
    hide_breakpoints(guests);
    G.counters.blocks_translated++;
    note_block(tb);
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

    if ((uintptr_t)code <= last_answer)
        forget_unfinished();
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

bool cpu_restore_state_x86_64(void *cpu, uintptr_t pc, bool will_exit)
{
    if (will_exit) {
        G.clock.left += unfinished(pc);
        left_at_refund = left_to_run();
    }
    return U.restore_state(cpu, pc, will_exit);
}

/* Virtual time at host address `pc` of generated code. */
int64_t now_ns(uintptr_t pc)
{
    int64_t left = G.clock.left + FIELD(G.cpu, CPU_ICOUNT_DECR, uint16_t);

    return G.clock.end - left - unfinished(pc) + G.clock.skipped_ns;
}
