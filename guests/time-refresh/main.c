/*
 * vcpu_time_info: Xen rewrites it each second while the vcpu runs, when the vcpu gets the CPU after
 * that, and when the guest names another place for it. The version moves on. Without this, a guest
 * that waits for a new version waits for ever (NetBSD), and a guest that multiplies in 32 bits
 * loses the time after four seconds (Mini-OS).
 *
 * Success: each of them, and a second record that is the same.
 */
#ifdef GUEST_PV
#include "pv.h"
#else
#include "pvh.h"
#endif
#include "guest.h"
#include "x86.h"

#define SCHEDOP_poll 3
#define VCPUOP_register_vcpu_info 10
#define VCPUOP_register_vcpu_time_memory_area 13
#define SECOND 1000000000ull
#define PAGE 4096

struct time_info {
	uint32_t version, pad0;
	uint64_t tsc_timestamp, system_time;
	uint32_t tsc_to_system_mul;
	int8_t tsc_shift;
	uint8_t flags, pad1[2];
};

struct vcpu_info {
	uint8_t events[32];
	struct time_info time;
};

static union {
	struct vcpu_info vcpu; /* the first one of shared_info */
	uint8_t bytes[PAGE];
} shared __attribute__((aligned(PAGE))), moved __attribute__((aligned(PAGE)));
static volatile struct time_info *place = &shared.vcpu.time;
static struct time_info newest, second;

static struct time_info read_record(void)
{
	struct time_info record;

	do {
		record = *(struct time_info *)place;
		asm volatile("" : : : "memory");
	} while (record.version & 1 || record.version != place->version);
	return record;
}

/* Nanoseconds since a record was made. */
static uint64_t age(const struct time_info *record)
{
	uint64_t ticks = rdtsc() - record->tsc_timestamp;

	ticks = record->tsc_shift < 0 ? ticks >> -record->tsc_shift : ticks << record->tsc_shift;
	return (ticks >> 32) * record->tsc_to_system_mul +
	       ((ticks & 0xffffffff) * record->tsc_to_system_mul >> 32);
}

static uint64_t now(void)
{
	struct time_info record = read_record();

	return record.system_time + age(&record);
}

static void spin_for_new_version(void)
{
	while (place->version == newest.version && age(&newest) < 3 * SECOND)
		for (int i = 0; i < 100; i++)
			asm volatile("pause" : : : "memory");
}

static void sleep_until(uint64_t time)
{
	struct {
		unsigned long ports;
		unsigned int nr_ports;
		uint64_t timeout;
	} poll = { 0, 0, time };

	while (now() < time) /* another event may end it */
		if (hypercall(__HYPERVISOR_sched_op, SCHEDOP_poll, (unsigned long)&poll, 0))
			error("SCHEDOP_poll");
}

/* The record is another one, and not older than a second and a slice of the vcpu's. */
static void expect_new(const char *what, int another_second)
{
	struct time_info record = read_record();

	printk("%s: %s version\n", what, record.version == newest.version ? "the same" : "another");
	check((int32_t)(record.version - newest.version) > 0, "a version that moved on");
	check(age(&record) < SECOND + SECOND / 10, "a record of this second");
	if (another_second) {
		check(record.system_time > newest.system_time, "a later time");
		check((int64_t)(record.tsc_timestamp - newest.tsc_timestamp) > 0, "a later TSC");
	}
	newest = record;
}

static void expect_second_record(const char *what)
{
	const uint8_t *one = (const uint8_t *)&newest, *other = (const uint8_t *)&second;
	unsigned int differ = 0;

	for (unsigned int i = 0; i < sizeof(newest); i++)
		differ += one[i] != other[i];
	printk("%s: a second record that %s\n", what, differ ? "differs" : "is the same");
	check_equal("bytes that differ", differ, 0);
}

static void vcpu_op(const char *what, unsigned int command, void *argument)
{
	check_equal(what, hypercall(__HYPERVISOR_vcpu_op, command, 0, (unsigned long)argument), 0);
}

static void map_shared_info(void)
{
#ifdef GUEST_PV
	check_equal("shared_info",
		    update_va_mapping(&shared, start_info()->shared_info | PTE_P | PTE_RW | PTE_US), 0);
#else
	check_equal("shared_info", add_to_physmap(XENMAPSPACE_shared_info, 0, &shared), 0);
#endif
}

static void move_vcpu_info(void)
{
	struct {
		uint64_t mfn;
		uint32_t offset, reserved;
#ifdef GUEST_PV
	} op = { virt_to_mfn(&moved), 0, 0 };
#else
	} op = { (unsigned long)&moved / PAGE, 0, 0 };
#endif

	vcpu_op("register_vcpu_info", VCPUOP_register_vcpu_info, &op);
	place = &moved.vcpu.time;
}

void guest_main(void)
{
	uint64_t area = (unsigned long)&second;

	map_shared_info();
	newest = read_record();
	spin_for_new_version();
	expect_new("running", 1);
	sleep_until(now() + SECOND + SECOND / 2);
	expect_new("woken", 1);
	vcpu_op("register_vcpu_time_memory_area", VCPUOP_register_vcpu_time_memory_area, &area);
	expect_new("a second place", 0);
	expect_second_record("registered");
	sleep_until(now() + SECOND);
	expect_new("woken again", 1);
	expect_second_record("a second later");
	move_vcpu_info();
	expect_new("another place", 0);
	expect_second_record("moved");
	success();
}
