"""Events, timers, task priorities, and the calls of the guest's own functions.

UEFI specification 2.10, section 7.1.
"""

from __future__ import annotations

from typing import Final, NoReturn

from xenemu.entries.efi import console, frames
from xenemu.entries.efi.abi import (
    EXIT_BOOT_SERVICES_GROUP,
    VIRTUAL_ADDRESS_CHANGE_GROUP,
    VMCALL_LENGTH,
    Status,
)
from xenemu.entries.efi.call import (
    NS_PER_UNIT,
    Call,
    EfiError,
    Left,
    check,
    needed,
    service,
)
from xenemu.entries.efi.state import MAX_EVER, MAX_THINGS, Event
from xenemu.errors import XenError

EVENT_BASE: Final = 0xE000_0000  # events look like addresses, and are none
TIMER, NOTIFY_WAIT, NOTIFY_SIGNAL = 1 << 31, 0x100, 0x200
GROUPS: Final = {0x201: EXIT_BOOT_SERVICES_GROUP, 0x60000202: VIRTUAL_ADDRESS_CHANGE_GROUP}
KINDS: Final = {0, TIMER, *(NOTIFY_WAIT, NOTIFY_SIGNAL), *GROUPS}
KINDS_WITH_TIMER: Final = KINDS | {TIMER | NOTIFY_WAIT, TIMER | NOTIFY_SIGNAL}
TPL_APPLICATION, TPL_CALLBACK, TPL_NOTIFY, TPL_HIGH_LEVEL = 4, 8, 16, 31
TIMER_CANCEL, TIMER_PERIODIC, TIMER_RELATIVE = range(3)
MAX_WAITED_FOR: Final = 256
LONGEST_NS: Final = 1 << 62
POLL_NS: Final = 100_000  # between two looks at what only a function of the guest's can tell


@service("RaiseTPL", "N")
def raise_tpl(call: Call, tpl: int) -> int:
    old = call.firmware.tpl
    call.firmware.tpl = min(tpl, TPL_HIGH_LEVEL)
    return old


@service("RestoreTPL", "N")
def restore_tpl(call: Call, tpl: int) -> None:
    call.firmware.tpl = min(tpl, TPL_HIGH_LEVEL)


@service("CreateEvent", "INNNN")
def create_event(call: Call, kind: int, tpl: int, notify: int, context: int, pointer: int) -> None:
    group = GROUPS.get(kind, b"")
    _create(call, kind, Event(kind, tpl, notify, context, group), pointer)


@service("CreateEventEx", "INNNNN")
def create_event_ex(
    call: Call, kind: int, tpl: int, notify: int, context: int, group_at: int, pointer: int
) -> None:
    group = call.read_guid(group_at) if group_at else b""
    check(kind not in GROUPS, Status.INVALID_PARAMETER, "such an event has its own group")
    _create(call, kind, Event(kind, tpl, notify, context, group), pointer)


def _create(call: Call, kind: int, event: Event, pointer: int) -> None:
    firmware = call.firmware
    check(kind in KINDS_WITH_TIMER, Status.INVALID_PARAMETER, f"there is no event type {kind:#x}")
    if kind & (NOTIFY_WAIT | NOTIFY_SIGNAL):
        good = event.notify and TPL_APPLICATION < event.tpl < TPL_HIGH_LEVEL
        check(good, Status.INVALID_PARAMETER, "the event has no function, or no priority for it")
    else:
        event.notify = 0
    call.write_word(needed(pointer), add(call, event))
    firmware.next_event += 1


def add(call: Call, event: Event) -> int:
    """The handle of a new event, before `next_event` moves on."""
    firmware = call.firmware
    room = len(firmware.events) < MAX_THINGS and firmware.next_event < MAX_EVER
    check(room, Status.OUT_OF_RESOURCES, "there are too many events")
    handle = EVENT_BASE + 16 * firmware.next_event
    firmware.events[handle] = event
    return handle


@service("SetTimer", "NIQ")
def set_timer(call: Call, handle: int, how: int, units: int) -> None:
    event = _event(call, handle)
    good = event.type & TIMER and how <= TIMER_RELATIVE
    check(good, Status.INVALID_PARAMETER, "the event has no timer, or there is no such timer")
    ns = min(units * NS_PER_UNIT, LONGEST_NS)
    event.period_ns = max(ns, NS_PER_UNIT) if how == TIMER_PERIODIC else 0
    event.due_ns = None if how == TIMER_CANCEL else call.cpu.now_ns + max(ns, event.period_ns)


@service("SignalEvent", "N")
def signal_event(call: Call, handle: int) -> None:
    signal(call, handle)


