"""xenemu/hv/grant_table.py"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from fakes import FIRST_GUEST_FRAME, make_domain
from xenemu.abi.grant_table import (
    GNTMAP_device_map,
    GNTMAP_readonly,
    GNTST_bad_copy_arg,
    GNTST_bad_dev_addr,
    GNTST_bad_domain,
    GNTST_bad_gntref,
    GNTST_bad_handle,
    GNTST_bad_page,
    GNTST_eagain,
    GNTST_general_error,
    GNTST_permission_denied,
    GTF_permit_access,
    GTF_reading,
    GTF_readonly,
    GTF_writing,
    grant_entry_v1,
)
from xenemu.abi.xen import DOMID_SELF
from xenemu.errors import XenError
from xenemu.hv.domain import DOMID, Domain
from xenemu.hv.frame_table import PGT_l1_page_table
from xenemu.hv.grant_table import (
    ENTRIES_PER_FRAME,
    MAX_PINS,
    CopyEnd,
    GrantError,
    check_bus_address,
    copy,
)
from xenemu.x86.paging import Maddr, Mfn

HEAP = range(4, 16)  # frames below the guest's
PAGE, OTHER = Mfn(FIRST_GUEST_FRAME), Mfn(FIRST_GUEST_FRAME + 1)
STRANGER = 7
REF = 8


@pytest.fixture
def domain() -> Domain:
    """A domain whose grant 8 gives itself a page."""
    domain = make_domain()
    domain.frames.add_to_heap(HEAP)
    domain.grants.grow(domain, 1)
    grant(domain, REF, PAGE)
    return domain


def entry_maddr(domain: Domain, ref: int) -> Maddr:
    frame, index = divmod(ref, ENTRIES_PER_FRAME)
    return Maddr((domain.grants.frames[frame] << 12) + 8 * index)


def grant(domain: Domain, ref: int, frame: int, flags: int = 0, to: int = DOMID) -> None:
    entry = grant_entry_v1(GTF_permit_access | flags, to, frame)
    domain.memory.write(entry_maddr(domain, ref), entry.pack(8))


def flags(domain: Domain, ref: int) -> int:
    return domain.grants.entry(domain, ref).flags


def refused(domain: Domain, status: int, action: Callable[[], object]) -> None:
    """The action gives this status, and changes neither memory nor any count."""
    memory = domain.memory.read(Maddr(0), len(domain.memory.bytes))
    counts = list(domain.frames.count), list(domain.frames.type_count)
    active, mappings = dict(domain.grants.active), dict(domain.grants.mappings)
    with pytest.raises(GrantError) as error:
        action()
    assert error.value.status == status
    assert domain.memory.read(Maddr(0), len(domain.memory.bytes)) == memory
    assert (domain.frames.count, domain.frames.type_count) == counts
    assert (domain.grants.active, domain.grants.mappings) == (active, mappings)


def end(offset: int = 0, frame: int = PAGE, domid: int = DOMID_SELF) -> CopyEnd:
    return CopyEnd(False, frame, domid, offset)


def end_of_grant(ref: int = REF, offset: int = 0, domid: int = DOMID_SELF) -> CopyEnd:
    return CopyEnd(True, ref, domid, offset)


# The table.


def test_a_grown_table_is_the_guests_to_map_and_never_a_page_table(domain: Domain) -> None:
    domain.grants.grow(domain, 3)
    assert len(domain.grants.frames) == 3
    for mfn in domain.grants.frames:
        assert domain.frames.owner[mfn] == DOMID
        with pytest.raises(XenError, match="other type in use"):
            domain.frames.get_page_type(mfn, PGT_l1_page_table)


def test_a_table_never_shrinks(domain: Domain) -> None:
    domain.grants.grow(domain, 2)
    domain.grants.grow(domain, 0)
    assert len(domain.grants.frames) == 2


def test_a_table_has_a_limit(domain: Domain) -> None:
    refused(domain, GNTST_general_error, lambda: domain.grants.grow(domain, 65))


def test_the_toolstack_seeds_grants_for_dom0() -> None:
    domain = make_domain()
    domain.frames.add_to_heap(HEAP)
    domain.grants.seed(domain, 1, PAGE)
    assert domain.grants.entry(domain, 1) == grant_entry_v1(GTF_permit_access, 0, PAGE)


def test_entries_are_swapped(domain: Domain) -> None:
    domain.grants.swap(domain, REF, 9)
    assert domain.grants.entry(domain, 9).frame == PAGE
    assert flags(domain, REF) == 0


@pytest.mark.parametrize(
    ("a", "b", "status"),
    [(REF, 512, GNTST_bad_gntref), (512, REF, GNTST_bad_gntref), (9, REF, GNTST_eagain)],
)
def test_entries_that_cannot_be_swapped(domain: Domain, a: int, b: int, status: int) -> None:
    domain.grants.acquire(domain, REF, writing=False)
    refused(domain, status, lambda: domain.grants.swap(domain, a, b))


# Pinning.


def test_the_flags_show_that_a_grant_is_in_use(domain: Domain) -> None:
    domain.grants.acquire(domain, REF, writing=True)
    domain.grants.acquire(domain, REF, writing=False)
    assert flags(domain, REF) == GTF_permit_access | GTF_reading | GTF_writing
    domain.grants.release(domain, REF, writing=True)
    assert flags(domain, REF) == GTF_permit_access | GTF_reading
    domain.grants.release(domain, REF, writing=False)
    assert flags(domain, REF) == GTF_permit_access


def test_a_grant_in_use_keeps_its_frame(domain: Domain) -> None:
    domain.grants.acquire(domain, REF, writing=False)
    grant(domain, REF, OTHER)
    assert domain.grants.acquire(domain, REF, writing=False) == PAGE


def test_a_grant_for_another_is_refused(domain: Domain) -> None:
    grant(domain, REF, PAGE, to=STRANGER)
    refused(domain, GNTST_general_error, lambda: domain.grants.acquire(domain, REF, False))


def test_an_entry_without_a_grant_is_refused(domain: Domain) -> None:
    refused(domain, GNTST_general_error, lambda: domain.grants.acquire(domain, 9, False))


def test_a_read_only_grant_is_not_for_writing(domain: Domain) -> None:
    grant(domain, REF, PAGE, GTF_readonly)
    refused(domain, GNTST_general_error, lambda: domain.grants.acquire(domain, REF, True))
    domain.grants.acquire(domain, REF, writing=False)
    refused(domain, GNTST_general_error, lambda: domain.grants.acquire(domain, REF, True))


def test_a_grant_of_a_frame_that_is_not_the_guests_is_refused(domain: Domain) -> None:
    grant(domain, REF, 0xFFFFFFFF)
    refused(domain, GNTST_bad_page, lambda: domain.grants.acquire(domain, REF, False))


def test_pins_are_counted_in_a_byte(domain: Domain) -> None:
    for _ in range(MAX_PINS):
        domain.grants.acquire(domain, REF, writing=False)
    refused(domain, GNTST_general_error, lambda: domain.grants.acquire(domain, REF, False))


# Copying.


def test_bytes_are_copied_between_frames(domain: Domain) -> None:
    domain.memory.write(Maddr((PAGE << 12) + 100), b"hello")
    copy(domain, end(100), end(4091, OTHER), 5)
    assert domain.memory.read(Maddr((OTHER << 12) + 4091), 5) == b"hello"


def test_bytes_are_copied_through_grants(domain: Domain) -> None:
    grant(domain, 9, OTHER)
    domain.memory.write(Maddr(PAGE << 12), b"hello")
    copy(domain, end_of_grant(REF), end_of_grant(9, 10, DOMID), 5)
    assert domain.memory.read(Maddr((OTHER << 12) + 10), 5) == b"hello"
    assert not domain.grants.active


def test_a_copy_within_a_page_may_overlap(domain: Domain) -> None:
    domain.memory.write(Maddr(PAGE << 12), b"abcdef")
    copy(domain, end(0), end(2), 4)
    assert domain.memory.read(Maddr(PAGE << 12), 6) == b"ababcd"


def test_a_copy_of_nothing_is_not_looked_at(domain: Domain) -> None:
    copy(domain, end(domid=STRANGER), end(), 0)


@pytest.mark.parametrize(
    ("source", "dest", "status"),
    [
        (end(4000), end(), GNTST_bad_copy_arg),
        (end(), end(4000), GNTST_bad_copy_arg),
        (end(domid=DOMID), end(), GNTST_permission_denied),
        (end_of_grant(domid=STRANGER), end(), GNTST_bad_domain),
        (end_of_grant(domid=0), end(), GNTST_general_error),
        (end_of_grant(ref=512, domid=0), end(), GNTST_bad_gntref),
        (end_of_grant(ref=512), end(), GNTST_bad_gntref),
        (end(), end(frame=5), GNTST_bad_page),
    ],
)
def test_a_copy_that_is_refused(
    domain: Domain, source: CopyEnd, dest: CopyEnd, status: int
) -> None:
    refused(domain, status, lambda: copy(domain, source, dest, 100))


def test_a_copy_never_writes_a_page_table(domain: Domain) -> None:
    domain.frames.get_page_and_type(OTHER, DOMID, PGT_l1_page_table)
    refused(domain, GNTST_general_error, lambda: copy(domain, end(), end(0, OTHER), 8))


# Mapping.


def test_a_device_mapping_holds_the_frame_as_writable(domain: Domain) -> None:
    handle, mfn = domain.grants.map(domain, DOMID, REF, GNTMAP_device_map)
    assert mfn == PAGE
    assert (domain.frames.count[PAGE], domain.frames.type_count[PAGE]) == (2, 1)
    domain.grants.unmap(domain, handle, GNTMAP_device_map)
    assert (domain.frames.count[PAGE], domain.frames.type_count[PAGE]) == (1, 0)
    assert not domain.grants.mappings


def test_a_freed_handle_is_given_again(domain: Domain) -> None:
    handles = [domain.grants.map(domain, DOMID, REF, GNTMAP_device_map)[0] for _ in range(3)]
    domain.grants.unmap(domain, handles[1], GNTMAP_device_map)
    assert domain.grants.map(domain, DOMID, REF, GNTMAP_device_map)[0] == handles[1]


@pytest.mark.parametrize(
    ("domid", "ref", "map_flags", "status"),
    [
        (DOMID, REF, 0, GNTST_bad_gntref),
        (DOMID, 512, GNTMAP_device_map, GNTST_bad_gntref),
        (DOMID_SELF, REF, GNTMAP_device_map, GNTST_bad_domain),
        (STRANGER, REF, GNTMAP_device_map, GNTST_bad_domain),
        (0, REF, GNTMAP_device_map, GNTST_general_error),
        (DOMID, 9, GNTMAP_device_map | GNTMAP_readonly, GNTST_general_error),
    ],
)
def test_a_grant_that_cannot_be_mapped(
    domain: Domain, domid: int, ref: int, map_flags: int, status: int
) -> None:
    refused(domain, status, lambda: domain.grants.map(domain, domid, ref, map_flags))


def test_a_page_table_is_not_mapped_for_a_device_to_write(domain: Domain) -> None:
    domain.frames.get_page_and_type(PAGE, DOMID, PGT_l1_page_table)
    refused(
        domain,
        GNTST_general_error,
        lambda: domain.grants.map(domain, DOMID, REF, GNTMAP_device_map),
    )


def test_a_handle_must_be_one(domain: Domain) -> None:
    refused(domain, GNTST_bad_handle, lambda: domain.grants.mapping(0))


def test_the_bus_address_must_be_the_frames(domain: Domain) -> None:
    handle, mfn = domain.grants.map(domain, DOMID, REF, GNTMAP_device_map)
    mapping = domain.grants.mapping(handle)
    check_bus_address(domain, mapping, mfn << 12)
    refused(domain, GNTST_bad_dev_addr, lambda: check_bus_address(domain, mapping, 0x1000))
