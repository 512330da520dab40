"""Owners, references and the heap."""

from __future__ import annotations

import pytest

from xenemu.abi.errno import EINVAL, ENOMEM
from xenemu.errors import XenError
from xenemu.hv.frame_table import (
    DESCRIBED,
    DOMID_NONE,
    INVALID_M2P_ENTRY,
    PageCounts,
    PGT_writable_page,
)
from xenemu.hv.memory import Memory
from xenemu.hv.pagetype import Frames
from xenemu.x86.paging import Maddr, Mfn

GUEST = 1


@pytest.fixture
def frames() -> Frames:
    frames = Frames(Memory(64))
    frames.assign(Mfn(16), GUEST, 8)
    return frames


def test_an_assigned_frame_has_its_owners_reference(frames: Frames) -> None:
    assert (frames.owner[16], frames.count[16], frames.type_count[16]) == (GUEST, 1, 0)
    assert frames.pages == {GUEST: PageCounts(8)}


def test_a_frame_is_not_given_twice(frames: Frames) -> None:
    with pytest.raises(ValueError, match="not all free"):
        frames.assign(Mfn(15), 2, 3)
    assert list(frames.owner[15:18]) == [DOMID_NONE, GUEST, GUEST]


def test_a_released_frame_goes_to_the_heap(frames: Frames) -> None:
    frames.release(Mfn(17))
    assert (frames.owner[17], list(frames.heap), frames.pages) == (
        DOMID_NONE,
        [17],
        {GUEST: PageCounts(7)},
    )


def test_a_released_frame_stays_while_it_is_referenced(frames: Frames) -> None:
    frames.get_page(17, GUEST)
    frames.release(Mfn(17))
    frames.release(Mfn(17))
    assert (frames.owner[17], frames.count[17], list(frames.heap)) == (GUEST, 1, [])
    frames.put_page(17)
    assert list(frames.heap) == [17]


@pytest.mark.parametrize("mfn", [15, 64, 1 << 52, -1])
def test_get_page_refuses_what_is_not_the_domains(frames: Frames, mfn: int) -> None:
    before = list(frames.count)
    with pytest.raises(XenError) as refusal:
        frames.get_page(mfn, GUEST)
    assert refusal.value.errno == EINVAL
    assert list(frames.count) == before


def test_a_shared_frame_never_returns_to_the_heap(frames: Frames) -> None:
    frames.share_with_guest(Mfn(2), GUEST, writable=True)
    assert (frames.type[2], frames.type_count[2]) == (PGT_writable_page, 1)
    frames.release(Mfn(2))
    assert (frames.owner[2], list(frames.heap), frames.pages) == (
        DOMID_NONE,
        [],
        {GUEST: PageCounts(8)},
    )


def test_the_heap_is_used_in_the_order_it_was_given(frames: Frames) -> None:
    frames.add_to_heap([30, 31])
    frames.add_to_heap([40])
    assert [frames.alloc_frames(GUEST)[0] for _ in range(3)] == [30, 31, 40]


def test_an_allocated_frame_is_zeroed(frames: Frames) -> None:
    frames.memory.table(Mfn(30))[5] = 7
    frames.add_to_heap([30])
    assert frames.alloc_xen_frame() == 30
    assert not any(frames.memory.table(Mfn(30)))
    assert frames.owner[30] == DOMID_NONE


@pytest.mark.parametrize("shared", [False, True])
def test_a_frame_of_xens_is_given_back(frames: Frames, shared: bool) -> None:
    frames.add_to_heap([30, 31])
    mfn = frames.alloc_xen_frame()
    if shared:
        frames.share_with_guest(mfn, GUEST, writable=True)
    frames.free_xen_frame(mfn)
    assert (list(frames.heap), frames.owner[30], frames.count[30]) == ([31, 30], DOMID_NONE, 0)
    assert frames.pages == {GUEST: PageCounts(8)}


def test_an_extent_is_aligned_and_contiguous(frames: Frames) -> None:
    frames.add_to_heap([29, 30, 31, 33, 34, 35, 40, 41, 42, 43])
    assert frames.alloc_frames(GUEST, order=2) == [40]
    assert list(frames.owner[40:44]) == [GUEST] * 4
    assert frames.alloc_frames(GUEST, order=1, nr_extents=2) == [30, 34]
    assert sorted(frames.heap) == [29, 33]


def test_an_extent_is_below_the_limit(frames: Frames) -> None:
    frames.add_to_heap([40, 41, 30, 31])
    assert frames.alloc_frames(GUEST, below=32) == [30]
    assert frames.alloc_frames(GUEST, below=41, nr_extents=2) == [31, 40]


def test_no_extent_leaves_the_heap_alone(frames: Frames) -> None:
    frames.add_to_heap([31, 32, 40, 41])
    with pytest.raises(XenError) as refusal:
        frames.alloc_frames(GUEST, order=1, nr_extents=2)
    assert refusal.value.errno == ENOMEM
    assert list(frames.heap) == [41, 40, 32, 31]
    assert frames.pages == {GUEST: PageCounts(8)}


def test_a_freed_frame_has_no_pfn(frames: Frames) -> None:
    frames.m2p_base = Maddr(0x1000)
    frames.set_m2p(17, 5)
    assert frames.get_m2p(17) == 5
    frames.release(Mfn(17))
    assert frames.get_m2p(17) == INVALID_M2P_ENTRY


def test_a_sentence_tells_which_frames_it_describes(frames: Frames) -> None:
    sentence = f"entry 3 of mfn 0x10 maps {frames.describe(17)}, not {frames.describe(0xFFFF)}"
    assert DESCRIBED.findall(sentence) == ["0x11", "0xffff"]
