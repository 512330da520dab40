/*
 * Grant tables say which of a guest's frames another domain may use. A guest may also grant to
 * itself, and such a grant takes the same ways through Xen.
 *
 * Success: in both versions of the table, a grant does what its entry says and no more. The status
 * shows that the grant is in use. A refused operation changes nothing.
 */
#include "grants.h"

#define REF 9
#define NONE 10
#define BEYOND 0xffffffff

char granted[4096] __attribute__((aligned(4096)));
static char other[4096] __attribute__((aligned(4096)));
static uint16_t self; /* this domain's id */
static int version = 1;

static void grant(uint32_t ref, uint16_t flags, uint16_t domid, uint64_t frame)
{
	if (version == 1)
		table->v1[ref] = (struct grant_entry_v1){ flags, domid, frame };
	else
		table->v2[ref] = (struct grant_entry_v2){ flags, domid, 0, 0, frame };
}

static int in_use(uint32_t ref)
{
	return (version == 1 ? table->v1[ref].flags : status[ref]) & (GTF_reading | GTF_writing);
}

static long get_version(uint16_t dom)
{
	struct gnttab_get_version op = { dom, 0, 0 };
	long result = grant_table_op(GNTTABOP_get_version, &op);

	return result ? result : (long)op.version;
}

static long set_version(uint32_t wanted)
{
	long result = grant_table_op(GNTTABOP_set_version, &wanted);

	if (!result)
		version = wanted;
	check_equal("the version that is told", wanted, version);
	return result;
}

/* Only a domain's own version is its business: of all others it gets an errno. */
static int find_self(void)
{
	while (get_version(self) < 0)
		if (++self == DOMID_SELF)
			return 0;
	return 1;
}

static struct gnttab_map_grant_ref map(uint32_t ref, uint32_t flags, uint16_t dom)
{
	struct gnttab_map_grant_ref op = { (unsigned long)window, flags, ref, dom, 99, 0, 0 };

	check_equal("map_grant_ref", grant_table_op(GNTTABOP_map_grant_ref, &op), 0);
	return op;
}

static long unmap(uint32_t handle)
{
	struct gnttab_unmap_grant_ref op = { (unsigned long)window, 0, handle, 99 };

	check_equal("unmap_grant_ref", grant_table_op(GNTTABOP_unmap_grant_ref, &op), 0);
	return op.status;
}

/* Copy a byte from a grant to `other`, or the other way. */
static long copy(uint32_t ref, unsigned int offset, int to_grant)
{
	struct gnttab_copy_ptr theirs = { { .ref = ref }, self, offset };
	struct gnttab_copy_ptr ours = { { .gmfn = frame_of(other) }, DOMID_SELF, 7 };
	struct gnttab_copy op = { theirs, ours, 1, GNTCOPY_source_gref, 99 };

	if (to_grant)
		op = (struct gnttab_copy){ ours, theirs, 1, GNTCOPY_dest_gref, 99 };
	check_equal("copy", grant_table_op(GNTTABOP_copy, &op), 0);
	return op.status;
}

static long swap(uint32_t a, uint32_t b)
{
	struct gnttab_swap_grant_ref op = { a, b, 99 };

	check_equal("swap_grant_ref", grant_table_op(GNTTABOP_swap_grant_ref, &op), 0);
	return op.status;
}

long transfer(unsigned long mfn, uint16_t domid, uint32_t ref)
{
	struct gnttab_transfer op = { mfn, domid, ref, 99 };
	long result = grant_table_op(GNTTABOP_transfer, &op);

	return result ? result : op.status;
}

static void copies(void)
{
	struct gnttab_copy nothing = { .source = { { .ref = BEYOND }, self, 0 },
				       .dest.domid = self,
				       .flags = GNTCOPY_source_gref };

	check_equal("a copy of nothing", grant_table_op(GNTTABOP_copy, &nothing), 0);
	check_equal("its status", nothing.status, GNTST_bad_gntref);
	nothing.flags = 0;
	check_equal("a copy by number", grant_table_op(GNTTABOP_copy, &nothing), 0);
	check_equal("its status", nothing.status, GNTST_permission_denied);
	grant(REF, GTF_permit_access, self, frame_of(granted));
	granted[5] = 'g';
	check_equal("a copy from a grant", copy(REF, 5, 0), 0);
	check_equal("what was copied", other[7], 'g');
	other[7] = 'o';
	check_equal("a copy to a grant", copy(REF, 4095, 1), 0);
	check_equal("what was copied back", granted[4095], 'o');
	check_equal("in use after copies", in_use(REF), 0);
	check_equal("a copy beyond the page", copy(REF, 4096, 0), GNTST_bad_copy_arg);
	check_equal("a copy from no grant", copy(NONE, 0, 0), GNTST_general_error);
	check_equal("a copy from beyond the table", copy(BEYOND, 0, 0), GNTST_bad_gntref);
	grant(REF, GTF_permit_access | GTF_readonly, self, frame_of(granted));
	check_equal("a copy from a read-only grant", copy(REF, 5, 0), 0);
	check_equal("a copy to it", copy(REF, 5, 1), GNTST_general_error);
	grant(REF, GTF_permit_access, self, ~0u);
	check_equal("a copy from no frame", copy(REF, 5, 0), GNTST_bad_page);
	check_equal("in use after refusals", in_use(REF), 0);
}

