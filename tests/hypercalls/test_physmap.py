"""hypercalls/physmap: what a PVH guest puts into its physmap, and takes out again."""

from __future__ import annotations

import copy
import sys

import pytest

from fakes import FIRST_GUEST_FRAME, SHARED_INFO, make_pvh_current
from hypercalls import physmap
from hypercalls.memory_op import ops
from xenemu.abi import memory as abi
from xenemu.abi.errno import (
    EACCES,
    EINVAL,
    ENOENT,
    ENOSYS,
    EOPNOTSUPP,
    EPERM,
    ESRCH,
    EXDEV,
)
from xenemu.abi.xen import DOMID_SELF
from xenemu.errors import DomainCrash, XenError
from xenemu.hv import grant_table
from xenemu.hv.current import Current
from xenemu.hv.dispatch import Continue
from xenemu.hv.frame_table import PageCounts
from xenemu.hv.p2m import MAX_GFN

RAM = FIRST_GUEST_FRAME  # the first of 64
PAGES = 64
POINTER, LIST, GFNS, ERRORS = (frame << 12 for frame in range(20, 24))
FAR = 0xFEFF0
SHARED_INFO_SPACE, GRANTS = abi.XENMAPSPACE_shared_info, abi.XENMAPSPACE_grant_table
GMFN, RANGE = abi.XENMAPSPACE_gmfn, abi.XENMAPSPACE_gmfn_range


@pytest.fixture
def current() -> Current:
    current = make_pvh_current(PAGES)
    frames = current.domain.frames
    frames.add_to_heap(range(8, 16))
    current.domain.pages.max_pages = PAGES + 4
    return current


def add(current: Current, space: int, index: int, gfn: int, **more: int) -> int | None:
    op = abi.xen_add_to_physmap(
        more.get("domid", DOMID_SELF), more.get("size", 0), space, index, gfn
    )
    current.write_struct(POINTER, op)
    return ops(current, abi.XENMEM_add_to_physmap | more.get("start", 0) << 6, POINTER)


def state(current: Current) -> tuple[dict[int, int], PageCounts, bytes]:
    domain = current.domain
    assert domain.p2m is not None
    memory = bytes(domain.memory.bytes[:POINTER])
    return (
        {gfn: int(mfn) for gfn, mfn in domain.p2m.places()},
        copy.copy(domain.pages),
        memory,
    )


def refused(current: Current, errno: int, *what: int, **more: int) -> None:
    before = state(current)
    with pytest.raises(XenError) as error:
        add(current, *what, **more)
    assert error.value.errno == errno
    assert state(current) == before


def test_shared_info_replaces_ram_which_goes_back(current):
    pages = current.domain.pages.tot_pages
    add(current, SHARED_INFO_SPACE, 0, RAM)
    assert current.domain.p2m.get(RAM) == SHARED_INFO
    assert current.domain.pages.tot_pages == pages - 1
    assert RAM in current.domain.frames.heap


def test_shared_info_is_in_one_place(current):
    add(current, SHARED_INFO_SPACE, 0, FAR)
    add(current, SHARED_INFO_SPACE, 0, FAR + 1)
    assert current.domain.p2m.elsewhere == {FAR + 1: SHARED_INFO}
    assert current.domain.frames.is_xen_heap(SHARED_INFO)


def test_to_the_same_place_again(current):
    for _ in range(2):
        add(current, SHARED_INFO_SPACE, 0, FAR)
        add(current, GMFN, RAM, RAM)
    assert current.domain.p2m.elsewhere == {FAR: SHARED_INFO}
    assert current.domain.p2m.get(RAM) == RAM
    assert current.domain.frames.owner[RAM] == current.domain.domid


def test_the_grant_table_grows_to_the_frame_asked_for(current):
    add(current, GRANTS, 1, FAR)
    grants = current.domain.grants
    assert len(grants.frames) == 2
    assert current.domain.p2m.get(FAR) == grants.frames[1]


def test_status_frames_are_those_of_version_2(current):
    grants = current.domain.grants
    grant_table.grow(current.domain, 1)
    grant_table.set_version(current.domain, 2)
    for index, gfn in ((abi.XENMAPIDX_grant_table_status, FAR), (0, FAR + 1)):
        add(current, GRANTS, index, gfn)
    assert current.domain.p2m.elsewhere == {
        FAR: grants.status_frames[0],
        FAR + 1: grants.frames[0],
    }


