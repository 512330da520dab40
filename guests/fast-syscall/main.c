/*
 * SYSCALL, SYSRET, SYSENTER and SYSEXIT load CS and SS from MSRs, and not from descriptors. Each
 * changes RFLAGS, RIP and RSP in its own way (SDM volume 2). If an engine lacks them, or gets a
 * selector or a flag wrong, user mode breaks in ways that look like the kernel's fault.
 *
 * Success: both round trips from ring 3 load what the MSRs say, and are refused where they are not
 * set up.
 */
#include "pvh.h"
#include "traps.h"

#define MSR_SYSENTER_CS 0x174
#define MSR_SYSENTER_ESP 0x175
#define MSR_SYSENTER_EIP 0x176
#define MSR_STAR 0xc0000081
#define MSR_LSTAR 0xc0000082
#define MSR_FMASK 0xc0000084
#define MSR_GS_BASE 0xc0000101
#define MSR_KERNEL_GS_BASE 0xc0000102
#define CF (1 << 0)
#define DF (1 << 10)

struct machine {
	unsigned long ss, cs, flags;
};
extern struct machine in_user, in_kernel; /* after the way back, and at the kernel's entry */
extern unsigned long from_ip, from_sp;
extern char sysenter_entry[], sysenter_stack[];
void user_sysenter(void);

static void check_selectors(unsigned int user_ss)
{
	check_equal("ended by", last_trap.vector, UD);
	check_equal("kernel CS", in_kernel.cs, KERNEL_CS);
	check_equal("kernel SS", in_kernel.ss, KERNEL_DS);
	check_equal("user CS", in_user.cs, USER_CS);
	check_equal("user SS", in_user.ss, user_ss);
}

static void sysenter(void)
{
	wrmsr(MSR_SYSENTER_CS, 0);
	run_user(user_sysenter);
	check_equal("SYSENTER without a CS", last_trap.vector, GP);
	wrmsr(MSR_SYSENTER_CS, KERNEL_CS);
	wrmsr(MSR_SYSENTER_ESP, (unsigned long)sysenter_stack);
	wrmsr(MSR_SYSENTER_EIP, (unsigned long)sysenter_entry);
	sti();
	run_user(user_sysenter);
	check_selectors(USER_CS + 8);
	check_equal("kernel stack", from_sp, (unsigned long)sysenter_stack);
	check_equal("IF in the kernel", in_kernel.flags & FLAGS_IF, 0);
	printk("SYSENTER: CS 0x%lx, SYSEXIT: CS 0x%lx, SS 0x%lx\n", in_kernel.cs, in_user.cs,
	       in_user.ss);
}

#ifdef __x86_64__
extern char syscall_entry[], behind_syscall[];
void user_syscall(void);

static void syscall(void)
{
	wrmsr(MSR_EFER, rdmsr(MSR_EFER) & ~(uint64_t)EFER_SCE);
	run_user(user_syscall);
	check_equal("SYSCALL without EFER.SCE", last_trap.vector, UD);
	check_equal("at the instruction", last_trap.ip, (unsigned long)behind_syscall - 2);
	wrmsr(MSR_EFER, rdmsr(MSR_EFER) | EFER_SCE);
	wrmsr(MSR_STAR, (uint64_t)USER_CS32 << 48 | (uint64_t)KERNEL_CS << 32);
	wrmsr(MSR_LSTAR, (unsigned long)syscall_entry);
	wrmsr(MSR_FMASK, FLAGS_IF | DF);
	sti();
	run_user(user_syscall);
	check_selectors(USER_DS);
	check_equal("return address", from_ip, (unsigned long)behind_syscall);
	check_equal("kernel flags: CF, DF, IF", in_kernel.flags & (CF | DF | FLAGS_IF), CF);
	check_equal("user flags: CF, DF, IF", in_user.flags & (CF | DF | FLAGS_IF), CF | DF | FLAGS_IF);
	printk("SYSCALL: CS 0x%lx, SYSRET: CS 0x%lx, SS 0x%lx\n", in_kernel.cs, in_user.cs,
	       in_user.ss);
}

static void swapgs(void)
{
	wrmsr(MSR_GS_BASE, 0x1000);
	wrmsr(MSR_KERNEL_GS_BASE, 0x2000);
	asm volatile("swapgs" : : : "memory");
	check_equal("GS base", rdmsr(MSR_GS_BASE), 0x2000);
	check_equal("kernel GS base", rdmsr(MSR_KERNEL_GS_BASE), 0x1000);
}
#endif

void guest_main(void)
{
	sysenter();
#ifdef __x86_64__
	syscall();
	swapgs();
#endif
	success();
}
