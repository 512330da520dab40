/*
 * An address that is not canonical is a fault of the segment through which it was used. For the
 * stack's segment, chosen by instruction or by base register, this is #SS. For any other it is #GP.
 * FS and GS override the choice, and the other prefixes do not (SDM volume 1, section 3.3.7.1,
 * table 3-5; volume 3, chapter 6). A branch to such an address faults at the branch, with the stack
 * as before (volume 2, CALL, RET, IRET, SYSRET). With the wrong vector or address, a kernel runs
 * the wrong handler, or blames the wrong instruction.
 *
 * Success: the right vector, at the instruction.
 */
#ifdef GUEST_PV
#include "pv.h"
#else
#include "pvh.h"
#endif
#include "traps.h"

#define CR4_OSFXSR (1 << 9)
#define NOWHERE "$0x800000000000"
#define STACK "movabs $0x800000001000, %rsp" /* what is below it is not canonical, too */

/* An instruction in user mode, as the stack of the kernel must take its fault, and what it needs. */
#define CASES                                                                                      \
	STRAY(base_rbp, SS, "movabs " NOWHERE ", %rbp", "mov 8(%rbp), %eax")                       \
	STRAY(base_rsp, SS, STACK, "mov 8(%rsp), %eax")                       \
	STRAY(base_rsp_index, SS, STACK "; xor %eax, %eax", "incl (%rsp,%rax,2)") \
	STRAY(base_rbp_index, SS, "movabs " NOWHERE ", %rbp; xor %eax, %eax", "mov (%rbp,%rax), %al") \
	STRAY(index_rbp, GP, "movabs " NOWHERE ", %rbp; xor %eax, %eax", "mov (%rax,%rbp), %al")   \
	STRAY(only_index_rbp, GP, "movabs " NOWHERE ", %rbp", "mov 0(,%rbp), %al")                 \
	STRAY(base_rax, GP, "movabs " NOWHERE ", %rax", "movb $1, (%rax)")                         \
	STRAY(base_r12, GP, "movabs " NOWHERE ", %r12", "lock incq (%r12)")                        \
	STRAY(base_r13, GP, "movabs " NOWHERE ", %r13", "mov %ebx, 8(%r13)")                       \
	STRAY(ds_rbp, SS, "movabs " NOWHERE ", %rbp", ".byte 0x3e; mov 8(%rbp), %eax")             \
	STRAY(ss_rax, GP, "movabs " NOWHERE ", %rax", ".byte 0x36; mov (%rax), %eax")              \
	STRAY(fs_rbp, GP, "movabs " NOWHERE ", %rbp", "mov %fs:8(%rbp), %eax")                     \
	STRAY(gs_rsp, GP, STACK, "mov %gs:(%rsp), %eax")                      \
	STRAY(fs_ds_rbp, GP, "movabs " NOWHERE ", %rbp", ".byte 0x64, 0x3e; mov 8(%rbp), %eax")    \
	STRAY(moffs, GP, "", "movabs 0x800000000000, %al")                                         \
	STRAY(lods, GP, "movabs " NOWHERE ", %rsi", "lodsb")                                       \
	STRAY(stos, GP, "movabs " NOWHERE ", %rdi", "rep stosq")                                   \
	STRAY(movs, GP, "movabs " NOWHERE ", %rdi; mov %rsp, %rsi", "movsb")                       \
	STRAY(xlat, GP, "movabs " NOWHERE ", %rbx", "xlat")                                        \
	STRAY(push, SS, STACK, "push %rax")                                   \
	STRAY(push_imm, SS, STACK, "push $5")                                 \
	STRAY(push_fs, SS, STACK, "push %fs")                                 \
	STRAY(pushf, SS, STACK, "pushf")                                      \
	STRAY(push_of, GP, "movabs " NOWHERE ", %rax", "push (%rax)")                              \
	STRAY(push_to, SS, "mov %rsp, %rax; " STACK, "push (%rax)")              \
	STRAY(push_near, GP, "movabs " NOWHERE ", %rax; lea 8(%rax), %rsp", "push (%rax)")         \
	STRAY(pop, SS, STACK, "pop %r8")                                      \
	STRAY(pop_to, GP, "movabs " NOWHERE ", %rax", "pop (%rax)")                                \
	STRAY(pop_of, SS, "mov %rsp, %rax; " STACK, "pop (%rax)")                \
	STRAY(popf, SS, STACK, "popf")                                        \
	STRAY(enter, SS, STACK, "enter $8, $0")                               \
	STRAY(leave, SS, "movabs " NOWHERE ", %rbp", "leave")                                      \
	STRAY(call_on, SS, STACK, "call at_call_on")                          \
	STRAY(call_by_rax, GP, "movabs " NOWHERE ", %rax", "call *(%rax)")                         \
	STRAY(call_by_rbp, SS, "movabs " NOWHERE ", %rbp", "call *(%rbp)")                         \
	STRAY(ret_on, SS, STACK, "ret")                                       \
	STRAY(lret_on, SS, STACK, "lretq")                                    \
	STRAY(iret_on, SS, STACK, "iretq")                                    \
	STRAY(sse_rbp, SS, "movabs " NOWHERE ", %rbp", "movups 16(%rbp), %xmm0")                   \
	STRAY(sse_rax, GP, "movabs " NOWHERE ", %rax", "movups %xmm0, (%rax)")                     \
	STRAY(ssse3_rbp, SS, "movabs " NOWHERE ", %rbp", "pshufb 16(%rbp), %xmm0")                 \
	STRAY(fpu_rbp, SS, "movabs " NOWHERE ", %rbp", "fldl 8(%rbp)")                             \
	STRAY(fpu_rax, GP, "movabs " NOWHERE ", %rax", "fstpt (%rax)")                             \
	STRAY(jump, GP, "movabs " NOWHERE ", %rax", "jmp *%rax")                                   \
	STRAY(call, GP, "movabs " NOWHERE ", %rax", "call *%rax")                                  \
	STRAY(ret, GP, "movabs " NOWHERE ", %rax; push %rax", "ret")                               \
	STRAY(iret, GP, "mov %rsp, %rcx; mov %ss, %eax; push %rax; push %rcx; pushf; mov %cs, %eax;" \
		"push %rax; movabs " NOWHERE ", %rax; push %rax", "iretq")

