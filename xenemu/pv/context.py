"""The context with which a PV guest initialises a vcpu, and how the vcpu starts with it.

Header: public/arch-x86/xen.h (struct vcpu_guest_context)
In Xen: arch/x86/domain.c (arch_set_info_guest, load_segments)
"""

from __future__ import annotations

import struct
from contextlib import suppress
from dataclasses import fields, replace
from typing import Any, Final

from xenemu.abi.arch_x86.xen import (
    TI_DPL,
    TI_IF,
    VGCF_failsafe_disables_events,
    VGCF_i387_valid,
    VGCF_in_kernel,
    VGCF_online,
    VGCF_syscall_disables_events,
    cpu_user_regs,
    cpu_user_regs32,
    trap_info,
    vcpu_guest_context,
)
from xenemu.abi.errno import EINVAL
from xenemu.abi.xen import VMASST_TYPE_m2p_strict
from xenemu.errors import XenError
from xenemu.hv.cpu import Reg, Seg, Segment
from xenemu.hv.current import Current
from xenemu.hv.pagetype import Restart
from xenemu.hv.segdesc import fixup_guest_selector
from xenemu.hv.state.vcpu import Vcpu
from xenemu.pv import descriptors, failsafe, traps
from xenemu.pv.debug_registers import set_debugreg
from xenemu.pv.msr import CR4_FSGSBASE, CR4_TSD, fixup_guest_cr4
from xenemu.pv.paging import cr3_to_mfn, hide_m2p, in_guest_range, show_m2p
from xenemu.pv.state import PvVcpu, StartContext, Trap, pv, pv_vcpu
from xenemu.x86 import flags, msr, segment
from xenemu.x86.paging import ENTRIES, PAGE_MASK, PAGE_SHIFT, Mfn, is_canonical

CR0_TS: Final = 1 << 3
MXCSR: Final = slice(24, 28)  # of FXSAVE's area
MXCSR_DEFINED: Final = 0xFFFF
NO_FPU: Final = bytes(512)  # what Xen loads if the guest's cannot be loaded


# What the guest asks for.


def initialise(current: Current, vcpu: Vcpu, context: vcpu_guest_context) -> bool:
    """Give a vcpu the context that it starts with; whether it starts at once.

    EINVAL: an address or a table is not one that the guest may have; then nothing has changed.
    `Restart` until the page tables are validated.
    """
    fresh = _checked(context, current.vcpu.width)
    frames = current.domain.frames
    if not frames.put_old_tables():
        raise Restart
    other = replace(current, vcpu=vcpu)  # of which the registers are not meant
    descriptors.map_initial_gdt(other)
    descriptors.set_gdt(other, *_gdt(context, current.vcpu.width))
    try:
        kernel, user = _take_roots(current, context)
    except (XenError, Restart):
        descriptors.set_gdt(other, [], 0)
        raise
    state = pv_vcpu(vcpu)
    for name in (field.name for field in fields(PvVcpu)):
        if name not in ("gdt_frames", "gdt_entries", "old_tables", "refusal", "nmi_pending"):
            setattr(state, name, getattr(fresh, name))
    state.kernel_root, state.user_root = kernel, user
    return bool(context.flags & VGCF_online)


