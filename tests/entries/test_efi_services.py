"""entries/efi: the boot services, called as a PE program calls them."""

from __future__ import annotations

import itertools
import struct
import zlib

import pytest
from efiguest import MIB, SCRATCH, EfiGuest

from xenemu.entries.efi import abi
from xenemu.entries.efi import memory_map as memory_map_module
from xenemu.entries.efi.abi import MemoryType, Status
from xenemu.hv.cpu import Reg
from xenemu.hv.waking import POLL

OWN = bytes(range(16))
OTHER = bytes(range(16, 32))
GONE = 0x4000_0000  # no memory is there
TIMER, NOTIFY_WAIT, NOTIFY_SIGNAL = 1 << 31, 0x100, 0x200
FUNCTION, CONTEXT = 0x300000, 0x1234


@pytest.fixture
def guest(load):
    return EfiGuest(load)


# ---- memory ----


def memory_map(guest) -> list[tuple[int, int, int, int]]:
    """Type, start, pages and attribute of each region."""
    at = SCRATCH + 0x1000
    guest.put(at, 0x10000)
    assert guest.call("GetMemoryMap", at, at + 64, at + 8, at + 16, at + 24) == 0
    size, step = guest.word(at), guest.word(at + 16)
    assert guest.word(at + 24, 4) == 1 and step > 40 and not size % step
    data = guest.current.read(at + 64, size)
    found = [struct.unpack_from("<I4xQQQQ", data, n) for n in range(0, size, step)]
    assert all(virtual == 0 for _, _, virtual, _, _ in found)
    return [(kind, start, pages, attribute) for kind, start, _, pages, attribute in found]


def test_the_memory_map_has_all_of_the_domains_memory(guest):
    regions = memory_map(guest)
    ends = [start + (pages << 12) for _, start, pages, _ in regions]
    assert [start for _, start, _, _ in regions] == sorted(start for _, start, _, _ in regions)
    assert all(end <= start for end, (_, start, _, _) in zip(ends, regions[1:], strict=False))
    ram = [region for region in regions if region[1] < 64 * MIB]
    assert sum(pages for _, _, pages, _ in ram) << 12 == 64 * MIB
    kinds = {kind for kind, _, _, _ in regions}
    assert {MemoryType.CONVENTIONAL, MemoryType.ACPI_RECLAIM, MemoryType.RESERVED} <= kinds
    for kind, _, _, attribute in regions:
        assert bool(attribute >> 63) == (kind in (5, 6)) and attribute & 8


def test_a_small_buffer_is_told_the_size(guest):
    size = guest.put(SCRATCH, 16)
    args = (size, SCRATCH + 64, SCRATCH + 8, SCRATCH + 16, SCRATCH + 24)
    assert guest.call("GetMemoryMap", *args) == Status.BUFFER_TOO_SMALL
    assert guest.word(size) == 48 * len(guest.efi.memory.regions)
    assert guest.call("GetMemoryMap", 0, 0, 0, 0, 0) == Status.INVALID_PARAMETER


@pytest.mark.parametrize(
    ("how", "wanted", "found"),
    [(0, 0, None), (1, 0x7FFFFF, 0x7FE000), (2, 0x500000, 0x500000), (1, 0x7FF000, 0x7FD000)],
)
def test_pages_are_given_out_and_taken_back(guest, how, wanted, found):
    before = memory_map(guest)
    at = guest.put(SCRATCH, wanted)
    assert guest.call("AllocatePages", how, MemoryType.LOADER_DATA, 2, at) == Status.SUCCESS
    start = guest.word(at)
    assert found in (None, start)
    mine = next(region for region in memory_map(guest) if region[1] <= start < region[1] + 0x2000)
    assert mine[0] == MemoryType.LOADER_DATA
    assert guest.call("FreePages", start, 2) == Status.SUCCESS
    assert memory_map(guest) == before


