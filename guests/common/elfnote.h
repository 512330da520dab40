/* ELFNOTE(type, directive): one Xen note, for the PT_NOTE segment. */
#ifndef ELFNOTE_H
#define ELFNOTE_H

#include "xen.h"

.macro ELFNOTE type:req, directive:req, value:vararg
	.pushsection .note.Xen, "a", @note
	.balign 4
	.long 4, 2f - 1f, \type
	.asciz "Xen"
1:	\directive \value
2:	.balign 4
	.popsection
.endm

#endif
