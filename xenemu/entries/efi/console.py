"""EFI's text console, on Xen's console ring: as a frontend in the guest would use it.

UEFI specification 2.10, sections 12.3 (input) and 12.4 (output). In Xen: public/io/console.h
"""

from __future__ import annotations

import struct
from typing import Final, NoReturn

from xenemu.abi.io.console import xencons_interface
from xenemu.entries.efi.abi import Status
from xenemu.entries.efi.call import Blocked, Call, EfiError, check, needed, put, service
from xenemu.errors import XenError
from xenemu.hv import event_2l, event_channel, scheduler
from xenemu.hv.waking import POLL
from xenemu.x86.paging import PAGE_SHIFT, Maddr

LOOK_NS: Final = 1_000_000  # between two looks for keys, of a program that does not wait for them
COLUMNS, ROWS = 80, 25
IN_SIZE, OUT_SIZE = 1024, 2048
INDEX_MASK: Final = 0xFFFFFFFF
MODE_OFFSET: Final = 0x300  # in Places.boot_data
MODE: Final = struct.Struct("<5iB3x")
COLOURS: Final = (0, 4, 2, 6, 1, 5, 3, 7)  # EFI's, in the order of a terminal's
SCAN_CODES: Final = {
    b"\x1b[A": 1, b"\x1b[B": 2, b"\x1b[C": 3, b"\x1b[D": 4, b"\x1b[H": 5, b"\x1b[F": 6,
    b"\x1b[2~": 7, b"\x1b[3~": 8, b"\x1b[5~": 9, b"\x1b[6~": 10, b"\x1b": 23,
}  # fmt: skip
LONGEST: Final = max(map(len, SCAN_CODES))

_at: Final = xencons_interface.layout(8).offsets


def mode_bytes(attribute: int, cursor: tuple[int, int]) -> bytes:
    """SIMPLE_TEXT_OUTPUT_MODE."""
    return MODE.pack(1, 0, attribute, *cursor, 1)


# ---- the ring ----


def _index(call: Call, name: str) -> int:
    page = call.domain.console.mfn << PAGE_SHIFT
    return call.domain.memory.read_uint(Maddr(page + _at[name]), 4)


def _set_index(call: Call, name: str, value: int) -> None:
    page = call.domain.console.mfn << PAGE_SHIFT
    call.domain.memory.write_uint(Maddr(page + _at[name]), 4, value)


def _tell(call: Call) -> bool:
    """Send the backend an event; whether there is one."""
    try:
        event_channel.send(call.domain, call.domain.console.port)
    except XenError:  # the guest has closed the port
        return False
    return True


def has_input(call: Call) -> bool:
    """Whether something was typed."""
    return 0 < (_index(call, "in_prod") - _index(call, "in_cons")) & INDEX_MASK <= IN_SIZE


def show(call: Call, text: str) -> None:
    """Write to the console; the call waits while there is no room.

    It comes here again then, with the same text, of which `Firmware.output` is what is left.
    """
    firmware, domain = call.firmware, call.domain
    if not firmware.output:
        firmware.output += text.encode("utf-8", "replace")
    while firmware.output:
        prod = _index(call, "out_prod")
        room = OUT_SIZE - ((prod - _index(call, "out_cons")) & INDEX_MASK)
        page = domain.console.mfn << PAGE_SHIFT
        for n, byte in enumerate(firmware.output[: max(room, 0)]):
            offset = _at["out"] + (prod + n & OUT_SIZE - 1)
            domain.memory.write_uint(Maddr(page + offset), 1, byte)
        done = min(max(room, 0), len(firmware.output))
        del firmware.output[:done]
        _set_index(call, "out_prod", prod + done)
        event_2l.clear_pending(domain, domain.console.port)
        if room < 0 or not _tell(call):  # the guest has spoilt the ring
            firmware.output.clear()
        elif not done:
            scheduler.block(call.current, frozenset({domain.console.port}))
            raise Blocked


# ---- output ----


@service("ConOut.Reset", "NB")
def reset(call: Call, this: int, extended: int) -> None:
    _moved(call, (0, 0))


@service("ConOut.OutputString", "NN")
def output_string(call: Call, this: int, string: int) -> None:
    text = call.read_text(string)
    show(call, text)
    column, row = call.firmware.cursor
    for character in text:
        if character == "\r":
            column = 0
        elif character == "\n":
            row = min(row + 1, ROWS - 1)
        elif character == "\b":
            column = max(column - 1, 0)
        else:
            column += 1
            if column == COLUMNS:
                column, row = 0, min(row + 1, ROWS - 1)
    _moved(call, (column, row))


