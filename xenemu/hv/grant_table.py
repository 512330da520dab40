"""Grant tables, version 1: which of a domain's frames other domains may use.

The table's frames are Xen's own, shared with the guest, which fills its entries. There is one
guest here: the domain that a grant is for is dom0, whose backends need no grant to reach guest
memory, or the domain itself. dom0 has granted nothing, in a table of the initial size.

Refusals are `GrantError`s: they become the status of one operation, not an errno.

Header: public/grant_table.h
In Xen: common/grant_table.c
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from xenemu.abi.errno import ENOMEM
from xenemu.abi.grant_table import (
    GNTMAP_device_map,
    GNTMAP_host_map,
    GNTMAP_readonly,
    GNTST_bad_copy_arg,
    GNTST_bad_dev_addr,
    GNTST_bad_domain,
    GNTST_bad_gntref,
    GNTST_bad_handle,
    GNTST_bad_page,
    GNTST_eagain,
    GNTST_general_error,
    GNTST_no_space,
    GNTST_permission_denied,
    GTF_permit_access,
    GTF_reading,
    GTF_readonly,
    GTF_type_mask,
    GTF_writing,
    grant_entry_v1,
)
from xenemu.abi.xen import DOMID_SELF
from xenemu.errors import XenError
from xenemu.hv.frame_table import PGT_writable_page
from xenemu.x86.paging import PAGE_SHIFT, PAGE_SIZE, Maddr, Mfn

if TYPE_CHECKING:
    from xenemu.hv.domain import Domain

DOM0: Final = 0
INITIAL_FRAMES: Final = 1
MAX_FRAMES: Final = 64  # xl.cfg's max_grant_frames
MAX_MAPPINGS: Final = 1024 * 256  # xl.cfg's max_maptrack_frames, in entries
MAX_PINS: Final = 255  # of each kind; Xen counts in a byte
ENTRY_SIZE: Final = grant_entry_v1.sizeof(8)  # the same in both widths
ENTRIES_PER_FRAME: Final = PAGE_SIZE // ENTRY_SIZE

KINDS: Final = GNTMAP_device_map | GNTMAP_host_map


class GrantError(Exception):
    """An operation refused: the GNTST_* status for the guest, and why."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason


@dataclass
class Active:
    """A grant in use: by whom, of which frame, how often for reading and for writing."""

    domid: int
    mfn: Mfn
    readers: int = 0
    writers: int = 0


@dataclass(frozen=True)
class Mapping:
    """One mapping that this domain made, and the kinds of it (GNTMAP_*) that are left."""

    ref: int
    flags: int


