"""Leaving the boot services, and the small services beside that.

UEFI specification 2.10, sections 7.4 and 7.5.
"""

from __future__ import annotations

from typing import Final

from xenemu.entries.efi import event_services, tables
from xenemu.entries.efi.abi import (
    BOOT_STUBS,
    EXIT_BOOT_SERVICES_GROUP,
    STUB_SIZE,
    Status,
)
from xenemu.entries.efi.call import Call, Left, check, needed, put, service
from xenemu.entries.efi.tables import write_tables
from xenemu.hv.cpu import Reg

MAX_TABLES: Final = tables.MAX_TABLES
NS_PER_US: Final = 1000
LONGEST_US: Final = 1 << 40


@service("ExitBootServices", "NN")
def exit_boot_services(call: Call, image: int, key: int) -> None:
    firmware = call.firmware
    good = image in firmware.programs and key == firmware.memory.key
    check(good, Status.INVALID_PARAMETER, "the image or the memory map is another now")
    if not firmware.exiting:
        firmware.exiting = True
        event_services.signal_group(call, EXIT_BOOT_SERVICES_GROUP)
        if firmware.pending:
            event_services.again(call)
    rsp = call.stack
    back = call.read_word(rsp)
    firmware.boot = False
    firmware.virtual.pop(firmware.places.boot_code)
    firmware.events.clear()
    firmware.pending.clear()
    firmware.handles.clear()
    firmware.registrations.clear()
    firmware.programs.clear()
    firmware.files.clear()
    # What was a stub now answers by itself, for as long as the guest leaves it alone.
    stub = call.width.gone.ljust(STUB_SIZE, b"\xcc")
    put(call.domain, firmware.places.boot_code, stub * len(BOOT_STUBS))
    write_tables(call.domain, firmware)
    call.cpu.rip, call.cpu.regs[Reg.RSP] = back, rsp + call.width.word
    call.cpu.regs[Reg.RAX] = Status.SUCCESS
    raise Left(Status.SUCCESS)


@service("InstallConfigurationTable", "NN")
def install_configuration_table(call: Call, guid_at: int, table: int) -> None:
    firmware, guid = call.firmware, call.read_guid(guid_at)
    if table:
        room = guid in firmware.tables or len(firmware.tables) < MAX_TABLES
        check(room, Status.OUT_OF_RESOURCES, "there are too many configuration tables")
        firmware.tables[guid] = table
    else:
        check(guid in firmware.tables, Status.NOT_FOUND, "there is no such table")
        del firmware.tables[guid]
    write_tables(call.domain, firmware)


@service("Stall", "N")
def stall(call: Call, microseconds: int) -> None:
    call.cpu.spend(min(microseconds, LONGEST_US) * NS_PER_US)


@service("SetWatchdogTimer", "NQNN")
def set_watchdog_timer(call: Call, seconds: int, code: int, size: int, data: int) -> None:
    # DIVERGES: the watchdog never bites: who waits for a guest has --timeout.
    pass


@service("GetNextMonotonicCount", "N")
def get_next_monotonic_count(call: Call, pointer: int) -> None:
    call.write_word(needed(pointer), call.firmware.monotonic + 1, "Q")
    call.firmware.monotonic += 1
