/* Code to be stepped through, and the ways into it. */
#include "x86.h"
#include "xen.h"

#define TF (1 << 8)

#ifdef __x86_64__
#define R(name) r##name
#else
#define R(name) e##name
#endif

	.macro	SET_TF			/* the instruction after this is the first to be trapped */
	pushf
	orl	$TF, (%R(sp))
	popf
	.endm

	.text
	.global	iret_step, after_iret	/* iret_step(RFLAGS, flags of struct iret_context) */
iret_step:
#ifdef __x86_64__
	mov	%rsp, %rax
	push	$KERNEL_DS
	push	%rax
	push	%rdi
	push	$KERNEL_CS
	push	$after_iret
#else
	pushl	4(%esp)
	push	$KERNEL_CS
	push	$after_iret
#endif
#if defined(GUEST_PV) && defined(__x86_64__)
	push	%rsi
#endif
#ifdef GUEST_PV
	jmp	hypercall_page + __HYPERVISOR_iret * 32
#elif defined(__x86_64__)
	iretq
#else
	iret
#endif
after_iret:
	nop
	nop
	nop
	nop
	ret

	.global	step_hypercall, before_hypercall
step_hypercall:
	mov	$__HYPERVISOR_xen_version, %eax
#ifdef __x86_64__
	xor	%edi, %edi		/* XENVER_version */
#else
	push	%ebx
	xor	%ebx, %ebx
#endif
	SET_TF
before_hypercall:
	nop
#ifndef GUEST_PV
	vmcall
#elif defined(__x86_64__)
	syscall
#else
	int	$0x82
#endif
	nop
	nop
#ifndef __x86_64__
	pop	%ebx
#endif
	ret

	.global	user_step, in_user
user_step:
	SET_TF
in_user:
	nop
	nop
	nop
	nop
	ud2

#ifdef __x86_64__
	.global	user_step32, in_user32
user_step32:
	push	$USER_CS32
	push	$1f
	lretq
	.code32
1:	pushf
	orl	$TF, (%esp)
	popf
in_user32:
	nop
	nop
	nop
	nop
	ud2
	.code64
#endif

	.section .note.GNU-stack, "", @progbits