@pytest.mark.parametrize(
    ("how", "kind", "pages", "wanted", "status"),
    [
        (3, 2, 1, 0, Status.INVALID_PARAMETER),
        (0, 7, 1, 0, Status.INVALID_PARAMETER),
        (0, 14, 1, 0, Status.INVALID_PARAMETER),
        (0, 0x6FFFFFFF, 1, 0, Status.INVALID_PARAMETER),
        (0, 2, 0, 0, Status.INVALID_PARAMETER),
        (0, 2, 64 << 8, 0, Status.OUT_OF_RESOURCES),
        (0, 2, (1 << 64) - 1, 0, Status.OUT_OF_RESOURCES),
        (1, 2, 1, 0xFFF, Status.OUT_OF_RESOURCES),
        (2, 2, 1, 0, Status.NOT_FOUND),
        (2, 2, 1, 0x500001, Status.NOT_FOUND),
        (2, 2, 1, GONE, Status.NOT_FOUND),
        (2, 2, 1 << 52, 0x500000, Status.NOT_FOUND),
        (2, 2, 1, 0xFFFFFFFFFFFFF000, Status.NOT_FOUND),
    ],
)
def test_pages_that_cannot_be_given_out(guest, how, kind, pages, wanted, status):
    before = memory_map(guest)
    at = guest.put(SCRATCH, wanted)
    assert guest.call("AllocatePages", how, kind, pages, at) == status
    assert guest.word(at) == wanted and memory_map(guest) == before


def test_only_what_was_given_out_is_taken_back(guest):
    before = memory_map(guest)
    for start, pages in ((0x500000, 1), (GONE, 1), (0xFC000000, 1 << 52), (0xFEFF8000, 1)):
        assert guest.call("FreePages", start, pages) == Status.NOT_FOUND
    assert guest.call("FreePages", 0x500001, 1) == Status.INVALID_PARAMETER
    assert memory_map(guest) == before


def test_an_own_type_of_memory_is_kept(guest):
    at = guest.put(SCRATCH, 0x500000)
    assert guest.call("AllocatePages", 2, 0x80000001, 1, at) == Status.SUCCESS
    assert (0x80000001, 0x500000, 1, 8) in memory_map(guest)


def test_the_map_may_not_become_endless(guest, monkeypatch):
    monkeypatch.setattr(memory_map_module, "MAX_REGIONS", 64)
    at, answers = SCRATCH, set()
    for n in range(64):
        guest.put(at, 0x300000 + n * 0x2000)
        answers.add(guest.call("AllocatePages", 2, 2, 1, at))
        if Status.OUT_OF_RESOURCES in answers:
            break
    assert answers == {Status.SUCCESS, Status.OUT_OF_RESOURCES}


def test_pool_is_given_out_and_taken_back(guest):
    at, pieces = SCRATCH, []
    for size in (1, 16, 17, 5000, 0):
        assert guest.call("AllocatePool", MemoryType.LOADER_DATA, size, at) == Status.SUCCESS
        pieces.append((guest.word(at), size))
    spans = sorted((start, start + max(size, 1)) for start, size in pieces)
    assert all(a[1] <= b[0] for a, b in itertools.pairwise(spans))
    assert all(start % 16 == 0 for start, _ in spans)
    free = sum(size for _, size in guest.efi.memory.free[MemoryType.LOADER_DATA])
    for start, _ in pieces:
        assert guest.call("FreePool", start) == Status.SUCCESS
        assert guest.call("FreePool", start) == Status.INVALID_PARAMETER
    pool = guest.efi.memory.free[MemoryType.LOADER_DATA]
    assert sum(size for _, size in pool) > free and len(pool) <= 2
    assert guest.call("AllocatePool", MemoryType.LOADER_DATA, 1 << 40, at) == 9
    assert guest.call("AllocatePool", MemoryType.LOADER_DATA, 1, 0) == 2
    assert guest.call("AllocatePool", MemoryType.CONVENTIONAL, 1, at) == 2


def test_memory_is_copied_set_and_summed(guest):
    data = bytes(range(256)) * 1024
    guest.current.write(0x500000, data)
    for to in (0x500000 + 100, 0x500000, 0x600000):
        expected = guest.current.read(0x500000, len(data))
        guest.jump(guest.where("CopyMem"), to, 0x500000, len(data))
        assert guest.current.read(to, len(data)) == expected
    guest.jump(guest.where("SetMem"), 0x600001, 0x20000, 0x15A)
    assert guest.current.read(0x600000, 0x20002)[1:-1] == b"\x5a" * 0x20000
    assert guest.call("CalculateCrc32", 0x600000, 0x12345, SCRATCH) == Status.SUCCESS
    assert guest.word(SCRATCH, 4) == zlib.crc32(guest.current.read(0x600000, 0x12345))
    assert guest.cpu.spent_ns > 0
    assert guest.call("SetMem", GONE, 1 << 63, 0) == Status.INVALID_PARAMETER


