/* The way of a vcpu from real mode, where STARTUP has it begin, to 64-bit code. main.c copies it. */
#include "x86.h"
#include "trampoline.h"

#define CODE32 0x18

	.section .rodata
	.balign 16
	.global trampoline, trampoline_end
	.code16
trampoline:
	mov	%cr0, %ecx
	mov	%cs, %ax
	mov	%ax, %ds
	mov	%ecx, first_cr0 - trampoline
	mov	%ax, first_cs - trampoline
	lgdtl	pointer - trampoline
	or	$CR0_PE, %cl
	mov	%ecx, %cr0
	ljmpl	$CODE32, $(TRAMPOLINE + protected - trampoline)
	.code32
protected:
	mov	$KERNEL_DS, %eax
	mov	%eax, %ds
	mov	%eax, %es
	mov	%eax, %ss
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
	movzwl	TRAMPOLINE + first_cs - trampoline, %esi
	mov	TRAMPOLINE + first_cr0 - trampoline, %edi
	ljmp	$KERNEL_CS, $long_mode
	.code64

	.balign 8
small_gdt:
	.quad	0
	.quad	KERNEL_CODE		/* KERNEL_CS */
	.quad	0x00cf93000000ffff	/* KERNEL_DS */
	.quad	0x00cf9b000000ffff	/* CODE32 */
pointer:
	.word	pointer - small_gdt - 1
	.long	TRAMPOLINE + small_gdt - trampoline
first_cr0:
	.long	0
first_cs:
	.word	0
trampoline_end:

	.text
	.global ap_entry, ap_stack_top
long_mode:
	mov	$ap_stack_top, %rsp
ap_entry:				/* without a GDT, if VCPUOP_initialise leads here */
	lgdt	gdt_register
	push	$KERNEL_CS
	push	$1f
	lretq
1:	mov	$KERNEL_DS, %eax
	mov	%eax, %ds
	mov	%eax, %es
	mov	%eax, %ss
	xor	%ebp, %ebp
	call	ap_main			/* does not return */

	.bss
	.balign 16
	.skip	8192
ap_stack_top:

	.section .note.GNU-stack, "", @progbits
