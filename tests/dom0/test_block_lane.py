"""dom0/block_lane: what C does with an ordinary request is what the model does."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest
from dom0.test_block import CONTENT, ERROR, OKAY, Guest

from busfakes import DEVICE_FRAMES
from fuzz.devices import FRAMES, LIFE, block_guest
from xenemu.abi.grant_table import GTF_permit_access, GTF_readonly
from xenemu.abi.io.blkif import BLKIF_OP_READ, BLKIF_OP_WRITE
from xenemu.dom0 import block_lane
from xenemu.dom0.block import Block
from xenemu.dom0.disk import BlocksInMemory, FileDisk, OverlayDisk
from xenemu.x86.paging import PAGE_SIZE

WHOLE = (0, 7)


@pytest.fixture
def only_lane(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Let C do what it will; the slots that it leaves to the model."""
    left: list[bytes] = []
    serve = Block._serve

    def note(self: Block, domain: object, number: int, slot: bytes, now_ns: int) -> None:
        left.append(slot)
        serve(self, domain, number, slot, now_ns)  # type: ignore[arg-type]

    monkeypatch.setattr(Block, "_serve", note)
    return left


def with_file(path: Path, **more: bool) -> Guest:
    guest = Guest(**more)  # type: ignore[arg-type]
    path.write_bytes(CONTENT)
    guest.block.disk = FileDisk(os.open(path, os.O_RDWR), len(CONTENT))
    return guest


def test_a_file_is_read_and_written_in_place(tmp_path: Path, only_lane: list[bytes]) -> None:
    guest = with_file(tmp_path / "disk")
    pages = [guest.page(bytes([n]) * PAGE_SIZE) for n in range(40)]
    table = [(ref, *WHOLE) for ref, _ in pages]
    assert guest.ask(guest.indirect(BLKIF_OP_WRITE, 64, table)) == (9, BLKIF_OP_WRITE, OKAY)
    expected = b"".join(bytes([n]) * PAGE_SIZE for n in range(40))
    written = (tmp_path / "disk").read_bytes()
    assert written == CONTENT[:32768] + expected + CONTENT[32768 + len(expected) :]
    refs = [pages[n][0] for n in (3, 9, 4)]
    request = guest.rw(BLKIF_OP_READ, 1, (refs[0], 2, 7), (refs[1], *WHOLE), (refs[2], 0, 3))
    assert guest.ask(request) == (7, BLKIF_OP_READ, OKAY)
    assert guest.bytes_of(pages[3][1]) == b"\x03" * 1024 + CONTENT[512:3584]
    assert guest.bytes_of(pages[9][1]) == CONTENT[3584:7680]
    assert guest.bytes_of(pages[4][1]) == CONTENT[7680:9728] + b"\x04" * 2048
    assert only_lane == []


def test_only_a_read_of_what_is_not_in_the_overlay_is_the_files(
    tmp_path: Path, only_lane: list[bytes]
) -> None:
    guest = with_file(tmp_path / "disk")
    guest.block.disk = disk = OverlayDisk(guest.block.disk, BlocksInMemory())
    (ref, mfn), (other, _) = guest.page(), guest.page(b"w" * PAGE_SIZE)
    assert guest.ask(guest.rw(BLKIF_OP_WRITE, 8, (other, *WHOLE))) == (7, BLKIF_OP_WRITE, OKAY)
    for sector, expected in (
        (8, b"w" * 4096),
        (0, CONTENT[:4096]),
        (4, CONTENT[:2048] + b"w" * 2048),
    ):
        assert guest.ask(guest.rw(BLKIF_OP_READ, sector, (ref, *WHOLE))) == (7, 0, OKAY)
        assert guest.bytes_of(mfn) == expected
    places = [disk.file_at(at, 4096, to_write=False) for at in (0, 2048, 4096, 8192)]
    assert [place is not None for place in places] == [True, False, False, True]
    assert disk.file_at(0, 4096, to_write=True) is None
    assert (tmp_path / "disk").read_bytes() == CONTENT
    assert only_lane == []


