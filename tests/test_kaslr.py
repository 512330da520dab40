"""kaslr: a Linux that has put itself elsewhere is found by bytes that never change."""

from __future__ import annotations

from pathlib import Path

import pytest

import elfwriter
from elfwriter import Phdr, elf
from fakes import enter_long_mode, make_current, make_pvh_current
from xenemu import image, kaslr
from xenemu.hv.current import Current
from xenemu.image import Image
from xenemu.kaslr import MappedCode, Move, as_mapped, find
from xenemu.x86.paging import RW, P

TEXT = 0xFFFF_FFFF_8100_0000
HOME, ELSEWHERE = 0x20, 0x28  # frames
MOVED = 6 << 20
BANNER = b"Linux version 6.1".ljust(256, b".")
ROOT = 0x30


@pytest.fixture
def linux(tmp_path: Path) -> Image:
    sections = elfwriter.symbol_table({"linux_banner": TEXT + 64, "percpu": 8}, 64)
    segment = Phdr(bytes(64) + BANNER, vaddr=TEXT, paddr=HOME << 12, memsz=0x1000)
    path = tmp_path / "vmlinux"
    path.write_bytes(elf([segment], sections))
    return image.load(path)


def running(vaddr: int, frame: int, *copies: int) -> Current:
    """A guest that has mapped a frame, and has the kernel in the frames `copies`."""
    current = make_pvh_current()
    words = current.domain.memory.words
    table = ROOT
    for shift in (39, 30, 21):
        words[table << 9 | vaddr >> shift & 511] = table + 1 << 12 | RW | P
        table += 1
    words[table << 9 | vaddr >> 12 & 511] = frame << 12 | P
    enter_long_mode(current, ROOT << 12)
    for copy in copies:
        current.domain.memory.write(copy << 12, bytes(64) + BANNER)
    return current


def test_a_kernel_that_moved_itself_is_found(linux: Image) -> None:
    current = running(TEXT + MOVED, ELSEWHERE, ELSEWHERE)
    assert find(current, linux) == Move(MOVED, ELSEWHERE - HOME << 12)
    found = as_mapped(current, linux)
    assert found.segments[0].vaddr == TEXT + MOVED
    assert found.segments[0].paddr == ELSEWHERE << 12
    assert found.symbols.address("linux_banner") == TEXT + MOVED + 64
    assert found.symbols.address("percpu") == 8
    assert found.symbols.format(TEXT + MOVED + 65) == "linux_banner+0x1/0xfc0"
    assert as_mapped(current, linux) is found


def test_one_that_moved_its_addresses_only_is_found(linux: Image) -> None:
    assert find(running(TEXT + MOVED, HOME, HOME), linux) == Move(MOVED, 0)


def test_one_that_stayed_is_left_as_it_is(linux: Image) -> None:
    current = running(TEXT, HOME, HOME)
    assert find(current, linux) == Move(0, 0)
    assert as_mapped(current, linux) is linux


def test_another_kernel_of_the_same_bytes_is_another(linux: Image) -> None:
    current = running(TEXT + MOVED, ELSEWHERE, HOME, ELSEWHERE)
    assert find(current, linux) is None
    assert as_mapped(current, linux) is linux


def test_a_kernel_that_is_not_mapped_yet_is_found_nowhere(linux: Image) -> None:
    assert find(make_pvh_current(), linux) is None
    assert find(running(TEXT + MOVED, ELSEWHERE), linux) is None


def test_pv_kernels_stay(linux: Image) -> None:
    assert as_mapped(make_current(), linux) is linux


def test_a_watcher_has_the_names_of_where_it_is(linux: Image) -> None:
    current = running(TEXT + MOVED, ELSEWHERE)
    code, moved = MappedCode(linux, current), TEXT + MOVED + 65
    assert code.format(moved) == f"{moved:#x}"  # it is not there yet
    assert code.format(TEXT + 65) == "linux_banner+0x1/0xfc0"
    current.domain.memory.write(ELSEWHERE << 12, bytes(64) + BANNER)
    assert code.format(moved) == "linux_banner+0x1/0xfc0"
    assert code.format(TEXT + 65) == f"{TEXT + 65:#x}"


def test_a_watcher_of_one_that_stayed_looks_once(
    linux: Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = []
    monkeypatch.setattr(kaslr, "find", lambda *args: looks.append(args) or Move(0, 0))
    code = MappedCode(linux, running(TEXT, HOME, HOME))
    assert code.format(8) == "0x8"
    assert not looks
    for _ in range(2):
        assert code.format(TEXT + 65) == "linux_banner+0x1/0xfc0"
    assert len(looks) == 1
