/* The way into a trap handler and back, and into ring 3 and back; for a PV guest if PV is defined. */
#include "x86.h"
#ifdef PV
#include "xen.h"
#define FLAGS_IF (1 << 9)
#endif

#ifdef __x86_64__
#define R(name) r##name
#define WORD 8
#else
#define R(name) e##name
#define WORD 4
#endif
#define ERROR_CODES 0x27d00		/* the vectors that have one */

	.macro	RETURN			/* from what is on the stack */
#if defined(PV) && defined(__x86_64__)
	push	$0			/* flags of struct iret_context: restore RCX and R11, too */
#endif
#ifdef PV
	jmp	hypercall_page + __HYPERVISOR_iret * 32
#elif defined(__x86_64__)
	iretq
#else
	iret
#endif
	.endm

	.text
	.global trap_stubs		/* 16 bytes each */
	.balign 16
trap_stubs:
	.set	vector, 0
	.rept	256
	.balign	16
#if defined(PV) && defined(__x86_64__)
	pop	%rcx			/* Xen puts them below the hardware's frame */
	pop	%r11
#endif
	.if	vector > 31 || !(ERROR_CODES >> (vector & 31) & 1)
	push	$0
	.endif
	push	$vector
	jmp	enter
	.set	vector, vector + 1
	.endr

	.balign 16
enter:					/* makes a struct frame */
	push	%R(ax)
	push	%R(cx)
	push	%R(dx)
	push	%R(bx)
	push	%R(bp)
	push	%R(si)
	push	%R(di)
#ifdef __x86_64__
	push	%r8
	push	%r9
	push	%r10
	push	%r11
	push	%r12
	push	%r13
	push	%r14
	push	%r15
	mov	%rsp, %rdi
	cld
	call	trap
	pop	%r15
	pop	%r14
	pop	%r13
	pop	%r12
	pop	%r11
	pop	%r10
	pop	%r9
	pop	%r8
#else
	push	%esp
	cld
	call	trap
	pop	%eax
#endif
	pop	%R(di)
	pop	%R(si)
	pop	%R(bp)
	pop	%R(bx)
	pop	%R(dx)
	pop	%R(cx)
	pop	%R(ax)
	add	$2 * WORD, %R(sp)	/* vector, error code */
	RETURN

	.macro	SAVE_KERNEL		/* keep what a C function must keep */
	push	%R(bx)
	push	%R(bp)
#ifdef __x86_64__
	push	%r12
	push	%r13
	push	%r14
	push	%r15
#else
	push	%esi
	push	%edi
#endif
	mov	%R(sp), kernel_stack
	.endm

	.global run_user		/* in a PV guest with the events masked */
run_user:
#ifndef __x86_64__
	mov	4(%esp), %ecx
#endif
	SAVE_KERNEL
	mov	$USER_DS, %eax
	mov	%eax, %ds
	mov	%eax, %es
	push	$USER_DS
	push	$user_stack_top
	pushf
#ifdef PV
	andl	$~FLAGS_IF, (%R(sp))
#endif
	push	$USER_CS
#ifdef __x86_64__
	push	%rdi
#else
	push	%ecx
#endif
	RETURN

	.global leave_user		/* where run_user() returns */
leave_user:
	mov	$KERNEL_DS, %eax
	mov	%eax, %ds
	mov	%eax, %es
#ifndef PV
	mov	%eax, %ss
#endif
	mov	kernel_stack, %R(sp)
#ifdef __x86_64__
	pop	%r15
	pop	%r14
	pop	%r13
	pop	%r12
#else
	pop	%edi
	pop	%esi
#endif
	pop	%R(bp)
	pop	%R(bx)
	ret

	.bss
	.balign 16
kernel_stack:
	.skip	16
	.skip	4096
	.global	user_stack_top
user_stack_top:

	.section .note.GNU-stack, "", @progbits
