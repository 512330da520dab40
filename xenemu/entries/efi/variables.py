"""Variables, which live as long as the domain.

UEFI specification 2.10, section 8.2.
"""

from __future__ import annotations

from typing import Final

from xenemu.entries.efi.abi import Status
from xenemu.entries.efi.call import Call, EfiError, check, needed, service
from xenemu.entries.efi.state import Firmware

NON_VOLATILE, BOOTSERVICE_ACCESS, RUNTIME_ACCESS = 1, 2, 4
APPEND_WRITE: Final = 0x40
PLAIN: Final = NON_VOLATILE | BOOTSERVICE_ACCESS | RUNTIME_ACCESS
STORAGE: Final = 256 << 10  # bytes of names and data
MAX_VARIABLE: Final = 32 << 10
OVERHEAD: Final = 64  # bytes that a variable takes besides


def _visible(firmware: Firmware, attributes: int) -> bool:
    return firmware.boot or bool(attributes & RUNTIME_ACCESS)


def _size(name: str, data: bytes) -> int:
    return 2 * len(name) + len(data) + OVERHEAD


def _used(firmware: Firmware) -> int:
    return sum(_size(name, data) for (name, _), (_, data) in firmware.variables.items())


@service("GetVariable", "NNNNN")
def get_variable(
    call: Call, name_at: int, vendor_at: int, attributes_at: int, size_at: int, data_at: int
) -> None:
    key = call.read_text(name_at), call.read_guid(vendor_at)
    room = call.read_word(needed(size_at))
    attributes, data = call.firmware.variables.get(key, (0, b""))
    there = attributes and _visible(call.firmware, attributes)
    check(there, Status.NOT_FOUND, f"there is no variable {key[0]}")
    if attributes_at:
        call.write_word(attributes_at, attributes, "I")
    call.write_word(size_at, len(data))
    check(room >= len(data), Status.BUFFER_TOO_SMALL, f"{key[0]} has {len(data)} bytes")
    call.write(needed(data_at), data)


@service("GetNextVariableName", "NNN")
def get_next_variable_name(call: Call, size_at: int, name_at: int, vendor_at: int) -> None:
    room = call.read_word(needed(size_at))
    before = call.read_text(name_at)
    visible = [
        key
        for key, (attributes, _) in call.firmware.variables.items()
        if _visible(call.firmware, attributes)
    ]
    index = 0
    if before:
        key = before, call.read_guid(vendor_at)
        check(key in visible, Status.INVALID_PARAMETER, f"there is no variable {before}")
        index = visible.index(key) + 1
    if index == len(visible):
        raise EfiError(Status.NOT_FOUND)
    name, vendor = visible[index]
    encoded = (name + "\0").encode("utf-16-le", "surrogatepass")
    call.write_word(size_at, len(encoded))
    check(room >= len(encoded), Status.BUFFER_TOO_SMALL, f"the name has {len(encoded)} bytes")
    call.write(name_at, encoded)
    call.write(needed(vendor_at), vendor)


@service("SetVariable", "NNINN")
def set_variable(
    call: Call, name_at: int, vendor_at: int, attributes: int, size: int, data_at: int
) -> None:
    firmware = call.firmware
    name, vendor = call.read_text(name_at), call.read_guid(vendor_at)
    check(name, Status.INVALID_PARAMETER, "a variable needs a name")
    # No variable is authenticated, and no hardware errors are recorded.
    kind = attributes & ~APPEND_WRITE
    check(not kind & ~PLAIN, Status.UNSUPPORTED, f"the attributes are {attributes:#x}")
    lonely = kind & RUNTIME_ACCESS and not kind & BOOTSERVICE_ACCESS
    check(not lonely, Status.INVALID_PARAMETER, "RUNTIME_ACCESS needs BOOTSERVICE_ACCESS")
    check(size <= MAX_VARIABLE, Status.OUT_OF_RESOURCES, f"{size} bytes are too many")
    data = call.read(needed(data_at), size) if size else b""
    key = name, vendor
    old, had = firmware.variables.get(key, (0, b""))
    if old:
        check(_visible(firmware, old), Status.WRITE_PROTECTED, f"{name} is for boot services")
    if not kind & (BOOTSERVICE_ACCESS | RUNTIME_ACCESS) or not (size or attributes & APPEND_WRITE):
        check(old, Status.NOT_FOUND, f"there is no variable {name}")
        del firmware.variables[key]
        return
    check(old in (0, kind), Status.INVALID_PARAMETER, f"{name} has the attributes {old:#x}")
    late = not firmware.boot and kind != PLAIN
    check(not late, Status.INVALID_PARAMETER, "after ExitBootServices, a variable is kept")
    new = had + data if attributes & APPEND_WRITE else data
    used = _used(firmware) - (_size(name, had) if old else 0)
    full = len(new) > MAX_VARIABLE or used + _size(name, new) > STORAGE
    check(not full, Status.OUT_OF_RESOURCES, "there is no room for more variables")
    if new:
        firmware.variables[key] = kind, new


@service("QueryVariableInfo", "INNN")
def query_variable_info(
    call: Call, attributes: int, maximum_at: int, remaining_at: int, largest_at: int
) -> None:
    check(attributes, Status.INVALID_PARAMETER, "there are no attributes")
    check(not attributes & ~PLAIN, Status.UNSUPPORTED, f"the attributes are {attributes:#x}")
    left = STORAGE - _used(call.firmware)
    for at, value in ((maximum_at, STORAGE), (remaining_at, left), (largest_at, MAX_VARIABLE)):
        call.write_word(needed(at), value, "Q")
