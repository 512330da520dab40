"""hv/msr: the table of model-specific registers, a column for each kind of guest."""

from __future__ import annotations

import pytest

from xenemu.hv.msr import HVM, PV, TABLE, How, cpuid_faults, host_has, read, write
from xenemu.hv.state.vcpu import Vcpu
from xenemu.x86 import msr
from xenemu.x86.paging import Maddr

ONES = (1 << 64) - 1
BOTH = (PV, HVM)


@pytest.fixture
def vcpu() -> Vcpu:
    return Vcpu(0, Maddr(0))


def test_no_register_has_two_rows():
    numbers = [number for row in TABLE for number in row[0]]
    assert len(numbers) == len(set(numbers))


def test_what_registers_read_as(vcpu):
    for number, pv, hvm in (
        (0x0, 0, 0),  # P5_MC_ADDR
        (0x17, 0, 0),  # PLATFORM_ID
        (0x3A, 1, 1),  # FEATURE_CONTROL: locked
        (0x3B, How.REFUSED, 0),  # TSC_ADJUST
        (0x79, How.REFUSED, How.REFUSED),  # BIOS_UPDT_TRIG
        (0x8B, 0, 0),  # BIOS_SIGN_ID
        (0xC8, 0, 0),  # a performance counter
        (0xCE, 1 << 31, 1 << 31),  # PLATFORM_INFO: CPUID can fault
        (0xE7, How.REFUSED, How.REFUSED),  # MPERF
        (0xFE, How.REFUSED, How.OWN),  # MTRRcap
        (0x140, 0, 0),  # MISC_FEATURES_ENABLES
        (0x175, How.REFUSED, How.OWN),  # SYSENTER_ESP
        (0x179, 0x1000C02, 0x1000C02),  # MCG_CAP: 2 banks
        (0x189, 0, 0),  # an event select
        (0x18A, How.REFUSED, How.REFUSED),
        (0x198, 0, 0),  # PERF_STATUS
        (0x19C, 0, 0),  # THERM_STATUS
        (0x1A0, 0x801801, 0x1801),  # MISC_ENABLE: no BTS, no PEBS; for PV, no xTPR
        (0x1D7, How.REFUSED, 0),  # the last branch
        (0x277, 0x050100070406, How.OWN),  # PAT
        (0x29F, 0, 0),  # MC31_CTL2
        (0x345, 0, How.REFUSED),  # PERF_CAPABILITIES
        (0x400, ONES, ONES),  # MC0_CTL
        (0x401, 0, 0),  # MC0_STATUS
        (0x408, 0, 0),  # of a bank that is not there
        (0x4D0, How.REFUSED, How.REFUSED),  # MCG_EXT_CTL
        (0x6E0, How.REFUSED, 0),  # TSC_DEADLINE
        (0x802, How.REFUSED, How.OWN),  # the x2APIC's ID
        (0xC0000080, How.OWN, How.OWN),  # EFER
        (0xC0000082, How.REFUSED, How.OWN),  # LSTAR
        (0xC001001F, 0, 0),  # AMD64_NB_CFG
        (0xC0010055, How.REFUSED, 0),  # K8_ENABLE_C1E
        (0x12345, How.REFUSED, How.REFUSED),
    ):
        assert [read(column, vcpu, number) for column in BOTH] == [pv, hvm], hex(number)


def test_writes_that_change_nothing(vcpu):
    takes_anything = (0xC1, 0x179, 0x17B, 0x186, 0x199, 0x282, 0x38D, 0x400, 0x47F, 0xC001001F)
    for column in BOTH:
        for number in takes_anything:
            before = read(column, vcpu, number)
            assert write(column, vcpu, number, 0x1234) is None, hex(number)
            assert read(column, vcpu, number) == before
    assert not vcpu.msrs


def test_what_one_kind_may_write(vcpu):
    for number, pv, hvm in (
        (0xE8, None, How.REFUSED),  # APERF
        (0x1B0, None, How.REFUSED),  # ENERGY_PERF_BIAS
        (0x1A0, None, How.REFUSED),  # MISC_ENABLE: an HVM guest, only what it has
        (0x79, How.REFUSED, None),
        (0x18D, How.REFUSED, None),
        (0x3F1, How.REFUSED, None),  # PEBS_ENABLE
        (0x6E0, How.REFUSED, None),
        (0x680, How.REFUSED, None),
    ):
        assert [write(column, vcpu, number, 3) for column in BOTH] == [pv, hvm], hex(number)
    assert write(HVM, vcpu, 0x1A0, 0x1801) is None


def test_what_only_takes_a_zero(vcpu):
    for column in BOTH:
        for number in (0x8B, 0x401, 0x402, 0x403, 0x405, 0x406, 0x407):
            assert write(column, vcpu, number, 0) is None, hex(number)
            assert write(column, vcpu, number, 1) is How.REFUSED, hex(number)


def test_what_can_only_be_read(vcpu):
    for column in BOTH:
        for number in (0x0, 0x1, 0x17, 0x3A, 0xCE, 0x10A, 0x198, 0x19C):
            assert write(column, vcpu, number, 0) is How.REFUSED, hex(number)


def test_what_is_written_stays(vcpu):
    for column in BOTH:
        for number, value in ((0x140, 1), (0x17A, 7), (0x280, ONES), (0x281, 5)):
            assert write(column, vcpu, number, value) is None, hex(number)
            assert read(column, vcpu, number) == value
    assert write(HVM, vcpu, msr.IA32_DEBUGCTL, 3) is None
    assert read(HVM, vcpu, msr.IA32_DEBUGCTL) == 3


def test_bits_that_a_register_has_not(vcpu):
    for number, value in ((0x140, 2), (0x1D9, 4)):
        assert write(HVM, vcpu, number, value) is How.REFUSED
    assert not vcpu.msrs


def test_the_guest_may_make_cpuid_fault(vcpu):
    assert not cpuid_faults(vcpu)
    write(PV, vcpu, msr.MISC_FEATURES_ENABLES, 1)
    assert cpuid_faults(vcpu)


def test_the_host_has_what_an_hvm_guest_can_read_but_for_amds():
    assert [host_has(number) for number in (0xFE, 0x174, 0xC0000082)] == [True, True, True]
    assert [host_has(number) for number in (0xC0010055, 0x79, 0x12345)] == [False, False, False]
