"""Time, reset and the map of virtual addresses: what stays after the boot services are gone.

UEFI specification 2.10, sections 8.3 to 8.5.
"""

from __future__ import annotations

import datetime
import struct
from typing import Final

from xenemu.abi.sched import SHUTDOWN_poweroff, SHUTDOWN_reboot
from xenemu.entries.efi.abi import MEMORY_DESCRIPTOR_VERSION, Status
from xenemu.entries.efi.call import Call, EfiError, Left, check, needed, service
from xenemu.entries.efi.tables import write_tables
from xenemu.hv import scheduler
from xenemu.x86.paging import PAGE_MASK, PAGE_SHIFT

TIME: Final = struct.Struct("<H6BIhBB")
CAPABILITIES: Final = struct.pack("<IIB3x", 1, 50_000_000, 0)  # a tick a second
UNSPECIFIED_TIMEZONE: Final = 0x7FF
MAX_TIMEZONE: Final = 1440
NS_PER_S: Final = 1_000_000_000
EPOCH: Final = datetime.datetime(1970, 1, 1)  # EFI's time has no zone of ours
RESET_COLD, RESET_WARM, RESET_SHUTDOWN, RESET_PLATFORM = range(4)
DESCRIPTOR: Final = struct.Struct("<I4xQQQQ")
MAX_DESCRIPTORS: Final = 1 << 12


@service("GetTime", "NN")
def get_time(call: Call, time_at: int, capabilities_at: int) -> None:
    firmware = call.firmware
    now_ns = call.domain.wallclock_ns + firmware.clock_offset_ns + call.cpu.now_ns
    seconds, ns = divmod(now_ns, NS_PER_S)
    try:
        now = EPOCH + datetime.timedelta(seconds=seconds)
    except OverflowError:
        raise EfiError(Status.DEVICE_ERROR, "the year has five digits") from None
    date = (now.year, now.month, now.day, now.hour, now.minute, now.second)
    call.write(needed(time_at), TIME.pack(*date, 0, ns, *firmware.timezone, 0))
    if capabilities_at:
        call.write(capabilities_at, CAPABILITIES)


@service("SetTime", "N")
def set_time(call: Call, time_at: int) -> None:
    firmware = call.firmware
    fields = TIME.unpack(call.read(needed(time_at), TIME.size))
    year, month, day, hour, minute, second, _, ns, timezone, daylight, _ = fields
    zone = timezone == UNSPECIFIED_TIMEZONE or abs(timezone) <= MAX_TIMEZONE
    good = 1900 <= year <= 9999 and ns < NS_PER_S and zone and not daylight & ~3
    check(good, Status.INVALID_PARAMETER, "there is no such time")
    try:
        given = datetime.datetime(year, month, day, hour, minute, second)
    except ValueError as error:
        raise EfiError(Status.INVALID_PARAMETER, str(error)) from None
    given_ns = (given - EPOCH) // datetime.timedelta(seconds=1) * NS_PER_S + ns
    firmware.clock_offset_ns = given_ns - call.domain.wallclock_ns - call.cpu.now_ns
    firmware.timezone = timezone, daylight


@service("ResetSystem", "INNN")
def reset_system(call: Call, how: int, status: int, size: int, data: int) -> None:
    reason = SHUTDOWN_poweroff if how == RESET_SHUTDOWN else SHUTDOWN_reboot
    scheduler.shutdown(call.domain, reason)
    call.cpu.stop()
    raise Left


@service("SetVirtualAddressMap", "NNIN")
def set_virtual_address_map(
    call: Call, size: int, descriptor_size: int, version: int, map_at: int
) -> None:
    """Tell the guest's addresses of the runtime: stubs answer there, tables point there."""
    firmware, places = call.firmware, call.firmware.places
    late = not firmware.boot and not firmware.mapped
    check(late, Status.UNSUPPORTED, "it is called once, after ExitBootServices")
    good = (
        version == MEMORY_DESCRIPTOR_VERSION
        and descriptor_size >= DESCRIPTOR.size
        and not size % descriptor_size
        and size // descriptor_size <= MAX_DESCRIPTORS
    )
    check(good, Status.INVALID_PARAMETER, f"{size} bytes of descriptors of {descriptor_size}")
    moved = {}
    for at in range(map_at, map_at + size, descriptor_size):
        _, start, virtual, pages, _ = DESCRIPTOR.unpack(call.read(at, DESCRIPTOR.size))
        for place in (places.runtime_code, places.runtime_data):
            if start <= place < start + (pages << PAGE_SHIFT) and not virtual & PAGE_MASK:
                moved[place] = virtual + place - start & call.width.mask
    check(len(moved) == 2, Status.NOT_FOUND, "the runtime's memory is not all in the map")
    firmware.mapped = True
    firmware.runtime_code = moved[places.runtime_code]
    firmware.runtime_data = moved[places.runtime_data]
    # The caller is still at the old address, and returns there.
    firmware.virtual = dict.fromkeys(
        (places.runtime_code, firmware.runtime_code), places.runtime_code
    )
    write_tables(call.domain, firmware)


@service("GetNextHighMonotonicCount", "N")
def get_next_high_monotonic_count(call: Call, pointer: int) -> None:
    count = (call.firmware.monotonic >> 32) + 1
    call.write_word(needed(pointer), count, "I")
    call.firmware.monotonic = count << 32
