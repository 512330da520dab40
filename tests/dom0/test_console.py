"""xenemu/dom0/console.py"""

from __future__ import annotations

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xenemu.dom0.console import IN, INPUT_LIMIT, OUT, OUTPUT_LIMIT, Console
from xenemu.hv.memory import Memory
from xenemu.x86.paging import PAGE_SIZE, Maddr, Mfn

MFN = Mfn(1)
PORT = 2


pytestmark = pytest.mark.usefixtures("noted_events")


class Guest:
    """A domain reduced to its console, and the guest's side of the ring."""

    def __init__(self) -> None:
        self.memory = Memory(2)
        self.output = bytearray()
        self.raised: list[int] = []
        self.console = Console(MFN, PORT)

    def write_index(self, offset: int, value: int) -> None:
        self.memory.write_uint(Maddr(PAGE_SIZE + offset), 4, value)

    def print(self, data: bytes) -> None:
        assert OUT.put(self.memory, MFN, data) == len(data)
        self.console.notify(self, PORT)  # type: ignore[arg-type]

    def type(self, data: bytes) -> int:
        return self.console.feed(self, data)  # type: ignore[arg-type]


@pytest.fixture
def guest() -> Guest:
    return Guest()


def test_output_is_drained_and_acknowledged(guest: Guest) -> None:
    guest.print(b"hello\r\n")
    assert guest.output == b"hello\r\n"
    assert OUT.used(guest.memory, MFN) == 0
    assert guest.raised == [PORT]


def test_nothing_moved_raises_no_event(guest: Guest) -> None:
    guest.print(b"")
    assert guest.raised == []


def test_output_stays_in_the_ring_while_too_much_waits_to_be_shown(guest: Guest) -> None:
    guest.output += bytes(OUTPUT_LIMIT - 2)
    guest.print(b"abc")
    assert len(guest.output) == OUTPUT_LIMIT
    assert OUT.used(guest.memory, MFN) == 1
    guest.output.clear()
    guest.console.pump(guest)  # type: ignore[arg-type]
    assert guest.output == b"c"


def test_nonsense_output_indices_are_ignored(guest: Guest) -> None:
    guest.write_index(OUT.prod, 2049)
    guest.print(b"")
    assert (guest.output, guest.raised) == (b"", [])
    assert OUT.used(guest.memory, MFN) == 2049


def test_input_is_delivered_at_once(guest: Guest) -> None:
    assert guest.type(b"ls\r") == 3
    assert IN.take(guest.memory, MFN, 99) == b"ls\r"
    assert guest.raised == [PORT]


def test_input_waits_until_the_guest_makes_room(guest: Guest) -> None:
    assert guest.type(b"a" * 1024 + b"b") == 1025
    assert guest.console.input == b"b"
    assert IN.take(guest.memory, MFN, 1024) == b"a" * 1024
    guest.console.notify(guest, PORT)  # type: ignore[arg-type]
    assert IN.take(guest.memory, MFN, 99) == b"b"


def test_input_beyond_the_queue_is_not_accepted(guest: Guest) -> None:
    assert guest.type(bytes(2 * INPUT_LIMIT)) == INPUT_LIMIT
    assert guest.console.input_room == 1024  # what went on into the ring
    guest.type(bytes(1024))
    assert (guest.console.input_room, guest.type(b"x")) == (0, 0)


def test_nonsense_input_indices_keep_the_input_queued(guest: Guest) -> None:
    guest.write_index(IN.cons, 1)
    assert guest.type(b"x") == 1
    assert (guest.console.input, guest.raised) == (b"x", [])


@given(st.binary(min_size=3088, max_size=3088), st.binary(max_size=99))
def test_whatever_the_page_holds_nothing_breaks(page: bytes, typed: bytes) -> None:
    guest = Guest()
    guest.memory.write(Maddr(PAGE_SIZE), page)
    guest.print(b"")
    guest.type(typed)
    assert len(guest.output) <= 4096
    assert guest.memory.read(Maddr(0), PAGE_SIZE) == bytes(PAGE_SIZE)


def test_is_plain_data(guest: Guest) -> None:
    guest.type(b"x" * 2000)
    assert pickle.loads(pickle.dumps(guest.console)) == guest.console
