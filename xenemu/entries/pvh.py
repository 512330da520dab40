"""Xen's PVH entry: flat in 32 bits, unpaged; EBX leads to hvm_start_info.

In Xen: docs/misc/pvh.pandoc, tools/libs/guest/xg_dom_x86.c (bootlate_hvm),
tools/libs/light/libxl_dom.c
"""

from __future__ import annotations

from xenemu.entries.entry import BootEntry
from xenemu.entries.judging import NoNote, Unbootable, check_features, check_has_notes
from xenemu.entries.platform import PVH_PLATFORM
from xenemu.hv.building import DomainConfig, Module, pages, unpack_module
from xenemu.image import Feature, Image
from xenemu.pvh import start_info
from xenemu.pvh.builder import Placed, Room
from xenemu.pvh.layout import Kernel, PvhLayout, lay_out
from xenemu.pvh.personality import start_vcpu
from xenemu.pvh.start_info import LoadedModule
from xenemu.pvh.state import StartState
from xenemu.x86.paging import PAGE_SHIFT


def _judge(image: Image) -> Kernel:
    """Work out where a PVH kernel goes."""
    check_has_notes(image)
    notes = image.notes
    if notes.phys32_entry is None:
        raise NoNote("there is no PHYS32_ENTRY note")
    check_features(image, set())
    # Where libxl puts the RSDP: an old Linux looks for it in low memory.
    unrestricted = Feature.linux_rsdp_unrestricted in notes.supported
    low_rsdp = notes.guest_os == "linux" and not unrestricted
    kernel = Kernel(image.pstart, image.pend, notes.phys32_entry, low_rsdp)
    if not kernel.start <= kernel.entry <= kernel.end or kernel.entry >> 32:
        raise Unbootable(
            f"PHYS32_ENTRY, {kernel.entry:#x}, lies outside the kernel"
            f" ({kernel.start:#x}-{kernel.end:#x})"
        )
    return kernel


def _place(image: Image, kernel: Kernel, config: DomainConfig, room: Room) -> Placed:
    """Place the kernel, its modules and start_info; FitError if they do not fit."""
    modules = _modules(config)
    unplaced = PvhLayout(0, (0,) * len(modules), 0)
    size = len(_start_info(unplaced, config, modules, room))
    layout = lay_out(image, kernel, [len(module.data) for module in modules], size, room.ram)
    pieces = [
        *((paddr + layout.offset, data) for paddr, data in image.contents()),
        *((at, module.data) for at, module in zip(layout.modules, modules, strict=True)),
        (layout.start_info, _start_info(layout, config, modules, room)),
    ]
    return Placed(pieces, StartState(kernel.entry + layout.offset, layout.start_info))


def _modules(config: DomainConfig) -> list[Module]:
    """The initrd, if there is one, and the modules after it, unpacked."""
    initrd = [Module(config.initrd)] if config.initrd else []
    return [
        Module(unpack_module(module.data), module.cmdline) for module in [*initrd, *config.modules]
    ]


def _start_info(
    layout: PvhLayout, config: DomainConfig, modules: list[Module], room: Room
) -> bytes:
    loaded = [
        # As in Xen, a module is told to have whole pages.
        LoadedModule(paddr, pages(len(module.data)) << PAGE_SHIFT, module.cmdline)
        for paddr, module in zip(layout.modules, modules, strict=True)
    ]
    return start_info.encode(layout.start_info, config.cmdline, loaded, room.rsdp, room.e820)


ENTRIES = [BootEntry("pvh", "pvh", PVH_PLATFORM, _judge, _place, start_vcpu)]
