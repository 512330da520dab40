"""Find which service a stub is for, call it, and return to the guest, or call the guest back.

A stub is VMCALL and RET. What makes a VMCALL a service's is where it stands: in a page of stubs, at
a stub's own first byte. So no hypercall can be taken for one.
"""

from __future__ import annotations

from contextlib import suppress

from xenemu.entries.efi import (  # noqa: F401 (they declare services)
    block_services,
    console,
    devices,
    event_services,
    exit_services,
    file_services,
    frames,
    loading_services,
    memory_services,
    protocol_services,
    runtime_services,
    variables,
)
from xenemu.entries.efi.abi import (
    BOOT_STUBS,
    RETURNS,
    RUNTIME_SERVICES,
    STUB_SIZE,
    VMCALL_LENGTH,
    Status,
)
from xenemu.entries.efi.call import (
    PREFIX,
    SERVICES,
    Blocked,
    Call,
    EfiError,
    Left,
    arguments,
)
from xenemu.entries.efi.event_services import call_back, run_timers
from xenemu.entries.efi.state import Firmware
from xenemu.entries.efi.width import X64
from xenemu.errors import XenError
from xenemu.hv.calls import CallRecord
from xenemu.hv.cpu import Reg, Seg
from xenemu.hv.current import Current
from xenemu.pvh.paging import guest_physical
from xenemu.records import dataclass
from xenemu.x86.paging import PAGE_MASK


@dataclass
class Efi:
    """The EFI of a domain: its state, and what serves its calls."""

    firmware: Firmware

    def answers(self, current: Current) -> bool:
        """Serve the VMCALL before RIP, if it is a stub's; whether it was."""
        return serve(self.firmware, current)


def serve(firmware: Firmware, current: Current) -> bool:
    """Serve a call, if the VMCALL before RIP is a stub of the firmware's."""
    at = current.cpu.rip - VMCALL_LENGTH
    page = firmware.virtual.get(at & ~PAGE_MASK)
    if page is None or not _calls(current, firmware.width):
        return False
    try:
        if guest_physical(current, at) & ~PAGE_MASK != page:
            return False
    except XenError:  # the page is no more in the tables that it was fetched by
        return False
    name = _name(firmware, page, at & PAGE_MASK)
    if name is None:
        return False
    _serve(Call(current, firmware), name)
    return True


def _calls(current: Current, width: int) -> bool:
    """Whether the CPU runs code as EFI's of this width is."""
    if width == X64.word:
        return current.cpu.code64
    return not current.cpu.code64 and not current.cpu.segment(Seg.CS).base


def _name(firmware: Firmware, page: int, offset: int) -> str | None:
    names = BOOT_STUBS if page == firmware.places.boot_code else RUNTIME_SERVICES
    index, rest = divmod(offset, STUB_SIZE)
    return names[index] if not rest and index < len(names) else None


def _serve(call: Call, name: str) -> None:
    """Make a call, and set what the guest goes on with."""
    cpu = call.cpu
    if name in RETURNS:
        _returned(call, name)
        return
    declared = SERVICES.get(name)
    record = CallRecord(cpu.now_ns, call.current.vcpu.vcpu_id, cpu.rip, PREFIX + name)
    with suppress(EfiError):  # which comes again
        record.args = tuple(arguments(call, declared)) if declared else ()
    call.domain.calls.append(record)
    row = declared.row if declared else None
    for observer in call.current.watch or ():
        observer.call_begins(call.current, row, record)
    try:
        result = _make(call, name, record)
    except Blocked:
        cpu.rip -= VMCALL_LENGTH
        with suppress(ValueError):
            call.domain.calls.remove(record)
        return
    except Left as left:
        record.result = left.result
        return
    finally:
        for observer in call.current.watch or ():
            observer.call_ends(call.current, row, record)
    cpu.regs[Reg.RAX] = result
    run_timers(call)
    call_back(call)


def _returned(call: Call, name: str) -> None:
    """A function of the guest's returned: a program's entry, or that of an event."""
    if name == frames.NOTIFICATION_RETURNS and frames.leave_notification(call):
        call_back(call)
        return
    with suppress(Left):
        loading_services.leave(call, call.cpu.regs[Reg.RAX])


def _make(call: Call, name: str, record: CallRecord) -> int:
    """Call a service, complete the record of it, and return what goes to RAX."""
    firmware, declared, result = call.firmware, SERVICES.get(name), 0
    try:
        if declared is None:
            if name not in firmware.missing:
                call.current.log(f"EFI has no {name}: it answers EFI_UNSUPPORTED")
            firmware.missing[name] = firmware.missing.get(name, 0) + 1
            raise EfiError(Status.UNSUPPORTED, "it is not there")
        result = declared.handler(call, *arguments(call, declared)) or 0
    except EfiError as error:
        result = error.status | call.width.error
        record.reason = f"EFI_{error.status.name}" + (f": {error.reason}" if error.reason else "")
    record.result = result & ~call.width.error
    return result