#define STRAY(name, vector, setup, instruction)                                                    \
	asm("user_" #name ": " setup "\n"                                                          \
	    "at_" #name ": " instruction "\n ud2\n");
CASES
#undef STRAY

static void user_cases(void)
{
#define STRAY(name, trap, setup, instruction)                                                      \
	({                                                                                         \
		extern char at_##name[];                                                           \
		void user_##name(void);                                                            \
                                                                                                   \
		run_user(user_##name);                                                             \
		expect_trap(instruction, trap, 0);                                                 \
		check_equal("RIP", last_trap.ip, (unsigned long)at_##name);                        \
	});
	CASES
#undef STRAY
}

/* In the kernel's mode, to see the stack pointer after the fault. */
#define BRANCH(what, before, instruction, after)                                                   \
	do {                                                                                       \
		unsigned long from, to;                                                            \
                                                                                                   \
		last_trap.vector = NO_TRAP;                                                        \
		asm volatile(before "\n mov %%rsp, %0\n" TRYING(instruction)                       \
			     "mov %%rsp, %1\n" after                                               \
			     : "=&r"(from), "=&r"(to)                                              \
			     : "a"(1ul << 47) : "memory", "cc");                                   \
		expect_trap(what, GP, 0);                                                          \
		check_equal("RSP", to, from);                                                      \
	} while (0)

static void branches(void)
{
	BRANCH("kernel's jmp *%rax", "", "jmp *%%rax", "");
	BRANCH("kernel's call *%rax", "", "call *%%rax", "");
	BRANCH("kernel's call *(%rsp)", "push %%rax", "call *(%%rsp)", "pop %%rax");
	BRANCH("kernel's ret", "push %%rax", "ret", "pop %%rax");
	BRANCH("kernel's ret $16", "push %%rax", "ret $16", "pop %%rax");
	BRANCH("kernel's repz ret", "push %%rax", "repz ret", "pop %%rax");
}

#ifndef GUEST_PV
/* Where they return to, and from where: a CPU has checked that before it leaves ring 0. */
static void returns(void)
{
	BRANCH("kernel's iretq", "push $0x23; push $0; push $2; push $0x2b; push %%rax", "iretq",
	       "add $40, %%rsp");
	wrmsr(0x174, KERNEL_CS);
	TRY("sysretq", "c"(1ul << 47));
	expect_trap("sysretq", GP, 0);
	check_equal("CS", last_trap.cs, KERNEL_CS);
	TRY("sysexitq", "c"(1ul << 47), "d"(0));
	expect_trap("sysexitq to a stack", GP, 0);
	check_equal("CS", last_trap.cs, KERNEL_CS);
	TRY("sysexitq", "c"(0), "d"(1ul << 47));
	expect_trap("sysexitq", GP, 0);
	check_equal("CS", last_trap.cs, KERNEL_CS);
	wrmsr(0x174, 0);
	TRY("sysexitq", "c"(0), "d"(0));
	expect_trap("sysexitq without a CS", GP, 0);
}

/* The stack of a gate, whose address is the TSS's. */
static void stacks(void)
{
	extern uint64_t gdt[];
	uint32_t *tss = (uint32_t *)(gdt[TSS_SELECTOR / 8] >> 16 & 0xffffff);

	set_gate_stack(0x61, 1, (void *)0x1000);
	set_gate_stack(DB, 1, (void *)0x1000);
	tss[10] = 0x8000; /* bits 63:32 of IST1 */
	TRY("int $0x61");
	expect_trap("int to a stack", SS, 0);
	TRY(".byte 0xf1");
	expect_trap("icebp to a stack", SS, 1);
}
#endif

void guest_main(void)
{
#ifndef GUEST_PV
	write_cr4(read_cr4() | CR4_OSFXSR);
#endif
	user_cases();
	branches();
#ifndef GUEST_PV
	returns();
	stacks();
#endif
	success();
}
