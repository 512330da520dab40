"""entries/efi: an EFI of 32 bits, where it differs from one of 64 bits."""

from __future__ import annotations

import struct

import pytest
from efiguest import MIB, SCRATCH, EfiGuest
from pewriter import I386, TEXT, blocks, efi_bzimage, pe

import elfwriter
from fakes import FakeNativeCpu
from xenemu.entries import ENTRIES
from xenemu.entries.efi import abi
from xenemu.entries.efi.abi import MemoryType, Status
from xenemu.entries.efi.width import IA32, WIDTHS, X64
from xenemu.entries.zero_page import ZeroPage
from xenemu.hv.building import DomainConfig
from xenemu.hv.cpu import Reg, Seg, Segment
from xenemu.hv.current import Current
from xenemu.pvh.personality import CODE32

COMPAT = struct.pack("<BBHI", 1, 8, I386, TEXT + 4)


@pytest.fixture
def guest(load):
    return EfiGuest(load, width=IA32, cmdline=b"quiet", initrd=b"an initrd")


def test_structures_are_as_in_c():
    assert IA32.pack("INQ", 1, 2, 3) == struct.pack("<IIQ", 1, 2, 3)
    assert X64.pack("INQ", 1, 2, 3) == struct.pack("<I4xQQ", 1, 2, 3)
    assert IA32.pack("NQ", 1, 2) == struct.pack("<I4xQ", 1, 2)
    assert X64.length("QB") == IA32.length("QB") == 16
    assert [WIDTHS[word].bits for word in (4, 8)] == [32, 64]


def test_arguments_of_64_bits_take_two_words_of_32():
    assert [place[:2] for place in IA32.slots("NQNI")] == [(0, 1), (1, 2), (3, 1), (4, 1)]
    assert [place[:2] for place in X64.slots("NQNI")] == [(n, 1) for n in range(4)]
    assert [mask.bit_length() for _, _, mask in X64.slots("NQIWB")] == [64, 64, 32, 16, 8]


def test_a_program_of_32_bits_begins_unpaged_with_its_arguments_in_the_stack(load):
    guest = EfiGuest(load, width=IA32)
    cpu, rsp = guest.cpu, guest.cpu.regs[Reg.RSP]
    assert not cpu.code64 and cpu.cr0 == 0x11
    assert cpu.segment(Seg.CS) == Segment(0x10, 0, 0xFFFFFFFF, CODE32)
    assert rsp % 16 == 12 and cpu.rip % 0x1000 == TEXT % 0x1000
    assert guest.current.read(guest.native(rsp), 4) == abi.STUB
    assert guest.current.read(guest.system, 8) == b"IBI SYST"
    assert guest.image in guest.efi.handles


def test_a_program_of_32_bits_is_relocated(load):
    moves = blocks((0x1000, [3 << 12]))
    program = pe((0x401000).to_bytes(4, "little"), I386, image_base=0x400000, relocations=moves)
    guest = EfiGuest(load, program, width=IA32)
    assert guest.native(guest.cpu.rip) == guest.cpu.rip


def test_the_tables_have_pointers_of_32_bits(guest):
    count, at = guest.native(guest.system + 24 + 40), guest.native(guest.system + 24 + 44)
    entries = [guest.current.read(at + 20 * n, 20) for n in range(count)]
    tables = {entry[:16]: int.from_bytes(entry[16:], "little") for entry in entries}
    assert guest.current.read(tables[abi.ACPI_20_TABLE], 8) == b"RSD PTR "
    protocol = guest.guid(SCRATCH, abi.LOADED_IMAGE)
    assert guest.call("HandleProtocol", guest.image, protocol, SCRATCH + 16) == Status.SUCCESS
    loaded = guest.native(SCRATCH + 16)
    fields = IA32.unpack("INNNNNINNQIIN", guest.current.read(loaded, IA32.length("INNNNNINNQIIN")))
    assert fields[2] == guest.system and fields[9] == 0x3000
    assert guest.current.read(fields[7], fields[6]).decode("utf-16-le") == "quiet\0"


def test_a_uintn_has_4_bytes_and_an_address_8(guest):
    guest.put(SCRATCH, (1 << 64) - 1)
    at = guest.put(SCRATCH + 8, 0, 0xAAAAAAAAAAAAAAAA)
    assert guest.call("AllocatePool", MemoryType.LOADER_DATA, 64, at) == Status.SUCCESS
    assert 0 < guest.word(at) < 1 << 32
    assert guest.call("AllocatePages", 0, MemoryType.LOADER_DATA, 1, at + 8) == Status.SUCCESS
    assert guest.word(at + 8) < 64 * MIB
    assert guest.call("FreePages", guest.word(at + 8), 1) == Status.SUCCESS
    assert guest.call("FreePool", guest.native(at)) == Status.SUCCESS


def test_no_memory_above_4_gib_is_given_out(load):
    guest = EfiGuest(load, memory=(5 << 10) * MIB, width=IA32)
    at = guest.put(SCRATCH, (1 << 64) - 1)
    for how in (0, 1):
        assert guest.call("AllocatePages", how, MemoryType.LOADER_DATA, 1, at) == Status.SUCCESS
        assert guest.word(at) < 1 << 32


