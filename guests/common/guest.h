/* What a guest's main.c may use: the same in every environment. */
#ifndef GUEST_H
#define GUEST_H

#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include "hypercall.h"

#define guest_name GUEST_NAME /* the guest's folder, from guests/build.py */
extern const char environment[]; /* "pv64", "pv32", "pvh64"...: guests/build.py */

/* main.c: the guest itself. It must report an outcome before it returns. */
void guest_main(void);

/* Print on the PV console. %s %c %d %u %x, and %lu %lx. */
void printk(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* Print on Xen's own console, through CONSOLEIO_write. */
void console_io(const char *text);

/*
 * Report the outcome, in the words of XTF: the subject works; the test does not apply; the test
 * itself is at fault; the subject is at fault. The most severe one of a run is printed.
 */
void success(void);
void skip(const char *reason);
void error(const char *reason);
void failure(const char *reason);

/* Report a failure unless `holds`, or unless two values are the same. */
void check(int holds, const char *what);
void check_equal(const char *what, unsigned long is, unsigned long should);

/* Print the outcome and power off, as the return of guest_main() does. */
void end(void) __attribute__((noreturn));

/* The environment's part, called by main.c through the functions above. */
struct console {
	struct xencons_interface *ring; /* NULL in dom0 */
	uint32_t port;
};
struct console console(void);
void console_again(void); /* the guest may be in another domain now, whose console has another port */
void start(void) __attribute__((noreturn)); /* runs guest_main(), then end() */

/* What Xen or its toolstack said at the start: each of the first two is NULL in the other's. */
const struct start_info *start_info(void);	  /* PV, and the PVH draft of 2015 */
const struct hvm_start_info *hvm_start_info(void); /* PVH */
const char *command_line(void);

void *memset(void *target, int byte, size_t size);
void *memcpy(void *target, const void *source, size_t size);
size_t strlen(const char *text);

#endif
