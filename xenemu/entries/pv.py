"""Xen's PV entry, 64-bit and 32-bit: paged, at virtual addresses from the kernel's notes.

In Xen: common/libelf/libelf-dominfo.c (elf_xen_note_check, elf_xen_addr_calc_check),
tools/libs/guest/xg_dom_elfloader.c, xg_dom_core.c, xg_dom_x86.c
"""

from __future__ import annotations

import struct
from array import array
from dataclasses import replace
from functools import partial
from typing import Final

from xenemu.abi.arch_x86.xen import HYPERVISOR_COMPAT_VIRT_START, HYPERVISOR_VIRT_END
from xenemu.abi.xen import (
    MAX_GUEST_CMDLINE,
    SIF_MOD_START_PFN,
    SIF_VIRT_P2M_4TOOLS,
    VMASST_TYPE_pae_extended_cr3,
    start_info,
)
from xenemu.entries.entry import BootEntry
from xenemu.entries.judging import NoNote, Unbootable, check_features, check_has_notes
from xenemu.entries.platform import PV32_PLATFORM, PV64_PLATFORM
from xenemu.errors import UsageError
from xenemu.hv.building import DomainConfig, pages, unpack_module
from xenemu.hv.memory import Memory
from xenemu.hv.state.domain import Domain
from xenemu.image import Feature, Image
from xenemu.image.notes import WORD
from xenemu.pv.builder import TABLE, Placed
from xenemu.pv.hypercall_page import hypercall_page
from xenemu.pv.layout import PvLayout, PvParameters, lay_out
from xenemu.pv.personality import start_vcpu
from xenemu.pv.state import StartState
from xenemu.x86.paging import PAGE_MASK, PAGE_SHIFT, RW, A, Maddr, Mfn, P, Pfn

LEAF = P | RW | A
MAGIC = {8: b"xen-3.0-x86_64", 4: b"xen-3.0-x86_32p"}

# What a kernel cannot have: the non-canonical gap with Xen's part, which are neighbours.
_FORBIDDEN: Final = {
    "x86_64": (1 << 47, HYPERVISOR_VIRT_END),
    "i386": (HYPERVISOR_COMPAT_VIRT_START, WORD),
}


def _judge(machine: str, image: Image) -> PvParameters:
    """Work out where a PV kernel goes."""
    if image.machine != machine:
        raise Unbootable(f"the image is for {image.machine}, not {machine}")
    check_has_notes(image)
    _check_pv_notes(image)
    check_features(image, {Feature.auto_translated_physmap, Feature.supervisor_mode_kernel})
    parameters = _pv_addresses(image)
    entry = "ENTRY" if image.notes.entry is not None else "the ELF's e_entry, without an ENTRY note"
    _check_pv_addresses(parameters, entry, *_FORBIDDEN[machine])
    return parameters


def _check_pv_notes(image: Image) -> None:
    notes = image.notes
    # DIVERGES: Xen would start a kernel that has only a PVH entry, and it would crash.
    if notes.entry is None and notes.hypercall_page is None:
        raise NoNote("there is no ENTRY note")
    loader, guest_os = notes.loader or "", notes.guest_os or ""
    if not loader.startswith("generic") and not guest_os.startswith("linux"):
        raise NoNote(
            f"neither LOADER is generic nor GUEST_OS linux, but {loader or None!r}"
            f" and {guest_os or None!r}"
        )
    if notes.xen_version is None:
        raise NoNote("there is no XEN_VERSION note")
    if not notes.xen_version.startswith("xen-3.0"):
        raise Unbootable(f"XEN_VERSION is {notes.xen_version!r}, not 'xen-3.0'")
    if image.machine == "i386" and not notes.pae:
        mode = "is missing" if notes.pae_mode is None else f"is {notes.pae_mode!r}"
        raise NoNote(f"PAE_MODE {mode}, and Xen runs only i386 kernels with PAE")