def _checked(context: vcpu_guest_context, width: int) -> PvVcpu:
    """What the context makes of a vcpu, without its GDT and its page tables."""
    regs = _registers(context, width)
    control, debug = _words(context.ctrlreg, width), _words(context.debugreg, width)
    start = _start(context, regs, debug, width)
    if width == 8:
        _check_addresses(context, start)
    handlers = _traps(context, width)
    if width == 8 and not in_guest_range(context.ldt_base):
        raise XenError(EINVAL, f"an LDT cannot be at {context.ldt_base:#x}, which is Xen's")
    if context.ldt_base & PAGE_MASK:
        raise XenError(EINVAL, f"an LDT begins on a page boundary, not at {context.ldt_base:#x}")
    if context.ldt_ents > descriptors.MAX_LDT_ENTRIES:
        raise XenError(
            EINVAL,
            f"an LDT has at most {descriptors.MAX_LDT_ENTRIES} entries, not {context.ldt_ents}",
        )
    if width == 8 and not context.flags & VGCF_in_kernel and not control[1]:
        raise XenError(EINVAL, "a vcpu that starts in user mode needs page tables of the user's")
    in_kernel = bool(context.flags & VGCF_in_kernel) or width == 4
    event_cs, failsafe_cs = (
        fixup_guest_selector(_number(cs) & 0xFFFF, width) if width == 4 else traps.CS64.selector
        for cs in (context.event_callback_cs, context.failsafe_callback_cs)
    )
    kernel_base, user_base = start.gs_base_kernel, start.gs_base_user
    return PvVcpu(
        Mfn(0),
        entry=start,
        kernel_mode=in_kernel,
        inactive_gs=user_base if in_kernel else kernel_base,
        traps=handlers,
        event_callback=Trap(event_cs, context.event_callback_eip, mask_events=True),
        failsafe_callback=Trap(
            failsafe_cs,
            context.failsafe_callback_eip,
            mask_events=bool(context.flags & VGCF_failsafe_disables_events),
        ),
        syscall_callback=Trap(
            traps.CS64.selector,
            _number(context.syscall_callback_eip),
            mask_events=bool(context.flags & VGCF_syscall_disables_events),
        ),
        kernel_ss=fixup_guest_selector(context.kernel_ss & 0xFFFF, width),
        kernel_sp=context.kernel_sp,
        task_switched=bool(control[0] & CR0_TS),
        cr4=fixup_guest_cr4(control[4]),
        iopl=(regs["rflags"] & flags.IOPL) >> flags.IOPL_SHIFT,
        ldt_base=context.ldt_base,
        ldt_entries=context.ldt_ents,
    )


def _number(field: bytes) -> int:
    return int.from_bytes(field, "little")


def _words(field: bytes, width: int) -> tuple[int, ...]:
    return struct.unpack(f"<{len(field) // width}{'Q' if width == 8 else 'I'}", field)


def _registers(context: vcpu_guest_context, width: int) -> dict[str, int]:
    """The general and segment registers by their 64-bit names; those that are not there are 0."""
    found: dict[str, int] = dict.fromkeys((f"r{n}" for n in range(8, 16)), 0)
    layout: Any = cpu_user_regs if width == 8 else cpu_user_regs32
    regs = layout.unpack(8, context.user_regs)
    for field in regs.layout(8).offsets:
        name = f"r{field[1:]}" if field.startswith("e") else field
        found[field if field == "es" else name] = getattr(regs, field)
    return found


def _start(
    context: vcpu_guest_context, regs: dict[str, int], debug: tuple[int, ...], width: int
) -> StartContext:
    selectors = [regs[which.name.lower()] for which in list(Seg)[: Seg.GS + 1]]
    for which in (Seg.CS, Seg.SS):
        selectors[which] = fixup_guest_selector(selectors[which], width)
    bases = (_number(context.fs_base), _number(context.gs_base_kernel))
    fpu = context.fpu_ctxt if context.flags & VGCF_i387_valid else None
    return StartContext(
        general=tuple(regs[register.name.lower()] for register in Reg),
        rip=regs["rip"],
        rflags=regs["rflags"] & flags.ALL & ~(flags.IOPL | flags.VM) | flags.IF | flags.FIXED,
        selectors=tuple(selectors),
        fs_base=bases[0],
        gs_base_kernel=bases[1],
        gs_base_user=_number(context.gs_base_user),
        fpu=NO_FPU if fpu is not None and _number(fpu[MXCSR]) & ~MXCSR_DEFINED else fpu,
        debug=debug,
    )


def _check_addresses(context: vcpu_guest_context, start: StartContext) -> None:
    """EINVAL if one of a 64-bit guest's is not canonical."""
    addresses = {
        "its RIP": start.rip,
        "its RSP": start.general[Reg.RSP],
        "its kernel's stack": context.kernel_sp,
        "its LDT": context.ldt_base if context.ldt_ents else 0,
        "its FS base": start.fs_base,
        "its kernel's GS base": start.gs_base_kernel,
        "its user's GS base": start.gs_base_user,
        "its event callback": context.event_callback_eip,
        "its SYSCALL callback": _number(context.syscall_callback_eip),
        "its failsafe callback": context.failsafe_callback_eip,
    }
    for what, address in addresses.items():
        if not is_canonical(address):
            raise XenError(EINVAL, f"{what}, {address:#x}, is not a canonical address")


