"""The registers of any vcpu, for somebody who looks at it while it does not run.

The vcpu in the CPU has them there. Another one that has run has them in `Vcpu.saved`. One that has
yet to run has those with which it will begin, as far as somebody has said so: a vcpu that waits to
be brought up has the registers of a CPU after its reset.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from xenemu.cpu.context import Context, by_name
from xenemu.hv.cpu import Reg, Seg, Segment
from xenemu.hv.state.vcpu import Vcpu
from xenemu.machine.core import Core
from xenemu.pv import personality as pv_personality
from xenemu.pv import traps
from xenemu.pv.state import PvVcpu
from xenemu.pv.state import StartContext as PvStart
from xenemu.pvh.state import PvhVcpu
from xenemu.pvh.state import StartContext as PvhStart
from xenemu.x86.paging import PAGE_SHIFT

GENERAL = len(Reg)


def read(machine: Core, vcpu: Vcpu) -> Context:
    """A vcpu's registers."""
    if vcpu is machine.current.vcpu:
        return machine.engine.store()
    arch = vcpu.arch
    found = by_name(vcpu.saved or machine.untouched)
    if isinstance(arch, PvhVcpu) and arch.start is not None:
        return _with_pvh_start(found, arch.start)
    if isinstance(arch, PvVcpu) and vcpu.saved is None:
        found = replace(found, cr3=arch.kernel_root << PAGE_SHIFT)
        if isinstance(arch.entry, PvStart):
            return _with_pv_start(found, arch.entry, vcpu.width == 8)
    return found


def change(machine: Core, vcpu: Vcpu, **changes: Any) -> None:
    """Set fields of the context of a vcpu that has begun (`peek.has_begun`)."""
    machine.disturbed += 1
    if vcpu is machine.current.vcpu:
        machine.engine.load(replace(machine.engine.store(), **changes))
    else:
        vcpu.saved = replace(by_name(vcpu.saved), **changes)


def _padded(general: tuple[int, ...]) -> tuple[int, ...]:
    return general + (0,) * (GENERAL - len(general))


def _with_pvh_start(found: Context, start: PvhStart) -> Context:
    """As pvh.context.load has it."""
    return replace(
        found,
        general=_padded(start.general),
        rip=start.rip,
        rflags=start.rflags,
        segments=tuple(start.segments.get(which, Segment(0)) for which in Seg),
        cpl=0,
        cr0=start.cr0,
        cr3=start.cr3,
        cr4=start.cr4,
        efer=start.efer,
        fpu=found.fpu if start.fpu is None else start.fpu,
    )


def _with_pv_start(found: Context, start: PvStart, wide: bool) -> Context:
    """As pv.context.load_context has it, as far as the segments need not be looked up."""
    segments = [Segment(selector) for selector in start.selectors]
    segments += list(found.segments[len(segments) :])
    code, data = (
        (traps.CS64, traps.SS64) if wide else (pv_personality.CODE32, pv_personality.DATA32)
    )
    segments[Seg.CS] = replace(code, selector=start.selectors[Seg.CS])
    segments[Seg.SS] = replace(data, selector=start.selectors[Seg.SS])
    segments[Seg.FS] = Segment(start.selectors[Seg.FS], start.fs_base)
    segments[Seg.GS] = Segment(start.selectors[Seg.GS], start.gs_base_kernel)
    return replace(
        found,
        general=_padded(start.general),
        rip=start.rip,
        rflags=start.rflags,
        segments=tuple(segments),
        fpu=found.fpu if start.fpu is None else start.fpu,
    )
