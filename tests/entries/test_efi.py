"""entries/efi: what a PE program finds at its first instruction, and what cannot be started."""

from __future__ import annotations

import zlib

import pytest
from efiguest import MIB, SCRATCH, EfiGuest
from pewriter import I386, TEXT, blocks, efi_bzimage, pe

import elfwriter
from fakes import FakeNativeCpu
from xenemu import cli
from xenemu.entries import ENTRIES
from xenemu.entries.efi import abi
from xenemu.entries.efi.abi import MemoryType, Status
from xenemu.entries.zero_page import ZeroPage
from xenemu.errors import DomainCrash, FitError, ImageError, UsageError
from xenemu.hv.building import DomainConfig, Module
from xenemu.hv.cpu import Reg, Seg
from xenemu.hv.current import Current
from xenemu.hv.snapshot import DomainSnapshot
from xenemu.hv.waking import POLL


@pytest.fixture
def guest(load):
    return EfiGuest(load, cmdline=b"console=hvc0", initrd=b"an initrd", rng_seed=7)


def handover(flags: int = 8, offset: int = 0, **fields: int) -> bytes:
    """A bzImage with a 64-bit handover entry, if its header says so."""
    data = bytearray(elfwriter.bzimage(elfwriter.kernel()))
    data += bytes(1024)
    data[0x201] = 0x6A
    usual = {"cmdline_size": 100, "pref_address": 16 * MIB, "init_size": 4 * MIB}
    page = ZeroPage(data)
    page.put(**usual | fields | {"xloadflags": flags, "handover_offset": offset})
    return bytes(data)


def test_the_handover_entry_is_called_with_boot_params(load):
    config = DomainConfig(64 * MIB, cmdline=b"quiet", initrd=b"an initrd")
    entry = ENTRIES["efi-handover"]
    domain = entry.build(load(handover(offset=0x10)), config)
    cpu = FakeNativeCpu(regs=[0xDEAD] * 16)
    current = Current(domain, domain.vcpus[0], cpu, entry.platform.personality.translate)
    entry.start(current)
    assert cpu.rip == 16 * MIB + 0x210 and cpu.regs[Reg.RSP] % 16 == 8
    firmware = domain.arch.firmware.firmware
    assert cpu.regs[Reg.RDI] == firmware.image_handle
    assert current.read(cpu.regs[Reg.RSI], 8) == b"IBI SYST"
    page = ZeroPage(bytearray(current.read(cpu.regs[Reg.RDX], 4096)))
    assert current.read(page.get("cmd_line_ptr"), 6) == b"quiet\0"
    assert current.read(page.get("ramdisk_image"), page.get("ramdisk_size")) == b"an initrd"
    assert page.get("type_of_loader") == 0x90 and page.get("code32_start") == 16 * MIB
    region = firmware.memory.at(16 * MIB)
    assert (region.type, region.end - region.start) == (MemoryType.LOADER_CODE, 4 * MIB)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (elfwriter.kernel(), "this is an ELF; Linux's bzImage has a handover entry"),
        (handover(flags=7), "by its xloadflags, the bzImage has no 64-bit handover entry"),
        (handover(version=0x20B), "by its xloadflags, the bzImage has no 64-bit handover entry"),
        (handover(offset=1 << 20), "handover_offset, 0x100000, lies outside the bzImage"),
        (handover(pref_address=0), "the bzImage wants to be at 0x0-0x400000"),
    ],
)
def test_bzimages_without_a_handover_entry(load, data, reason):
    assert reason in ENTRIES["efi-handover"].verdict(load(data)).reason


def test_a_handover_needs_its_memory_and_a_short_command_line(load):
    build = ENTRIES["efi-handover"].build
    with pytest.raises(FitError, match="the kernel would lie at 0x1000000-0x1400000"):
        build(load(handover()), DomainConfig(18 * MIB))
    with pytest.raises(ImageError, match="has 101 bytes; this kernel takes at most 100"):
        build(load(handover()), DomainConfig(64 * MIB, cmdline=b"x" * 101))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (elfwriter.kernel(), "this is an ELF, and has no PE header"),
        (elfwriter.bzimage(elfwriter.kernel()), "there is no PE header"),
        (efi_bzimage(pe(machine=0x1C0)), "the PE header is for machine 0x1c0, which is no x86"),
        (efi_bzimage(pe(subsystem=11)), "for another subsystem (EFI boot service driver)"),
        (efi_bzimage(pe(entry=0x5000)), "the PE header has the entry 0x5000"),
    ],
)
def test_what_cannot_be_started(load, data, reason):
    assert reason in ENTRIES["efi"].verdict(load(data)).reason


