/* One privileged instruction each; a trap at it goes on after it. Called as C functions. */
#include "x86.h"

#ifdef __x86_64__
#define R(name) %r##name
#else
#define R(name) %e##name
#endif

	.macro	SNIPPET name, instruction:vararg
	.global	\name
\name:	mov	$0x80, %edx		/* a port where nothing is */
	lea	scratch, R(cx)
	push	R(bx)
1:	\instruction
2:	pop	R(bx)
	ret
	.pushsection .fixups, "a"
	.long	1b, 2b
	.popsection
	.endm

	.text
	SNIPPET	do_cli, cli
	SNIPPET	do_sti, sti
	SNIPPET	do_in, in %dx, %al
	SNIPPET	do_out, out %al, %dx
	SNIPPET	do_in_imm, inl $0x80, %eax
	SNIPPET	do_read_cr0, mov %cr0, R(ax)
	SNIPPET	do_read_cr2, mov %cr2, R(ax)
	SNIPPET	do_read_cr3, mov %cr3, R(ax)
	SNIPPET	do_read_cr4, mov %cr4, R(ax)
	SNIPPET	do_write_cr2, mov R(ax), %cr2
	SNIPPET	do_read_dr7, mov %db7, R(ax)
	SNIPPET	do_write_dr0, mov R(dx), %db0
	SNIPPET	do_clts, clts
	SNIPPET	do_wbinvd, wbinvd
	SNIPPET	do_invd, invd
	SNIPPET	do_invlpg, invlpg (R(cx))
	SNIPPET	do_hlt, hlt
	SNIPPET	do_lgdt, lgdt (R(cx))
	SNIPPET	do_lidt, lidt (R(cx))
	SNIPPET	do_lldt, lldt %ax
	SNIPPET	do_ltr, ltr %ax
	SNIPPET	do_lmsw, lmsw %ax
	SNIPPET	do_smsw, smsw %ax
	SNIPPET	do_sgdt, sgdt (R(cx))
	SNIPPET	do_str, str %ax
	SNIPPET	do_sldt, sldt %ax
	SNIPPET	do_cpuid, cpuid
	SNIPPET	do_rdtsc, rdtsc
	SNIPPET	do_sysexit, .byte 0x0f, 0x35	/* SYSEXIT */
	SNIPPET	do_swapgs, .byte 0x0f, 0x01, 0xf8	/* SWAPGS */
	SNIPPET	do_ud2, ud2

/* Those with more than one instruction to set up. */
	.global	do_write_cr0, do_rdmsr, do_wrmsr, do_forced_cpuid, do_popf
do_write_cr0:				/* as Xen has it, with TS clear */
	mov	$0x80050033, %eax
1:	mov	R(ax), %cr0
2:	ret
	.pushsection .fixups, "a"
	.long	1b, 2b
	.popsection

do_rdmsr:
	mov	$MSR_EFER, %ecx
1:	rdmsr
2:	ret
	.pushsection .fixups, "a"
	.long	1b, 2b
	.popsection

do_wrmsr:				/* one that ignores what is written */
	mov	$0x1a0, %ecx
	xor	%eax, %eax
	xor	%edx, %edx
1:	wrmsr
2:	ret
	.pushsection .fixups, "a"
	.long	1b, 2b
	.popsection

do_forced_cpuid:
	push	R(bx)
	xor	%eax, %eax
	ud2
	.ascii	"xen"
	cpuid
	pop	R(bx)
	ret

do_popf:				/* IF and IOPL do not change, and nothing traps */
	pushf
	push	$0x2
	popf
	pushf
	pop	R(ax)
	popf
	ret

	.global	user_stub		/* calls `user_code`; int3 says that nothing trapped */
user_stub:
	call	*user_code
	int3

	.bss
	.balign	16
	.global	user_code
user_code:
	.skip	8
scratch:
	.skip	16

	.section .note.GNU-stack, "", @progbits
