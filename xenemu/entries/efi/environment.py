"""What a program of EFI's begins in: the firmware in the guest's memory, and the first registers.

UEFI specification 2.10, section 2.3.4.
"""

from __future__ import annotations

import hashlib
from pathlib import PurePath
from typing import Final

from xenemu.entries import flat
from xenemu.entries.efi import device_path, devices, event_services, programs, tables
from xenemu.entries.efi.abi import (
    ACPI_20_TABLE,
    BOOT_STUBS,
    DEVICE_PATH,
    LOAD_FILE2,
    RETURNS,
    RNG,
    RT_PROPERTIES_TABLE,
    RUNTIME_SERVICES,
    STUB_SIZE,
    TEXT_INPUT,
    TEXT_OUTPUT,
    MemoryType,
)
from xenemu.entries.efi.call import EfiError, enter
from xenemu.entries.efi.dispatch import Efi
from xenemu.entries.efi.memory_map import MemoryMap
from xenemu.entries.efi.state import Event, Firmware, Places, handle_of
from xenemu.entries.efi.volume import SEPARATOR
from xenemu.entries.efi.width import WIDTHS, X64, Width
from xenemu.errors import FitError, UsageError
from xenemu.hv.building import Data, DomainConfig
from xenemu.hv.cpu import Reg, Seg
from xenemu.hv.current import Current
from xenemu.image import Image
from xenemu.pvh.builder import Placed, Room
from xenemu.pvh.layout import low_ram
from xenemu.pvh.paging import cpu_of
from xenemu.pvh.personality import start_vcpu
from xenemu.pvh.state import StartState, pvh, pvh_domain
from xenemu.x86 import flags
from xenemu.x86.paging import PAGE_MASK, PAGE_SHIFT, PAGE_SIZE

STACK_PAGES: Final = 64  # 128 KiB at least, by the specification
GIB: Final = 1 << 30
SEED_BYTES: Final = 32


class Placer:
    """Gives out memory before the guest runs, from the top of low RAM down."""

    def __init__(self, image: Image, room: Room) -> None:
        self.memory = MemoryMap.of_e820(room.e820)
        self.below = low_ram(room.memory).stop
        self._path = image.path
        self.name = PurePath(image.path).name

    def __call__(self, kind: MemoryType, size: int) -> int:
        """The address of whole pages for `size` bytes; FitError without any."""
        pages = size + PAGE_MASK >> PAGE_SHIFT
        at = self.memory.allocate(kind, pages, self.below)
        if at is None:
            raise self.misfit(size)
        return at

    def misfit(self, size: int) -> FitError:
        """That there is no room for so many bytes."""
        return FitError(
            f"{self._path}: there is no room for {size} bytes below {self.below:#x}: give the"
            " domain more memory"
        )

    def at(self, kind: MemoryType, start: int, size: int, what: str) -> None:
        """Give out whole pages where they must be; FitError if something else is there."""
        end = start + size + PAGE_MASK & ~PAGE_MASK
        if not self.memory.is_all(start, end, {MemoryType.CONVENTIONAL}):
            raise FitError(
                f"{self._path}: {what} would lie at {start:#x}-{end:#x}, and that is not all free"
                " RAM: give the domain more memory"
            )
        self.memory.take(start, end - start >> PAGE_SHIFT, kind)


def check_config(config: DomainConfig) -> None:
    """UsageError if EFI cannot have what is asked for."""
    if config.modules:
        raise UsageError("EFI has one module, the --initrd; PVH takes more")


def place_efi(
    placer: Placer,
    room: Room,
    config: DomainConfig,
    image: range,
    start: StartState,
    width: Width,
    pieces: list[tuple[int, Data]],
) -> Placed:
    """Put the firmware beside `pieces`, in which a program is at `image` that begins at `start`."""
    places = _places(placer, room, width)
    options = _load_options(config.cmdline)
    options_at = placer(MemoryType.LOADER_DATA, len(options)) if options else 0
    firmware = _firmware(placer, places, config, width)
    writing = programs.Writing(firmware)
    try:
        if config.efi_root is not None:
            devices.add_volume(writing, config.efi_root)
        firmware.image_handle = programs.add(
            writing,
            image,
            start.ip - image.start,
            MemoryType.LOADER_CODE,
            device=firmware.volume_handle,
            path=device_path.file_path(SEPARATOR + placer.name) if firmware.volume else b"",
            options=range(options_at, options_at + len(options)),
        )
    except EfiError:  # there is no page left
        raise placer.misfit(PAGE_SIZE) from None
    firmware.programs[firmware.image_handle].started = True
    own: list[tuple[int, Data]] = [
        (places.runtime_code, tables.stubs(RUNTIME_SERVICES)),
        (places.runtime_data, tables.runtime_data(firmware)),
        (places.boot_code, tables.stubs(BOOT_STUBS)),
        (places.boot_data, tables.boot_data(firmware, flat.gdt(width.code))),
        (options_at, options),
    ]
    if places.page_tables:
        own.append((places.page_tables, flat.identity_tables(places.page_tables, _span(room))))
    return Placed([*pieces, *own, *writing.pieces], start, Efi(firmware))


