"""hv/cpu_policy: one host CPU, and what each kind of guest is told of it."""

from __future__ import annotations

from xenemu.abi.arch_x86.cpufeatureset import Feature
from xenemu.hv.cpu_policy import HOST_FEATURES, HVM, PV32, PV64, hvm
from xenemu.x86.cpuid import NOTHING

LARGE_PAGES_AND_THE_LIKE = {
    Feature.PSE,
    Feature.PGE,
    Feature.PSE36,
    Feature.PAGE1GB,
    Feature.MTRR,
    Feature.X2APIC,
}
OF_LONG_MODE = {Feature.LM, Feature.SYSCALL, Feature.CX16, Feature.LAHF_LM}


def test_a_pv_guest_has_the_hosts_features_but_those_of_hvm_guests():
    assert HOST_FEATURES - PV64.features == LARGE_PAGES_AND_THE_LIKE
    assert PV64.features - HOST_FEATURES == {Feature.HYPERVISOR}


def test_without_long_mode_what_depends_on_it_is_lost():
    assert PV64.features - PV32.features == OF_LONG_MODE
    assert PV32.features < PV64.features


def test_an_hvm_guest_has_all_of_the_hosts_features():
    assert HVM.features - HOST_FEATURES == {Feature.HYPERVISOR, Feature.HTT}
    assert HVM.features > HOST_FEATURES


def test_a_leaf_shows_what_the_policy_has():
    for policy in (PV64, PV32, HVM):
        _, _, ecx, edx = policy.cpuid(1, 0)
        assert edx & 1 << Feature.MCE.bit and edx & 1 << Feature.SEP.bit
        assert bool(ecx & 1 << Feature.CX16.bit) is policy.has(Feature.CX16)
        assert policy.cpuid(7, 0)[3] == 1 << Feature.ARCH_CAPS.bit


def test_all_guests_have_random_numbers_and_segment_bases():
    for policy in (PV64, PV32, HVM):
        assert policy.cpuid(1, 0)[2] & 1 << 30
        assert policy.cpuid(7, 0)[1] == 1 << Feature.FSGSBASE.bit | 1 << Feature.RDSEED.bit
        assert policy.cpuid(0x80000001, 0)[3] & 1 << Feature.RDTSCP.bit


def test_only_long_mode_has_48_bits_of_linear_address():
    assert [p.cpuid(0x80000008, 0)[0] for p in (PV64, PV32, HVM)] == [0x3028, 0x2028, 0x3028]


def test_libxl_gives_a_pvh_guest_twice_the_cores_and_no_threads():
    assert [p.cpuid(1, 0)[1] >> 16 for p in (PV64, HVM)] == [1, 2]
    assert [p.cpuid(4, 2)[0] for p in (PV64, HVM)] == [0x143, 1 << 26 | 0x143]


def test_a_pvh_guests_vcpus_are_cores_of_one_package_if_that_can_be_told():
    # In leaf 1 and in leaf 4, how many APIC IDs the package has; all are even.
    found = {n: (hvm(n).cpuid(1, 0)[1] >> 16, hvm(n).cpuid(4, 0)[0] >> 26) for n in (1, 3, 4, 33)}
    assert found == {1: (2, 1), 3: (8, 7), 4: (8, 7), 33: (64, 63)}
    assert hvm(128) == hvm(32)


def test_the_engine_speculates_about_nothing_but_seems_to_leak_what_xpti_hides():
    rdcl_no, mds_no, its_no = 1 << 0, 1 << 5, 1 << 62
    assert PV64.arch_caps == HVM.arch_caps
    assert HVM.arch_caps & (rdcl_no | mds_no | its_no) == mds_no | its_no


def test_leaves_and_subleaves_that_say_nothing():
    for leaf, subleaf in ((0x5, 0), (0x6, 0), (0xA, 0), (0xB, 0), (0x17, 0), (7, 1), (4, 3)):
        assert HVM.cpuid(leaf, subleaf) == NOTHING, hex(leaf)
    for leaf in (0x80000005, 0x80000007, 0x80000009, 0xFFFFFFFF):
        assert HVM.cpuid(leaf, 0) == NOTHING, hex(leaf)
