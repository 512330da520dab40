"""A guest's memory and symbols, as a program has them."""

from __future__ import annotations

import re

import pytest

import elfwriter
import xenemu
from tinyguest import SPIN, kernel, say
from xenemu.smoke.guest import close_all, memory

BASE = elfwriter.KERNEL.vaddr
CODE = say(b"one\n") + SPIN
LOW, HIGH = 16 << 20, 18 << 20  # where the kernel is in its own numbering, and what Xen made for it


@pytest.fixture(scope="module")
def guest(tmp_path_factory):
    path = tmp_path_factory.mktemp("memory") / "kernel"
    path.write_bytes(kernel(CODE, {"start": BASE, "text": BASE + 0x10}))
    with xenemu.boot(path, memory="64M") as guest:
        yield guest
    close_all()


def test_a_slice_is_bytes_and_an_index_a_byte(guest):
    assert guest.memory[BASE : BASE + len(CODE)] == CODE
    assert guest.memory[BASE] == CODE[0]
    assert guest.memory[BASE:BASE] == guest.memory[BASE + 4 : BASE] == b""
    assert guest.memory.word(BASE, 4) == int.from_bytes(CODE[:4], "little")
    assert guest.memory.read(BASE + 1, 3) == CODE[1:4]


def test_what_is_stored_is_there_across_pages(guest):
    at = BASE + 0x1000 - 2
    guest.memory[at : at + 4] = b"abcd"
    guest.memory[at + 4] = ord("e")
    assert guest.memory[at : at + 5] == b"abcde"


def test_the_guest_runs_what_was_stored(guest):
    with guest.fork() as copy:
        at = BASE + CODE.index(b"one")
        copy.memory[at : at + 3] = b"two"
        assert copy.expect(r"\w+").text == "two"
        assert guest.memory[at : at + 3] == b"one"


def test_physical_memory_is_the_guests_own_numbering(guest):
    at = LOW + guest.physical[LOW:HIGH].index(CODE)
    assert at & 0xFFF == BASE & 0xFFF
    guest.physical[at + 0x800] = 7
    assert guest.memory[BASE + 0x800] == 7


def test_large_reads_come_in_pieces(guest, monkeypatch):
    whole = guest.memory[BASE : BASE + 0x1800]
    monkeypatch.setattr(memory, "PIECE", 0x700)
    assert guest.memory[BASE : BASE + 0x1800] == whole


def test_what_is_not_there_is_told_and_nothing_is_stored(guest):
    last = BASE
    while True:
        try:
            guest.memory[last + 0x1000]
        except xenemu.Unmapped:
            break
        last += 0x1000
    last += 0xFFE
    before = guest.memory[last : last + 2]
    for wrong in (
        lambda: guest.memory[last : last + 4],
        lambda: guest.memory[1 << 64],
        lambda: guest.memory.write(last, b"abcd"),
        lambda: guest.physical[1 << 40],
        lambda: guest.physical[(1 << 70) : (1 << 70) + 1],
    ):
        with pytest.raises(xenemu.Unmapped):
            wrong()
    assert guest.memory[last : last + 2] == before


def test_what_makes_no_sense_is_told_in_a_line(guest):
    for wrong, words in (
        (lambda: guest.memory[-1], "-1 is no address"),
        (lambda: guest.memory["start"], "read: address is 'start': give a number"),
        (lambda: guest.memory[BASE:], "give a slice a start and an end, and no step"),
        (lambda: guest.memory[0:8:2], "give a slice a start and an end, and no step"),
        (lambda: guest.memory.read(0, 1 << 40), f"{1 << 40} bytes: read from 0 to {1 << 30}"),
        (lambda: guest.memory.__setitem__(slice(0, 2), b"abc"), "give 2 bytes for a slice"),
        (lambda: guest.memory.__setitem__(0, 256), "256: give a byte, from 0 to 255"),
    ):
        with pytest.raises(xenemu.UsageError) as caught:
            wrong()
        assert str(caught.value).startswith(words)


def test_a_page_table_is_not_stored_to(guest):
    whole = guest.physical[LOW:HIGH]
    pages = [whole[at : at + 0x1000] for at in range(0, len(whole), 0x1000)]
    refused = 0
    for number in (n for n, page in enumerate(pages) if any(page)):
        try:
            guest.physical.write(LOW + (number << 12), pages[number])
        except xenemu.UsageError as error:
            assert re.search(r"is in a l\d_page_table, which Xen has checked$", str(error))
            refused += 1
    assert refused >= 4
    assert guest.physical[LOW:HIGH] == whole


def test_symbols_go_both_ways(guest):
    assert guest.symbols["start"] == BASE
    assert guest.symbols.name(BASE + 0x12) == "text+0x2/0x1ff0"
    assert guest.symbols.name(12) == "0xc"
    assert "start" in guest.symbols
    assert "nope" not in guest.symbols
    assert 12 not in guest.symbols
    assert guest.symbols.get("nope") is None
    with pytest.raises(KeyError) as caught:
        guest.symbols["nope"]
    assert str(caught.value) == "the image has no symbol nope"


def test_a_kernel_that_is_no_linux_says_so(guest):
    with pytest.raises(xenemu.UsageError, match="has no BTF"):
        guest.kernel.tasks()
    with pytest.raises(xenemu.UsageError, match="has no BTF"):
        guest.kernel["init_task"]
    with pytest.raises(xenemu.UsageError, match="no log of the kernel's"):
        guest.kernel.log()
