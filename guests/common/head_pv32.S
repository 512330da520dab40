/* Entry of a 32-bit PV guest: Xen's notes, the first instructions, the hypercall page. */
#include "elfnote.h"

	ELFNOTE XEN_ELFNOTE_GUEST_OS, .asciz, "xenemu-guest"
	ELFNOTE XEN_ELFNOTE_GUEST_VERSION, .asciz, "1"
	ELFNOTE XEN_ELFNOTE_XEN_VERSION, .asciz, "xen-3.0"
	ELFNOTE XEN_ELFNOTE_LOADER, .asciz, "generic"
	ELFNOTE XEN_ELFNOTE_PAE_MODE, .asciz, "yes"
	ELFNOTE XEN_ELFNOTE_FEATURES, .asciz, "!writable_page_tables|pae_pgdir_above_4gb"
	ELFNOTE XEN_ELFNOTE_VIRT_BASE, .long, 0
	ELFNOTE XEN_ELFNOTE_PADDR_OFFSET, .long, 0
	ELFNOTE XEN_ELFNOTE_ENTRY, .long, _start
	ELFNOTE XEN_ELFNOTE_HYPERCALL_PAGE, .long, hypercall_page

	.text
	.global _start
_start:					/* Xen passes start_info in ESI */
	cld
	mov	$stack_top, %esp
	xor	%ebp, %ebp		/* ends a backtrace */
	push	%esi
	call	pv_start
1:	ud2				/* pv_start() does not return */
	jmp	1b

	.global hypercall_page		/* Xen fills it: 32 bytes per hypercall */
	.balign 4096
hypercall_page:
	.skip	4096, 0xcc
	.type	hypercall_page, @object
	.size	hypercall_page, 4096

	.bss
	.balign 16
	.skip	16384
stack_top:

	.section .note.GNU-stack, "", @progbits
