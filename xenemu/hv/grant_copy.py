"""Copying between two frames, each named by a grant or, if it is the domain's own, by number.

Header: public/grant_table.h
In Xen: common/grant_table.c (gnttab_copy)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from xenemu.abi.grant_table import (
    GNTST_bad_copy_arg,
    GNTST_general_error,
    GNTST_permission_denied,
    GTF_permit_access,
    GTF_readonly,
)
from xenemu.abi.xen import DOMID_SELF
from xenemu.errors import XenError
from xenemu.hv import grant_table
from xenemu.hv.frame_table import PGT_writable_page
from xenemu.hv.grant_table import (
    GNTPIN_hstr_inc,
    GNTPIN_hstw_inc,
    GrantError,
    find_domain,
    own_frame,
    refuse_dom0,
)
from xenemu.hv.memory import Memory
from xenemu.hv.state.domain import Domain
from xenemu.hv.state.grants import Active
from xenemu.records import dataclass
from xenemu.x86.paging import PAGE_SHIFT, PAGE_SIZE, Maddr, Mfn

Part = tuple[int, int]  # of a frame: where it begins, and its bytes


@dataclass(frozen=True)
class CopyEnd:
    """One end of a copy: a grant of a domain's, or a frame of the caller's own by gmfn."""

    by_ref: bool
    ref_or_gmfn: int
    domid: int
    offset: int


def copy(domain: Domain, source: CopyEnd, dest: CopyEnd, length: int) -> None:
    """Copy bytes between two frames; nothing is copied on any error.

    GNTST_bad_domain: no such domain. GNTST_permission_denied: a frame by number whose domain is not
    given as DOMID_SELF. GNTST_bad_copy_arg: the copy crosses a page. GNTST_bad_gntref,
    GNTST_general_error, GNTST_bad_page: as for `grant_table.acquire`; or the destination may not be
    written; or not all of it is granted.
    """
    granters = [_owner(domain, end) for end in (source, dest)]
    with (
        _claim(domain, granters[0], source, GNTPIN_hstr_inc) as readable,
        _claim(domain, granters[1], dest, GNTPIN_hstw_inc) as writable,
        _writable(domain, writable),
    ):
        _check_page(max(source.offset, dest.offset), length)
        _check_bounds("source", readable, source.offset, length)
        _check_bounds("destination", writable, dest.offset, length)
        _memcpy(
            domain.memory, _maddr(writable, dest.offset), _maddr(readable, source.offset), length
        )


def read_grant(granter: Domain, grantee: int, ref: int, offset: int, length: int) -> bytes:
    """Copy bytes out of what a domain has granted; errors as `copy` has them for its source."""
    with _pinned(granter, grantee, ref, GNTPIN_hstr_inc) as source:
        _check_page(offset, length)
        _check_bounds("source", source, offset, length)
        return granter.memory.read(_maddr(source, offset), length)


def write_grant(granter: Domain, grantee: int, ref: int, offset: int, data: bytes) -> None:
    """Copy bytes into what a domain has granted; errors as `copy` has them for its destination."""
    with _pinned(granter, grantee, ref, GNTPIN_hstw_inc) as dest, _writable(granter, dest):
        _check_page(offset, len(data))
        _check_bounds("destination", dest, offset, len(data))
        granter.memory.write(_maddr(dest, offset), data)


def frames_of(
    granter: Domain, grantee: int, refs: Sequence[int], parts: Sequence[Part], into: bool
) -> list[Mfn]:
    """The frames of grants, of each of which a part is copied out of or `into`, at this instant.

    Nothing is held. Errors as `copy` has them, of the first grant that has one.
    """
    found = _ordinary_frames(granter, grantee, refs, into)
    if found is None:
        found = []
        for ref, (offset, length) in zip(refs, parts, strict=True):
            found.append(_frame_of(granter, grantee, ref, offset, length, into))
    return found


def _frame_of(granter: Domain, grantee: int, ref: int, offset: int, length: int, into: bool) -> Mfn:
    incr = GNTPIN_hstw_inc if into else GNTPIN_hstr_inc
    with _pinned(granter, grantee, ref, incr) as active:
        _check_page(offset, length)
        _check_bounds("destination" if into else "source", active, offset, length)
        if into:
            with _writable(granter, active):
                pass
        return active.mfn


def _ordinary_frames(
    granter: Domain, grantee: int, refs: Sequence[int], into: bool
) -> list[Mfn] | None:
    """What `_frame_of` finds if each grant is of an ordinary frame, and in no other use; or None.

    Version 1's entry has the flags in bits 0 to 15, the grantee in 16 to 31, and then the frame.
    """
    grants, p2m = granter.grants, granter.p2m
    if grants.version != 1 or not grants.active.keys().isdisjoint(refs):
        return None
    words, table, per_frame = granter.memory.words, grants.frames, PAGE_SIZE >> 3
    owner, type_ = granter.frames.owner, granter.frames.type
    mask = 0xFFFF_FFFF if into else 0xFFFF_FFFF & ~GTF_readonly
    permitted, domid = GTF_permit_access | grantee << 16, granter.domid
    found = []
    try:
        for ref in refs:
            entry = words[table[ref // per_frame] * per_frame + ref % per_frame]
            gfn = entry >> 32
            mfn = gfn if p2m is None else p2m.table[gfn] - 1
            if entry & mask != permitted or mfn < 0 or owner[mfn] != domid:
                return None
            if type_[mfn] != PGT_writable_page:
                return None
            found.append(Mfn(mfn))
    except IndexError:  # there is no such entry, or no such frame
        return None
    return found


def _owner(domain: Domain, end: CopyEnd) -> Domain | None:
    """Whose frame an end is; None is dom0."""
    return domain if end.domid == DOMID_SELF else find_domain(domain, end.domid)


@contextmanager
def _claim(domain: Domain, granter: Domain | None, end: CopyEnd, incr: int) -> Iterator[Active]:
    """Pin one end's grant, if it has one, as long as the copy lasts."""
    if not end.by_ref:
        if end.domid != DOMID_SELF:
            raise GrantError(GNTST_permission_denied, "only DOMID_SELF's frames go by number")
        yield Active(own_frame(domain, end.ref_or_gmfn), domain.domid)
        return
    if granter is None:
        refuse_dom0(end.ref_or_gmfn)
    with _pinned(granter, domain.domid, end.ref_or_gmfn, incr) as active:
        yield active


