"""Where the pieces of a PV domain lie: pseudo-physical pages in libxenguest's order.

These pages are mapped, in this order, from the kernel's first page up:

* the kernel;
* the initrd, unless the kernel takes it unmapped;
* the p2m list, unless the kernel says where it wants it;
* start_info, the xenstore ring and the console ring;
* the page tables;
* the boot stack.

The mapping ends at the next 4 MiB boundary that leaves 512 KiB of room. After it, unmapped, are the
initrd and the p2m list of kernels that asked for that.

In Xen: tools/libs/guest/xg_dom_core.c (xc_dom_build_image), xg_dom_x86.c.
"""

from __future__ import annotations

from dataclasses import field

from xenemu.errors import FitError, ImageError
from xenemu.hv.building import Where, pages
from xenemu.image import Feature
from xenemu.records import dataclass
from xenemu.x86.paging import PAGE_SHIFT, PAGE_SIZE, Pfn, is_canonical

PADDING_PAGES = (512 << 10) >> PAGE_SHIFT
ALIGNMENT = 4 << 20
BOOT_STACK_PAGES = 1
VADDR_MASKS = {4: (1 << 48) - 1, 3: (1 << 32) - 1}  # by the level of the root
LAST_GIB = 0xC0000000


@dataclass(frozen=True)
class PvParameters:
    """Where a PV kernel wants to be. Virtual addresses, except `elf_paddr_offset`.

    A segment goes to the virtual address ``paddr + virt_offset``, and the domain's first
    page to `virt_base`.
    """

    virt_base: int
    elf_paddr_offset: int
    virt_offset: int  # virt_base - elf_paddr_offset, modulo 2**64
    virt_kstart: int
    virt_kend: int
    virt_entry: int
    virt_hypercall: int | None  # the page to fill, if the kernel has one
    p2m_base: int | None  # where the p2m list is mapped, if the kernel chooses
    mod_start_pfn: bool  # the initrd may be left unmapped, and be named by its pfn
    supported: frozenset[Feature]
    required: frozenset[Feature]

    @property
    def where(self) -> Where:
        return Where(self.virt_kstart, self.virt_kend, self.virt_entry)


@dataclass
class Tables:
    """The page tables of the initial mappings: the pfn of each, by (level, covered range).

    A table of level n covers the addresses that agree above bit 12 + 9 * n. `ranges` are what is
    mapped: first virtual address, number of pages, first pfn.
    """

    root_level: int
    pfns: dict[tuple[int, int], Pfn] = field(default_factory=dict)
    ranges: list[tuple[int, int, Pfn]] = field(default_factory=list)

    def missing(self, first: int, last: int) -> list[tuple[int, int]]:
        """The tables still needed to map virtual addresses `first` to `last`, top level first."""
        needed = []
        mask = VADDR_MASKS[self.root_level]
        for level in range(self.root_level, 0, -1):
            shift = PAGE_SHIFT + 9 * level
            start, end = (first & mask) >> shift, (last & mask) >> shift
            if level == self.root_level:
                start = end = 0
            elif self.root_level == 3 and level == 2 and last < LAST_GIB:
                end = 3  # PAE: an L2 for Xen's own entries must be there
            needed += [(level, n) for n in range(start, end + 1) if (level, n) not in self.pfns]
        return needed

    def place(self, tables: list[tuple[int, int]], first_pfn: int) -> None:
        """Give the tables consecutive pfns."""
        for offset, key in enumerate(tables):
            self.pfns[key] = Pfn(first_pfn + offset)


@dataclass
class PvLayout:
    """The pieces by pfn; virtual addresses follow from `virt_base`, unless they are given."""

    virt_base: int
    start_info: Pfn
    xenstore: Pfn
    console: Pfn
    page_tables: Pfn
    nr_page_tables: int  # of the first mapping
    boot_stack: Pfn
    initrd: Pfn
    initrd_mapped: bool
    p2m: Pfn
    p2m_pages: int  # with the tables that map it, if it is mapped apart
    p2m_vaddr: int
    tables: Tables
    end: int  # pfn after everything

    def vaddr(self, pfn: int) -> int:
        """Where a page of the first mapping is mapped."""
        return self.virt_base + (pfn << PAGE_SHIFT)


