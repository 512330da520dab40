"""The entries of EFI: a PE program, and Linux's handover with boot_params, in either width.

A kernel of 64 bits may be started by an EFI of 32 bits, which is called mixed mode: it goes back to
32-bit code for each of its calls. It has entries of its own for that.

UEFI specification 2.10, section 2.3.4. In Linux: Documentation/arch/x86/boot.rst (EFI handover
protocol)
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Final

from xenemu.entries import zero_page
from xenemu.entries.efi.abi import MemoryType
from xenemu.entries.efi.environment import Placer, check_config, place_efi, start_efi
from xenemu.entries.efi.width import IA32, WIDTHS, X64, Width
from xenemu.entries.entry import BootEntry
from xenemu.entries.judging import Unbootable
from xenemu.entries.platform import PVH_PLATFORM
from xenemu.entries.zero_page import ZeroPage
from xenemu.errors import FitError, ImageError
from xenemu.hv.building import DomainConfig
from xenemu.hv.cpu import Reg
from xenemu.hv.current import Current
from xenemu.image import Image, pe
from xenemu.image.bzimage import BzImage
from xenemu.pvh.builder import Placed, Room
from xenemu.pvh.layout import BIOS_END, Kernel
from xenemu.pvh.personality import FLAT_LIMIT
from xenemu.pvh.state import StartState
from xenemu.records import dataclass


@dataclass(frozen=True)
class Program(Kernel):
    """A PE program. The firmware chooses where it goes: addresses are from there."""

    pe: pe.Pe | None = None
    width: Width = X64


def _judge(image: Image) -> Program:
    program = _pe(image)
    widths = {width.machine: width for width in WIDTHS.values()}
    return Program(0, program.size, program.entry, pe=program, width=widths[program.machine])


def _judge_mixed(image: Image) -> Program:
    program = _pe(image)
    if program.machine == IA32.machine:
        raise Unbootable("the PE program has 32 bits itself: by efi, it gets an EFI of 32 bits")
    entry = program.compat.get(IA32.machine)
    if entry is None:
        raise Unbootable(
            "the PE program has no entry for 32-bit EFI (Linux has one with CONFIG_EFI_MIXED)"
        )
    return Program(0, program.size, entry, pe=program, width=IA32)


def _pe(image: Image) -> pe.Pe:
    """The program that an image is; Unbootable if it is none for EFI."""
    program = image.program
    if image.bzimage:
        try:
            program = pe.parse(image.bzimage.file)
        except ImageError as fault:
            raise Unbootable(str(fault)) from None
    elif program is None:
        raise Unbootable("this is an ELF, and has no PE header; Linux's bzImage has one")
    if program is None:
        raise Unbootable("there is no PE header (Linux has one with CONFIG_EFI_STUB)")
    if program.subsystem != pe.EFI_APPLICATION:
        raise Unbootable(
            f"the PE program is for another subsystem ({program.kind}): EFI starts applications"
        )
    return program


def _place(image: Image, kernel: Program, config: DomainConfig, room: Room) -> Placed:
    """Place the firmware and the program; FitError or UsageError if that cannot be."""
    assert kernel.pe is not None
    check_config(config)
    placer = Placer(image, room)
    at = placer(MemoryType.LOADER_CODE, kernel.pe.size)
    try:
        loaded = kernel.pe.load(at)
    except ImageError as fault:
        raise ImageError(f"{image.path}: {fault}") from None
    start = StartState(at + kernel.entry, 0)
    span = range(at, at + kernel.pe.size)
    placed = place_efi(placer, room, config, span, start, kernel.width, [(at, loaded)])
    if image.bzimage:
        _check_room_to_unpack(image.path, image.bzimage, placer)
    return placed


def _check_room_to_unpack(path: str, bzimage: BzImage, placer: Placer) -> None:
    """FitError if Linux's EFI stub cannot have the memory that the kernel takes while it starts.

    Some Linux (6.1 at least) does not see that, and unpacks itself over whatever is there.
    """
    header = ZeroPage.of_bzimage(bzimage.file)
    if header.get("version") < zero_page.HAS_INIT_SIZE:
        return
    size, lowest = header.get("init_size"), header.get("pref_address")
    align = max(1, header.get("kernel_alignment"))
    for region in placer.memory.regions:
        start = (max(region.start, lowest) + align - 1) // align * align
        if region.type == MemoryType.CONVENTIONAL and start + size <= region.end:
            return
    raise FitError(
        f"{path}: the kernel takes {size} bytes from {lowest:#x} or above while it starts,"
        " and EFI leaves no such room: give the domain more memory"
    )


# ---- Linux's handover ----


@dataclass(frozen=True)
class Handover(Kernel):
    """A bzImage where it wants to be, and the boot_params that its file begins."""

    header: bytes = b""
    width: Width = X64


@dataclass(frozen=True)
class _Flavour:
    """One of the two handover entries: its bit in xloadflags, and where it is."""

    width: Width
    flag: int
    offset: int  # from handover_offset


HANDOVER64: Final = _Flavour(X64, zero_page.XLF_EFI_HANDOVER_64, 0x200)
HANDOVER32: Final = _Flavour(IA32, zero_page.XLF_EFI_HANDOVER_32, 0)


def _judge_handover(flavour: _Flavour, image: Image) -> Handover:
    if not image.bzimage:
        what = "a PE program" if image.program else "an ELF"
        raise Unbootable(f"this is {what}; Linux's bzImage has a handover entry")
    header = ZeroPage.of_bzimage(image.bzimage.file)
    new = header.get("version") >= zero_page.HAS_XLOADFLAGS
    if not new or not header.get("xloadflags") & flavour.flag:
        bits = flavour.width.bits
        raise Unbootable(f"by its xloadflags, the bzImage has no {bits}-bit handover entry")
    start = header.get("pref_address")
    size = max(header.get("init_size"), len(image.bzimage.code))
    offset = header.get("handover_offset") + flavour.offset
    if start < BIOS_END or start + size > FLAT_LIMIT:
        raise Unbootable(f"the bzImage wants to be at {start:#x}-{start + size:#x}")
    if offset >= len(image.bzimage.code):
        at = offset - flavour.offset
        raise Unbootable(f"handover_offset, {at:#x}, lies outside the bzImage")
    return Handover(
        start, start + size, start + offset, header=bytes(header.data), width=flavour.width
    )


def _place_handover(image: Image, kernel: Handover, config: DomainConfig, room: Room) -> Placed:
    """Place the firmware, the kernel where it wants to be, and what its boot_params lead to."""
    assert image.bzimage is not None
    check_config(config)
    page = ZeroPage(bytearray(kernel.header))
    config.check_cmdline("this kernel", page.get("cmdline_size"))
    placer, size = Placer(image, room), kernel.end - kernel.start
    placer.at(MemoryType.LOADER_CODE, kernel.start, size, "the kernel")
    boot_params = placer(MemoryType.LOADER_DATA, len(page.data))
    cmdline = placer(MemoryType.LOADER_DATA, len(config.cmdline) + 1)
    initrd = placer(MemoryType.LOADER_DATA, len(config.initrd)) if config.initrd else 0
    page.put(
        type_of_loader=zero_page.LOADER,
        code32_start=kernel.start,
        cmd_line_ptr=cmdline,
        ramdisk_image=initrd,
        ramdisk_size=len(config.initrd),
    )
    return place_efi(
        placer,
        room,
        config,
        range(kernel.start, kernel.end),
        StartState(kernel.entry, boot_params),
        kernel.width,
        [
            (kernel.start, image.bzimage.code),
            (boot_params, page.data),
            (cmdline, config.cmdline + b"\0"),
            (initrd, config.initrd),
        ],
    )


def _start_handover64(current: Current) -> None:
    """Call the 64-bit handover entry: its arguments are where C has them in Linux."""
    start_efi(current)
    regs = current.cpu.regs
    regs[Reg.RDI], regs[Reg.RSI], regs[Reg.RDX] = regs[Reg.RCX], regs[Reg.RDX], regs[Reg.R8]


def _program(name: str, judge: Callable[[Image], Program]) -> BootEntry[Program, Room, Placed]:
    return BootEntry(name, name, PVH_PLATFORM, judge, _place, start_efi, efi=True)


def _handover(
    name: str, flavour: _Flavour, start: Callable[[Current], None]
) -> BootEntry[Handover, Room, Placed]:
    judge = partial(_judge_handover, flavour)
    return BootEntry(name, name, PVH_PLATFORM, judge, _place_handover, start, efi=True)


ENTRIES = [
    _program("efi", _judge),
    _program("efi32", _judge_mixed),
    _handover("efi-handover", HANDOVER64, _start_handover64),
    _handover("efi-handover32", HANDOVER32, start_efi),
]
