"""Handles and their protocols.

UEFI specification 2.10, section 7.3.
"""

from __future__ import annotations

import uuid
from typing import Final

from xenemu.entries.efi import event_services
from xenemu.entries.efi.abi import DEVICE_PATH, Status
from xenemu.entries.efi.call import Call, EfiError, check, needed, service
from xenemu.entries.efi.device_path import read_path
from xenemu.entries.efi.memory_services import pool
from xenemu.entries.efi.state import HANDLE_BASE, MAX_EVER, MAX_THINGS, Firmware, handle_of

REGISTRATION_BASE: Final = 0xC000_0000
ALL_HANDLES, BY_REGISTER_NOTIFY, BY_PROTOCOL = range(3)
MAX_AT_ONCE: Final = 64
TEST_PROTOCOL: Final = 4
OPEN_ATTRIBUTES: Final = {1, 2, 4, 8, 0x10, 0x20, 0x30}


def _protocols(call: Call, handle: int) -> dict[bytes, int]:
    protocols = call.firmware.handles.get(handle)
    if protocols is None:
        raise EfiError(Status.INVALID_PARAMETER, f"{handle:#x} is no handle")
    return protocols


def _interface(call: Call, handle: int, protocol: bytes, error: Status) -> int:
    protocols = _protocols(call, handle)
    if protocol not in protocols:
        raise EfiError(error, f"{handle:#x} has no protocol {_name(protocol)}")
    return protocols[protocol]


def _name(protocol: bytes) -> str:
    return str(uuid.UUID(bytes_le=protocol))


# ---- installing ----


@service("InstallProtocolInterface", "NNIN")
def install_protocol_interface(
    call: Call, handle_at: int, protocol_at: int, kind: int, interface: int
) -> None:
    check(not kind, Status.INVALID_PARAMETER, f"there is no interface type {kind}")
    protocol = call.read_guid(protocol_at)
    _install(call, handle_at, {protocol: interface})


@service("InstallMultipleProtocolInterfaces", "N")
def install_multiple(call: Call, handle_at: int) -> None:
    pairs = _pairs(call)
    check(len(dict(pairs)) == len(pairs), Status.ALREADY_STARTED, "a protocol is given twice")
    _install(call, handle_at, dict(pairs))


def _pairs(call: Call) -> list[tuple[bytes, int]]:
    """Protocols and interfaces, in the arguments from the second on, up to a null."""
    pairs: list[tuple[bytes, int]] = []
    for n in range(MAX_AT_ONCE):
        protocol_at = call.argument(1 + 2 * n)
        if not protocol_at:
            return pairs
        pairs.append((call.read_guid(protocol_at), call.argument(2 + 2 * n)))
    raise EfiError(Status.INVALID_PARAMETER, "the list of protocols does not end")


def _install(call: Call, handle_at: int, interfaces: dict[bytes, int]) -> None:
    firmware, handle = call.firmware, call.read_word(needed(handle_at))
    if handle:
        protocols = _protocols(call, handle)
        known = interfaces.keys() & protocols.keys()
        check(not known, Status.INVALID_PARAMETER, f"{handle:#x} has the protocol already")
        check(len(protocols) < MAX_AT_ONCE, Status.OUT_OF_RESOURCES, "there are too many protocols")
        protocols.update(interfaces)
    else:
        full = len(firmware.handles) >= MAX_THINGS or firmware.next_handle >= MAX_EVER
        check(interfaces and not full, Status.OUT_OF_RESOURCES, "no handle can be made")
        call.write_word(handle_at, HANDLE_BASE + 16 * firmware.next_handle)
        handle = handle_of(firmware, interfaces)
    for protocol, event, news in firmware.registrations.values():
        if protocol in interfaces:
            if handle not in news:
                news.append(handle)
            event_services.signal(call, event)


