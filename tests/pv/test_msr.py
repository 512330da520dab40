"""pv/msr: model-specific registers and CR4."""

from __future__ import annotations

import pytest

from fakes import L1, FakeCpu, make_pv_current
from fakes32 import make_pv32_current
from xenemu.abi.arch_x86.xen import FLAT_RING3_CS64
from xenemu.hv.cpu import Seg, Segment
from xenemu.hv.cpuid import HYPERCALL_MSR
from xenemu.hv.domain import Current
from xenemu.pv import msr as pv_msr
from xenemu.pv.hypercall_page import hypercall_page
from xenemu.pv.msr import CR4_DE, CR4_TSD, CR4_XEN, fixup_guest_cr4, read, write
from xenemu.pv.state import Trap, pv
from xenemu.x86 import flags, msr

PAGE = 50
UNKNOWN = 0x1234


@pytest.fixture
def current() -> Current:
    current = make_pv_current(vcpus=2)
    pv(current).traps[flags.GP] = Trap(FLAT_RING3_CS64, 0x1000)
    return current


def refused(current: Current, number: int, value: int) -> None:
    memory, state = bytes(current.domain.memory.bytes), repr(pv(current))
    cpu = repr(current.cpu)
    assert not write(current, number, value)
    assert (bytes(current.domain.memory.bytes), repr(pv(current)), repr(current.cpu)) == (
        memory,
        state,
        cpu,
    )


def test_cr4_is_xens_but_for_tsd_and_de() -> None:
    assert fixup_guest_cr4(0) == CR4_XEN
    assert fixup_guest_cr4((1 << 64) - 1) == CR4_XEN | CR4_TSD | CR4_DE


@pytest.mark.parametrize(("number", "which"), [(msr.FS_BASE, Seg.FS), (msr.GS_BASE, Seg.GS)])
def test_segment_bases_keep_the_selector(current: Current, number: int, which: Seg) -> None:
    current.cpu.set_segment(which, Segment(0x2B, 1, 2, 3))
    assert write(current, number, 0xFFFF_8888_0000_0000)
    assert read(current, number) == 0xFFFF_8888_0000_0000
    assert current.cpu.segment(which) == Segment(0x2B, 0xFFFF_8888_0000_0000, 2, 3)


def test_the_other_modes_gs_is_shadowed(current: Current) -> None:
    assert write(current, msr.KERNEL_GS_BASE, 0x1234)
    assert read(current, msr.KERNEL_GS_BASE) == pv(current).inactive_gs == 0x1234
    assert read(current, msr.GS_BASE) == 0


@pytest.mark.parametrize("number", [msr.FS_BASE, msr.GS_BASE, msr.KERNEL_GS_BASE])
@pytest.mark.parametrize("value", [1 << 47, (1 << 64) - (1 << 47) - 1])
def test_bases_are_canonical(current: Current, number: int, value: int) -> None:
    refused(current, number, value)


@pytest.mark.parametrize(
    ("number", "value"),
    [
        (msr.EFER, 0xD01),
        (msr.IA32_MISC_ENABLE, 0x801801),
        (msr.IA32_CR_PAT, 0x050100070406),
        (msr.IA32_UCODE_REV, 0),
        (msr.IA32_PERF_CAPABILITIES, 0),
        (msr.PLATFORM_INFO, 1 << 31),
        (msr.IA32_APIC_BASE, 0xFEE00900),
        (HYPERCALL_MSR, 0),
    ],
)
def test_constants(current: Current, number: int, value: int) -> None:
    assert read(current, number) == value


def test_only_vcpu_0_is_the_boot_processor(current: Current) -> None:
    current.vcpu = current.domain.vcpus[1]
    assert read(current, msr.IA32_APIC_BASE) == 0xFEE00800


def test_the_tsc_is_virtual_time_and_read_only(current: Current) -> None:
    assert isinstance(current.cpu, FakeCpu)
    current.cpu.now_ns = 77
    assert read(current, msr.IA32_TSC) == 77
    refused(current, msr.IA32_TSC, 0)


def test_efer_can_be_written_as_it_is(current: Current) -> None:
    assert write(current, msr.EFER, 0xD01)
    refused(current, msr.EFER, 0xC01)


def test_the_microcode_revision_can_be_cleared(current: Current) -> None:
    assert write(current, msr.IA32_UCODE_REV, 0)
    refused(current, msr.IA32_UCODE_REV, 1)


@pytest.mark.parametrize("number", sorted(pv_msr.WRITES_IGNORED))
def test_some_writes_are_ignored(current: Current, number: int) -> None:
    before = read(current, number)
    assert write(current, number, 0x1234)
    assert read(current, number) == before


@pytest.mark.parametrize("number", [msr.IA32_CR_PAT, msr.PLATFORM_INFO, msr.IA32_APIC_BASE])
def test_some_are_read_only(current: Current, number: int) -> None:
    refused(current, number, read(current, number) or 0)


def test_cpuid_faulting_is_the_guests_to_turn_on(current: Current) -> None:
    assert write(current, msr.MISC_FEATURES_ENABLES, 1)
    assert read(current, msr.MISC_FEATURES_ENABLES) == 1
    refused(current, msr.MISC_FEATURES_ENABLES, 2)
    assert write(current, msr.MISC_FEATURES_ENABLES, 0)
    assert not pv(current).cpuid_faulting


def test_unknown_registers_fault(current: Current) -> None:
    assert read(current, UNKNOWN) is None
    refused(current, UNKNOWN, 0)


def test_a_kernel_without_a_handler_yet_reads_zero(current: Current) -> None:
    pv(current).traps.clear()
    assert read(current, UNKNOWN) == 0
    assert read(current, HYPERCALL_MSR + 1) is None
    refused(current, UNKNOWN, 0)


def test_the_hypercall_page_is_written_into_a_frame(current: Current) -> None:
    before = current.domain.frames.count[PAGE]
    assert write(current, HYPERCALL_MSR, PAGE << 12)
    assert current.read(PAGE << 12, 4096) == hypercall_page(8)
    assert current.domain.frames.count[PAGE] == before


@pytest.mark.parametrize("maddr", [PAGE << 12 | 1, L1 << 12, 9 << 12, 1 << 60])
def test_a_hypercall_page_must_be_the_guests_to_write(current: Current, maddr: int) -> None:
    refused(current, HYPERCALL_MSR, maddr)


# A 32-bit guest has nothing of long mode.


def test_a_32_bit_guest_has_no_segment_bases() -> None:
    current = make_pv32_current()
    pv(current).traps[flags.GP] = Trap(0x9, 0x1000)
    for number in (msr.FS_BASE, msr.GS_BASE, msr.KERNEL_GS_BASE):
        assert read(current, number) is None
        refused(current, number, 0x1000)


def test_a_32_bit_guests_efer_has_nx_alone() -> None:
    current = make_pv32_current()
    assert read(current, msr.EFER) == msr.EFER_NX
    assert write(current, msr.EFER, msr.EFER_NX)
    refused(current, msr.EFER, msr.EFER_SCE_LME_LMA_NX)
