"""Grant tables: which of a domain's frames other domains may use.

The table's frames are Xen's own, and Xen shares them with the guest, which fills the entries. In
version 1, the flags of an entry show how it is in use. Version 2 has larger entries, of more kinds.
It shows the use in frames of its own (status frames), which grow with the table.

A grant is from one domain, the granter, for another, the grantee. Only the grantee uses it. For
example, entry 0 of a guest's table names dom0 and the frame of the console's ring, as the toolstack
wrote it. So dom0 may map that frame.

The grantee is a guest, perhaps the granter itself, or dom0, whose backends map grants as guests do.
dom0 has granted nothing. Its table has the initial size.

A refused operation raises a `GrantError`, which becomes the operation's status, and not an errno.

Header: public/grant_table.h
In Xen: common/grant_table.c, booted with its defaults (gnttab=max-ver:2,transitive,transfer)
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final, NoReturn

from xenemu.abi.errno import EBUSY, EINVAL, ERANGE
from xenemu.abi.grant_table import (
    GNTTAB_NR_RESERVED_ENTRIES,
    GNTMAP_device_map,
    GNTMAP_host_map,
    GNTMAP_readonly,
    GNTST_bad_domain,
    GNTST_bad_gntref,
    GNTST_bad_page,
    GNTST_eagain,
    GNTST_general_error,
    GTF_permit_access,
    GTF_reading,
    GTF_readonly,
    GTF_sub_page,
    GTF_transitive,
    GTF_type_mask,
    GTF_writing,
    grant_entry_v1,
    grant_entry_v2,
)
from xenemu.errors import DomainCrash, XenError
from xenemu.hv.state.domain import DOM0, Domain
from xenemu.hv.state.grants import Active
from xenemu.x86.paging import PAGE_SHIFT, PAGE_SIZE, Maddr, Mfn

INITIAL_FRAMES: Final = 1
KINDS: Final = GNTMAP_device_map | GNTMAP_host_map

Entry = grant_entry_v1 | grant_entry_v2
ENTRY: Final[dict[int, type[Entry]]] = {1: grant_entry_v1, 2: grant_entry_v2}
ENTRY_SIZE: Final = {version: entry.sizeof(8) for version, entry in ENTRY.items()}  # and of 4
STATUS_SIZE: Final = 2  # a grant_status_t
# How many grant frames a status frame is for.
FRAMES_PER_STATUS_FRAME: Final = ENTRY_SIZE[2] // STATUS_SIZE

# The pin of a grant counts its uses, of each kind in a byte of its own.
GNTPIN_hstw_inc: Final = 1 << 0  # by the CPU, for writing
GNTPIN_hstr_inc: Final = 1 << 8
GNTPIN_devw_inc: Final = 1 << 16  # by a device
GNTPIN_devr_inc: Final = 1 << 24
GNTPIN_writers: Final = 0xFF << 0 | 0xFF << 16


def pin_increment(flags: int) -> int:
    """What a mapping with these flags adds to the pin of its grant."""
    incr = 0
    if flags & GNTMAP_device_map:
        incr |= GNTPIN_devr_inc if flags & GNTMAP_readonly else GNTPIN_devw_inc
    if flags & GNTMAP_host_map:
        incr |= GNTPIN_hstr_inc if flags & GNTMAP_readonly else GNTPIN_hstw_inc
    return incr


class GrantError(Exception):
    """An operation refused: the GNTST_* status for the guest, and why."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason


# The frames.


def nr_entries(domain: Domain) -> int:
    """How many entries the table has."""
    return len(domain.grants.frames) * PAGE_SIZE // ENTRY_SIZE[domain.grants.version]


def grow(domain: Domain, nr_frames: int) -> None:
    """Make the table at least `nr_frames` big, and never smaller than initially.

    GNTST_general_error: that is more than the domain may have, or the machine has none left.
    """
    grants = domain.grants
    if nr_frames > grants.max_frames:
        raise GrantError(
            GNTST_general_error,
            f"{nr_frames} grant frames asked for: the domain may have {grants.max_frames}",
        )
    nr_frames = max(nr_frames, INITIAL_FRAMES, len(grants.frames))
    nr_status = _status_frames_for(nr_frames) if grants.version == 2 else 0
    more = nr_frames - len(grants.frames)
    try:
        new = _take_frames(domain, more + nr_status - len(grants.status_frames))
    except XenError as error:
        raise GrantError(GNTST_general_error, error.reason) from None
    grants.frames += new[:more]
    grants.status_frames += new[more:]