@service("ReinstallProtocolInterface", "NNNN")
def reinstall_protocol_interface(
    call: Call, handle: int, protocol_at: int, old: int, new: int
) -> None:
    protocol = call.read_guid(protocol_at)
    found = _interface(call, handle, protocol, Status.NOT_FOUND)
    check(found == old, Status.NOT_FOUND, f"{old:#x} is not its interface")
    _protocols(call, handle)[protocol] = new


@service("UninstallProtocolInterface", "NNN")
def uninstall_protocol_interface(call: Call, handle: int, protocol_at: int, interface: int) -> None:
    _uninstall(call, handle, [(call.read_guid(protocol_at), interface)], Status.NOT_FOUND)


@service("UninstallMultipleProtocolInterfaces", "N")
def uninstall_multiple(call: Call, handle: int) -> None:
    _uninstall(call, handle, _pairs(call), Status.INVALID_PARAMETER)


def _uninstall(call: Call, handle: int, pairs: list[tuple[bytes, int]], error: Status) -> None:
    protocols = _protocols(call, handle)
    for protocol, interface in pairs:
        found = _interface(call, handle, protocol, error)
        check(found == interface, error, f"{interface:#x} is not its interface")
    for protocol, _ in pairs:
        protocols.pop(protocol, None)
    if not protocols:
        del call.firmware.handles[handle]


# ---- finding ----


@service("HandleProtocol", "NNN")
def handle_protocol(call: Call, handle: int, protocol_at: int, interface_at: int) -> None:
    found = _interface(call, handle, call.read_guid(protocol_at), Status.UNSUPPORTED)
    call.write_word(needed(interface_at), found)


@service("OpenProtocol", "NNNNNI")
def open_protocol(
    call: Call,
    handle: int,
    protocol_at: int,
    interface_at: int,
    agent: int,
    controller: int,
    attributes: int,
) -> None:
    good = attributes in OPEN_ATTRIBUTES
    check(good, Status.INVALID_PARAMETER, f"a protocol cannot be opened as {attributes:#x}")
    found = _interface(call, handle, call.read_guid(protocol_at), Status.UNSUPPORTED)
    if attributes != TEST_PROTOCOL:
        call.write_word(needed(interface_at), found)


@service("CloseProtocol", "NNNN")
def close_protocol(call: Call, handle: int, protocol_at: int, agent: int, controller: int) -> None:
    _interface(call, handle, call.read_guid(protocol_at), Status.NOT_FOUND)


@service("ProtocolsPerHandle", "NNN")
def protocols_per_handle(call: Call, handle: int, buffer_at: int, count_at: int) -> None:
    """Give a piece of pool with a pointer to each GUID; the GUIDs come after the pointers."""
    protocols = _protocols(call, handle)
    check(buffer_at and count_at, Status.INVALID_PARAMETER, "a pointer is null")
    size = call.width.word * len(protocols)
    at = pool(call, size + 16 * len(protocols))
    pointers = call.width.pointers(*(at + size + 16 * n for n in range(len(protocols))))
    call.write(at, pointers + b"".join(protocols))
    call.write_word(buffer_at, at)
    call.write_word(count_at, len(protocols))


@service("RegisterProtocolNotify", "NNN")
def register_protocol_notify(call: Call, protocol_at: int, event: int, pointer: int) -> None:
    firmware, protocol = call.firmware, call.read_guid(protocol_at)
    check(event in firmware.events, Status.INVALID_PARAMETER, f"{event:#x} is no event")
    full = len(firmware.registrations) >= MAX_AT_ONCE
    check(not full, Status.OUT_OF_RESOURCES, "there are too many registrations")
    free = 0
    while REGISTRATION_BASE + 16 * free in firmware.registrations:
        free += 1
    call.write_word(needed(pointer), REGISTRATION_BASE + 16 * free)
    firmware.registrations[REGISTRATION_BASE + 16 * free] = protocol, event, []


