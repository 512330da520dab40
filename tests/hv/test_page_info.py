"""hv/page_info: the record of a frame, and its fields as views."""

from __future__ import annotations

from xenemu.hv.frame_table import FrameTable, PGT_writable_page
from xenemu.hv.memory import Memory
from xenemu.hv.page_info import RECORD, places
from xenemu.x86.paging import Mfn

FRAME = 5


def test_a_record_has_no_gaps() -> None:
    end = 0
    for offset, size in places().values():
        assert offset == end
        assert offset % size == 0
        end += size
    assert end == RECORD.size


def test_a_view_writes_its_own_field_of_its_own_frame() -> None:
    memory = Memory(8)
    frames = FrameTable(memory)
    blank = bytes(memory.page_info)
    for n, name in enumerate(places()):
        getattr(frames, name)[FRAME] = n + 1
    start = FRAME * RECORD.size
    assert RECORD.unpack_from(memory.page_info, start) == (1, 2, 3, 4, 5)
    after = bytes(memory.page_info)
    end = start + RECORD.size
    assert (after[:start], after[end:]) == (blank[:start], blank[end:])


def test_a_frame_that_is_given_has_a_whole_record() -> None:
    memory = Memory(8)
    frames = FrameTable(memory)
    frames.assign(Mfn(FRAME), 7, 2)
    for mfn in (FRAME, FRAME + 1):
        assert (frames.count[mfn], frames.type_count[mfn], frames.owner[mfn]) == (1, 0, 7)
        assert frames.type[mfn] == PGT_writable_page


def test_a_table_that_is_kept_leaves_its_records_with_the_memory() -> None:
    frames = FrameTable(Memory(8))
    state = frames.__getstate__()
    assert not state.keys() & places().keys()
    again = FrameTable.__new__(FrameTable)
    again.__setstate__(state)
    again.count[FRAME] = 9
    assert frames.count[FRAME] == 9
