"""A core: each frame once, where it is mapped, and the registers of each vcpu."""

from __future__ import annotations

import io

import pytest
from elftools.elf.elffile import ELFFile

import elfwriter
from elfwriter import Phdr, elf
from fakes import (
    FIRST_GUEST_FRAME,
    KERNEL_ONLY,
    enter_long_mode,
    make_pv_current,
    make_pvh_current,
)
from xenemu import dump, image
from xenemu.dump import core, frames
from xenemu.dump.elfcore import NO_ADDRESS
from xenemu.hv.cpu import Reg
from xenemu.x86.paging import PSE, RW, Maddr, P

TEXT = 0xFFFF_FFFF_8100_0000
LINEAR = 0xFFFF_8880_0000_0000
ROOT, CODE, DATA = 0x20, 0x30, 0x31
M2P = 7  # a frame of Xen's


@pytest.fixture
def kernel(tmp_path):
    """A Linux by its symbols."""
    path = tmp_path / "vmlinux"
    segment = Phdr(bytes(64), vaddr=TEXT, paddr=CODE << 12, memsz=0x1000)
    path.write_bytes(elf([segment], elfwriter.symbol_table({"panic": TEXT}, 64)))
    return image.load(path)


class Sink(io.BytesIO):
    """A file that is kept, and how much of it was left out as zeroes."""

    skipped = 0

    def skip(self, size):
        self.skipped += size
        self.write(bytes(size))


@pytest.fixture
def written(kernel):
    def written(current, of=kernel):
        sink = Sink()
        told = dump.write(current, of, sink)
        return told, ELFFile(sink), sink

    return written


def loads(file):
    return [segment for segment in file.iter_segments() if segment["p_type"] == "PT_LOAD"]


def notes(file):
    return [
        note
        for segment in file.iter_segments()
        if segment["p_type"] == "PT_NOTE"
        for note in segment.iter_notes()
    ]


def at(file, vaddr, size):
    """What gdb reads at an address: the segments' bytes."""
    for segment in loads(file):
        into = vaddr - segment["p_vaddr"]
        if 0 <= into < segment["p_filesz"]:
            return segment.data()[into : into + size]
    return None


def mapped(current, *mappings):
    """Make tables that map frames by 4 KiB pages, and let the vcpu use them."""
    words, free = current.domain.memory.words, iter(range(ROOT + 1, CODE))
    for vaddr, frame in mappings:
        table = ROOT
        for shift in (39, 30, 21):
            index = table << 9 | vaddr >> shift & 511
            if not words[index]:
                words[index] = next(free) << 12 | RW | P
            table = words[index] >> 12
        words[table << 9 | vaddr >> 12 & 511] = frame << 12 | P
    enter_long_mode(current, ROOT << 12)


@pytest.fixture
def pvh():
    current = make_pvh_current(vcpus=2)
    current.domain.memory.write(CODE << 12, b"code")
    current.domain.memory.write(DATA << 12, b"data")
    linear = [(LINEAR + (frame << 12), frame) for frame in range(FIRST_GUEST_FRAME, 0x40)]
    mapped(current, *linear, (TEXT, CODE), (TEXT + 0x5000, DATA), (0x400000, DATA))
    return current


def test_memory_is_where_the_kernel_has_it_mapped(pvh, written):
    _, file, _ = written(pvh)
    assert (at(file, LINEAR + (CODE << 12), 4), at(file, TEXT, 4)) == (b"code", b"code")
    assert at(file, TEXT + 0x5000, 4) == b"data"
    assert at(file, TEXT + 0x1000, 4) is None


def test_what_its_programs_map_is_left_out(pvh, written):
    _, file, _ = written(pvh)
    assert at(file, 0x400000, 4) is None


def test_each_frame_is_in_the_file_once_and_zeroes_are_skipped(pvh, written):
    told, file, sink = written(pvh)
    first = min(segment["p_offset"] for segment in loads(file))
    assert len(sink.getvalue()) == first + told.size == first + (64 << 12)
    filled = {CODE, DATA, *range(ROOT, ROOT + 11)}
    assert (64 - len(filled)) << 12 <= sink.skipped < told.size


def test_every_frame_has_its_physical_address_first(pvh, written):
    _, file, _ = written(pvh)
    segments = loads(file)
    assert [(s["p_vaddr"], s["p_paddr"], s["p_filesz"]) for s in segments[:2]] == [
        (LINEAR + (FIRST_GUEST_FRAME << 12), FIRST_GUEST_FRAME << 12, 48 << 12),
        (NO_ADDRESS, 0x40 << 12, 16 << 12),  # not in the linear map
    ]
    assert segments[0]["p_offset"] == min(s["p_offset"] for s in segments)
    assert {s["p_align"] for s in segments} == {0}


