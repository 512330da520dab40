/*
 * Writable page tables. A kernel stores to its own L1 table, which it has mapped read-only, and Xen
 * makes the change if it is allowed. Kernels do this with every instruction that compilers use on a
 * PTE. A 32-bit kernel writes an entry in two halves, in either order.
 *
 * Success: each store maps what it says. A store that would make a page table writable is a page
 * fault, and changes nothing.
 */
#include "pv.h"
#include "traps.h"

#define BITS (PTE_P | PTE_RW | PTE_US | 0x60) /* accessed, dirty */
#define AVAIL 0x200u

static char window[4096] __attribute__((aligned(4096)));
static char pages[2][4096] __attribute__((aligned(4096)));
static volatile uint64_t *entry;

static uint64_t leads_to(int page)
{
	return (uint64_t)virt_to_mfn(pages[page]) << 12 | BITS;
}

static void flush(void)
{
	asm volatile("mov %%cr3, %0; mov %0, %%cr3" : "=r"((unsigned long){ 0 }) : : "memory");
}

static void check_window(const char *what, char content)
{
	flush();
	if (*(volatile char *)window != content)
		failure(what);
	if ((*entry & BITS) != BITS)
		failure("the entry's bits");
}

/* Go from page 0 to page 1 by `store`, and back by a hypercall. */
#define WITH(what, store)                                                                          \
	do {                                                                                       \
		uint64_t new = leads_to(1), old = *entry;                                          \
		(void)old;                                                                         \
		store;                                                                             \
		check_window(what, 'b');                                                           \
		check_equal("back", update_va_mapping(window, leads_to(0)), 0);                    \
		check_window("back", 'a');                                                         \
	} while (0)

static void bits(void)
{
	volatile uint32_t *low = (volatile uint32_t *)entry;

	asm volatile("orl %1, %0" : "+m"(*low) : "i"(AVAIL));
	check_equal("or", *low & AVAIL, AVAIL);
	asm volatile("andl %1, %0" : "+m"(*low) : "i"(~AVAIL));
	check_equal("and", *low & AVAIL, 0);
	asm volatile("lock orl %1, %0" : "+m"(*low) : "i"(AVAIL));
	check_equal("lock or", *low & AVAIL, AVAIL);
	asm volatile("lock btrl %1, %0" : "+m"(*low) : "i"(9));
	check_equal("lock btr", *low & AVAIL, 0);
	asm volatile("btsl %1, %0" : "+m"(*low) : "r"(9));
	check_equal("bts", *low & AVAIL, AVAIL);
	asm volatile("btcl %1, %0" : "+m"(*low) : "i"(9));
	check_equal("btc", *low & AVAIL, 0);
	asm volatile("xorb $2, %0" : "+m"(*low)); /* RW off, and on again */
	check_equal("xor", *low & 2, 0);
	asm volatile("addb $2, %0" : "+m"(*low));
	check_window("add", 'a');
}

#ifdef __x86_64__

#define ARITHMETIC 0x8c5ul /* flags: all but AF, which AND leaves undefined */

/* AND of a byte of the entry has the same result and flags as of any other byte. */
#define AND(instruction, mask)                                                                     \
	do {                                                                                       \
		uint8_t other = *entry;                                                            \
		unsigned long flags, of_other;                                                     \
		asm volatile(instruction " %2, %0; pushfq; popq %1"                                \
			     : "+m"(*(volatile uint8_t *)entry), "=r"(flags) : "i"(mask));         \
		asm volatile("andb %2, %0; pushfq; popq %1"                                        \
			     : "+m"(other), "=r"(of_other) : "i"(mask));                           \
		check_equal(instruction, *entry & 0xff, other);                                    \
		check_equal("its flags", flags & ARITHMETIC, of_other & ARITHMETIC);               \
		check_equal("back", update_va_mapping(window, leads_to(0)), 0);                    \
		check_window("back", 'a');                                                         \
	} while (0)

static void bytes(void)
{
	AND("andb", ~2);
	AND("lock andb", ~2);
	AND("ds andb", ~0x20);
	AND("andb", ~0x60);
	AND("lock andb", 0);
}

