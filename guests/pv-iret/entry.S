/* HYPERVISOR_iret to wherever, and out of what comes of it. */
#include "xen.h"

	.text
	.global	iret_to			/* iret_to(cs, flags, ss), to `target` */
iret_to:
	mov	4(%esp), %eax
	mov	8(%esp), %ecx
	mov	12(%esp), %edx
	push	%ebx
	push	%ebp
	push	%esi
	push	%edi
	mov	%esp, saved_stack
	pushl	$0			/* GS FS DS ES, of VM86 mode alone */
	pushl	$0
	pushl	$0
	pushl	$0
	push	%edx			/* SS */
	push	$0x12345678		/* ESP */
	push	%ecx
	push	%eax
	push	$target
	mov	$0x600d, %eax
	jmp	hypercall_page + __HYPERVISOR_iret * 32
	.global	target
target:	int3

	.global	return_from_iret_to	/* whatever the stack is now */
return_from_iret_to:
	mov	saved_stack, %esp
	pop	%edi
	pop	%esi
	pop	%ebp
	pop	%ebx
	ret

	.bss
	.balign 16
saved_stack:
	.skip	4

	.section .note.GNU-stack, "", @progbits
