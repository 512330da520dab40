/*
 * Exceptions and interrupts of a PVH guest. Each vector has a gate to a stub. The stub calls the
 * handler that was set for the vector. If there is none, it remembers the trap in last_trap:
 *
 *   - if the instruction was one of TRY's, the guest goes on after it;
 *   - if the trap came from ring 3, the guest goes on after run_user();
 *   - anything else ends the test.
 */
#ifndef TRAPS_H
#define TRAPS_H

#include "x86.h"

#define NO_TRAP 256u
enum { DE = 0, DB = 1, NMI = 2, BP = 3, OF = 4, UD = 6, DF = 8, TS = 10, NP, SS, GP, PF };

/* What is on the stack in a handler: what the stub pushed, then what the CPU did. */
struct frame {
#ifdef __x86_64__
	unsigned long r15, r14, r13, r12, r11, r10, r9, r8;
#endif
	unsigned long di, si, bp, bx, dx, cx, ax;
	unsigned long vector, error;
	unsigned long ip, cs, flags;
	unsigned long sp, ss; /* in 32-bit mode only if the trap came from ring 3 */
};

struct trap {
	unsigned int vector; /* NO_TRAP if there was none */
	unsigned long error, ip, cs, flags;
	unsigned long cr2;   /* of a page fault */
	unsigned long stack; /* where the CPU's part of the frame begins */
};
extern struct trap last_trap;

void init_traps(void);

/* A handler returns to what was interrupted; it may change the frame. NULL: none. */
void set_handler(unsigned int vector, void (*handler)(struct frame *frame));

/* Change a gate: who may call it by INT; its stack (0: none of its own); whether it is there. */
void set_gate_dpl(unsigned int vector, unsigned int dpl);
void set_gate_stack(unsigned int vector, unsigned int ist, void *top); /* 64-bit only */
void set_gate_present(unsigned int vector, int present);

/* Where a trap from ring 3 finds its stack. */
extern char ring0_stack[4096];

/* Run in ring 3 until something traps, which is then in last_trap. It has a stack of its own. */
void run_user(void (*code)(void));

/* Print the last trap, and report a failure if it was another one. */
void expect_trap(const char *what, unsigned int vector, unsigned long error);

/* Execute an instruction that may trap; its inputs are as in asm. It must not change registers. */
#define TRY(instruction, ...)                                                                      \
	do {                                                                                       \
		last_trap.vector = NO_TRAP;                                                        \
		asm volatile(TRYING(instruction) : : __VA_ARGS__ : "memory", "cc");                \
	} while (0)
#define TRYING(instruction)                                                                        \
	"1:	" instruction "\n"                                                                   \
	"2:	.pushsection .fixups, \"a\"\n"                                                       \
	"	.long 1b, 2b\n"                                                                      \
	"	.popsection\n"

#endif