# ---- events ----


def create(guest, kind: int, tpl: int = 8, notify: int = FUNCTION, group: bytes = b"") -> int:
    if group:
        where = guest.guid(SCRATCH + 16, group)
        args = (kind, tpl, notify, CONTEXT, where, SCRATCH)
        assert guest.call("CreateEventEx", *args) == Status.SUCCESS
    else:
        assert guest.call("CreateEvent", kind, tpl, notify, CONTEXT, SCRATCH) == Status.SUCCESS
    return guest.word(SCRATCH)


def test_an_event_is_signalled_once(guest):
    event = create(guest, 0)
    assert guest.call("CheckEvent", event) == Status.NOT_READY
    assert guest.call("SignalEvent", event) == Status.SUCCESS
    assert guest.call("CheckEvent", event) == Status.SUCCESS
    assert guest.call("CheckEvent", event) == Status.NOT_READY
    assert guest.call("CloseEvent", event) == Status.SUCCESS
    assert guest.call("CheckEvent", event) == Status.INVALID_PARAMETER


@pytest.mark.parametrize("kind", [1, NOTIFY_WAIT | NOTIFY_SIGNAL, 0x202, 0x60000000])
def test_events_that_cannot_be(guest, kind):
    before = dict(guest.efi.events)
    assert guest.call("CreateEvent", kind, 8, FUNCTION, 0, SCRATCH) == Status.INVALID_PARAMETER
    assert guest.call("CreateEvent", NOTIFY_SIGNAL, 8, 0, 0, SCRATCH) == Status.INVALID_PARAMETER
    assert guest.call("CreateEvent", NOTIFY_WAIT, 4, 1, 0, SCRATCH) == Status.INVALID_PARAMETER
    assert guest.efi.events == before


def test_timers_go_by_virtual_time(guest):
    event = create(guest, TIMER)
    assert guest.call("SetTimer", event, 2, 50) == Status.SUCCESS  # units of 100 ns
    guest.cpu.now_ns = 4999
    assert guest.call("CheckEvent", event) == Status.NOT_READY
    guest.cpu.now_ns = 5000
    assert guest.call("CheckEvent", event) == Status.SUCCESS
    guest.cpu.now_ns = 50000
    assert guest.call("CheckEvent", event) == Status.NOT_READY
    assert guest.call("SetTimer", event, 1, 10) == Status.SUCCESS
    for now in (51000, 52000, 57500):
        guest.cpu.now_ns = now
        assert guest.call("CheckEvent", event) == Status.SUCCESS
        assert guest.call("CheckEvent", event) == Status.NOT_READY
    assert guest.call("SetTimer", event, 0, 0) == Status.SUCCESS
    guest.cpu.now_ns = 90000
    assert guest.call("CheckEvent", event) == Status.NOT_READY
    assert guest.call("SetTimer", event, 3, 0) == Status.INVALID_PARAMETER
    assert guest.call("SetTimer", create(guest, 0), 1, 0) == Status.INVALID_PARAMETER


def test_waiting_takes_the_first_that_is_signalled(guest):
    events = [create(guest, 0) for _ in range(3)]
    guest.call("SignalEvent", events[1])
    at = guest.put(SCRATCH + 64, *events)
    assert guest.call("WaitForEvent", 3, at, SCRATCH) == Status.SUCCESS
    assert guest.word(SCRATCH) == 1


def test_waiting_lets_the_vcpu_sleep_until_its_timer(guest):
    event = create(guest, TIMER)
    guest.call("SetTimer", event, 2, 50)
    at, stub = guest.put(SCRATCH + 64, event), guest.where("WaitForEvent")
    guest.jump(stub, 1, at, SCRATCH)
    assert guest.cpu.rip == stub  # the call is made again
    assert guest.domain.vcpus[0].blocked
    assert guest.domain.timers.deadlines_ns[POLL, 0] == 5000
    guest.cpu.now_ns = 5000
    assert guest.call("WaitForEvent", 1, at, SCRATCH) == Status.SUCCESS


