/* User code that calls, and the kernel's entries, which note what they find and go back. */
#include "x86.h"

#ifdef __x86_64__
#define R(name) r##name
#define WORD 8
#else
#define R(name) e##name
#define WORD 4
#endif

	.macro	NOTE at			/* SS, CS and flags */
	push	%R(ax)
	mov	%ss, %eax
	mov	%R(ax), \at
	mov	%cs, %eax
	mov	%R(ax), \at + WORD
	pop	%R(ax)
	pushf
	pop	\at + 2 * WORD
	.endm

	.text
#ifdef __x86_64__
	.global user_syscall, syscall_entry
user_syscall:
	stc
	std
	syscall
	.global	behind_syscall
behind_syscall:
	NOTE	in_user
	ud2

syscall_entry:
	NOTE	in_kernel
	mov	%rcx, from_ip
	sysretq
#endif

	.global user_sysenter, sysenter_entry, sysenter_stack
user_sysenter:
	mov	%R(sp), %R(cx)
	mov	$1f, %R(dx)
	sysenter
1:	NOTE	in_user
	ud2

sysenter_entry:
	mov	%R(sp), from_sp
	NOTE	in_kernel
#ifdef __x86_64__
	sysexitq
#else
	sysexit
#endif

	.bss
	.balign 16
	.global in_user, in_kernel, from_ip, from_sp
in_user:
	.skip	3 * WORD		/* struct machine */
in_kernel:
	.skip	3 * WORD
from_ip:
	.skip	WORD
from_sp:
	.skip	WORD
	.skip	256
	.balign	16
sysenter_stack:

	.section .note.GNU-stack, "", @progbits