def _pv_addresses(image: Image) -> PvParameters:
    notes = image.notes
    if notes.paddr_offset is not None and notes.virt_base is None:
        raise NoNote("PADDR_OFFSET is given, but VIRT_BASE is not")
    virt_base = notes.virt_base or 0
    elf_paddr_offset = notes.paddr_offset
    if elf_paddr_offset is None:
        # Kernels of the time of __xen_guest have virtual addresses in p_paddr.
        elf_paddr_offset = virt_base if notes.source == "__xen_guest" else 0
    virt_offset = virt_base - elf_paddr_offset & WORD
    return PvParameters(
        virt_base=virt_base,
        elf_paddr_offset=elf_paddr_offset,
        virt_offset=virt_offset,
        virt_kstart=image.pstart + virt_offset & WORD,
        virt_kend=image.pend + virt_offset & WORD,
        virt_entry=image.entry if notes.entry is None else notes.entry,
        virt_hypercall=notes.hypercall_page,
        p2m_base=notes.init_p2m if image.machine == "x86_64" else None,
        mod_start_pfn=notes.mod_start_pfn,
        supported=notes.supported,
        required=notes.required,
    )


def _check_pv_addresses(p: PvParameters, entry: str, low: int, high: int) -> None:
    kernel = f"the kernel ({p.virt_kstart:#x}-{p.virt_kend:#x})"
    if p.virt_kstart > p.virt_kend:
        raise Unbootable(f"{kernel} wraps around the address space")
    if p.virt_base > p.virt_kstart:
        raise Unbootable(f"{kernel} starts below VIRT_BASE, {p.virt_base:#x}")
    if p.virt_base < high and p.virt_kend > low:
        raise Unbootable(f"{kernel} reaches into {low:#x}-{high:#x}, which no kernel can have")
    if (p.virt_base | p.virt_kstart) & PAGE_MASK:
        raise Unbootable(f"VIRT_BASE, {p.virt_base:#x}, or {kernel} is not aligned to a page")
    if not p.virt_kstart <= p.virt_entry <= p.virt_kend:
        raise Unbootable(f"{entry}, {p.virt_entry:#x}, lies outside {kernel}")
    # DIVERGES: Xen takes any page of the domain, and rounds INIT_P2M down.
    if p.virt_hypercall is not None and not p.virt_kstart <= p.virt_hypercall < p.virt_kend:
        raise Unbootable(f"HYPERCALL_PAGE, {p.virt_hypercall:#x}, lies outside {kernel}")
    if p.p2m_base is not None and p.virt_kstart <= p.p2m_base < p.virt_kend:
        raise Unbootable(f"INIT_P2M, {p.p2m_base:#x}, lies inside {kernel}")
    if p.p2m_base is not None and low <= p.p2m_base < high:
        raise Unbootable(f"INIT_P2M, {p.p2m_base:#x}, is where no kernel can have anything")
    if p.p2m_base is not None and p.p2m_base & PAGE_MASK:
        raise Unbootable(f"INIT_P2M, {p.p2m_base:#x}, is not aligned to a page")


def _place(image: Image, kernel: PvParameters, config: DomainConfig, nr_pages: int) -> Placed:
    """Find room for everything; ImageError or FitError if there is none."""
    if config.modules:
        raise UsageError("a PV guest takes one module, its --initrd; only a PVH guest takes more")
    config.check_cmdline("a PV guest", MAX_GUEST_CMDLINE - 1)
    config = replace(config, initrd=unpack_module(config.initrd))
    width = image.elf_class // 8
    layout = lay_out(kernel, nr_pages, len(config.initrd), width, image.path)
    extended_cr3 = width == 4 and image.notes.extended_cr3
    return Placed(
        layout.console,
        layout.xenstore,
        layout.page_tables,
        StartState(
            kernel.virt_entry,
            layout.vaddr(Pfn(layout.boot_stack + 1)),
            layout.vaddr(layout.start_info),
        ),
        extended_cr3 << VMASST_TYPE_pae_extended_cr3,
        partial(_write, image, kernel, layout, config),
    )