@dataclass
class GrantTable:
    """A domain's grant table, and the mappings that it made of its own grants."""

    frames: list[Mfn] = field(default_factory=list)
    max_frames: int = MAX_FRAMES
    active: dict[int, Active] = field(default_factory=dict)  # by grant reference
    mappings: dict[int, Mapping] = field(default_factory=dict)  # by handle
    free_handles: list[int] = field(default_factory=list)

    # The table itself.

    @property
    def nr_entries(self) -> int:
        return len(self.frames) * ENTRIES_PER_FRAME

    def grow(self, domain: Domain, nr_frames: int) -> None:
        """Make the table at least `nr_frames` big, and never smaller than initially.

        GNTST_general_error: that is more than the domain may have, or the machine has none left.
        """
        if nr_frames > self.max_frames:
            raise GrantError(
                GNTST_general_error,
                f"{nr_frames} grant frames asked for: the domain may have {self.max_frames}",
            )
        while len(self.frames) < max(nr_frames, INITIAL_FRAMES):
            try:
                mfn = domain.frames.alloc_xen_frame()
            except XenError as error:
                assert error.errno == ENOMEM
                raise GrantError(GNTST_general_error, error.reason) from None
            domain.frames.share_with_guest(mfn, domain.domid, writable=True)
            self.frames.append(mfn)

    def seed(self, domain: Domain, ref: int, frame: int) -> None:
        """Grant a frame to dom0, as the toolstack does with the console's and xenstore's."""
        self.grow(domain, INITIAL_FRAMES)
        entry = grant_entry_v1(GTF_permit_access, DOM0, frame)
        domain.memory.write(self._entry_maddr(ref), entry.pack(8))

    def entry(self, domain: Domain, ref: int) -> grant_entry_v1:
        """Read an entry that exists."""
        return grant_entry_v1.unpack(8, domain.memory.read(self._entry_maddr(ref), ENTRY_SIZE))

    def swap(self, domain: Domain, ref_a: int, ref_b: int) -> None:
        """Swap two entries; GNTST_bad_gntref: no such entry; GNTST_eagain: one is in use."""
        for ref in (ref_a, ref_b):
            self._check_ref(ref)
        if ref_a == ref_b:
            return
        for ref in (ref_a, ref_b):
            if ref in self.active:
                raise GrantError(GNTST_eagain, f"grant {ref} is in use")
        a, b = self.entry(domain, ref_a), self.entry(domain, ref_b)
        domain.memory.write(self._entry_maddr(ref_a), b.pack(8))
        domain.memory.write(self._entry_maddr(ref_b), a.pack(8))

    # Using a grant of this domain's own.

    def acquire(self, domain: Domain, ref: int, writing: bool) -> Mfn:
        """Pin a grant that this domain has given to itself; return its frame.

        GNTST_bad_gntref: no such entry; GNTST_general_error: the entry does not allow it, or is
        pinned too often; GNTST_bad_page: the frame is not this domain's.
        """
        self._check_ref(ref)
        active = self.active.get(ref)
        if active is not None and (active.writers if writing else active.readers) >= MAX_PINS:
            raise GrantError(GNTST_general_error, f"grant {ref} is in use too often")
        if active is None or (writing and not active.writers):
            self._check_entry(domain, ref, pinned=active is not None, writing=writing)
        if active is None:
            mfn = _own_frame(domain, self.entry(domain, ref).frame)
            active = self.active[ref] = Active(domain.domid, mfn)
        if writing:
            active.writers += 1
        else:
            active.readers += 1
        self._change_flags(domain, ref, GTF_reading | (GTF_writing if writing else 0), 0)
        return active.mfn

    def release(self, domain: Domain, ref: int, writing: bool) -> None:
        """Undo `acquire`, and show the guest in the entry's flags what is left."""
        active = self.active[ref]
        if writing:
            active.writers -= 1
        else:
            active.readers -= 1
        clear = 0 if active.readers or active.writers else GTF_reading
        if writing and not active.writers:
            clear |= GTF_writing
        self._change_flags(domain, ref, 0, clear)
        if not (active.readers or active.writers):
            del self.active[ref]

    # Mapping for devices. There is no IOMMU: it only pins the grant and the frame's type.

    def map(self, domain: Domain, domid: int, ref: int, flags: int) -> tuple[int, Mfn]:
        """Pin a grant for the kinds of mapping in `flags`; return a handle and the frame.

        The caller makes the host mapping, and undoes this if it cannot. GNTST_bad_gntref: no
        kind, or no such entry; GNTST_bad_domain: no such domain; GNTST_no_space: no handle is
        left; GNTST_general_error, GNTST_bad_page: as `acquire`.
        """
        if not flags & KINDS:
            raise GrantError(GNTST_bad_gntref, f"map flags {flags:#x} ask for no mapping")
        if domid == DOM0:
            _refuse_dom0(ref)
        if domid != domain.domid:
            raise GrantError(GNTST_bad_domain, f"there is no domain {domid}")
        if len(self.mappings) >= MAX_MAPPINGS:
            raise GrantError(GNTST_no_space, "all handles for mappings are in use")
        writing = not flags & GNTMAP_readonly
        pins = 0
        try:
            for _ in range((flags & KINDS).bit_count()):
                mfn = self.acquire(domain, ref, writing)
                pins += 1
            if flags & GNTMAP_device_map:
                _hold_for_device(domain, mfn, writing)
        except GrantError:
            for _ in range(pins):
                self.release(domain, ref, writing)
            raise
        handle = self.free_handles.pop() if self.free_handles else len(self.mappings)
        self.mappings[handle] = Mapping(ref, flags)
        return handle, mfn

    def mapping(self, handle: int) -> Mapping:
        """Look up a handle; GNTST_bad_handle."""
        if handle not in self.mappings:
            raise GrantError(GNTST_bad_handle, f"{handle:#x} is not the handle of a mapping")
        return self.mappings[handle]

    def unmap(self, domain: Domain, handle: int, kinds: int) -> None:
        """Drop what `map` holds for some kinds of a mapping; the last one frees the handle."""
        mapping = self.mapping(handle)
        writing = not mapping.flags & GNTMAP_readonly
        kinds &= mapping.flags & KINDS
        mfn = self.active[mapping.ref].mfn
        if kinds & GNTMAP_device_map:
            _drop_for_device(domain, mfn, writing)
        for _ in range(kinds.bit_count()):
            self.release(domain, mapping.ref, writing)
        left = mapping.flags & ~kinds
        if left & KINDS:
            self.mappings[handle] = Mapping(mapping.ref, left)
        else:
            del self.mappings[handle]
            self.free_handles.append(handle)

    # Inside.

    def _entry_maddr(self, ref: int) -> Maddr:
        frame, index = divmod(ref, ENTRIES_PER_FRAME)
        return Maddr((self.frames[frame] << PAGE_SHIFT) + ENTRY_SIZE * index)

    def _check_ref(self, ref: int) -> None:
        if ref >= self.nr_entries:
            raise GrantError(
                GNTST_bad_gntref, f"there is no grant {ref}: the table has {self.nr_entries}"
            )

    def _check_entry(self, domain: Domain, ref: int, pinned: bool, writing: bool) -> None:
        """Whether the guest's entry allows the use; what is pinned was checked for the rest."""
        entry = self.entry(domain, ref)
        permits = entry.flags & GTF_type_mask == GTF_permit_access
        if not pinned and not (permits and entry.domid == domain.domid):
            raise GrantError(
                GNTST_general_error,
                f"grant {ref} (flags {entry.flags:#x}, for d{entry.domid}) is not for "
                f"d{domain.domid}",
            )
        if writing and entry.flags & GTF_readonly:
            raise GrantError(GNTST_general_error, f"grant {ref} is for reading only")

    def _change_flags(self, domain: Domain, ref: int, add: int, clear: int) -> None:
        maddr = self._entry_maddr(ref)
        flags = domain.memory.read_uint(maddr, 2)
        domain.memory.write_uint(maddr, 2, flags & ~clear | add)


