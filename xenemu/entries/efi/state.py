"""All that the firmware knows. Plain data, which a snapshot keeps with the domain."""

from __future__ import annotations

from collections import deque
from dataclasses import field
from typing import Final

from xenemu.entries.efi.fat import Disk
from xenemu.entries.efi.memory_map import MemoryMap
from xenemu.entries.efi.volume import Directory
from xenemu.records import dataclass

HANDLE_BASE: Final = 0xD000_0000  # handles look like addresses, and are none
MAX_THINGS: Final = 1 << 12  # handles, events and the like, of each
MAX_EVER: Final = 1 << 24  # of handles and of events, those that are gone included


@dataclass(frozen=True)
class Places:
    """Guest-physical addresses of what the firmware has in the guest's memory.

    Stubs and tables of the runtime are apart from those of the boot services, because they stay. In
    `boot_data` is the table of the boot services, and then the protocols' interfaces.
    """

    runtime_code: int
    runtime_data: int
    boot_code: int
    boot_data: int
    page_tables: int  # 0 without paging
    stack: int  # its end
    rsdp: int


@dataclass
class Event:
    """An event: `period` and `due_ns` are its timer's; `due_ns` is None without one."""

    type: int
    tpl: int = 0
    notify: int = 0  # a guest's function, or 0
    context: int = 0
    group: bytes = b""
    signalled: bool = False
    due_ns: int | None = None
    period_ns: int = 0


@dataclass(frozen=True)
class Frame:
    """What goes on after a function of the guest's returns: the registers of who waits for it.

    If the function is a program's entry, `program` is its handle, and StartImage was given the two
    pointers.
    """

    rip: int
    regs: tuple[int, ...]
    tpl: int
    program: int = 0
    size_at: int = 0
    data_at: int = 0


@dataclass
class Program:
    """A program that is loaded; `pool` are the pieces that are given back with it."""

    start: int
    size: int
    entry: int
    kind: int  # the type of the memory that it is in
    pool: tuple[int, ...]
    started: bool = False
    foreign: bool = False  # for another machine: it cannot be started


@dataclass
class OpenFile:
    """An open file or directory: its path from the root, and where the next read begins.

    In a directory, that is the number of an entry.
    """

    path: str
    position: int = 0


@dataclass
class Firmware:
    """A domain's EFI.

    * `virtual` has the page of stubs that a virtual page is, by the addresses of both. The guest
      sees other addresses of the runtime's after SetVirtualAddressMap.
    * `handles` have interfaces by GUID. `pending` are events whose functions are to be called.
    * `frames` wait for functions that are being called, the innermost last.
    * `programs` and `files` are by handle, and by the address of the interface.
    * `missing` counts the calls of what is not there, by name.
    """

    width: int  # bytes of a pointer: 8 or 4
    places: Places
    memory: MemoryMap
    initrd: bytes
    seed: bytes
    virtual: dict[int, int] = field(default_factory=dict)
    runtime_code: int = 0  # where the guest sees it
    runtime_data: int = 0
    mapped: bool = False  # by SetVirtualAddressMap
    boot: bool = True  # the boot services are there
    exiting: bool = False
    image_handle: int = 0
    console_handle: int = 0
    next_handle: int = 0
    next_event: int = 0
    handles: dict[int, dict[bytes, int]] = field(default_factory=dict)
    events: dict[int, Event] = field(default_factory=dict)
    wait_for_key: int = 0
    registrations: dict[int, tuple[bytes, int, list[int]]] = field(default_factory=dict)
    tables: dict[bytes, int] = field(default_factory=dict)
    variables: dict[tuple[str, bytes], tuple[int, bytes]] = field(default_factory=dict)
    pending: deque[int] = field(default_factory=deque)
    frames: list[Frame] = field(default_factory=list)
    programs: dict[int, Program] = field(default_factory=dict)
    files: dict[int, OpenFile] = field(default_factory=dict)
    volume: Directory | None = None
    disk: Disk | None = None
    volume_handle: int = 0
    tpl: int = 4  # TPL_APPLICATION
    random_taken: int = 0
    monotonic: int = 0
    clock_offset_ns: int = 0
    timezone: tuple[int, int] = (0x7FF, 0)  # unspecified, and no daylight saving
    output: bytearray = field(
        default_factory=bytearray
    )  # of a string that the ring has no room for
    looked_ns: int = -1 << 62  # when somebody looked for a key, and there was none
    cursor: tuple[int, int] = (0, 0)
    attribute: int = 7
    missing: dict[str, int] = field(default_factory=dict)


def handle_of(firmware: Firmware, interfaces: dict[bytes, int]) -> int:
    """A new handle with these interfaces."""
    handle = HANDLE_BASE + 16 * firmware.next_handle
    firmware.next_handle += 1
    firmware.handles[handle] = interfaces
    return handle