def frame_at(domain: Domain, index: int, status: bool) -> Mfn:
    """A frame of the table, which grows to have it, or a status frame; EINVAL if it cannot."""
    frames = domain.grants.status_frames if status else domain.grants.frames
    if index >= len(frames):
        try:
            grow(domain, (index + 1) * (FRAMES_PER_STATUS_FRAME if status else 1))
        except GrantError as error:
            raise XenError(EINVAL, error.reason) from None
    return frames[index]


# Versions.


def set_version(domain: Domain, version: int) -> None:
    """Empty the table and lay it out anew; only the toolstack's entries are kept.

    EINVAL: no such version. EBUSY: another entry is in use, or a status frame is mapped.
    ERANGE: version 1 cannot say what a kept entry does. ENOMEM: no frames for version 2's
    status.
    """
    grants = domain.grants
    if version not in ENTRY:
        raise XenError(EINVAL, f"grant tables have no version {version}")
    if version == grants.version:
        return
    busy = [ref for ref in grants.active if ref >= GNTTAB_NR_RESERVED_ENTRIES]
    if busy:
        raise XenError(EBUSY, f"grant {busy[0]} is in use: the version cannot change")
    if version == 2:
        kept = _entries_for_v2(domain)
        grants.status_frames += _take_frames(domain, _status_frames_for(len(grants.frames)))
    else:
        kept = _entries_for_v1(domain)
        _drop_status_frames(domain)
    for mfn in grants.frames:
        domain.memory.clear_frame(mfn)
    grants.version = version
    for ref, (entry, status) in enumerate(kept):
        domain.memory.write(_entry_maddr(domain, ref), entry.pack(8))
        if version == 2:
            domain.memory.write_uint(_status_maddr(domain, ref), STATUS_SIZE, status)


def _entries_for_v2(domain: Domain) -> list[tuple[Entry, int]]:
    in_use = GTF_reading | GTF_writing
    return [
        (grant_entry_v2(old.flags & ~in_use, old.domid, 0, 0, old.frame), old.flags & in_use)
        for old in (read_entry(domain, ref) for ref in range(GNTTAB_NR_RESERVED_ENTRIES))
    ]


def _entries_for_v1(domain: Domain) -> list[tuple[Entry, int]]:
    kept: list[tuple[Entry, int]] = []
    for ref in range(GNTTAB_NR_RESERVED_ENTRIES):
        old, status = read_entry(domain, ref), read_status(domain, ref)
        kind = old.flags & GTF_type_mask
        if kind == GTF_transitive or (kind == GTF_permit_access and old.frame >> 32):
            raise XenError(ERANGE, f"grant {ref} cannot be said in version 1: {old}")
        if kind != GTF_permit_access:
            kept.append((grant_entry_v1(0, 0, 0), 0))
        else:
            kept.append((grant_entry_v1(old.flags | status, old.domid, old.frame), 0))
    return kept


def _drop_status_frames(domain: Domain) -> None:
    grants = domain.grants
    frames, p2m = domain.frames, domain.p2m
    for mfn in grants.status_frames:
        gfn = p2m.find(mfn) if p2m is not None else None
        if p2m is not None and gfn is not None:
            p2m.remove(gfn)
        if frames.count[mfn] == 1:
            continue
        reason = f"a status frame of the grant table is in use: {frames.describe(mfn)}"
        if p2m is None:
            raise XenError(EBUSY, reason)
        raise DomainCrash(reason)
    for mfn in grants.status_frames:
        frames.free_xen_frame(mfn)
    grants.status_frames.clear()


# Entries.


def read_entry(domain: Domain, ref: int) -> Entry:
    """Read an entry that exists."""
    data = domain.memory.read(_entry_maddr(domain, ref), ENTRY_SIZE[domain.grants.version])
    return ENTRY[domain.grants.version].unpack(8, data)


def write_entry(domain: Domain, ref: int, entry: Entry) -> None:
    """Write an entry that exists, in the table's version."""
    domain.memory.write(_entry_maddr(domain, ref), entry.pack(8))


def read_status(domain: Domain, ref: int) -> int:
    """GTF_reading and GTF_writing as the guest sees them, and what it wrote beside them."""
    return domain.memory.read_uint(_status_maddr(domain, ref), STATUS_SIZE)


def check_ref(domain: Domain, ref: int) -> None:
    """GNTST_bad_gntref unless the table has such an entry."""
    if ref >= nr_entries(domain):
        raise GrantError(
            GNTST_bad_gntref, f"there is no grant {ref}: the table has {nr_entries(domain)}"
        )