@dataclass(frozen=True)
class CopyEnd:
    """One end of a copy: a grant, or a frame of the domain's own by gmfn."""

    by_ref: bool
    ref_or_gmfn: int
    domid: int
    offset: int


def copy(domain: Domain, source: CopyEnd, dest: CopyEnd, length: int) -> None:
    """Copy bytes between two frames; nothing is copied on any error.

    GNTST_permission_denied: a frame of another domain by number; GNTST_bad_domain: no such
    domain; GNTST_bad_copy_arg: it crosses a page; GNTST_bad_gntref, GNTST_general_error,
    GNTST_bad_page: as `GrantTable.acquire`, or the destination may not be written.
    """
    if not length:
        return
    for end in (source, dest):
        _check_domain(domain, end)
    from_mfn = _claim(domain, source, writing=False)
    try:
        to_mfn = _claim(domain, dest, writing=True)
        try:
            _copy_bytes(domain, from_mfn, source.offset, to_mfn, dest.offset, length)
        finally:
            _unclaim(domain, dest, writing=True)
    finally:
        _unclaim(domain, source, writing=False)


def _copy_bytes(
    domain: Domain, from_mfn: Mfn, from_offset: int, to_mfn: Mfn, to_offset: int, length: int
) -> None:
    if max(from_offset, to_offset) + length > PAGE_SIZE:
        raise GrantError(GNTST_bad_copy_arg, f"a copy of {length} bytes crosses a page")
    try:
        domain.frames.get_page_type(to_mfn, PGT_writable_page)
    except XenError as error:
        raise GrantError(GNTST_general_error, error.reason) from None
    data = domain.memory.read(Maddr((from_mfn << PAGE_SHIFT) + from_offset), length)
    domain.memory.write(Maddr((to_mfn << PAGE_SHIFT) + to_offset), data)
    domain.frames.put_page_type(to_mfn)


def _check_domain(domain: Domain, end: CopyEnd) -> None:
    if end.domid != DOMID_SELF and not end.by_ref:
        raise GrantError(GNTST_permission_denied, "only DOMID_SELF's frames go by number")
    if end.domid not in (DOMID_SELF, domain.domid, DOM0):
        raise GrantError(GNTST_bad_domain, f"there is no domain {end.domid}")


def _claim(domain: Domain, end: CopyEnd, writing: bool) -> Mfn:
    if not end.by_ref:
        return _own_frame(domain, end.ref_or_gmfn)
    if end.domid == DOM0:
        _refuse_dom0(end.ref_or_gmfn)
    return domain.grants.acquire(domain, end.ref_or_gmfn, writing)


def _unclaim(domain: Domain, end: CopyEnd, writing: bool) -> None:
    if end.by_ref:
        domain.grants.release(domain, end.ref_or_gmfn, writing)


def _refuse_dom0(ref: int) -> None:
    if ref >= INITIAL_FRAMES * ENTRIES_PER_FRAME:
        raise GrantError(GNTST_bad_gntref, f"dom0 has no grant {ref}")
    raise GrantError(GNTST_general_error, f"dom0's grant {ref} is not for this domain")


def _own_frame(domain: Domain, gfn: int) -> Mfn:
    """A frame of the domain's own; no reference is kept. GNTST_bad_page: it is not."""
    try:
        mfn = domain.gfn_to_mfn(gfn)
        domain.frames.get_page(mfn, domain.domid)
    except XenError as error:
        raise GrantError(GNTST_bad_page, error.reason) from None
    domain.frames.put_page(mfn)
    return mfn


def _hold_for_device(domain: Domain, mfn: Mfn, writing: bool) -> None:
    try:
        if writing:
            domain.frames.get_page_and_type(mfn, domain.domid, PGT_writable_page)
        else:
            domain.frames.get_page(mfn, domain.domid)
    except XenError as error:
        raise GrantError(GNTST_general_error, error.reason) from None


def _drop_for_device(domain: Domain, mfn: Mfn, writing: bool) -> None:
    if writing:
        domain.frames.put_page_and_type(mfn)
    else:
        domain.frames.put_page(mfn)


def check_bus_address(domain: Domain, mapping: Mapping, dev_bus_addr: int) -> None:
    """GNTST_bad_dev_addr unless a bus address, where one counts, is that of the mapped frame."""
    mfn = domain.grants.active[mapping.ref].mfn
    if dev_bus_addr and mapping.flags & GNTMAP_device_map and dev_bus_addr != mfn << PAGE_SHIFT:
        raise GrantError(GNTST_bad_dev_addr, f"bus address {dev_bus_addr:#x} is not {mfn:#x}'s")