def test_waiting_for_a_key_ends_with_one(guest):
    key = guest.word(guest.word(guest.system + 48) + 16)
    at, stub = guest.put(SCRATCH + 64, key), guest.where("WaitForEvent")
    guest.jump(stub, 1, at, SCRATCH)
    assert guest.domain.vcpus[0].blocked
    guest.console.feed(guest.domain, b"k")
    assert not guest.domain.vcpus[0].blocked
    assert guest.call("WaitForEvent", 1, at, SCRATCH) == Status.SUCCESS
    assert guest.call("CloseEvent", key) == Status.INVALID_PARAMETER


def test_what_nobody_can_wait_for(guest):
    event = create(guest, NOTIFY_SIGNAL)
    at = guest.put(SCRATCH + 64, create(guest, 0), event)
    assert guest.call("WaitForEvent", 2, at, SCRATCH) == Status.INVALID_PARAMETER
    assert guest.word(SCRATCH) == 1
    assert guest.call("WaitForEvent", 0, at, SCRATCH) == Status.INVALID_PARAMETER
    assert guest.call("WaitForEvent", 1 << 60, at, SCRATCH) == Status.INVALID_PARAMETER
    assert guest.call("CheckEvent", event) == Status.INVALID_PARAMETER
    guest.jump(guest.where("RaiseTPL"), 8)
    assert guest.call("WaitForEvent", 1, at, SCRATCH) == Status.UNSUPPORTED


def called_back(guest, event: int) -> int:
    """The address that a function of the guest's returns to, which must be the event's."""
    cpu = guest.cpu
    assert cpu.rip == FUNCTION and cpu.regs[Reg.RSP] % 16 == 8
    assert (cpu.regs[Reg.RCX], cpu.regs[Reg.RDX]) == (event, CONTEXT)
    return guest.word(cpu.regs[Reg.RSP])


def return_to(guest, stub: int) -> None:
    guest.cpu.regs[Reg.RSP] += 8
    guest.cpu.rip = stub + 3
    guest.exits.vmcall()


def test_the_function_of_an_event_is_called_and_the_service_goes_on(guest):
    event = create(guest, NOTIFY_SIGNAL)
    stub = guest.where("SignalEvent")
    guest.jump(stub, event)
    back = called_back(guest, event)
    assert guest.efi.tpl == 8
    guest.cpu.regs[Reg.RAX] = 0xBAD
    return_to(guest, back)
    assert guest.cpu.rip == stub + 3 and guest.cpu.regs[Reg.RSP] == guest.stack
    assert guest.cpu.regs[Reg.RAX] == 0 and guest.efi.tpl == 4


def test_a_function_waits_until_the_priority_allows_it(guest):
    event = create(guest, NOTIFY_SIGNAL)
    assert guest.jump(guest.where("RaiseTPL"), 16) == 4
    assert guest.call("SignalEvent", event) == Status.SUCCESS
    assert guest.cpu.rip != FUNCTION
    guest.jump(guest.where("RestoreTPL"), 4)
    called_back(guest, event)


def test_functions_of_a_group_are_called_one_after_another(guest):
    group = bytes(16)
    events = [create(guest, NOTIFY_SIGNAL, group=group) for _ in range(2)]
    guest.jump(guest.where("SignalEvent"), events[0])
    return_to(guest, called_back(guest, events[0]))
    return_to(guest, called_back(guest, events[1]))
    assert guest.cpu.regs[Reg.RSP] == guest.stack


def test_the_function_of_an_event_that_is_waited_for_may_signal_it(guest):
    event = create(guest, NOTIFY_WAIT)
    at, stub = guest.put(SCRATCH + 64, event), guest.where("WaitForEvent")
    guest.jump(stub, 1, at, SCRATCH)
    back = called_back(guest, event)
    guest.efi.events[event].signalled = True  # as SignalEvent does there
    return_to(guest, back)
    assert guest.cpu.rip == stub
    assert guest.call("WaitForEvent", 1, at, SCRATCH) == Status.SUCCESS


def test_the_functions_of_exit_boot_services_are_called_before(guest):
    event = create(guest, 0x201)
    key, stub = guest.map_key(), guest.where("ExitBootServices")
    guest.jump(stub, guest.image, key)
    back = called_back(guest, event)
    assert guest.efi.boot
    return_to(guest, back)
    assert guest.cpu.rip == stub and guest.efi.boot
    assert guest.call("ExitBootServices", guest.image, key) == Status.SUCCESS
    assert not guest.efi.boot


