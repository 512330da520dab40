"""mmu_update: what a request does, how far a batch gets, and whose memory it may be about."""

from __future__ import annotations

import struct

import pytest

from fakes import SHARED_INFO, make_current
from hypercalls.mmu_update import BATCH, do_mmu_update
from xenemu.abi.errno import EFAULT, EINVAL, ENOSYS, EPERM, ESRCH
from xenemu.abi.xen import (
    DOMID_IO,
    DOMID_SELF,
    DOMID_XEN,
    MMU_MACHPHYS_UPDATE,
    MMU_NORMAL_PT_UPDATE,
    MMU_PT_UPDATE_NO_TRANSLATE,
    MMU_PT_UPDATE_PRESERVE_AD,
    MMU_UPDATE_PREEMPTED,
)
from xenemu.errors import XenError
from xenemu.hv.current import Current
from xenemu.hv.dispatch import Continue
from xenemu.hv.pagetype import PGT_l1_page_table, PGT_l2_page_table, PGT_seg_desc_page
from xenemu.x86.paging import RW, US, A, G, Maddr, Mfn, P

L1, L2, DATA, REQUESTS, DONE = 16, 17, 18, 20, 30  # frames
UREQS, PDONE = REQUESTS << 12, DONE << 12
USER = P | US | G


@pytest.fixture
def current() -> Current:
    """A vcpu of a domain with a pinned, empty L1 and L2."""
    current = make_current()
    current.domain.frames.pin(L1, 1, PGT_l1_page_table)
    current.domain.frames.pin(L2, 1, PGT_l2_page_table)
    return current


def ask(current: Current, *requests: tuple[int, int], at: int = UREQS) -> int:
    data = b"".join(struct.pack("<QQ", ptr, value) for ptr, value in requests)
    current.domain.memory.write(Maddr(at), data)
    return len(requests)


def update(current: Current, count: int, foreigndom: int = DOMID_SELF, at: int = UREQS) -> int:
    return do_mmu_update(current, at, count, PDONE, foreigndom)


def refused(current: Current, errno: int, count: int, foreigndom: int = DOMID_SELF) -> None:
    with pytest.raises(XenError) as refusal:
        update(current, count, foreigndom)
    assert refusal.value.errno == errno, refusal.value.reason


def entry(current: Current, table: int, index: int) -> int:
    return current.domain.memory.table(Mfn(table))[index]


def done(current: Current) -> int:
    return current.read_uint(PDONE, 4)


@pytest.mark.parametrize("command", [MMU_NORMAL_PT_UPDATE, MMU_PT_UPDATE_NO_TRANSLATE])
def test_a_batch_is_done_in_order(current: Current, command: int) -> None:
    first = (L1 << 12 | 8 | command, DATA << 12 | USER)
    second = (L1 << 12 | 8 | command, DATA + 1 << 12 | USER)
    assert update(current, ask(current, first, second)) == 0
    assert entry(current, L1, 1) == DATA + 1 << 12 | USER
    assert done(current) == 2


def test_preserve_ad_keeps_the_accessed_bit(current: Current) -> None:
    at = L1 << 12
    update(current, ask(current, (at, DATA << 12 | USER | A)))
    update(current, ask(current, (at | MMU_PT_UPDATE_PRESERVE_AD, DATA << 12 | USER | RW)))
    assert entry(current, L1, 0) == DATA << 12 | USER | RW | A


def test_a_higher_table_is_updated_through_validation(current: Current) -> None:
    update(current, ask(current, (L2 << 12, DATA << 12 | P | US)))
    assert current.domain.frames.type[DATA] == PGT_l1_page_table


def test_ordinary_memory_is_written_as_it_is(current: Current) -> None:
    update(current, ask(current, (DATA << 12 | 0x10, 0x1234)))
    assert entry(current, DATA, 2) == 0x1234
    assert current.domain.frames.type_count[DATA] == 0


def test_a_page_of_descriptors_is_not_updated(current: Current) -> None:
    current.domain.frames.get_page_and_type(DATA, 1, PGT_seg_desc_page)
    refused(current, EINVAL, ask(current, (DATA << 12, 0x1234)))
    assert entry(current, DATA, 0) == 0


def test_a_read_only_share_of_xens_is_not_updated(current: Current) -> None:
    current.domain.frames.share_with_guest(Mfn(5), 1, writable=False)
    refused(current, EINVAL, ask(current, (5 << 12, 0x1234)))
    assert entry(current, 5, 0) == 0


@pytest.mark.parametrize("mfn", [9, 1 << 40])
def test_a_frame_that_is_not_the_domains_is_not_updated(current: Current, mfn: int) -> None:
    refused(current, EINVAL, ask(current, (mfn << 12, 0)))


@pytest.mark.parametrize("command", [4, 7])
def test_an_unknown_command_is_refused(current: Current, command: int) -> None:
    refused(current, ENOSYS, ask(current, (L1 << 12 | command, DATA << 12 | USER)))
    assert entry(current, L1, 0) == 0