def _places(placer: Placer, room: Room, width: Width) -> Places:
    tables_size = (2 + _span(room)) * PAGE_SIZE
    return Places(
        runtime_code=placer(MemoryType.RUNTIME_SERVICES_CODE, PAGE_SIZE),
        runtime_data=placer(MemoryType.RUNTIME_SERVICES_DATA, PAGE_SIZE),
        boot_code=placer(MemoryType.BOOT_SERVICES_CODE, len(tables.stubs(BOOT_STUBS))),
        boot_data=placer(MemoryType.BOOT_SERVICES_DATA, PAGE_SIZE),
        page_tables=placer(MemoryType.BOOT_SERVICES_DATA, tables_size) if width is X64 else 0,
        stack=placer(MemoryType.BOOT_SERVICES_DATA, STACK_PAGES * PAGE_SIZE)
        + STACK_PAGES * PAGE_SIZE,
        rsdp=room.rsdp,
    )


def _firmware(placer: Placer, places: Places, config: DomainConfig, width: Width) -> Firmware:
    """What there is at the start: the console, the image, and an initrd and random numbers."""
    firmware = Firmware(
        width.word, places, placer.memory, bytes(config.initrd), _seed(config),
        {places.boot_code: places.boot_code, places.runtime_code: places.runtime_code},
        places.runtime_code, places.runtime_data,
    )  # fmt: skip
    firmware.wait_for_key = event_services.EVENT_BASE
    firmware.events[firmware.wait_for_key] = Event(0)
    firmware.next_event = 1
    at = places.boot_data
    firmware.console_handle = handle_of(
        firmware, {TEXT_INPUT: at + tables.CON_IN, TEXT_OUTPUT: at + tables.CON_OUT}
    )
    handle_of(firmware, {RNG: at + tables.RNG})
    if config.initrd:
        interfaces = {DEVICE_PATH: at + tables.INITRD_PATH, LOAD_FILE2: at + tables.LOAD_FILE2}
        handle_of(firmware, interfaces)
    firmware.tables[ACPI_20_TABLE] = places.rsdp
    firmware.tables[RT_PROPERTIES_TABLE] = places.runtime_data + tables.PROPERTIES
    return firmware


def _load_options(cmdline: bytes) -> bytes:
    """The command line as EFI's shell would give it; nothing for an empty one."""
    text = cmdline.decode("utf-8", "replace")
    return (text + "\0").encode("utf-16-le") if text else b""


def _seed(config: DomainConfig) -> bytes:
    """What the protocol for random numbers begins with, by --rng-seed."""
    seed = config.rng_seed.to_bytes(8, "little")
    return hashlib.blake2b(seed, digest_size=SEED_BYTES, person=b"efi rng").digest()


def _span(room: Room) -> int:
    """The GiB to map: all RAM, and 4 at least."""
    end = max(start + size for start, size, _ in room.e820)
    return max(4, (end + GIB - 1) // GIB)


def start_efi(current: Current) -> None:
    """Load the registers of a program's first instruction, which gets the usual two arguments.

    A third one, to whom it means something, is where the StartState says that data are.
    """
    start_vcpu(current)
    cpu, efi, entry = cpu_of(current), pvh_domain(current).firmware, pvh(current).entry
    assert isinstance(efi, Efi) and entry is not None
    places, width = efi.firmware.places, WIDTHS[efi.firmware.width]
    if width is X64:
        cpu.enter_long_mode(places.page_tables, sse=True)
    cpu.rflags |= flags.IF
    segments = (Seg.DS, Seg.ES, Seg.FS, Seg.GS, Seg.SS)
    flat.load_segments(current, width.code, places.boot_data + tables.GDT, segments)
    cpu.regs[Reg.RBX], cpu.regs[Reg.RSP] = 0, places.stack
    back = places.boot_code + BOOT_STUBS.index(RETURNS[0]) * STUB_SIZE
    handle, system_table = efi.firmware.image_handle, places.runtime_data + tables.SYSTEM_TABLE
    enter(current, width, entry.ip, back, handle, system_table, entry.info)
