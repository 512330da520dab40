"""hypercalls/grant_transfer.py"""

from __future__ import annotations

import pytest

from fakes import DOMID, SHARED_INFO
from grantfakes import DOM0, OTHER, REF, STRANGER, TABLE, call, grant, granting_current, state
from xenemu.abi import grant_table as abi
from xenemu.abi.xen import DOMID_SELF
from xenemu.hv import grant_table
from xenemu.hv.current import Current
from xenemu.hv.frame_table import DOMID_NONE
from xenemu.x86.paging import Maddr

ACCEPTS = 10


@pytest.fixture(params=[8, 4])
def current(request: pytest.FixtureRequest) -> Current:
    """Grant ACCEPTS accepts a page for pfn 5; the table of pfns is in frame 15."""
    current = granting_current(request.param)
    current.domain.frames.heap.take(15)
    current.domain.frames.m2p_base = Maddr(15 << 12)
    grant(current.domain, ACCEPTS, 5, abi.GTF_accept_transfer)
    return current


def transfer(current: Current, mfn: int, domid: int, ref: int) -> int:
    op = call(current, abi.GNTTABOP_transfer, abi.gnttab_transfer(mfn, domid, ref, 99))[0]
    assert isinstance(op, abi.gnttab_transfer)
    return op.status


def test_a_domain_may_accept_its_own_page(current: Current) -> None:
    domain = current.domain
    current.write(OTHER << 12, b"kept")
    pages = domain.pages.tot_pages
    assert transfer(current, OTHER, DOMID, ACCEPTS) == abi.GNTST_okay
    entry = grant_table.read_entry(domain, ACCEPTS)
    done = abi.GTF_transfer_committed | abi.GTF_transfer_completed
    assert entry == abi.grant_entry_v1(abi.GTF_accept_transfer | done, DOMID, OTHER)
    assert (domain.frames.get_m2p(OTHER), domain.pages.tot_pages) == (5, pages)
    assert current.read(OTHER << 12, 4) == b"kept"


def test_in_version_2_as_well(current: Current) -> None:
    grant_table.set_version(current.domain, 2)
    grant(current.domain, ACCEPTS, 5, abi.GTF_accept_transfer)
    assert transfer(current, OTHER, DOMID, ACCEPTS) == abi.GNTST_okay
    assert grant_table.read_entry(current.domain, ACCEPTS).frame == OTHER


@pytest.mark.parametrize(
    ("domid", "ref", "expected"),
    [
        (DOM0, ACCEPTS, abi.GNTST_general_error),
        (STRANGER, ACCEPTS, abi.GNTST_bad_domain),
        (DOMID_SELF, ACCEPTS, abi.GNTST_bad_domain),
        (DOMID, REF, abi.GNTST_general_error),
        (DOMID, 512, abi.GNTST_general_error),
    ],
)
def test_a_page_that_nobody_accepts_is_gone(
    current: Current, domid: int, ref: int, expected: int
) -> None:
    frames = current.domain.frames
    pages, table = (
        current.domain.pages.tot_pages,
        grant_table.read_entry(current.domain, ACCEPTS),
    )
    assert transfer(current, OTHER, domid, ref) == expected
    assert (frames.owner[OTHER], current.domain.pages.tot_pages) == (DOMID_NONE, pages - 1)
    assert grant_table.read_entry(current.domain, ACCEPTS) == table


@pytest.mark.parametrize("mfn", [TABLE, SHARED_INFO, 7, 1 << 31])
def test_a_page_in_use_or_of_anothers_stays(current: Current, mfn: int) -> None:
    op = abi.gnttab_transfer(mfn, DOMID, ACCEPTS, abi.GNTST_bad_page)
    current.write_struct(0x20000, op)
    before = state(current.domain)
    assert transfer(current, mfn, DOMID, ACCEPTS) == abi.GNTST_bad_page
    assert state(current.domain) == before


def test_an_accepted_page_is_accepted_once(current: Current) -> None:
    assert transfer(current, OTHER, DOMID, ACCEPTS) == abi.GNTST_okay
    assert transfer(current, OTHER, DOMID, ACCEPTS) == abi.GNTST_general_error
