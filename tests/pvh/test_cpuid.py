"""pvh/cpuid: Xen's leaves, and what a kernel in ring 0 is told of its CPU."""

from __future__ import annotations

import pytest

from fakes import enter_long_mode, make_pvh_current
from xenemu.abi.version import XEN_VERSION
from xenemu.hv.cpu import Reg
from xenemu.hv.current import Current
from xenemu.pvh.cpuid import execute
from xenemu.pvh.state import pvh

RING_0_EDX = (1 << 3, 1 << 7, 1 << 11, 1 << 12, 1 << 13, 1 << 17)


@pytest.fixture
def current() -> Current:
    return make_pvh_current()


def cpuid(current: Current, leaf: int, subleaf: int = 0) -> tuple[int, int, int, int]:
    regs = current.cpu.regs
    regs[Reg.RAX], regs[Reg.RCX] = leaf | 0xDEAD << 32, subleaf
    execute(current)
    return (regs[Reg.RAX], regs[Reg.RBX], regs[Reg.RCX], regs[Reg.RDX])


def test_xens_leaves(current):
    base = 0x40000000
    highest, *name = cpuid(current, base)
    assert highest == base + 5
    assert b"".join(word.to_bytes(4, "little") for word in name) == b"XenVMMXenVMM"
    assert cpuid(current, base + 1) == (XEN_VERSION, 0, 0, 0)
    assert cpuid(current, base + 2) == (1, 0x40000000, 0, 0)
    assert cpuid(current, base + 5) == (0, 0, 0, 0)
    assert cpuid(current, base + 0x100) == (0, 0, 0, 0)


def test_hvms_leaf_has_the_vcpu_and_the_domain(current):
    current.vcpu.vcpu_id = 3
    current.domain.domid = 7
    assert cpuid(current, 0x40000004) == (1 << 2 | 1 << 3 | 1 << 4 | 1 << 6, 3, 7, 0)
    assert cpuid(current, 0x40000004, 1) == (0, 0, 0, 0)


def test_features_of_a_kernel_in_ring_0(current):
    _, _, ecx, edx = cpuid(current, 1)
    assert all(edx & bit for bit in RING_0_EDX)
    assert ecx & 1 << 21, "x2APIC"
    assert ecx & 1 << 31, "hypervisor"
    assert not ecx & 1 << 27, "OSXSAVE"


def test_the_apics_id_is_told_twice():
    current = make_pvh_current(vcpus=3)
    current.vcpu = current.domain.vcpus[2]
    current.vcpu.vcpu_id = 2
    assert cpuid(current, 1)[1] >> 24 == 4
    assert cpuid(current, 0xB, 1) == (0, 0, 1, 4)


def test_an_apic_that_is_off_is_not_there(current):
    assert cpuid(current, 1)[3] & 1 << 9
    pvh(current).lapic.set_apic_base(0xFEE00100)
    assert not cpuid(current, 1)[3] & 1 << 9


def test_syscall_is_for_long_mode(current):
    assert not cpuid(current, 0x80000001)[3] & 1 << 11
    enter_long_mode(current, 0)
    assert cpuid(current, 0x80000001)[3] & 1 << 11


@pytest.mark.parametrize("leaf", [5, 0xD, 0x17, 0x80000009, 0xFFFFFFFF])
def test_leaves_that_say_nothing(current, leaf):
    assert cpuid(current, leaf) == (0, 0, 0, 0)
