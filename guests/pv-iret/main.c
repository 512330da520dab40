/*
 * The iret hypercall of a 32-bit guest. Xen leaves by the CPU's IRET. If IRET refuses the code or
 * the stack segment, the kernel gets the fault as if the target's first instruction had caused it.
 * VM86 mode does not exist under 64-bit Xen, and is #GP(0), too. If this is wrong, any program's
 * bad selector kills the kernel.
 *
 * Success: each fault has the right frame, on the right stack.
 */
#include "pv.h"
#include "traps.h"

#define FLAGS 2 /* events masked */
#define FLAGS_VM (1 << 17)
#define SP 0x12345678

void iret_to(unsigned int cs, unsigned int flags, unsigned int ss);
void return_from_iret_to(void) __attribute__((noreturn));
extern char target[];

static struct frame seen;
static unsigned long at;

static void note(struct frame *frame)
{
	seen = *frame;
	at = (unsigned long)frame;
	return_from_iret_to();
}

static void refused(const char *what, unsigned int cs, unsigned int ss, unsigned int error)
{
	unsigned long top = (unsigned long)ring0_stack + sizeof(ring0_stack);

	seen.vector = NO_TRAP;
	iret_to(cs, FLAGS, ss);
	printk("%s: vector %lu, error code 0x%lx\n", what, seen.vector, seen.error);
	check_equal("error code", seen.error, error);
	check_equal("EIP", seen.ip, (unsigned long)target);
	check_equal("CS", seen.cs & 0xffff, cs);
	check_equal("EAX", seen.ax, 0x600d);
	check_equal("IF", seen.flags & FLAGS_IF, 0);
	if (cs & 2) {
		check_equal("SS", seen.ss, ss);
		check_equal("ESP", seen.sp, SP);
		check_equal("the kernel's stack", at + sizeof(seen), top);
	} else {
		check(at < top - sizeof(ring0_stack) || at > top, "the stack that it was on");
	}
}

static void vm86(void)
{
	unsigned long top = (unsigned long)ring0_stack + sizeof(ring0_stack);

	seen.vector = NO_TRAP;
	iret_to(0x1234, FLAGS | FLAGS_VM, 0x5678);
	printk("VM86: vector %lu, error code 0x%lx\n", seen.vector, seen.error);
	check_equal("VM86: EIP", seen.ip, (unsigned long)target);
	check_equal("VM86: CS", seen.cs, 0x1234);
	check_equal("VM86: flags", seen.flags & FLAGS_VM, FLAGS_VM);
	check_equal("VM86: ESP", seen.sp, SP);
	check_equal("VM86: SS", seen.ss, 0x5678);
	check_equal("VM86: the kernel's stack", at + sizeof(seen) + 16, top);
}

void guest_main(void)
{
	set_handler(GP, note);
	set_handler(BP, note);
	refused("no such code", 0x103, USER_DS, 0x100);
	refused("data for code", USER_DS, USER_DS, USER_DS & ~3);
	refused("the kernel's stack in ring 3", USER_CS, KERNEL_DS, KERNEL_DS & ~3);
	refused("no stack", USER_CS, 0, 0);
	refused("user code in ring 1", (USER_CS & ~3) | 1, 0, USER_CS & ~3);
	vm86();
	iret_to(USER_CS, FLAGS, USER_DS);
	check_equal("user mode", seen.vector, BP);
	check_equal("its CS", seen.cs & 0xffff, USER_CS);
	success();
}
