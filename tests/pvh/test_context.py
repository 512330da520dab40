"""pvh/context: VCPUOP_initialise of a PVH guest. In Xen: arch_set_info_hvm_guest."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fakes import FakeNativeCpu, make_pvh_current
from hypercalls.vcpu_op import vcpu_op
from xenemu.abi.errno import EEXIST, EFAULT, EINVAL
from xenemu.abi.hvm.hvm_vcpu import (
    VCPU_HVM_MODE_32B,
    VCPU_HVM_MODE_64B,
    vcpu_hvm_context,
    vcpu_hvm_x86_32,
    vcpu_hvm_x86_64,
)
from xenemu.abi.vcpu import VCPUOP_initialise, VCPUOP_is_up, VCPUOP_up
from xenemu.errors import DomainCrash, XenError
from xenemu.hv.cpu import Reg, Seg, Segment
from xenemu.hv.current import Current
from xenemu.pvh.personality import PVH
from xenemu.pvh.state import pvh_vcpu

ARGUMENT = 0x20000
CODE, DATA, TSS = 0xC9B, 0xC93, 0x8B  # of the _ar fields
FLAT = 0xFFFFFFFF

GENERAL = tuple(range(1, 9))
REGS32 = vcpu_hvm_x86_32(
    *GENERAL,
    eip=0x100000,
    eflags=2,
    cr0=0x11,
    cr3=0,
    cr4=0,
    pad1=0,
    efer=0,
    cs_base=0,
    ds_base=0,
    ss_base=0,
    es_base=0,
    tr_base=0x3000,
    cs_limit=FLAT,
    ds_limit=FLAT,
    ss_limit=FLAT,
    es_limit=FLAT,
    tr_limit=0x67,
    cs_ar=CODE,
    ds_ar=DATA,
    ss_ar=DATA,
    es_ar=DATA,
    tr_ar=TSS,
    pad2=bytes(6),
)
REGS64 = vcpu_hvm_x86_64(
    *GENERAL, rip=1 << 40, rflags=2, cr0=0x80000011, cr3=0x5000, cr4=0x20, efer=0x100
)


@pytest.fixture
def current() -> Current:
    return make_pvh_current(vcpus=2)


def call(current: Current, command: int, pointer: int = 0, vcpu_id: int = 1) -> int:
    assert vcpu_op.handler is not None
    return vcpu_op.handler(current, command, vcpu_id, pointer) or 0


def initialise(current: Current, regs: vcpu_hvm_x86_32 | vcpu_hvm_x86_64, **changes: int) -> None:
    wide = isinstance(regs, vcpu_hvm_x86_64)
    mode = VCPU_HVM_MODE_64B if wide else VCPU_HVM_MODE_32B
    context = vcpu_hvm_context(mode, 0, regs.pack(8).ljust(120, b"\0"))
    current.write_struct(ARGUMENT, replace(context, **changes))
    call(current, VCPUOP_initialise, ARGUMENT)


def refused(current: Current, errno: int, *args: object, **changes: int) -> None:
    before = repr(current.domain.vcpus)
    with pytest.raises(XenError) as error:
        initialise(current, *args, **changes)  # type: ignore[arg-type]
    assert error.value.errno == errno
    assert error.value.reason
    assert repr(current.domain.vcpus) == before


def started(current: Current) -> FakeNativeCpu:
    """The CPU, after the vcpu that was initialised has come into it."""
    call(current, VCPUOP_up)
    cpu = current.cpu
    assert isinstance(cpu, FakeNativeCpu)
    cpu.regs[:] = [0xDEAD] * 16
    PVH.leave(current)
    current.vcpu = current.domain.vcpus[1]
    PVH.start(current)
    PVH.enter(current)
    return cpu


def test_a_vcpu_starts_in_32_bit_code(current):
    initialise(current, REGS32)
    cpu = started(current)
    assert tuple(cpu.regs) == GENERAL + (0,) * 8
    assert cpu.regs[Reg.RBX] == REGS32.ebx
    assert (cpu.rip, cpu.rflags, cpu.cr0, cpu.cr3, cpu.cr4) == (0x100000, 2, 0x11, 0, 0)
    assert cpu.segment(Seg.CS) == Segment(0, 0, FLAT, 0xC09B00)
    for which in (Seg.DS, Seg.ES, Seg.SS, Seg.FS, Seg.GS):
        assert cpu.segment(which) == Segment(0, 0, FLAT, 0xC09300)
    assert cpu.segment(Seg.TR) == Segment(0, 0x3000, 0x67, 0x8B00)
    assert cpu.segment(Seg.IDTR).limit == 0


def test_a_vcpu_starts_in_64_bit_code(current):
    initialise(current, REGS64)
    cpu = started(current)
    assert (cpu.rip, cpu.cr3, cpu.efer) == (1 << 40, 0x5000, 0x500)
    assert cpu.segment(Seg.CS) == Segment(0, 0, FLAT, 0xA09B00)
    assert cpu.segment(Seg.TR) == Segment(0, 0, 0x67, 0x8B00)
    assert cpu.code64


def test_a_vcpu_runs_only_when_it_is_brought_up(current):
    initialise(current, REGS32)
    vcpu = current.domain.vcpus[1]
    assert vcpu.initialised and not vcpu.runnable and call(current, VCPUOP_is_up) == 0
    call(current, VCPUOP_up)
    assert vcpu.runnable and call(current, VCPUOP_is_up) == 1
    assert current.domain.reschedule


def test_bits_that_a_cpu_sets_by_itself_are_set(current):
    initialise(current, replace(REGS32, cs_ar=0xC9A, ds_ar=0xC92, tr_ar=0x89, eflags=0))
    cpu = started(current)
    assert cpu.segment(Seg.CS).attributes == 0xC09B00
    assert cpu.segment(Seg.DS).attributes == 0xC09300
    assert cpu.segment(Seg.TR).attributes == 0x8B00
    assert cpu.rflags == 2


def test_a_null_data_segment_is_allowed(current):
    initialise(current, replace(REGS32, ds_ar=0, es_ar=0))
    assert started(current).segment(Seg.DS) == Segment(0, 0, FLAT)


@pytest.mark.parametrize(
    "changes",
    [
        {"pad1": 1},
        {"pad2": b"\0\0\0\0\0\1"},
        {"cs_ar": CODE | 1 << 12},
        {"cs_ar": 0},
        {"ss_ar": 0},
        {"tr_ar": 0},
        {"cs_ar": DATA},
        {"cs_ar": CODE & ~0x80},
        {"cs_ar": CODE & ~0x10},
        {"ss_ar": CODE},
        {"ss_ar": 0xC91},
        {"ss_ar": DATA | 3 << 5},
        {"ds_ar": 0xC99},
        {"es_ar": DATA | 3 << 5},
        {"tr_ar": DATA},
        {"tr_ar": 0x82},
        {"eip": 0x10000, "cs_ar": 0x9B, "cs_limit": 0xFFFF},
        {"eip": 0x1000, "cs_limit": 0},
        {"efer": 0x400},
        {"efer": 1 << 1},
        {"cr4": 1 << 13},
    ],
    ids=str,
)
def test_32_bit_registers_that_xen_refuses(current, changes):
    refused(current, EINVAL, replace(REGS32, **changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"rip": 1 << 47},
        {"cr0": 0x11},
        {"cr4": 0},
        {"cr4": 0x20 | 1 << 17},
        {"efer": 0},
        {"efer": 0x100 | 1 << 12},
    ],
    ids=str,
)
def test_64_bit_registers_that_xen_refuses(current, changes):
    refused(current, EINVAL, replace(REGS64, **changes))


def test_a_context_of_another_kind(current):
    refused(current, EINVAL, REGS32, mode=2)
    refused(current, EINVAL, REGS32, pad=1)


@pytest.mark.parametrize(
    "regs",
    [
        replace(REGS64, cr0=0x80000010),
        replace(REGS64, cr0=1 << 32 | 0x80000011),
        replace(REGS64, cr3=1 << 40),
        replace(REGS64, rflags=1 << 3),
        replace(REGS64, rflags=1 << 17),
        replace(REGS32, efer=0x100),
        replace(REGS32, efer=0x100, cr0=0x80000011),
    ],
    ids=str,
)
def test_registers_that_no_cpu_can_enter_end_the_guest(current, regs):
    with pytest.raises(DomainCrash, match="cannot start"):
        initialise(current, regs)


def test_a_vcpu_is_initialised_once(current):
    initialise(current, REGS32)
    refused(current, EEXIST, replace(REGS32, eip=1))
    refused(current, EEXIST, REGS32, mode=2)
    assert pvh_vcpu(current.domain.vcpus[1]).start is not None


def test_the_context_must_be_readable(current):
    with pytest.raises(XenError) as error:
        call(current, VCPUOP_initialise, 1 << 30)
    assert error.value.errno == EFAULT


def test_a_vcpu_without_a_vcpu_info_cannot_be_initialised():
    current = make_pvh_current(vcpus=34)
    with pytest.raises(XenError) as error:
        call(current, VCPUOP_initialise, 1 << 30, vcpu_id=33)
    assert error.value.errno == EINVAL
