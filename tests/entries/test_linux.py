"""entries/linux: what Linux's boot protocol wants of who starts a kernel."""

from __future__ import annotations

import gzip
import struct

import pytest

from elfwriter import KERNEL, PV_NOTES, Phdr, bzimage, elf, kernel, note
from fakes import FakeNativeCpu
from xenemu.entries import ENTRIES
from xenemu.entries.flat import BOOT_CS, BOOT_DS
from xenemu.entries.linux import BOOT_PARAMS, GDT
from xenemu.entries.zero_page import SETUP_RNG_SEED, ZeroPage
from xenemu.errors import FitError, ImageError, UsageError
from xenemu.hv.building import DomainConfig, Module
from xenemu.hv.cpu import Reg, Seg, Segment
from xenemu.hv.current import Current
from xenemu.x86.paging import walk

MIB = 1 << 20
PREF, INIT_SIZE = 16 * MIB, 4 * MIB
LINUX = note(6, "linux")
CODE = struct.Struct("<4I4QII")  # the head of hvm_start_info


def setup(**fields: int) -> bytes:
    """A bzImage whose set-up header has the newest protocol, and these fields."""
    data = bytearray(bzimage(kernel()))
    data[0x201] = 0x6A  # the header reaches to 0x26c
    page = ZeroPage(data)
    usual = {
        "loadflags": 1, "code32_start": MIB, "initrd_addr_max": 0x7FFFFFFF, "xloadflags": 1,
        "relocatable_kernel": 1, "cmdline_size": 100, "pref_address": PREF, "init_size": INIT_SIZE,
    }  # fmt: skip
    page.put(**usual | fields)
    return bytes(data)


def vmlinux(bits: int = 64, entry: int = 0x1000010) -> bytes:
    return elf([KERNEL, Phdr(LINUX, 4, paddr=0)], bits=bits, entry=entry)


@pytest.fixture
def build(load):
    """A function that builds a domain of 64 MiB of a file's bytes, by linux64."""

    def build(data: bytes, entry: str = "linux64", memory: int = 64 * MIB, **config):
        return ENTRIES[entry].build(load(data), DomainConfig(memory, **config))

    return build


def params(domain) -> ZeroPage:
    return ZeroPage(bytearray(domain.memory.read(BOOT_PARAMS, 4096)))


@pytest.mark.parametrize(
    ("data", "entry", "where"),
    [
        (setup(), "linux32", (PREF, PREF + INIT_SIZE, PREF)),
        (setup(), "linux64", (PREF, PREF + INIT_SIZE, PREF + 0x200)),
        (setup(relocatable_kernel=0), "linux32", (MIB, MIB + INIT_SIZE, MIB)),
        (vmlinux(), "linux64", (0x1000000, 0x1002000, 0x1000010)),
        (vmlinux(32), "linux32", (0x1000000, 0x1002000, 0x1000010)),
    ],
)
def test_where_a_kernel_is_entered(load, data, entry, where):
    assert ENTRIES[entry].verdict(load(data)).where == where


def test_linux_is_known_by_its_banner_too(load):
    data = elf([Phdr(b"\x90" * 32 + b"Linux version 6.1", paddr=0x1000000)], entry=0x1000000)
    assert ENTRIES["linux64"].verdict(load(data)).bootable


@pytest.mark.parametrize(
    ("data", "entry", "reason"),
    [
        (kernel(PV_NOTES), "linux64", "lies outside the kernel"),
        (kernel([]), "linux32", "this is not Linux"),
        (kernel([]), "linux64", "this is not Linux"),
        (vmlinux(), "linux32", "an x86-64 vmlinux has no 32-bit entry"),
        (vmlinux(32), "linux64", "an i386 vmlinux has no 64-bit entry"),
        (vmlinux(entry=0x2000000), "linux64", "e_entry, 0x2000000, lies outside the kernel"),
        (setup(loadflags=0), "linux32", "this is a zImage"),
        (setup(xloadflags=0), "linux64", "by its xloadflags, the bzImage has no 64-bit entry"),
        (setup(version=0x20B), "linux64", "by its xloadflags, the bzImage has no 64-bit entry"),
        (setup(pref_address=0xFFF00000), "linux32", "the bzImage wants to be at 0xfff00000-"),
        (setup(pref_address=0), "linux32", "the bzImage wants to be at 0x0-"),
    ],
)
def test_what_has_no_entry(load, data, entry, reason):
    found = load(data)
    assert reason in ENTRIES[entry].verdict(found).reason
    with pytest.raises(ImageError, match=f"cannot boot as {entry}"):
        ENTRIES[entry].build(found, DomainConfig(64 * MIB))


def test_the_set_up_header_is_copied_and_all_else_begins_as_0(build):
    domain = build(setup(hardware_subarch=3))
    page = params(domain)
    assert (page.get("version"), page.get("hardware_subarch")) == (0x20F, 3)
    assert (page.get("type_of_loader"), page.get("code32_start")) == (0x90, PREF)
    assert not any(page.data[:0x70]) and not any(page.data[0x26C:0x2D0])


def test_the_file_after_the_set_up_sectors_is_loaded(build):
    data = setup()
    domain = build(data)
    assert domain.memory.read(PREF, len(data) - 1024) == data[1024:]


def test_a_vmlinux_is_loaded_where_it_is_linked(build):
    domain = build(vmlinux())
    assert domain.memory.read(0x1000000, 6) == bytes(KERNEL.data[:6])
    assert params(domain).get("version") >= 0x20F