def seed(domain: Domain, ref: int, frame: int) -> None:
    """Grant a frame to dom0, as the toolstack does with the console's and xenstore's."""
    grow(domain, INITIAL_FRAMES)
    entry: Entry = grant_entry_v1(GTF_permit_access, DOM0, frame)
    if domain.grants.version == 2:  # a guest that is reset may have changed it
        entry = grant_entry_v2(GTF_permit_access, DOM0, 0, 0, frame)
        domain.memory.write_uint(_status_maddr(domain, ref), STATUS_SIZE, 0)
    write_entry(domain, ref, entry)


def swap(domain: Domain, ref_a: int, ref_b: int) -> None:
    """Swap two entries; GNTST_bad_gntref: no such entry; GNTST_eagain: one is in use."""
    for ref in (ref_a, ref_b):
        check_ref(domain, ref)
    if ref_a == ref_b:
        return
    for ref in (ref_a, ref_b):
        if ref in domain.grants.active:
            raise GrantError(GNTST_eagain, f"grant {ref} is in use")
    a, b = read_entry(domain, ref_a), read_entry(domain, ref_b)
    status_a, status_b = read_status(domain, ref_a), read_status(domain, ref_b)
    for ref, entry, status in ((ref_a, b, status_b), (ref_b, a, status_a)):
        write_entry(domain, ref, entry)
        domain.memory.write_uint(_status_maddr(domain, ref), STATUS_SIZE, status)


def _entry_maddr(domain: Domain, ref: int) -> Maddr:
    return _item(domain.grants.frames, ref, ENTRY_SIZE[domain.grants.version])


def _status_maddr(domain: Domain, ref: int) -> Maddr:
    if domain.grants.version == 1:
        return _entry_maddr(domain, ref)  # the flags are its first field
    return _item(domain.grants.status_frames, ref, STATUS_SIZE)


# Using a grant of this domain's. A `mapping` is of a whole frame; a copy need not be.


def acquire(domain: Domain, grantee: int, ref: int, incr: int, mapping: bool) -> Active:
    """Pin a grant that this domain has given to `grantee`, for the GNTPIN_*_inc in `incr`.

    GNTST_bad_gntref: no such entry. GNTST_general_error: the entry does not allow it, is in use
    by another, or is pinned too often. GNTST_bad_page: the frame is not this domain's.
    GNTST_bad_domain: the frame is no longer this domain's.
    """
    check_ref(domain, ref)
    active = domain.grants.active.get(ref)
    pin = active.pin if active is not None else 0
    if active is not None and active.domid != grantee:
        raise GrantError(
            GNTST_general_error, f"grant {ref} is in use by d{active.domid}, not d{grantee}"
        )
    if pin & incr << 7:
        raise GrantError(GNTST_general_error, f"grant {ref} is in use too often: {pin:#x}")
    entry = read_entry(domain, ref)
    writing = bool(incr & GNTPIN_writers)
    first = not pin or (writing and not pin & GNTPIN_writers)
    if first:
        _check_entry(domain, grantee, ref, entry, writing, pin=pin, mapping=mapping)
        _change_status(domain, ref, GTF_reading | (GTF_writing if writing else 0), 0)
    try:
        found = _frame_of(domain, grantee, ref, entry, first, mapping)
    except GrantError:
        _reduce_status_for_pin(domain, ref, pin, writing)
        raise
    if active is None:
        active = domain.grants.active[ref] = found
    active.pin += incr
    return active


def release(domain: Domain, ref: int, incr: int) -> None:
    """Undo `acquire`, and show the guest in the status what is left."""
    active = domain.grants.active[ref]
    active.pin -= incr
    writing = bool(incr & GNTPIN_writers)
    _reduce_status_for_pin(domain, ref, active.pin, writing)
    if not active.pin:
        del domain.grants.active[ref]


def _check_entry(
    domain: Domain,
    grantee: int,
    ref: int,
    entry: Entry,
    writing: bool,
    *,
    pin: int,
    mapping: bool,
) -> None:
    """Whether the guest's entry allows the use; a pinned entry was checked for the rest."""
    kind = entry.flags & (GTF_type_mask | (GTF_sub_page if mapping else 0))
    permits = kind == GTF_permit_access or (
        kind == GTF_transitive and domain.grants.version == 2 and not mapping
    )
    if not pin and not (permits and entry.domid == grantee):
        raise GrantError(
            GNTST_general_error,
            f"grant {ref} (flags {entry.flags:#x}, for d{entry.domid}) is not for "
            f"d{grantee} to {'map' if mapping else 'copy'}",
        )
    if writing and entry.flags & GTF_readonly:
        raise GrantError(GNTST_general_error, f"grant {ref} is for reading only")