def test_what_is_refused_when_it_is_built(load):
    def build(program: bytes = b"", memory: int = 64 * MIB, **config):
        ENTRIES["efi"].build(load(efi_bzimage(program or pe())), DomainConfig(memory, **config))

    with pytest.raises(FitError, match="no room for 33554432 bytes"):
        build(pe(size=32 * MIB), 16 * MIB)
    data = bytearray(efi_bzimage(pe()))
    data[0x201] = 0x6A
    ZeroPage(data).put(init_size=32 * MIB, pref_address=16 * MIB, kernel_alignment=2 * MIB)
    with pytest.raises(FitError, match="takes 33554432 bytes from 0x1000000 or above"):
        ENTRIES["efi"].build(load(bytes(data)), DomainConfig(48 * MIB))
    assert ENTRIES["efi"].build(load(bytes(data)), DomainConfig(64 * MIB))
    with pytest.raises(UsageError, match="EFI has one module"):
        build(modules=(Module(b"more"),))
    with pytest.raises(ImageError, match="runs only at 0x400000"):
        build(pe(image_base=0x400000, flags=0x207))
    with pytest.raises(UsageError, match="--subarch: efi has no boot_params"):
        build(subarch=2)


def test_little_memory_is_too_little_or_enough(load):
    """Each page of it is the last one that is missing for something."""
    image, fits = load(efi_bzimage(pe())), []
    for pages in range(40, 100):
        try:
            ENTRIES["efi"].build(image, DomainConfig(pages << 12, efi_root={"file": b"data"}))
            fits.append(pages)
        except FitError as misfit:
            assert "give the domain more memory" in str(misfit)
    assert fits and fits == list(range(fits[0], 100)) and fits[0] > 40


def test_the_registers_are_those_of_a_call_in_x64(guest):
    cpu = guest.cpu
    assert cpu.code64 and cpu.rflags & 0x200
    assert cpu.regs[Reg.RSP] % 16 == 8
    assert cpu.segment(Seg.CS).selector == 0x10 and cpu.segment(Seg.SS).selector == 0x18
    entry = guest.current.read(cpu.rip, 1)
    assert entry == b"\xc3" and cpu.rip % 0x1000 == TEXT % 0x1000


def test_all_memory_is_mapped_to_itself(load):
    guest = EfiGuest(load, memory=(5 << 10) * MIB)
    for address in (SCRATCH, 0xFC000000, (4 << 30) + 64 * MIB):
        guest.put(address, address)
        mfn = guest.domain.p2m.lookup(address >> 12)
        assert guest.domain.memory.words[mfn << 9 | (address & 0xFFF) >> 3] == address


def test_the_tables_have_signatures_and_sums(guest):
    for table, signature in (
        (guest.system, b"IBI SYST"),
        (guest.boot, b"BOOTSERV"),
        (guest.runtime, b"RUNTSERV"),
    ):
        head = guest.current.read(table, 24)
        size = int.from_bytes(head[12:16], "little")
        data = bytearray(guest.current.read(table, size))
        crc = int.from_bytes(data[16:20], "little")
        data[16:20] = bytes(4)
        assert (head[:8], crc) == (signature, zlib.crc32(data))


def test_the_program_is_relocated_to_where_it_is(load):
    moves = blocks((0x1000, [10 << 12]))
    program = pe((0x401000).to_bytes(8, "little"), image_base=0x400000, relocations=moves)
    guest = EfiGuest(load, program)
    assert guest.word(guest.cpu.rip) == guest.cpu.rip


def test_the_loaded_image_has_the_command_line(guest):
    at, start = SCRATCH, guest.cpu.rip
    protocol = guest.guid(at, abi.LOADED_IMAGE)
    assert guest.call("HandleProtocol", guest.image, protocol, at + 16) == Status.SUCCESS
    loaded = guest.word(at + 16)
    assert guest.word(loaded + 16) == guest.system
    base, size = guest.word(loaded + 64), guest.word(loaded + 72)
    assert base + TEXT == start and size == 0x3000
    length, options = guest.word(loaded + 48, 4), guest.word(loaded + 56)
    assert guest.current.read(options, length).decode("utf-16-le") == "console=hvc0\0"


