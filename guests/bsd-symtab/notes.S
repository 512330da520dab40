/* The note that asks for the symbols. */
#include "elfnote.h"

	ELFNOTE XEN_ELFNOTE_BSD_SYMTAB, .asciz, "yes"

	.section .note.GNU-stack, "", @progbits
