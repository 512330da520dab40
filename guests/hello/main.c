/*
 * The smallest guest. Xen has built the domain, passed start_info or hvm_start_info, and filled the
 * hypercall page. It answers on both consoles. If anything is missing, the guest crashes or prints
 * a different line.
 */
#include "guest.h"

void guest_main(void)
{
	const struct start_info *info = start_info();
	const struct hvm_start_info *hvm_info = hvm_start_info();
	long version = hypercall(__HYPERVISOR_xen_version, XENVER_version, 0, 0);

	if (info)
		printk("start_info: magic %s, %lu pages, flags 0x%x\n", info->magic, info->nr_pages,
		       info->flags);
	if (hvm_info)
		printk("hvm_start_info: magic 0x%x, version %u, flags 0x%x\n", hvm_info->magic,
		       hvm_info->version, hvm_info->flags);
	printk("command line: %s\n", command_line());
	if (version < 0) {
		failure("XENVER_version refused");
		return;
	}
	printk("Xen version: %lu.%lu\n", (unsigned long)version >> 16,
	       (unsigned long)version & 0xffff);
	console_io("This line came through CONSOLEIO_write.\n");
	success();
}
