/*
 * More notes, which a linker puts after Xen's other ones: two that are aligned to 8, as
 * .note.gnu.property is, with padding between them, and one that asks for the symbols.
 */
#include "elfnote.h"

	.section .note.Xen, "a", @note
	.balign 8
	.long 4, 4, 0x100
	.asciz "pad"
	.long 0
	.balign 8
	.long 4, 16, 0x100
	.asciz "pad"
	.skip 16

	ELFNOTE XEN_ELFNOTE_BSD_SYMTAB, .asciz, "yes"

	.section .note.GNU-stack, "", @progbits