def test_a_file_that_became_shorter_is_an_error_of_the_request(tmp_path: Path) -> None:
    guest = with_file(tmp_path / "disk")
    os.truncate(tmp_path / "disk", 5000)
    ref, _ = guest.page()
    assert guest.ask(guest.rw(BLKIF_OP_READ, 8, (ref, *WHOLE))) == (7, BLKIF_OP_READ, ERROR)
    assert "904 bytes of 4096: the file is shorter" in guest.bus.domain.refusals[-1]
    guest.block.disk = FileDisk(-1, len(CONTENT))
    assert guest.ask(guest.rw(BLKIF_OP_READ, 8, (ref, *WHOLE))) == (7, BLKIF_OP_READ, ERROR)
    assert guest.bus.domain.refusals[-1].endswith("Bad file descriptor")


def test_what_is_not_ordinary_is_left_to_the_model(only_lane: list[bytes]) -> None:
    guest = Guest()
    ref, mfn = guest.page()
    only_read, _ = guest.page(flags=GTF_permit_access | GTF_readonly)
    segment = (ref, *WHOLE)
    guest.ask(guest.rw(BLKIF_OP_WRITE, 0, (only_read, *WHOLE)))  # this is ordinary
    assert only_lane == []
    last = len(CONTENT) // 512
    for request in (
        guest.rw(BLKIF_OP_READ, 0),
        guest.rw(BLKIF_OP_READ, 0, segment, count=12),
        guest.rw(BLKIF_OP_READ, 0, (ref, 5, 4)),
        guest.rw(BLKIF_OP_READ, 0, (ref, 0, 8)),
        guest.rw(BLKIF_OP_READ, last - 7, segment),
        guest.rw(BLKIF_OP_READ, (1 << 64) - 8, segment),
        guest.rw(BLKIF_OP_READ, 0, (only_read, *WHOLE)),
        guest.rw(BLKIF_OP_READ, 0, (511, *WHOLE)),
        guest.rw(BLKIF_OP_READ, 0, (512, *WHOLE)),
        guest.rw(BLKIF_OP_READ, 0, (0xFFFF_FFFF, *WHOLE)),
        guest.rw(2, 0, segment),
        guest.rw(3, 0),
        guest.rw(99, 0, segment),
        guest.indirect(BLKIF_OP_READ, 0, [segment], count=257),
        guest.indirect(BLKIF_OP_READ, 0, [segment], count=0),
        guest.indirect(2, 0, [segment]),
    ):
        only_lane.clear()
        guest.ask(request)
        assert only_lane == [request.ljust(112, b"\0")]
    guest.bus.domain.memory.code[mfn] = 1
    only_lane.clear()
    guest.ask(guest.rw(BLKIF_OP_READ, 0, segment))
    assert only_lane
    assert guest.bus.domain.memory.stale_code == {mfn}


def test_of_a_read_only_disk_nothing_is_written_by_c(only_lane: list[bytes]) -> None:
    guest = Guest(read_only=True)
    ref, _ = guest.page()
    assert guest.ask(guest.rw(BLKIF_OP_WRITE, 0, (ref, *WHOLE))) == (7, BLKIF_OP_WRITE, ERROR)
    assert len(only_lane) == 1


def test_segments_in_the_last_bytes_of_a_page_are_all_taken(only_lane: list[bytes]) -> None:
    guest = Guest(pages=2)  # the 35th slot lies in both pages
    ref, mfn = guest.page()
    for n in range(70):
        request = guest.rw(BLKIF_OP_READ, n, *[(ref, 0, 0)] * 10, (ref, n % 8, n % 8), id=n)
        assert guest.ask(request) == (n, BLKIF_OP_READ, OKAY)
        start = n % 8 * 512
        assert guest.bytes_of(mfn, start, 512) == CONTENT[(n + 10) * 512 : (n + 11) * 512]
    assert only_lane == []


@pytest.mark.parametrize("seed", range(3))
def test_with_and_without_c_a_hostile_guest_sees_the_same(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends = []
    for library in (block_lane._LIBRARY, None):
        monkeypatch.setattr(block_lane, "_LIBRARY", library)
        guest = block_guest(random.Random(f"lane {seed}"))
        for frame in range(0, FRAMES, 7):
            guest.memory.code[DEVICE_FRAMES + frame] = 1
        for _ in range(LIFE):
            guest.step()
        domain = guest.bus.domain
        ends.append(
            (
                guest.memory.read(0, len(guest.memory.bytes)),
                (bytes(guest.memory.page_info), guest.memory.stale_code),
                ([*domain.refusals], domain.grants, guest.device.save(), guest.bus.cpu.now_ns),
            )
        )
    assert ends[0] == ends[1]
