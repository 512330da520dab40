"""hv/maptrack: the handles of grant mappings."""

from __future__ import annotations

from xenemu.hv.maptrack import HANDLES_PER_FRAME, Mapping, Maptrack


def test_handles_are_given_in_order():
    maptrack = Maptrack()
    assert [maptrack.get(0) for _ in range(3)] == [0, 1, 2]


def test_a_freed_handle_is_the_last_to_be_given_again():
    maptrack = Maptrack(max_frames=1)
    handles = [maptrack.get(0) for _ in range(3)]
    maptrack.put(handles[0])
    rest = [maptrack.get(0) for _ in range(HANDLES_PER_FRAME - 3)]
    assert (rest[0], rest[-1]) == (3, HANDLES_PER_FRAME - 1)


def test_a_freed_handle_stands_for_nothing():
    maptrack = Maptrack()
    handle = maptrack.get(0)
    maptrack.mappings[handle] = Mapping(1, 8, 2)
    maptrack.put(handle)
    assert maptrack.mappings == {}


def test_a_vcpu_keeps_its_last_free_handle():
    maptrack = Maptrack(max_frames=1)
    given = [maptrack.get(0) for _ in range(HANDLES_PER_FRAME)]
    assert given[-1] is None
    assert sorted(given[:-1]) == list(range(HANDLES_PER_FRAME - 1))


def test_new_handles_come_before_the_one_that_was_kept():
    maptrack = Maptrack(max_frames=2)
    given = [maptrack.get(0) for _ in range(HANDLES_PER_FRAME + 1)]
    assert given[-2:] == [HANDLES_PER_FRAME, HANDLES_PER_FRAME + 1]


def test_a_vcpu_without_handles_takes_anothers_and_keeps_one():
    maptrack = Maptrack(max_frames=1)
    assert maptrack.get(0) == 0
    assert maptrack.get(1) == 2
    assert list(maptrack.free[1]) == [1]
    maptrack.put(2)
    assert list(maptrack.free[1]) == [1, 2]


def test_a_domain_without_frames_for_them_has_no_handles():
    maptrack = Maptrack(max_frames=0)
    assert maptrack.get(0) is None
    assert maptrack.home == []
