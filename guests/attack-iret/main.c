/*
 * Leaving the kernel to where nothing may go. XSA-7: SYSRET to an address that is not canonical
 * faults in ring 0, on the guest's stack. XSA-136: an iret to VM86 mode kept Xen busy. XSA-213: an
 * iret in a multicall changed the mode for the calls after it, which then changed page tables by
 * the wrong ones.
 *
 * The rule: IRET's own checks hold, after the guest's ring is put into each selector, and IOPL and
 * VM are taken out of the flags. What these checks refuse is the guest's fault. An iret is the last
 * call of its batch. Success: each fault is the guest's, at the target.
 */
#include "attack.h"

#define FLAGS_IOPL (3 << 12)
#define FLAGS_NT (1 << 14)
#define FLAGS_VM (1 << 17)
#define MASKED 2 /* flags with IF clear */
#define VGCF_in_syscall (1 << 8)
#define XEN_CS 0xe008
#define XEN_DS 0xe010
#define UNTOUCHED 0x5a5a
#define FETCH 0x10 /* in a page fault's error code */

#ifdef __x86_64__
struct iret_frame {
	unsigned long ax, r11, cx, vgcf, ip, cs, flags, sp, ss;
};
#else
struct iret_frame {
	unsigned long ax, ip, cs, flags, sp, ss;
};
#endif

struct multicall_entry {
	unsigned long op, result, args[6];
};

long leave(const struct iret_frame *frame, unsigned long number, const void *first,
	   unsigned long second);
void return_from_leave(void) __attribute__((noreturn));
extern char show_flags[], target[], user_stack_top[];

static struct frame seen;
static unsigned long fault_address;
static const struct iret_frame good = {
	.ip = (unsigned long)target, .cs = KERNEL_CS, .flags = MASKED,
	.sp = (unsigned long)user_stack_top, .ss = KERNEL_DS,
};
static const struct iret_frame to_user = {
	.ip = (unsigned long)target, .cs = USER_CS, .flags = MASKED,
	.sp = (unsigned long)user_stack_top, .ss = USER_DS,
};

static void note(struct frame *frame)
{
	seen = *frame;
	fault_address = frame->vector == PF ? read_cr2() : 0;
	return_from_leave();
}

static void iret(const char *what, struct iret_frame frame, unsigned int vector, unsigned long error)
{
	seen.vector = NO_TRAP;
	leave(&frame, __HYPERVISOR_iret, NULL, 0);
	check_equal(what, seen.vector, vector);
	check_equal(what, vector == BP ? 0 : seen.error, error);
	check_equal(what, seen.ip, vector == BP ? (unsigned long)target + 1 : frame.ip);
	check_equal("IOPL and VM", seen.flags & (FLAGS_IOPL | FLAGS_VM), 0);
	check_equal("the ring", seen.cs & 3, frame.cs & 3);
}

#define WITH(frame, ...) ({ struct iret_frame to = frame; __VA_ARGS__; to; })

static void targets(void)
{
	iret("the kernel", good, BP, 0);
	iret("the user", to_user, BP, 0);
	iret("flags", WITH(good, to.ip = (unsigned long)show_flags, to.flags |= FLAGS_IOPL), BP, 0);
	check_equal("IOPL", seen.ax & FLAGS_IOPL, 0);
	iret("the user's", WITH(to_user, to.ip = (unsigned long)show_flags, to.flags |= FLAGS_IOPL), BP, 0);
	check_equal("IOPL", seen.ax & FLAGS_IOPL, 0);
	iret("NT", WITH(to_user, to.flags |= FLAGS_NT), BP, 0);
	check_equal("NT, which is the user's own", seen.flags & FLAGS_NT, FLAGS_NT);
	iret("Xen's stack", WITH(to_user, to.ss = XEN_DS | 3), GP, XEN_DS);
	iret("no stack", WITH(to_user, to.ss = 0), GP, 0);
	iret("Xen's code", WITH(to_user, to.cs = XEN_CS | 3), GP, XEN_CS);
	iret("into Xen", WITH(good, to.ip = (unsigned long)XEN_UNMAPPED), PF, FETCH);
	check_equal("into Xen", fault_address, (unsigned long)XEN_UNMAPPED);
	iret("the user into Xen", WITH(to_user, to.ip = (unsigned long)XEN_UNMAPPED), PF, FETCH | 4);
	check_equal("the user into Xen", fault_address, (unsigned long)XEN_UNMAPPED);
#ifdef __x86_64__
	iret("VM", WITH(to_user, to.flags |= FLAGS_VM), BP, 0);
	iret("not canonical", WITH(good, to.ip = 1ul << 47), GP, 0);
	iret("not canonical, by SYSRET", WITH(good, to.ip = 1ul << 47, to.vgcf = VGCF_in_syscall), GP, 0);
	iret("the user's", WITH(to_user, to.ip = 1ul << 47), GP, 0);
	iret("the user's, by SYSRET", WITH(to_user, to.ip = 1ul << 63, to.vgcf = VGCF_in_syscall), GP, 0);
	iret("a stack that is not canonical", WITH(to_user, to.sp = 1ul << 47), BP, 0);
	check_equal("where it is", seen.sp, 1ul << 47);
	iret("Xen's code as the kernel", WITH(good, to.cs = XEN_CS), GP, XEN_CS);
#else
	iret("Xen's code in ring 1", WITH(good, to.cs = XEN_CS | 1), GP, XEN_CS);
#endif
}

/* Of three calls, the second leaves: the third must not be made. */
static void in_a_batch(const char *what, const struct iret_frame *frame)
{
	struct multicall_entry list[] = {
		{ __HYPERVISOR_xen_version, UNTOUCHED, { XENVER_version } },
		{ .op = __HYPERVISOR_iret },
		{ __HYPERVISOR_xen_version, UNTOUCHED, { XENVER_version } },
	};

	seen.vector = NO_TRAP;
	leave(frame, __HYPERVISOR_multicall, list, 3);
	check_equal(what, seen.vector, BP);
	check_equal("the mode it left to", seen.cs & 0xffff & ~3ul, frame->cs & ~3ul);
	check_equal("the call before", list[0].result >> 16, 4);
	check_equal("the call after it", list[2].result, UNTOUCHED);
}

void guest_main(void)
{
	set_handler(GP, note);
	set_handler(PF, note);
	set_handler(BP, note);
	targets();
	in_a_batch("a batch to the kernel", &good);
	in_a_batch("a batch to the user", &to_user);
	success();
}
