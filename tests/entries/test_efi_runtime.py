"""entries/efi: the runtime services, before and after the guest has left the boot services."""

from __future__ import annotations

import struct

import pytest
from efiguest import SCRATCH, EfiGuest

from xenemu.abi.sched import SHUTDOWN_poweroff, SHUTDOWN_reboot
from xenemu.entries.efi.abi import STUB, Status
from xenemu.entries.efi.variables import MAX_VARIABLE, STORAGE

NAME, VENDOR, SIZE, ATTRIBUTES, DATA = (SCRATCH + 0x1000 * n for n in range(5))
OWN = bytes(range(16))
TIME = struct.Struct("<H6BIhBB")
NV, BS, RT = 1, 2, 4
VIRTUAL = 0xFFFF_FFFE_E000_0000


@pytest.fixture
def guest(load):
    return EfiGuest(load, wallclock_ns=1_700_000_000_000_000_000)  # 2023-11-14 22:13:20


def test_the_time_is_the_domains(guest):
    guest.cpu.now_ns = 1_500_000_001
    assert guest.call("GetTime", SCRATCH, SCRATCH + 64) == Status.SUCCESS
    time = TIME.unpack(guest.current.read(SCRATCH, 16))
    assert time == (2023, 11, 14, 22, 13, 21, 0, 500_000_001, 0x7FF, 0, 0)
    assert guest.call("GetTime", SCRATCH, 0) == Status.SUCCESS
    assert guest.call("GetTime", 0, 0) == Status.INVALID_PARAMETER


def test_the_time_is_set(guest):
    given = (2031, 2, 28, 23, 59, 58, 0, 250_000_000, 60, 3, 0)
    guest.current.write(SCRATCH, TIME.pack(*given))
    assert guest.call("SetTime", SCRATCH) == Status.SUCCESS
    guest.cpu.now_ns += 2_000_000_000
    assert guest.call("GetTime", SCRATCH, 0) == Status.SUCCESS
    time = TIME.unpack(guest.current.read(SCRATCH, 16))
    assert time == (2031, 3, 1, 0, 0, 0, 0, 250_000_000, 60, 3, 0)


@pytest.mark.parametrize(
    "time",
    [
        (2031, 2, 29, 0, 0, 0, 0, 0, 0, 0, 0),
        (2031, 13, 1, 0, 0, 0, 0, 0, 0, 0, 0),
        (1899, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0),
        (10000, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0),
        (2031, 1, 1, 24, 0, 0, 0, 0, 0, 0, 0),
        (2031, 1, 1, 0, 0, 0, 0, 1_000_000_000, 0, 0, 0),
        (2031, 1, 1, 0, 0, 0, 0, 0, 1441, 0, 0),
        (2031, 1, 1, 0, 0, 0, 0, 0, 0, 4, 0),
    ],
)
def test_times_that_are_none(guest, time):
    guest.current.write(SCRATCH, TIME.pack(*time))
    assert guest.call("SetTime", SCRATCH) == Status.INVALID_PARAMETER
    assert guest.efi.clock_offset_ns == 0


def test_a_clock_that_ran_out_is_an_error(guest):
    guest.current.write(SCRATCH, TIME.pack(9999, 12, 31, 23, 59, 59, 0, 0, 0, 0, 0))
    assert guest.call("SetTime", SCRATCH) == Status.SUCCESS
    guest.cpu.now_ns += 1_000_000_000
    assert guest.call("GetTime", SCRATCH, 0) == Status.DEVICE_ERROR


@pytest.mark.parametrize(
    ("how", "code"), [(0, SHUTDOWN_reboot), (1, SHUTDOWN_reboot), (2, SHUTDOWN_poweroff)]
)
def test_a_reset_ends_the_domain(guest, how, code):
    guest.jump(guest.where("ResetSystem"), how, 0, 0, 0)
    assert guest.domain.shutdown_code == code and guest.cpu.stopped


# ---- variables ----


def write(guest, name: str, data: bytes, attributes: int = NV | BS | RT) -> Status:
    guest.text(NAME, name)
    guest.guid(VENDOR, OWN)
    if data:
        guest.current.write(DATA, data)
    return guest.call("SetVariable", NAME, VENDOR, attributes, len(data), DATA)


def read(guest, name: str, room: int = 4096) -> bytes | Status:
    guest.text(NAME, name)
    guest.guid(VENDOR, OWN)
    guest.put(SIZE, room)
    status = guest.call("GetVariable", NAME, VENDOR, ATTRIBUTES, SIZE, DATA)
    return guest.current.read(DATA, guest.word(SIZE)) if status == 0 else status


def test_a_variable_is_written_read_and_deleted(guest):
    assert read(guest, "One") == Status.NOT_FOUND
    assert write(guest, "One", b"1") == Status.SUCCESS
    assert read(guest, "One") == b"1" and guest.word(ATTRIBUTES, 4) == NV | BS | RT
    assert write(guest, "One", b"2", 0x40 | NV | BS | RT) == Status.SUCCESS
    assert read(guest, "One", 1) == Status.BUFFER_TOO_SMALL and guest.word(SIZE) == 2
    assert read(guest, "One") == b"12"
    assert write(guest, "One", b"x", NV | BS) == Status.INVALID_PARAMETER
    assert read(guest, "One") == b"12"
    assert write(guest, "One", b"") == Status.SUCCESS
    assert read(guest, "One") == Status.NOT_FOUND
    assert write(guest, "One", b"") == Status.NOT_FOUND


