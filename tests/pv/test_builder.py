"""pv/builder: a domain as the tool stack leaves it."""

from __future__ import annotations

from pathlib import Path

import pytest

from elfwriter import KERNEL, PT_NOTE, PV_NOTES, VIRT_BASE, Phdr, elf, kernel, note
from fakes import FakeCpu, connect_backends
from xenemu.abi.xen import SIF_MOD_START_PFN, SIF_VIRT_P2M_4TOOLS, start_info
from xenemu.entries import ENTRIES
from xenemu.errors import ImageError, XenError
from xenemu.hv.building import MAX_PAGES_SLACK, DomainConfig
from xenemu.hv.cpu import Reg, Seg, Segment
from xenemu.hv.current import Current
from xenemu.hv.frame_table import PGT_l1_page_table, PGT_l4_page_table, PGT_writable_page
from xenemu.hv.pagecheck import recount
from xenemu.image.loader import load
from xenemu.pv.descriptors import XEN_DESCRIPTORS
from xenemu.pv.hypercall_page import hypercall_page
from xenemu.pv.paging import translate
from xenemu.pv.perdomain import gdt_base
from xenemu.pv.personality import PV64
from xenemu.pv.state import DR6_DEFAULT, DR7_DEFAULT, pv
from xenemu.pv.traps import CS64, SS64
from xenemu.x86.paging import RW, Mfn, P, walk

MEMORY = 32 << 20
M2P = 0xFFFF_8000_0000_0000
INITRD = b"initrd" * 1000


def build(tmp_path: Path, image: bytes | None = None, **config: object) -> Current:
    path = tmp_path / "vmlinux"
    path.write_bytes(kernel() if image is None else image)
    settings = DomainConfig(**{"memory": MEMORY} | config)  # type: ignore[arg-type]
    domain = ENTRIES["pv64"].build(load(path), settings)
    connect_backends(domain, settings)
    current = Current(domain, domain.vcpus[0], FakeCpu(), translate)
    current.cpu.cr3 = PV64.address_space(current) << 12
    PV64.start(current)
    return current


@pytest.fixture
def current(tmp_path: Path) -> Current:
    return build(tmp_path, cmdline=b"console=hvc0", initrd=INITRD)


def info(current: Current) -> start_info:
    return current.read_struct(start_info, current.cpu.regs[Reg.RSI])


def first_frame(current: Current) -> int:
    return translate(current, VIRT_BASE, False) >> 12


def test_the_vcpu_starts_at_the_entry_with_a_stack_and_start_info(current: Current) -> None:
    cpu = current.cpu
    assert cpu.rip == VIRT_BASE + 0x1000000
    assert cpu.rflags == 0x202
    assert [cpu.segment(s) for s in (Seg.CS, Seg.SS)] == [CS64, SS64]
    assert [cpu.segment(s) for s in (Seg.DS, Seg.ES, Seg.FS, Seg.GS)] == [Segment(0)] * 4
    assert [r for r in Reg if cpu.regs[r]] == [Reg.RSP, Reg.RSI]
    current.write(cpu.regs[Reg.RSP] - 8, b"the stack")
    assert (cpu.debug_register(6), cpu.debug_register(7)) == (DR6_DEFAULT, DR7_DEFAULT)


def test_start_info_says_where_everything_is(current: Current) -> None:
    seen, domain = info(current), current.domain
    assert seen.magic.rstrip(b"\0") == b"xen-3.0-x86_64"
    assert seen.nr_pages == MEMORY >> 12
    assert seen.shared_info == domain.shared_info << 12
    assert seen.flags == SIF_VIRT_P2M_4TOOLS
    assert (seen.store_mfn, seen.store_evtchn) == (domain.xenstore.mfn, domain.xenstore.port)
    console = domain.console.mfn.to_bytes(8, "little") + domain.console.port.to_bytes(8, "little")
    assert seen.console == console
    assert seen.cmd_line.rstrip(b"\0") == b"console=hvc0"
    assert (seen.first_p2m_pfn, seen.nr_p2m_frames) == (0, 0)


def test_the_initrd_is_mapped(current: Current) -> None:
    seen = info(current)
    assert current.read(seen.mod_start, len(INITRD)) == INITRD
    assert seen.mod_len == 2 * 4096


def test_an_initrd_may_be_named_by_its_pfn(tmp_path: Path) -> None:
    current = build(tmp_path, kernel([*PV_NOTES, note(16, 1)]), initrd=INITRD)
    seen = info(current)
    assert seen.flags == SIF_VIRT_P2M_4TOOLS | SIF_MOD_START_PFN
    where = first_frame(current) + seen.mod_start << 12
    assert current.domain.memory.read(where, len(INITRD)) == INITRD  # type: ignore[arg-type]


def test_without_an_initrd_there_is_none(tmp_path: Path) -> None:
    seen = info(build(tmp_path))
    assert (seen.mod_start, seen.mod_len) == (0, 0)


def test_the_p2m_list_and_the_m2p_are_inverse(current: Current) -> None:
    domain, seen = current.domain, info(current)
    base, frames = first_frame(current), domain.frames
    for pfn in (0, 1, 1000, seen.nr_pages - 1):
        mfn = current.read_uint(seen.mfn_list + 8 * pfn, 8)
        assert (mfn, frames.get_m2p(mfn)) == (base + pfn, pfn)


def test_the_guest_sees_the_m2p_read_only(current: Current) -> None:
    root, words = pv(current).kernel_root, current.domain.memory.words
    mfn = first_frame(current) + 5
    leaf = walk(words, root, M2P + 8 * mfn)[-1]
    assert (leaf.level, leaf.entry & (P | RW)) == (1, P)
    assert words[(leaf.entry >> 12 & 0xFFFFFF) << 9 | mfn & 511] == 5


