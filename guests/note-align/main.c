/*
 * Xen steps through notes by 4 bytes, whatever their alignment. After a note that is aligned to 8,
 * it takes the padding for a note, and finds none of the notes that follow. The last of them asks
 * for symbols (see bsd-symtab), and there are none.
 */
#include "guest.h"

extern char image_end[];

void guest_main(void)
{
	unsigned long *after = (void *)(((unsigned long)image_end + 7) & -8);

	for (unsigned int i = 0; i < 64; i++)
		check_equal("what is after the kernel", after[i], 0);
	success();
}
