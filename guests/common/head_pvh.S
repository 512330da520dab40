/*
 * Entry of a PVH guest, 32- or 64-bit: Xen starts both in flat 32-bit protected mode without
 * paging, with %ebx on hvm_start_info. The PVH draft of 2015 has the same with a number in %eax and
 * %esi on start_info. The state at entry is kept in entry_state, untouched.
 */
#include "elfnote.h"
#include "x86.h"

	ELFNOTE XEN_ELFNOTE_GUEST_OS, .asciz, "xenemu-guest"
	ELFNOTE XEN_ELFNOTE_GUEST_VERSION, .asciz, "1"
	ELFNOTE XEN_ELFNOTE_LOADER, .asciz, "generic"
#ifdef GUEST_DRAFT
	ELFNOTE DRAFT_ELFNOTE_PADDR_ENTRY, .long, _start
	ELFNOTE DRAFT_ELFNOTE_PADDR_OFFSET, .long, 0
#define INFO %esi
#else
	ELFNOTE XEN_ELFNOTE_PHYS32_ENTRY, .long, _start
#define INFO %ebx
#endif

	.code32
	.text
	.global _start
_start:					/* in the order of struct entry_state, in pvh.h */
	mov	INFO, entry_state
	mov	%eax, entry_state + 40
	mov	$stack_top, %esp
	pushf
	popl	entry_state + 4
	mov	%cr0, %eax
	mov	%eax, entry_state + 8
	mov	%cr4, %eax
	mov	%eax, entry_state + 12
	mov	%es, %eax
	mov	%ds, %ecx
	mov	%cs, %edx
	mov	%eax, %es:entry_state + 16
	mov	%ecx, %ds:entry_state + 20
	mov	%edx, entry_state + 24
	mov	%cs:entry_state, %eax
	mov	%eax, entry_state + 28
	call	1f
1:	popl	entry_state + 32	/* minus 1b */
	subl	$1b, entry_state + 32
	str	%eax
	mov	%eax, entry_state + 36

	cld
	lgdt	gdt_pointer
	mov	$KERNEL_DS, %eax
	mov	%eax, %ds
	mov	%eax, %es
	mov	%eax, %ss
	xor	%eax, %eax
	mov	%eax, %fs
	mov	%eax, %gs
#ifdef __x86_64__
	mov	$CR4_PAE, %eax
	mov	%eax, %cr4
	mov	$l4_table, %eax
	mov	%eax, %cr3
	mov	$MSR_EFER, %ecx
	rdmsr
	or	$(EFER_LME | EFER_SCE | EFER_NX), %eax
	wrmsr
	mov	$(CR0_PG | CR0_WP | CR0_PE), %eax
	mov	%eax, %cr0
	ljmp	$KERNEL_CS, $1f
	.code64
1:
#else
	ljmp	$KERNEL_CS, $1f
1:
#endif
	xor	%ebp, %ebp		/* ends a backtrace */
	call	pvh_start
2:	ud2				/* pvh_start() does not return */
	jmp	2b

	.global hypercall_page		/* Xen fills it: 32 bytes per hypercall */
	.balign 4096
hypercall_page:
	.skip	4096, 0xcc
	.type	hypercall_page, @object
	.size	hypercall_page, 4096

	.data
	.global gdt
	.balign 8
gdt:	.quad	0
	.quad	KERNEL_CODE		/* KERNEL_CS */
	.quad	0x00cf93000000ffff	/* KERNEL_DS */
	.quad	0x00cffb000000ffff	/* USER_CS32 */
	.quad	0x00cff3000000ffff	/* USER_DS */
	.quad	0x00affb000000ffff	/* USER_CS64 */
	.quad	0x00cff3000000ffff	/* what SYSEXIT to 64-bit code loads into SS */
	.quad	0, 0			/* TSS: traps.c fills it */
	.quad	0x00cf13000000ffff	/* ABSENT_DS */
gdt_end:
gdt_pointer:
	.word	gdt_end - gdt - 1
	.long	gdt, 0

#ifdef __x86_64__
/* Guest-physical 0 to 4 GiB, by 2 MiB pages that user mode may use, too. */
	.balign 4096
	.global l4_table, l2_tables
l4_table:
	.quad	l3_table + 7
	.fill	511, 8, 0
l3_table:
	.quad	l2_tables + 0x0007, l2_tables + 0x1007, l2_tables + 0x2007, l2_tables + 0x3007
	.fill	508, 8, 0
l2_tables:
	.set	page, 0
	.rept	2048
	.quad	page << 21 | 0xe7
	.set	page, page + 1
	.endr
#endif

	.bss
	.balign 16
	.skip	16384
stack_top:

	.section .note.GNU-stack, "", @progbits
