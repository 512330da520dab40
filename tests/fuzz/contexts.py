"""The registers that a guest gives a further vcpu of its: at home where the others are."""

from __future__ import annotations

import struct
from typing import Any

from fakes import FakeNativeCpu
from fuzz.world import STACK_BYTES, World
from xenemu.abi.arch_x86.xen import (
    FLAT_RING1_CS,
    FLAT_RING1_SS,
    FLAT_RING3_CS64,
    FLAT_RING3_SS64,
    VGCF_in_kernel,
    cpu_user_regs,
    cpu_user_regs32,
    trap_info,
    vcpu_guest_context,
)
from xenemu.abi.hvm.hvm_vcpu import (
    VCPU_HVM_MODE_32B,
    VCPU_HVM_MODE_64B,
    vcpu_hvm_context,
    vcpu_hvm_x86_32,
    vcpu_hvm_x86_64,
)
from xenemu.abi.layout import Struct
from xenemu.cpu.engine import Engine
from xenemu.pv.state import pv_vcpu
from xenemu.x86.paging import PAGE_SHIFT

HANDLED = (*range(0, 20), 0x80)
CODE_RIGHTS, DATA_RIGHTS, TSS_RIGHTS = 0xC9B, 0xC93, 0x8B
FLAT = 0xFFFFFFFF


def fresh_context(world: World, number: int, **given: Any) -> bytes:
    """What VCPUOP_initialise takes for a vcpu; some fields may be given."""
    stack = world.stack - number * STACK_BYTES
    if "pvh" in world.environment:
        return _pvh(world, stack, given)
    return _pv(world, stack, given)


def _struct(cls: type[Struct], **values: Any) -> Any:
    """A struct of zeroes but for these."""
    empty = cls.unpack(8, bytes(cls.sizeof(8)))
    for name, value in values.items():
        assert hasattr(empty, name)
        setattr(empty, name, value)
    return empty


def _pv(world: World, stack: int, given: dict[str, Any]) -> bytes:
    width = world.current.vcpu.width
    wide, handler = width == 8, world.handler
    root = pv_vcpu(world.current.domain.vcpus[0]).kernel_root
    cs, ss = (FLAT_RING3_CS64, FLAT_RING3_SS64) if wide else (FLAT_RING1_CS, FLAT_RING1_SS)
    names = ("rip", "cs", "rflags", "rsp", "ss") if wide else ("eip", "cs", "eflags", "esp", "ss")
    values = dict(zip(names, (world.entry, cs, 2, stack, ss), strict=True))
    if not wide:
        values |= {"ds": ss, "es": ss}
    regs = _struct(cpu_user_regs if wide else cpu_user_regs32, **values).pack(8)
    table = bytearray(256 * trap_info.sizeof(width))
    for vector in HANDLED:
        entry = trap_info(vector, 0, cs, handler).pack(width)
        table[vector * len(entry) : (vector + 1) * len(entry)] = entry
    cr3 = root << PAGE_SHIFT if wide else (root << PAGE_SHIFT | root >> 20) & FLAT
    control = [0, cr3 if wide else 0, 0, cr3, 0, 0, 0, 0]
    word = "Q" if wide else "I"
    context = vcpu_guest_context.unpack(width, bytes(vcpu_guest_context.sizeof(width)))
    fields = {
        "flags": VGCF_in_kernel, "user_regs": regs, "trap_ctxt": bytes(table), "kernel_ss": ss,
        "kernel_sp": stack, "ctrlreg": struct.pack(f"<8{word}", *control),
        "event_callback_eip": handler, "failsafe_callback_eip": handler,
    }  # fmt: skip
    if wide:
        fields["syscall_callback_eip"] = struct.pack("<Q", handler)
    else:
        fields |= dict.fromkeys(
            ("event_callback_cs", "failsafe_callback_cs"), struct.pack("<I", cs)
        )
    for name, value in (fields | given).items():
        setattr(context, name, value)
    return context.pack(width)


def _pvh(world: World, stack: int, given: dict[str, Any]) -> bytes:
    if world.environment == "pvh64":
        regs = _struct(vcpu_hvm_x86_64, rip=world.entry, rsp=stack, rflags=2)
        cpu = world.current.cpu
        assert isinstance(cpu, FakeNativeCpu | Engine)
        regs.cr0, regs.cr3, regs.cr4, regs.efer = cpu.cr0, cpu.cr3, cpu.cr4, cpu.efer
        mode = VCPU_HVM_MODE_64B
    else:
        rights = {f"{name}_ar": DATA_RIGHTS for name in ("ds", "es", "ss")}
        limits = {f"{name}_limit": FLAT for name in ("cs", "ds", "es", "ss")}
        regs = _struct(
            vcpu_hvm_x86_32, eip=world.entry, esp=stack, eflags=2, cr0=0x11,
            cs_ar=CODE_RIGHTS, tr_ar=TSS_RIGHTS, tr_limit=0x67, **rights, **limits,
        )  # fmt: skip
        mode = VCPU_HVM_MODE_32B
    for name, value in given.items():
        setattr(regs, name, value)
    return vcpu_hvm_context(mode, 0, regs.pack(8).ljust(120, b"\0")).pack(8)