def test_the_tables_are_valid_pinned_and_mapped_read_only(current: Current) -> None:
    frames, seen = current.domain.frames, info(current)
    root = pv(current).kernel_root
    rings = [
        (current.domain.console.mfn, PGT_writable_page),
        (current.domain.xenstore.mfn, PGT_writable_page),
    ]
    assert recount(frames, [(root, PGT_l4_page_table), *rings]) == []
    assert frames.type[root] == PGT_l4_page_table
    for n in range(seen.nr_pt_frames):
        leaf = walk(current.domain.memory.words, root, seen.pt_base + (n << 12))[-1]
        assert not leaf.entry & RW
        assert frames.type[leaf.entry >> 12 & 0xFFFFFF] in (1, 2, 3, 4)


def test_xens_descriptors_lie_behind_the_guests(current: Current) -> None:
    words = current.domain.memory.words
    for selector, descriptor in XEN_DESCRIPTORS[8].items():
        leaf = walk(words, pv(current).kernel_root, gdt_base(0) + selector)[-1]
        assert leaf.level == 1
        assert words[(leaf.entry >> 12 & 0xFFFFFF) << 9 | selector >> 3 & 511] == descriptor


def test_the_kernels_segments_are_where_their_addresses_say(tmp_path: Path) -> None:
    more = Phdr(b"second", paddr=KERNEL.paddr + 0x3000, vaddr=KERNEL.vaddr + 0x3000)
    notes = Phdr(b"".join(PV_NOTES), PT_NOTE, paddr=0, vaddr=0)
    current = build(tmp_path, elf([KERNEL, more, notes]))
    assert current.read(VIRT_BASE + KERNEL.paddr, 64) == b"\x90" * 64
    assert current.read(VIRT_BASE + KERNEL.paddr + 0x3000, 6) == b"second"


def test_physical_addresses_may_be_virtual_ones(tmp_path: Path) -> None:
    """As with PADDR_OFFSET = VIRT_BASE."""
    virtual = Phdr(b"\xf4" * 64, memsz=0x2000, paddr=VIRT_BASE + 0x1000000)
    notes = [one for one in PV_NOTES if one != note(4, 0)] + [note(4, VIRT_BASE)]
    segments = [virtual, Phdr(b"".join(notes), PT_NOTE, paddr=0, vaddr=0)]
    current = build(tmp_path, elf(segments))
    assert current.read(current.cpu.rip, 64) == b"\xf4" * 64


def test_the_hypercall_page_is_filled(tmp_path: Path) -> None:
    place = VIRT_BASE + KERNEL.paddr + 0x1000
    current = build(tmp_path, kernel([*PV_NOTES, note(2, place)]))
    assert current.read(place, 4096) == hypercall_page(8)


def test_all_memory_is_the_guests(current: Current) -> None:
    assert current.domain.pages.tot_pages == MEMORY >> 12
    assert current.domain.pages.max_pages == (MEMORY >> 12) + 256


def test_only_vcpu_0_runs_and_events_are_masked(tmp_path: Path) -> None:
    domain = build(tmp_path, vcpus=3).domain
    assert [vcpu.online for vcpu in domain.vcpus] == [True, False, False]
    assert [domain.memory.bytes[vcpu.info + 1] for vcpu in domain.vcpus] == [1, 1, 1]
    assert [vcpu.periodic_ns for vcpu in domain.vcpus] == [10_000_000] * 3
    assert domain.timers.next_ns() == 10_000_000


def test_the_address_space_is_that_of_the_mode(current: Current) -> None:
    assert PV64.address_space(current) == pv(current).kernel_root
    pv(current).kernel_mode, pv(current).user_root = False, Mfn(77)
    assert PV64.address_space(current) == 77


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"cmdline": b"x" * 1024}, "1023"),
        ({"memory": 8 << 20}, "more memory"),
        ({"memory": 0}, "more memory"),
        ({"initrd": bytes(MEMORY)}, "more memory"),
    ],
)
def test_what_does_not_fit_is_refused(
    tmp_path: Path, config: dict[str, object], reason: str
) -> None:
    with pytest.raises(ImageError, match=reason):
        build(tmp_path, **config)  # type: ignore[arg-type]


def test_the_longest_command_line_fits(tmp_path: Path) -> None:
    assert info(build(tmp_path, cmdline=b"x" * 1023)).cmd_line == b"x" * 1023 + b"\0"


def test_the_rings_cannot_become_page_tables(current: Current) -> None:
    """dom0's backends have them mapped, and write to them."""
    domain, words = current.domain, current.domain.memory.words
    for ring in (domain.console, domain.xenstore):
        step = walk(words, pv(current).kernel_root, vaddr_of(current, ring.mfn))[-1]
        domain.frames.mod_entry(step.entry_maddr, step.entry & ~RW, domain.domid)
        with pytest.raises(XenError, match="other type in use"):
            domain.frames.pin(ring.mfn, domain.domid, PGT_l1_page_table)


def vaddr_of(current: Current, mfn: int) -> int:
    """Where the builder maps a frame."""
    return VIRT_BASE + (current.domain.frames.get_m2p(mfn) << 12)


def test_memory_that_a_balloon_can_come_to_is_free_and_in_the_map(tmp_path: Path) -> None:
    domain = build(tmp_path, maxmem=2 * MEMORY).domain
    free = len(domain.frames.heap)
    assert domain.pages.tot_pages == MEMORY >> 12
    assert domain.pages.max_pages == (MEMORY >> 12) + MAX_PAGES_SLACK
    assert [size for _, size, _ in domain.e820] == [2 * MEMORY]
    assert free >= MEMORY >> 12
