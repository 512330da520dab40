"""Grant tables: entries, commands, their arguments and status codes.

Header: public/grant_table.h
"""

from __future__ import annotations

from typing import Annotated, Final

from xenemu.abi.layout import HANDLE, S16, U16, U32, U64, ULONG, Struct, blob

GNTTAB_NR_RESERVED_ENTRIES: Final = 8
GNTTAB_RESERVED_CONSOLE: Final = 0
GNTTAB_RESERVED_XENSTORE: Final = 1

GTF_invalid: Final = 0
GTF_permit_access: Final = 1
GTF_accept_transfer: Final = 2
GTF_transitive: Final = 3
GTF_type_mask: Final = 3
GTF_readonly: Final = 1 << 2
GTF_reading: Final = 1 << 3
GTF_writing: Final = 1 << 4
GTF_sub_page: Final = 1 << 8
GTF_transfer_committed: Final = 1 << 2
GTF_transfer_completed: Final = 1 << 3

GNTTABOP_map_grant_ref: Final = 0
GNTTABOP_unmap_grant_ref: Final = 1
GNTTABOP_setup_table: Final = 2
GNTTABOP_dump_table: Final = 3
GNTTABOP_transfer: Final = 4
GNTTABOP_copy: Final = 5
GNTTABOP_query_size: Final = 6
GNTTABOP_unmap_and_replace: Final = 7
GNTTABOP_set_version: Final = 8
GNTTABOP_get_status_frames: Final = 9
GNTTABOP_get_version: Final = 10
GNTTABOP_swap_grant_ref: Final = 11
GNTTABOP_cache_flush: Final = 12

GNTCOPY_source_gref: Final = 1 << 0
GNTCOPY_dest_gref: Final = 1 << 1

GNTTAB_CACHE_CLEAN: Final = 1 << 0
GNTTAB_CACHE_INVAL: Final = 1 << 1

GNTMAP_device_map: Final = 1 << 0
GNTMAP_host_map: Final = 1 << 1
GNTMAP_readonly: Final = 1 << 2
GNTMAP_application_map: Final = 1 << 3
GNTMAP_contains_pte: Final = 1 << 4
GNTMAP_guest_avail0: Final = 16  # the shift of the bits for the entry's AVAIL field

GNTST_okay: Final = 0
GNTST_general_error: Final = -1
GNTST_bad_domain: Final = -2
GNTST_bad_gntref: Final = -3
GNTST_bad_handle: Final = -4
GNTST_bad_virt_addr: Final = -5
GNTST_bad_dev_addr: Final = -6
GNTST_no_device_space: Final = -7
GNTST_permission_denied: Final = -8
GNTST_bad_page: Final = -9
GNTST_bad_copy_arg: Final = -10
GNTST_address_too_big: Final = -11
GNTST_eagain: Final = -12
GNTST_no_space: Final = -13

GNTST_NAMES: Final = {
    value: name for name, value in globals().copy().items() if name.startswith("GNTST_")
}


class grant_entry_v1(Struct, size=(8, 8)):
    """What one domain lets another do with a frame."""

    flags: U16
    domid: U16
    frame: U32


class grant_entry_v2(Struct, size=(16, 16)):
    """An entry in version 2: a union, of which only the first two fields are always there.

    `page_off` and `length` belong to a sub-page grant. A transitive grant stands for a grant that
    another domain made. It has `trans_domid` and `gref` in their place, and in the place of
    `frame`.
    """

    flags: U16
    domid: U16
    page_off: U16
    length: U16
    frame: U64

    @property
    def trans_domid(self) -> int:
        return self.page_off

    @property
    def gref(self) -> int:
        return self.frame & 0xFFFFFFFF


class gnttab_map_grant_ref(Struct, size=(32, 32)):
    """Map a grant; `status`, `handle` and `dev_bus_addr` are OUT."""

    host_addr: U64
    flags: U32
    ref: U32
    dom: U16
    status: S16
    handle: U32
    dev_bus_addr: U64


class gnttab_unmap_grant_ref(Struct, size=(24, 24)):
    """Undo a mapping; `status` is OUT."""

    host_addr: U64
    dev_bus_addr: U64
    handle: U32
    status: S16


class gnttab_setup_table(Struct, size=(24, 16)):
    """Ask for the frames of the table; `status` and what `frame_list` leads to are OUT."""

    dom: U16
    nr_frames: U32
    status: S16
    frame_list: HANDLE


class gnttab_transfer(Struct, size=(24, 16)):
    """Give a page to the domain whose grant `ref` accepts one; `status` is OUT."""

    mfn: ULONG
    domid: U16
    ref: U32
    status: S16


class gnttab_copy(Struct, size=(40, 24)):
    """Copy within or between frames, named by grant or by gmfn; `status` is OUT."""

    source_u: ULONG
    source_domid: U16
    source_offset: U16
    dest_u: ULONG
    dest_domid: U16
    dest_offset: U16
    dest_pad: Annotated[bytes, blob(4, 4, 0, 1)]
    len: U16
    flags: U16
    status: S16


class gnttab_query_size(Struct, size=(16, 16)):
    """Ask how big the table is and may become; all but `dom` is OUT."""

    dom: U16
    nr_frames: U32
    max_nr_frames: U32
    status: S16


class gnttab_unmap_and_replace(Struct, size=(24, 24)):
    """Undo a mapping, moving another entry in its place; `status` is OUT."""

    host_addr: U64
    new_addr: U64
    handle: U32
    status: S16


class gnttab_set_version(Struct, size=(4, 4)):
    """Ask for a version of the table's layout; it holds the one in use afterwards."""

    version: U32


class gnttab_get_status_frames(Struct, size=(16, 12)):
    """Ask for the status frames of a version 2 table."""

    nr_frames: U32
    dom: U16
    status: S16
    frame_list: HANDLE


class gnttab_get_version(Struct, size=(8, 8)):
    """Ask for the version in use; `version` is OUT."""

    dom: U16
    pad: U16
    version: U32


class gnttab_swap_grant_ref(Struct, size=(12, 12)):
    """Swap the contents of two entries; `status` is OUT."""

    ref_a: U32
    ref_b: U32
    status: S16


class gnttab_cache_flush(Struct, size=(16, 16)):
    """Flush the cache lines of a part of a frame."""

    dev_bus_addr: U64
    offset: U16
    length: U16
    op: U32
