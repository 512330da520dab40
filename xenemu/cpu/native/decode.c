/*
 * Decode the instruction at RIP, as far as it decides about its exception: prefixes, opcode, and
 * the segment of each access. Intel SDM volume 2, chapter 2 and appendix A; volume 1, table 3-5
 * (default segments).
 */
#include "shim.h"

static const uint8_t SEGMENT_PREFIXES[] = {[ES] = 0x26, [CS] = 0x2e, [SS] = 0x36,
                                           [DS] = 0x3e, [FS] = 0x64, [GS] = 0x65};

/*
 * Read code as the CPU fetches it, without a fault; return how many bytes there were. The probe
 * writes down a fault, but does not raise it.
 */
unsigned peek_code(uint64_t at, uint8_t *bytes, unsigned wanted)
{
    uint64_t cr2 = FIELD(G.env, ENV_CR2, uint64_t);
    uint32_t error = FIELD(G.env, ENV_EXCEPTION_ERROR, uint32_t);
    int32_t index = FIELD(G.cpu, CPU_EXCEPTION_INDEX, int32_t);
    int mode = (FIELD(G.env, ENV_HFLAGS, uint32_t) & 3) == 3 ? MMU_USER : MMU_KERNEL;
    uint8_t *host = NULL;
    unsigned n;

    for (n = 0; n < wanted; n++, host++) {
        uint64_t vaddr = code64() ? at + n : (uint32_t)(at + n);
        if (!host || !(vaddr & 0xfff))
            host = U.host_address(G.env, vaddr, ACCESS_FETCH, mode);
        if (!host)
            break;
        bytes[n] = *host;
    }
    FIELD(G.env, ENV_CR2, uint64_t) = cr2;
    FIELD(G.env, ENV_EXCEPTION_ERROR, uint32_t) = error;
    FIELD(G.cpu, CPU_EXCEPTION_INDEX, int32_t) = index;
    return n;
}

/* Take a byte as a prefix, if it is one. */
static bool take_prefix(struct instruction *in, uint8_t byte)
{
    if (code64() && (byte & 0xf0) == 0x40) {
        in->rex = byte;
        return true;
    }
    for (int segment = ES; segment <= GS; segment++)
        if (byte == SEGMENT_PREFIXES[segment]) {
            if (!code64() || segment >= FS)
                in->segment = segment;
            in->rex = 0;
            return true;
        }
    if (byte != 0x66 && byte != 0x67 && byte != 0xf0 && byte != 0xf2 && byte != 0xf3)
        return false;
    in->address_size_prefix |= byte == 0x67;
    in->operand_size_prefix |= byte == 0x66;
    in->mandatory_prefix |= byte == 0x66 || byte == 0xf2 || byte == 0xf3;
    in->rex = 0;
    return true;
}

/* Decode what is at RIP; false where its opcode cannot be read, or is none. */
bool decode(struct instruction *in)
{
    uint64_t at = FIELD(G.env, ENV_EIP, uint64_t) +
                  (code64() ? 0 : FIELD(G.env, ENV_SEGS + SEG_SIZE * CS + SEG_BASE, uint64_t));
    unsigned n = 0;

    *in = (struct instruction){.segment = NO_SEGMENT};
    in->available = peek_code(at, in->bytes, sizeof in->bytes);
    while (n < in->available && take_prefix(in, in->bytes[n]))
        n++;
    if (n == in->available)
        return false;
    in->opcode = in->bytes[n++];
    if (in->opcode == 0x0f && n < in->available) {
        in->opcode = 0x0f00 | in->bytes[n++];
        if ((in->opcode == 0x0f38 || in->opcode == 0x0f3a) && n < in->available)
            in->opcode = in->opcode << 8 | in->bytes[n++];
    }
    in->modrm = n;
    return true;
}

/* A byte after the opcode; 0 where there is none. */
uint8_t behind_opcode(const struct instruction *in, unsigned n)
{
    return in->modrm + n < in->available ? in->bytes[in->modrm + n] : 0;
}

