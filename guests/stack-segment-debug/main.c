/*
 * A data breakpoint that MOV SS hits traps after the next instruction, so that a kernel can load SS
 * and RSP together (SDM volume 3, section 6.8.3). If the next instruction enters a handler, the
 * trap comes there. If it enters Xen, Xen drops the trap. CVE-2018-8897 was about both. DR6 names
 * what was hit this time, and not what was hit before.
 *
 * Success: the trap is where it belongs, once.
 */
#ifdef GUEST_PV
#include "pv.h"
#else
#include "pvh.h"
#endif
#include "traps.h"

#define DR7_ON 0x3u /* L0, G0; two bits more for each */
#define DR7_ACCESS_2 0x70000u /* DR0: load or store of 2 bytes; four bits more for each */
#define DR6_HITS 15

#ifdef __x86_64__
#define AT "lea 3f(%%rip), %0\n"
#else
#define AT "mov $3f, %0\n"
#endif

static volatile uint16_t selector, other;
static volatile unsigned int traps;
static volatile unsigned long trap_ip, status;

#ifdef GUEST_PV
static void set_debug(unsigned int number, unsigned long value)
{
	hypercall(__HYPERVISOR_set_debugreg, number, value, 0);
}

static unsigned long debug_status(void)
{
	return hypercall(__HYPERVISOR_get_debugreg, 6, 0, 0);
}
#else
static void set_debug(unsigned int number, unsigned long value)
{
	switch (number) {
	case 0:
		asm volatile("mov %0, %%dr0" : : "r"(value));
		break;
	case 1:
		asm volatile("mov %0, %%dr1" : : "r"(value));
		break;
	case 6:
		asm volatile("mov %0, %%dr6" : : "r"(value));
		break;
	default:
		asm volatile("mov %0, %%dr7" : : "r"(value));
	}
}

static unsigned long debug_status(void)
{
	unsigned long value;

	asm volatile("mov %%dr6, %0" : "=r"(value));
	return value;
}
#endif

static void note(struct frame *frame)
{
	traps++;
	trap_ip = frame->ip;
	status = debug_status();
	set_debug(6, 0);
}

static void check_trap(const char *what, unsigned int times, unsigned long ip, unsigned long hits)
{
	check_equal(what, traps, times);
	if (times) {
		check_equal("its RIP", trap_ip, ip);
		check_equal("DR6", status & DR6_HITS, hits);
	}
	traps = 0;
	trap_ip = 0;
	status = 0;
}

/* Load SS from what is watched, and execute another instruction, which label 3 follows. */
#define LOAD_SS(instruction, ...)                                                                  \
	({                                                                                         \
		unsigned long behind;                                                              \
                                                                                                   \
		last_trap.vector = NO_TRAP;                                                        \
		asm volatile(AT "mov %1, %%ss\n" TRYING(instruction) "3: nop"                       \
			     : "=&r"(behind) : "m"(selector) : "memory", "cc", ##__VA_ARGS__);     \
		behind;                                                                            \
	})

void guest_main(void)
{
	unsigned long behind;

	asm volatile("mov %%ss, %0" : "=m"(selector));
	set_handler(DB, note);
	set_debug(6, 0);
	set_debug(0, (unsigned long)&selector);
	set_debug(1, (unsigned long)&other);
	set_debug(7, DR7_ON | DR7_ON << 2 | DR7_ACCESS_2 | DR7_ACCESS_2 << 4);

	other = 5;
	check_equal("traps of a store", traps, 1);
	check_equal("DR6", status & DR6_HITS, 2);
	traps = 0;
	behind = LOAD_SS("nop");
	check_trap("a load of SS", 1, behind, 1);
	behind = LOAD_SS("lea 8(%%eax), %%ecx", "ecx");
	check_trap("a load of SS", 1, behind, 1);
	other = 5;
	check_equal("DR6 of a store", status & DR6_HITS, 2);
	check_equal("traps of it", traps, 1);
	traps = 0;

	LOAD_SS("int3");
	check_equal("int3", last_trap.vector, BP);
#ifdef GUEST_PV
	check_trap("a load of SS before int3", 0, 0, 0);
#else
	extern char trap_stubs[];
	check_trap("a load of SS before int3", 1, (unsigned long)trap_stubs + 16 * BP, 1);
#endif
	LOAD_SS("ud2");
	check_equal("ud2", last_trap.vector, UD);
#ifdef GUEST_PV
	check_trap("a load of SS before ud2", 0, 0, 0);
#ifdef __x86_64__
	LOAD_SS("mov $17, %%eax; xor %%edi, %%edi\n syscall", "rax", "rdi", "rcx", "r11");
	check_trap("a load of SS before another instruction, and a hypercall", 1, trap_ip, 1);
	asm volatile("mov $17, %%eax; xor %%edi, %%edi; mov %0, %%ss; syscall"
		     : : "m"(selector) : "rax", "rdi", "rcx", "r11", "memory");
#else
	asm volatile("mov $17, %%eax; xor %%ebx, %%ebx; mov %0, %%ss; int $0x82"
		     : : "m"(selector) : "eax", "ebx", "memory");
#endif
	check_trap("a load of SS before a hypercall", 0, 0, 0);
#else
	check_trap("a load of SS before ud2", 1, (unsigned long)trap_stubs + 16 * UD, 1);
#endif
	behind = LOAD_SS("nop");
	check_trap("a load of SS after all that", 1, behind, 1);
	set_debug(7, 0);
	success();
}
