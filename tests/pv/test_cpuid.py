"""pv/cpuid: CPUID as a PV guest gets it."""

from __future__ import annotations

import pytest

from fakes import make_pv_current
from fakes32 import make_pv32_current
from xenemu.hv.cpu import Reg
from xenemu.hv.domain import Current
from xenemu.pv import cpuid
from xenemu.x86.cpuid import BASIC, CX16, LAHF_LM, LM, SYSCALL


@pytest.fixture
def current() -> Current:
    return make_pv_current(vcpus=2)


def ask(current: Current, leaf: int, subleaf: int = 0) -> tuple[int, ...]:
    regs = current.cpu.regs
    regs[Reg.RAX], regs[Reg.RCX] = leaf, subleaf
    cpuid.execute(current)
    return tuple(regs[r] for r in (Reg.RAX, Reg.RBX, Reg.RCX, Reg.RDX))


def test_only_the_lower_halves_count(current: Current) -> None:
    assert ask(current, 0xABCD << 32) == BASIC[0]


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


def test_each_vcpu_has_its_own_apic_id(current: Current) -> None:
    current.vcpu = current.domain.vcpus[1]
    assert ask(current, 1)[1] >> 24 == 2


def test_a_32_bit_guest_has_nothing_of_long_mode() -> None:
    wide, narrow = make_pv_current(), make_pv32_current()
    extended = [ask(one, 0x80000001) for one in (wide, narrow)]
    assert extended[0][3] & ~extended[1][3] == LM | SYSCALL
    assert extended[0][2] & ~extended[1][2] == LAHF_LM
    assert ask(wide, 1)[2] & ~ask(narrow, 1)[2] == CX16
    assert ask(wide, 0) == ask(narrow, 0)
