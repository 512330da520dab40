/*
 * Two vcpus that do alike in different modes: 32-bit code without paging and an xAPIC, 64-bit code
 * on tables and an x2APIC. %ebx leads to a page of a vcpu's own, with how it begins, its counters
 * and its vcpu_info; its IDT is in the next page, its stack in the two after that.
 */
#include "elfnote.h"
#include "x86.h"

#define DR0_AT 0
#define DR7_AT 4
#define FLAGS 8
#define CONTROL 12
#define MXCSR 16
#define NUMBERS 32			/* four doubles */
#define WATCHED 64			/* counts rounds */
#define UPCALLS 68
#define VECTORS 72
#define DEBUGS 76
#define SUM 80
#define ANSWER 96
#define VCPU_INFO 0x800
#define IDT 0x1000
#define STACK 0x4000

#define APIC 0xfee00000
#define EOI 0xb0
#define SPURIOUS 0xf0
#define ICR 0x300
#define X2APIC(register) (0x800 + ((register) >> 4))
#define SELF (1 << 18)
#define xen_version 17
#define XENVER_platform_parameters 5

	ELFNOTE XEN_ELFNOTE_PHYS32_ENTRY, .long, narrow

	.macro	GATE vector, handler, selector, size
	movl	$\handler, %eax
	movw	%ax, IDT + \size * \vector(%ebx)
	movw	$\selector, IDT + \size * \vector + 2(%ebx)
	movw	$0x8e00, IDT + \size * \vector + 4(%ebx)
	shrl	$16, %eax
	movw	%ax, IDT + \size * \vector + 6(%ebx)
	.endm

	.macro	BEGIN size, name, selector
	leal	STACK(%ebx), %esp
	lgdt	gdt_pointer
	GATE	0x01, debug_\name, \selector, \size
	GATE	0x40, vector_\name, \selector, \size
	GATE	0x41, vector_\name, \selector, \size
	GATE	0xe3, vector_\name, \selector, \size
	GATE	0xf3, upcall_\name, \selector, \size
	leal	IDT(%ebx), %eax
	movl	%eax, -4(%esp)
	movw	$0xfff, -6(%esp)
	lidt	-6(%esp)
	mov	$16, %eax
	mov	%eax, %ds
	mov	%eax, %es
	mov	%eax, %ss
	mov	$0x600, %eax		/* OSFXSR, OSXMMEXCPT */
	mov	%eax, %cr4
	fninit
	fldcw	CONTROL(%ebx)
	ldmxcsr	MXCSR(%ebx)
	fldl	NUMBERS(%ebx)
	fldl	NUMBERS + 8(%ebx)
	movups	NUMBERS(%ebx), %xmm0
	movups	NUMBERS + 16(%ebx), %xmm1
	mov	DR0_AT(%ebx), %eax
	mov	%eax, %dr0
	mov	DR7_AT(%ebx), %eax
	mov	%eax, %dr7
	mov	%ebx, %ebp
	.endm

	.text
	.code32
	.global narrow, wide
narrow:
	BEGIN	8, narrow, 8
	ljmp	$8, $1f
1:	movl	$0x1ff, APIC + SPURIOUS
	push	FLAGS(%ebp)
	popf
2:	incl	WATCHED(%ebp)
	movl	$SELF | 0x40, APIC + ICR
	fadd	%st(1), %st
	fxch
	divps	%xmm1, %xmm0
	addps	%xmm0, %xmm1
	adc	%edx, SUM(%ebp)
	sti
	nop
	mov	$xen_version, %eax
	mov	$XENVER_platform_parameters, %ebx
	lea	ANSWER(%ebp), %ecx
	vmcall
	rcl	$3, %edx
	cli
	testl	$3, WATCHED(%ebp)
	jnz	2b
	sti
	hlt
	cli
	jmp	2b

debug_narrow:
	incl	DEBUGS(%ebp)
	iret
vector_narrow:
	incl	VECTORS(%ebp)
	movl	$0, APIC + EOI
	iret
upcall_narrow:
	incl	UPCALLS(%ebp)
	movb	$0, VCPU_INFO(%ebp)
	iret

wide:
	BEGIN	16, wide, 24
	mov	%cr4, %eax
	or	$CR4_PAE, %eax
	mov	%eax, %cr4
	mov	$l4_table, %eax
	mov	%eax, %cr3
	mov	$MSR_EFER, %ecx
	rdmsr
	or	$EFER_LME, %eax
	wrmsr
	mov	$(CR0_PG | CR0_WP | CR0_PE), %eax
	mov	%eax, %cr0
	ljmp	$24, $1f
	.code64
1:	mov	$0x1b, %ecx		/* IA32_APIC_BASE */
	rdmsr
	or	$0x400, %eax
	wrmsr
	mov	$X2APIC(SPURIOUS), %ecx
	mov	$0x1ff, %eax
	xor	%edx, %edx
	wrmsr
	mov	FLAGS(%rbp), %eax
	push	%rax
	popf
2:	incl	WATCHED(%rbp)
	mov	$X2APIC(ICR), %ecx
	mov	$SELF | 0x40, %eax
	xor	%edx, %edx
	wrmsr
	fsub	%st(1), %st
	fxch
	mulpd	%xmm1, %xmm0
	subpd	%xmm0, %xmm1
	adc	%r15, SUM(%rbp)
	sti
	nop
	mov	$xen_version, %eax
	mov	$XENVER_platform_parameters, %edi
	lea	ANSWER(%rbp), %rsi
	vmcall
	rcl	$5, %r15
	cli
	testl	$1, WATCHED(%rbp)
	jnz	2b
	sti
	hlt
	cli
	jmp	2b

debug_wide:
	incl	DEBUGS(%rbp)
	iretq
vector_wide:
	incl	VECTORS(%rbp)
	push	%rax
	push	%rcx
	push	%rdx
	mov	$X2APIC(EOI), %ecx
	xor	%eax, %eax
	xor	%edx, %edx
	wrmsr
	pop	%rdx
	pop	%rcx
	pop	%rax
	iretq
upcall_wide:
	incl	UPCALLS(%rbp)
	movb	$0, VCPU_INFO(%rbp)
	iretq

	.data
	.balign 8
gdt:	.quad	0, 0x00cf9b000000ffff, 0x00cf93000000ffff, 0x00af9b000000ffff
gdt_pointer:
	.word	gdt_pointer - gdt - 1
	.long	gdt

	.balign 4096
l4_table:
	.quad	l3_table + 3
	.fill	511, 8, 0
l3_table:
	.quad	l2_table + 3
	.fill	511, 8, 0
l2_table:				/* 1 GiB */
	.set	page, 0
	.rept	512
	.quad	page << 21 | 0xe3
	.set	page, page + 1
	.endr

	.bss
	.balign 4096
	.global	own
own:	.skip	2 * STACK
	.section .note.GNU-stack, "", @progbits
