"""Plain data as bytes and back, and what of a stranger's bytes is refused."""

from __future__ import annotations

import contextlib
import random
from collections import defaultdict, deque

import msgspec
import pytest

from xenemu.encoding import DecodeError, EncodeError, decode, encode
from xenemu.hv.calls import CallRecord
from xenemu.hv.cpu import Segment
from xenemu.hv.frame_table import PageCounts
from xenemu.hv.heap import Heap
from xenemu.hv.state.vcpu import RunState, Vcpu
from xenemu.pv.state import Trap
from xenemu.x86.paging import Maddr


def again(value, **parts):
    return decode(encode(value, parts), parts, type(value))


@pytest.mark.parametrize(
    "value",
    [
        [None, True, 0, -1, 1 << 63, 1 << 64, -(1 << 80), 1.5, "x", b"\0"],
        {1: "a", (2, 3): [4]},
        {frozenset({1, 2}), frozenset()},
        bytearray(b"abc"),
        deque([1, 2], maxlen=3),
        [range(1, 9, 2)],
        [RunState.BLOCKED, Trap(1, 2), Segment(1, 2, 3, 4)],
        [CallRecord],
        Vcpu(0, Maddr(0x1000), runstate=RunState.RUNNING, poll_ports=frozenset({3})),
        [],
    ],
)
def test_what_comes_back_is_equal_and_of_the_same_type(value):
    found = again(value)
    assert found == value
    assert type(found) is type(value)


def test_a_deque_keeps_its_limit_and_a_default_its_class():
    assert again(deque([1], maxlen=3)).maxlen == 3
    found = again(defaultdict(PageCounts, {1: PageCounts(2, 3)}))
    assert (found[1], found[2]) == (PageCounts(2, 3), PageCounts())


def test_what_is_shared_stays_shared():
    record = CallRecord(1, 0, 2, "iret")
    first, second, log = again([record, record, deque([record])])
    assert first is second is log[0]


def test_a_list_may_have_itself_in_it():
    value: list[object] = [1]
    value.append(value)
    found = again(value)
    assert found[1] is found


def test_a_record_without_declared_fields_is_its_attributes():
    heap = Heap(8)
    heap.put(3)
    assert list(again(heap)) == [3]


def test_a_part_stays_outside():
    part = object()
    assert again([part, [part]], name=part)[1][0] is part


def test_the_same_data_are_the_same_bytes():
    value = {"a": {3, 1, 2}, "b": [frozenset({"x", "y"})]}
    assert encode(value, {}) == encode(again(value), {})


@pytest.mark.parametrize("value", [object(), [print], open, random.Random()])
def test_what_is_no_plain_data_is_refused(value):
    with pytest.raises(EncodeError):
        encode(value, {})


def document(classes, objects, root=0):
    reference = msgspec.msgpack.Ext(1, root.to_bytes(4, "little"))
    return msgspec.msgpack.encode([classes, objects, reference])


FIELDS = ["at_ns", "vcpu_id", "rip", "name", "args", "result", "reason", "standing", "caller"]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "no document"),
        (b"\xff" * 8, "no document"),
        (document([], [("list", [])], root=1), "no document"),
        (document([], [("exec", [])]), "no kind 'exec'"),
        (document([], [("part", ["x"])]), "no document"),
        (document([["os", "system", []]], [("record", [0])]), "os has no records"),
        (document([["subprocess", "Popen", None]], [("named", [0, "x"])]), "has no records"),
        (document([["xenemu.hvx", "A", []]], [("record", [0])]), "xenemu.hvx has no records"),
        (document([["xenemu.hv.calls", "Gone", []]], [("record", [0])]), "there is no"),
        (document([["xenemu.hv.heap", "Iterator", []]], [("record", [0])]), "is no record"),
        (document([["xenemu.hv.heap", "Heap", None]], [("named", [0, 1])]), "is no record"),
        (document([["xenemu.hv.calls", "CallRecord", FIELDS[1:]]], [("record", [0, *[0] * 8])]),
         "CallRecord is of another version: at_ns"),
        (document([["xenemu.hv.calls", "CallRecord", FIELDS]], [("record", [0])]), "no document"),
        (document([], [("list", [[1]])]), "a container stands"),
        (document([], [("tuple", [msgspec.msgpack.Ext(1, bytes(4))])]), "too deep"),
        (document([], [("dict", [1])]), "no document"),
    ],
)  # fmt: skip
def test_other_bytes_are_refused(data, words):
    with pytest.raises(DecodeError, match=words):
        decode(data, {}, list)


def test_another_class_than_wanted_is_refused():
    with pytest.raises(DecodeError, match="this is a list, and no dict"):
        decode(encode([], {}), {}, dict)


def test_damaged_bytes_are_refused_or_plain():
    data = bytearray(encode([Vcpu(0, Maddr(0)), {1: (2, "x")}, RunState.RUNNING], {}))
    rng = random.Random(1)
    for _ in range(2000):
        at = rng.randrange(len(data))
        kept = data[at]
        data[at] ^= 1 << rng.randrange(8)
        with contextlib.suppress(DecodeError):
            decode(bytes(data), {}, list)
        data[at] = kept
