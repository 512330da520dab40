/* User code that traps on purpose. */
	.text
	.global	user_int80, user_int82, user_int21, user_int3
user_int80:
	int	$0x80
user_int82:
	mov	$17, %eax		/* xen_version: not for user mode */
	int	$0x82
user_int21:
	int	$0x21
user_int3:
	int3

	.section .note.GNU-stack, "", @progbits
