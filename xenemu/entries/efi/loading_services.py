"""Loading programs, starting them, and ending them.

UEFI specification 2.10, section 7.4.
"""

from __future__ import annotations

from typing import Final

from xenemu.entries.efi import file_services, frames, programs
from xenemu.entries.efi.abi import SIMPLE_FILE_SYSTEM, MemoryType, Status
from xenemu.entries.efi.call import Call, EfiError, Left, check, needed, service
from xenemu.entries.efi.device_path import read_path
from xenemu.entries.efi.memory_services import MAX_SPAN, take_time
from xenemu.entries.efi.protocol_services import device_of
from xenemu.entries.efi.state import MAX_EVER, MAX_THINGS, Program
from xenemu.entries.efi.width import IA32, X64
from xenemu.errors import ImageError
from xenemu.image import pe
from xenemu.x86.paging import PAGE_MASK, PAGE_SHIFT

CODE_TYPES: Final = {
    pe.EFI_APPLICATION: MemoryType.LOADER_CODE,
    pe.EFI_BOOT_SERVICE_DRIVER: MemoryType.BOOT_SERVICES_CODE,
    pe.EFI_RUNTIME_DRIVER: MemoryType.RUNTIME_SERVICES_CODE,
}


@service("LoadImage", "BNNNNN")
def load_image(
    call: Call, boot: int, parent: int, path_at: int, source: int, size: int, handle_at: int
) -> None:
    firmware, memory = call.firmware, call.firmware.memory
    check(parent in firmware.programs, Status.INVALID_PARAMETER, f"{parent:#x} is no program's")
    check(source or path_at, Status.INVALID_PARAMETER, "there is neither a file nor a path")
    room = len(firmware.handles) < MAX_THINGS and firmware.next_handle < MAX_EVER
    check(room and not memory.is_full, Status.OUT_OF_RESOURCES, "no handle can be made")
    path = read_path(call, path_at) if path_at else []
    device, rest = _device(call, path)
    if source:
        check(size <= MAX_SPAN, Status.LOAD_ERROR, f"{size} bytes are too many for a call")
        file = call.read(source, size)
    else:
        check(device, Status.NOT_FOUND, "no device with files is on the path")
        file = file_services.load(call, rest)
    program = _parse(call, file)
    call.write_word(needed(handle_at), 0)  # it can be written
    kind = CODE_TYPES[program.subsystem]
    start = memory.allocate(kind, program.size + PAGE_MASK >> PAGE_SHIFT, call.width.mask)
    if start is None:
        raise EfiError(Status.OUT_OF_RESOURCES, f"there is no room for {program.size} bytes")
    image, writing = range(start, start + program.size), programs.Writing(firmware)
    try:
        loaded = program.load(start)
        handle = programs.add(
            writing, image, program.entry, kind, parent=parent, device=device, path=b"".join(rest)
        )
    except (ImageError, EfiError) as fault:
        _free(call, start, program.size)
        if isinstance(fault, EfiError):
            raise
        raise EfiError(Status.LOAD_ERROR, str(fault)) from None
    firmware.programs[handle].foreign = _is_mixed(call, program)
    for at, data in ((start, loaded), *writing.pieces):
        call.put(at, data)
    call.write_word(handle_at, handle)
    take_time(call, program.size)


def _device(call: Call, path: list[bytes]) -> tuple[int, list[bytes]]:
    """The device with files that a path is on, or 0, and the nodes that are after it."""
    found = device_of(call, path, SIMPLE_FILE_SYSTEM) if path else None
    if found is None or found[0] != call.firmware.volume_handle:
        return 0, path
    return found[0], path[found[1] :]


def _parse(call: Call, file: bytes) -> pe.Pe:
    """The program in a file; LOAD_ERROR or UNSUPPORTED if it cannot be started."""
    try:
        program = pe.parse(memoryview(file))
    except ImageError as fault:
        raise EfiError(Status.LOAD_ERROR, str(fault)) from None
    if program is None:
        raise EfiError(Status.UNSUPPORTED, "the file has no PE header")
    known = program.machine == call.width.machine or _is_mixed(call, program)
    check(known, Status.UNSUPPORTED, f"the program is for {program.machine}")
    known = program.subsystem in CODE_TYPES
    check(known, Status.UNSUPPORTED, f"the program is for another subsystem ({program.kind})")
    return program


def _is_mixed(call: Call, program: pe.Pe) -> bool:
    """Whether a program is loaded that cannot be started: a loader may call its .compat entry."""
    return call.width is IA32 and program.machine == X64.machine


def _free(call: Call, start: int, size: int) -> None:
    call.firmware.memory.take(start, size + PAGE_MASK >> PAGE_SHIFT, MemoryType.CONVENTIONAL)


@service("StartImage", "NNN")
def start_image(call: Call, handle: int, size_at: int, data_at: int) -> None:
    program = _program(call, handle)
    check(not program.started, Status.INVALID_PARAMETER, "the program was started already")
    check(not program.foreign, Status.UNSUPPORTED, "the program is for a machine of 64 bits")
    frames.enter_program(call, handle, program.entry, size_at, data_at)
    program.started = True
    raise Left


@service("Exit", "NNNN")
def exit_image(call: Call, handle: int, status: int, size: int, data: int) -> None:
    program = _program(call, handle)
    if not program.started:
        _unload(call, handle, program)
        return
    check(handle == frames.running(call), Status.INVALID_PARAMETER, "another program runs")
    leave(call, status, size, data)


def leave(call: Call, status: int, size: int = 0, data: int = 0) -> None:
    """The program that runs is done: who started it goes on, if anybody did."""
    handle = frames.running(call)
    program = call.firmware.programs.get(handle)
    frames.leave_program(call, status, size, data)
    failed = bool(status & call.width.error)
    if program and (failed or program.kind == MemoryType.LOADER_CODE):
        _unload(call, handle, program)
    raise Left(status & ~call.width.error)


@service("UnloadImage", "N")
def unload_image(call: Call, handle: int) -> None:
    program = _program(call, handle)
    # DIVERGES: firmware calls the function that a driver gave for this.
    check(not program.started, Status.UNSUPPORTED, "a program that was started cannot be unloaded")
    _unload(call, handle, program)


def _program(call: Call, handle: int) -> Program:
    program = call.firmware.programs.get(handle)
    if program is None:
        raise EfiError(Status.INVALID_PARAMETER, f"{handle:#x} is no program's")
    return program


def _unload(call: Call, handle: int, program: Program) -> None:
    """Take back what a program has from its loading."""
    firmware = call.firmware
    del firmware.programs[handle]
    firmware.handles.pop(handle, None)
    end = program.start + program.size + PAGE_MASK & ~PAGE_MASK
    if firmware.memory.is_all(program.start, end, {program.kind}):  # it may have freed itself
        _free(call, program.start, program.size)
    for at in program.pool:
        firmware.memory.free_pool(at)