@contextmanager
def _pinned(granter: Domain, grantee: int, ref: int, incr: int) -> Iterator[Active]:
    active = grant_table.acquire(granter, grantee, ref, incr, mapping=False)
    try:
        yield active
    finally:
        grant_table.release(granter, ref, incr)


def _check_page(offset: int, length: int) -> None:
    if offset + length > PAGE_SIZE:
        raise GrantError(GNTST_bad_copy_arg, f"a copy of {length} bytes crosses a page")


@contextmanager
def _writable(domain: Domain, end: Active) -> Iterator[None]:
    """Have the frame be writable memory as long as the copy lasts."""
    try:
        domain.frames.get_page_type(end.mfn, PGT_writable_page)
    except XenError as error:
        raise GrantError(GNTST_general_error, error.reason) from None
    try:
        yield
    finally:
        domain.frames.put_page_type(end.mfn)


def _check_bounds(which: str, granted: Active, offset: int, length: int) -> None:
    end = granted.start + granted.length
    if not granted.start <= offset <= offset + length <= end:
        raise GrantError(
            GNTST_general_error,
            f"the {which} is bytes {offset:#x} to {offset + length:#x}: "
            f"granted are {granted.start:#x} to {end:#x}",
        )


def _memcpy(memory: Memory, to: Maddr, source: Maddr, length: int) -> None:
    """Copy as Xen does, words before bytes: what is copied onto itself repeats."""
    if not source < to < source + length:
        memory.write(to, memory.read(source, length))
        return
    words = length & ~7
    for start, end, step in ((0, words, 8), (words, length, 1)):
        for at in range(start, end, step):
            memory.write(Maddr(to + at), memory.read(Maddr(source + at), step))


def _maddr(end: Active, offset: int) -> Maddr:
    return Maddr((end.mfn << PAGE_SHIFT) + offset)
