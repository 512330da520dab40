"""pvh/msr: the registers that Xen 4.17 gives an HVM guest on an Intel CPU, and #GP for the rest."""

from __future__ import annotations

import pytest

from fakes import FIRST_GUEST_FRAME, enter_long_mode, make_pvh_current
from xenemu.hv.cpu import Msr
from xenemu.hv.current import Current
from xenemu.pvh.hypercall_page import hypercall_page
from xenemu.pvh.msr import read, write
from xenemu.x86 import msr

HYPERCALL = 0x40000000
PAGE = FIRST_GUEST_FRAME << 12
ONES = (1 << 64) - 1


@pytest.fixture
def current() -> Current:
    return make_pvh_current()


def test_the_table_is_asked(current):
    assert read(current, 0x179) == 0x1000C02
    assert read(current, 0xE7) is Msr.REFUSED
    assert write(current, 0xC1, 5) is None
    assert write(current, 0x17, 0) is Msr.REFUSED
    assert write(current, 0x1D9, 3) is None
    assert read(current, 0x1D9) == 3


def test_xens_own_register_reads_as_0_and_there_is_no_other(current):
    assert read(current, HYPERCALL) == 0
    assert read(current, HYPERCALL + 1) is Msr.REFUSED
    assert write(current, HYPERCALL + 1, PAGE) is Msr.REFUSED


def test_the_local_apic_is_where_it_says(current):
    assert read(current, msr.IA32_APIC_BASE) == 0xFEE00900
    for access in (lambda: read(current, 0x802), lambda: write(current, 0x80B, 0)):
        assert access() is Msr.REFUSED, "x2APIC mode is off"


def test_the_tsc_is_virtual_time(current):
    current.cpu.now_ns = 12345
    assert write(current, msr.IA32_TSC, 0) is None
    assert read(current, msr.IA32_TSC) == 12345


NON_CANONICAL = 1 << 47


@pytest.mark.parametrize(
    ("number", "good", "bad"),
    [
        (msr.IA32_SYSENTER_ESP, 0xFFFF8000_00000000, NON_CANONICAL),
        (msr.IA32_SYSENTER_EIP, 0x7FFF_FFFF_FFFF, NON_CANONICAL),
        (msr.LSTAR, 0xFFFFFFFF_81000000, NON_CANONICAL),
        (msr.CSTAR, 0, NON_CANONICAL),
        (msr.FMASK, 0x47700, 1 << 32),
        (msr.TSC_AUX, 0xFFFFFFFF, 1 << 32),
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
    assert write(current, 0xFE, 0x508) is Msr.REFUSED
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


def test_no_number_is_a_surprise(current):
    for number in (*range(0, 0x1000), *range(0xC0000080, 0xC0000110), 0xFFFFFFFF):
        for value in (0, ONES):
            write(current, number, value)
            assert isinstance(read(current, number), int | Msr), hex(number)
