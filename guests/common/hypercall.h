/* Hypercalls through the page that Xen fills: `call hypercall_page + number * 32`. */
#ifndef HYPERCALL_H
#define HYPERCALL_H

#include "xen.h"

/* Up to three arguments; the result is negative errno on failure. */
static inline long hypercall(unsigned int number, unsigned long a1, unsigned long a2,
			     unsigned long a3)
{
	extern char hypercall_page[];
	char *entry = hypercall_page + number * 32;
	long result;

#ifdef __x86_64__
	asm volatile("call *%[entry]"
		     : "=a"(result), "+D"(a1), "+S"(a2), "+d"(a3)
		     : [entry] "r"(entry)
		     : "rcx", "r11", "memory");
#else
	asm volatile("call *%[entry]"
		     : "=a"(result), "+b"(a1), "+c"(a2), "+d"(a3)
		     : [entry] "r"(entry)
		     : "memory");
#endif
	return result;
}

#endif