def test_errors_have_the_highest_of_32_bits(guest):
    assert guest.jump(guest.where("FreePool"), 0x1234) == 1 << 31 | Status.INVALID_PARAMETER


def test_a_timer_of_64_bits_and_a_function_that_is_called(guest):
    event = guest.put(SCRATCH, 0)
    args = (1 << 31 | 0x200, 8, 0x300000, 0x1234, event)
    assert guest.call("CreateEvent", *args) == Status.SUCCESS
    handle = guest.native(event)
    assert guest.call("SetTimer", handle, 2, 1 << 33) == Status.SUCCESS
    assert guest.efi.events[handle].due_ns == guest.cpu.now_ns + (100 << 33)
    assert guest.call("SetTimer", handle, 0, 0) == Status.SUCCESS
    assert guest.call("SignalEvent", handle) == Status.SUCCESS
    rsp = guest.cpu.regs[Reg.RSP]
    assert guest.cpu.rip == 0x300000 and rsp % 16 == 12
    assert (guest.native(rsp + 4), guest.native(rsp + 8)) == (handle, 0x1234)
    stub = guest.native(rsp)
    guest.cpu.rip, guest.cpu.regs[Reg.RSP] = stub + abi.VMCALL_LENGTH, rsp + 4
    guest.exits.vmcall()
    assert guest.cpu.rip == guest.where("SignalEvent") + abi.VMCALL_LENGTH
    assert guest.cpu.regs[Reg.RSP] == guest.stack


def test_stubs_that_are_gone_answer_by_themselves(guest):
    stub = guest.where("AllocatePool")
    guest.leave_boot_services()
    assert guest.cpu.rip == 0x1234 and guest.cpu.regs[Reg.RSP] == guest.stack + 4
    assert guest.current.read(stub, 6) == b"\xb8\x03\0\0\x80\xc3"


def test_code_of_another_width_calls_no_service(guest):
    """A VMCALL there is a hypercall, whatever is at that address."""
    stub = guest.where("Stall")
    guest.prepare(stub, 1000)
    guest.cpu.set_segment(Seg.CS, Segment(0x10, 0x1000, 0xFFFFFFFF, CODE32))
    assert not guest.domain.arch.firmware.answers(guest.current)
    guest.cpu.set_segment(Seg.CS, Segment(0x10, 0, 0xFFFFFFFF, CODE32))
    assert guest.domain.arch.firmware.answers(guest.current)


# ---- mixed mode ----


def test_a_program_of_64_bits_may_have_an_entry_for_an_efi_of_32(load):
    entry = ENTRIES["efi32"]
    program = efi_bzimage(pe(compat=COMPAT))
    assert entry.verdict(load(program)).where.entry == TEXT + 4
    domain = entry.build(load(program), DomainConfig(64 * MIB))
    assert domain.arch.firmware.firmware.width == 4
    assert ENTRIES["efi"].verdict(load(program)).where.entry == TEXT


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (efi_bzimage(pe()), "has no entry for 32-bit EFI"),
        (efi_bzimage(pe(compat=COMPAT[:4] + b"\0\0\1\0")), "has no entry for 32-bit EFI"),
        (efi_bzimage(pe(compat=b"\1\1")), "has no entry for 32-bit EFI"),
        (efi_bzimage(pe(machine=I386)), "has 32 bits itself"),
        (elfwriter.kernel(), "this is an ELF, and has no PE header"),
    ],
)
def test_programs_without_such_an_entry(load, data, reason):
    assert reason in ENTRIES["efi32"].verdict(load(data)).reason


def handover(flags: int) -> bytes:
    data = bytearray(elfwriter.bzimage(elfwriter.kernel())) + bytes(1024)
    data[0x201] = 0x6A
    fields = {"cmdline_size": 100, "pref_address": 16 * MIB, "init_size": 4 * MIB}
    ZeroPage(data).put(**fields, xloadflags=flags, handover_offset=0x10)
    return bytes(data)


def test_the_32_bit_handover_entry_is_called_with_boot_params(load):
    entry = ENTRIES["efi-handover32"]
    domain = entry.build(load(handover(4)), DomainConfig(64 * MIB, cmdline=b"quiet"))
    cpu = FakeNativeCpu(regs=[0xDEAD] * 16)
    current = Current(domain, domain.vcpus[0], cpu, entry.platform.personality.translate)
    entry.start(current)
    handle, table, params = struct.unpack("<III", current.read(cpu.regs[Reg.RSP] + 4, 12))
    assert cpu.rip == 16 * MIB + 0x10 and handle == domain.arch.firmware.firmware.image_handle
    assert current.read(table, 8) == b"IBI SYST"
    page = ZeroPage(bytearray(current.read(params, 4096)))
    assert current.read(page.get("cmd_line_ptr"), 6) == b"quiet\0"
    reason = ENTRIES["efi-handover"].verdict(load(handover(4))).reason
    assert "no 64-bit handover entry" in reason
    assert "no 32-bit" in entry.verdict(load(handover(8))).reason
