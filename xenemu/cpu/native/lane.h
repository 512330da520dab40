/*
 * What the two files of the lane share: lane.c has the hypercalls, bounce.c the ways into the
 * guest's kernel and out of it.
 */
#ifndef LANE_H
#define LANE_H

#include "shim.h"

#pragma GCC visibility push(hidden)

enum { FLAT_CS32 = 0xe023, FLAT_CS64 = 0xe033, FLAT_SS64 = 0xe02b };
enum { PGT_L1 = 1, PGT_WRITABLE = 7 };
enum { RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8, R9, R10, R11 };

static inline struct page_info *page(uint64_t mfn)
{
    return &G.physical.info[mfn];
}

static inline uint64_t *lane_regs(void)
{
    return &FIELD(G.env, ENV_REGS, uint64_t);
}

/* lane.c */
bool in_guest_range(uint64_t vaddr);
uint64_t *l1_entry(uint64_t root, uint64_t vaddr);
bool copy_in(void *to, uint64_t vaddr, size_t size);
void pass(enum exit_kind kind);
bool may_go(void);

/* bounce.c */
bool iret64(void);
bool syscall_from_user(void);

#pragma GCC visibility pop

#endif
