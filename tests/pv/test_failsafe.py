"""pv/failsafe: what becomes of a vcpu's data segments when it gets the CPU again."""

from __future__ import annotations

import struct

import pytest

import fakes32
from fakes import KERNEL_STACK, ROOT, USER_ROOT, FakeCpu, make_pv_current, protect
from xenemu.abi.arch_x86.xen import FLAT_RING1_CS, FLAT_RING1_DS, FLAT_RING3_CS64, FLAT_RING3_SS64
from xenemu.errors import DomainCrash
from xenemu.hv.cpu import Reg, Seg, Segment
from xenemu.hv.current import Current
from xenemu.pv.descriptors import set_gdt
from xenemu.pv.failsafe import reload_data_segments
from xenemu.pv.paging import toggle_guest_mode
from xenemu.pv.state import Trap, pv
from xenemu.x86 import flags
from xenemu.x86.paging import Maddr

GDT = 24
DATA = 0x00CFF300_0000FFFF | 0x5000 << 16  # ring 3, at 0x5000
ABSENT = DATA & ~(1 << 47)
GOOD, GONE = 8 | 3, 16 | 3  # selectors
HANDLER, STACK, INFO_MASK = 0x23000, 0x22008, 1


@pytest.fixture
def current() -> Current:
    current = make_pv_current()
    protect(current, GDT)
    current.domain.memory.write(Maddr(GDT << 12), struct.pack("<3Q", 0, DATA, ABSENT))
    set_gdt(current, [GDT], 512)
    current.cpu.regs[Reg.RSP] = STACK
    current.cpu.regs[Reg.RCX], current.cpu.regs[Reg.R11] = 0xCC, 0x11
    pv(current).failsafe_callback = Trap(FLAT_RING3_CS64, HANDLER)
    return current


def set_selectors(current: Current, **selectors: int) -> None:
    for name, selector in selectors.items():
        current.cpu.set_segment(Seg[name.upper()], Segment(selector, 0x7000))


def mask_of(current: Current) -> int:
    return current.domain.memory.bytes[current.vcpu.info + INFO_MASK]


def test_null_selectors_are_left_alone(current: Current) -> None:
    set_selectors(current, ds=0, es=3, fs=0, gs=0)
    reload_data_segments(current)
    assert current.cpu.segment(Seg.FS).base == 0x7000
    assert current.cpu.segment(Seg.ES) == Segment(3, 0x7000)


def test_segments_are_what_their_descriptors_say_now(current: Current) -> None:
    """The bases of FS and GS are apart from the selectors in a 64-bit guest."""
    set_selectors(current, ds=GOOD, es=0, fs=GOOD, gs=GOOD)
    reload_data_segments(current)
    assert [current.cpu.segment(which).base for which in (Seg.DS, Seg.FS, Seg.GS)] == [
        *(0x5000, 0x7000, 0x7000)
    ]
    assert current.cpu.rip != HANDLER


def test_a_segment_that_is_gone_enters_the_failsafe_callback(current: Current) -> None:
    set_selectors(current, ds=GONE, es=GOOD, fs=0, gs=3)
    cpu = current.cpu
    rip, before = cpu.rip, cpu.rflags
    reload_data_segments(current)
    at = (STACK & -16) - 88
    assert struct.unpack("<11Q", current.read(at, 88)) == (
        *(0xCC, 0x11),
        *(GONE, GOOD, 0, 3),
        *(rip, FLAT_RING3_CS64 & ~3, before | flags.IF, STACK, FLAT_RING3_SS64),
    )
    assert (cpu.rip, cpu.regs[Reg.RSP]) == (HANDLER, at)
    assert (cpu.selector(Seg.DS), cpu.selector(Seg.ES)) == (0, GOOD)
    assert (cpu.regs[Reg.RCX], mask_of(current)) == (HANDLER, 0)


def test_the_callback_can_mask_events_which_the_frame_had_not(current: Current) -> None:
    pv(current).failsafe_callback = Trap(FLAT_RING3_CS64, HANDLER, mask_events=True)
    set_selectors(current, ds=GONE, es=0, fs=0, gs=0)
    reload_data_segments(current)
    cs = struct.unpack_from("<Q", current.read((STACK & -16) - 88, 88), 56)[0]
    assert (cs >> 32, mask_of(current)) == (0, 1)


def test_user_mode_enters_its_kernel(current: Current) -> None:
    toggle_guest_mode(current)
    assert current.cpu.cr3 == USER_ROOT << 12
    set_selectors(current, ds=0, es=GONE, fs=0, gs=0)
    reload_data_segments(current)
    assert pv(current).kernel_mode and current.cpu.cr3 == ROOT << 12
    assert current.cpu.regs[Reg.RSP] == KERNEL_STACK - 88
    assert current.read_uint(KERNEL_STACK - 32, 8) == FLAT_RING3_CS64


def test_a_stack_that_takes_no_frame_is_the_end(current: Current) -> None:
    current.cpu.regs[Reg.RSP] = 1 << 40
    set_selectors(current, ds=GONE, es=0, fs=0, gs=0)
    with pytest.raises(DomainCrash, match="the failsafe callback"):
        reload_data_segments(current)


def test_a_32_bit_kernel_finds_its_selectors_on_the_stack_that_it_has() -> None:
    current = fakes32.make_pv32_current()
    cpu, rip = current.cpu, current.cpu.rip
    assert isinstance(cpu, FakeCpu)
    pv(current).failsafe_callback = Trap(FLAT_RING1_CS, HANDLER)
    cpu.set_segment(Seg.FS, Segment(GOOD))  # there is no GDT
    reload_data_segments(current)
    at = fakes32.STACK - 28
    data = [FLAT_RING1_DS, FLAT_RING1_DS, GOOD, FLAT_RING1_DS]
    assert fakes32.words_at(current, at, 7) == [*data, rip, FLAT_RING1_CS, 0x202]
    assert (cpu.rip, cpu.regs[Reg.RSP], cpu.selector(Seg.FS)) == (HANDLER, at, 0)
