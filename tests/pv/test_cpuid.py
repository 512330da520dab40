"""pv/cpuid: CPUID as a PV guest gets it."""

from __future__ import annotations

import pytest

from fakes import make_pv_current
from fakes32 import make_pv32_current
from xenemu.hv.cpu import Reg
from xenemu.hv.cpu_policy import PV32, PV64
from xenemu.hv.current import Current
from xenemu.pv import cpuid
from xenemu.x86.cpuid import VENDOR


@pytest.fixture
def current() -> Current:
    return make_pv_current(vcpus=2)


def ask(current: Current, leaf: int, subleaf: int = 0) -> tuple[int, ...]:
    regs = current.cpu.regs
    regs[Reg.RAX], regs[Reg.RCX] = leaf, subleaf
    cpuid.execute(current)
    return tuple(regs[r] for r in (Reg.RAX, Reg.RBX, Reg.RCX, Reg.RDX))


def test_only_the_lower_halves_count(current: Current) -> None:
    assert ask(current, 0xABCD << 32) == VENDOR


def test_xen_names_itself_and_its_highest_leaf(current: Current) -> None:
    highest, *name = ask(current, 0x40000000)
    assert highest == 0x40000005
    assert b"".join(word.to_bytes(4, "little") for word in name) == b"XenVMMXenVMM"


def test_the_version_is_the_modelled_xens(current: Current) -> None:
    assert ask(current, 0x40000001) == (4 << 16 | 17, 0, 0, 0)


def test_there_is_one_hypercall_page_by_msr(current: Current) -> None:
    assert ask(current, 0x40000002) == (1, 0x40000000, 1, 0)


def test_machine_addresses_are_as_wide_as_memory(current: Current) -> None:
    assert current.domain.memory.nr_frames == 80
    assert ask(current, 0x40000005) == (0, 7 + 12, 0, 0)
    assert ask(current, 0x40000005, 1) == (0, 0, 0, 0)


@pytest.mark.parametrize("leaf", [0x40000004, 0x40000006, 0x400000FF, 0x40000100, 0xFFFFFFFF])
def test_other_leaves_are_empty(current: Current, leaf: int) -> None:
    assert ask(current, leaf) == (0, 0, 0, 0)


def test_the_clock_is_native_and_a_tick_a_nanosecond(current: Current) -> None:
    assert ask(current, 0x40000003) == (1 << 1 | 1 << 2, 0, 1_000_000, 1)
    _, _, multiplier, shift = ask(current, 0x40000003, 1)
    assert (1_000_000_007 << shift) * multiplier >> 32 == 1_000_000_007
    assert ask(current, 0x40000003, 3) == (0, 0, 0, 0)


def test_no_pv_vcpu_has_an_apic_id(current: Current) -> None:
    current.vcpu = current.domain.vcpus[1]
    assert ask(current, 1)[1] >> 24 == 0
    assert ask(current, 0xB, 1) == (0, 0, 0, 0)


def test_each_width_has_its_own_policy() -> None:
    for current, policy in ((make_pv_current(), PV64), (make_pv32_current(), PV32)):
        for leaf in (0, 1, 7, 0x80000001, 0x80000008):
            assert ask(current, leaf) == policy.cpuid(leaf, 0)
