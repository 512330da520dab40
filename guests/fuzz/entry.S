/* Ask what to do, do it, and come back here, whatever happened; on any vcpu. */
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
	CALL_XEN			/* the driver sets the registers: RIP, each vcpu's RSP */
	jmp	fuzz_again
fuzz_call:
	CALL_XEN
	jmp	fuzz_again

	.global	fuzz_vcpu		/* where a further vcpu begins */
fuzz_vcpu:
#ifndef GUEST_PV
	lgdt	fuzz_gdt
	lidt	fuzz_idt
	mov	$KERNEL_DS, %eax
	mov	%eax, %ss
	push	$KERNEL_CS
	push	$fuzz_again
#ifdef __x86_64__
	lretq
#else
	lret
#endif

/* The way there from real mode, where STARTUP has it begin; main.c copies the first part. */
#define CODE32 0x18
	.section .rodata
	.balign	16
	.global	fuzz_trampoline, fuzz_trampoline_end
	.code16
fuzz_trampoline:
	mov	%cs, %ax
	mov	%ax, %ds
	lgdtl	pointer - fuzz_trampoline
	mov	%cr0, %eax
	or	$CR0_PE, %al
	mov	%eax, %cr0
	ljmpl	$CODE32, $protected
	.balign	4
pointer:
	.word	pointer_end - small_gdt - 1
	.long	small_gdt
fuzz_trampoline_end:
	.balign	8
small_gdt:
	.quad	0
	.quad	KERNEL_CODE		/* KERNEL_CS */
	.quad	0x00cf93000000ffff	/* KERNEL_DS */
	.quad	0x00cf9b000000ffff	/* CODE32 */
pointer_end:

	.text
	.code32
protected:
	mov	$KERNEL_DS, %eax
	mov	%eax, %ds
	mov	%eax, %es
	mov	%eax, %ss
	lea	fuzz_stack_top, %esp
#ifdef __x86_64__
	mov	$CR4_PAE, %eax
	mov	%eax, %cr4
	mov	$l4_table, %eax
	mov	%eax, %cr3
	mov	$MSR_EFER, %ecx
	rdmsr
	or	$(EFER_LME | EFER_NX), %eax
	wrmsr
	mov	%cr0, %eax
	or	$(CR0_PG | CR0_WP), %eax
	mov	%eax, %cr0
	ljmp	$KERNEL_CS, $fuzz_vcpu
	.code64
#else
	jmp	fuzz_vcpu
#endif
#else
	jmp	fuzz_again
#endif

	.data
	.balign	4096
	.global	fuzz_code		/* the driver puts an instruction there */
fuzz_code:
	.fill	32, 1, 0x90
	jmp	fuzz_again

	.bss
	.balign	4096
	.skip	8192			/* a piece for each vcpu */
	.global	fuzz_stack_top
fuzz_stack_top:

	.section .note.GNU-stack, "", @progbits
