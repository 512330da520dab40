"""pvh/msr: the registers that Xen 4.17 gives an HVM guest on an Intel CPU, and #GP for the rest."""

from __future__ import annotations

import pytest

from fakes import FIRST_GUEST_FRAME, enter_long_mode, make_pvh_current
from xenemu.hv.cpu import Msr
from xenemu.hv.domain import Current
from xenemu.pvh.hypercall_page import hypercall_page
from xenemu.pvh.msr import read, write
from xenemu.x86 import msr

HYPERCALL = 0x40000000
PAGE = FIRST_GUEST_FRAME << 12
ONES = (1 << 64) - 1


@pytest.fixture
def current() -> Current:
    return make_pvh_current()


@pytest.mark.parametrize(
    ("number", "value"),
    [
        (0x0, 0),  # P5_MC_ADDR
        (0x17, 0),  # IA32_PLATFORM_ID
        (0x1B, 0xFEE00900),  # IA32_APIC_BASE: enabled, the first processor
        (0x3A, 1),  # IA32_FEATURE_CONTROL: locked
        (0x3B, 0),  # IA32_TSC_ADJUST
        (0x8B, 0),  # IA32_BIOS_SIGN_ID
        (0xC1, 0),  # a performance counter
        (0xCE, 1 << 31),  # PLATFORM_INFO: CPUID can fault
        (0x140, 0),  # MISC_FEATURES_ENABLES
        (0x179, 0x1000C02),  # IA32_MCG_CAP: 2 banks
        (0x198, 0),  # IA32_PERF_STATUS
        (0x19C, 0),  # IA32_THERM_STATUS
        (0x1A0, 0x1801),  # IA32_MISC_ENABLE: no BTS, no PEBS
        (0x1D9, 0),  # IA32_DEBUGCTL
        (0x280, 0),  # IA32_MC0_CTL2
        (0x400, ONES),  # IA32_MC0_CTL
        (0x401, 0),  # IA32_MC0_STATUS
        (0x408, 0),  # of a bank that is not there
        (0x6E0, 0),  # IA32_TSC_DEADLINE
        (HYPERCALL, 0),
        (0xC001001F, 0),  # AMD64_NB_CFG
    ],
)
def test_what_a_register_reads_as(current, number, value):
    assert read(current, number) == value


@pytest.mark.parametrize(
    "number",
    [
        0x2A,  # EBL_CR_POWERON
        0x48,  # IA32_SPEC_CTRL
        0x79,  # IA32_BIOS_UPDT_TRIG: to be written only
        0xE7,  # IA32_MPERF
        0x10A,  # IA32_ARCH_CAPABILITIES
        0x4D0,  # IA32_MCG_EXT_CTL
        0x480,  # IA32_VMX_BASIC
        0x802,  # the x2APIC's ID, in xAPIC mode
        0xD90,  # IA32_BNDCFGS
        0xDA0,  # IA32_XSS
        HYPERCALL + 1,
        0xC0000103,  # IA32_TSC_AUX, without RDTSCP
        0xC0010015,  # AMD's HWCR
        0xFFFFFFFF,
    ],
)
def test_what_there_is_not(current, number):
    assert read(current, number) is Msr.REFUSED
    if number != msr.IA32_UCODE_WRITE:
        assert write(current, number, 0) is Msr.REFUSED


@pytest.mark.parametrize("number", [0x17, 0xCE, 0x3A, 0x198, 0x19C, 0xFE, 0xC0010055])
def test_what_can_only_be_read(current, number):
    before = read(current, number)
    assert write(current, number, 0) is Msr.REFUSED
    assert read(current, number) == before


@pytest.mark.parametrize("number", [0x0, 0x10, 0x3B, 0x79, 0x179, 0x199, 0x18D, 0x400, 0x410])
def test_writes_that_do_nothing(current, number):
    current.cpu.now_ns = 77
    before = read(current, number)
    assert write(current, number, 0x1234) is None
    assert read(current, number) == before


