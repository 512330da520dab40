"""entries/efi: programs that a program loads, starts and ends."""

from __future__ import annotations

import struct

import pytest
from efiguest import SCRATCH, EfiGuest
from pewriter import I386, TEXT, X86_64, blocks, pe

from xenemu.entries.efi import abi, device_path
from xenemu.entries.efi.abi import MemoryType, Status
from xenemu.entries.efi.width import IA32, X64
from xenemu.errors import DomainCrash
from xenemu.hv.cpu import Reg

MACHINES = {X64: X86_64, IA32: I386}
FIELDS = "INNNNNINNQIIN"
HANDLE, PATH, FILE = SCRATCH + 0x40, SCRATCH + 0x100, SCRATCH + 0x4000


@pytest.fixture(params=[X64, IA32], ids=["x64", "ia32"])
def guest(load, request):
    program = pe(machine=MACHINES[request.param])
    tree = {"EFI/next.efi": program, "readme": b"no program"}
    return EfiGuest(load, width=request.param, efi_root=tree)


def at_path(guest, path: str, volume: bool = True) -> int:
    """Where the guest has the device path of a file."""
    start = device_path.VOLUME if volume else b""
    guest.current.write(PATH, start + device_path.file_path(path) + device_path.END)
    return PATH


def load_file(guest, data: bytes, path: int = 0, parent: int | None = None) -> Status:
    guest.current.write(FILE, data)
    parent = guest.image if parent is None else parent
    return guest.call("LoadImage", 0, parent, path, FILE, len(data), HANDLE)


def load_next(guest) -> int:
    path = at_path(guest, r"\EFI\NEXT.EFI")
    assert guest.call("LoadImage", 0, guest.image, path, 0, 0, HANDLE) == Status.SUCCESS
    return guest.native(HANDLE)


def start(guest, handle: int, *pointers: int) -> None:
    """Start a program: the CPU is at its first instruction."""
    guest.jump(guest.where("StartImage"), handle, *(pointers or (0, 0)))


def protocol(guest, handle: int, which: bytes) -> int:
    guid = guest.guid(SCRATCH, which)
    assert guest.call("HandleProtocol", handle, guid, SCRATCH + 16) == Status.SUCCESS
    return guest.native(SCRATCH + 16)


def test_a_program_is_loaded_from_a_path(guest):
    handle = load_next(guest)
    loaded = protocol(guest, handle, abi.LOADED_IMAGE)
    data = guest.current.read(loaded, guest.width.length(FIELDS))
    revision, parent, table, device, path, *_, base, size, code, _, _ = guest.width.unpack(
        FIELDS, data
    )
    assert (revision, parent, table) == (0x1000, guest.image, guest.system)
    assert (device, size, code) == (guest.efi.volume_handle, 0x3000, MemoryType.LOADER_CODE)
    assert guest.current.read(base + TEXT, 1) == b"\xc3"
    node = device_path.file_path(r"\EFI\NEXT.EFI") + device_path.END
    assert guest.current.read(path, len(node)) == node
    whole = protocol(guest, handle, abi.LOADED_IMAGE_DEVICE_PATH)
    assert guest.current.read(whole, len(device_path.VOLUME)) == device_path.VOLUME


def test_the_first_program_is_on_the_volume_too(guest):
    loaded = protocol(guest, guest.image, abi.LOADED_IMAGE)
    data = guest.current.read(loaded, guest.width.length(FIELDS))
    fields = guest.width.unpack(FIELDS, data)
    assert fields[3] == guest.efi.volume_handle
    node = device_path.file_path(r"\kernel")
    assert guest.current.read(fields[4], len(node)) == node


def test_a_program_from_memory_is_relocated(guest):
    size = guest.width.word
    moves = blocks((0x1000, [(10 if size == 8 else 3) << 12]))
    text = (0x401000).to_bytes(size, "little")
    program = pe(text, MACHINES[guest.width], image_base=0x400000, relocations=moves)
    assert load_file(guest, program) == Status.SUCCESS
    loaded = guest.efi.programs[guest.native(HANDLE)]
    assert guest.native(loaded.start + TEXT) == loaded.start + TEXT == loaded.entry


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"machine": 0xAA64}, Status.LOAD_ERROR),
        ({"subsystem": 3}, Status.UNSUPPORTED),
        ({"entry": 0x5000}, Status.LOAD_ERROR),
        ({"flags": 0x207, "image_base": 0x400000}, Status.LOAD_ERROR),
        ({"relocations": struct.pack("<II", 0, 4), "image_base": 0x400000}, Status.LOAD_ERROR),
    ],
)
def test_programs_that_cannot_be_loaded_leave_nothing(guest, change, status):
    program = pe(**{"machine": MACHINES[guest.width]} | change)
    at = load_file(guest, b"")  # and all that a call needs
    before = before_of(guest)
    assert at == Status.UNSUPPORTED
    assert load_file(guest, program) == status
    assert before_of(guest) == before


