/* Printing, outcomes and the end of a run, for every environment. */
#include "guest.h"

void *memset(void *target, int byte, size_t size)
{
	void *at = target;

	asm volatile("rep stosb" : "+D"(at), "+c"(size) : "a"(byte) : "memory");
	return target;
}

void *memcpy(void *target, const void *source, size_t size)
{
	void *at = target;

	asm volatile("rep movsb" : "+D"(at), "+S"(source), "+c"(size) : : "memory");
	return target;
}

size_t strlen(const char *text)
{
	size_t length = 0;

	while (text[length])
		length++;
	return length;
}

void console_io(const char *text)
{
	hypercall(__HYPERVISOR_console_io, CONSOLEIO_write, strlen(text), (unsigned long)text);
}

static void notify(uint32_t port)
{
	struct evtchn_send send = { port };

	hypercall(__HYPERVISOR_event_channel_op, EVTCHNOP_send, (unsigned long)&send, 0);
}

static void ring_write(const char *text, size_t length)
{
	struct console to = console();

	if (!to.ring) {
		hypercall(__HYPERVISOR_console_io, CONSOLEIO_write, length, (unsigned long)text);
		return;
	}
	volatile uint32_t *consumed = &to.ring->out_cons;
	uint32_t produced = to.ring->out_prod;

	for (size_t i = 0; i < length; i++) {
		while (produced - *consumed >= sizeof(to.ring->out)) {
			notify(to.port);
			hypercall(__HYPERVISOR_sched_op, SCHEDOP_yield, 0, 0);
		}
		to.ring->out[produced++ % sizeof(to.ring->out)] = text[i];
		asm volatile("" ::: "memory"); /* the byte before the index that shows it */
		*(volatile uint32_t *)&to.ring->out_prod = produced;
	}
	notify(to.port);
}

static char *put_number(char *end, unsigned long value, unsigned int base)
{
	do
		*--end = "0123456789abcdef"[value % base];
	while (value /= base);
	return end;
}

void printk(const char *format, ...)
{
	va_list arguments;

	va_start(arguments, format);
	while (*format) {
		char digits[3 * sizeof(long)], *end = digits + sizeof(digits);
		const char *text = format;
		size_t length = 1;

		if (*format++ != '%') {
			while (*format && *format != '%')
				format++;
			ring_write(text, format - text);
			continue;
		}
		int is_long = *format == 'l';
		format += is_long;
		char kind = *format++;

		if (kind == 's') {
			text = va_arg(arguments, const char *);
			length = strlen(text);
		} else if (kind == 'c') {
			*--end = va_arg(arguments, int);
			text = end;
		} else if (kind == 'd') {
			int value = va_arg(arguments, int);
			char *from = put_number(end, value < 0 ? 0u - value : (unsigned int)value, 10);

			if (value < 0)
				*--from = '-';
			text = from;
			length = end - from;
		} else if (kind == 'u' || kind == 'x') {
			unsigned long value = is_long ? va_arg(arguments, unsigned long)
						      : va_arg(arguments, unsigned int);

			text = put_number(end, value, kind == 'x' ? 16 : 10);
			length = end - text;
		}
		ring_write(text, length);
	}
	va_end(arguments);
}

enum outcome { NONE, SUCCESS, SKIP, ERROR, FAILURE };

static enum outcome worst = NONE;

static void report(enum outcome outcome)
{
	if (outcome > worst)
		worst = outcome;
}

void success(void)
{
	report(SUCCESS);
}

void skip(const char *reason)
{
	printk("Skip: %s\n", reason);
	report(SKIP);
}

void error(const char *reason)
{
	printk("Error: %s\n", reason);
	report(ERROR);
}

void failure(const char *reason)
{
	printk("Failure: %s\n", reason);
	report(FAILURE);
}

void check(int holds, const char *what)
{
	if (!holds)
		failure(what);
}

void check_equal(const char *what, unsigned long is, unsigned long should)
{
	if (is == should)
		return;
	printk("%s: 0x%lx, not 0x%lx\n", what, is, should);
	failure(what);
}

void end(void)
{
	static const char *const words[] = { "ERROR", "SUCCESS", "SKIP", "ERROR", "FAILURE" };
	struct sched_shutdown shutdown = { SHUTDOWN_poweroff };

	if (worst == NONE)
		printk("Error: the guest reported no outcome\n");
	printk("Test result: %s\n", words[worst]);
	hypercall(__HYPERVISOR_sched_op, SCHEDOP_shutdown, (unsigned long)&shutdown, 0);
	for (;;)
		asm volatile("ud2");
}

void start(void)
{
	printk("--- %s (%s) ---\n", guest_name, environment);
	guest_main();
	end();
}
