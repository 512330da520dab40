"""hv/grant_copy"""

from __future__ import annotations

import pytest

from fakes import DOMID, make_current
from grantfakes import DOM0, OTHER, PAGE, REF, STRANGER, grant, granting, refused
from xenemu.abi.grant_table import (
    GNTST_bad_copy_arg,
    GNTST_bad_domain,
    GNTST_bad_gntref,
    GNTST_bad_page,
    GNTST_general_error,
    GNTST_permission_denied,
    GTF_permit_access,
    GTF_sub_page,
    GTF_transitive,
    grant_entry_v2,
)
from xenemu.abi.xen import DOMID_SELF
from xenemu.hv import grant_table
from xenemu.hv.frame_table import PGT_l1_page_table
from xenemu.hv.grant_copy import CopyEnd, copy
from xenemu.hv.grant_table import GNTPIN_hstr_inc
from xenemu.hv.state.domain import Domain
from xenemu.x86.paging import Maddr


@pytest.fixture
def domain() -> Domain:
    """A domain whose grant REF gives itself a page."""
    return granting(make_current()).domain


@pytest.fixture
def v2(domain: Domain) -> Domain:
    """The same in version 2, but the grant is of bytes 16 to 48."""
    grant_table.set_version(domain, 2)
    entry = grant_entry_v2(GTF_permit_access | GTF_sub_page, DOMID, 16, 32, PAGE)
    grant_table.write_entry(domain, REF, entry)
    return domain


def end(offset: int = 0, frame: int = PAGE, domid: int = DOMID_SELF) -> CopyEnd:
    return CopyEnd(False, frame, domid, offset)


def end_of_grant(ref: int = REF, offset: int = 0, domid: int = DOMID_SELF) -> CopyEnd:
    return CopyEnd(True, ref, domid, offset)


def test_bytes_are_copied_between_frames(domain: Domain) -> None:
    domain.memory.write(Maddr((PAGE << 12) + 100), b"hello")
    copy(domain, end(100), end(4091, OTHER), 5)
    assert domain.memory.read(Maddr((OTHER << 12) + 4091), 5) == b"hello"


def test_bytes_are_copied_through_grants(domain: Domain) -> None:
    grant(domain, 10, OTHER)
    domain.memory.write(Maddr(PAGE << 12), b"hello")
    copy(domain, end_of_grant(REF), end_of_grant(10, 10, DOMID), 5)
    assert domain.memory.read(Maddr((OTHER << 12) + 10), 5) == b"hello"
    assert not domain.grants.active


@pytest.mark.parametrize(
    ("before", "source", "dest", "length", "after"),
    [
        (b"abcdefgh", 2, 0, 6, b"cdefghgh"),
        (b"abcdefghijklmnop", 0, 8, 8, b"abcdefghabcdefgh"),
        (b"abcdefghijklmnopqrs", 0, 1, 18, b"aabcdefghhjklmnoppp"),
        (b"abcdefghijklmnopqrstuvwxyz", 0, 9, 17, b"abcdefghiabcdefghiabcdefgh"),
    ],
)
def test_a_copy_onto_itself_goes_forward_by_words_as_xens_memcpy(
    domain: Domain, before: bytes, source: int, dest: int, length: int, after: bytes
) -> None:
    domain.memory.write(Maddr(PAGE << 12), before)
    copy(domain, end(source), end(dest), length)
    assert domain.memory.read(Maddr(PAGE << 12), len(before)) == after


def test_both_ends_may_be_one_grant(domain: Domain) -> None:
    domain.memory.write(Maddr(PAGE << 12), b"abc")
    copy(domain, end_of_grant(), end_of_grant(offset=3), 3)
    assert domain.memory.read(Maddr(PAGE << 12), 6) == b"abcabc"
    assert not domain.grants.active


def test_a_copy_of_nothing_is_checked_as_any_other(domain: Domain) -> None:
    """Later versions of Xen do not look at it."""
    refused(domain, GNTST_bad_gntref, lambda: copy(domain, end_of_grant(ref=512), end(), 0))
    copy(domain, end(4096), end(4096), 0)


@pytest.mark.parametrize(
    ("source", "dest", "status"),
    [
        (end(4000), end(), GNTST_bad_copy_arg),
        (end(), end(4000), GNTST_bad_copy_arg),
        (end(domid=DOMID), end(), GNTST_permission_denied),
        (end_of_grant(domid=STRANGER), end(), GNTST_bad_domain),
        (end_of_grant(domid=DOM0), end(), GNTST_general_error),
        (end_of_grant(ref=512, domid=DOM0), end(), GNTST_bad_gntref),
        (end_of_grant(ref=512), end(), GNTST_bad_gntref),
        (end(), end(frame=5), GNTST_bad_page),
        (end(), end(domid=DOMID), GNTST_permission_denied),
        (end(domid=STRANGER), end(), GNTST_bad_domain),
        (end_of_grant(ref=512), end(domid=DOMID), GNTST_bad_gntref),
        (end_of_grant(ref=512), end(domid=STRANGER), GNTST_bad_domain),
    ],
)
def test_a_copy_that_is_refused(
    domain: Domain, source: CopyEnd, dest: CopyEnd, status: int
) -> None:
    refused(domain, status, lambda: copy(domain, source, dest, 100))


def test_a_copy_never_writes_a_page_table(domain: Domain) -> None:
    domain.frames.get_page_and_type(OTHER, DOMID, PGT_l1_page_table)
    refused(domain, GNTST_general_error, lambda: copy(domain, end(), end(0, OTHER), 8))


# Version 2.


@pytest.mark.parametrize(("offset", "length"), [(16, 32), (16, 1), (47, 1)])
def test_the_granted_part_of_a_page_is_copied(v2: Domain, offset: int, length: int) -> None:
    v2.memory.write(Maddr((PAGE << 12) + offset), b"x" * length)
    copy(v2, end_of_grant(offset=offset), end(0, OTHER), length)
    assert v2.memory.read(Maddr(OTHER << 12), length) == b"x" * length


@pytest.mark.parametrize(("offset", "length"), [(15, 2), (47, 2), (16, 33), (48, 1), (0, 1)])
def test_no_other_part_of_a_page_is_copied(v2: Domain, offset: int, length: int) -> None:
    granted, other = end_of_grant(offset=offset), end(0, OTHER)
    refused(v2, GNTST_general_error, lambda: copy(v2, granted, other, length))
    refused(v2, GNTST_general_error, lambda: copy(v2, other, granted, length))


@pytest.mark.parametrize(
    ("domid", "gref", "status"),
    [
        (DOMID, 10, GNTST_general_error),
        (STRANGER, 10, GNTST_general_error),
        (DOM0, 10, GNTST_general_error),
        (DOM0, 512, GNTST_bad_gntref),
    ],
)
def test_a_transitive_grant_leads_nowhere(v2: Domain, domid: int, gref: int, status: int) -> None:
    grant_table.write_entry(v2, REF, grant_entry_v2(GTF_transitive, DOMID, domid, 0, gref))
    refused(v2, status, lambda: copy(v2, end_of_grant(), end(0, OTHER), 8))


def test_a_grant_in_use_is_not_copied_from_once_its_frame_is_gone(domain: Domain) -> None:
    grant_table.acquire(domain, DOMID, REF, GNTPIN_hstr_inc, mapping=True)
    domain.frames.release(PAGE)
    refused(domain, GNTST_bad_domain, lambda: copy(domain, end_of_grant(), end(0, OTHER), 8))
