#include "pvh.h"
#include "traps.h"
static void show(const char *w){ printk("%s: vector %u error 0x%lx ip 0x%lx\n", w, last_trap.vector, last_trap.error, last_trap.ip); }
static void step(struct frame *f){ last_trap.vector = f->vector; last_trap.ip=f->ip; f->flags &= ~0x100ul; }
static void user_iopl(void){ asm volatile("cli"); }
static void user_io(void){ asm volatile("in $0x71, %%al":::"eax"); }
static void user_cr(void){ asm volatile("mov %%cr0, %0"::"r"(0ul)); }
static void user_vmcall(void){ long r; asm volatile("vmcall":"=a"(r):"a"(17),"D"(0ul),"b"(0ul)); asm volatile("int $0x80"::"a"(r)); }
static void user_far(void){ asm volatile("mov %w0,%%es"::"r"(ABSENT_DS)); }
void guest_main(void)
{
	set_gate_present(UD,0);
	TRY("ud2"); show("ud2 with absent gate (want 11, 0x33)");
	set_gate_present(UD,1);
	set_gate_present(BP,0);
	TRY("int3"); show("int3 with absent gate (want 11, 0x1a)");
	set_gate_present(BP,1);
	set_handler(DB, step); last_trap.vector = NO_TRAP;
	asm volatile("pushf\n orl $0x100, (%%esp)\n popf\n nop\n single: nop"
		: : : "memory","cc");
	extern char single[]; show("single step"); printk("%d\n", last_trap.ip == (unsigned long)single);
	set_gate_dpl(0x80,3);
	run_user(user_iopl); show("user cli");
	run_user(user_io); show("user in");
	run_user(user_cr); show("user cr0");
	run_user(user_vmcall); show("user vmcall");
	run_user(user_far); show("user absent es (0x48)");
	TRY("rdmsr","c"(0x12345)); show("rdmsr");
	TRY(".byte 0xf1"); show("icebp");
	TRY("mov %0,%%dr6; mov %0,%%dr7","r"(0x0ul)); show("dr");
	TRY("lldt %w0","r"(0)); show("lldt");
	TRY("mov %0,%%cr0","r"(0x80000000ul)); show("cr0 PG no PE (want 13)");
	success();
}
