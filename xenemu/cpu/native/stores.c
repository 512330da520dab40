/*
 * The lane's stores to L1 tables, by the instructions that a 64-bit kernel uses most.
 *
 * The reference is pv/ptwr.py. As in lane.c, only what is ordinary is done here. Intel SDM volume 2,
 * chapter 2 (ModRM and SIB).
 */
#include <string.h>

#include "lane.h"

enum { LOCK = 0xf0, DS_PREFIX = 0x3e, REX = 0x40, REX_W = 8, REX_R = 4, REX_X = 2, REX_B = 1 };
enum { AND8 = 0x80, XCHG = 0x87, MOV = 0x89, AND = 4 }; /* the last is ModRM's reg of AND8 */
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
    bool relative = base == NO_BASE && !mode, far = relative || mode == 2;
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

static bool move(uint64_t maddr, uint64_t *reg, bool exchange, unsigned length)
{
    uint64_t old = *word(maddr);

    if (maddr & 7 || !change(maddr, *reg))
        return false;
    complete(length);
    if (exchange)
        *reg = old;
    return true;
}

/* After a kernel's store to `vaddr` faulted, which is a byte of an L1 table. */
bool store_to_table(uint64_t vaddr, uint64_t maddr)
{
    uint8_t code[LONGEST], rex = 0;
    struct operand operand;
    bool locked;
    unsigned n = 0;

    if (!code64() || U.read_eflags(G.env) & EFLAGS_TF || !fetch(code))
        return false;
    locked = code[n] == LOCK;
    if (locked || code[n] == DS_PREFIX)
        n++;
    if ((code[n] & 0xf0) == REX)
        rex = code[n++];
    uint8_t opcode = code[n++], immediate = opcode == AND8;
    if (!find_operand(code, n, rex, immediate, &operand) || operand.address != vaddr)
        return false;
    if (opcode == AND8 && (code[n] >> 3 & 7) == AND)
        return and_byte(maddr, code[operand.length - 1], operand.length);
    if ((opcode == XCHG || (opcode == MOV && !locked)) && rex & REX_W)
        return move(maddr, &lane_regs()[operand.reg], opcode == XCHG, operand.length);
    return false;
}