def test_a_grants_mapping_does_not_move(current):
    current.domain.p2m.map_grant(FAR, RAM)
    refused(current, EXDEV, GMFN, FAR, FAR + 1)


def test_ram_moves_with_what_is_in_it(current):
    current.domain.memory.write_uint(RAM << 12, 8, 0x1234)
    add(current, GMFN, RAM, FAR)
    assert current.domain.p2m.get(RAM) is None
    assert current.domain.p2m.get(FAR) == RAM
    assert current.read_uint(FAR << 12, 8) == 0x1234


@pytest.mark.parametrize(
    ("space", "index", "gfn", "more", "errno"),
    [
        (SHARED_INFO_SPACE, 1, RAM, {}, EINVAL),
        (SHARED_INFO_SPACE, 0, MAX_GFN + 1, {}, EINVAL),
        (GRANTS, 1 << 20, RAM, {}, EINVAL),
        (GRANTS, abi.XENMAPIDX_grant_table_status, RAM, {}, EINVAL),
        (GMFN, FAR, RAM, {}, EINVAL),
        (9, 0, RAM, {}, EINVAL),
        (abi.XENMAPSPACE_dev_mmio, 0, RAM, {}, EACCES),
        (abi.XENMAPSPACE_gmfn_foreign, 0, RAM, {}, ENOSYS),
        (GMFN, RAM, FAR, {"domid": 0}, EACCES),
        (GMFN, RAM, FAR, {"domid": 9}, ESRCH),
    ],
)
def test_what_cannot_be_added(space, index, gfn, more, errno):
    current = make_pvh_current(PAGES)
    current.vcpu.width = 8
    refused(current, errno, space, index, gfn, **more)


def test_a_range_moves_and_says_where_it_goes_on(current, monkeypatch):
    monkeypatch.setattr(sys.modules["hypercalls.memory_op"], "PAGES_PER_CALL", 2)
    with pytest.raises(Continue) as again:
        add(current, RANGE, RAM, FAR, size=3)
    assert again.value.new_args == (abi.XENMEM_add_to_physmap | 2 << 6, POINTER)
    add(current, RANGE, RAM, FAR, size=3, start=2)
    assert [current.domain.p2m.get(FAR + n) for n in range(3)] == [RAM, RAM + 1, RAM + 2]


def batch(current: Current, space: int, indices: list[int], gfns: list[int]) -> list[int]:
    for n, (index, gfn) in enumerate(zip(indices, gfns, strict=True)):
        current.write_uint(LIST + 4 * n, 4, index)
        current.write_uint(GFNS + 4 * n, 4, gfn)
    op = abi.xen_add_to_physmap_batch(
        domid=DOMID_SELF, space=space, size=len(gfns), u=0, idxs=LIST, gpfns=GFNS, errs=ERRORS
    )
    current.write_struct(POINTER, op)
    ops(current, abi.XENMEM_add_to_physmap_batch, POINTER)
    return [current.read_uint(ERRORS + 4 * n, 4) for n in range(len(gfns))]


def test_each_of_a_batch_has_its_own_errno(current):
    errors = batch(current, GMFN, [RAM, FAR + 9, RAM + 1], [FAR, FAR + 1, FAR + 2])
    assert errors == [0, (1 << 32) - EINVAL, 0]
    assert current.domain.p2m.elsewhere == {FAR: RAM, FAR + 2: RAM + 1}


def test_another_domains_frames_are_not_to_be_had(current):
    errors = batch(current, abi.XENMAPSPACE_gmfn_foreign, [1], [FAR])
    assert errors == [(1 << 32) - EPERM]
    assert current.domain.p2m.get(FAR) is None


def test_a_batch_is_no_range(current):
    with pytest.raises(XenError) as error:
        batch(current, RANGE, [RAM], [FAR])
    assert error.value.errno == EOPNOTSUPP
    assert current.domain.p2m.elsewhere == {}


def remove(current: Current, gfn: int) -> None:
    current.write_struct(POINTER, abi.xen_remove_from_physmap(DOMID_SELF, gfn))
    ops(current, abi.XENMEM_remove_from_physmap, POINTER)


