"""The registers of the vcpu that is in the CPU, in place.

Reads and writes go straight to Unicorn's own struct, whose layout is in unicorn.h. Unicorn keeps
more state beside the registers (the mode, armed breakpoints), and that is brought up to date.
"""

from __future__ import annotations

import ctypes
from collections.abc import MutableSequence
from typing import Any

from xenemu.cpu.context import Context, Interrupts
from xenemu.cpu.shim import Shim
from xenemu.hv.cpu import Seg, Segment, Undefined
from xenemu.x86 import msr, segment

CR0_PV = 0x80050033  # PG AM WP NE ET MP PE
CR0_PE, CR0_PE_PG, CR0_ENTRY = 1, 0x80000001, 0x11
CR0_TS = 1 << 3
CR4_TSD = 1 << 2
CR4_PAE = 1 << 5
CR4_OSFXSR = 1 << 9
CR4_OSXMMEXCPT = 1 << 10
CR4_FSGSBASE = 1 << 16
EFER_SCE_NX = 0x801
BREAKPOINTS = 4  # DR0 to DR3
FPU_AREA = 512  # bytes of FXSAVE's
SEGMENTS = tuple(Seg)


class _Segment(ctypes.Structure):
    _fields_ = (
        ("selector", ctypes.c_uint32),
        ("base", ctypes.c_uint64),
        ("limit", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
    )


class Registers:
    """The registers of `xenemu.hv.cpu.Cpu` and `NativeCpu`."""

    regs: MutableSequence[int]

    def __init__(self, loaded: Shim, uc: Any, ram: int) -> None:
        self._shim = loaded
        self._uc, self._ram = uc, ram
        self._constants = constants = loaded.constants
        self._exit, self._vcpu = loaded.exit, loaded.vcpu
        env = loaded.env()
        self.regs = (ctypes.c_uint64 * 16).from_address(env)  # type: ignore[assignment]
        self._rip = ctypes.c_uint64.from_address(env + constants.ENV_EIP)
        self._hflags = ctypes.c_uint32.from_address(env + constants.ENV_HFLAGS)
        segments = (_Segment * 10).from_address(env + constants.ENV_SEGS)
        self._segs = [*segments]  # made once: that is slow
        self._cr = (ctypes.c_uint64 * 5).from_address(env + constants.ENV_CR0)
        self._efer = ctypes.c_uint64.from_address(env + constants.ENV_EFER)
        self._dr = (ctypes.c_uint64 * 8).from_address(env + constants.ENV_DR)
        self._tsc_aux = ctypes.c_uint64.from_address(env + constants.ENV_TSC_AUX)
        self._msrs = [
            (number, ctypes.c_uint64.from_address(env + offset))
            for number, offset in msr_offsets(constants).items()
        ]
        cpu = loaded.cpu()
        request = cpu + constants.CPU_INTERRUPT_REQUEST
        self._interrupt_request = ctypes.c_uint32.from_address(request)
        self._halted = ctypes.c_uint32.from_address(cpu + constants.CPU_HALTED)
        index = cpu + constants.CPU_EXCEPTION_INDEX
        self._exception_index = ctypes.c_int32.from_address(index)
        old = env + constants.ENV_OLD_EXCEPTION
        self._old_exception = ctypes.c_int32.from_address(old)
        self._hflags2 = ctypes.c_uint32.from_address(env + constants.ENV_HFLAGS2)
        self._fpu_area = ctypes.create_string_buffer(FPU_AREA)

    @property
    def rip(self) -> int:
        return self._rip.value

    @rip.setter
    def rip(self, value: int) -> None:
        self._rip.value = value

    @property
    def rflags(self) -> int:
        return int(self._vcpu.rflags)

    @rflags.setter
    def rflags(self, value: int) -> None:
        self._vcpu.rflags = value
        self._vcpu.rflags_dirty = 1

    @property
    def cr0(self) -> int:
        return int(self._cr[0])

    @property
    def cr2(self) -> int:
        return int(self._cr[2])

    @cr2.setter
    def cr2(self, value: int) -> None:
        self._cr[2] = value

    @property
    def cr3(self) -> int:
        return int(self._cr[3])

    @cr3.setter
    def cr3(self, value: int) -> None:
        self._cr[3] = value
        self._exit.flush = 1

    @property
    def cpl(self) -> int:
        return int(self._hflags.value & self._constants.HF_CPL)

    @property
    def code64(self) -> bool:
        return bool(self._hflags.value & self._constants.HF_CS64)

    def set_task_switched(self, value: bool) -> None:
        """Set or clear CR0.TS."""
        hf_ts = self._constants.HF_TS
        self._cr[0] = self._cr[0] & ~CR0_TS | (CR0_TS if value else 0)
        self._hflags.value = self._hflags.value & ~hf_ts | (hf_ts if value else 0)

    def set_tsc_disabled(self, value: bool) -> None:
        """Set or clear CR4.TSD: RDTSC above CPL 0 then faults."""
        self._cr[4] = self._cr[4] & ~CR4_TSD | (CR4_TSD if value else 0)

    def set_fsgsbase(self, value: bool) -> None:
        """Set or clear CR4.FSGSBASE: without it, RDFSBASE and the like are undefined."""
        self._cr[4] = self._cr[4] & ~CR4_FSGSBASE | (CR4_FSGSBASE if value else 0)

    def set_tsc_aux(self, value: int) -> None:
        """Set what RDTSCP leaves in ECX."""
        self._tsc_aux.value = value

    def set_fpu(self, area: bytes) -> None:
        """Load x87, MMX and SSE from the 512 bytes of an FXSAVE64."""
        self._shim.load_fpu(area)

    def segment(self, which: Seg) -> Segment:
        """Read a segment register with its hidden part."""
        s = self._segs[which]
        return Segment(s.selector, s.base, s.limit, s.flags & segment.ATTRIBUTES)

    def selector(self, which: Seg) -> int:
        """Read a segment register's selector."""
        return int(self._segs[which].selector)

    def set_segment(self, which: Seg, value: Segment) -> None:
        """Load a segment register; CS, SS, DS and ES also set the CPU's mode."""
        s = self._segs[which]
        s.selector, s.base, s.limit = value.selector, value.base, value.limit
        s.flags = value.attributes
        if which <= Seg.DS:
            self._shim.update_mode()

    def debug_register(self, index: int) -> int:
        return int(self._dr[index])

    def set_debug_register(self, index: int, value: int) -> None:
        if index == 7:
            self._shim.set_dr7(value)
            return
        if index >= BREAKPOINTS:
            self._dr[index] = value
            return
        dr7 = self._disarm()
        self._dr[index] = value
        self._shim.set_dr7(dr7)

    def _disarm(self) -> int:
        """Take the breakpoints out of Unicorn, which has them outside of the registers; DR7."""
        dr7 = int(self._dr[7])
        self._shim.set_dr7(0)
        return dr7

    @property
    def efer(self) -> int:
        return int(self._efer.value)

    @property
    def cr4(self) -> int:
        return int(self._cr[4])

    def leave_long_mode(self) -> None:
        """Put the CPU in 32-bit protected mode without paging; the way there drops EFER.LMA."""
        from unicorn import x86_const as x86  # noqa: PLC0415 (after the shim)

        uc = self._uc
        uc.reg_write(x86.UC_X86_REG_CR4, CR4_PAE)
        uc.reg_write(x86.UC_X86_REG_CR0, CR0_PE_PG)
        uc.reg_write(x86.UC_X86_REG_CR0, CR0_PE)
        uc.msr_write(msr.EFER, 0)
        uc.reg_write(x86.UC_X86_REG_CR4, 0)

    def enter_pvh_mode(self) -> None:
        """Put the CPU in the mode that a PVH guest finds: 32 bits, no paging."""
        self.leave_long_mode()
        self._cr[0] = CR0_ENTRY

    def enter_long_mode(self, cr3: int, sse: bool = False) -> None:
        """Turn 4-level paging on, and all of EFER and CR4 off that long mode does not need."""
        from unicorn import x86_const as x86  # noqa: PLC0415 (after the shim)

        uc = self._uc
        allowed = CR4_OSFXSR | CR4_OSXMMEXCPT if sse else 0
        uc.msr_write(msr.EFER, msr.EFER_LME | msr.EFER_LMA)
        uc.reg_write(x86.UC_X86_REG_CR4, CR4_PAE | allowed)
        uc.reg_write(x86.UC_X86_REG_CR3, cr3)
        uc.reg_write(x86.UC_X86_REG_CR0, CR0_ENTRY | CR0_PE_PG)

    def turn_paging_on(self, cr3: int, long_mode: bool) -> None:
        """Put the CPU in the mode that a PV guest finds: 4-level paging, or 32-bit PAE."""
        from unicorn import x86_const as x86  # noqa: PLC0415 (after the shim)

        uc = self._uc
        if not long_mode:
            self.leave_long_mode()
        uc.msr_write(msr.EFER, msr.EFER_SCE_LME_LMA_NX if long_mode else EFER_SCE_NX)
        uc.reg_write(x86.UC_X86_REG_CR4, CR4_PAE | CR4_OSFXSR | CR4_OSXMMEXCPT)
        uc.reg_write(x86.UC_X86_REG_CR3, cr3)
        uc.reg_write(x86.UC_X86_REG_CR0, CR0_PV)

    def undefined(self) -> Undefined | None:
        """See `Cpu.undefined`."""
        vcpu = self._vcpu
        if not vcpu.undefined_bits:
            return None
        code = bytes(vcpu.undefined_code)[: vcpu.undefined_bytes]
        return Undefined(vcpu.undefined_rip, vcpu.undefined_bits, code)

    # ---- several vcpus ----

    def store(self) -> Context:
        """The registers of the vcpu that is in the CPU."""
        cr, hflags, at = self._cr, self._hflags.value, self._constants
        rflags = self._shim.store_rflags()
        self._shim.store_fpu(self._fpu_area)
        return Context(
            general=tuple(self.regs),
            rip=self._rip.value,
            rflags=rflags,
            segments=tuple([self.segment(which) for which in SEGMENTS]),
            cpl=hflags & at.HF_CPL,
            cr0=cr[0],
            cr2=cr[2],
            cr3=cr[3],
            cr4=cr[4],
            efer=self._efer.value,
            debug=tuple(self._dr),
            msrs={number: place.value for number, place in self._msrs},
            fpu=self._fpu_area.raw,
            interrupts=self._store_interrupts(),
            undefined=self.undefined(),
            delivered=(self._vcpu.delivered_kind, self._vcpu.delivered_vector),
        )

    def _store_interrupts(self) -> Interrupts:
        vcpu, at, request = self._vcpu, self._constants, self._interrupt_request.value
        upcall = vcpu.upcall_pending
        return Interrupts(
            halted=bool(self._halted.value),
            requested=bool(request & at.INTERRUPT_VIRQ),
            nmi=bool(request & at.INTERRUPT_NMI),
            nmi_blocked=bool(self._hflags2.value & at.HF2_NMI),
            shadow=bool(self._hflags.value & at.HF_INHIBIT_IRQ),
            debug_hits=self._shim.debug_hits(),
            debug_held=bool(request & at.INTERRUPT_HELD_DEBUG),
            apic_vector=self._vector(vcpu.apic_vector),
            apic_accepted=self._vector(vcpu.apic_accepted),
            callback_vector=self._vector(vcpu.callback_vector),
            upcall=None if upcall is None else upcall - self._ram,
        )

    def _vector(self, number: int) -> int | None:
        return None if number == self._constants.NO_VECTOR else number

    def load(self, context: Context) -> None:
        """Put a vcpu into the CPU; the one that was there is lost, if it was not stored."""
        self.regs[:] = context.general
        self._rip.value = context.rip
        for place, value in zip(self._segs, context.segments, strict=True):
            place.selector, place.base, place.limit = value.selector, value.base, value.limit
            place.flags = value.attributes
        cr = self._cr
        cr[0], cr[2], cr[3], cr[4] = context.cr0, context.cr2, context.cr3, context.cr4
        self._efer.value = context.efer
        for number, place in self._msrs:
            place.value = context.msrs[number]
        self._shim.load_fpu(context.fpu)
        self._load_interrupts(context.interrupts)
        self._load_undefined(context.undefined)
        self._vcpu.delivered_kind, self._vcpu.delivered_vector = context.delivered
        waits = context.interrupts
        self._shim.load_debug((ctypes.c_uint64 * 8)(*context.debug), waits.debug_hits)
        self._shim.load_mode(context.rflags, context.cpl, waits.shadow, waits.nmi_blocked)
        self._exit.flush = 1

    def _load_undefined(self, found: Undefined | None) -> None:
        vcpu = self._vcpu
        vcpu.undefined_bits = found.bits if found else 0
        if found:
            vcpu.undefined_rip, vcpu.undefined_bytes = found.rip, len(found.code)
            vcpu.undefined_code[: len(found.code)] = found.code

    def _load_interrupts(self, waits: Interrupts) -> None:
        vcpu, at = self._vcpu, self._constants
        none = at.NO_VECTOR
        self._halted.value = waits.halted
        self._exception_index.value = -1
        vcpu.apic_vector = none if waits.apic_vector is None else waits.apic_vector
        vcpu.apic_accepted = none if waits.apic_accepted is None else waits.apic_accepted
        vcpu.callback_vector = none if waits.callback_vector is None else waits.callback_vector
        vcpu.upcall_pending = None if waits.upcall is None else self._ram + waits.upcall
        self._interrupt_request.value = 0
        if waits.requested:
            self._shim.request_interrupt(at.INTERRUPT_VIRQ)
        if waits.nmi:
            self._shim.request_interrupt(at.INTERRUPT_NMI)
        if waits.debug_hits:
            kind = at.INTERRUPT_HELD_DEBUG if waits.debug_held else at.INTERRUPT_DEBUG
            self._shim.request_interrupt(kind)


def msr_offsets(at: Any) -> dict[int, int]:
    """Where the CPU keeps MSRs, 8 bytes each."""
    return {
        msr.IA32_SYSENTER_ESP: at.ENV_SYSENTER_ESP,
        msr.IA32_SYSENTER_EIP: at.ENV_SYSENTER_EIP,
        msr.IA32_SYSENTER_CS: at.ENV_SYSENTER_CS,  # 4 bytes, and 4 of nothing
        msr.IA32_CR_PAT: at.ENV_PAT,
        msr.STAR: at.ENV_STAR,
        msr.LSTAR: at.ENV_LSTAR,
        msr.CSTAR: at.ENV_CSTAR,
        msr.FMASK: at.ENV_FMASK,
        msr.KERNEL_GS_BASE: at.ENV_KERNEL_GS_BASE,
        msr.TSC_AUX: at.ENV_TSC_AUX,
    }