def _frame_of(
    domain: Domain,
    grantee: int,
    ref: int,
    entry: Entry,
    first: bool,
    mapping: bool,
) -> Active:
    """What an entry grants now; a pinned grant keeps what it granted when it was pinned."""
    active = domain.grants.active.get(ref)
    v2 = entry if isinstance(entry, grant_entry_v2) else None
    if v2 is not None and not mapping and v2.flags & GTF_type_mask == GTF_transitive:
        _refuse_transitive(domain, ref, v2)
    if first and not (mapping and active is not None):
        new = Active(own_frame(domain, entry.frame), grantee)
        if v2 is not None and v2.flags & GTF_sub_page:
            new.start, new.length = v2.page_off, v2.length
        if active is not None and new != replace(active, pin=0):
            raise GrantError(
                GNTST_general_error, f"grant {ref} is in use, and is now for something else"
            )
        return new
    assert active is not None
    if domain.frames.owner[active.mfn] != domain.domid:
        status = GNTST_general_error if mapping else GNTST_bad_domain
        raise GrantError(status, f"{domain.frames.describe(active.mfn)} was granted as {ref}")
    return active


def _change_status(domain: Domain, ref: int, add: int, clear: int) -> None:
    maddr = _status_maddr(domain, ref)
    status = domain.memory.read_uint(maddr, STATUS_SIZE)
    domain.memory.write_uint(maddr, STATUS_SIZE, status & ~clear | add)


def _reduce_status_for_pin(domain: Domain, ref: int, pin: int, writing: bool) -> None:
    clear = 0 if pin else GTF_reading
    if writing and not pin & GNTPIN_writers:
        clear |= GTF_writing
    _change_status(domain, ref, 0, clear)


def find_domain(caller: Domain, domid: int) -> Domain | None:
    """The domain that grants something, or takes a grant; None is dom0.

    GNTST_bad_domain: there is no such domain.
    """
    if domid == DOM0:
        return None
    if domid not in caller.peers:
        raise GrantError(GNTST_bad_domain, f"there is no domain {domid}")
    return caller.peers[domid]


def refuse_dom0(ref: int) -> NoReturn:
    """What comes of the use of a grant of dom0's."""
    if ref >= INITIAL_FRAMES * PAGE_SIZE // ENTRY_SIZE[1]:
        raise GrantError(GNTST_bad_gntref, f"dom0 has no grant {ref}")
    raise GrantError(GNTST_general_error, f"dom0's grant {ref} is not for this domain")


def own_frame(domain: Domain, gfn: int) -> Mfn:
    """A frame of the domain's own; no reference is kept. GNTST_bad_page: it is another's."""
    try:
        mfn = domain.gfn_to_mfn(gfn)
        domain.frames.get_page(mfn, domain.domid)
    except XenError as error:
        raise GrantError(GNTST_bad_page, error.reason) from None
    domain.frames.put_page(mfn)
    return mfn


def _refuse_transitive(domain: Domain, ref: int, entry: grant_entry_v2) -> NoReturn:
    """A transitive grant leads to a grant of dom0's, which has granted nothing, or to none.

    Between guests it would lead on: to a third guest, of which no host has one yet.
    """
    if entry.trans_domid == domain.domid:
        raise GrantError(GNTST_general_error, f"transitive grant {ref} leads to its own domain")
    if entry.trans_domid != DOM0:
        raise GrantError(
            GNTST_general_error, f"transitive grant {ref} leads to d{entry.trans_domid}: no domain"
        )
    refuse_dom0(entry.gref)


def _status_frames_for(nr_frames: int) -> int:
    return -(-nr_frames // FRAMES_PER_STATUS_FRAME)


def _item(frames: list[Mfn], index: int, size: int) -> Maddr:
    frame, index = divmod(index, PAGE_SIZE // size)
    return Maddr((frames[frame] << PAGE_SHIFT) + size * index)


def _take_frames(domain: Domain, nr_frames: int) -> list[Mfn]:
    """Share new frames of Xen's with the domain; ENOMEM, and none taken, if there are too few."""
    taken: list[Mfn] = []
    try:
        for _ in range(nr_frames):
            taken.append(domain.frames.alloc_xen_frame())
    except XenError:
        for mfn in reversed(taken):
            domain.frames.free_xen_frame(mfn)
        raise
    for mfn in taken:
        domain.frames.share_with_guest(mfn, domain.domid, writable=True)
    return taken
