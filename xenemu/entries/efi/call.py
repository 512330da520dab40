"""A call of a service: its arguments, the guest's memory, and the table of all services.

A service is declared once: its name, the types of its arguments, and its handler::

    @service("FreePages", QN)
    def free_pages(call: Call, start: int, pages: int) -> None: ...

A handler raises `EfiError` for any other status than success. Pointers from the guest go through
`Call.read` and `Call.write`.

UEFI specification 2.10, sections 2.3.2.2 (calls in IA-32) and 2.3.4.2 (in x64).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from xenemu.entries.efi.abi import Status
from xenemu.entries.efi.state import Firmware
from xenemu.entries.efi.width import WIDTHS, Width
from xenemu.errors import XenError
from xenemu.hv.building import Data
from xenemu.hv.cpu import Cpu, Reg
from xenemu.hv.current import Current
from xenemu.hv.dispatch import ULONG, Hypercall
from xenemu.hv.state.domain import Domain
from xenemu.records import dataclass
from xenemu.x86.paging import PAGE_MASK, PAGE_SHIFT, PAGE_SIZE, Maddr

MAX_TEXT: Final = 1 << 16  # bytes of a string
PREFIX: Final = "EFI."  # of the services' names among those of hypercalls
NO_NUMBER: Final = -1
NS_PER_UNIT: Final = 100  # of EFI's times
ROOM: Final = 32  # bytes in the stack for the arguments of a function of the guest's


class EfiError(Exception):
    """A service failed: the guest gets the status, the log gets the reason."""

    def __init__(self, status: Status, reason: str = "") -> None:
        super().__init__(reason or status.name)
        self.status = status
        self.reason = reason


class Blocked(Exception):
    """The vcpu waits: the same call is made again when it goes on."""


class Left(Exception):
    """The registers are as the guest is to go on with them; `result` is for the log."""

    def __init__(self, result: int | None = None) -> None:
        super().__init__()
        self.result = result


@dataclass(frozen=True)
class Call:
    """A call that the current vcpu has made; RIP is after the stub's VMCALL."""

    current: Current
    firmware: Firmware

    @property
    def cpu(self) -> Cpu:
        return self.current.cpu

    @property
    def domain(self) -> Domain:
        return self.current.domain

    @property
    def width(self) -> Width:
        return WIDTHS[self.firmware.width]

    @property
    def stack(self) -> int:
        return self.cpu.regs[Reg.RSP] & self.width.mask

    def argument(self, slot: int) -> int:
        """What a slot for arguments has, from 0 on."""
        width = self.width
        if slot < len(width.registers):
            return self.cpu.regs[width.registers[slot]]
        slot -= len(width.registers)
        return self.read_word(self.stack + width.word + width.shadow + width.word * slot)

    def enter(self, function: int, back: int, *arguments: int) -> None:
        """Let the guest go on in a function, which returns to `back`."""
        enter(self.current, self.width, function, back, *arguments)

    # ---- the guest's memory, as the caller sees it ----

    def read(self, vaddr: int, size: int) -> bytes:
        """Copy from the caller's address space."""
        # DIVERGES: firmware would fault, or store into what it has there.
        try:
            return self.current.read(vaddr & self.width.mask, size) if size else b""
        except XenError as fault:
            raise EfiError(Status.INVALID_PARAMETER, fault.reason) from None

    def write(self, vaddr: int, data: bytes | bytearray | memoryview) -> None:
        """Copy to the caller's address space, all or nothing."""
        try:
            if data:
                self.current.write(vaddr & self.width.mask, data)
        except XenError as fault:
            raise EfiError(Status.INVALID_PARAMETER, fault.reason) from None

    def read_word(self, vaddr: int, letter: str = "N") -> int:
        return int.from_bytes(self.read(vaddr, self.width.size(letter)), "little")

    def write_word(self, vaddr: int, value: int, letter: str = "N") -> None:
        size = self.width.size(letter)
        self.write(vaddr, (value & (1 << 8 * size) - 1).to_bytes(size, "little"))

    def read_guid(self, vaddr: int) -> bytes:
        return self.read(needed(vaddr), 16)

    def read_text(self, vaddr: int) -> str:
        """Copy a CHAR16 string; INVALID_PARAMETER if it does not end."""
        text = bytearray()
        at = needed(vaddr)
        while len(text) < MAX_TEXT:
            piece = self.read(at, PAGE_SIZE - (at & PAGE_MASK) & ~1 or 2)
            for offset in range(0, len(piece), 2):
                if piece[offset : offset + 2] == b"\0\0":
                    return (text + piece[:offset]).decode("utf-16-le", "surrogatepass")
            text += piece
            at += len(piece)
        raise EfiError(Status.INVALID_PARAMETER, f"the string at {vaddr:#x} does not end")

    # ---- the firmware's own part of it ----

    def put(self, paddr: int, data: Data) -> None:
        """Write into what the firmware has in the guest's memory."""
        put(self.domain, paddr, data)


def put(domain: Domain, paddr: int, data: Data) -> None:
    """Write to guest-physical memory, as far as there is any."""
    assert domain.p2m is not None
    while data:
        size = min(len(data), PAGE_SIZE - (paddr & PAGE_MASK))
        mfn = domain.p2m.get(paddr >> PAGE_SHIFT)
        if mfn is not None:  # the guest may have given it away
            domain.memory.write(Maddr(mfn << PAGE_SHIFT | paddr & PAGE_MASK), data[:size])
        data, paddr = data[size:], paddr + size


def enter(current: Current, width: Width, function: int, back: int, *arguments: int) -> None:
    """Let the guest go on in a function; `Fault` if its stack is no memory."""
    regs, passed = current.cpu.regs, width.registers
    frame = width.pointers(back, *(() if passed else arguments))
    rsp = (regs[Reg.RSP] - ROOM & width.mask & ~15) - width.word
    current.write(rsp, frame)
    regs[Reg.RSP], current.cpu.rip = rsp, function
    for register, value in zip(passed, arguments, strict=False):
        regs[register] = value


def needed(pointer: int) -> int:
    """A pointer that may not be null."""
    if not pointer:
        raise EfiError(Status.INVALID_PARAMETER, "a pointer is null")
    return pointer


def check(condition: object, status: Status, reason: str) -> None:
    """EfiError unless the condition holds."""
    if not condition:
        raise EfiError(status, reason)


Handler = Callable[..., "int | None"]


@dataclass(frozen=True)
class Service:
    """A service that is there: `types` are its arguments'.

    `row` is what those see who watch a guest's hypercalls.
    """

    types: str
    handler: Handler
    row: Hypercall


SERVICES: Final[dict[str, Service]] = {}


def service(name: str, types: str = "") -> Callable[[Handler], Handler]:
    """Declare a service.

    `types` has a letter for each argument: N for a UINTN or a pointer, Q, I and W for a UINT64, a
    UINT32 or an enumeration, and a UINT16, B for a byte or a BOOLEAN.
    """

    def register(handler: Handler) -> Handler:
        row = Hypercall(NO_NUMBER, PREFIX + name, frozenset(), (ULONG,) * len(types), handler)
        SERVICES[name] = Service(types, handler, row)
        return handler

    return register


def arguments(call: Call, declared: Service) -> list[Any]:
    """The arguments of a call of a service, as its prototype has them."""
    bits, values = call.width.bits, []
    for slot, count, mask in call.width.slots(declared.types):
        value = call.argument(slot)
        for n in range(1, count):
            value |= call.argument(slot + n) << bits * n
        values.append(value & mask)
    return values
