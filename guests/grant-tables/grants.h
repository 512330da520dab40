/* Xen's public grant_table.h, as far as this guest uses it, and its table of either version. */
#ifndef GRANTS_H
#define GRANTS_H

#include "guest.h"

enum {
	GNTTABOP_map_grant_ref,
	GNTTABOP_unmap_grant_ref,
	GNTTABOP_setup_table,
	GNTTABOP_transfer = 4,
	GNTTABOP_copy,
	GNTTABOP_query_size,
	GNTTABOP_unmap_and_replace,
	GNTTABOP_set_version,
	GNTTABOP_get_status_frames,
	GNTTABOP_get_version,
	GNTTABOP_swap_grant_ref,
	GNTTABOP_cache_flush,
};

#define GTF_permit_access 1
#define GTF_accept_transfer 2
#define GTF_transitive 3
#define GTF_readonly 4
#define GTF_reading 8
#define GTF_writing 16
#define GTF_transfer_done (4 | 8) /* committed and completed */
#define GTF_sub_page 256

#define GNTMAP_device_map 1
#define GNTMAP_host_map 2
#define GNTMAP_readonly 4

#define GNTCOPY_source_gref 1
#define GNTCOPY_dest_gref 2

#define GNTST_general_error (-1)
#define GNTST_bad_domain (-2)
#define GNTST_bad_gntref (-3)
#define GNTST_bad_handle (-4)
#define GNTST_permission_denied (-8)
#define GNTST_bad_page (-9)
#define GNTST_bad_copy_arg (-10)
#define GNTST_eagain (-12)

#define EPERM 1
#define EBUSY 16
#define ERANGE 34
#define ENOSYS 38
#define EOPNOTSUPP 95

struct grant_entry_v1 {
	uint16_t flags, domid;
	uint32_t frame;
};

struct grant_entry_v2 {
	uint16_t flags, domid, page_off, length; /* trans_domid, in a transitive grant */
	uint64_t frame;			/* and the reference */
};

struct gnttab_map_grant_ref {
	uint64_t host_addr;
	uint32_t flags, ref;
	uint16_t dom;
	int16_t status;
	uint32_t handle;
	uint64_t dev_bus_addr;
};

struct gnttab_unmap_grant_ref {
	uint64_t host_addr, other_addr; /* dev_bus_addr, or new_addr to replace */
	uint32_t handle;
	int16_t status;
};

struct gnttab_setup_table {
	uint16_t dom;
	uint32_t nr_frames;
	int16_t status;
	unsigned long *frame_list;
};

struct gnttab_get_status_frames {
	uint32_t nr_frames;
	uint16_t dom;
	int16_t status;
	uint64_t *frame_list;
};

struct gnttab_transfer {
	unsigned long mfn;
	uint16_t domid;
	uint32_t ref;
	int16_t status;
};

struct gnttab_copy_ptr {
	union {
		uint32_t ref;
		unsigned long gmfn;
	} u;
	uint16_t domid, offset;
};

struct gnttab_copy {
	struct gnttab_copy_ptr source, dest;
	uint16_t len, flags;
	int16_t status;
};

struct gnttab_get_version {
	uint16_t dom, pad;
	uint32_t version;
};

struct gnttab_swap_grant_ref {
	uint32_t ref_a, ref_b;
	int16_t status;
};

static inline long grant_table_op(unsigned int command, void *op)
{
	return hypercall(__HYPERVISOR_grant_table_op, command, (unsigned long)op, 1);
}

/*
 * What differs between PV and PVH: where the guest sees frame 0 of the table and of its status,
 * what number a page has, and where a grant can be mapped: in `window`, or at a PVH guest's page
 * of that number.
 */
extern volatile union table {
	struct grant_entry_v1 v1[512];
	struct grant_entry_v2 v2[256];
} *table;
extern volatile uint16_t *status;
extern char window[4096];

int see_table(void);	     /* also in version 2; is it there? */
int see_status(void);	     /* in version 2 */
void leave_status(void);     /* see it no more, before version 1 comes back */
unsigned long frame_of(const void *page);
void only_here(uint16_t own); /* what is not the same in both */

long transfer(unsigned long mfn, uint16_t domid, uint32_t ref);

#endif