def lay_out(
    kernel: PvParameters, nr_pages: int, initrd_size: int, width: int, path: str
) -> PvLayout:
    """Place everything; FitError if the domain's `nr_pages` do not suffice."""
    base = kernel.virt_base
    at = pages(kernel.virt_kend - base)
    p2m_pages = pages(nr_pages * width)
    initrd = p2m = Pfn(0)
    mapped = not kernel.mod_start_pfn
    if mapped:
        initrd, at = Pfn(at), at + pages(initrd_size)
    if kernel.p2m_base is None:
        p2m, at = Pfn(at), at + p2m_pages
    start_info, at = Pfn(at), at + 3
    _check_room(at, nr_pages, path)

    tables = Tables(root_level=4 if width == 8 else 3)
    needed, mapped_end = _first_mapping(tables, base, at)
    _check_range("it", base, mapped_end, path)
    tables.place(needed, at)
    page_tables, at = Pfn(at), at + len(needed)
    boot_stack = Pfn(at)
    at = (mapped_end - base) >> PAGE_SHIFT
    tables.ranges.append((base, at, Pfn(0)))
    if not mapped:
        initrd, at = Pfn(at), at + pages(initrd_size)
    p2m_vaddr = base + (p2m << PAGE_SHIFT)
    if kernel.p2m_base is not None:
        p2m, p2m_vaddr = Pfn(at), kernel.p2m_base
        p2m_end = p2m_vaddr + (p2m_pages << PAGE_SHIFT)
        _check_range("its INIT_P2M", p2m_vaddr, p2m_end, path)
        if p2m_vaddr < mapped_end and base < p2m_end:
            raise ImageError(f"{path}: INIT_P2M, {p2m_vaddr:#x}, is where the kernel is mapped")
        extra = tables.missing(p2m_vaddr, p2m_end - 1)
        tables.ranges.append((p2m_vaddr, p2m_pages, p2m))
        tables.place(extra, at + p2m_pages)
        p2m_pages += len(extra)
        at += p2m_pages
    _check_room(at, nr_pages, path)
    return PvLayout(
        virt_base=base,
        start_info=start_info,
        xenstore=Pfn(start_info + 1),
        console=Pfn(start_info + 2),
        page_tables=page_tables,
        nr_page_tables=len(needed),
        boot_stack=boot_stack,
        initrd=initrd,
        initrd_mapped=mapped,
        p2m=p2m,
        p2m_pages=p2m_pages,
        p2m_vaddr=p2m_vaddr,
        tables=tables,
        end=at,
    )


def _check_room(needed_pages: int, nr_pages: int, path: str) -> None:
    if needed_pages > nr_pages:
        raise FitError(
            f"{path}: the kernel and its initrd need {needed_pages * PAGE_SIZE >> 20} MiB,"
            f" the domain has {nr_pages * PAGE_SIZE >> 20}: give it more memory"
        )


def _check_range(what: str, start: int, end: int, path: str) -> None:
    if not is_canonical(start) or not is_canonical(end - 1) or start >> 47 != (end - 1) >> 47:
        raise ImageError(f"{path}: {what} would be mapped at {start:#x}-{end:#x}, which cannot be")


def _first_mapping(tables: Tables, base: int, used: int) -> tuple[list[tuple[int, int]], int]:
    """The tables for everything from `base`, themselves included, and where the mapping ends."""
    extra = BOOT_STACK_PAGES + PADDING_PAGES
    count = 0
    while True:
        end = (base + (used + count + extra << PAGE_SHIFT)) | ALIGNMENT - 1
        needed = tables.missing(base, end)
        count = len(needed)
        if base + (used + count + extra << PAGE_SHIFT) <= end + 1:
            return needed, end + 1
