"""Where the pieces of a PVH domain lie in its guest-physical memory.

RAM fills the addresses from 0 to the hole, and goes on at 4 GiB. In the hole are the ACPI tables,
the local APIC and Xen's special pages. The kernel lies where it is linked. After the kernel, in
libxenguest's order, come the modules and start_info.

In Xen: tools/libs/guest/xg_dom_x86.c, xg_dom_core.c (xc_dom_build_image),
tools/libs/light/libxl_dom.c (libxl__build_hvm), libxl_x86.c (domain_construct_memmap)
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from typing import Final

from xenemu.abi.hvm.e820 import E820_ACPI, E820_RAM, E820_RESERVED
from xenemu.errors import FitError
from xenemu.hv.building import Where
from xenemu.image import Image
from xenemu.pvh.acpi import RSDP_SIZE
from xenemu.records import dataclass
from xenemu.x86.paging import PAGE_MASK, PAGE_SHIFT, PAGE_SIZE

ACPI_INFO_PHYSICAL_ADDRESS: Final = 0xFC000000
HOLE_START: Final = ACPI_INFO_PHYSICAL_ADDRESS
HOLE_END: Final = 1 << 32
X86_HVM_NR_SPECIAL_PAGES: Final = 8
X86_HVM_END_SPECIAL_REGION: Final = 0xFF000
FIRST_SPECIAL_PAGE: Final = X86_HVM_END_SPECIAL_REGION - X86_HVM_NR_SPECIAL_PAGES

E820 = list[tuple[int, int, int]]  # address, size, type

BIOS_END: Final = 1 << 20
RELOC_DEFAULTS: Final = (2 << 20, 0, (1 << 32) - 1)


class SpecialPage(IntEnum):
    """What each of the special pages is for; the value is its place among them."""

    PAGING = 0
    ACCESS = 1
    SHARING = 2
    BUFIOREQ = 3
    XENSTORE = 4
    IOREQ = 5
    IDENT_PT = 6
    CONSOLE = 7

    @property
    def gfn(self) -> int:
        return FIRST_SPECIAL_PAGE + self


@dataclass(frozen=True)
class Kernel:
    """Where a kernel wants to be, and whether it looks for the RSDP in low memory only."""

    start: int
    end: int
    entry: int
    low_rsdp: bool = False

    @property
    def where(self) -> Where:
        return Where(self.start, self.end, self.entry)


@dataclass(frozen=True)
class PvhLayout:
    """Guest-physical addresses; `offset` is how far the kernel is from where it is linked."""

    offset: int
    modules: tuple[int, ...]
    start_info: int


def low_ram(memory: int) -> range:
    """The addresses of RAM below the hole, of a domain of `memory` bytes."""
    return range(min(memory, HOLE_START))


def high_ram(memory: int) -> range:
    """The addresses of RAM above the hole."""
    return range(HOLE_END, HOLE_END + max(memory - HOLE_START, 0))


def rsdp_address(low: bool, acpi_tables_size: int) -> int:
    """Where libxl puts the RSDP: after the tables, or where an old Linux looks for it."""
    if low:
        return BIOS_END - RSDP_SIZE
    return ACPI_INFO_PHYSICAL_ADDRESS + PAGE_SIZE + acpi_tables_size


def memory_map(memory: int, acpi_tables_size: int, rsdp: int) -> E820:
    """The ranges that the guest is told, in libxl's order: address, size and type."""
    low, high = low_ram(memory), high_ram(memory)
    in_page = rsdp & PAGE_MASK
    ranges = [
        (low.start, len(low), E820_RAM),
        (
            FIRST_SPECIAL_PAGE << PAGE_SHIFT,
            X86_HVM_NR_SPECIAL_PAGES << PAGE_SHIFT,
            E820_RESERVED,
        ),
        (rsdp - in_page, in_page + RSDP_SIZE, E820_ACPI),
        (ACPI_INFO_PHYSICAL_ADDRESS, PAGE_SIZE, E820_ACPI),
        (ACPI_INFO_PHYSICAL_ADDRESS + PAGE_SIZE, acpi_tables_size, E820_ACPI),
    ]
    return ranges + [(high.start, len(high), E820_RAM)] * bool(high)


def lay_out(
    image: Image,
    kernel: Kernel,
    module_sizes: Sequence[int],
    start_info_size: int,
    ram: range,
) -> PvhLayout:
    """Place everything in `ram`; FitError if it does not fit.

    A kernel with a PHYS32_RELOC note is moved if need be. Xen's tools do not do that, but Xen
    itself does so for dom0 (hvm/dom0_build.c): as high as the note and the RAM allow. Here
    everything that comes after the kernel must fit there, too.
    """
    modules = {f"module {n}": size for n, size in enumerate(module_sizes)}
    start_info = {"start_info": start_info_size}
    unmapped = image.notes.mod_start_pfn  # of the initial mapping that PV has, and PVH has not
    pieces = {"the kernel": kernel.end - kernel.start}
    pieces |= start_info | modules if unmapped else modules | start_info
    places = _place(kernel.start, pieces)
    misfit = _misfit(places, ram)
    if misfit and image.notes.phys32_reloc is not None:
        start = _relocated_start(image.notes.phys32_reloc, pieces, ram)
        places = places if start is None else _place(start, pieces)
        misfit = _misfit(places, ram)
    if misfit:
        raise FitError(
            f"{image.path}: {misfit} would lie at {places[misfit].start:#x}-"
            f"{places[misfit].stop:#x}, and there is RAM only at {ram.start:#x}-{ram.stop:#x}:"
            " give the domain more memory"
        )
    return PvhLayout(
        places["the kernel"].start - kernel.start,
        tuple(places[name].start for name in modules),
        places["start_info"].start,
    )


def _place(start: int, pieces: dict[str, int]) -> dict[str, range]:
    """Put pieces of these sizes one after another, each but the first at a page's start."""
    places = {}
    for name, size in pieces.items():
        places[name] = range(start, start + size)
        start = (start + size + PAGE_MASK) & ~PAGE_MASK
    return places


def _misfit(places: dict[str, range], ram: range) -> str | None:
    """The first piece that is not all in RAM."""
    return next(
        (name for name, at in places.items() if at.start < ram.start or at.stop > ram.stop), None
    )


def _relocated_start(note: tuple[int, ...], pieces: dict[str, int], ram: range) -> int | None:
    """The highest place for a kernel that allows `note`: alignment, lowest, highest address."""
    align, lowest, highest = note + RELOC_DEFAULTS[len(note) :]
    align = max(align, PAGE_SIZE)
    span = list(_place(0, pieces).values())[-1].stop
    start = min(highest + 1 - pieces["the kernel"], ram.stop - span) // align * align
    return start if start >= max(lowest, ram.start) else None
