"""The registers with which one PVH vcpu brings up another: by an IPI, or by VCPUOP_initialise.

Header: public/hvm/hvm_vcpu.h
In Xen: arch/x86/hvm/domain.c (arch_set_info_hvm_guest), arch/x86/hvm/hvm.c (hvm_vcpu_reset_state)
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from xenemu.abi.errno import EINVAL
from xenemu.abi.hvm.hvm_vcpu import (
    VCPU_HVM_MODE_32B,
    VCPU_HVM_MODE_64B,
    vcpu_hvm_context,
    vcpu_hvm_x86_32,
    vcpu_hvm_x86_64,
)
from xenemu.errors import DomainCrash, XenError
from xenemu.hv.cpu import Reg, Seg, Segment
from xenemu.hv.current import Current
from xenemu.pvh.paging import CR0_PG, CR4_PAE, cpu_of
from xenemu.pvh.state import StartContext, pvh
from xenemu.x86 import flags, segment
from xenemu.x86.cpuid import PHYSICAL_ADDRESS_BITS
from xenemu.x86.msr import EFER_LMA, EFER_LME, EFER_SCE_LME_LMA_NX
from xenemu.x86.paging import is_canonical

CR0_PE, CR0_ET = 1 << 0, 1 << 4
CR4_VALID: Final = 0x107FC  # TSD to OSXMMEXCPT, and FSGSBASE: what CPUID offers
REAL_LIMIT: Final = 0xFFFF
REAL_CODE, REAL_DATA, REAL_LDT, BUSY_TSS = 0x9B00, 0x9300, 0x8200, 0x8B00
BUSY_TSS_TYPE: Final = 0xB << 8
FLAT: Final = 0xFFFFFFFF
FRESH_DATA: Final = Segment(0, 0, FLAT, 0x00C09300)

# After a reset: x87 masks nothing and all its registers are empty, SSE masks all exceptions.
RESET_FPU: Final = b"\x40".ljust(24, b"\0") + b"\x80\x1f".ljust(512 - 24, b"\0")


# Starting by an IPI.


def after_startup(page: int) -> StartContext:
    """A vcpu in real mode at the begin of a page below 1 MiB, as STARTUP has it."""
    data = Segment(0, 0, REAL_LIMIT, REAL_DATA)
    segments = dict.fromkeys((Seg.DS, Seg.ES, Seg.FS, Seg.GS, Seg.SS), data)
    segments |= {
        Seg.CS: Segment(page << 8, page << 12, REAL_LIMIT, REAL_CODE),
        Seg.LDTR: Segment(0, 0, REAL_LIMIT, REAL_LDT),
        Seg.TR: Segment(0, 0, REAL_LIMIT, BUSY_TSS),
        Seg.GDTR: Segment(0, 0, REAL_LIMIT),
        Seg.IDTR: Segment(0, 0, REAL_LIMIT),
    }
    return StartContext((), 0, flags.FIXED, segments, CR0_ET, 0, 0, 0, RESET_FPU)


# Starting by VCPUOP_initialise.


def checked(context: vcpu_hvm_context) -> StartContext:
    """What a vcpu_hvm_context makes of a vcpu.

    EINVAL: Xen refuses it. DomainCrash: Xen takes it, but a CPU can run no guest like that.
    DIVERGES: Xen then crashes the domain only when the vcpu first runs.
    """
    if context.pad:
        raise XenError(EINVAL, "the context's padding is not 0")
    if context.mode == VCPU_HVM_MODE_32B:
        start = _start32(vcpu_hvm_x86_32.unpack(8, context.cpu_regs))
    elif context.mode == VCPU_HVM_MODE_64B:
        size = vcpu_hvm_x86_64.sizeof(8)
        start = _start64(vcpu_hvm_x86_64.unpack(8, context.cpu_regs[:size]))
    else:
        raise XenError(EINVAL, f"a context is of mode 0 or 1, not {context.mode}")
    if start.efer & EFER_LME:
        start = replace(start, efer=start.efer | EFER_LMA)
    check_bits(start.cr4, start.efer)
    check_for_cpu(start)
    return start


def check_bits(cr4: int, efer: int) -> None:
    """EINVAL for a bit that the CPU does not have."""
    if cr4 & ~CR4_VALID:
        raise XenError(EINVAL, f"CR4, {cr4:#x}, has a bit of a feature that is not there")
    if efer & ~EFER_SCE_LME_LMA_NX:
        raise XenError(EINVAL, f"EFER, {efer:#x}, has a bit that is not known")


def _start32(regs: vcpu_hvm_x86_32) -> StartContext:
    if regs.pad1 or any(regs.pad2):
        raise XenError(EINVAL, "the padding of the 32-bit registers is not 0")
    named = {which: _segment(regs, which) for which in (Seg.CS, Seg.DS, Seg.SS, Seg.ES, Seg.TR)}
    code = named[Seg.CS]
    limit = code.limit
    if code.attributes & segment.G:
        limit = (limit << 12 | 0xFFF) & 0xFFFFFFFF
    if regs.eip > limit:
        raise XenError(EINVAL, f"EIP, {regs.eip:#x}, is beyond the limit of CS, {limit:#x}")
    privilege = segment.dpl(code.attributes)
    if segment.dpl(named[Seg.SS].attributes) != privilege:
        raise XenError(EINVAL, "the DPL of SS is not that of CS")
    for which in (Seg.DS, Seg.ES):
        if segment.dpl(named[which].attributes) > privilege:
            raise XenError(EINVAL, f"the DPL of {which.name} is above that of CS")
    if regs.efer & EFER_LMA and not regs.efer & EFER_LME:
        raise XenError(EINVAL, f"EFER, {regs.efer:#x}, has LMA without LME")
    return StartContext(
        (regs.eax, regs.ecx, regs.edx, regs.ebx, regs.esp, regs.ebp, regs.esi, regs.edi),
        regs.eip,
        regs.eflags,
        _fresh_segments() | named,
        regs.cr0,
        regs.cr3,
        regs.cr4,
        regs.efer,
    )


def _segment(regs: vcpu_hvm_x86_32, which: Seg) -> Segment:
    """A segment register; EINVAL if it is not one that `which` can have. In Xen: check_segment."""
    name, prefix = which.name, which.name.lower()
    rights = getattr(regs, f"{prefix}_ar")
    attributes = (rights & 0xFF) << 8 | (rights & 0xF00) << 12
    if attributes & segment.PRESENT:
        attributes |= 2 << 8 if which is Seg.TR else segment.TYPE_ACCESSED
    if rights >> 12:
        raise XenError(EINVAL, f"bits 12 to 15 of {name}'s attributes are not 0")
    base, limit = getattr(regs, f"{prefix}_base"), getattr(regs, f"{prefix}_limit")
    if not attributes:
        if which not in (Seg.DS, Seg.ES):
            raise XenError(EINVAL, f"{name} has no attributes, and only DS and ES can be null")
    elif which is Seg.TR:
        if attributes & segment.S or attributes & segment.TYPE != BUSY_TSS_TYPE:
            raise XenError(EINVAL, "TR is not a 32-bit or 64-bit TSS")
    elif not attributes & segment.S:
        raise XenError(EINVAL, f"{name} is a system segment")
    if attributes and not attributes & segment.PRESENT:
        raise XenError(EINVAL, f"{name} is not present")
    _check_use(which, attributes)
    return Segment(0, base, limit, attributes)


def _check_use(which: Seg, attributes: int) -> None:
    """EINVAL if a code or data segment is not for what `which` is for."""
    code = attributes & segment.TYPE_CODE
    writable = attributes & segment.TYPE_WRITABLE  # of code: readable
    if which is Seg.CS and not code:
        raise XenError(EINVAL, "CS is not a code segment")
    if which is Seg.SS and (code or not writable):
        raise XenError(EINVAL, "SS is not writable")
    if which in (Seg.DS, Seg.ES) and code and not writable:
        raise XenError(EINVAL, f"{which.name} is not readable")


def _start64(regs: vcpu_hvm_x86_64) -> StartContext:
    if not is_canonical(regs.rip):
        raise XenError(EINVAL, f"RIP, {regs.rip:#x}, is not canonical")
    if not regs.cr0 & CR0_PG:
        raise XenError(EINVAL, f"CR0, {regs.cr0:#x}, has no paging on")
    if not regs.cr4 & CR4_PAE:
        raise XenError(EINVAL, f"CR4, {regs.cr4:#x}, has no PAE on")
    if not regs.efer & EFER_LME:
        raise XenError(EINVAL, f"EFER, {regs.efer:#x}, has no LME on")
    named = dict.fromkeys((Seg.DS, Seg.ES, Seg.SS), FRESH_DATA)
    named[Seg.CS] = Segment(0, 0, FLAT, 0x00A09B00)
    named[Seg.TR] = Segment(0, 0, 0x67, BUSY_TSS)
    return StartContext(
        (regs.rax, regs.rcx, regs.rdx, regs.rbx, regs.rsp, regs.rbp, regs.rsi, regs.rdi),
        regs.rip,
        regs.rflags,
        _fresh_segments() | named,
        regs.cr0,
        regs.cr3,
        regs.cr4,
        regs.efer,
    )


def _fresh_segments() -> dict[Seg, Segment]:
    """Those of which the context does not tell, as in a new vcpu.

    DIVERGES: Xen leaves them as they were in a vcpu that had run before an INIT; so it does with R8
    to R15, CR2 and the debug registers, which are those of a new vcpu here, too.
    """
    return {
        Seg.FS: FRESH_DATA,
        Seg.GS: FRESH_DATA,
        Seg.LDTR: Segment(0, 0, 0, REAL_LDT),
        Seg.GDTR: Segment(0),
        Seg.IDTR: Segment(0),
    }


def check_for_cpu(start: StartContext) -> None:
    """DomainCrash if a CPU cannot enter a guest like that (SDM, "Checks on Guest State")."""
    long_mode, paging = start.efer & EFER_LMA, start.cr0 & CR0_PG
    virtual_8086 = start.rflags & flags.VM
    wrong = (
        (paging and not start.cr0 & CR0_PE, "CR0 has paging on without protection"),
        (start.cr0 >> 32, "CR0 has bits above 31"),
        (long_mode and not paging, "EFER has long mode on, and CR0 has paging off"),
        (long_mode and not start.cr4 & CR4_PAE, "EFER has long mode on, and CR4 has PAE off"),
        (start.cr3 >> PHYSICAL_ADDRESS_BITS, "CR3 is beyond physical addresses"),
        (start.rflags & ~flags.ALL, "RFLAGS has a reserved bit"),
        (virtual_8086 and (long_mode or not start.cr0 & CR0_PE), "RFLAGS has VM without its mode"),
    )
    for found, what in wrong:
        if found:
            raise DomainCrash(f"a vcpu cannot start like that: {what}")


# Both.


def load(current: Current) -> None:
    """Load the registers that the current vcpu starts with, if it is about to start.

    An NMI that its CPU was asked for, and that had not come before an INIT, still comes.
    """
    state, cpu = pvh(current), cpu_of(current)
    start = state.start
    if start is None:
        return
    state.start = None
    state.nmi_pending |= cpu.nmi_pending
    cpu.begin(start.cr0, start.cr3, start.cr4, start.efer)
    for register, value in zip(Reg, start.general, strict=False):
        cpu.regs[register] = value
    cpu.rip, cpu.rflags = start.rip, start.rflags | flags.FIXED
    for which, loaded in start.segments.items():
        cpu.set_segment(which, loaded)
    if start.fpu is not None:
        cpu.set_fpu(start.fpu)