def test_a_program_without_a_command_line_has_no_options(load):
    guest = EfiGuest(load)
    at = SCRATCH
    guest.call("HandleProtocol", guest.image, guest.guid(at, abi.LOADED_IMAGE), at + 16)
    assert guest.word(guest.word(at + 16) + 48, 4) == 0


def configuration(guest) -> dict[bytes, int]:
    count, at = guest.word(guest.system + 104), guest.word(guest.system + 112)
    return {guest.current.read(at + 24 * n, 16): guest.word(at + 24 * n + 16) for n in range(count)}


def test_the_configuration_tables(guest):
    tables = configuration(guest)
    assert guest.current.read(tables[abi.ACPI_20_TABLE], 8) == b"RSD PTR "
    properties = tables[abi.RT_PROPERTIES_TABLE]
    assert guest.word(properties, 2) == 1 and guest.word(properties + 2, 2) == 8
    supported = guest.word(properties + 4, 4)
    for n, name in enumerate(abi.RUNTIME_SERVICES):
        there = name not in ("UpdateCapsule", "QueryCapsuleCapabilities", "ConvertPointer")
        there = there and not name.endswith("WakeupTime")
        assert bool(supported & 1 << n) == there, name


def test_a_program_may_install_tables_and_remove_them(guest):
    own = guest.guid(SCRATCH, bytes(range(16)))
    assert guest.call("InstallConfigurationTable", own, 0) == Status.NOT_FOUND
    assert guest.call("InstallConfigurationTable", own, 0x1234) == Status.SUCCESS
    assert configuration(guest)[bytes(range(16))] == 0x1234
    assert guest.call("InstallConfigurationTable", own, 0) == Status.SUCCESS
    assert bytes(range(16)) not in configuration(guest)


def test_what_is_not_there_is_unsupported_and_told(guest):
    assert guest.call("ConvertPointer", 0, 0) == Status.UNSUPPORTED
    assert guest.call("UpdateCapsule", 0, 0, 0) == Status.UNSUPPORTED
    told = "EFI has no ConvertPointer: it answers EFI_UNSUPPORTED"
    assert told in guest.domain.refusals
    assert guest.efi.missing == {"ConvertPointer": 1, "UpdateCapsule": 1}


def test_calls_are_in_the_log_of_calls(guest):
    guest.call("Stall", 5)
    guest.call("FreePool", 0x123)
    stall, free = list(guest.domain.calls)[-2:]
    assert (stall.name, stall.args, stall.result) == ("EFI.Stall", (5,), 0)
    assert (free.name, free.result) == ("EFI.FreePool", Status.INVALID_PARAMETER)
    assert free.reason == "EFI_INVALID_PARAMETER: nothing in the pool begins at 0x123"


def test_a_vmcall_elsewhere_is_a_hypercall(guest):
    """Only the first bytes of a stub, where the firmware has it, are a service."""
    stub = guest.where("Stall")
    page = guest.current.read(stub & ~0xFFF, 0x1000)
    guest.current.write(SCRATCH, page)
    for rip in (SCRATCH + (stub & 0xFFF), stub + 16 * 200, stub + 1):
        guest.cpu.rip = rip + 3
        assert not guest.domain.arch.firmware.answers(guest.current)
    guest.cpu.rip = stub + 3
    assert guest.domain.arch.firmware.answers(guest.current)


def test_an_other_page_at_a_stubs_address_is_no_stub(guest):
    """The page is found by where it lies in memory, whatever the guest maps there."""
    stub = guest.where("Stall")
    table = guest.efi.places.page_tables + 2 * 4096  # the first GiB
    guest.put(table + (stub >> 21) * 8, SCRATCH & ~(2 * MIB - 1) | 0x83)
    guest.cpu.rip = stub + 3
    assert not guest.domain.arch.firmware.answers(guest.current)


def test_a_program_that_returns_ends_the_domain(guest):
    back = guest.word(guest.cpu.regs[Reg.RSP])
    with pytest.raises(DomainCrash, match="the EFI program ended, with EFI_LOAD_ERROR"):
        guest.cpu.regs[Reg.RAX] = Status.LOAD_ERROR | 1 << 63
        guest.cpu.rip = back + 3
        guest.exits.vmcall()
    with pytest.raises(DomainCrash, match="with EFI_ABORTED"):
        guest.call("Exit", guest.image, Status.ABORTED | 1 << 63, 0, 0)


