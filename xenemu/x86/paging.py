"""Page-table entries and the walk through 4-level and PAE tables.

Intel SDM volume 3, chapter "Paging".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NewType

from xenemu.records import dataclass

Mfn = NewType("Mfn", int)  # machine frame number
Pfn = NewType("Pfn", int)  # pseudo-physical frame number, a PV guest's own numbering
Gfn = NewType("Gfn", int)  # guest frame number: pfn under PVH, mfn under PV
Maddr = NewType("Maddr", int)  # machine address
Vaddr = NewType("Vaddr", int)  # virtual (linear) address

PAGE_SHIFT = 12
PAGE_SIZE = 1 << PAGE_SHIFT
PAGE_MASK = PAGE_SIZE - 1
ENTRIES = 512  # per table, 8 bytes each

P = 1 << 0  # present
RW = 1 << 1
US = 1 << 2
PWT = 1 << 3
PCD = 1 << 4
A = 1 << 5  # accessed
D = 1 << 6  # dirty
PSE = 1 << 7  # large page at L2/L3
PAT = 1 << 7  # in an L1 entry
G = 1 << 8  # global
AVAIL = 7 << 9  # ignored by hardware, for software
PAT_LARGE = 1 << 12  # in a PSE entry
NX = 1 << 63
ADDR = 0x000F_FFFF_FFFF_F000  # bits 51:12, the frame's address

# Page-fault error code bits.
PFEC_P = 1 << 0
PFEC_W = 1 << 1
PFEC_U = 1 << 2
PFEC_RSVD = 1 << 3
PFEC_I = 1 << 4

BIT_NAMES = (
    (P, "P"),
    (RW, "RW"),
    (US, "US"),
    (PWT, "PWT"),
    (PCD, "PCD"),
    (A, "A"),
    (D, "D"),
    (PSE, "PSE/PAT"),
    (G, "G"),
    (NX, "NX"),
)


def describe_entry(entry: int) -> str:
    """Decode an entry for a person: ``0x1067 (mfn 0x1: P RW US A D)``."""
    bits = " ".join(name for bit, name in BIT_NAMES if entry & bit)
    return f"{entry:#x} (mfn {(entry & ADDR) >> PAGE_SHIFT:#x}: {bits or 'not present'})"


@dataclass(frozen=True)
class WalkStep:
    """One entry met by a walk: its level (4..1), its own machine address and its value."""

    level: int
    entry_maddr: Maddr
    entry: int


def walk(q: Sequence[int], root: Mfn, vaddr: int, levels: int = 4) -> list[WalkStep]:
    """Follow `vaddr` from the table in frame `root`; the last step is where the walk ended.

    `q` is machine memory as 64-bit words. `levels` is 4, or 3 for PAE. The walk ends at the first
    entry that is a leaf or not present, or whose table lies outside memory.
    """
    steps = []
    table = int(root)
    for level in range(levels, 0, -1):
        index = (vaddr >> (PAGE_SHIFT + 9 * (level - 1))) & (3 if levels == level == 3 else 511)
        word = table * ENTRIES + index
        if word >= len(q):
            break
        entry = q[word]
        steps.append(WalkStep(level, Maddr(word << 3), entry))
        if not entry & P or (level in (2, 3) and entry & PSE):
            break
        table = (entry & ADDR) >> PAGE_SHIFT
    return steps


def l1_entry(q: Sequence[int], root: Mfn, vaddr: int, levels: int = 4) -> Maddr | None:
    """The machine address of the L1 entry for `vaddr`, present or not, or None if there is none.

    The arguments are those of `walk`, whose last step this is if its level is 1.
    """
    table = int(root)
    for level in range(levels, 1, -1):
        index = vaddr >> (PAGE_SHIFT + 9 * (level - 1)) & (3 if levels == level == 3 else 511)
        word = table * ENTRIES + index
        if word >= len(q):
            return None
        entry = q[word]
        if not entry & P or (entry & PSE and level < 4):
            return None
        table = (entry & ADDR) >> PAGE_SHIFT
    word = table * ENTRIES + (vaddr >> PAGE_SHIFT & 511)
    return Maddr(word << 3) if word < len(q) else None


def is_canonical(vaddr: int) -> bool:
    """Whether bits 63:47 are all equal (4-level paging)."""
    return vaddr >> 47 in (0, 0x1FFFF)


def mfn_of(maddr: int) -> Mfn:
    """The frame that a machine address lies in."""
    return Mfn(maddr >> PAGE_SHIFT)