static int code_bits(bool other)
{
    bool code32 = FIELD(G.env, ENV_HFLAGS, uint32_t) & HF_CS32;

    return code32 != other ? 32 : 16;
}

static int address_bits(const struct instruction *in)
{
    if (code64())
        return in->address_size_prefix ? 32 : 64;
    return code_bits(in->address_size_prefix);
}

/* Of operands, in other than 64-bit code. */
int operand_bits(const struct instruction *in)
{
    return code_bits(in->operand_size_prefix);
}

/* The segment of the operand in memory that ModRM names. */
static int modrm_segment(const struct instruction *in)
{
    uint8_t modrm = behind_opcode(in, 0), mode = modrm >> 6, base = modrm & 7;
    bool stack;

    if (in->segment != NO_SEGMENT)
        return in->segment;
    if (mode == 3)
        return DS;
    if (address_bits(in) == 16) {
        stack = base == 2 || base == 3 || (base == 6 && mode);
    } else {
        if (base == 4) /* SIB */
            base = behind_opcode(in, 1) & 7;
        stack = !(in->rex & 1) && (base == 4 || (base == 5 && mode));
    }
    return stack ? SS : DS;
}

/* Whether an access is to what RDI or EDI points to in ES. */
static bool at_destination(const struct instruction *in, uint64_t vaddr)
{
    uint64_t mask = address_bits(in) == 16 ? 0xffff : 0xffffffff;
    uint64_t base = FIELD(G.env, ENV_SEGS + SEG_SIZE * ES + SEG_BASE, uint64_t);

    return vaddr == (uint32_t)(base + (FIELD(G.env, ENV_REGS + 7 * 8, uint64_t) & mask));
}

static bool in_table(int which, uint64_t vaddr)
{
    char *table = (char *)G.env + ENV_SEGS + SEG_SIZE * which;

    return vaddr - FIELD(table, SEG_BASE, uint64_t) <= FIELD(table, SEG_LIMIT, uint32_t);
}

/*
 * The segment by which the instruction made an access. It is SS for what is on the stack, whatever
 * the stack's base in 64-bit code. It is NO_SEGMENT for the CPU's own access to a descriptor.
 */
int segment_of_access(const struct instruction *in, int access, uint64_t vaddr)
{
    int source = in->segment == NO_SEGMENT ? DS : in->segment;
    uint8_t reg = behind_opcode(in, 0) >> 3 & 7;
    bool write = access == ACCESS_WRITE;

    if (in_table(GDTR, vaddr) || in_table(LDTR, vaddr))
        return NO_SEGMENT;
    switch (in->opcode) {
    case 0x06: case 0x07: case 0x0e: case 0x16: case 0x17: case 0x1e: case 0x1f: /* PUSH, POP */
    case 0x50 ... 0x61: case 0x68: case 0x6a: case 0x9a: case 0x9c: case 0x9d: case 0xc2:
    case 0xc3: case 0xc8 ... 0xcb: case 0xcf: case 0xe8: /* to CALL, RET, ENTER, LEAVE, IRET */
    case 0x0fa0: case 0x0fa1: case 0x0fa8: case 0x0fa9:
        return SS;
    case 0x6c: case 0x6d: case 0xaa: case 0xab: case 0xae: case 0xaf: /* INS, STOS, SCAS */
        return ES;
    case 0xa4: case 0xa5: /* MOVS */
        return write ? ES : source;
    case 0xa6: case 0xa7: /* CMPS */
        return at_destination(in, vaddr) ? ES : source;
    case 0x6e: case 0x6f: case 0xa0 ... 0xa3: case 0xac: case 0xad: case 0xd7: /* to LODS, XLAT */
    case 0x0ff7: /* MASKMOVQ, MASKMOVDQU */
        return source;
    case 0x8f: /* POP */
        return write ? modrm_segment(in) : SS;
    case 0xff: /* CALL and PUSH of what is in memory */
        return write && (reg == 2 || reg == 3 || reg == 6) ? SS : modrm_segment(in);
    default:
        return modrm_segment(in);
    }
}