@service("ConOut.TestString", "NN")
def test_string(call: Call, this: int, string: int) -> None:
    call.read_text(string)


@service("ConOut.QueryMode", "NNNN")
def query_mode(call: Call, this: int, mode: int, columns: int, rows: int) -> None:
    check(not mode, Status.UNSUPPORTED, f"there is no mode {mode}")
    call.write_word(needed(columns), COLUMNS)
    call.write_word(needed(rows), ROWS)


@service("ConOut.SetMode", "NN")
def set_mode(call: Call, this: int, mode: int) -> None:
    check(not mode, Status.UNSUPPORTED, f"there is no mode {mode}")
    _clear(call)


@service("ConOut.SetAttribute", "NN")
def set_attribute(call: Call, this: int, attribute: int) -> None:
    check(attribute < 0x80, Status.UNSUPPORTED, f"there is no attribute {attribute:#x}")
    foreground, background = COLOURS[attribute & 7], COLOURS[attribute >> 4]
    bold = 1 if attribute & 8 else 22
    show(call, f"\x1b[{bold};{30 + foreground};{40 + background}m")
    call.firmware.attribute = attribute
    _moved(call, call.firmware.cursor)


@service("ConOut.ClearScreen", "N")
def clear_screen(call: Call, this: int) -> None:
    _clear(call)


def _clear(call: Call) -> None:
    show(call, "\x1b[2J\x1b[H")
    _moved(call, (0, 0))


@service("ConOut.SetCursorPosition", "NNN")
def set_cursor_position(call: Call, this: int, column: int, row: int) -> None:
    inside = column < COLUMNS and row < ROWS
    check(inside, Status.UNSUPPORTED, f"the screen has no column {column} in a row {row}")
    show(call, f"\x1b[{row + 1};{column + 1}H")
    _moved(call, (column, row))


@service("ConOut.EnableCursor", "NB")
def enable_cursor(call: Call, this: int, visible: int) -> None:
    show(call, "\x1b[?25h" if visible else "\x1b[?25l")


def _moved(call: Call, cursor: tuple[int, int]) -> None:
    """The cursor is here now."""
    firmware = call.firmware
    firmware.cursor = cursor
    put(
        call.domain, firmware.places.boot_data + MODE_OFFSET, mode_bytes(firmware.attribute, cursor)
    )


# ---- input ----


@service("ConIn.Reset", "NB")
def reset_input(call: Call, this: int, extended: int) -> None:
    _set_index(call, "in_cons", _index(call, "in_prod"))
    _tell(call)


@service("ConIn.ReadKeyStroke", "NN")
def read_key_stroke(call: Call, this: int, key_at: int) -> None:
    if not has_input(call):
        _rest(call)
        raise EfiError(Status.NOT_READY)
    cons = _index(call, "in_cons")
    typed = (_index(call, "in_prod") - cons) & INDEX_MASK
    page = call.domain.console.mfn << PAGE_SHIFT
    ahead = bytes(
        call.domain.memory.read_uint(Maddr(page + _at["in_"] + (cons + n & IN_SIZE - 1)), 1)
        for n in range(min(typed, LONGEST))
    )
    scan, character, used = _key(ahead)
    call.write(needed(key_at), struct.pack("<HH", scan, character))
    _set_index(call, "in_cons", cons + used)
    _tell(call)


def _rest(call: Call) -> None:
    """Let a vcpu that looks for keys again and again sleep between two looks, as real ones cannot.

    There are programs that wait for nothing but keys like this: GRUB at its prompt.
    """
    # DIVERGES: firmware answers at once.
    due_ns = call.firmware.looked_ns + LOOK_NS
    if call.cpu.now_ns < due_ns:
        sleep(call, due_ns)
    call.firmware.looked_ns = call.cpu.now_ns


def sleep(call: Call, due_ns: int | None) -> NoReturn:
    """Let the vcpu sleep until the console has something, or until a time; then call again."""
    domain = call.domain
    event_2l.clear_pending(domain, domain.console.port)
    if due_ns is not None:
        domain.timers.set((POLL, call.current.vcpu.vcpu_id), due_ns)
    scheduler.block(call.current, frozenset({domain.console.port}))
    raise Blocked


def _key(ahead: bytes) -> tuple[int, int, int]:
    """The scan code, the character, and how many bytes they were."""
    for sequence in sorted(SCAN_CODES, key=len, reverse=True):
        if ahead.startswith(sequence):
            return SCAN_CODES[sequence], 0, len(sequence)
    special = {0x7F: 0x08, 0x0A: 0x0D}
    return 0, special.get(ahead[0], ahead[0]), 1
