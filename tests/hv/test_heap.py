"""The heap: a stack of free frames, any of which may be taken."""

from __future__ import annotations

import pytest

from xenemu.hv.heap import Heap


@pytest.fixture
def heap() -> Heap:
    """Frames 0 to 9, of which 0 is next."""
    heap = Heap(16)
    heap.put_below(range(10))
    return heap


def test_the_last_that_came_back_is_next(heap: Heap) -> None:
    assert heap.pop(16) == 0
    heap.put(12)
    assert (heap.pop(16), heap.pop(16)) == (12, 1)
    assert (len(heap), list(heap)) == (8, [9, 8, 7, 6, 5, 4, 3, 2])


def test_a_frame_above_the_limit_is_not_popped(heap: Heap) -> None:
    heap.put(12)
    assert heap.pop(12) is None
    assert heap.pop(13) == 12


def test_a_frame_taken_from_the_middle_is_not_popped(heap: Heap) -> None:
    assert heap.take(1)
    assert (heap.pop(16), heap.pop(16)) == (0, 2)
    assert 1 not in heap


def test_a_frame_that_comes_back_is_seen_once_and_on_top(heap: Heap) -> None:
    heap.take(5)
    heap.put(5)
    assert list(heap) == [9, 8, 7, 6, 4, 3, 2, 1, 0, 5]
    popped = [heap.pop(16) for _ in range(10)]
    assert popped == [5, 0, 1, 2, 3, 4, 6, 7, 8, 9]
    assert heap.pop(16) is None


@pytest.mark.parametrize(("first", "size"), [(10, 1), (8, 4), (-1, 1), (40, 1)])
def test_what_is_not_all_there_is_not_taken(heap: Heap, first: int, size: int) -> None:
    assert not heap.take(first, size)
    assert len(heap) == 10


def test_extents_are_aligned_and_whole(heap: Heap) -> None:
    heap.take(2)
    assert [*heap.extents(0)] == [1, 1, 0, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0]
    assert [*heap.extents(1)] == [1, 0, 1, 1, 1, 0, 0, 0]
    assert [*heap.extents(2)] == [0, 1, 0, 0]


def test_taking_from_the_middle_and_giving_back_does_not_make_it_grow(heap: Heap) -> None:
    for _ in range(1000):
        heap.take(3)
        heap.put(3)
    assert len(heap._stack) < 200
    assert list(heap) == [9, 8, 7, 6, 5, 4, 2, 1, 0, 3]