def test_a_batch_stops_at_the_first_refusal(current: Current) -> None:
    good = (L1 << 12, DATA << 12 | USER)
    bad = (L1 << 12 | 8, L1 << 12 | USER | RW)
    with pytest.raises(XenError):
        update(current, ask(current, good, bad, good))
    assert (done(current), entry(current, L1, 0) != 0, entry(current, L1, 1)) == (1, True, 0)


def test_a_batch_may_cross_a_page(current: Current) -> None:
    at = UREQS + 4096 - 8
    requests = [(L1 << 12 | 8 * index, DATA << 12 | USER) for index in range(300)]
    assert update(current, ask(current, *requests, at=at), at=at) == 0
    assert entry(current, L1, 299) == DATA << 12 | USER


def test_requests_that_cannot_be_read_stop_the_batch(current: Current) -> None:
    at = len(current.domain.memory.bytes) - 16
    with pytest.raises(XenError) as refusal:
        update(current, ask(current, (L1 << 12, DATA << 12 | USER), at=at) + 1, at=at)
    assert refusal.value.errno == EFAULT
    assert (done(current), entry(current, L1, 0)) == (1, DATA << 12 | USER)


def test_no_count_is_asked_for(current: Current) -> None:
    count = ask(current, (L1 << 12, DATA << 12 | USER))
    assert do_mmu_update(current, UREQS, count, 0, DOMID_SELF) == 0


def test_a_long_batch_is_preempted_and_the_counts_add_up(current: Current) -> None:
    size = BATCH + 10
    requests = [(DATA << 12 | 8 * (index % 512), index) for index in range(size)]
    with pytest.raises(Continue) as again:
        update(current, ask(current, *requests))
    assert done(current) == BATCH
    ureqs, count, pdone, foreigndom = again.value.new_args
    assert (ureqs, count) == (UREQS + 16 * BATCH, 10 | MMU_UPDATE_PREEMPTED)
    assert do_mmu_update(current, ureqs, count, pdone, foreigndom) == 0
    assert (done(current), entry(current, DATA, 9)) == (size, size - 1)


@pytest.mark.parametrize(
    ("foreigndom", "errno"),
    [
        (0, EPERM),
        (1, ESRCH),
        (7, ESRCH),
        (DOMID_XEN, EPERM),
        (1 << 16 | DOMID_SELF, EPERM),
        (8 << 16 | DOMID_SELF, ESRCH),
    ],
)
def test_only_its_own_memory_is_a_domus_business(
    current: Current, foreigndom: int, errno: int
) -> None:
    refused(current, errno, ask(current, (L1 << 12, DATA << 12 | USER)), foreigndom)
    assert (entry(current, L1, 0), current.domain.frames.count[DATA]) == (0, 1)


def test_the_domain_may_name_itself_as_the_tables_owner(current: Current) -> None:
    count = ask(current, (L1 << 12, DATA << 12 | USER))
    assert update(current, count, 2 << 16 | DOMID_SELF) == 0


def test_io_memory_may_be_unmapped_but_not_mapped(current: Current) -> None:
    assert update(current, ask(current, (L1 << 12, 0)), DOMID_IO) == 0
    refused(current, EPERM, ask(current, (L1 << 12, 0xFEE00 << 12 | USER)), DOMID_IO)
    assert entry(current, L1, 0) == 0


def test_the_tlb_is_flushed_once_if_a_mapping_went(current: Current) -> None:
    requests = [(L1 << 12 | 8 * index, DATA << 12 | USER) for index in range(4)]
    update(current, ask(current, *requests))
    assert current.cpu.flushes == 0  # type: ignore[attr-defined]
    update(current, ask(current, *[(ptr, 0) for ptr, _ in requests]))
    assert current.cpu.flushes == 1  # type: ignore[attr-defined]


def test_the_tlb_is_flushed_for_what_was_done_before_a_refusal(current: Current) -> None:
    update(current, ask(current, (L1 << 12, DATA << 12 | USER)))
    refused(current, ENOSYS, ask(current, (L1 << 12, 0), (7, 0)))
    assert current.cpu.flushes == 1  # type: ignore[attr-defined]


def test_the_m2p_follows(current: Current) -> None:
    current.domain.frames.m2p_base = Maddr(8 << 12)
    update(current, ask(current, (DATA << 12 | MMU_MACHPHYS_UPDATE, 99)))
    assert current.domain.frames.get_m2p(DATA) == 99
    assert current.domain.frames.count[DATA] == 1


@pytest.mark.parametrize("foreigndom", [DOMID_SELF, DOMID_IO])
def test_the_m2p_of_anothers_frame_is_not_the_domains(current: Current, foreigndom: int) -> None:
    current.domain.frames.m2p_base = Maddr(8 << 12)
    mfn = 9 if foreigndom == DOMID_SELF else DATA
    refused(current, EINVAL, ask(current, (mfn << 12 | MMU_MACHPHYS_UPDATE, 99)), foreigndom)
    assert current.domain.frames.get_m2p(mfn) == 0


def test_the_shared_info_page_may_be_mapped(current: Current) -> None:
    update(current, ask(current, (L1 << 12, SHARED_INFO << 12 | USER | RW)))
    assert current.domain.frames.type_count[SHARED_INFO] == 2
