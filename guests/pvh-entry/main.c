/*
 * Xen's docs/misc/pvh.pandoc promises the state in which a PVH guest starts, and what
 * hvm_start_info and ACPI tell it. A guest has nothing else to go by, and most guests do not check.
 * So an error here shows much later.
 *
 * Success: each promise is kept, the memory map of start_info is XENMEM_memory_map's, and the sums
 * of the ACPI tables are right. Not seen: segment limits, TR's base and limit.
 */
#include "pvh.h"

struct rsdp {
	char signature[8];
	uint8_t checksum, oem[6], revision;
	uint32_t rsdt, length;
	uint64_t xsdt;
} __attribute__((packed));

struct table {
	char signature[4];
	uint32_t length;
	uint8_t revision, checksum, ids[26];
	uint8_t body[];
} __attribute__((packed));

static int adds_up(const void *data, uint32_t length)
{
	uint8_t sum = 0;

	for (uint32_t i = 0; i < length; i++)
		sum += ((const uint8_t *)data)[i];
	return sum == 0;
}

static void show(const struct table *table)
{
	check(adds_up(table, table->length), "checksum of an ACPI table");
	printk("  %c%c%c%c: revision %u, %u bytes\n", table->signature[0], table->signature[1],
	       table->signature[2], table->signature[3], table->revision, table->length);
}

static void check_memory_map(const struct hvm_start_info *info)
{
	static struct { uint64_t addr, size; uint32_t type; } __attribute__((packed)) e820[32];
	struct { unsigned int nr_entries; void *buffer; } map = { 32, e820 };
	const struct hvm_memmap_table_entry *entry = pointer(info->memmap_paddr);

	check(!hypercall(__HYPERVISOR_memory_op, XENMEM_memory_map, (unsigned long)&map, 0),
	      "XENMEM_memory_map");
	check_equal("entries of the memory map", info->memmap_entries, map.nr_entries);
	for (unsigned int i = 0; i < info->memmap_entries && i < 32; i++, entry++) {
		printk("  %lx-%lx type %u\n", (unsigned long)entry->addr,
		       (unsigned long)(entry->addr + entry->size), entry->type);
		check(entry->addr == e820[i].addr && entry->size == e820[i].size &&
		      entry->type == e820[i].type, "the hypercall's entry is another");
		check_equal("reserved", entry->reserved, 0);
	}
}

static void check_acpi(const struct rsdp *rsdp)
{
	const struct table *xsdt = pointer(rsdp->xsdt);

	check(adds_up(rsdp, 20) && adds_up(rsdp, rsdp->length), "checksums of the RSDP");
	printk("  RSDP: revision %u, %u bytes\n", rsdp->revision, rsdp->length);
	show(xsdt);
	for (uint32_t at = 0; at < xsdt->length - sizeof(*xsdt); at += 8) {
		const struct table *table = pointer(*(const uint64_t *)&xsdt->body[at]);

		show(table);
		if (table->signature[0] == 'F') /* FADT: X_DSDT is at 140 */
			show(pointer(*(const uint64_t *)&table->body[140 - sizeof(*table)]));
	}
}

void guest_main(void)
{
	const struct hvm_start_info *info = hvm_start_info();
	const struct hvm_modlist_entry *module;

	check_flat_start();
	check_equal("magic", info->magic, XEN_HVM_START_MAGIC_VALUE);
	printk("version %u, flags 0x%x, command line '%s', %u modules\n", info->version,
	       info->flags, command_line(), info->nr_modules);
	module = pointer(info->modlist_paddr);
	for (unsigned int i = 0; i < info->nr_modules; i++, module++)
		printk("  %s, %lu bytes: %s", module->cmdline_paddr ? "with a command line" : "without one",
		       (unsigned long)module->size, (char *)pointer(module->paddr));
	printk("memory map:\n");
	check_memory_map(info);
	printk("ACPI:\n");
	check_acpi(pointer(info->rsdp_paddr));
	success();
}
