"""The registers of the vcpu that is in the CPU, in place.

Reads and writes go straight to Unicorn's own struct, whose layout is in unicorn.h. Unicorn keeps
more state beside the registers (the mode, armed breakpoints), and that is brought up to date.
"""

from __future__ import annotations

import ctypes
from collections.abc import MutableSequence
from typing import Any

from xenemu.cpu.context import Context, Packed, pack
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
        self._registers_at = ctypes.addressof(loaded.registers)
        cpu = loaded.cpu()
        request = cpu + constants.CPU_INTERRUPT_REQUEST
        self._interrupt_request = ctypes.c_uint32.from_address(request)
        self._halted = ctypes.c_uint32.from_address(cpu + constants.CPU_HALTED)
        old = env + constants.ENV_OLD_EXCEPTION
        self._old_exception = ctypes.c_int32.from_address(old)

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
        self._exit.flush |= self._constants.FLUSH_OWN

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

    def save(self) -> Packed:
        """The registers of the vcpu that is in the CPU, for `load`."""
        self._shim.store()
        return Packed(bytes(self._shim.registers))

    def store(self) -> Context:
        """The same, by name."""
        return self.save().context

    def load(self, kept: Packed | Context) -> None:
        """Put a vcpu into the CPU; the one that was there is lost, if it was not stored."""
        self._load(kept)
        self._exit.flush |= self._constants.FLUSH_OWN

    def switch(self, leaving: int, coming: int, kept: Packed | Context) -> None:
        """`load` the vcpu `coming`, with the TLB that it had.

        The vcpu that was in the CPU, `leaving`, keeps its TLB. Both are numbers of vcpus.
        """
        self._shim.switch_tlb(leaving, coming)
        self._load(kept)

    def _load(self, kept: Packed | Context) -> None:
        data = kept.data if isinstance(kept, Packed) else pack(kept)
        ctypes.memmove(self._registers_at, data, len(data))
        self._shim.load()
