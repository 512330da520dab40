/*
 * What a kernel does for its processes all the time. It links tables that are pinned to tables above
 * them, and takes them out. It switches between address spaces, and sets the bases of segments.
 *
 * Success: each does what it says.
 */
#include "pv.h"
#include "traps.h"

#define AT 0x30000000ul /* where nothing is mapped, in the GiB of the kernel's memory */
#define LINK (PTE_P | PTE_RW | PTE_US)
#define AVAIL 0x200

static uint64_t table[512] __attribute__((aligned(4096)));
static char page[4096] __attribute__((aligned(4096)));

static void make_table(int level, const volatile void *frame)
{
	check_equal("read-only", update_va_mapping(frame, *l1_entry(frame) & ~PTE_RW), 0);
	check_equal("pin", pin_table(level, virt_to_mfn(frame)), 0);
}

static void end_table(const volatile void *frame)
{
	check_equal("unpin", mmuext(MMUEXT_UNPIN_TABLE, virt_to_mfn(frame), 0), 0);
	check_equal("writable", update_va_mapping(frame, *l1_entry(frame) | PTE_RW), 0);
}

static void links(void)
{
	uint64_t entry = virt_to_maddr(table_entry(2, (void *)AT)), link = virt_to_maddr(table) | LINK;

	page[0] = 'a';
	table[0] = virt_to_maddr(page) | LINK;
	make_table(1, table);
	check_equal("link", mmu_update(entry, link), 0);
	check_equal("what it shows", *(volatile char *)AT, 'a');
	check_equal("another bit", mmu_update(entry | MMU_PT_UPDATE_PRESERVE_AD, link | AVAIL), 0);
	check_equal("the same", *(volatile char *)AT, 'a');
	check_equal("none", mmu_update(entry, 0), 0);
	TRY("testb $1, (%0)", "r"(AT));
	check_equal("nothing there", last_trap.vector, PF);
	check_equal("none again", mmu_update(entry, 0), 0);
	end_table(table);
	check_equal("no table any more", mmu_update(entry, link | PTE_PSE), -EINVAL);
	table[0] = 0;
}

#ifdef __x86_64__

#define FS_BASE 0xc0000100
#define GS_BASE 0xc0000101
#define KERNEL_GS_BASE 0xc0000102
#define __HYPERVISOR_set_segment_base 25

static uint64_t other[512] __attribute__((aligned(4096)));

static void roots(void)
{
	volatile uint64_t *root = (void *)((unsigned long)table_entry(4, NULL) & ~0xffful);
	unsigned long mfn = virt_to_mfn(root);

	for (int n = 0; n < 512; n++)
		other[n] = root[n];
	make_table(4, other);
	for (int n = 0; n < 3; n++) {
		check_equal("there", mmuext(MMUEXT_NEW_BASEPTR, virt_to_mfn(other), 0), 0);
		check_equal("no user's", mmuext(MMUEXT_NEW_USER_BASEPTR, 0, 0), 0);
		check_equal("the user's", mmuext(MMUEXT_NEW_USER_BASEPTR, mfn, 0), 0);
		check_equal("no user's again", mmuext(MMUEXT_NEW_USER_BASEPTR, 0, 0), 0);
		check_equal("and back", mmuext(MMUEXT_NEW_BASEPTR, mfn, 0), 0);
	}
	end_table(other);
}

static void base(int which, uint32_t msr, uint64_t value)
{
	check_equal("set_segment_base",
		    hypercall(__HYPERVISOR_set_segment_base, which, value, 0), 0);
	check_equal("the base", rdmsr(msr), value);
}

static void segments(void)
{
	base(0, FS_BASE, 0x123456789000);
	base(0, FS_BASE, 0);
	base(1, KERNEL_GS_BASE, 0xffff888000000008);
	base(2, GS_BASE, 0x12345678);
	base(2, GS_BASE, 0);
	check_equal("a null selector", hypercall(__HYPERVISOR_set_segment_base, 3, 0, 0), 0);
	base(1, KERNEL_GS_BASE, 0);
	check_equal("not canonical", hypercall(__HYPERVISOR_set_segment_base, 0, 1ul << 47, 0),
		    -EINVAL);
}

#endif

void guest_main(void)
{
	links();
#ifdef __x86_64__
	roots();
	segments();
#endif
	success();
}