def test_names_come_one_after_another(guest):
    names = ["One", "Tw\u00f6", "\U0001f427"]
    for name in names:
        write(guest, name, b"x")
    guest.text(NAME, "")
    found = []
    while True:
        guest.put(SIZE, 2)
        status = guest.call("GetNextVariableName", SIZE, NAME, VENDOR)
        if status == Status.BUFFER_TOO_SMALL:
            status = guest.call("GetNextVariableName", SIZE, NAME, VENDOR)
        if status:
            break
        encoded = guest.current.read(NAME, guest.word(SIZE))
        found.append(encoded.decode("utf-16-le").rstrip("\0"))
    assert (status, found) == (Status.NOT_FOUND, names)
    guest.text(NAME, "None")
    assert guest.call("GetNextVariableName", SIZE, NAME, VENDOR) == Status.INVALID_PARAMETER


@pytest.mark.parametrize(
    ("attributes", "status"),
    [
        (RT, Status.INVALID_PARAMETER),
        (NV | BS | 8, Status.UNSUPPORTED),
        (NV | BS | RT | 0x20, Status.UNSUPPORTED),
        (1 << 31 | BS, Status.UNSUPPORTED),
    ],
)
def test_attributes_that_are_not_had(guest, attributes, status):
    assert write(guest, "One", b"x", attributes) == status
    assert not guest.efi.variables


def test_there_is_only_so_much_room(guest):
    assert write(guest, "Big", bytes(MAX_VARIABLE + 1)) == Status.OUT_OF_RESOURCES
    answers = [write(guest, f"V{n}", bytes(MAX_VARIABLE)) for n in range(9)]
    assert answers[:7] == [Status.SUCCESS] * 7 and answers[8] == Status.OUT_OF_RESOURCES
    info = ("QueryVariableInfo", NV | BS, SCRATCH, SCRATCH + 8, SCRATCH + 16)
    assert guest.call(*info) == Status.SUCCESS
    maximum, left, largest = (guest.word(SCRATCH + 8 * n) for n in range(3))
    assert (maximum, largest) == (STORAGE, MAX_VARIABLE) and left < MAX_VARIABLE


def test_the_boot_services_variables_are_hidden_afterwards(guest):
    write(guest, "Boot", b"b", BS)
    write(guest, "Run", b"r", NV | BS | RT)
    guest.leave_boot_services()
    assert read(guest, "Boot") == Status.NOT_FOUND
    assert write(guest, "Boot", b"x") == Status.WRITE_PROTECTED
    assert read(guest, "Run") == b"r"
    assert write(guest, "Lost", b"x", BS | RT) == Status.INVALID_PARAMETER
    assert write(guest, "New", b"n") == Status.SUCCESS


# ---- virtual addresses ----


def virtual_map(guest, *regions: tuple[int, int, int], step: int = 48) -> tuple[int, int, int, int]:
    """The arguments of SetVirtualAddressMap: start, virtual address and pages of each region."""
    for n, (start, virtual, pages) in enumerate(regions):
        data = struct.pack("<I4xQQQQ", 5, start, virtual, pages, 1 << 63)
        guest.current.write(DATA + step * n, data)
    return step * len(regions), step, 1, DATA


def test_the_services_are_at_the_guests_addresses_afterwards(guest):
    code, data = guest.efi.places.runtime_code, guest.efi.places.runtime_data
    guest.leave_boot_services()
    old = guest.where("GetTime")
    args = virtual_map(guest, (code, VIRTUAL, 1), (data, VIRTUAL + 0x1000, 1))
    assert guest.call("SetVirtualAddressMap", *args) == Status.SUCCESS
    runtime = guest.word(guest.system + 88)
    assert runtime == VIRTUAL + 0x1100
    table = guest.word(guest.system + 112)
    assert table == VIRTUAL + 0x1400
    stub = guest.word(guest.runtime + 24)
    assert stub == VIRTUAL + (old & 0xFFF)
    map_there(guest, VIRTUAL, code)
    assert guest.current.read(stub, 4) == STUB
    assert guest.jump(stub, SCRATCH, 0) == 0
    assert guest.word(SCRATCH, 2) == 2023


def map_there(guest, virtual: int, physical: int) -> None:
    """Map a page of 2 MiB at an address whose top-level entry is free."""
    top, tables = guest.cpu.cr3, SCRATCH + 0x10000
    guest.put(top + 8 * (virtual >> 39 & 511), tables | 3)
    guest.put(tables + 8 * (virtual >> 30 & 511), tables + 0x1000 | 3)
    guest.put(tables + 0x1000 + 8 * (virtual >> 21 & 511), tables + 0x2000 | 3)
    guest.put(tables + 0x2000 + 8 * (virtual >> 12 & 511), physical | 3)


def test_addresses_are_mapped_once_and_only_afterwards(guest):
    code, data = guest.efi.places.runtime_code, guest.efi.places.runtime_data
    args = virtual_map(guest, (code, VIRTUAL, 1), (data, VIRTUAL + 0x1000, 1))
    stub = guest.where("SetVirtualAddressMap")
    assert guest.call("SetVirtualAddressMap", *args) == Status.UNSUPPORTED
    guest.leave_boot_services()
    for wrong in (
        (args[0], 40 - 1, 1, DATA),
        (args[0] + 1, 48, 1, DATA),
        (args[0], 48, 2, DATA),
        (1 << 60, 48, 1, DATA),
        (args[0], 0, 1, DATA),
    ):
        assert guest.call("SetVirtualAddressMap", *wrong) == Status.INVALID_PARAMETER
    alone = virtual_map(guest, (code, VIRTUAL, 1))
    assert guest.call("SetVirtualAddressMap", *alone) == Status.NOT_FOUND
    assert not guest.efi.mapped
    args = virtual_map(guest, (code, VIRTUAL, 1), (data, VIRTUAL + 0x1000, 1))
    assert guest.jump(stub, *args) == 0
    assert guest.jump(stub, *args) == Status.UNSUPPORTED | 1 << 63
