/*
 * Mappings of grants that differ from what Xen wrote down. XSA-227: a mapping is named by its
 * entry, and the entry was not aligned. XSA-234: an unmapping looked at the frame that the entry
 * maps, and not at whether the entry is writable. XSA-224: a mapping for both CPU and device was
 * undone in two halves, and the counts went wrong.
 *
 * The rule: a grant is mapped as ordinary memory is. When the mapping goes, its entry must be the
 * one that was made. What is left can no longer be reached. Success: each mismatch has a status,
 * and a frame without grants is free for another use.
 */
#include "attack.h"

#define EVTCHNOP_status 5
#define EVTCHNOP_alloc_unbound 6
#define GNTTABOP_map_grant_ref 0
#define GNTTABOP_unmap_grant_ref 1
#define GNTTABOP_setup_table 2
#define GNTTABOP_copy 5
#define GNTMAP_device_map 1
#define GNTMAP_host_map 2
#define GNTMAP_readonly 4
#define GNTMAP_contains_pte 16
#define GNTCOPY_dest_gref 2
#define GTF_permit_access 1
#define GTF_readonly 4
#define GENERAL_ERROR -1
#define BAD_REF -3
#define BAD_HANDLE -4
#define REF 20
#define MISSING 2 /* a page fault's error code: a store to what is not there */

struct grant_entry { uint16_t flags, domid; uint32_t frame; };
struct map { uint64_t host_addr; uint32_t flags, ref; uint16_t dom; int16_t status; uint32_t handle; uint64_t bus; };
struct unmap { uint64_t host_addr, bus; uint32_t handle; int16_t status; };
struct setup { uint16_t dom; uint32_t nr_frames; int16_t status; unsigned long *frame_list; };
struct end { unsigned long ref_or_gmfn; uint16_t domid, offset; };
struct copy { struct end source, dest; uint16_t len, flags; int16_t status; };

static char granted[4096] PAGE, window[4096] PAGE, other[4096] PAGE, grants[4096] PAGE;
static volatile struct grant_entry *entry = (struct grant_entry *)grants + REF;
static uint16_t self;

static long grant_op(unsigned int command, void *op)
{
	return hypercall(__HYPERVISOR_grant_table_op, command, (unsigned long)op, 1);
}

static uint16_t own_domid(void)
{
	struct { uint16_t dom, remote; uint32_t port; } alloc = { DOMID_SELF, DOMID_SELF, 0 };
	struct { uint16_t dom; uint32_t port, status, vcpu; uint16_t remote, pad; uint32_t rest; } status;

	hypercall(__HYPERVISOR_event_channel_op, EVTCHNOP_alloc_unbound, (unsigned long)&alloc, 0);
	status.dom = DOMID_SELF;
	status.port = alloc.port;
	hypercall(__HYPERVISOR_event_channel_op, EVTCHNOP_status, (unsigned long)&status, 0);
	return status.remote;
}

static void grant(const volatile void *page, uint16_t flags)
{
	*entry = (struct grant_entry){ flags, self, virt_to_mfn(page) };
}

static int map(uint64_t address, uint32_t flags, uint32_t ref, uint32_t *handle)
{
	struct map op = { .host_addr = address, .flags = flags, .ref = ref, .dom = self };

	check_equal("map_grant_ref", grant_op(GNTTABOP_map_grant_ref, &op), 0);
	*handle = op.handle;
	return op.status;
}

static int unmap(uint64_t address, uint64_t bus, uint32_t handle)
{
	struct unmap op = { address, bus, handle, 0 };

	check_equal("unmap_grant_ref", grant_op(GNTTABOP_unmap_grant_ref, &op), 0);
	return op.status;
}

#define AT(page) ((unsigned long)(page))

static void not_granted(void)
{
	uint32_t handle;

	*entry = (struct grant_entry){ 0 };
	check_equal("no grant", map(AT(window), GNTMAP_host_map, REF, &handle), GENERAL_ERROR);
	check_equal("beyond the table", map(AT(window), GNTMAP_host_map, -1u, &handle), BAD_REF);
	grant(granted, GTF_permit_access | GTF_readonly);
	check_equal("to write, what is to be read", map(AT(window), GNTMAP_host_map, REF, &handle),
		    GENERAL_ERROR);
	check_equal("in Xen", map(AT(XEN_START), GNTMAP_host_map | GNTMAP_readonly, REF, &handle),
		    GENERAL_ERROR);
	grant(granted, GTF_permit_access);
	entry->domid = 1234;
	check_equal("another's", map(AT(window), GNTMAP_host_map, REF, &handle), GENERAL_ERROR);
	grant(granted, GTF_permit_access);
	entry->frame = (*XEN_SLOT & PTE_ADDR) >> 12;
	check(map(AT(window), GNTMAP_host_map, REF, &handle) < 0, "Xen's frame");
}

