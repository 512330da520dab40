/* SYSENTER from wherever it may come. */
#include "x86.h"

	.macro	UNMASK			/* let events in, as user mode has them */
	movb	$0, shared_info + 1
	.endm

	.text
	.global	user_sysenter, traced_sysenter
user_sysenter:
	UNMASK
	sysenter
	ud2

traced_sysenter:			/* TF is set as it begins */
	UNMASK
#ifdef __x86_64__
	pushfq
	orq	$0x100, (%rsp)
	popfq
#else
	pushf
	orl	$0x100, (%esp)
	popf
#endif
	sysenter
	ud2

#ifdef __x86_64__
	.global	user_sysenter32
user_sysenter32:
	UNMASK
	push	$USER_CS32
	push	$1f
	lretq
	.code32
1:	sysenter
	ud2
	.code64
#else
	.global	kernel_sysenter, after_sysenter
kernel_sysenter:
	push	%ebx
	push	%ebp
	push	%esi
	push	%edi
	mov	%esp, stack
	sysenter
after_sysenter:				/* on the stack of the callback */
	mov	stack, %esp
	pop	%edi
	pop	%esi
	pop	%ebp
	pop	%ebx
	ret

	.bss
stack:	.skip	4
#endif

	.section .note.GNU-stack, "", @progbits
