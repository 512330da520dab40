/*
 * Instructions that CPUID offers where Unicorn's are not as a CPU's.
 *
 * Intel SDM volume 2, RDRAND, RDSEED, WRFSBASE, WRGSBASE.
 */
#include "shim.h"

/*
 * RDRAND and RDSEED. Unicorn's read the host's entropy, so no two runs would be the same. These
 * read splitmix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number generators").
 */
uint64_t helper_rdrand_x86_64(void *env)
{
    uint64_t mixed = G.vcpu.random += 0x9e3779b97f4a7c15;

    mixed = (mixed ^ mixed >> 30) * 0xbf58476d1ce4e5b9;
    mixed = (mixed ^ mixed >> 27) * 0x94d049bb133111eb;
    FIELD(env, ENV_CC_SRC, uint64_t) = EFLAGS_CF; /* there was one */
    return mixed ^ mixed >> 31;
}

/*
 * What RDFSBASE and the like begin with. The engine would also write bases that are not canonical.
 */
void helper_cr4_testbit_x86_64(void *env, uint32_t bit)
{
    uintptr_t pc = RETURN_ADDRESS;
    struct instruction in;

    if (!(FIELD(env, ENV_CR4, uint64_t) & bit))
        U.raise(env, UD, 0, pc);
    U.restore_state(G.cpu, pc, false);
    if (!decode(&in))
        return;
    uint8_t modrm = behind_opcode(&in, 0);
    bool writes = modrm & 0x10, wide = in.rex & 8;
    unsigned reg = (modrm & 7) | (in.rex & 1) << 3;
    if (writes && wide && !canonical(FIELD(env, ENV_REGS + reg * 8, uint64_t)))
        U.raise(env, GP, 0, pc);
}