def test_the_memory_map_and_the_rsdp_are_those_of_the_machine(build):
    domain = build(setup())
    page = params(domain)
    entries = struct.iter_unpack("<QQI", page.data[0x2D0:][: 20 * page.get("e820_entries")])
    assert list(entries) == domain.e820
    rsdp = page.get("acpi_rsdp_addr")
    maddr = (domain.p2m.lookup(rsdp >> 12) << 12) + (rsdp & 0xFFF)
    assert domain.memory.read(maddr, 8) == b"RSD PTR "


def test_an_old_kernel_looks_for_the_rsdp_in_low_memory(build):
    domain = build(setup(version=0x20D), "linux32")
    assert domain.memory.read(0xFFFC0, 8) == b"RSD PTR "
    assert params(domain).get("acpi_rsdp_addr") == 0


def test_command_line(build):
    domain = build(setup(), cmdline=b"quiet")
    assert domain.memory.read(params(domain).get("cmd_line_ptr"), 6) == b"quiet\0"


def test_the_initrd_is_as_high_as_the_kernel_allows_and_stays_packed(build):
    initrd = gzip.compress(b"x" * 5000, mtime=0)
    for limit, end in ((0x7FFFFFFF, 64 * MIB), (32 * MIB - 1, 32 * MIB)):
        domain = build(setup(initrd_addr_max=limit), initrd=initrd)
        page = params(domain)
        start, size = page.get("ramdisk_image"), page.get("ramdisk_size")
        assert (start, size) == (end - 4096, len(initrd))
        assert domain.memory.read(start, size) == initrd
    assert params(build(setup())).get("ramdisk_size") == 0


def rng_seed(domain) -> bytes:
    at = params(domain).get("setup_data")
    following, kind, size = struct.unpack("<QII", domain.memory.read(at, 16))
    assert (following, kind, size) == (0, SETUP_RNG_SEED, 32)
    return bytes(domain.memory.read(at + 16, size))


def test_setup_data_has_a_seed_that_is_another_for_another_seed(build):
    seeds = [rng_seed(build(setup(), rng_seed=seed)) for seed in (0, 0, 1)]
    assert seeds[0] == seeds[1] != seeds[2]


def test_subarch_xen_brings_a_start_info(build):
    domain = build(setup(), subarch=2, initrd=b"initrd", cmdline=b"quiet")
    page = params(domain)
    assert page.get("hardware_subarch") == 2
    info = CODE.unpack(domain.memory.read(page.get("hardware_subarch_data"), CODE.size))
    assert (info[0], info[3]) == (0x336EC578, 1)
    assert domain.memory.read(info[5], 6) == b"quiet\0"
    (initrd,) = struct.unpack("<Q", domain.memory.read(info[4], 8))
    assert initrd == page.get("ramdisk_image")


def test_another_subarch_is_only_a_number(build):
    page = params(build(setup(), subarch=7))
    assert (page.get("hardware_subarch"), page.get("hardware_subarch_data")) == (7, 0)


@pytest.mark.parametrize(
    ("entry", "memory", "config", "error", "words"),
    [
        ("linux64", 64, {"cmdline": b"x" * 101}, ImageError, "101 bytes; this kernel takes at mo"),
        ("linux64", 64, {"modules": (Module(b"x"),)}, UsageError, "one module"),
        ("linux64", 19, {}, FitError, "give the domain more memory"),
        ("linux64", 20, {"initrd": b"x"}, FitError, "no room for an initrd of 1 bytes"),
        ("linux32", 64, {"vcpus": 129}, UsageError, "at most 128 vcpus"),
        ("pv64", 64, {"subarch": 2}, UsageError, "--subarch: pv64 has no boot_params"),
    ],
)
def test_what_cannot_be_had(build, entry, memory, config, error, words):
    data = kernel() if entry == "pv64" else setup()
    with pytest.raises(error, match=words):
        build(data, entry, memory * MIB, **config)


def test_an_old_kernel_has_no_initrd_above_its_limit(build):
    with pytest.raises(FitError, match="no room for an initrd"):
        build(setup(initrd_addr_max=PREF), initrd=b"x")


def start(domain, entry: str) -> FakeNativeCpu:
    cpu = FakeNativeCpu(regs=[0xDEAD] * 16)
    personality = ENTRIES[entry].platform.personality
    current = Current(domain, domain.vcpus[0], cpu, personality.translate)
    ENTRIES[entry].start(current)
    if entry == "linux64":  # its tables map all to itself
        for vaddr in (PREF, BOOT_PARAMS, 0xFFFFF000):
            found = walk(domain.memory.words, cpu.cr3 >> 12, vaddr)
            assert found[-1].level == 2 and found[-1].entry >> 21 == vaddr >> 21
    return cpu


@pytest.mark.parametrize(
    ("entry", "address", "code", "control"),
    [
        ("linux32", PREF, 0x00C09B00, (0x11, 0, 0)),
        ("linux64", PREF + 0x200, 0x00A09B00, (0x80000011, 0x20, 0x500)),
    ],
)
def test_the_first_registers(build, entry, address, code, control):
    domain = build(setup(), entry)
    cpu = start(domain, entry)
    assert (cpu.rip, cpu.rflags, cpu.regs[Reg.RSI]) == (address, 2, BOOT_PARAMS)
    assert sum(cpu.regs) == BOOT_PARAMS
    assert (cpu.cr0, cpu.cr4, cpu.efer) == control
    assert cpu.segment(Seg.CS) == Segment(BOOT_CS, 0, 0xFFFFFFFF, code)
    for which in (Seg.DS, Seg.ES, Seg.SS):
        assert cpu.segment(which) == Segment(BOOT_DS, 0, 0xFFFFFFFF, 0x00C09300)
    assert cpu.segment(Seg.GDTR) == Segment(0, GDT, 31)
    descriptors = struct.unpack("<4Q", domain.memory.read(GDT, 32))
    assert [one >> 32 & 0xF0FF00 for one in descriptors] == [0, 0, code, 0x00C09300]
