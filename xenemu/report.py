"""The crash report: where a guest was when it ended, for the person who has to find out why."""

from __future__ import annotations

from itertools import islice
from typing import Final

from xenemu.errors import XenError
from xenemu.hv.cpu import Reg, Seg
from xenemu.hv.dispatch import format_call
from xenemu.hv.domain import Current
from xenemu.image import Image
from xenemu.image.backtrace import backtrace
from xenemu.image.orc import Orc
from xenemu.image.symbols import Symbols, load_symbols
from xenemu.pv.state import PvVcpu
from xenemu.pvh.paging import CR0_PG, CR4_PAE, EFER_LMA, PDPT_MASK, cpu_of
from xenemu.x86 import segment
from xenemu.x86.paging import (
    ADDR,
    PAGE_MASK,
    PAGE_SHIFT,
    PAGE_SIZE,
    PSE,
    Maddr,
    Mfn,
    P,
    describe_entry,
)

CALLS: Final = 16
REGS_A_LINE: Final = 3
# The shifts of the indices, from the root on (Intel SDM volume 3, "Paging").
LONG: Final = (39, 30, 21, 12)
PAE: Final = (30, 21, 12)
TWO_LEVEL: Final = (22, 12)


def report(current: Current, image: Image) -> str:
    """Say all that there is to say of a guest that ended: calls, registers, stack, page walks.

    Changes nothing of the guest's but accessed bits in its page tables.
    """
    symbols = load_symbols(image.elf, image.segments)
    sections = {
        "Last hypercalls": _calls(current),
        "Refused outside hypercalls": list(current.domain.refusals),
        f"Registers of vcpu {current.vcpu.vcpu_id}": _registers(current, symbols),
        "Other vcpus": _other_vcpus(current),
        "Backtrace": _backtrace(current, symbols, image),
        "Page walk of cr2, where the last page fault was": (
            _walk(current, current.cpu.cr2) if _tables(current) else []
        ),
    }
    for name, vaddr in (("rip", current.cpu.rip), ("rsp", current.cpu.regs[Reg.RSP])):
        if not _is_readable(current, vaddr):
            sections[f"Page walk of {name}, which cannot be read"] = _walk(current, vaddr)
    return "\n".join(
        line
        for heading, lines in sections.items()
        if lines
        for line in (f"{heading}:", *(f"  {line}" for line in lines))
    )


def _calls(current: Current) -> list[str]:
    calls = current.domain.calls
    return [format_call(record) for record in islice(calls, max(0, len(calls) - CALLS), None)]


def _in_kernel(current: Current) -> bool:
    arch = current.vcpu.arch
    if isinstance(arch, PvVcpu):  # whose kernel is at CPL 3 too
        return arch.kernel_mode
    return segment.dpl(current.cpu.segment(Seg.SS).attributes) == 0


def _code_width(current: Current) -> int:
    return 8 if current.cpu.segment(Seg.CS).attributes & segment.L else 4


def _registers(current: Current, symbols: Symbols) -> list[str]:
    cpu, width = current.cpu, _code_width(current)

    def value(name: str, word: int) -> str:
        return f"{name:<3} {word:0{2 * width}x}"

    names = [register.name.lower() for register in Reg][: {8: 16, 4: 8}[width]]
    general = [value(name, cpu.regs[index]) for index, name in enumerate(names)]
    code, stack = cpu.segment(Seg.CS), cpu.segment(Seg.SS)
    mode = "kernel" if _in_kernel(current) else "user"
    jump = cpu.came_from()
    return [
        f"rip {symbols.format(cpu.rip)}, in {mode} mode",
        *([f"came from {symbols.format(jump)}"] if jump else []),
        "  ".join((value("rip", cpu.rip), value("cr2", cpu.cr2), value("cr3", cpu.cr3))),
        *("  ".join(general[i : i + REGS_A_LINE]) for i in range(0, len(general), REGS_A_LINE)),
        f"rflags {cpu.rflags:08x}  cs {code.selector:04x}  ss {stack.selector:04x}"
        f"  cr0 {cpu.cr0:08x}",
    ]


def _other_vcpus(current: Current) -> list[str]:
    return [
        f"vcpu {vcpu.vcpu_id}: {vcpu.runstate.name.lower()}"
        for vcpu in current.domain.vcpus
        if vcpu is not current.vcpu
    ]


def _backtrace(current: Current, symbols: Symbols, image: Image) -> list[str]:
    if not _in_kernel(current):
        return ["none: it ran a program, whose symbols are not known"]
    cpu = current.cpu
    orc = Orc(image.elf)
    lines = backtrace(
        symbols,
        orc if len(orc) else None,
        cpu.rip,
        cpu.regs[Reg.RSP],
        cpu.regs[Reg.RBP],
        current.read,
        width=_code_width(current),
    )
    return [str(line) for line in lines]


def _is_readable(current: Current, vaddr: int) -> bool:
    try:
        current.read(vaddr, 1)
    except XenError:
        return False
    return True


def _walk(current: Current, vaddr: int) -> list[str]:
    """Show each entry that a walk meets, and what the frame is that it leads to."""
    tables = _tables(current)
    if tables is None:
        address = vaddr & 0xFFFFFFFF
        return [f"{address:#x}: paging is off", f"  -> {_describe(current, address)}"]
    table, shifts, size = tables
    lines = [f"{vaddr:#x} from cr3: {_describe(current, table)}"]
    for level, shift in zip(range(len(shifts), 0, -1), shifts, strict=True):
        mfn = _machine_frame(current, table)
        if mfn is None:
            break
        index = vaddr >> shift & PAGE_SIZE // size - 1
        where = (mfn << PAGE_SHIFT) + (table & PAGE_MASK) + index * size
        entry = current.domain.memory.read_uint(Maddr(where), size)
        lines.append(f"L{level}[{index:#x}] = {describe_entry(entry)}")
        if not entry & P:
            break
        table = entry & ADDR
        lines.append(f"  -> {_describe(current, table)}")
        if entry & PSE and level > 1:
            break
    return lines


def _tables(current: Current) -> tuple[int, tuple[int, ...], int] | None:
    """The root table's address, the shift of each level's index, and the bytes of an entry."""
    if current.domain.p2m is None:  # a PV guest always has paging, and its width's format
        return current.cpu.cr3 & ADDR, LONG if current.domain.width == 8 else PAE, 8
    cpu = cpu_of(current)
    if not cpu.cr0 & CR0_PG:
        return None
    if not cpu.cr4 & CR4_PAE:
        return cpu.cr3 & ADDR, TWO_LEVEL, 4
    if cpu.efer & EFER_LMA:
        return cpu.cr3 & ADDR, LONG, 8
    return cpu.cr3 & PDPT_MASK, PAE, 8


def _machine_frame(current: Current, paddr: int) -> Mfn | None:
    """The frame behind what the guest has in its tables; None if that is no RAM."""
    domain, frame = current.domain, Mfn(paddr >> PAGE_SHIFT)
    if domain.p2m is not None:
        return domain.p2m.get(frame)
    return frame if domain.memory.contains(frame) else None


def _describe(current: Current, paddr: int) -> str:
    mfn = _machine_frame(current, paddr)
    if mfn is None:
        return f"{paddr:#x}, where no memory is"
    return current.domain.frames.describe(mfn)
