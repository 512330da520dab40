"""The entries of EFI: a PE program, and Linux's handover with boot_params, both in 64-bit code.

UEFI specification 2.10, section 2.3.4. In Linux: Documentation/arch/x86/boot.rst (EFI handover
protocol)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from xenemu.boot import zero_page
from xenemu.boot.efi.abi import MemoryType
from xenemu.boot.efi.environment import Placer, check_config, place_efi, start_efi
from xenemu.boot.entry import BootEntry
from xenemu.boot.judging import Unbootable
from xenemu.boot.platform import PVH_PLATFORM
from xenemu.boot.zero_page import ZeroPage
from xenemu.errors import FitError, ImageError
from xenemu.hv.building import DomainConfig
from xenemu.hv.cpu import Reg
from xenemu.hv.current import Current
from xenemu.image import Image, pe
from xenemu.pvh.builder import Placed, Room
from xenemu.pvh.layout import BIOS_END, Kernel
from xenemu.pvh.personality import FLAT_LIMIT
from xenemu.pvh.state import StartState, pvh

ENTRY64: Final = 0x200  # what a 64-bit handover entry lies after its offset


@dataclass(frozen=True)
class Program(Kernel):
    """A PE program. The firmware chooses where it goes: addresses are from there."""

    pe: pe.Pe | None = None


def _judge(image: Image) -> Program:
    if not image.bzimage:
        raise Unbootable("this is an ELF, and has no PE header; Linux's bzImage has one")
    try:
        program = pe.parse(image.bzimage.file)
    except ImageError as fault:
        raise Unbootable(str(fault)) from None
    if program is None:
        raise Unbootable("there is no PE header (Linux has one with CONFIG_EFI_STUB)")
    if program.machine != "x86_64":
        raise Unbootable(f"the PE program is for {program.machine}, and this EFI has 64 bits")
    if program.subsystem not in pe.EFI_SUBSYSTEMS:
        raise Unbootable(f"the PE program is for subsystem {program.subsystem}, which is not EFI")
    return Program(0, program.size, program.entry, pe=program)


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
    start = StartState(at + kernel.pe.entry, 0)
    span = range(at, at + kernel.pe.size)
    placed = place_efi(placer, room, config, span, start, [(at, loaded)])
    _check_room_to_unpack(image, placer)
    return placed


def _check_room_to_unpack(image: Image, placer: Placer) -> None:
    """FitError if Linux's EFI stub cannot have the memory that the kernel takes while it starts.

    Some Linux (6.1 at least) does not see that, and unpacks itself over whatever is there.
    """
    assert image.bzimage is not None
    header = ZeroPage.of_bzimage(image.bzimage.file)
    if header.get("version") < zero_page.HAS_INIT_SIZE:
        return
    size, lowest = header.get("init_size"), header.get("pref_address")
    align = max(1, header.get("kernel_alignment"))
    for region in placer.memory.regions:
        start = (max(region.start, lowest) + align - 1) // align * align
        if region.type == MemoryType.CONVENTIONAL and start + size <= region.end:
            return
    raise FitError(
        f"{image.path}: the kernel takes {size} bytes from {lowest:#x} or above while it starts,"
        " and EFI leaves no such room: give the domain more with --memory"
    )


def _start(current: Current) -> None:
    """Call the program's entry, as a function in x64 with two arguments."""
    firmware = start_efi(current)
    regs = current.cpu.regs
    regs[Reg.RCX], regs[Reg.RDX] = firmware.image_handle, firmware.runtime_data


# ---- Linux's handover ----


@dataclass(frozen=True)
class Handover(Kernel):
    """A bzImage where it wants to be, and the boot_params that its file begins."""

    header: bytes = b""


def _judge_handover(image: Image) -> Handover:
    if not image.bzimage:
        raise Unbootable("this is an ELF; Linux's bzImage has a handover entry")
    header = ZeroPage.of_bzimage(image.bzimage.file)
    new = header.get("version") >= zero_page.HAS_XLOADFLAGS
    if not new or not header.get("xloadflags") & zero_page.XLF_EFI_HANDOVER_64:
        raise Unbootable("by its xloadflags, the bzImage has no 64-bit handover entry")
    start = header.get("pref_address")
    size = max(header.get("init_size"), len(image.bzimage.code))
    offset = header.get("handover_offset") + ENTRY64
    if start < BIOS_END or start + size > FLAT_LIMIT:
        raise Unbootable(f"the bzImage wants to be at {start:#x}-{start + size:#x}")
    if offset >= len(image.bzimage.code):
        raise Unbootable(f"handover_offset, {offset - ENTRY64:#x}, lies outside the bzImage")
    return Handover(start, start + size, start + offset, header=bytes(header.data))


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
        [
            (kernel.start, image.bzimage.code),
            (boot_params, page.data),
            (cmdline, config.cmdline + b"\0"),
            (initrd, config.initrd),
        ],
    )


def _start_handover(current: Current) -> None:
    """Call the handover entry, as a function of C's in Linux with three arguments."""
    firmware, entry = start_efi(current), pvh(current).entry
    assert entry is not None
    regs = current.cpu.regs
    regs[Reg.RDI], regs[Reg.RSI] = firmware.image_handle, firmware.runtime_data
    regs[Reg.RDX] = entry.info


ENTRIES = [
    BootEntry[Program, Room, Placed]("efi", "efi", PVH_PLATFORM, _judge, _place, _start),
    BootEntry[Handover, Room, Placed](
        "efi-handover", "efi-handover", PVH_PLATFORM, _judge_handover, _place_handover,
        _start_handover,
    ),
]  # fmt: skip
