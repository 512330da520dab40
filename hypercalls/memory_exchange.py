"""XENMEM_exchange: pages for the same number of pages, in other sizes or at other addresses.

Header: public/memory.h
In Xen: common/memory.c (memory_exchange)
"""

from __future__ import annotations

from typing import Final

from xenemu.abi.errno import EFAULT, EINVAL, EOPNOTSUPP, EPERM
from xenemu.abi.memory import (
    XENMEM_exchange,
    XENMEMF_address_bits,
    xen_memory_exchange,
    xen_memory_reservation,
)
from xenemu.errors import XenError
from xenemu.hv.current import Current
from xenemu.hv.dispatch import Continue
from xenemu.hv.foreign import check_target, domain_by_any_id
from xenemu.hv.frame_table import PGC_allocated
from xenemu.pv.paging import in_guest_range
from xenemu.x86.paging import PAGE_SHIFT, Mfn

MAX_ORDER: Final = 9  # CONFIG_DOMU_MAX_ORDER: of an extent, for a domU without devices
PAGES_PER_CALL: Final = 4096  # then the guest issues the rest of the call again
PAGE_WORK: Final = 4  # of each, so that a multicall of such calls ends in time


def mfn_limit(current: Current, mem_flags: int) -> int | None:
    """The first mfn beyond what a reservation's address bits allow; None if that is all of RAM.

    EINVAL: they allow not even one page.
    """
    bits = mem_flags & XENMEMF_address_bits
    nr_frames = current.domain.memory.nr_frames
    if not bits or bits >= (nr_frames - 1).bit_length() + PAGE_SHIFT:
        return None
    if bits <= PAGE_SHIFT:
        raise XenError(EINVAL, f"there is no page within {bits} address bits")
    return 1 << (bits - PAGE_SHIFT)


def exchange(current: Current, pointer: int) -> int:
    """Give back the pages listed by `in_`, and get as many for the pfns listed by `out`.

    A chunk is one extent of the larger kind. It is exchanged as a whole or not at all.
    `nr_exchanged` says how far the call went.

    EPERM: extents are too large, or another domain's. EINVAL: the sizes do not match, or an input
    page is not the domain's own, or is mapped. EFAULT: a list, or the part of it to go on with, is
    not in the guest's addresses. ENOMEM: there is no memory. EOPNOTSUPP: a translated guest.
    """
    if current.domain.p2m is not None:
        raise XenError(EOPNOTSUPP, "only a PV guest exchanges pages")
    width = current.vcpu.width
    op = current.read_struct(xen_memory_exchange, pointer)
    give = xen_memory_reservation.unpack(width, op.in_)
    get = xen_memory_reservation.unpack(width, op.out)
    done_at = pointer + xen_memory_exchange.offsetof("nr_exchanged", width)
    done = op.nr_exchanged
    try:
        _check(current, op, give, get)
        order = max(give.extent_order, get.extent_order)
        give_each = 1 << (order - give.extent_order)
        first = chunk = op.nr_exchanged // give_each
        per_call = max(1, PAGES_PER_CALL >> order)
        frames = current.domain.frames
        while chunk < give.nr_extents // give_each and chunk < first + per_call:
            if chunk > first and frames.work_left <= 0:
                break
            _exchange_chunk(current, give, get, chunk, order)
            chunk += 1
            done = chunk * give_each
            frames.work_left -= PAGE_WORK << order
    finally:
        current.write_ulong(done_at, done)
    if done < give.nr_extents:
        raise Continue(XENMEM_exchange, pointer)
    return 0


def _check(
    current: Current,
    op: xen_memory_exchange,
    give: xen_memory_reservation,
    get: xen_memory_reservation,
) -> None:
    if max(give.extent_order, get.extent_order) > MAX_ORDER:
        raise XenError(EPERM, f"extents above order {MAX_ORDER} are for dom0")
    if op.nr_exchanged > give.nr_extents:
        raise XenError(
            EINVAL, f"{op.nr_exchanged} extents are said to be done, of {give.nr_extents}"
        )
    pages = give.nr_extents << give.extent_order
    if pages != get.nr_extents << get.extent_order or pages >> 8 * current.vcpu.width:
        halves = " and ".join(
            f"{one.nr_extents} of order {one.extent_order}" for one in (give, get)
        )
        raise XenError(EINVAL, f"the two halves of the exchange do not match: {halves}")
    if give.domid != get.domid:
        raise XenError(EINVAL, f"an exchange between d{give.domid} and d{get.domid}")
    _check_list(current, give, op.nr_exchanged)
    _check_list(current, get, (op.nr_exchanged << give.extent_order) >> get.extent_order)
    check_target(current, domain_by_any_id(current, give.domid))
    mfn_limit(current, get.mem_flags)


def _check_list(current: Current, reservation: xen_memory_reservation, done: int) -> None:
    """EFAULT if the rest of a list begins outside of the guest's addresses."""
    start = reservation.extent_start + done * current.vcpu.width
    if not in_guest_range(start, current.vcpu.width):
        raise XenError(EFAULT, f"a list that goes on at {start:#x}, which is not the guest's")


def _exchange_chunk(
    current: Current,
    give: xen_memory_reservation,
    get: xen_memory_reservation,
    chunk: int,
    order: int,
) -> None:
    domain = current.domain
    frames, width = domain.frames, current.vcpu.width
    old = _input_pages(current, give, chunk, order)
    get_each = 1 << (order - get.extent_order)
    below = mfn_limit(current, get.mem_flags)
    new = frames.alloc_frames(domain.domid, get.extent_order, below, get_each)
    for mfn in old:
        frames.release(mfn)
    unreachable: XenError | None = None
    for index, first in enumerate(new, chunk * get_each):
        at = get.extent_start + index * width
        try:
            pfn = current.read_ulong(at)
            for page in range(1 << get.extent_order):
                frames.set_m2p(first + page, pfn + page)
            current.write_ulong(at, first)
        except XenError as error:  # the others are the domain's already, too
            unreachable = error
    if unreachable is not None:
        raise unreachable


def _input_pages(
    current: Current, give: xen_memory_reservation, chunk: int, order: int
) -> list[Mfn]:
    """The pages of a chunk to give back; EINVAL if one of them is in any use."""
    frames, domid = current.domain.frames, current.domain.domid
    each = 1 << (order - give.extent_order)
    pages: dict[Mfn, None] = {}
    for index in range(chunk * each, (chunk + 1) * each):
        first = current.read_ulong(give.extent_start + index * current.vcpu.width)
        for mfn in range(first, first + (1 << give.extent_order)):
            if (
                mfn >= len(frames.owner)
                or frames.owner[mfn] != domid
                or (frames.count[mfn], frames.flags[mfn]) != (1, PGC_allocated)
                or mfn in pages
            ):
                raise XenError(EINVAL, f"{frames.describe(mfn)} cannot be exchanged")
            pages[Mfn(mfn)] = None
    return list(pages)
