"""Is everything where the shim looks for it? Asked of Unicorn's public API, once for each engine.

The check writes a register through the API, and looks for the value at the offset that unicorn.h
has. The API does not show blocks and pending interrupts, so these cannot be checked. But a build of
Unicorn that had those elsewhere would have the rest elsewhere, too. Of the TLB, the shim has
Unicorn's own function fill it, and compares.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from typing import Any

from xenemu.cpu.shim import UNICORN_VERSION, Shim
from xenemu.errors import EngineError
from xenemu.hv.cpu import Reg, Seg
from xenemu.x86 import msr

MAGIC = 0x5EED_0000_1234_5678  # canonical
NR_XMM = 16
FPSW, FPSW_TOP = 0x5678, 0x3800
Place = tuple[str, int, int]  # name, offset in CPUX86State, size


def check(loaded: Shim, uc: Any) -> None:
    """EngineError if a register is not where it should be; all keep their values."""
    from unicorn import x86_const  # noqa: PLC0415 (after the shim)

    def api(name: str) -> int:
        return int(getattr(x86_const, f"UC_X86_REG_{name}"))

    at = loaded.constants
    for name, offset, size in _registers(at):
        _check_register(loaded, uc, api(name), (offset, size), name)
    before = uc.reg_read(api("FPSW"))
    uc.reg_write(api("FPSW"), FPSW)
    found = (_at(loaded, at.ENV_FPUS, 2), _at(loaded, at.ENV_FPSTT, 4))
    uc.reg_write(api("FPSW"), before)
    _expect(found == (FPSW & ~FPSW_TOP, (FPSW & FPSW_TOP) >> 11), "FPSW")
    for name, offset, size in _read_only(at):
        _expect(_at(loaded, offset, size) == uc.reg_read(api(name)), name)
    for which in (Seg.LDTR, Seg.TR, Seg.GDTR, Seg.IDTR):
        place = at.ENV_SEGS + at.SEG_SIZE * which
        before = uc.reg_read(api(which.name))
        uc.reg_write(api(which.name), (0x28, 0x12345678, 0x4321, 0x8B00))
        found = (_at(loaded, place + at.SEG_BASE, 8), _at(loaded, place + at.SEG_LIMIT, 4))
        uc.reg_write(api(which.name), before)
        _expect(found == (0x12345678, 0x4321), which.name)
    for number, offset in _msr_offsets(at).items():
        size = 2 if number == msr.IA32_SYSENTER_CS else 8
        before, value = uc.msr_read(number), _cut(MAGIC, size)
        uc.msr_write(number, value)
        seen = _at(loaded, offset, size)
        uc.msr_write(number, before)
        _expect(seen == value, f"MSR {number:#x}")


def check_tlb(loaded: Shim) -> None:
    """EngineError if the shim fills the TLB otherwise than Unicorn; there is no guest yet."""
    _expect(loaded.fills_as_unicorn(), "the TLB")


def _check_register(loaded: Shim, uc: Any, number: int, place: tuple[int, int], name: str) -> None:
    before, value = uc.reg_read(number), _cut(MAGIC, place[1])
    uc.reg_write(number, value)
    found = _at(loaded, *place)
    uc.reg_write(number, before)
    _expect(found == value, name)


def _cut(value: int, size: int) -> int:
    return value & ((1 << 8 * size) - 1)


def _registers(at: Any) -> Iterator[Place]:
    """What may be written at will."""
    for reg in Reg:
        yield reg.name, at.ENV_REGS + 8 * reg, 8
    for name in ("FS", "GS"):
        yield f"{name}_BASE", at.ENV_SEGS + at.SEG_SIZE * Seg[name] + at.SEG_BASE, 8
    for number in range(4):
        yield f"DR{number}", at.ENV_DR + 8 * number, 8
    for number in range(NR_XMM):
        yield f"XMM{number}", at.ENV_XMM + at.XMM_SIZE * number, 16
    yield "RIP", at.ENV_EIP, 8
    yield "CR2", at.ENV_CR2, 8
    yield "FPCW", at.ENV_FPUC, 2
    yield "FOP", at.ENV_FPOP, 2
    yield "FIP", at.ENV_FPIP, 8
    yield "FDP", at.ENV_FPDP, 8
    yield "MXCSR", at.ENV_MXCSR, 2


def _read_only(at: Any) -> Iterator[Place]:
    """The values that decide about the mode; they are only read."""
    for number in (0, 3, 4):
        yield f"CR{number}", at.ENV_CR0 + 8 * number, 8
    for number in (6, 7):
        yield f"DR{number}", at.ENV_DR + 8 * number, 8
    for which in range(Seg.GS + 1):
        yield Seg(which).name, at.ENV_SEGS + at.SEG_SIZE * which, 4


def _at(loaded: Shim, offset: int, size: int) -> int:
    return int.from_bytes(ctypes.string_at(loaded.env() + offset, size), "little")


def _expect(found: bool, what: str) -> None:
    if not found:
        raise EngineError(
            f"this build of unicorn {UNICORN_VERSION} keeps {what} elsewhere:"
            " xenemu supports the x86-64 Linux wheel from the Python index"
        )


def _msr_offsets(at: Any) -> dict[int, int]:
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
