"""Linux's own entries, by its boot protocol: 32-bit without paging, and 64-bit.

A bzImage is entered at its first byte after the set-up sectors (32-bit), or 0x200 bytes later
(64-bit). There its own decompressor runs, and with it KASLR. A vmlinux is entered at e_entry. (R)SI
leads to boot_params.

In Linux: Documentation/arch/x86/boot.rst, arch/x86/boot/compressed/head_64.S and head_32.S,
arch/x86/kernel/head_64.S and head_32.S
"""

from __future__ import annotations

import hashlib
import re
from typing import Final

from xenemu.entries import flat, zero_page
from xenemu.entries.entry import BootEntry
from xenemu.entries.flat import CODE64
from xenemu.entries.judging import Unbootable
from xenemu.entries.platform import PVH_PLATFORM
from xenemu.entries.zero_page import ZeroPage
from xenemu.errors import FitError, UsageError
from xenemu.hv.building import Data, DomainConfig
from xenemu.hv.cpu import Reg, Seg
from xenemu.hv.current import Current
from xenemu.image import Image
from xenemu.pvh import start_info
from xenemu.pvh.builder import Placed, Room
from xenemu.pvh.layout import BIOS_END, Kernel, low_ram
from xenemu.pvh.paging import cpu_of
from xenemu.pvh.personality import CODE32, FLAT_LIMIT, start_vcpu
from xenemu.pvh.state import StartState, pvh
from xenemu.records import dataclass
from xenemu.x86.paging import PAGE_SIZE

ENTRY64: Final = 0x200  # of a bzImage, from where it is loaded
BANNER: Final = re.compile(rb"Linux version \d")  # every Linux has it

# In low memory, which no kernel takes before it has read all this: boot_params, and after it, each
# at its page, the GDT, the page tables of the 64-bit entry, and the rest.
BOOT_PARAMS: Final = 0x90000
GDT: Final = BOOT_PARAMS + PAGE_SIZE
TABLES: Final = GDT + PAGE_SIZE
REST: Final = TABLES + 6 * PAGE_SIZE
GIB_MAPPED: Final = 4  # with 6 pages of tables
LOW_END: Final = 0x9F000

SEED_BYTES: Final = 32


@dataclass(frozen=True)
class LinuxKernel(Kernel):
    """Where Linux goes, and the boot_params that its file begins."""

    header: bytes = b""
    code: int = CODE32  # the attributes of CS


def _judge32(image: Image) -> LinuxKernel:
    if image.bzimage:
        return _judge_bzimage(image, 0, CODE32)
    if _is_linux(image) and image.machine == "x86_64":
        raise Unbootable("an x86-64 vmlinux has no 32-bit entry of Linux's; its bzImage has one")
    return _judge_vmlinux(image, CODE32)


def _judge64(image: Image) -> LinuxKernel:
    if image.bzimage:
        header = ZeroPage.of_bzimage(image.bzimage.file)
        flags = header.get("xloadflags") if _has(header, zero_page.HAS_XLOADFLAGS) else 0
        if not flags & zero_page.XLF_KERNEL_64:
            raise Unbootable("by its xloadflags, the bzImage has no 64-bit entry")
        return _judge_bzimage(image, ENTRY64, CODE64)
    if _is_linux(image) and image.machine == "i386":
        raise Unbootable("an i386 vmlinux has no 64-bit entry")
    return _judge_vmlinux(image, CODE64)


def _has(header: ZeroPage, version: int) -> bool:
    return header.get("version") >= version


def _is_linux(image: Image) -> bool:
    return image.notes.guest_os == "linux" or BANNER.search(image.elf) is not None


def _judge_bzimage(image: Image, offset: int, code: int) -> LinuxKernel:
    """Work out where a bzImage goes; `offset` is that of its entry."""
    assert image.bzimage
    header = ZeroPage.of_bzimage(image.bzimage.file)
    if not header.get("loadflags") & zero_page.LOADED_HIGH:
        raise Unbootable("by its loadflags, this is a zImage, which is loaded below 1 MiB")
    start, size = header.get("code32_start"), image.pend - image.pstart
    if _has(header, zero_page.HAS_INIT_SIZE):
        size = header.get("init_size")
        if header.get("relocatable_kernel"):
            start = header.get("pref_address")
    size = max(size, len(image.bzimage.code))
    if start < BIOS_END or start + size > FLAT_LIMIT:
        raise Unbootable(f"the bzImage wants to be at {start:#x}-{start + size:#x}")
    low_rsdp = not _has(header, zero_page.HAS_RSDP)
    return LinuxKernel(start, start + size, start + offset, low_rsdp, bytes(header.data), code)


def _judge_vmlinux(image: Image, code: int) -> LinuxKernel:
    """Work out where a vmlinux goes."""
    if not _is_linux(image):
        raise Unbootable("this is not Linux: neither a bzImage, nor an ELF that says so")
    start, end, entry = image.pstart, image.pend, image.entry
    if not start <= entry < end:
        raise Unbootable(f"e_entry, {entry:#x}, lies outside the kernel ({start:#x}-{end:#x})")
    if start < BIOS_END or end > FLAT_LIMIT:
        raise Unbootable(f"the kernel wants to be at {start:#x}-{end:#x}")
    return LinuxKernel(start, end, entry, header=bytes(ZeroPage.of_vmlinux().data), code=code)