def test_the_console_is_xens(guest):
    out = guest.word(guest.system + 64)
    assert guest.method(out, 1, guest.text(SCRATCH, "h\u00e9llo\r\n")) == Status.SUCCESS
    assert guest.domain.output == "h\u00e9llo\r\n".encode()
    mode = guest.word(out + 72)
    assert [guest.word(mode + 4 * n, 4) for n in range(5)] == [1, 0, 7, 0, 1]
    assert guest.method(out, 3, 0, SCRATCH, SCRATCH + 8) == Status.SUCCESS
    assert (guest.word(SCRATCH), guest.word(SCRATCH + 8)) == (80, 25)
    assert guest.method(out, 3, 1, SCRATCH, SCRATCH + 8) == Status.UNSUPPORTED
    assert guest.method(out, 7, 80, 0) == Status.UNSUPPORTED
    del guest.domain.output[:]
    assert guest.method(out, 5, 0x1F) == Status.SUCCESS
    assert guest.method(out, 7, 2, 3) == Status.SUCCESS
    assert guest.domain.output == b"\x1b[1;37;44m\x1b[4;3H"
    assert [guest.word(mode + 4 * n, 4) for n in range(2, 5)] == [0x1F, 2, 3]


def test_a_string_waits_for_room_in_the_ring(guest):
    """While nobody takes what is shown, the call is made again; no byte comes twice."""
    guest.domain.output += bytes(1 << 20)  # the limit
    out = guest.word(guest.system + 64)
    text = "".join(chr(65 + n % 26) for n in range(3000))
    stub = guest.word(out + 8)
    guest.jump(stub, out, guest.text(SCRATCH, text))
    assert guest.cpu.rip == stub and guest.domain.vcpus[0].blocked
    del guest.domain.output[:]
    guest.console.pump(guest.domain)
    assert not guest.domain.vcpus[0].blocked
    guest.method(out, 1, SCRATCH)
    assert guest.domain.output.decode() == text


def test_a_spoilt_ring_swallows_what_is_shown(guest):
    ring = guest.domain.console.mfn << 12
    guest.domain.memory.write_uint(ring + 3072 + 8, 4, 0x9999)
    out = guest.word(guest.system + 64)
    assert guest.method(out, 1, guest.text(SCRATCH, "lost")) == Status.SUCCESS
    assert not guest.domain.output


def test_keys_come_from_the_console(guest):
    con_in = guest.word(guest.system + 48)
    event = guest.word(con_in + 16)
    read = [con_in, 1, SCRATCH]
    assert guest.method(*read) == Status.NOT_READY
    assert guest.call("CheckEvent", event) == Status.NOT_READY
    guest.console.feed(guest.domain, b"x\n\x7f\x1b[A\x1b")
    keys = []
    while guest.call("CheckEvent", event) == Status.SUCCESS:
        assert guest.method(*read) == Status.SUCCESS
        keys.append((guest.word(SCRATCH, 2), guest.word(SCRATCH + 2, 2)))
    assert keys == [(0, ord("x")), (0, 13), (0, 8), (1, 0), (23, 0)]


def test_who_looks_for_keys_all_the_time_sleeps_between(guest):
    read = guest.native(guest.con_in + guest.width.word)
    assert guest.status(guest.jump(read, guest.con_in, SCRATCH)) == Status.NOT_READY
    guest.jump(read, guest.con_in, SCRATCH)
    vcpu = guest.domain.vcpus[0]
    assert vcpu.blocked and guest.cpu.rip == read
    assert guest.domain.timers.deadlines_ns[POLL, 0] == 1_000_000
    guest.console.feed(guest.domain, b"x")  # wakes it
    assert not vcpu.blocked
    assert guest.status(guest.jump(read, guest.con_in, SCRATCH)) == Status.SUCCESS
    guest.jump(read, guest.con_in, SCRATCH)
    vcpu.blocked, guest.cpu.now_ns = False, 1_000_000
    assert guest.status(guest.jump(read, guest.con_in, SCRATCH)) == Status.NOT_READY