def test_each_vcpu_has_a_note_in_order(pvh, written):
    pvh.cpu.regs[Reg.RSP], pvh.cpu.rip = 0xABC, TEXT
    told, file, _ = written(pvh)
    first, second = [note["n_descdata"] for note in notes(file)]
    assert (first[32], second[32], told.thread) == (1, 2, 1)
    assert first[112 + 16 * 8 :][:8] == TEXT.to_bytes(8, "little")
    assert first[112 + 19 * 8 :][:8] == (0xABC).to_bytes(8, "little")
    assert not any(second[112 + 16 * 8 :][:8])  # it has not begun


def test_a_large_page_is_read_as_far_as_there_is_memory(pvh, written):
    words = pvh.domain.memory.words
    middle = words[words[ROOT << 9 | 511] >> 12 << 9 | 510] >> 12
    words[middle << 9 | 16] = P | PSE  # 2 MiB from physical address 0 on
    _, file, _ = written(pvh)
    high = 0xFFFF_FFFF_8200_0000
    assert at(file, high + (CODE << 12), 4) == b"code"
    assert at(file, high, 4) is None


def test_tables_that_lead_in_circles_are_left(pvh, written):
    pvh.domain.memory.words[ROOT << 9 | 300] = ROOT << 12 | P
    _, file, _ = written(pvh)
    assert at(file, TEXT, 4) == b"code"
    assert len(loads(file)) < 1000


def test_more_tables_than_anybody_has_are_not_looked_at(pvh, written, monkeypatch):
    monkeypatch.setattr(frames, "MAX_TABLES", 3)
    told, file, _ = written(pvh)
    assert "more page tables than were looked at" in told.remarks
    paddr = CODE << 12
    assert any(0 <= paddr - s["p_paddr"] < s["p_filesz"] for s in loads(file))


def test_too_many_mappings_are_left_out_and_told(pvh, written, monkeypatch):
    monkeypatch.setattr(core, "MAX_LOADS", 3)
    told, file, _ = written(pvh)
    assert (len(loads(file)), told.left_out) == (3, 1)
    assert at(file, TEXT + 0x5000, 4) == b"data"  # the highest addresses stay
    assert "1 mappings at low addresses" in told.remarks


def test_without_paging_an_address_is_its_own(written, tmp_path):
    current = make_pvh_current()
    current.domain.memory.write(CODE << 12, b"code")
    path = tmp_path / "kernel"
    path.write_bytes(elf([Phdr(bytes(64), memsz=0x1000)], bits=32))
    _, file, _ = written(current, image.load(path))
    assert at(file, CODE << 12, 4) == b"code"
    assert (file["e_machine"], file.elfclass) == ("EM_386", 32)
    assert len(notes(file)[0]["n_descdata"]) == 144


def test_a_pv_kernel_knows_its_frames_by_other_numbers(written, tmp_path):
    """Page tables hold the machine's numbers, physical addresses are the kernel's."""
    current = make_pv_current()
    frames, memory = current.domain.frames, current.domain.memory
    frames.m2p_base = Maddr(M2P << 12)
    numbers = memory.table(M2P)
    for mfn in range(memory.nr_frames):
        numbers[mfn] = mfn - FIRST_GUEST_FRAME if mfn >= FIRST_GUEST_FRAME else (1 << 64) - 1
    memory.write(CODE << 12, b"code")
    path = tmp_path / "kernel"
    path.write_bytes(elf([Phdr(bytes(64), vaddr=KERNEL_ONLY, memsz=0x1000)]))
    _, file, _ = written(current, image.load(path))
    assert at(file, KERNEL_ONLY + (CODE << 12), 4) == b"code"
    assert loads(file)[0]["p_paddr"] == 0


def test_it_changes_nothing_of_the_guests(pvh, written):
    before = bytes(pvh.domain.memory.bytes), pvh.domain.p2m.__getstate__()
    written(pvh)
    assert (bytes(pvh.domain.memory.bytes), pvh.domain.p2m.__getstate__()) == before


def test_a_note_of_the_kernels_is_taken_over(pvh, written):
    text = b"OSRELEASE=6.1\nPAGESIZE=4096\n"
    told, file, _ = written(pvh)
    assert (told.is_known, [note["n_name"] for note in notes(file)]) == (False, ["CORE"] * 2)
    assert "no VMCOREINFO" in told.remarks
    head = b"\x0b\0\0\0" + len(text).to_bytes(4, "little") + bytes(4) + b"VMCOREINFO\0\0"
    pvh.domain.memory.write((DATA << 12) + 64, head + text)
    told, file, _ = written(pvh)
    last = notes(file)[-1]
    assert told.is_known
    assert (last["n_name"], last["n_type"], last["n_descdata"]) == ("VMCOREINFO", 0, text)
