"""update_va_mapping: which entry it changes, and what it flushes."""

from __future__ import annotations

import pytest

from fakes import FakeCpu, make_current
from hypercalls.update_va_mapping import (
    do_update_va_mapping,
    do_update_va_mapping_otherdomain,
)
from xenemu.abi.errno import EBUSY, EFAULT, EINVAL, EPERM, ESRCH
from xenemu.abi.xen import (
    DOMID_IO,
    DOMID_SELF,
    UVMF_ALL,
    UVMF_INVLPG,
    UVMF_LOCAL,
    UVMF_NONE,
    UVMF_TLB_FLUSH,
)
from xenemu.errors import XenError
from xenemu.hv.current import Current
from xenemu.hv.pagetype import PGT_l4_page_table
from xenemu.x86.paging import RW, US, G, Mfn, P

L1, L2, L3, L4, DATA, MASK = 16, 17, 18, 19, 20, 21  # frames
VA = 3 << 12
USER = P | US | G
NEW = DATA << 12 | USER


@pytest.fixture
def current() -> Current:
    """A vcpu in an address space whose first 2 MiB have an L1 table."""
    current = make_current()
    for table, below in ((L4, L3), (L3, L2), (L2, L1)):
        current.domain.memory.table(Mfn(table))[0] = below << 12 | P | RW | US
    current.domain.frames.pin(L4, 1, PGT_l4_page_table)
    current.cpu.cr3 = L4 << 12
    return current


def entry(current: Current) -> int:
    return current.domain.memory.table(Mfn(L1))[VA >> 12]


def flushed(current: Current) -> tuple[int, list[int]]:
    assert isinstance(current.cpu, FakeCpu)
    return current.cpu.flushes, current.cpu.page_flushes


def refused(current: Current, errno: int, va: int, value: int, flags: int = UVMF_NONE) -> None:
    with pytest.raises(XenError) as refusal:
        do_update_va_mapping(current, va, value, flags)
    assert refusal.value.errno == errno, refusal.value.reason


def test_the_entry_in_the_tables_in_use_is_changed(current: Current) -> None:
    assert do_update_va_mapping(current, VA, NEW, UVMF_NONE) == 0
    assert (entry(current), flushed(current)) == (NEW, (0, []))


@pytest.mark.parametrize(
    "va", [1 << 21, 1 << 30, 1 << 39, 1 << 47, 0xFFFF_8000_0000_0000, 0xFFFF_8800_0000_0000]
)
def test_an_address_without_an_l1_table_is_refused(current: Current, va: int) -> None:
    before = list(current.domain.frames.count)
    refused(current, EINVAL, va, NEW)
    assert list(current.domain.frames.count) == before


def test_a_recursive_mapping_has_no_l1_table(current: Current) -> None:
    current.domain.frames.mod_entry(L2 << 12 | 8, L2 << 12 | P | US, 1)
    refused(current, EINVAL, 1 << 21, NEW)


def test_a_bad_entry_is_refused_and_nothing_flushed(current: Current) -> None:
    refused(current, EBUSY, VA, L2 << 12 | USER | RW, UVMF_TLB_FLUSH | UVMF_LOCAL)
    assert (entry(current), flushed(current)) == (0, (0, []))


@pytest.mark.parametrize("target", [UVMF_LOCAL, UVMF_ALL, MASK << 12])
def test_flushes_are_of_the_page_or_of_all(current: Current, target: int) -> None:
    current.write_ulong(MASK << 12, 1)
    do_update_va_mapping(current, VA, NEW, UVMF_INVLPG | target)
    assert flushed(current) == (0, [VA])
    do_update_va_mapping(current, VA, NEW, UVMF_TLB_FLUSH | target)
    assert flushed(current) == (1, [VA])


def test_an_empty_mask_flushes_nothing(current: Current) -> None:
    do_update_va_mapping(current, VA, NEW, UVMF_TLB_FLUSH | MASK << 12)
    assert flushed(current) == (0, [])


def test_a_mask_that_cannot_be_read_is_refused_after_the_update(current: Current) -> None:
    refused(current, EFAULT, VA, NEW, UVMF_TLB_FLUSH | 1 << 40)
    assert entry(current) == NEW


def test_a_mapping_that_goes_is_flushed_unasked(current: Current) -> None:
    do_update_va_mapping(current, VA, NEW, UVMF_NONE)
    do_update_va_mapping(current, VA, 0, UVMF_NONE)
    assert flushed(current) == (1, [])


def test_otherdomain_serves_the_domain_itself(current: Current) -> None:
    assert do_update_va_mapping_otherdomain(current, VA, NEW, UVMF_NONE, DOMID_SELF) == 0
    assert entry(current) == NEW


@pytest.mark.parametrize(
    ("domid", "errno"), [(0, EPERM), (1, ESRCH), (2, ESRCH), (DOMID_IO, EPERM)]
)
def test_otherdomain_serves_no_other(current: Current, domid: int, errno: int) -> None:
    with pytest.raises(XenError) as refusal:
        do_update_va_mapping_otherdomain(current, VA, NEW, UVMF_NONE, domid)
    assert (refusal.value.errno, entry(current)) == (errno, 0)