static void a_granted_table(void)
{
	volatile uint64_t *l1 = l1_entry(window);
	struct copy op = { { virt_to_mfn(other), DOMID_SELF, 0 }, { REF, self, 0 }, 8, GNTCOPY_dest_gref, 0 };
	uint32_t handle;

	grant(l1, GTF_permit_access);
	check_equal("a table, to write", map(AT(window), GNTMAP_host_map, REF, &handle), GENERAL_ERROR);
	grant_op(GNTTABOP_copy, &op);
	check(op.status < 0, "a copy to a granted table");
	op.dest = (struct end){ virt_to_mfn(l1), DOMID_SELF, 0 };
	op.flags = 0;
	grant_op(GNTTABOP_copy, &op);
	check(op.status < 0, "a copy to a table");
	check_equal("to read", map(AT(window), GNTMAP_host_map | GNTMAP_readonly, REF, &handle), 0);
	check_equal("and then to write", mmu_update(virt_to_maddr(l1), *l1 | PTE_RW), -EBUSY);
	check_read_only("a store to a granted table", window + 9); /* aligned, dom0's is emulated */
	check_equal("unmap", unmap(AT(window), 0, handle), 0);
}

static void mismatches(void)
{
	volatile uint64_t *l1 = l1_entry(window);
	uint32_t handle, ignored;
	uint64_t was;

	grant(granted, GTF_permit_access);
	check_equal("map", map(AT(window), GNTMAP_host_map | GNTMAP_readonly, REF, &handle), 0);
	was = *l1;
	check_equal("to write", mmu_update(virt_to_maddr(l1), was | PTE_RW), 0);
	check_equal("another entry than it was", unmap(AT(window), 0, handle), GENERAL_ERROR);
	check_equal("as it was", mmu_update(virt_to_maddr(l1), was), 0);
	check_equal("another place", unmap(AT(other), 0, handle), GENERAL_ERROR);
	check_equal("in Xen", unmap(AT(XEN_START), 0, handle), GENERAL_ERROR);
	check_equal("another handle", unmap(AT(window), 0, handle + 1), BAD_HANDLE);
	check_equal("no handle", unmap(AT(window), 0, -1u), BAD_HANDLE);
	check_read_only("it is still there", window);
	check_equal("unmap", unmap(AT(window), 0, handle), 0);
	check_equal("twice", unmap(AT(window), 0, handle), BAD_HANDLE);
	TRY("movl $1, (%0)", "r"(window));
	check_equal("a store after it", last_trap.vector == PF ? last_trap.error : NO_TRAP, MISSING);

	uint32_t by_entry = GNTMAP_host_map | GNTMAP_contains_pte;

	check_equal("not aligned", map(virt_to_maddr(l1) + 4, by_entry, REF, &ignored), GENERAL_ERROR);
	check_equal("no table", map(virt_to_maddr(other), by_entry, REF, &ignored), GENERAL_ERROR);
	check_equal("an L2", map(virt_to_maddr(table_entry(2, window)), by_entry, REF, &ignored),
		    GENERAL_ERROR);
	check_equal("Xen's table", map(*XEN_SLOT & PTE_ADDR, by_entry, REF, &ignored), GENERAL_ERROR);
}

static void by_halves(void)
{
	uint64_t bus = virt_to_maddr(granted);
	uint32_t handle;

	check_equal("map both", map(AT(window), GNTMAP_host_map | GNTMAP_device_map, REF, &handle), 0);
	check_equal("in use", entry->flags >> 3 & 3, 3);
	check_equal("the CPU's", unmap(AT(window), 0, handle), 0);
	check_equal("that again", unmap(AT(window), 0, handle), 0);
	check_equal("still in use", entry->flags >> 3 & 3, 3);
	check(unmap(0, bus + 4096, handle) < 0, "another bus address");
	check_equal("the device's", unmap(0, bus, handle), 0);
	check_equal("nothing is left", unmap(AT(window), bus, handle), BAD_HANDLE);
	check_equal("not in use", entry->flags >> 3 & 3, 0);
	check_equal("to read alone", protect(granted), 0);
	check_equal("as a page table", pin_table(1, virt_to_mfn(granted)), 0);
	check_equal("unpin", mmuext(MMUEXT_UNPIN_TABLE, virt_to_mfn(granted), 0), 0);
}

void guest_main(void)
{
	unsigned long frame;
	struct setup setup = { DOMID_SELF, 1, 0, &frame };
	struct map probe = { .dom = DOMID_SELF };

	success();
	if (grant_op(GNTTABOP_map_grant_ref, &probe) == -EOPNOTSUPP)
		return; /* xen-shim has no grants to map */
	self = own_domid();
	check_equal("setup_table", grant_op(GNTTABOP_setup_table, &setup), 0);
	check_equal("its mapping", update_va_mapping(grants, entry_for(frame, PTE_WRITE)), 0);
	check_equal("as a page table", pin_table(1, frame), -EINVAL);
	not_granted();
	a_granted_table();
	mismatches();
	by_halves();
}
