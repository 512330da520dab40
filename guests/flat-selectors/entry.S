/* Code that enters Xen with selectors of the guest's own, and notes which it has after that. */
#include "selectors.h"
#include "x86.h"
#include "xen.h"

	.macro	NOTE at
	mov	%cs, %eax
	mov	%eax, \at
	mov	%ss, %eax
	mov	%eax, \at + 4
	.endm

	.macro	OWN_SELECTORS		/* iret to them */
	mov	%rsp, %rax
	push	$OWN_DS
	push	%rax
	push	$2			/* events stay masked */
	push	$(OWN_CS & ~3)		/* to the kernel */
	push	$1f
	push	$0
	jmp	hypercall_page + __HYPERVISOR_iret * 32
1:	NOTE	before
	.endm

	.text
	.global	call_xen		/* call_xen(hypercall) */
call_xen:
	push	%rdi
	OWN_SELECTORS
	pop	%rax
	xor	%edi, %edi
	syscall
	NOTE	after
	ret

	.global	trap_to_kernel
trap_to_kernel:
	OWN_SELECTORS
	int3
	NOTE	after
	ret

	.global	be_emulated
be_emulated:
	OWN_SELECTORS
	mov	%cr0, %rcx
	NOTE	after
	ret

	.bss
	.balign 8
	.global before, after
before:
	.skip	8			/* struct selectors */
after:
	.skip	8

	.section .note.GNU-stack, "", @progbits