# ---- protocols ----


def install(guest, protocol: bytes, interface: int, handle: int = 0) -> int:
    at = guest.put(SCRATCH, handle)
    where = guest.guid(SCRATCH + 16, protocol)
    assert guest.call("InstallProtocolInterface", at, where, 0, interface) == Status.SUCCESS
    return guest.word(at)


def test_a_protocol_is_installed_found_and_removed(guest):
    handle = install(guest, OWN, 0x1111)
    assert install(guest, OTHER, 0x2222, handle) == handle
    at, protocol = SCRATCH + 64, guest.guid(SCRATCH + 16, OTHER)
    assert guest.call("HandleProtocol", handle, protocol, at) == Status.SUCCESS
    assert guest.word(at) == 0x2222
    assert guest.call("OpenProtocol", handle, protocol, at, 0, 0, 2) == Status.SUCCESS
    assert guest.call("OpenProtocol", handle, protocol, 0, 0, 0, 4) == Status.SUCCESS
    assert guest.call("OpenProtocol", handle, protocol, at, 0, 0, 3) == Status.INVALID_PARAMETER
    assert guest.call("CloseProtocol", handle, protocol, 0, 0) == Status.SUCCESS
    assert guest.call("ReinstallProtocolInterface", handle, protocol, 1, 2) == Status.NOT_FOUND
    again = guest.call("ReinstallProtocolInterface", handle, protocol, 0x2222, 0x3333)
    assert again == Status.SUCCESS
    assert guest.call("UninstallProtocolInterface", handle, protocol, 0x2222) == Status.NOT_FOUND
    assert guest.call("UninstallProtocolInterface", handle, protocol, 0x3333) == Status.SUCCESS
    assert guest.call("HandleProtocol", handle, protocol, at) == Status.UNSUPPORTED
    own = guest.guid(SCRATCH + 16, OWN)
    assert guest.call("UninstallProtocolInterface", handle, own, 0x1111) == Status.SUCCESS
    assert guest.call("HandleProtocol", handle, own, at) == Status.INVALID_PARAMETER


def test_several_are_installed_all_or_none(guest):
    one, two = guest.guid(SCRATCH + 16, OWN), guest.guid(SCRATCH + 32, OTHER)
    at = guest.put(SCRATCH, 0)
    name = "InstallMultipleProtocolInterfaces"
    assert guest.call(name, at, one, 0x11, two, 0x22, 0) == Status.SUCCESS
    handle = guest.word(at)
    assert guest.efi.handles[handle] == {OWN: 0x11, OTHER: 0x22}
    assert guest.call(name, at, one, 0x33, 0) == Status.INVALID_PARAMETER
    assert guest.call(name, at, one, 0x33, one, 0x44, 0) == Status.ALREADY_STARTED
    name = "UninstallMultipleProtocolInterfaces"
    assert guest.call(name, handle, one, 0x11, two, 0x23, 0) == Status.INVALID_PARAMETER
    assert guest.efi.handles[handle] == {OWN: 0x11, OTHER: 0x22}
    assert guest.call(name, handle, one, 0x11, two, 0x22, 0) == Status.SUCCESS
    assert handle not in guest.efi.handles


def test_handles_are_found_by_protocol(guest):
    handles = [install(guest, OWN, n) for n in (1, 2)]
    protocol, size = guest.guid(SCRATCH + 16, OWN), guest.put(SCRATCH + 64, 8)
    search = ("LocateHandle", 2, protocol, 0, size, SCRATCH + 128)
    assert guest.call(*search) == Status.BUFFER_TOO_SMALL
    assert guest.word(size) == 16
    assert guest.call(*search) == Status.SUCCESS
    assert [guest.word(SCRATCH + 128 + 8 * n) for n in range(2)] == handles
    found = ("LocateHandleBuffer", 2, protocol, 0, SCRATCH + 64, SCRATCH + 72)
    assert guest.call(*found) == Status.SUCCESS
    assert guest.word(SCRATCH + 64) == 2 and guest.word(guest.word(SCRATCH + 72) + 8) == handles[1]
    assert guest.call("FreePool", guest.word(SCRATCH + 72)) == Status.SUCCESS
    assert guest.call("LocateHandle", 0, 0, 0, guest.put(SCRATCH, 1 << 12), SCRATCH + 128) == 0
    none = guest.guid(SCRATCH + 16, OTHER)
    assert guest.call("LocateHandle", 2, none, 0, size, SCRATCH + 128) == Status.NOT_FOUND
    assert guest.call("LocateHandle", 3, none, 0, size, 0) == Status.INVALID_PARAMETER
    assert guest.call("LocateProtocol", none, 0, SCRATCH) == Status.NOT_FOUND


