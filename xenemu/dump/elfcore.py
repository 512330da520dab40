"""The form of a core file: ELF's header, its program headers, and notes.

The form is that of a Linux /proc/vmcore, whose segments have no alignment: crash takes a file with
alignment for an older kind of dump.

System V ABI, chapters 4 and 5; in Linux: kernel/crash_core.c, include/uapi/linux/elfcore.h
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from typing import Final

from xenemu.hv.cpu import Reg, Seg
from xenemu.records import dataclass

ET_CORE, EM_386, EM_X86_64 = 4, 3, 62
PT_LOAD, PT_NOTE = 1, 4
NT_PRSTATUS: Final = 1
NO_ADDRESS: Final = (1 << 64) - 1  # of a segment that has no physical address
FOUR_GIB: Final = 1 << 32
# struct user_regs_struct up to orig_ax.
USER_REGS_64: Final = (
    *(Reg.R15, Reg.R14, Reg.R13, Reg.R12, Reg.RBP, Reg.RBX, Reg.R11, Reg.R10),
    *(Reg.R9, Reg.R8, Reg.RAX, Reg.RCX, Reg.RDX, Reg.RSI, Reg.RDI),
)
USER_REGS_32: Final = (Reg.RBX, Reg.RCX, Reg.RDX, Reg.RSI, Reg.RDI, Reg.RBP, Reg.RAX)
HEAD_ROOM: Final = 1 << 24  # more than the head ever takes


@dataclass(frozen=True)
class Load:
    """A segment: `size` bytes from `offset` on, which counts from the first page in the file on."""

    vaddr: int
    paddr: int
    offset: int
    size: int


@dataclass(frozen=True)
class Thread:
    """What a note says of a vcpu: its number as a thread, and its registers.

    The number is that of the vcpu plus one, as QEMU has it. drgn finds a CPU's registers by that.
    """

    number: int
    general: Sequence[int] = (0,) * len(Reg)
    rip: int = 0
    rflags: int = 0
    selectors: Sequence[int] = (0,) * len(Seg)
    fs_base: int = 0
    gs_base: int = 0


def note(name: bytes, kind: int, data: bytes) -> bytes:
    """A note, padded to four bytes."""
    name += b"\0"
    head = struct.pack("<III", len(name), len(data), kind)
    return head + name + bytes(-len(name) % 4) + data + bytes(-len(data) % 4)


def prstatus(thread: Thread, wide: bool) -> bytes:
    """NT_PRSTATUS: struct elf_prstatus of x86-64, or of i386.

    In Linux: include/uapi/linux/elfcore.h, arch/x86/include/asm/user_{32,64}.h
    """
    general, selector = thread.general, thread.selectors
    no_call = (1 << 64) - 1  # orig_ax: it is in no system call, so a debugger restarts none
    if not wide:
        words = [
            *(general[register] for register in USER_REGS_32),
            *(selector[each] for each in (Seg.DS, Seg.ES, Seg.FS, Seg.GS)),
            *(no_call, thread.rip, selector[Seg.CS], thread.rflags),
            *(general[Reg.RSP], selector[Seg.SS]),
        ]
        words = [word & FOUR_GIB - 1 for word in words]
        data = struct.pack("<24xI44x17II", thread.number, *words, 0)
        return note(b"CORE", NT_PRSTATUS, data)
    words = [
        *(general[register] for register in USER_REGS_64),
        *(no_call, thread.rip, selector[Seg.CS], thread.rflags),
        *(general[Reg.RSP], selector[Seg.SS], thread.fs_base, thread.gs_base),
        *(selector[each] for each in (Seg.DS, Seg.ES, Seg.FS, Seg.GS)),
    ]
    return note(b"CORE", NT_PRSTATUS, struct.pack("<32xI76x27QI4x", thread.number, *words, 0))


def head(loads: Sequence[Load], notes: Iterable[bytes], wide: bool) -> bytes:
    """All that comes before the first page.

    A file for i386 has ELF's 32-bit form while its addresses fit, and after that the 64-bit form,
    as kdump's has.
    """
    data = b"".join(notes)
    ends = (load.size + max(load.offset, (load.paddr + 1) % NO_ADDRESS) for load in loads)
    big = wide or max(ends, default=0) > FOUR_GIB - HEAD_ROOM
    header_size, segment_size = (64, 56) if big else (52, 32)
    notes_at = header_size + segment_size * (len(loads) + 1)
    start = notes_at + len(data)
    segments = [_segment(big, PT_NOTE, notes_at, 0, 0, len(data))]
    segments += [
        _segment(big, PT_LOAD, start + load.offset, load.vaddr, load.paddr, load.size)
        for load in loads
    ]
    magic = b"\x7fELF" + bytes((2 if big else 1, 1, 1)) + bytes(9)
    kind = (ET_CORE, EM_X86_64 if wide else EM_386, 1)
    form = "<HHIQQQIHHHHHH" if big else "<HHIIIIIHHHHHH"
    sizes = (header_size, segment_size, len(segments), 0, 0, 0)
    return b"".join(
        (magic, struct.pack(form, *kind, 0, header_size, 0, 0, *sizes), *segments, data)
    )


def _segment(big: bool, kind: int, offset: int, vaddr: int, paddr: int, size: int) -> bytes:
    if big:
        return struct.pack("<IIQQQQQQ", kind, 0, offset, vaddr, paddr, size, size, 0)
    low = FOUR_GIB - 1
    return struct.pack("<IIIIIIII", kind, offset, vaddr & low, paddr & low, size, size, 0, 0)