def _traps(context: vcpu_guest_context, width: int) -> dict[int, Trap]:
    """The trap table; an entry's place is its vector, whatever the entry says."""
    found = {}
    size = trap_info.sizeof(width)
    for vector in range(len(context.trap_ctxt) // size):
        entry = trap_info.unpack(width, context.trap_ctxt[vector * size : (vector + 1) * size])
        if width == 8 and not is_canonical(entry.address):
            raise XenError(
                EINVAL,
                f"its handler of vector {vector:#x}, {entry.address:#x},"
                " is not a canonical address",
            )
        if entry.address or not segment.is_null(entry.cs):
            cs = fixup_guest_selector(entry.cs, width)
            dpl, masks = entry.flags & TI_DPL, bool(entry.flags & TI_IF)
            found[vector] = Trap(cs, entry.address, dpl, masks)
    return found


def _gdt(context: vcpu_guest_context, width: int) -> tuple[list[int], int]:
    """The frames of the GDT, and how many entries it has."""
    frames = _words(context.gdt_frames, width)
    return list(frames[: -(-context.gdt_ents // ENTRIES)]), context.gdt_ents


def _take_roots(current: Current, context: vcpu_guest_context) -> tuple[Mfn, Mfn]:
    """Take the page tables for the kernel and, if there is one, for the user.

    EINVAL, or what their validation says, if one cannot be a top-level table; `Restart`.
    """
    domain, width = current.domain, current.vcpu.width
    frames, strict = domain.frames, domain.vm_assist >> VMASST_TYPE_m2p_strict & 1
    control = _words(context.ctrlreg, width)
    kernel = cr3_to_mfn(control[3], width)
    user = cr3_to_mfn(control[1], width) if width == 8 else 0
    frames.get_page_and_type(kernel, domain.domid, frames.rules.root_type)
    if user:
        try:
            frames.get_page_and_type(user, domain.domid, frames.rules.root_type)
        except (XenError, Restart):
            frames.put_page_and_type(kernel)
            raise
        if strict:
            hide_m2p(domain, user)
    if width == 8 and not strict:
        show_m2p(domain, kernel)
    return Mfn(kernel), Mfn(user)


# How the vcpu starts.


def load_context(current: Current, start: StartContext) -> None:
    """Load the current vcpu's first registers into the CPU, as Xen's first switch to it does."""
    state, cpu = pv(current), current.cpu
    cpu.cr3 = (state.kernel_root if state.kernel_mode else state.user_root) << PAGE_SHIFT
    for register, value in enumerate(start.general):
        cpu.regs[register] = value
    cpu.rip, cpu.rflags = start.rip, start.rflags
    cpu.set_task_switched(state.task_switched)
    cpu.set_tsc_disabled(bool(state.cr4 & CR4_TSD))
    cpu.set_fsgsbase(bool(state.cr4 & CR4_FSGSBASE))
    cpu.set_tsc_aux(current.vcpu.msrs.get(msr.TSC_AUX, 0))
    if start.fpu is not None:
        cpu.set_fpu(start.fpu)
    for index, value in enumerate(start.debug):
        with suppress(XenError):  # as in Xen: what it would refuse stays as it is
            set_debugreg(current, index, value)
    descriptors.load_gdt_register(current)
    descriptors.load_ldt_register(current)
    cs, ss = start.selectors[Seg.CS], start.selectors[Seg.SS]
    selectors = {which: start.selectors[which] for which in failsafe.DATA_SEGMENTS}
    if _load_data_segments(current, start, selectors):
        traps.resume(current, cs, ss)
        return
    cpu.set_segment(Seg.SS, replace(traps.SS64, selector=ss))  # what the callback's frame has
    cpu.set_segment(Seg.CS, replace(traps.CS64, selector=cs))
    failsafe.enter_failsafe(current, selectors)


def _load_data_segments(current: Current, start: StartContext, selectors: dict[Seg, int]) -> bool:
    """Load DS, ES, FS and GS. Whether all could be.

    A 64-bit guest's bases of FS and of the user's GS go with null selectors. Else they are 0.
    """
    state, cpu = pv(current), current.cpu
    bases = [
        base if segment.is_null(selectors[which]) else 0
        for which, base in ((Seg.FS, start.fs_base), (Seg.GS, start.gs_base_user))
    ]
    gs = (start.gs_base_kernel, bases[1])
    active, state.inactive_gs = gs if state.kernel_mode else reversed(gs)
    cpu.set_segment(Seg.FS, Segment(0, bases[0]))
    cpu.set_segment(Seg.GS, Segment(0, active))
    return failsafe.load(current, selectors)