def test_who_registered_is_told_of_new_handles(guest):
    event, protocol = create(guest, 0), guest.guid(SCRATCH + 32, OWN)
    assert guest.call("RegisterProtocolNotify", protocol, event, SCRATCH + 64) == Status.SUCCESS
    registration = guest.word(SCRATCH + 64)
    assert guest.call("LocateProtocol", protocol, registration, SCRATCH) == Status.NOT_FOUND
    handle = install(guest, OWN, 0x77)
    assert guest.call("CheckEvent", event) == Status.SUCCESS
    size = guest.put(SCRATCH + 72, 64)
    search = ("LocateHandle", 1, 0, registration, size, SCRATCH + 128)
    assert guest.call(*search) == Status.SUCCESS
    assert guest.word(SCRATCH + 128) == handle
    assert guest.call(*search) == Status.NOT_FOUND


def test_the_protocols_of_a_handle(guest):
    handle = install(guest, OWN, 1)
    assert guest.call("ProtocolsPerHandle", handle, SCRATCH, SCRATCH + 8) == Status.SUCCESS
    assert guest.word(SCRATCH + 8) == 1
    assert guest.current.read(guest.word(guest.word(SCRATCH)), 16) == OWN


def test_there_are_no_drivers(guest):
    assert guest.call("ConnectController", guest.image, 0, 0, 1) == Status.NOT_FOUND
    assert guest.call("DisconnectController", guest.image, 0, 0) == Status.SUCCESS
    assert guest.call("DisconnectController", 1, 0, 0) == Status.INVALID_PARAMETER


@pytest.mark.parametrize("path", [b"\x04\x03\x03\x00", b"\x04\x03\x04\x00" * 2000])
def test_device_paths_that_have_no_end(guest, path):
    guest.current.write(0x500000, path)
    at, protocol = guest.put(SCRATCH + 64, 0x500000), guest.guid(SCRATCH, abi.LOAD_FILE2)
    assert guest.call("LocateDevicePath", protocol, at, at + 8) == Status.INVALID_PARAMETER


# ---- leaving ----


def test_the_boot_services_are_left_with_the_maps_key(guest):
    assert guest.call("ExitBootServices", guest.image, 1) == Status.INVALID_PARAMETER
    key = guest.map_key()
    assert guest.call("ExitBootServices", guest.image + 1, key) == Status.INVALID_PARAMETER
    guest.call("AllocatePages", 0, 2, 1, SCRATCH)
    assert guest.call("ExitBootServices", guest.image, key) == Status.INVALID_PARAMETER
    stub, back = guest.where("Stall"), 0x1234
    guest.leave_boot_services()
    assert guest.cpu.rip == back and guest.cpu.regs[Reg.RSP] == guest.stack + 8
    table = [guest.word(guest.system + at) for at in (40, 48, 56, 64, 72, 80, 96)]
    assert table == [0, 0, 0, 0, 0, 0, 0]
    # What was a stub answers by itself: mov $EFI_UNSUPPORTED, %rax; ret
    assert guest.current.read(stub, 11) == bytes.fromhex("48b8 0300000000000080 c3")
    guest.cpu.rip = stub + 3
    assert not guest.domain.arch.firmware.answers(guest.current)


def test_counts_and_waits(guest):
    for n in (1, 2):
        assert guest.call("GetNextMonotonicCount", SCRATCH) == Status.SUCCESS
        assert guest.word(SCRATCH) == n
    assert guest.call("GetNextHighMonotonicCount", SCRATCH) == Status.SUCCESS
    assert guest.word(SCRATCH, 4) == 1
    spent = guest.cpu.spent_ns
    assert guest.call("Stall", 1000) == Status.SUCCESS
    assert guest.cpu.spent_ns - spent == 1_000_000
    assert guest.call("SetWatchdogTimer", 300, 0, 0, 0) == Status.SUCCESS
