"""Which kinds of domain an image can boot as, and the addresses its notes settle.

In Xen: common/libelf/libelf-dominfo.c (elf_xen_note_check, elf_xen_addr_calc_check),
tools/libs/guest/xg_dom_elfloader.c, xg_dom_core.c, xg_dom_x86.c
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Final

from xenemu.abi.arch_x86.xen import HYPERVISOR_COMPAT_VIRT_START, HYPERVISOR_VIRT_END
from xenemu.errors import ImageError
from xenemu.image.loader import Image
from xenemu.image.notes import WORD, Feature

PAGE_MASK: Final = 0xFFF

# What a kernel cannot have: the non-canonical gap with Xen's part, which are neighbours.
_FORBIDDEN = {
    "x86_64": (1 << 47, HYPERVISOR_VIRT_END),
    "i386": (HYPERVISOR_COMPAT_VIRT_START, WORD),
}


class Mode(Enum):
    """A kind of domain; the value is its name on the command line and in JSON."""

    PV64 = "pv64"
    PV32 = "pv32"
    PVH = "pvh"


@dataclass(frozen=True)
class Verdict:
    """Whether an image can boot; `reason` is one sentence, empty if it can."""

    bootable: bool
    reason: str = ""


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


@dataclass(frozen=True)
class PvhParameters:
    """Where a PVH kernel wants to be. Guest physical addresses."""

    phys_entry: int
    pstart: int
    pend: int


class _Unbootable(Exception):
    """Why an image cannot boot in a mode."""


class _NoNote(_Unbootable):
    """A note is missing, which Xen may merely not find."""


def modes(image: Image) -> dict[Mode, Verdict]:
    """Judge each mode as Xen's tool stack would."""
    return {
        Mode.PV64: _verdict(_pv, image, "x86_64"),
        Mode.PV32: _verdict(_pv, image, "i386"),
        Mode.PVH: _verdict(_pvh, image),
    }


def pv_parameters(image: Image) -> PvParameters:
    """Work out where a PV kernel goes; raises `ImageError` if it cannot boot as PV."""
    try:
        return _pv(image, image.machine)
    except _Unbootable as why:
        raise ImageError(f"{image.path}: cannot boot as PV: {_reason(image, why)}") from None


def pvh_parameters(image: Image) -> PvhParameters:
    """Work out where a PVH kernel goes; raises `ImageError` if it cannot boot as PVH."""
    try:
        return _pvh(image)
    except _Unbootable as why:
        raise ImageError(f"{image.path}: cannot boot as PVH: {_reason(image, why)}") from None


def _verdict(judge: Callable[..., object], image: Image, *machine: str) -> Verdict:
    try:
        judge(image, *machine)
    except _Unbootable as why:
        return Verdict(False, _reason(image, why))
    return Verdict(True)


def _reason(image: Image, why: _Unbootable) -> str:
    if isinstance(why, _NoNote) and image.notes.lost:
        return f"{why}; Xen does not find all notes: see `xenemu inspect`"
    return str(why)


def _pv(image: Image, machine: str) -> PvParameters:
    if image.machine != machine:
        raise _Unbootable(f"the image is for {image.machine}, not {machine}")
    _check_has_notes(image)
    _check_pv_notes(image)
    _check_features(image, {Feature.auto_translated_physmap, Feature.supervisor_mode_kernel})
    parameters = _pv_addresses(image)
    entry = "ENTRY" if image.notes.entry is not None else "the ELF's e_entry, without an ENTRY note"
    _check_pv_addresses(parameters, entry, *_FORBIDDEN[machine])
    return parameters


def _pvh(image: Image) -> PvhParameters:
    _check_has_notes(image)
    entry = image.notes.phys32_entry
    if entry is None:
        raise _NoNote("there is no PHYS32_ENTRY note")
    _check_features(image, set())
    parameters = PvhParameters(entry, image.pstart, image.pend)
    if not parameters.pstart <= entry <= parameters.pend or entry >> 32:
        raise _Unbootable(
            f"PHYS32_ENTRY, {entry:#x}, lies outside the kernel"
            f" ({parameters.pstart:#x}-{parameters.pend:#x})"
        )
    return parameters