def test_the_tsc_is_virtual_time(current):
    current.cpu.now_ns = 12345
    assert read(current, msr.IA32_TSC) == 12345


@pytest.mark.parametrize(
    ("number", "value"), [(0x140, 1), (0x1D9, 3), (0x17A, 7), (0x281, 5), (0x405, 9), (0x406, 8)]
)
def test_what_is_written_stays(current, number, value):
    assert write(current, number, value) is None
    assert read(current, number) == value


@pytest.mark.parametrize(
    ("number", "value"),
    [(0x140, 2), (0x1D9, 4), (0x402, ONES), (0x407, ONES), (0x8B, 1), (0x1A0, 0)],
)
def test_values_that_a_register_cannot_have(current, number, value):
    before = read(current, number)
    assert write(current, number, value) is Msr.REFUSED
    assert read(current, number) == before


@pytest.mark.parametrize("number", [0x8B, 0x1A0])
def test_what_it_has_may_be_written_back(current, number):
    assert write(current, number, read(current, number)) is None


NON_CANONICAL = 1 << 47


@pytest.mark.parametrize(
    ("number", "good", "bad"),
    [
        (msr.IA32_SYSENTER_ESP, 0xFFFF8000_00000000, NON_CANONICAL),
        (msr.IA32_SYSENTER_EIP, 0x7FFF_FFFF_FFFF, NON_CANONICAL),
        (msr.LSTAR, 0xFFFFFFFF_81000000, NON_CANONICAL),
        (msr.CSTAR, 0, NON_CANONICAL),
        (msr.FMASK, 0x47700, 1 << 32),
        (msr.IA32_CR_PAT, 0x0007010600070106, 2),
        (msr.EFER, 0xD01, 0x1D01),
    ],
)
def test_registers_of_the_cpus_own(current, number, good, bad):
    assert read(current, number) is Msr.NATIVE
    assert write(current, number, good) is Msr.NATIVE
    assert write(current, number, bad) is Msr.REFUSED


def test_long_mode_is_not_switched_while_paging(current):
    enter_long_mode(current, PAGE)
    assert write(current, msr.EFER, 0xD01) is Msr.NATIVE
    assert write(current, msr.EFER, 0xC01) is Msr.REFUSED


def test_mtrrs_are_the_vcpus(current):
    assert read(current, 0xFE) == 0x508
    assert read(current, 0x2FF) == 0x806
    assert write(current, 0x200, 0x12345006) is None
    assert read(current, 0x200) == 0x12345006
    assert write(current, 0x200, 0x12345002) is Msr.REFUSED
    assert read(current, 0x200) == 0x12345006


def test_the_hypercall_page_is_filled(current):
    current.domain.shared_info_width = 8
    assert write(current, HYPERCALL, PAGE) is None
    assert current.read(PAGE, 4096) == hypercall_page()
    assert current.domain.shared_info_width == 4, "the guest is in 32-bit code"


@pytest.mark.parametrize("value", [PAGE + 1, 0, 0xFFFFF000, 1 << 63])
def test_no_such_hypercall_page(current, value):
    before = bytes(current.domain.memory.bytes)
    assert write(current, HYPERCALL, value) is Msr.REFUSED
    assert bytes(current.domain.memory.bytes) == before
    assert current.domain.shared_info_width == 8


def test_x2apic_mode_has_the_apics_registers(current):
    assert write(current, msr.IA32_APIC_BASE, 0xFEE00D00) is None
    assert read(current, 0x802) == 0
    assert read(current, 0x803) == 0x50014
    assert write(current, 0x80F, 0x1FF) is None
    assert read(current, 0x80F) == 0x1FF
    assert write(current, 0x803, 0) is Msr.REFUSED


@pytest.mark.parametrize("number", range(0, 0x1000, 0x11))
def test_no_number_is_a_surprise(current, number):
    for value in (0, ONES):
        write(current, number, value)
        assert isinstance(read(current, number), int | Msr)