static void refused_mappings(void)
{
	grant(REF, GTF_permit_access | GTF_readonly, self, frame_of(granted));
	check_equal("map nothing", map(REF, GNTMAP_readonly, self).status, GNTST_bad_gntref);
	check_equal("map a read-only grant", map(REF, GNTMAP_host_map, self).status,
		    GNTST_general_error);
	check_equal("map no grant", map(NONE, GNTMAP_host_map, self).status, GNTST_general_error);
	check_equal("map beyond the table", map(BEYOND, GNTMAP_host_map, self).status,
		    GNTST_bad_gntref);
	check_equal("map nobody's", map(REF, GNTMAP_host_map, DOMID_SELF).status, GNTST_bad_domain);
	check_equal("in use after refused mappings", in_use(REF), 0);
}

/* A PVH guest's own frame is gone after it was mapped: this comes last there. */
static void mappings(void)
{
	grant(REF, GTF_permit_access, self, frame_of(granted));
	granted[9] = 'm';

	struct gnttab_map_grant_ref first = map(REF, GNTMAP_host_map, self);

	check_equal("a mapping", first.status, 0);
	check_equal("what it shows", *(volatile char *)&window[9], 'm');
	*(volatile char *)&window[9] = 'w';
	check_equal("in use while mapped", in_use(REF), GTF_reading | GTF_writing);
	check_equal("a copy while it is mapped", copy(REF, 9, 0), 0);
	check_equal("what was written through it", other[7], 'w');
	check_equal("in use after the copy", in_use(REF), GTF_reading | GTF_writing);
	grant(REF, GTF_reading | GTF_writing, 0, ~0u);
	*(volatile char *)&window[9] = 'k';
	check_equal("a copy once it grants nothing", copy(REF, 9, 0), 0);
	check_equal("of what is still mapped", other[7], 'k');
	check_equal("swap while it is mapped", swap(REF, NONE), GNTST_eagain);
	check_equal("set_version while it is mapped", set_version(3 - version), -EBUSY);
	check_equal("unmap", unmap(first.handle), 0);
	check_equal("unmap again", unmap(first.handle), GNTST_bad_handle);
	check_equal("in use after unmap", in_use(REF), 0);
}

static void swaps(void)
{
	grant(REF, GTF_permit_access, self, 5);
	grant(NONE, 0, 0, 0);
	check_equal("swap", swap(REF, NONE), 0);
	check_equal("the entry's new place",
		    version == 1 ? table->v1[NONE].frame : table->v2[NONE].frame, 5);
	check_equal("swap beyond the table", swap(REF, BEYOND), GNTST_bad_gntref);
	check_equal("swap back", swap(REF, NONE), 0);
	check_equal("its old place", version == 1 ? table->v1[NONE].flags : table->v2[NONE].flags,
		    0);
}

static void parts_of_pages(void)
{
	table->v2[REF] = (struct grant_entry_v2){ GTF_permit_access | GTF_sub_page, self, 16, 8,
						  frame_of(granted) };
	granted[16] = granted[23] = 's';
	check_equal("copy its first byte", copy(REF, 16, 0), 0);
	check_equal("copy its last byte", copy(REF, 23, 0), 0);
	check_equal("copy the byte before", copy(REF, 15, 0), GNTST_general_error);
	check_equal("copy the byte after it", copy(REF, 24, 1), GNTST_general_error);
	check_equal("map it", map(REF, GNTMAP_host_map, self).status, GNTST_general_error);
	table->v2[REF] = (struct grant_entry_v2){ GTF_transitive, self, self, 0, NONE };
	check_equal("copy what leads to oneself", copy(REF, 16, 0), GNTST_general_error);
	check_equal("map what leads on", map(REF, GNTMAP_host_map, self).status,
		    GNTST_general_error);
	check_equal("in use after refused parts", in_use(REF), 0);
}

static void versions(void)
{
	struct grant_entry_v1 kept = table->v1[1];

	check_equal("set_version 3", set_version(3), -22);
	check_equal("set_version 2", set_version(2), 0);
	check_equal("get_version", get_version(DOMID_SELF), 2);
	check_equal("an entry of version 1", table->v2[REF].flags, 0);
	check_equal("a kept entry's flags", table->v2[1].flags,
		    kept.flags & ~(GTF_reading | GTF_writing));
	check_equal("a kept entry's frame", table->v2[1].frame, kept.frame);
	check(see_status(), "no status frame");
	copies();
	refused_mappings();
	swaps();
	parts_of_pages();
	table->v2[7] = (struct grant_entry_v2){ GTF_permit_access, self, 0, 0, 1ull << 32 };
	check_equal("what version 1 cannot say", set_version(1), -ERANGE);
	table->v2[7].flags = 0;
	mappings();
	leave_status();
	check_equal("set_version 1", set_version(1), 0);
	check_equal("a kept entry's flags", table->v1[1].flags, kept.flags);
	check_equal("a kept entry's frame", table->v1[1].frame, kept.frame);
}

void guest_main(void)
{
	long result = get_version(DOMID_SELF);

	if (result == -ENOSYS || result == -EOPNOTSUPP) {
		skip("this hypervisor keeps no grant tables");
		return;
	}
	check_equal("the first version", result, 1);
	if (!find_self() || !see_table()) {
		error("no grant table");
		return;
	}
	check_equal("in version 1, status", see_status(), 0);
	copies();
	refused_mappings();
	swaps();
	if (start_info())
		mappings();
	only_here(self);
	versions();
	success();
}
