"""pv/builder: a 32-bit domain as the tool stack leaves it."""

from __future__ import annotations

from pathlib import Path

import pytest

from elfwriter import PT_NOTE, PV32_NOTES, Phdr, elf, note
from fakes import FakeCpu, connect_backends
from xenemu.abi.arch_x86.xen import FLAT_RING1_CS, FLAT_RING1_DS
from xenemu.abi.errno import EFAULT
from xenemu.abi.xen import VMASST_TYPE_pae_extended_cr3, start_info
from xenemu.entries import ENTRIES
from xenemu.errors import XenError
from xenemu.hv.building import DomainConfig
from xenemu.hv.cpu import Reg, Seg
from xenemu.hv.current import Current
from xenemu.hv.frame_table import PGT_l3_page_table, PGT_pae_xen_l2, PGT_writable_page
from xenemu.hv.pagecheck import recount
from xenemu.image.loader import load
from xenemu.pv.descriptors import XEN_DESCRIPTORS
from xenemu.pv.hypercall_page import hypercall_page
from xenemu.pv.paging import translate32
from xenemu.pv.perdomain import gdt_base
from xenemu.pv.personality import PV32
from xenemu.pv.state import pv
from xenemu.x86.paging import ADDR, RW, US, P, walk

MEMORY, VIRT_BASE, M2P = 32 << 20, 0xC000_0000, 0xF580_0000
KERNEL = Phdr(b"\x90" * 64, memsz=0x3000, paddr=0x100_0000, vaddr=0xC100_0000)
PAGE = 0xC100_1000  # the hypercall page


def build(tmp_path: Path, *more: bytes, notes: tuple[bytes, ...] = PV32_NOTES) -> Current:
    segments = [KERNEL, Phdr(b"".join([*notes, *more]), PT_NOTE, paddr=0, vaddr=0)]
    path = tmp_path / "kernel"
    path.write_bytes(elf(segments, bits=32))
    config = DomainConfig(MEMORY, cmdline=b"quiet")
    domain = ENTRIES["pv32"].build(load(path), config)
    connect_backends(domain, config)
    current = Current(domain, domain.vcpus[0], FakeCpu(), translate32)
    current.cpu.cr3 = PV32.address_space(current) << 12
    PV32.start(current)
    return current


@pytest.fixture
def current(tmp_path: Path) -> Current:
    return build(tmp_path)


def info(current: Current) -> start_info:
    return current.read_struct(start_info, current.cpu.regs[Reg.RSI])


def leaf(current: Current, vaddr: int) -> tuple[int, int]:
    step = walk(current.domain.memory.words, pv(current).kernel_root, vaddr, 3)[-1]
    return step.level, step.entry


def test_the_vcpu_starts_in_ring_1(current: Current) -> None:
    cpu = current.cpu
    assert (cpu.rip, cpu.rflags) == (0xC100_0000, 0x202)
    assert cpu.segment(Seg.CS).selector == FLAT_RING1_CS
    data = (Seg.SS, Seg.DS, Seg.ES, Seg.FS, Seg.GS)
    assert {cpu.segment(which).selector for which in data} == {FLAT_RING1_DS}
    assert (pv(current).kernel_ss, pv(current).kernel_sp) == (FLAT_RING1_DS, cpu.regs[Reg.RSP])


def test_start_info_has_32_bit_fields(current: Current) -> None:
    seen, domain = info(current), current.domain
    assert seen.magic.rstrip(b"\0") == b"xen-3.0-x86_32p"
    assert (seen.nr_pages, seen.shared_info) == (MEMORY >> 12, domain.shared_info << 12)
    console = domain.console.mfn.to_bytes(4, "little") + domain.console.port.to_bytes(4, "little")
    assert seen.console == console
    assert seen.cmd_line.rstrip(b"\0") == b"quiet"


def test_xen_reads_the_m2p_for_the_guest_and_does_not_write_it(current: Current) -> None:
    mfn = current.domain.shared_info
    before = current.read_uint(M2P + 4 * mfn, 4)
    with pytest.raises(XenError) as refusal:
        current.write_uint(M2P + 4 * mfn, 4, 7)
    assert (refusal.value.errno, current.read_uint(M2P + 4 * mfn, 4)) == (EFAULT, before)


def test_xen_does_not_read_its_descriptor_tables_for_the_guest(current: Current) -> None:
    with pytest.raises(XenError, match="not an address of the guest's"):
        current.read_uint(gdt_base(0, 4), 4)


def test_the_lists_of_frames_have_32_bit_entries(current: Current) -> None:
    mfn = current.read_uint(info(current).mfn_list + 4 * 1000, 4)
    assert current.domain.frames.get_m2p(mfn) == 1000
    level, entry = leaf(current, M2P + 4 * mfn)
    assert (level, entry & (P | RW)) == (1, P)
    words = current.domain.memory.words
    assert words[((entry & ADDR) + 4 * mfn % 4096) >> 3] >> 32 * (mfn & 1) & 0xFFFFFFFF == 1000


def test_the_tables_are_valid_pinned_and_mapped_read_only(current: Current) -> None:
    frames, seen = current.domain.frames, info(current)
    root = pv(current).kernel_root
    rings = [
        (current.domain.console.mfn, PGT_writable_page),
        (current.domain.xenstore.mfn, PGT_writable_page),
    ]
    assert recount(frames, [(root, PGT_l3_page_table), *rings]) == []
    assert frames.type[root] == PGT_l3_page_table
    for n in range(seen.nr_pt_frames):
        assert not leaf(current, seen.pt_base + (n << 12))[1] & RW


def test_the_last_l2_has_xens_slots(current: Current) -> None:
    words, root = current.domain.memory.words, pv(current).kernel_root
    last = (words[root << 9 | 3] & ADDR) >> 12
    assert current.domain.frames.type[last] == PGT_pae_xen_l2
    for selector, descriptor in XEN_DESCRIPTORS[4].items():
        level, entry = leaf(current, gdt_base(0, 4) + selector)
        assert (level, entry & (P | RW | US) & ~RW) == (1, P)
        assert words[(entry & ADDR) >> 3 | selector >> 3 & 511] == descriptor


def test_a_kernel_below_the_last_gib_has_that_l2_too(tmp_path: Path) -> None:
    kinds = {note(3, VIRT_BASE, width=4): note(3, 0, width=4)}
    kinds[note(1, 0xC100_0000, width=4)] = note(1, 0x100_0000, width=4)
    current = build(tmp_path, notes=tuple(kinds.get(one, one) for one in PV32_NOTES))
    assert current.cpu.rip == 0x100_0000
    root = pv(current).kernel_root
    last = (current.domain.memory.words[root << 9 | 3] & ADDR) >> 12
    assert current.domain.frames.type[last] == PGT_pae_xen_l2


def test_the_hypercall_page_is_filled(tmp_path: Path) -> None:
    current = build(tmp_path, note(2, PAGE, width=4))
    assert current.read(PAGE, 4096) == hypercall_page(4)


@pytest.mark.parametrize("mode", ["yes", "bimodal"])
def test_an_elf_note_for_pae_means_an_extended_cr3(tmp_path: Path, mode: str) -> None:
    notes = tuple(one for one in PV32_NOTES if one != note(9, "yes"))
    current = build(tmp_path, note(9, mode), notes=notes)
    assert current.domain.vm_assist == 1 << VMASST_TYPE_pae_extended_cr3
