/* Ask what to do, do it, and come back here, whatever happened. */
#include "x86.h"

#define FETCH 63

	.macro	CALL_XEN
#if !defined(GUEST_PV)
	vmcall
#elif defined(__x86_64__)
	syscall
#else
	int	$0x82
#endif
	.endm

	.text
	.global	fuzz_again, fuzz_call
fuzz_again:				/* also where all traps and events lead */
	mov	$KERNEL_DS, %eax
	mov	%eax, %ds
	mov	%eax, %es
#ifdef __x86_64__
	lea	fuzz_stack_top, %rsp
#else
	lea	fuzz_stack_top, %esp
#endif
	cld
	mov	$FETCH, %eax
	CALL_XEN			/* the driver sets the registers, RIP among them */
	jmp	fuzz_again
fuzz_call:
	CALL_XEN
	jmp	fuzz_again

	.data
	.balign	4096
	.global	fuzz_code		/* the driver puts an instruction there */
fuzz_code:
	.fill	32, 1, 0x90
	jmp	fuzz_again

	.bss
	.balign	4096
	.skip	4096
	.global	fuzz_stack_top
fuzz_stack_top:

	.section .note.GNU-stack, "", @progbits