def _check_has_notes(image: Image) -> None:
    if image.notes.source is not None:
        return
    if image.is_program:
        raise _Unbootable(
            f"this is an ordinary program ({image.type}, run by {image.interpreter}),"
            " not a kernel, and has no Xen notes"
        )
    hint = " (Linux has them with CONFIG_XEN_PV or CONFIG_PVH)" if image.format == "bzImage" else ""
    raise _NoNote(f"there are no Xen notes{hint}")


def _check_pv_notes(image: Image) -> None:
    notes = image.notes
    # DIVERGES: Xen would start a kernel that has only a PVH entry, and it would crash.
    if notes.entry is None and notes.hypercall_page is None:
        raise _NoNote("there is no ENTRY note")
    loader, guest_os = notes.loader or "", notes.guest_os or ""
    if not loader.startswith("generic") and not guest_os.startswith("linux"):
        raise _NoNote(
            f"neither LOADER is generic nor GUEST_OS linux, but {loader or None!r}"
            f" and {guest_os or None!r}"
        )
    if notes.xen_version is None:
        raise _NoNote("there is no XEN_VERSION note")
    if not notes.xen_version.startswith("xen-3.0"):
        raise _Unbootable(f"XEN_VERSION is {notes.xen_version!r}, not 'xen-3.0'")
    if image.machine == "i386" and not notes.pae:
        mode = "is missing" if notes.pae_mode is None else f"is {notes.pae_mode!r}"
        raise _NoNote(f"PAE_MODE {mode}, and Xen runs only i386 kernels with PAE")


def _check_features(image: Image, absent: set[Feature]) -> None:
    if image.notes.unknown_required:
        name = image.notes.unknown_required[0]
        raise _Unbootable(f"FEATURES requires {name!r}, which Xen does not know")
    if Feature.dom0 in image.notes.required:
        raise _Unbootable("FEATURES requires dom0, and this is an unprivileged domain")
    # DIVERGES: Xen's tools let a kernel that needs supervisor_mode_kernel start, and fail.
    for feature in sorted(absent & image.notes.required):
        raise _Unbootable(f"FEATURES requires {feature.name}, which a PV domain does not have")


def _pv_addresses(image: Image) -> PvParameters:
    notes = image.notes
    if notes.paddr_offset is not None and notes.virt_base is None:
        raise _NoNote("PADDR_OFFSET is given, but VIRT_BASE is not")
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
        raise _Unbootable(f"{kernel} wraps around the address space")
    if p.virt_base > p.virt_kstart:
        raise _Unbootable(f"{kernel} starts below VIRT_BASE, {p.virt_base:#x}")
    if p.virt_base < high and p.virt_kend > low:
        raise _Unbootable(f"{kernel} reaches into {low:#x}-{high:#x}, which no kernel can have")
    if (p.virt_base | p.virt_kstart) & PAGE_MASK:
        raise _Unbootable(f"VIRT_BASE, {p.virt_base:#x}, or {kernel} is not aligned to a page")
    if not p.virt_kstart <= p.virt_entry <= p.virt_kend:
        raise _Unbootable(f"{entry}, {p.virt_entry:#x}, lies outside {kernel}")
    # DIVERGES: Xen takes any page of the domain, and rounds INIT_P2M down.
    if p.virt_hypercall is not None and not p.virt_kstart <= p.virt_hypercall < p.virt_kend:
        raise _Unbootable(f"HYPERCALL_PAGE, {p.virt_hypercall:#x}, lies outside {kernel}")
    if p.p2m_base is not None and p.virt_kstart <= p.p2m_base < p.virt_kend:
        raise _Unbootable(f"INIT_P2M, {p.p2m_base:#x}, lies inside {kernel}")
    if p.p2m_base is not None and low <= p.p2m_base < high:
        raise _Unbootable(f"INIT_P2M, {p.p2m_base:#x}, is where no kernel can have anything")
    if p.p2m_base is not None and p.p2m_base & PAGE_MASK:
        raise _Unbootable(f"INIT_P2M, {p.p2m_base:#x}, is not aligned to a page")