def test_a_program_of_64_bits_is_loaded_by_32_bits_but_not_started(guest):
    """A loader then calls the entry that the program has for 32 bits, in mixed mode."""
    other = pe(machine=MACHINES[IA32 if guest.width is X64 else X64])
    if guest.width is X64:
        assert load_file(guest, other) == Status.UNSUPPORTED
        return
    assert load_file(guest, other) == Status.SUCCESS
    handle = guest.native(HANDLE)
    assert guest.current.read(guest.efi.programs[handle].entry, 1) == b"\xc3"
    assert guest.call("StartImage", handle, 0, 0) == Status.UNSUPPORTED
    assert guest.call("UnloadImage", handle) == Status.SUCCESS


def before_of(guest):
    memory = guest.efi.memory
    regions = [(region.start, region.end, region.type) for region in memory.regions]
    return regions, dict(memory.pieces), list(guest.efi.handles), dict(guest.efi.programs)


def test_what_cannot_be_found(guest):
    load = ("LoadImage", 0, guest.image)
    assert guest.call(*load, at_path(guest, r"\gone.efi"), 0, 0, HANDLE) == Status.NOT_FOUND
    assert guest.call(*load, at_path(guest, r"\EFI"), 0, 0, HANDLE) == Status.NOT_FOUND
    assert guest.call(*load, at_path(guest, "x", False), 0, 0, HANDLE) == Status.NOT_FOUND
    assert guest.call(*load, at_path(guest, "readme"), 0, 0, HANDLE) == Status.UNSUPPORTED
    assert guest.call(*load, 0, 0, 0, HANDLE) == Status.INVALID_PARAMETER
    assert load_file(guest, b"", parent=0x1234) == Status.INVALID_PARAMETER


def test_a_program_is_started_and_returns(guest):
    handle = load_next(guest)
    program = guest.efi.programs[handle]
    end = guest.put(SCRATCH + 0x80, 7, 7)
    guest.efi.tpl = 8
    guest.cpu.regs[Reg.RBX], guest.cpu.regs[Reg.RBP] = 0xB, 0xBB
    start(guest, handle, end, end + 8)
    assert guest.cpu.rip == program.entry
    back, rsp = arguments(guest, handle)
    guest.cpu.regs[Reg.RBX] = guest.cpu.regs[Reg.RBP] = 0
    guest.cpu.regs[Reg.RAX] = Status.NOT_FOUND | guest.width.error
    guest.cpu.rip, guest.cpu.regs[Reg.RSP] = back + 3, rsp + guest.width.word
    guest.exits.vmcall()
    assert guest.status(guest.cpu.regs[Reg.RAX]) == Status.NOT_FOUND
    assert guest.cpu.rip == guest.where("StartImage") + 3
    assert guest.cpu.regs[Reg.RSP] == guest.stack and guest.efi.tpl == 8
    assert (guest.cpu.regs[Reg.RBX], guest.cpu.regs[Reg.RBP]) == (0xB, 0xBB)
    assert guest.native(end) == guest.native(end + 8) == 0
    assert handle not in guest.efi.handles and handle not in guest.efi.programs


def arguments(guest, handle: int) -> tuple[int, int]:
    """Check those of a program that begins; where it returns to, and its stack."""
    rsp = guest.cpu.regs[Reg.RSP]
    if guest.width is X64:
        assert (guest.cpu.regs[Reg.RCX], guest.cpu.regs[Reg.RDX]) == (handle, guest.system)
        assert rsp % 16 == 8
    else:
        assert [guest.native(rsp + n) for n in (4, 8)] == [handle, guest.system]
        assert rsp % 16 == 12
    return guest.native(rsp), rsp


def test_only_the_program_that_runs_may_exit(guest):
    handle = load_next(guest)
    start(guest, handle)
    assert guest.call("Exit", guest.image, 0, 0, 0) == Status.INVALID_PARAMETER
    inner = load_next(guest)
    start(guest, inner)
    assert guest.call("Exit", handle, 0, 0, 0) == Status.INVALID_PARAMETER
    assert guest.call("Exit", inner, Status.ABORTED | guest.width.error, 0, 0) == Status.ABORTED
    assert guest.cpu.regs[Reg.RSP] == guest.stack and len(guest.efi.frames) == 1
    assert guest.call("Exit", handle, 0, 0, 0) == Status.SUCCESS and not guest.efi.frames


