/*
 * The lane's stores to L1 tables, by the instructions that kernels use most.
 *
 * The reference is pv/ptwr.py. As in lane.c, only what is ordinary is done here. Intel SDM volume 2,
 * chapter 2 (ModRM and SIB).
 */
#include <string.h>

#include "lane.h"

enum { LOCK = 0xf0, DS_PREFIX = 0x3e, REX = 0x40, REX_W = 8, REX_R = 4, REX_X = 2, REX_B = 1 };
enum { AND8 = 0x80, XCHG = 0x87, MOV = 0x89, MOV_IMMEDIATE = 0xc7, AND = 4 }; /* the last: ModRM */
enum { EFLAGS_PF = 4, EFLAGS_ZF = 1 << 6, EFLAGS_SF = 1 << 7, EFLAGS_ARITHMETIC = 0x8d5 };
enum { NO_SIB = 4, NO_BASE = 5 }; /* registers that ModRM and SIB cannot name */

struct operand { uint64_t address; unsigned reg, length; };

/*
 * The operands of the instruction whose ModRM is at code[at], before `immediate` bytes: where the one
 * in memory is, the number of the register, and the length of all. False if none is in memory.
 */
static bool find_operand(const uint8_t *code, unsigned at, uint8_t rex, unsigned immediate,
                         struct operand *found)
{
    const uint64_t *regs = lane_regs();
    uint8_t modrm = code[at++], mode = modrm >> 6, base = modrm & 7;
    uint64_t address = 0;
    bool relative = base == NO_BASE && !mode && code64();
    bool far = (base == NO_BASE && !mode) || mode == 2;
    int32_t displacement = 0;

    if (mode == 3)
        return false;
    if (base == NO_SIB) {
        uint8_t sib = code[at++], index = (sib >> 3 & 7) | (rex & REX_X) << 2;
        base = sib & 7;
        if (index != NO_SIB)
            address = regs[index] << (sib >> 6);
        far |= base == NO_BASE && !mode;
    }
    if (base != NO_BASE || mode)
        address += regs[base | (rex & REX_B) << 3];
    if (far) {
        memcpy(&displacement, code + at, sizeof displacement);
        at += sizeof displacement;
    } else if (mode == 1) {
        displacement = (int8_t)code[at++];
    }
    found->length = at + immediate;
    found->reg = (modrm >> 3 & 7) | (rex & REX_R) << 1;
    found->address = address + (int64_t)displacement +
                     (relative ? FIELD(G.env, ENV_EIP, uint64_t) + found->length : 0);
    if (!code64())
        found->address = (uint32_t)found->address;
    return true;
}

/* What an instruction of one byte, such as AND, leaves in the arithmetic flags. */
static uint64_t flags_of(uint8_t result)
{
    return (result ? 0 : EFLAGS_ZF) | (result & 0x80 ? EFLAGS_SF : 0) |
           (__builtin_parity(result) ? 0 : EFLAGS_PF);
}

static bool change(uint64_t maddr, uint64_t value)
{
    if (!is_plain_l1(maddr, value))
        return false;
    if (set_l1_entry(maddr, value, false))
        flush_tlb();
    return true;
}

static bool and_byte(uint64_t maddr, uint8_t mask, unsigned length)
{
    unsigned shift = 8 * (maddr & 7);
    uint64_t old = *word(maddr), rflags = U.read_eflags(G.env);
    uint8_t new = (old >> shift) & mask;

    if (!change(maddr & ~7ull, (old & ~(0xffull << shift)) | (uint64_t)new << shift))
        return false;
    complete(length);
    set_rflags((rflags & ~(uint64_t)(EFLAGS_ARITHMETIC | EFLAGS_RF)) | flags_of(new));
    return true;
}

/* MOV, or XCHG with a register, of `size` bytes: 4 or 8. */
static bool move(uint64_t maddr, uint64_t value, unsigned size, uint64_t *exchanged, unsigned length)
{
    uint64_t entry = *word(maddr), mask = size == 8 ? ~0ull : 0xffffffff;
    unsigned shift = 8 * (maddr & 7);

    if (maddr & (size - 1) ||
        !change(maddr & ~7ull, (entry & ~(mask << shift)) | (value & mask) << shift))
        return false;
    complete(length);
    if (exchanged)
        *exchanged = entry >> shift & mask;
    return true;
}

/* After a kernel's store to `vaddr` faulted, which is a byte of an L1 table. */
bool store_to_table(uint64_t vaddr, uint64_t maddr)
{
    uint8_t code[LONGEST], rex = 0;
    bool code32 = FIELD(G.env, ENV_HFLAGS, uint32_t) & HF_CS32;
    struct operand operand;
    int32_t immediate;
    unsigned n = 0;

    if (!(code64() || code32) || U.read_eflags(G.env) & EFLAGS_TF || !fetch(code))
        return false;
    bool locked = code[n] == LOCK;
    if (locked || code[n] == DS_PREFIX)
        n++;
    if (code64() && (code[n] & 0xf0) == REX)
        rex = code[n++];
    uint8_t opcode = code[n++], extension = code[n] >> 3 & 7;
    unsigned size = rex & REX_W ? 8 : 4;
    if (!find_operand(code, n, rex, opcode == AND8 ? 1 : opcode == MOV_IMMEDIATE ? 4 : 0, &operand) ||
        operand.address != vaddr)
        return false;
    uint64_t *reg = &lane_regs()[operand.reg];
    if (opcode == AND8 && extension == AND)
        return and_byte(maddr, code[operand.length - 1], operand.length);
    if (opcode == XCHG)
        return move(maddr, *reg, size, reg, operand.length);
    if (opcode == MOV && !locked)
        return move(maddr, *reg, size, NULL, operand.length);
    if (opcode != MOV_IMMEDIATE || extension || locked)
        return false;
    memcpy(&immediate, code + operand.length - sizeof immediate, sizeof immediate);
    return move(maddr, (int64_t)immediate, size, NULL, operand.length);
}