def _write(
    image: Image,
    kernel: PvParameters,
    layout: PvLayout,
    config: DomainConfig,
    domain: Domain,
    base: int,
) -> None:
    """Write all of it into the domain's frames, which begin at `base`."""
    _load(domain, image, kernel, layout, config, base)
    _write_page_tables(domain.memory, layout, base)
    _write_start_info(domain, layout, config, base)


def _load(
    domain: Domain,
    image: Image,
    kernel: PvParameters,
    layout: PvLayout,
    config: DomainConfig,
    base: int,
) -> None:
    """Copy the kernel, its hypercall page, the initrd and the p2m list into the domain."""
    memory, start = domain.memory, base << PAGE_SHIFT
    for paddr, data in image.contents():
        offset = (paddr + kernel.virt_offset & WORD) - kernel.virt_base
        memory.write(Maddr(start + offset), data)
    if kernel.virt_hypercall is not None:
        offset = kernel.virt_hypercall - kernel.virt_base
        memory.write(Maddr(start + offset), hypercall_page(domain.width))
    memory.write(Maddr(start + (layout.initrd << PAGE_SHIFT)), config.initrd)
    nr_pages = domain.pages.tot_pages
    p2m = array({8: "Q", 4: "I"}[domain.width], range(base, base + nr_pages))
    memory.write(Maddr(start + (layout.p2m << PAGE_SHIFT)), memoryview(p2m).cast("B"))


def _write_page_tables(memory: Memory, layout: PvLayout, base: int) -> None:
    """Write the initial tables; pages that are tables are mapped read-only."""
    tables = layout.tables
    for (level, covered), pfn in tables.pfns.items():
        if level < tables.root_level:
            parent = tables.pfns[level + 1, covered >> 9 if level + 1 < tables.root_level else 0]
            memory.table(Mfn(base + parent))[covered & 511] = base + pfn << PAGE_SHIFT | TABLE
    table_pfns = set(tables.pfns.values())
    for vaddr, count, first in tables.ranges:
        for n in range(count):
            page, target = (vaddr >> PAGE_SHIFT) + n, first + n
            covered = (page & (1 << 36) - 1) >> 9
            leaf = LEAF & ~RW if target in table_pfns else LEAF
            l1 = tables.pfns[1, covered]
            memory.words[base + l1 << 9 | page & 511] = base + target << PAGE_SHIFT | leaf


def _write_start_info(domain: Domain, layout: PvLayout, config: DomainConfig, base: int) -> None:
    initrd_pages = pages(len(config.initrd))
    flags_ = SIF_VIRT_P2M_4TOOLS
    mod_start: int = 0
    if initrd_pages and layout.initrd_mapped:
        mod_start = layout.vaddr(layout.initrd)
    elif initrd_pages:
        flags_ |= SIF_MOD_START_PFN
        mod_start = layout.initrd
    apart = layout.p2m_vaddr != layout.vaddr(layout.p2m)
    info = start_info(
        magic=MAGIC[domain.width],
        nr_pages=domain.pages.tot_pages,
        shared_info=domain.shared_info_maddr,
        flags=flags_,
        store_mfn=domain.xenstore.mfn,
        store_evtchn=domain.xenstore.port,
        console=struct.pack(
            {8: "<QI4x", 4: "<II"}[domain.width], domain.console.mfn, domain.console.port
        ),
        pt_base=layout.vaddr(layout.page_tables),
        nr_pt_frames=layout.nr_page_tables,
        mfn_list=layout.p2m_vaddr,
        mod_start=mod_start,
        mod_len=initrd_pages << PAGE_SHIFT,
        cmd_line=config.cmdline,
        first_p2m_pfn=layout.p2m if apart else 0,
        nr_p2m_frames=layout.p2m_pages if apart else 0,
    )
    where = Maddr(base + layout.start_info << PAGE_SHIFT)
    domain.memory.write(where, info.pack(domain.width))


ENTRIES = [
    BootEntry("pv64", "pv", PV64_PLATFORM, partial(_judge, "x86_64"), _place, start_vcpu),
    BootEntry("pv32", "pv", PV32_PLATFORM, partial(_judge, "i386"), _place, start_vcpu),
]
