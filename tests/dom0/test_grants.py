"""dom0/grants: what a backend maps and copies of a guest's grants, and what it sees of it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from fakes import DOMID, make_current, make_pvh_current
from grantfakes import HEAP, PAGE, REF, grant, refused, state
from xenemu.abi.grant_table import (
    GNTMAP_host_map,
    GNTMAP_readonly,
    GNTST_bad_copy_arg,
    GNTST_bad_gntref,
    GNTST_bad_page,
    GNTST_eagain,
    GNTST_general_error,
    GTF_permit_access,
    GTF_reading,
    GTF_readonly,
    GTF_sub_page,
    GTF_writing,
    grant_entry_v2,
)
from xenemu.dom0.grants import frames_of, map_grant, read_grant, unmap_grant, write_grant
from xenemu.errors import XenError
from xenemu.hv import grant_table
from xenemu.hv.audit import audit
from xenemu.hv.frame_table import PGT_l1_page_table
from xenemu.hv.grant_table import GrantError
from xenemu.hv.state.domain import DOM0, Domain
from xenemu.x86.paging import Maddr, Mfn


@pytest.fixture(params=[make_current, make_pvh_current])
def domain(request: pytest.FixtureRequest) -> Domain:
    """A domain that has granted PAGE to dom0."""
    domain: Domain = request.param().domain
    domain.frames.add_to_heap(HEAP)
    grant_table.grow(domain, 1)
    grant(domain, REF, PAGE, to=DOM0)
    return domain


def test_a_mapping_holds_the_page_and_shows_in_the_entry(domain: Domain) -> None:
    before = state(domain)
    handle, mfn = map_grant(domain, REF)
    assert mfn == PAGE
    assert (
        grant_table.read_entry(domain, REF).flags == GTF_permit_access | GTF_reading | GTF_writing
    )
    with pytest.raises(XenError):
        domain.frames.get_page_and_type(PAGE, DOMID, PGT_l1_page_table)
    refused(domain, GNTST_eagain, lambda: grant_table.swap(domain, REF, 20))
    unmap_grant(domain, handle)
    assert state(domain) == before


def test_the_guests_own_handles_are_others(domain: Domain) -> None:
    first, _ = map_grant(domain, REF)
    second, _ = map_grant(domain, REF)
    assert first != second
    assert domain.grants.maptrack.get(0) == first


def test_a_page_that_the_guest_gives_back_is_kept_until_it_is_unmapped(domain: Domain) -> None:
    handle, _ = map_grant(domain, REF)
    domain.frames.release(PAGE)
    assert domain.frames.owner[PAGE] == DOMID
    unmap_grant(domain, handle)
    assert domain.frames.owner[PAGE] != DOMID


def test_a_read_only_grant_is_mapped_for_reading(domain: Domain) -> None:
    grant(domain, REF, PAGE, GTF_permit_access | GTF_readonly, to=DOM0)
    refused(domain, GNTST_general_error, lambda: map_grant(domain, REF))
    map_grant(domain, REF, GNTMAP_host_map | GNTMAP_readonly)
    assert grant_table.read_status(domain, REF) & (GTF_reading | GTF_writing) == GTF_reading


@pytest.mark.parametrize(
    ("ref", "to", "frame", "status"),
    [
        (512, DOM0, PAGE, GNTST_bad_gntref),
        (10, DOM0, PAGE, GNTST_general_error),
        (REF, DOMID, PAGE, GNTST_general_error),
        (REF, DOM0, 5, GNTST_bad_page),
    ],
)
def test_what_is_not_granted_is_not_used(
    domain: Domain, ref: int, to: int, frame: int, status: int
) -> None:
    grant(domain, REF, frame, to=to)
    refused(domain, status, lambda: map_grant(domain, ref))
    refused(domain, status, lambda: read_grant(domain, ref, 0, 8))
    refused(domain, status, lambda: write_grant(domain, ref, 0, b"x"))
    for into in (True, False):
        refs, parts = (REF, ref), ((0, 8), (0, 8))
        refused(domain, status, lambda: frames_of(domain, refs, parts, into))  # noqa: B023


SECOND = 11
USES: dict[str, Callable[[Domain], object]] = {
    "none": lambda _: None,
    "mapped": lambda domain: map_grant(domain, REF),
    "mapped for reading": lambda domain: map_grant(domain, REF, GNTMAP_host_map | GNTMAP_readonly),
    "changed while mapped": lambda domain: (
        map_grant(domain, REF),
        grant(domain, REF, Mfn(PAGE + 1), to=DOM0),
    ),
    "for reading": lambda domain: grant(
        domain, REF, PAGE, GTF_permit_access | GTF_readonly, to=DOM0
    ),
    "a page table": lambda domain: domain.frames.get_page_and_type(PAGE, DOMID, PGT_l1_page_table),
    "of version 2": lambda domain: (
        grant_table.set_version(domain, 2),
        grant(domain, REF, PAGE, to=DOM0),
    ),
    "of another's frame": lambda domain: grant(domain, REF, 5, to=DOM0),
    "of no frame": lambda domain: grant(domain, REF, 0xFFFF_FFFF, to=DOM0),
    "for another": lambda domain: grant(domain, REF, PAGE, to=DOMID),
}


def outcome(function: Callable[[], object]) -> object:
    try:
        return function()
    except GrantError as error:
        return error.status, error.reason


@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_frames_for_a_copy_are_those_that_a_single_copy_uses(
    domain: Domain, use: Callable[[Domain], object]
) -> None:
    use(domain)
    grant(domain, SECOND, Mfn(PAGE + 1), to=DOM0)
    before = state(domain)
    content = {mfn: bytes([n] * 4) for n, mfn in enumerate((PAGE, PAGE + 1), 1)}
    for mfn, data in content.items():
        domain.memory.write(Maddr(mfn << 12), data)
    single = outcome(lambda: read_grant(domain, REF, 0, 4))
    found = outcome(lambda: frames_of(domain, [SECOND, REF], [(0, 4)] * 2, False))
    if isinstance(single, bytes):
        assert isinstance(found, list)
        assert [content[mfn] for mfn in found] == [content[PAGE + 1], single]
    else:
        assert found == single
    single = outcome(lambda: write_grant(domain, REF, 0, b"new!"))
    found = outcome(lambda: frames_of(domain, [SECOND, REF], [(0, 4)] * 2, True))
    if single is None:
        assert isinstance(found, list)
        assert domain.memory.read(Maddr(found[1] << 12), 4) == b"new!"
    else:
        assert found == single
    assert state(domain)[1:] == before[1:]


def test_a_grant_is_read_and_written_without_a_mapping(domain: Domain) -> None:
    write_grant(domain, REF, 4090, b"abcdef")
    assert domain.memory.read(Maddr((PAGE << 12) + 4090), 6) == b"abcdef"
    assert read_grant(domain, REF, 4091, 5) == b"bcdef"
    assert not domain.grants.active
    assert grant_table.read_status(domain, REF) == GTF_permit_access


def test_a_copy_stays_within_the_page_and_what_is_granted_of_it(domain: Domain) -> None:
    refused(domain, GNTST_bad_copy_arg, lambda: read_grant(domain, REF, 4095, 2))
    refused(domain, GNTST_bad_copy_arg, lambda: write_grant(domain, REF, 4095, b"ab"))
    grant_table.set_version(domain, 2)
    part = grant_entry_v2(GTF_permit_access | GTF_sub_page, DOM0, 16, 32, PAGE)
    grant_table.write_entry(domain, REF, part)
    write_grant(domain, REF, 47, b"a")
    refused(domain, GNTST_general_error, lambda: write_grant(domain, REF, 47, b"ab"))
    refused(domain, GNTST_general_error, lambda: read_grant(domain, REF, 15, 2))
    refused(domain, GNTST_general_error, lambda: map_grant(domain, REF))


def test_the_audit_misses_a_mapping_that_no_backend_has(domain: Domain) -> None:
    assert audit(domain) == []
    map_grant(domain, REF)
    assert audit(domain) == ["dom0 has the mappings [0], its backends []"]
