"""The PVH draft of 2015, which Xen never had: flat in 32 bits, unpaged; ESI leads to start_info.

What became of it is Xen's PVH entry (pvh.py). docs/entries.md sets one beside the other.
"""

from __future__ import annotations

from typing import Final

from xenemu.abi.xen import MAX_GUEST_CMDLINE, start_info
from xenemu.entries.entry import BootEntry
from xenemu.entries.judging import NoNote, Unbootable, check_features, check_has_notes
from xenemu.entries.modes import DRAFT
from xenemu.entries.platform import PVH_PLATFORM
from xenemu.entries.pv import MAGIC
from xenemu.errors import UsageError
from xenemu.hv.building import DomainConfig, pages, unpack_module
from xenemu.hv.cpu import Reg
from xenemu.hv.current import Current
from xenemu.image import Image
from xenemu.image.notes import DRAFT_ENTRY, DRAFT_OFFSET, WORD, as_draft
from xenemu.pvh.builder import Placed, Room
from xenemu.pvh.layout import Kernel, lay_out
from xenemu.pvh.personality import FLAT_LIMIT, start_vcpu
from xenemu.pvh.state import StartState, pvh
from xenemu.records import dataclass
from xenemu.x86.paging import PAGE_SHIFT

EAX: Final = 0xFF6BC1E2  # so a kernel knows how it was entered
EMPTY: Final = bytes(16)


@dataclass(frozen=True)
class DraftKernel(Kernel):
    """Where a kernel goes, and how far that is below its p_paddr."""

    paddr_offset: int = 0


def _judge(image: Image) -> DraftKernel:
    """Work out where a kernel with the draft's notes goes."""
    check_has_notes(image)
    entry, offset = _number(image, DRAFT_ENTRY), _number(image, DRAFT_OFFSET)
    if entry is None:
        raise NoNote(
            f"there is no note PADDR_ENTRY of the draft's (type {image.draft_notes.entry})"
        )
    check_features(image, set())
    # As with Xen's own PADDR_OFFSET, which is for PV.
    offset = offset or 0
    # No pointer to the RSDP was foreseen, so it is where a kernel would look for it.
    start = image.pstart - offset & WORD
    kernel = DraftKernel(start, start + image.pend - image.pstart, entry, True, offset)
    if kernel.end > FLAT_LIMIT:
        raise Unbootable(f"the kernel wants to be at {kernel.start:#x}-{kernel.end:#x}")
    if not kernel.start <= entry < kernel.end:
        raise Unbootable(
            f"PADDR_ENTRY, {entry:#x}, lies outside the kernel ({kernel.start:#x}-{kernel.end:#x})"
        )
    return kernel


def _number(image: Image, name: str) -> int | None:
    """What a note of the draft's says; the last one counts."""
    notes = [as_draft(note, image.draft_notes) for note in image.notes.raw]
    found = [note for note in notes if note.name == name]
    if not found:
        return None
    value = found[-1].value
    if not isinstance(value, int):
        raise Unbootable(f"the note {name} has {found[-1].size} bytes, which is no number")
    return value


def _place(image: Image, kernel: DraftKernel, config: DomainConfig, room: Room) -> Placed:
    """Place the kernel, its initrd and start_info; ImageError, FitError, UsageError if not."""
    if config.modules:
        raise UsageError(f"{DRAFT} takes one module, its --initrd; PVH takes more")
    config.check_cmdline(DRAFT, MAX_GUEST_CMDLINE - 1)
    initrd, width = unpack_module(config.initrd), image.elf_class // 8
    sizes = [len(initrd)] if initrd else []
    layout = lay_out(image, kernel, sizes, start_info.sizeof(width), room.ram)
    info = _start_info(config, room, width, layout.modules[0] if initrd else 0, len(initrd))
    shift = layout.offset - kernel.paddr_offset
    pieces = [
        *((paddr + shift & WORD, data) for paddr, data in image.contents()),
        *((at, initrd) for at in layout.modules),
        (layout.start_info, info),
    ]
    return Placed(pieces, StartState(kernel.entry + layout.offset, layout.start_info))


def _start_info(config: DomainConfig, room: Room, width: int, initrd: int, size: int) -> bytes:
    """PV's start_info, with longs as wide as the kernel's.

    What a PVH guest finds by other means is 0: shared_info, the rings, page tables, the p2m.
    """
    return start_info(
        magic=MAGIC[width],
        nr_pages=pages(room.memory),
        shared_info=0,
        flags=0,
        store_mfn=0,
        store_evtchn=0,
        console=EMPTY,
        pt_base=0,
        nr_pt_frames=0,
        mfn_list=0,
        mod_start=initrd,
        mod_len=pages(size) << PAGE_SHIFT,
        cmd_line=config.cmdline,
        first_p2m_pfn=0,
        nr_p2m_frames=0,
    ).pack(width)


def _start(current: Current) -> None:
    """Load the first registers: PVH's, but EAX has the draft's number, and ESI is for EBX."""
    start_vcpu(current)
    entry = pvh(current).entry
    assert entry is not None
    regs = current.cpu.regs
    regs[Reg.RAX], regs[Reg.RBX], regs[Reg.RSI] = EAX, 0, entry.info


ENTRIES = [BootEntry[DraftKernel, Room, Placed](DRAFT, DRAFT, PVH_PLATFORM, _judge, _place, _start)]