def test_exit_gives_its_data_to_who_started_the_program(guest):
    handle = load_next(guest)
    end = guest.put(SCRATCH + 0x80, 0, 0)
    start(guest, handle, end, end + 8)
    assert guest.jump(guest.where("Exit"), handle, 0, 16, 0x5678) == 0
    assert (guest.native(end), guest.native(end + 8)) == (16, 0x5678)
    assert not guest.efi.frames


def test_a_driver_stays_if_it_succeeds(guest):
    driver = pe(machine=MACHINES[guest.width], subsystem=11)
    assert load_file(guest, driver) == Status.SUCCESS
    handle = guest.native(HANDLE)
    assert guest.efi.programs[handle].kind == MemoryType.BOOT_SERVICES_CODE
    start(guest, handle)
    assert guest.call("Exit", handle, 0, 0, 0) == Status.SUCCESS
    assert handle in guest.efi.programs
    assert guest.call("StartImage", handle, 0, 0) == Status.INVALID_PARAMETER
    assert guest.call("UnloadImage", handle) == Status.UNSUPPORTED


def test_a_program_that_was_not_started_is_unloaded(guest):
    load_next(guest)
    before = None
    for service, more in (("UnloadImage", ()), ("Exit", (0, 0, 0))):
        before = before or before_of(guest)
        handle = load_next(guest)
        assert guest.call(service, handle, *more) == Status.SUCCESS
        assert before_of(guest) == before
        assert guest.call(service, handle, *more) == Status.INVALID_PARAMETER


def test_only_the_first_program_ends_the_domain(guest):
    handle = load_next(guest)
    start(guest, handle)
    guest.call("Exit", handle, 0, 0, 0)
    with pytest.raises(DomainCrash, match="the EFI program ended, with EFI_ABORTED"):
        guest.call("Exit", guest.image, Status.ABORTED | guest.width.error, 0, 0)


def test_a_program_that_ends_in_the_function_of_an_event_ends_that_too(guest):
    event = guest.put(SCRATCH + 0x60, 0)
    assert guest.call("CreateEvent", 0x200, 16, 0x300000, 0, event) == Status.SUCCESS
    handle = load_next(guest)
    start(guest, handle)
    guest.call("SignalEvent", guest.native(event))
    assert guest.cpu.rip == 0x300000 and len(guest.efi.frames) == 2
    assert guest.call("Exit", handle, 0, 0, 0) == Status.SUCCESS
    assert not guest.efi.frames and guest.efi.tpl == 4


def test_programs_start_each_other_only_so_often(guest):
    statuses = []
    for _ in range(40):
        handle = load_next(guest)
        guest.cpu.regs[Reg.RAX] = 0
        statuses.append(guest.status(guest.jump(guest.where("StartImage"), handle, 0, 0)))
    assert statuses == [Status.SUCCESS] * 32 + [Status.OUT_OF_RESOURCES] * 8


def test_a_program_that_was_started_may_leave_the_boot_services(guest):
    handle = load_next(guest)
    start(guest, handle)
    assert guest.call("ExitBootServices", 0x1234, guest.map_key()) == Status.INVALID_PARAMETER
    assert guest.call("ExitBootServices", handle, guest.map_key()) == Status.SUCCESS
    assert not guest.efi.programs


def test_the_arguments_of_a_call_outlive_a_function_that_is_called(guest):
    """The call is made again after it; all registers are as they were."""
    event = guest.put(SCRATCH + 0x60, 0)
    args = (0x201, 16, 0x300000, 0, event)  # for ExitBootServices
    assert guest.call("CreateEvent", *args) == Status.SUCCESS
    key = guest.map_key()
    stub = guest.where("ExitBootServices")
    guest.jump(stub, guest.image, key)
    assert guest.cpu.rip == 0x300000
    rsp = guest.cpu.regs[Reg.RSP]
    back = guest.native(rsp)
    guest.cpu.regs[:4] = [0xBAD] * 4
    guest.cpu.rip, guest.cpu.regs[Reg.RSP] = back + 3, rsp + guest.width.word
    guest.exits.vmcall()
    assert guest.cpu.rip == stub
    guest.cpu.rip += 3
    guest.exits.vmcall()
    assert guest.cpu.regs[Reg.RAX] == 0 and not guest.efi.boot
