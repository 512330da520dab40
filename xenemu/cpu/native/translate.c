/*
 * What Unicorn would translate wrongly: instructions that this CPU lacks, and code that goes on
 * after 4 GiB. A check here costs something only once, when the instruction is translated.
 */
#include <string.h>

#include "shim.h"

enum { /* TranslatorOps, DisasContextBase */
    OPS_TRANSLATE = 32, OPS_SIZE = 56, DB_PC_NEXT = 16, DB_END = 24, GO_ON = 0, TOO_MANY = 1,
};

/* ---- instructions that this CPU lacks ---- */

enum first_byte { OTHER, PREFIX, VEX2, VEX3, MOVE, POP };
static const uint8_t first_bytes[256] = {
    [0x26] = PREFIX, [0x2e] = PREFIX, [0x36] = PREFIX, [0x3e] = PREFIX, [0x64 ... 0x67] = PREFIX,
    [0xf0] = PREFIX, [0xf2] = PREFIX, [0xf3] = PREFIX, [0x40 ... 0x4f] = PREFIX,
    [0xc4] = VEX3, [0xc5] = VEX2, [0xc6] = MOVE, [0xc7] = MOVE, [0x8f] = POP,
};

static uint8_t code_byte(uint64_t at)
{
    uintptr_t addend = code_addend(G.env, at, FIELD(G.env, ENV_HFLAGS, uint32_t));

    return addend ? *(uint8_t *)(at + addend) : U.load_code(G.env, at);
}

/*
 * Whether there is a VEX prefix, and not LES or LDS, before anything but the general registers'
 * BMI.
 */
static bool is_avx(enum first_byte kind, uint64_t at)
{
    uint8_t next = code_byte(at + 1), opcode;

    if (!code64() && next < 0xc0)
        return false;
    if (kind == VEX2)
        return true;
    opcode = code_byte(at + 3);
    switch (next & 0x1f) {
    case 2:
        return opcode != 0xf2 && opcode != 0xf3 && !(opcode >= 0xf5 && opcode <= 0xf7);
    case 3:
        return opcode != 0xf0;
    default:
        return true;
    }
}

/*
 * Unicorn takes AVX for SSE with two operands, XBEGIN and XABORT for MOV, and the free encodings
 * beside POP for POP.
 */
static bool is_lacking(uint64_t at)
{
    enum first_byte kind;

    while ((kind = first_bytes[code_byte(at)]) == PREFIX &&
           (code64() || (code_byte(at) & 0xf0) != 0x40))
        at++;
    switch (kind) {
    case VEX2:
    case VEX3:
        return is_avx(kind, at);
    case MOVE:
    case POP:
        return code_byte(at + 1) >> 3 & 7;
    default:
        return false;
    }
}

static uint64_t undefined_at, undefined_bytes; /* where a UD2 is read, whatever is there */

uint32_t cpu_ldub_code_x86_64(void *env, uint64_t vaddr)
{
    if (UNLIKELY(vaddr - undefined_at < undefined_bytes))
        return vaddr == undefined_at ? 0x0f : 0x0b;
    return U.load_code(env, vaddr);
}

/* ---- one instruction, and a block ---- */

static void (*translate)(void *db, void *cpu);

static void translate_instruction(void *db, void *cpu)
{
    uint64_t *next = &FIELD(db, DB_PC_NEXT, uint64_t);
    uint32_t *end = &FIELD(db, DB_END, uint32_t);

    undefined_at = *next;
    undefined_bytes = is_lacking(*next) ? 2 : 0;
    translate(db, cpu);
    undefined_bytes = 0;
    if (UNLIKELY(*next >> 32) && !code64() && *end == GO_ON)
        *end = TOO_MANY;
}

/* Let code that ran past 4 GiB, and is not 64-bit, be at 0; whether it did. */
bool wrap_rip(void)
{
    uint64_t *rip = &FIELD(G.env, ENV_EIP, uint64_t);

    if (!UNLIKELY(*rip >> 32) || code64())
        return false;
    *rip = (uint32_t)*rip;
    return true;
}

/* Translate a block, which begins where the CPU is. */
void translate_block(const void *ops, void *db, void *cpu, void *tb, int max_insns)
{
    static char ours[OPS_SIZE];

    if (wrap_rip()) { /* there is no such block */
        FIELD(cpu, CPU_EXCEPTION_INDEX, int32_t) = -1;
        U.loop_exit_restore(cpu, 0);
    }
    if (!translate) {
        memcpy(ours, ops, OPS_SIZE);
        translate = FIELD(ops, OPS_TRANSLATE, void *);
        FIELD(ours, OPS_TRANSLATE, void *) = translate_instruction;
    }
    U.translator_loop(ours, db, cpu, tb, max_insns);
}