def test_the_initrd_is_found_by_its_media_path(guest):
    path = guest.find(abi.LOAD_FILE2) and SCRATCH + 0x100
    node = bytes((4, 3, 20, 0)) + abi.LINUX_INITRD_MEDIA + bytes((0x7F, 0xFF, 4, 0))
    guest.current.write(path, node)
    at = guest.put(SCRATCH + 0x80, path, 0)
    protocol = guest.guid(SCRATCH, abi.LOAD_FILE2)
    assert guest.call("LocateDevicePath", protocol, at, at + 8) == Status.SUCCESS
    assert guest.word(at) == path + 20  # the end is left
    interface = guest.find(abi.LOAD_FILE2)
    size, buffer = guest.put(SCRATCH + 0x200, 0), SCRATCH + 0x300
    load = (interface, 0, path + 20, 0, size, buffer)
    assert guest.method(*load) == Status.BUFFER_TOO_SMALL
    assert guest.word(size) == len(b"an initrd")
    assert guest.method(*load) == Status.SUCCESS
    assert guest.current.read(buffer, 9) == b"an initrd"
    assert guest.method(interface, 0, path, 1, size, buffer) == Status.UNSUPPORTED


def test_without_an_initrd_there_is_no_such_device(load):
    guest = EfiGuest(load)
    protocol = guest.guid(SCRATCH, abi.LOAD_FILE2)
    assert guest.call("LocateProtocol", protocol, 0, SCRATCH + 16) == Status.NOT_FOUND


def test_random_numbers_follow_from_the_seed(load):
    def draw(seed: int) -> bytes:
        guest = EfiGuest(load, rng_seed=seed)
        rng = guest.find(abi.RNG)
        for n in range(2):
            assert guest.method(rng, 1, 0, 32, SCRATCH + 32 * n) == Status.SUCCESS
        return guest.current.read(SCRATCH, 64)

    one = draw(1)
    assert one == draw(1) != draw(2)
    assert one[:32] != one[32:]


def test_a_snapshot_has_the_firmware_in_it(guest):
    at = guest.put(SCRATCH, 0)
    guest.call("AllocatePool", MemoryType.LOADER_DATA, 100, at)
    before = len(guest.efi.memory.pieces)
    snapshot = DomainSnapshot.of(guest.domain)
    guest.call("FreePool", guest.word(at))
    restored = snapshot.restore(guest.domain)
    assert len(restored.arch.firmware.firmware.memory.pieces) == before


FOREIGN, DRIVER = pe(machine=0xAA64), pe(subsystem=11)
CUT = pe()[:0x50]
NOT_STARTED = [
    (pe(), "auto", "pvh: this is a PE program, which EFI starts"),
    (pe(), "pvh", "cannot boot as pvh: this is a PE program"),
    (pe(), "linux64", "this is not Linux"),
    (pe(), "efi-handover", "this is a PE program; Linux's bzImage has a handover entry"),
    (pe(), "efi32", "the PE program has no entry for 32-bit EFI"),
    (DRIVER, "efi", "for another subsystem (EFI boot service driver): EFI starts applications"),
    (FOREIGN, "efi", "the PE header is for machine 0xaa64, which is no x86"),
    (CUT, "efi", "a program of DOS's: it has no PE header that EFI could load it by"),
    (pe()[:0x60], "efi", "the PE header is cut off, or of no known format"),
    (pe()[:0x400], "efi", "the PE section at 0x1000 is cut off by the end of the file"),
    (pe(entry=0x9000), "efi", "the PE header has the entry 0x9000"),
    (pe(image_base=0x400000, flags=0x207), "efi", "the program runs only at 0x400000"),
    (b"MZ" + bytes(600), "efi", "a program of DOS's"),
]


def test_what_cannot_be_started_is_one_line(tmp_path, capsys):
    path = tmp_path / "program.efi"
    for data, entry, sentence in NOT_STARTED:
        path.write_bytes(data)
        assert cli.main(["run", str(path), "--entry", entry]) == 7, sentence
        out, err = capsys.readouterr()
        assert (out, err.count("\n")) == ("", 1) and sentence in err, err
        assert err.startswith(f"xenemu: {path}: ")


def test_inspect_says_what_a_program_is(tmp_path, capsys):
    path = tmp_path / "program.efi"
    for data, code, words in (
        (
            pe(),
            0,
            ("PE        64-bit x86_64, EFI application, entry 0x1000", "efi             yes"),
        ),
        (pe(machine=I386), 0, ("32-bit i386, EFI application", "efi32           no: the PE prog")),
        (DRIVER, 7, ("EFI boot service driver, entry 0x1000",)),
        (FOREIGN, 7, ("which is no x86",)),
    ):
        path.write_bytes(data)
        assert cli.main(["inspect", str(path)]) == code
        out, err = capsys.readouterr()
        assert all(word in out + err for word in words), out
