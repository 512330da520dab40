/*
 * SYSENTER in a PV guest. Xen enters the callback that was registered for it, on the kernel's
 * stack. SYSENTER tells nobody where it was. So the frame has IP 0, SP 0, a null CS of ring 3, user
 * mode's flat SS, and the flags. Without a callback, the guest gets the same frame, but of a #GP. A
 * vdso for 32-bit programs uses SYSENTER, and each of these programs dies if this is wrong.
 *
 * Success: all of it, from user mode, 64- and 32-bit code, with TF set, and from a 32-bit kernel.
 */
#include "pv.h"
#include "traps.h"

#define CALLBACKTYPE_sysenter 5
#define CALLBACKF_mask_events 1
#define CALLBACK 0xf4 /* the vector that does for it */

void user_sysenter(void), traced_sysenter(void), user_sysenter32(void), kernel_sysenter(void);
extern char trap_stubs[], after_sysenter[];
void trap(struct frame *frame);

union {
	struct {
		uint8_t pending, mask; /* of vcpu 0 */
	};
	char page[4096];
} volatile shared_info __attribute__((aligned(4096)));

static struct frame seen;
static unsigned long at;
static unsigned int masked, steps;

static void note(struct frame *frame)
{
	seen = *frame;
	at = (unsigned long)(frame + 1);
	masked = shared_info.mask;
	frame->flags &= ~FLAGS_TF;
	set_handler(frame->vector, NULL);
	trap(frame); /* leaves user mode */
}

static void count_step(struct frame *frame)
{
	steps++;
	frame->flags &= ~FLAGS_TF;
}

static void check_frame(const char *what, unsigned int vector)
{
	printk("%s: vector 0x%lx at %lx:%lx, stack %lx:%lx\n", what, seen.vector, seen.cs & 0xffff,
	       seen.ip, seen.ss & 0xffff, seen.sp);
	check_equal("vector", seen.vector, vector);
	check_equal("error code", seen.error, 0);
	check_equal("IP", seen.ip, 0);
	check_equal("CS", seen.cs & 0xffff, 3);
	check_equal("SP", seen.sp, 0);
	check_equal("SS", seen.ss & 0xffff, USER_DS);
	check_equal("the kernel's stack", at, (unsigned long)ring0_stack + sizeof(ring0_stack));
}

static void from_user(const char *what, void (*code)(void), unsigned int vector)
{
	seen.vector = NO_TRAP;
	shared_info.pending = 0;
	set_handler(vector, note);
	run_user(code);
	check_frame(what, vector);
	check_equal("IF", seen.flags & FLAGS_IF, FLAGS_IF);
}

static void register_callback(unsigned int cs, int mask_events)
{
	struct callback_register callback = {
		.type = CALLBACKTYPE_sysenter, .flags = mask_events ? CALLBACKF_mask_events : 0,
		.address = (unsigned long)trap_stubs + 16 * CALLBACK,
#ifndef __x86_64__
		.cs = cs,
#endif
	};

	(void)cs;
	if (hypercall(__HYPERVISOR_callback_op, CALLBACKOP_register, (unsigned long)&callback, 0))
		error("callback_op");
}

#ifndef __x86_64__
static void note_kernel(struct frame *frame)
{
	seen = *frame;
	at = (unsigned long)(frame + 1);
	frame->ip = (unsigned long)after_sysenter;
	frame->cs = KERNEL_CS;
}
#endif

void guest_main(void)
{
	if (update_va_mapping(&shared_info, start_info()->shared_info | PTE_P | PTE_RW | PTE_US))
		error("no shared_info");
	set_handler(DB, count_step);
	from_user("no callback", user_sysenter, GP);
	check_equal("events masked by the gate of #GP", masked, 1);
	set_gate_masks_events(GP, 0);
	from_user("no callback", user_sysenter, GP);
	check_equal("events not masked by the gate of #GP", masked, 0);
	register_callback(KERNEL_CS, 0);
	from_user("a callback", user_sysenter, CALLBACK);
	check_equal("events not masked", masked, 0);
	register_callback(KERNEL_CS, 1);
	from_user("a callback that masks events", user_sysenter, CALLBACK);
	check_equal("events masked", masked, 1);
	from_user("traced", traced_sysenter, CALLBACK);
	check_equal("TF in the frame", seen.flags & FLAGS_TF, FLAGS_TF);
	check_equal("steps", steps, 0);
#ifdef __x86_64__
	from_user("32-bit code", user_sysenter32, CALLBACK);
#else
	register_callback(0, 0);
	from_user("no code segment", user_sysenter, CALLBACK);
	set_handler(CALLBACK, note_kernel);
	kernel_sysenter();
	check_frame("the kernel", CALLBACK);
#endif
	success();
}