/* The ways in which an instruction can name the entry. */
static void addresses(void)
{
	unsigned long at = (unsigned long)entry;

	WITH("-16(r)", asm volatile("movq %0, -16(%1)" : : "r"(new), "r"(at + 16) : "memory"));
	WITH("4096(r)", asm volatile("movq %0, 4096(%1)" : : "r"(new), "r"(at - 4096) : "memory"));
	WITH("8(r,r,4)", asm volatile("xchgq %0, 8(%1,%2,4)"
				      : "+r"(new) : "r"(at - 28), "r"(5ul) : "memory");
	     check_equal("what xchg returns", new | 0x60, old | 0x60));
	WITH("-24(,r,8)", asm volatile("movq %0, -24(,%1,8)"
				       : : "r"(new), "r"((at + 24) / 8) : "memory"));
	WITH("(r12)", asm volatile("movq %1, %%r12; movq %0, (%%r12)"
				   : : "r"(new), "r"(at) : "r12", "memory"));
	WITH("(r13)", asm volatile("movq %1, %%r13; movq %0, (%%r13)"
				   : : "r"(new), "r"(at) : "r13", "memory"));
	WITH("(r,r12)", asm volatile("movq $3, %%r12; movq %0, (%1,%%r12,1)"
				     : : "r"(new), "r"(at - 3) : "r12", "memory"));
	WITH("of r14", asm volatile("movq %0, %%r14; lock xchgq %%r14, (%1)"
				    : : "r"(new), "r"(at) : "r14", "memory"));
}

#endif

static void stores(void)
{
#ifdef __x86_64__
	addresses();
	bytes();
	WITH("mov", asm volatile("mov %1, %0" : "=m"(*entry) : "r"(new)));
	WITH("xchg", asm volatile("xchg %1, %0" : "+m"(*entry), "+r"(new)));
	WITH("cmpxchg", asm volatile("lock cmpxchg %2, %0" : "+m"(*entry), "+a"(old) : "r"(new)));
	WITH("stos", uint64_t *at = (uint64_t *)entry;
	     asm volatile("stosq" : "+D"(at) : "a"(new) : "memory"));
#else
	volatile uint32_t *low = (volatile uint32_t *)entry, *high = low + 1;

	WITH("low, then high", *low = new; *high = new >> 32);
	WITH("high, then low", *high = new >> 32; *low = new);
	WITH("cmpxchg8b", asm volatile("lock cmpxchg8b %0"
				       : "+m"(*entry), "+A"(old)
				       : "b"((uint32_t)new), "c"((uint32_t)(new >> 32))));
	WITH("xchg", uint32_t half = new;
	     asm volatile("xchg %1, %0" : "+m"(*low), "+r"(half)));
	*high = 1; /* no such frame: the entry is not present, until the low half follows */
	check_equal("the half-written entry", *low & 1, 0);
	*high = 0;
	*low = leads_to(0);
	check_window("both halves", 'a');
#endif
}

static void refusals(void)
{
	unsigned long mfn = *l1_entry(entry) >> 12 & 0xffffffff; /* the table's own frame */
	uint64_t before = *entry;

	TRY("movl %1, (%0)", "r"(entry), "r"((uint32_t)(mfn << 12 | BITS)));
	check_equal("a writable page table", last_trap.vector, PF);
	check_equal("its error code", last_trap.error, 3);
	check_equal("its address", last_trap.cr2, (unsigned long)entry);
	check(*entry == before, "it changed nothing");
	check_window("after the refusal", 'a');
}

void guest_main(void)
{
	pages[0][0] = 'a';
	pages[1][0] = 'b';
	check_equal("vm_assist", hypercall(__HYPERVISOR_vm_assist, VMASST_CMD_enable,
					   VMASST_TYPE_writable_pagetables, 0), 0);
	entry = l1_entry(window);
	check_equal("update_va_mapping", update_va_mapping(window, leads_to(0)), 0);
	check_window("update_va_mapping", 'a');
	bits();
	stores();
	refusals();
	success();
}