def _place(image: Image, kernel: LinuxKernel, config: DomainConfig, room: Room) -> Placed:
    """Place the kernel where it wants to be, the initrd high, and all else below 1 MiB.

    ImageError, FitError or UsageError if that cannot be.
    """
    if config.modules:
        raise UsageError("Linux's own entries take one module, its --initrd; PVH takes more")
    page = ZeroPage(bytearray(kernel.header))
    config.check_cmdline("this kernel", page.get("cmdline_size"))
    ram = low_ram(room.memory)
    if kernel.end > ram.stop:
        raise FitError(
            f"{image.path}: the kernel takes {kernel.start:#x}-{kernel.end:#x} while it starts, and"
            f" there is RAM only up to {ram.stop:#x}: give the domain more memory"
        )
    initrd = _initrd_address(image, kernel, len(config.initrd), page, ram)
    page.put(
        type_of_loader=zero_page.LOADER,
        code32_start=kernel.start,
        ramdisk_image=initrd,
        ramdisk_size=len(config.initrd),
        cmd_line_ptr=REST,
    )
    page.put_e820(room.e820)
    if _has(page, zero_page.HAS_RSDP):
        page.put(acpi_rsdp_addr=room.rsdp)
    rest = _rest(page, config, room, initrd)
    pieces: list[tuple[int, Data]] = [
        *_kernel_pieces(image, kernel),
        (initrd, config.initrd),
        (BOOT_PARAMS, page.data),
        (GDT, flat.gdt(kernel.code)),
        (TABLES, flat.identity_tables(TABLES, GIB_MAPPED)),
        (REST, rest),
    ]
    return Placed(pieces, StartState(kernel.entry, BOOT_PARAMS))


def _kernel_pieces(image: Image, kernel: LinuxKernel) -> list[tuple[int, Data]]:
    if image.bzimage:
        return [(kernel.start, image.bzimage.code)]
    return list(image.contents())


def _initrd_address(
    image: Image, kernel: LinuxKernel, size: int, page: ZeroPage, ram: range
) -> int:
    """As high as the kernel and the RAM allow, because Linux's loaders put it there."""
    if not size:
        return 0
    start = min(ram.stop, page.get("initrd_addr_max") + 1) - size & -PAGE_SIZE
    if start < kernel.end:
        raise FitError(
            f"{image.path}: there is no room for an initrd of {size} bytes after the kernel, which"
            f" takes {kernel.start:#x}-{kernel.end:#x}: give the domain more memory"
        )
    return start


def _rest(page: ZeroPage, config: DomainConfig, room: Room, initrd: int) -> bytes:
    """What boot_params lead to: the command line, setup_data, and for subarch xen start_info."""
    rest = bytearray(config.cmdline + b"\0")

    def next_address() -> int:
        rest.extend(bytes(-len(rest) % 8))
        return REST + len(rest)

    if _has(page, zero_page.HAS_SETUP_DATA):
        page.put(setup_data=next_address())
        rest.extend(zero_page.setup_data(zero_page.SETUP_RNG_SEED, _rng_seed(config)))
    if config.subarch is not None:
        if not _has(page, zero_page.HAS_SUBARCH):
            raise UsageError("--subarch: this kernel's boot protocol is older than 2.07")
        page.put(hardware_subarch=config.subarch)
    if config.subarch == zero_page.SUBARCHES["xen"]:
        at = next_address()
        modules = [start_info.LoadedModule(initrd, len(config.initrd), None)] if initrd else []
        page.put(hardware_subarch_data=at)
        rest.extend(start_info.encode(at, config.cmdline, modules, room.rsdp, room.e820))
    if REST + len(rest) > LOW_END:
        raise FitError(f"the command line and the like take {len(rest)} bytes, which is too long")
    return bytes(rest)


def _rng_seed(config: DomainConfig) -> bytes:
    """What Linux mixes into its entropy, by --rng-seed."""
    seed = config.rng_seed.to_bytes(8, "little")
    return hashlib.blake2b(seed, digest_size=SEED_BYTES, person=b"setup_data").digest()


def _start32(current: Current) -> None:
    """Load the registers of the 32-bit entry: flat segments, no paging, ESI to boot_params."""
    start_vcpu(current)
    _load(current, CODE32)


def _start64(current: Current) -> None:
    """Load the registers of the 64-bit entry: identity tables, RSI to boot_params."""
    start_vcpu(current)
    cpu_of(current).enter_long_mode(TABLES)
    _load(current, CODE64)


def _load(current: Current, code: int) -> None:
    cpu, entry = current.cpu, pvh(current).entry
    assert entry is not None
    cpu.regs[Reg.RBX], cpu.regs[Reg.RSI] = 0, entry.info
    flat.load_segments(current, code, GDT, (Seg.DS, Seg.ES, Seg.SS))


ENTRIES = [
    BootEntry[LinuxKernel, Room, Placed](
        "linux32", "linux32", PVH_PLATFORM, _judge32, _place, _start32, zero_page=True
    ),
    BootEntry[LinuxKernel, Room, Placed](
        "linux64", "linux64", PVH_PLATFORM, _judge64, _place, _start64, zero_page=True
    ),
]