def _search(call: Call, how: int, protocol_at: int, registration: int) -> list[int]:
    """The handles that a search finds, in the order they were made; NOT_FOUND without any."""
    firmware = call.firmware
    if how == ALL_HANDLES:
        found = list(firmware.handles)
    elif how == BY_PROTOCOL:
        found = _with_protocol(firmware, call.read_guid(protocol_at))
    else:
        check(how == BY_REGISTER_NOTIFY, Status.INVALID_PARAMETER, f"there is no search {how}")
        found = _news(call, registration)
    check(found, Status.NOT_FOUND, "there is no such handle")
    return found


def _with_protocol(firmware: Firmware, protocol: bytes) -> list[int]:
    return [handle for handle, protocols in firmware.handles.items() if protocol in protocols]


def _news(call: Call, registration: int) -> list[int]:
    """The next handle that a registration has not told of yet."""
    if registration not in call.firmware.registrations:
        raise EfiError(Status.INVALID_PARAMETER, f"{registration:#x} is no registration")
    _, _, news = call.firmware.registrations[registration]
    while news:
        handle = news.pop(0)
        if handle in call.firmware.handles:
            return [handle]
    return []


@service("LocateHandle", "INNNN")
def locate_handle(
    call: Call, how: int, protocol_at: int, key: int, size_at: int, buffer: int
) -> None:
    room = call.read_word(needed(size_at))
    found = _search(call, how, protocol_at, key)
    handles = call.width.pointers(*found)
    call.write_word(size_at, len(handles))
    check(room >= len(handles), Status.BUFFER_TOO_SMALL, f"there are {len(found)} handles")
    call.write(needed(buffer), handles)


@service("LocateHandleBuffer", "INNNN")
def locate_handle_buffer(
    call: Call, how: int, protocol_at: int, key: int, count_at: int, buffer_at: int
) -> None:
    check(count_at and buffer_at, Status.INVALID_PARAMETER, "a pointer is null")
    found = _search(call, how, protocol_at, key)
    handles = call.width.pointers(*found)
    at = pool(call, len(handles))
    call.write(at, handles)
    call.write_word(count_at, len(found))
    call.write_word(buffer_at, at)


@service("LocateProtocol", "NNN")
def locate_protocol(call: Call, protocol_at: int, registration: int, interface_at: int) -> None:
    protocol = call.read_guid(protocol_at)
    call.write_word(needed(interface_at), 0)
    having = _with_protocol(call.firmware, protocol)
    found = _news(call, registration) if registration else having
    check(found, Status.NOT_FOUND, f"nothing has the protocol {_name(protocol)}")
    call.write_word(interface_at, _interface(call, found[0], protocol, Status.NOT_FOUND))


@service("LocateDevicePath", "NNN")
def locate_device_path(call: Call, protocol_at: int, path_at: int, device_at: int) -> None:
    """Find the device that the longest beginning of a path is of."""
    protocol = call.read_guid(protocol_at)
    start = needed(call.read_word(needed(path_at)))
    path = read_path(call, start)
    found = device_of(call, path, protocol)
    if found is None:
        raise EfiError(Status.NOT_FOUND, f"no device with {_name(protocol)} is on the path")
    handle, length = found
    call.write_word(needed(device_at), handle)
    call.write_word(path_at, start + sum(map(len, path[:length])))


def device_of(call: Call, path: list[bytes], protocol: bytes) -> tuple[int, int] | None:
    """The device with a protocol that the longest beginning of a path is of, and that length."""
    best: tuple[int, int] | None = None
    for handle in _with_protocol(call.firmware, protocol):
        own_at = call.firmware.handles[handle].get(DEVICE_PATH)
        if own_at is None:
            continue
        own = read_path(call, own_at)
        if path[: len(own)] == own and (best is None or len(own) > best[1]):
            best = handle, len(own)
    return best


# ---- drivers, of which there are none ----


@service("ConnectController", "NNNB")
def connect_controller(
    call: Call, handle: int, drivers: int, remaining: int, recursive: int
) -> None:
    _protocols(call, handle)
    raise EfiError(Status.NOT_FOUND, "there are no drivers")


@service("DisconnectController", "NNN")
def disconnect_controller(call: Call, handle: int, driver: int, child: int) -> None:
    _protocols(call, handle)
