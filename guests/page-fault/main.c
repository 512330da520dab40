/*
 * A page fault tells the address in CR2. Its error code tells the reason: whether the page was
 * there, whether it was a write, whether it came from ring 3, whether a reserved bit was set (SDM
 * volume 3, chapter 4). With a wrong reason, a kernel loops on the fault, or kills a program that
 * did nothing.
 *
 * Success: every reason that is possible here is told, and nothing else. The guest paging-modes has
 * NX.
 */
#include "pvh.h"
#include "traps.h"

#define HOLE 0xd0000000ul

extern uint64_t l2_tables[];

static void set_hole(uint64_t bits)
{
	l2_tables[HOLE >> 21] = bits ? HOLE | bits : 0;
	invlpg((void *)HOLE);
}

static void user_read_hole(void) { *(volatile char *)(HOLE + 8); }

static void page_fault(const char *what, unsigned int error)
{
	expect_trap(what, PF, error);
	check_equal("CR2", last_trap.cr2, HOLE + 8);
}

void guest_main(void)
{
	set_hole(0);
	TRY("testb $1, (%0)", "r"(HOLE + 8));
	page_fault("read of an absent page", 0);
	TRY("movl $1, (%0)", "r"(HOLE + 8));
	page_fault("write to an absent page", 2);
	run_user(user_read_hole);
	page_fault("read of an absent page in ring 3", 4);
	set_hole(0x83);
	run_user(user_read_hole);
	page_fault("read of ring 0's page in ring 3", 5);
	set_hole(0x83 | 1 << 13);
	TRY("testb $1, (%0)", "r"(HOLE + 8));
	page_fault("reserved bit in an entry", 9);
	set_hole(0x81);
	TRY("movl $1, (%0)", "r"(HOLE + 8));
	page_fault("write to a read-only page", 3);
	TRY("testb $1, (%0)", "r"(1ul << 47));
	expect_trap("address that is not canonical", GP, 0);
	success();
}
