/* A hypercall with an iret frame on top of the stack, and out of what comes of it. */
#include "xen.h"

	.text
	.global	leave			/* long leave(frame, hypercall, first, second) */
leave:
#ifdef __x86_64__
	push	%rbx
	push	%rbp
	push	%r12
	push	%r13
	push	%r14
	push	%r15
	mov	%rsp, saved_stack
	mov	%esi, %eax
	mov	%rdx, %r8
	mov	%rcx, %r9
	mov	%rdi, %rsi
	sub	$9 * 8, %rsp
	mov	%rsp, %rdi
	mov	$9, %ecx
	rep	movsq
	mov	%r8, %rdi
	mov	%r9, %rsi
	syscall
#else
	push	%ebx
	push	%ebp
	push	%esi
	push	%edi
	mov	%esp, saved_stack
	mov	20(%esp), %esi
	mov	24(%esp), %eax
	mov	28(%esp), %ebx
	mov	32(%esp), %edx
	sub	$6 * 4, %esp
	mov	%esp, %edi
	mov	$6, %ecx
	rep	movsl
	mov	%edx, %ecx
	int	$0x82
#endif

	.global	return_from_leave	/* whatever the stack is now */
return_from_leave:
#ifdef __x86_64__
	mov	saved_stack, %rsp
	pop	%r15
	pop	%r14
	pop	%r13
	pop	%r12
	pop	%rbp
	pop	%rbx
#else
	mov	saved_stack, %esp
	pop	%edi
	pop	%esi
	pop	%ebp
	pop	%ebx
#endif
	ret

	.global	show_flags, target
show_flags:				/* as the CPU has them */
	pushf
#ifdef __x86_64__
	pop	%rax
#else
	pop	%eax
#endif
target:	int3

	.bss
	.balign 16
saved_stack:
	.skip	8

	.section .note.GNU-stack, "", @progbits
