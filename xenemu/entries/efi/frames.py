"""What goes on after a function of the guest's returns: calls of notifications, and programs.

UEFI specification 2.10, sections 7.1 (notification functions) and 7.4 (StartImage, Exit).
"""

from __future__ import annotations

from typing import Final

from xenemu.entries.efi import tables
from xenemu.entries.efi.abi import BOOT_STUBS, RETURNS, STUB_SIZE, Status
from xenemu.entries.efi.call import Call, EfiError, check
from xenemu.entries.efi.state import Event, Frame
from xenemu.errors import DomainCrash, XenError
from xenemu.hv.cpu import Reg

MAX_NESTED: Final = 32
PROGRAM_RETURNS, NOTIFICATION_RETURNS = RETURNS
WHERE: Final = {name: BOOT_STUBS.index(name) * STUB_SIZE for name in RETURNS}


def has_room(call: Call) -> bool:
    """Whether another function can be called."""
    return len(call.firmware.frames) < MAX_NESTED


def enter_notification(call: Call, handle: int, event: Event) -> None:
    """Call the function of an event; XenError if the stack is no memory."""
    frame = _frame(call)
    call.enter(event.notify, _stub(call, NOTIFICATION_RETURNS), handle, event.context)
    call.firmware.frames.append(frame)
    call.firmware.tpl = event.tpl


def enter_program(call: Call, handle: int, entry: int, size_at: int, data_at: int) -> None:
    """Call the entry of a program."""
    check(has_room(call), Status.OUT_OF_RESOURCES, "there are too many programs in each other")
    frame = _frame(call, handle, size_at, data_at)
    table = call.firmware.places.runtime_data + tables.SYSTEM_TABLE
    try:
        call.enter(entry, _stub(call, PROGRAM_RETURNS), handle, table)
    except XenError as fault:
        raise EfiError(Status.INVALID_PARAMETER, fault.reason) from None
    call.firmware.frames.append(frame)


def _stub(call: Call, name: str) -> int:
    return call.firmware.places.boot_code + WHERE[name]


def _frame(call: Call, program: int = 0, size_at: int = 0, data_at: int = 0) -> Frame:
    cpu = call.cpu
    return Frame(cpu.rip, tuple(cpu.regs), call.firmware.tpl, program, size_at, data_at)


def _resume(call: Call, frame: Frame) -> None:
    call.cpu.rip, call.cpu.regs[:] = frame.rip, frame.regs
    call.firmware.tpl = frame.tpl


def leave_notification(call: Call) -> bool:
    """The function of an event returned: go on; whether one was being called."""
    frames = call.firmware.frames
    if not frames or frames[-1].program:
        return False
    _resume(call, frames.pop())
    return True


def running(call: Call) -> int:
    """The handle of the program that runs."""
    programs = [frame.program for frame in call.firmware.frames if frame.program]
    return programs[-1] if programs else call.firmware.image_handle


def leave_program(call: Call, status: int, size: int, data: int) -> None:
    """The program that runs is done: go on after the StartImage that started it."""
    frames = call.firmware.frames
    if not any(frame.program for frame in frames):
        end(call, status)
    while not frames[-1].program:  # it ended itself in the function of an event
        frames.pop()
    frame = frames.pop()
    _resume(call, frame)
    call.cpu.regs[Reg.RAX] = status & call.width.mask
    for at, value in ((frame.size_at, size), (frame.data_at, data)):
        if at:
            try:
                call.write_word(at, value)
            except EfiError as error:
                call.current.log(f"EFI cannot say what a program ended with: {error}")


def end(call: Call, status: int) -> None:
    """The first program is done: there is nothing else to boot."""
    known = {member.value for member in Status}
    code = status & call.width.mask & ~call.width.error
    name = f"EFI_{Status(code).name}" if code in known else f"{status:#x}"
    raise DomainCrash(
        f"the EFI program ended, with {name}",
        "its firmware has nothing else to boot: what the program wrote last says why",
    )
