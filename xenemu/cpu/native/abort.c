/*
 * A way out of Unicorn.
 *
 * Unicorn may meet a state that it was not made for. Then it calls abort(), or touches memory that
 * is not there. A guest can bring that about. It must end the run, and not this process. So the
 * signal's handler leaves for `run_or_give_up`. Only Unicorn's own frames may be left in this way,
 * never Python's.
 */
#define _GNU_SOURCE
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "shim.h"

static sigjmp_buf way_out;
static volatile sig_atomic_t may_leave; /* Unicorn runs, and has not called Python */
static char last_words[256];

void cpu_abort_x86_64(void *cpu, const char *format, ...)
{
    va_list arguments;

    (void)cpu;
    va_start(arguments, format);
    vsnprintf(last_words, sizeof last_words, format, arguments);
    va_end(arguments);
    raise(SIGABRT);
}

void call_python(void (*function)(void))
{
    sig_atomic_t before = may_leave;

    may_leave = 0;
    function();
    may_leave = before;
}

static const int FATAL[] = {SIGABRT, SIGSEGV, SIGBUS, SIGFPE, SIGILL};
enum { FATALS = sizeof FATAL / sizeof *FATAL };
static struct sigaction others[FATALS]; /* who else handles these signals */

static void give_handlers_back(void)
{
    for (int i = 0; i < FATALS; i++)
        sigaction(FATAL[i], &others[i], NULL);
}

static void on_fatal_signal(int number, siginfo_t *info, void *context)
{
    (void)context;
    if (may_leave && info->si_code != SI_USER) {
        if (!*last_words)
            snprintf(last_words, sizeof last_words, "%s", strsignal(number));
        siglongjmp(way_out, 1);
    }
    give_handlers_back(); /* it is not Unicorn's own, and comes again for whoever handles it */
    if (info->si_code <= 0)
        raise(number);
}

static void take_handlers(void)
{
    struct sigaction mine = {.sa_sigaction = on_fatal_signal, .sa_flags = SA_SIGINFO | SA_NODEFER};

    for (int i = 0; i < FATALS; i++)
        sigaction(FATAL[i], &mine, &others[i]);
}

/* Run Unicorn from `rip`; returns a uc_err, or GAVE_UP: then `shim_last_words` says why. */
int run_or_give_up(uint64_t rip)
{
    volatile int error = GAVE_UP;

    *last_words = 0;
    take_handlers();
    if (!sigsetjmp(way_out, 0)) {
        may_leave = 1;
        error = U.emu_start(G.uc, rip, 0, 0, 0);
    }
    may_leave = 0;
    give_handlers_back();
    return error;
}

__attribute__((visibility("default"))) const char *shim_last_words(void)
{
    return last_words;
}