def signal(call: Call, handle: int) -> None:
    """Signal an event, and all others of its group."""
    event = _event(call, handle)
    if event.group:
        signal_group(call, event.group)
    else:
        _signal(call, handle, event)


def signal_group(call: Call, group: bytes) -> None:
    """Signal all events of a group."""
    for handle, event in call.firmware.events.items():
        if event.group == group:
            _signal(call, handle, event)


def _signal(call: Call, handle: int, event: Event) -> None:
    if event.type & NOTIFY_SIGNAL:
        if handle not in call.firmware.pending:
            call.firmware.pending.append(handle)
    else:
        event.signalled = True


@service("CloseEvent", "N")
def close_event(call: Call, handle: int) -> None:
    firmware = call.firmware
    _event(call, handle)
    check(handle != firmware.wait_for_key, Status.INVALID_PARAMETER, "the event is the console's")
    del firmware.events[handle]
    if handle in firmware.pending:
        firmware.pending.remove(handle)
    for registration in [n for n, (_, to, _) in firmware.registrations.items() if to == handle]:
        del firmware.registrations[registration]


@service("CheckEvent", "N")
def check_event(call: Call, handle: int) -> None:
    run_timers(call)
    event = _event(call, handle)
    check(not event.type & NOTIFY_SIGNAL, Status.INVALID_PARAMETER, "nobody can wait for the event")
    if not _take(call, handle, event):
        if event.notify and handle not in call.firmware.pending:  # it may signal it
            call.firmware.pending.append(handle)
        raise EfiError(Status.NOT_READY)


@service("WaitForEvent", "NNN")
def wait_for_event(call: Call, count: int, events_at: int, index_at: int) -> None:
    firmware = call.firmware
    check(firmware.tpl == TPL_APPLICATION, Status.UNSUPPORTED, "the task priority is too high")
    good = 0 < count <= MAX_WAITED_FOR and events_at
    check(good, Status.INVALID_PARAMETER, f"{count} events to wait for")
    run_timers(call)
    polled = False
    for index in range(count):
        handle = call.read_word(events_at + call.width.word * index)
        event = _event(call, handle)
        if event.type & NOTIFY_SIGNAL:
            call.write_word(needed(index_at), index)
            raise EfiError(Status.INVALID_PARAMETER, "nobody can wait for the event")
        if _take(call, handle, event):
            call.write_word(needed(index_at), index)
            return
        if event.notify:
            polled = True
            if handle not in firmware.pending:
                firmware.pending.append(handle)
    if polled or firmware.pending:
        call.cpu.spend(POLL_NS)
        again(call)
    wait(call)


def wait(call: Call) -> NoReturn:
    """Let the vcpu sleep until the console has something, or a timer is due."""
    events = call.firmware.events.values()
    due = [event.due_ns for event in events if event.due_ns is not None]
    console.sleep(call, min(due, default=None))


def _take(call: Call, handle: int, event: Event) -> bool:
    """Whether an event is signalled; if so, it is no more."""
    if handle == call.firmware.wait_for_key:
        return console.has_input(call)
    was, event.signalled = event.signalled, False
    return was


def _event(call: Call, handle: int) -> Event:
    event = call.firmware.events.get(handle)
    if event is None:
        raise EfiError(Status.INVALID_PARAMETER, f"{handle:#x} is no event")
    return event


def run_timers(call: Call) -> None:
    """Signal the events whose time has come."""
    # DIVERGES: firmware has a timer interrupt; here, time is looked at in calls only.
    now_ns = call.cpu.now_ns
    for handle, event in list(call.firmware.events.items()):
        if event.due_ns is not None and event.due_ns <= now_ns:
            late = now_ns - event.due_ns
            step = event.period_ns and late // event.period_ns * event.period_ns + event.period_ns
            event.due_ns = event.due_ns + step if step else None
            _signal(call, handle, event)


# ---- functions of the guest's ----


def again(call: Call) -> None:
    """Make the call once more, after the functions that wait to be called."""
    call.cpu.rip -= VMCALL_LENGTH
    call_back(call)
    raise Left


def call_back(call: Call) -> None:
    """Call the function of the first event that may interrupt what runs, if there is one."""
    firmware = call.firmware
    for handle in firmware.pending:
        event = firmware.events[handle]
        if event.tpl > firmware.tpl and frames.has_room(call):
            break
    else:
        return
    firmware.pending.remove(handle)
    try:
        frames.enter_notification(call, handle, event)
    except XenError as fault:
        call.current.log(f"EFI cannot call the function of an event: {fault.reason}")