def test_a_removed_page_stays_the_domains(current):
    pages = current.domain.pages.tot_pages
    remove(current, RAM)
    assert current.domain.p2m.get(RAM) is None
    assert current.domain.pages.tot_pages == pages
    with pytest.raises(XenError) as error:
        remove(current, RAM)
    assert error.value.errno == ENOENT


def reservation(current: Current, command: int, gfns: list[int], order: int = 0) -> int | None:
    for n, gfn in enumerate(gfns):
        current.write_uint(LIST + 4 * n, 4, gfn)
    op = abi.xen_memory_reservation(LIST, len(gfns), order, 0, DOMID_SELF)
    current.write_struct(POINTER, op)
    return ops(current, command, POINTER)


def test_a_balloon_deflates_where_it_was_inflated(current):
    current.domain.memory.write_uint(RAM << 12, 8, 0x1234)
    assert reservation(current, abi.XENMEM_decrease_reservation, [RAM]) == 1
    assert current.domain.p2m.get(RAM) is None
    assert reservation(current, abi.XENMEM_populate_physmap, [RAM]) == 1
    assert current.domain.p2m.get(RAM) == RAM
    assert current.read_uint(RAM << 12, 8) == 0
    assert current.read_uint(LIST, 4) == RAM


def test_a_hole_cannot_be_given_back(current):
    assert reservation(current, abi.XENMEM_decrease_reservation, [RAM, FAR, RAM + 1]) == 1
    assert current.domain.p2m.get(RAM + 1) == RAM + 1


def test_ram_that_new_memory_replaces_stays_the_domains(current):
    pages = current.domain.pages.tot_pages
    assert reservation(current, abi.XENMEM_populate_physmap, [RAM]) == 1
    assert current.domain.p2m.get(RAM) != RAM
    assert current.domain.frames.owner[RAM] == current.domain.domid
    assert current.domain.pages.tot_pages == pages + 1


def test_new_memory_where_a_grant_is_mapped_ends_the_domain(current):
    current.domain.p2m.map_grant(FAR, RAM)
    with pytest.raises(DomainCrash, match="maps a grant"):
        reservation(current, abi.XENMEM_populate_physmap, [FAR])


def test_memory_where_none_was_comes_from_the_heap(current):
    assert reservation(current, abi.XENMEM_populate_physmap, [FAR]) == 1
    assert 8 <= current.domain.p2m.get(FAR) < 16


def test_no_memory_beyond_all_addresses(current):
    before = state(current)
    current.vcpu.width = 8
    current.write_uint(LIST, 8, MAX_GFN + 1)
    current.write_struct(POINTER, abi.xen_memory_reservation(LIST, 1, 0, 0, DOMID_SELF))
    assert ops(current, abi.XENMEM_populate_physmap, POINTER) == 0
    assert state(current) == before


def test_increased_memory_has_no_place_and_is_not_told(current):
    assert reservation(current, abi.XENMEM_increase_reservation, [0]) == 1
    assert current.read_uint(LIST, 4) == 0
    assert current.domain.p2m.elsewhere == {}


def test_the_highest_frame(current):
    current.write_uint(POINTER, 2, DOMID_SELF)
    assert ops(current, abi.XENMEM_maximum_gpfn, POINTER) == RAM + PAGES - 1
    add(current, SHARED_INFO_SPACE, 0, FAR)
    current.write_uint(POINTER, 2, DOMID_SELF)
    assert ops(current, abi.XENMEM_maximum_gpfn, POINTER) == FAR


@pytest.mark.parametrize(
    ("command", "errno"),
    [
        (abi.XENMEM_exchange, EOPNOTSUPP),
        (abi.XENMEM_machphys_mapping, ENOSYS),
    ],
)
def test_what_only_a_pv_guest_does(current, command, errno):
    before = state(current)
    with pytest.raises(XenError) as error:
        ops(current, command, POINTER)
    assert error.value.errno == errno
    assert state(current) == before


def test_a_page_that_xen_uses_is_not_given_to_another(current):
    frames = current.domain.frames
    frames.get_page(RAM, current.domain.domid)
    physmap.discard(current, RAM)
    assert RAM not in frames.heap
    frames.put_page(RAM)
    assert RAM in frames.heap
