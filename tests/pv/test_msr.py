"""pv/msr: model-specific registers and CR4."""

from __future__ import annotations

import pytest

from fakes import L1, FakeCpu, make_pv_current
from fakes32 import make_pv32_current
from xenemu.abi.arch_x86.xen import FLAT_RING3_CS64
from xenemu.hv.cpu import Seg, Segment
from xenemu.hv.cpuid import HYPERCALL_MSR
from xenemu.hv.current import Current
from xenemu.pv.hypercall_page import hypercall_page
from xenemu.pv.msr import CR4_DE, CR4_FSGSBASE, CR4_TSD, CR4_XEN, fixup_guest_cr4, read, write
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
    memory, vcpu, cpu = bytes(current.domain.memory.bytes), repr(current.vcpu), repr(current.cpu)
    assert not write(current, number, value)
    assert bytes(current.domain.memory.bytes) == memory
    assert (repr(current.vcpu), repr(current.cpu)) == (vcpu, cpu)


def test_cr4_is_xens_but_for_tsd_de_and_fsgsbase() -> None:
    assert fixup_guest_cr4(0) == CR4_XEN
    assert fixup_guest_cr4((1 << 64) - 1) == CR4_XEN | CR4_TSD | CR4_DE | CR4_FSGSBASE


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


def test_constants_of_its_own_and_of_the_table(current: Current) -> None:
    for number, value in (
        (msr.EFER, 0xD01),
        (msr.IA32_APIC_BASE, 0xFEE00900),
        (HYPERCALL_MSR, 0),
        (msr.IA32_MISC_ENABLE, 0x801801),
        (msr.IA32_PLATFORM_ID, 0),
    ):
        assert read(current, number) == value, hex(number)


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


def test_the_table_says_what_may_be_written(current: Current) -> None:
    for number, value in ((msr.IA32_UCODE_REV, 0), (msr.IA32_MPERF, 7), (0x17A, 3)):
        assert write(current, number, value), hex(number)
    for number, value in ((msr.IA32_UCODE_REV, 1), (msr.IA32_CR_PAT, msr.XEN_PAT), (0x17, 0)):
        refused(current, number, value)


def test_some_of_its_own_are_read_only(current: Current) -> None:
    refused(current, msr.IA32_APIC_BASE, read(current, msr.IA32_APIC_BASE) or 0)


def test_the_auxiliary_value_is_the_cpus_too_and_has_32_bits(current: Current) -> None:
    assert isinstance(current.cpu, FakeCpu)
    assert read(current, msr.TSC_AUX) == 0
    assert write(current, msr.TSC_AUX, 0xFFFFFFFF)
    assert read(current, msr.TSC_AUX) == current.cpu.tsc_aux == 0xFFFFFFFF
    refused(current, msr.TSC_AUX, 1 << 32)


def test_unknown_registers_fault(current: Current) -> None:
    assert read(current, UNKNOWN) is None
    refused(current, UNKNOWN, 0)


def test_a_kernel_without_a_handler_yet_is_spared_what_the_host_has(current: Current) -> None:
    assert read(current, msr.IA32_SYSENTER_CS) is None
    pv(current).traps.clear()
    assert read(current, msr.IA32_SYSENTER_CS) == 0
    for number in (UNKNOWN, HYPERCALL_MSR + 1, msr.K8_ENABLE_C1E):
        assert read(current, number) is None, hex(number)
    refused(current, msr.IA32_SYSENTER_CS, 0)


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
