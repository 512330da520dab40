"""Print what a guest does as it does it, as strace does a program's calls: text or JSON lines.

An event is a dict, the same for both formats. Every one has::

    kind    "hypercalls", "mmu", "events", "traps" or "vcpus"
    name    what happened: see below
    at_ns   virtual time
    vcpu    its number
    from    where the guest was, ``symbol+0x12/0x34`` or an address in hex

and by kind:

* hypercalls: ``name``, and after it the sub-operation if there is one; ``depth``, 1 in a multicall;
  ``args``, by name, with what pointers lead to; ``out``, the part of that which the call changed;
  ``result``, null if the call is to be continued or ended the guest. A call that was refused also
  has ``error``, the errno's name, and ``reason``; and ``standing`` if Xen gives that answer for any
  arguments. The calls of a multicall come before the multicall.
* mmu: ``entry`` (``level``, ``table``, ``index``, ``old``, ``new``, ``emulated`` if by a store),
  ``pin`` (``level``, ``mfn``), ``unpin``, ``baseptr`` and ``user_baseptr`` (``mfn``).
* events: ``raised`` (``port``, ``what`` it is, ``vcpu_notified``, ``pending`` if it was already,
  ``masked``) and ``upcall`` (``how``, ``masked`` if the vcpu masked its upcalls).
* traps: the vector's name and what goes with it, ``error_code``, and the ``mode`` that is
  interrupted. Or ``iret``, which is no hypercall here, ``to`` an address in a ``mode``.
* vcpus: ``up`` and ``down``, and as PVH ``INIT`` and ``STARTUP``, ``of`` a vcpu; ``at`` is where a
  STARTUP has it begin, and ``ignored`` says that Xen ignores it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection
from typing import Any, Final

from xenemu.abi.errno import NAMES as ERRNO_NAMES
from xenemu.abi.xen import Nr
from xenemu.decode import Call, describe_port, format_args
from xenemu.hv.calls import CallRecord
from xenemu.hv.current import Current, Details, Observer
from xenemu.hv.dispatch import STANDING, Hypercall, format_result
from xenemu.hv.event_channel import is_masked
from xenemu.hv.frame_table import LEVELS
from xenemu.hv.observe import Watch
from xenemu.hv.shared_info import UPCALL_MASK
from xenemu.hv.state.vcpu import Vcpu
from xenemu.peek import Code, caller, in_kernel
from xenemu.x86.paging import (
    ENTRIES,
    PAGE_SHIFT,
    PFEC_I,
    PFEC_P,
    PFEC_RSVD,
    PFEC_U,
    PFEC_W,
    describe_entry,
)

KINDS: Final = ("hypercalls", "mmu", "events", "traps", "vcpus")
PFEC_NAMES: Final = {PFEC_P: "P", PFEC_W: "W", PFEC_U: "U", PFEC_RSVD: "RSVD", PFEC_I: "I"}
UPCALL: Final = "an event upcall"
EXAMPLES: Final = 3  # of names that a filter leaves out

Event = dict[str, Any]
Format = Callable[[Event], str]


class Tracer(Observer):
    """Writes the events of some kinds, one line each, from `start` to `stop`.

    `write` gets whole lines. Only events in whose name `only` is found are written.
    """

    def __init__(
        self,
        code: Code,
        write: Callable[[str], None],
        kinds: Collection[str] = KINDS,
        only: re.Pattern[str] | None = None,
        as_json: bool = False,
    ) -> None:
        self._code = code
        self._write = write
        self._kinds = frozenset(kinds)
        self._only = only
        self._as_json = as_json
        self._calls: list[Call] = []  # that have begun, the innermost last
        self._watch: Watch | None = None
        self.told = 0  # events
        self.passed_over: dict[str, None] = {}  # the first names that `only` is not found in

    def start(self, current: Current) -> None:
        """Trace from now on; once started, again does nothing."""
        if self._watch is None:
            self._watch = Watch.of(current)
            self._watch.add(self)

    def stop(self) -> None:
        """Trace no more; a tracer that never started may be stopped, too."""
        if self._watch is not None:
            self._watch.remove(self)
            self._watch = None
            self._calls.clear()

    # Hypercalls.

    def call_begins(self, current: Current, row: Hypercall | None, record: CallRecord) -> None:
        """Look at the arguments while they are as the guest left them."""
        record.caller = caller(current)
        if "hypercalls" not in self._kinds:
            return
        call = Call(current, row, record)
        self._calls.append(call)
        if not self._as_json and row is not None and row.number == Nr.multicall:
            self._tell_call(record, call, {"begins": True})

    def call_ends(self, current: Current, row: Hypercall | None, record: CallRecord) -> None:
        """Tell the call, unless the trace began in its middle."""
        if not self._calls:
            return
        call = self._calls.pop()
        event: Event = {"out": call.changes(current), "result": record.result}
        if record.reason:
            event["error"] = ERRNO_NAMES.get(-(record.result or 0), str(record.result))
            event["reason"] = record.reason
            if record.standing:
                event["standing"] = True
        self._tell_call(record, call, event)

    def _tell_call(self, record: CallRecord, call: Call, event: Event) -> None:
        name = f"{call.name} {call.op}" if call.op else call.name
        place = {"at_ns": record.at_ns, "vcpu": record.vcpu_id, "rip": record.caller}
        event = {"depth": len(self._calls), "args": call.args, **event}
        if "begins" in event:
            event["depth"] -= 1
        self._tell("hypercalls", name, place, event)

    # Page tables.

    def entry_set(self, current: Current, maddr: int, old: int, new: int) -> None:
        """Tell an entry, before and after."""
        mfn = maddr >> PAGE_SHIFT
        event: Event = {
            "level": LEVELS[current.domain.frames.type[mfn]],
            "table": mfn,
            "index": (maddr >> 3) % ENTRIES,
            "old": describe_entry(old),
            "new": describe_entry(new),
        }
        if not _in_call(current):
            event["emulated"] = True
        self._tell("mmu", "entry", _place(current), event)

    def pinned(self, current: Current, mfn: int, level: int) -> None:
        """Tell a pin or an unpin."""
        name, event = ("pin", {"level": level}) if level else ("unpin", {})
        self._tell("mmu", name, _place(current), {**event, "mfn": mfn})

    def root_set(self, current: Current, mfn: int, user: bool) -> None:
        """Tell a new address space."""
        self._tell("mmu", "user_baseptr" if user else "baseptr", _place(current), {"mfn": mfn})

    # Events and traps.

    def raised(self, current: Current, port: int, was_pending: bool) -> None:
        """Tell an event, and what keeps it from the guest."""
        events = current.domain.events
        channel = events.channels[port]
        event: Event = {
            "port": port,
            "what": describe_port(channel),
            "vcpu_notified": channel.notify_vcpu,
        }
        if was_pending:
            event["pending"] = True
        if is_masked(current.domain, port):
            event["masked"] = True
        self._tell("events", "raised", _place(current), event)

    def upcall(self, current: Current, how: str) -> None:
        """Tell that the guest is called for its events."""
        event: Event = {"how": how}
        if current.domain.memory.bytes[current.vcpu.info + UPCALL_MASK]:
            event["masked"] = True
        self._tell("events", "upcall", _place(current), event)

    def entered(self, current: Current, what: str, error_code: int | None) -> None:
        """Tell why the guest's kernel is entered; an upcall is told once if both kinds are asked
        for.
        """
        if what == UPCALL and "events" in self._kinds:
            return
        event: Event = {"mode": "kernel" if in_kernel(current) else "user"}
        if error_code is not None:
            event["error_code"] = error_code
        self._tell("traps", what, _place(current), event)

    def left(self, current: Current, rip: int) -> None:
        """Tell where the kernel returned to."""
        place = {**_place(current), "rip": rip}
        mode = "kernel" if in_kernel(current) else "user"
        self._tell("traps", "iret", place, {"mode": mode, "to": current.cpu.rip})

    # Vcpus.

    def vcpu_changed(self, current: Current, vcpu: Vcpu, what: str, details: Details) -> None:
        """Tell how a vcpu comes and goes."""
        self._tell("vcpus", what, _place(current), {"of": vcpu.vcpu_id, **details})

    # Lines.

    def _tell(self, kind: str, name: str, place: Event, event: Event) -> None:
        if kind not in self._kinds:
            return
        if self._only and not self._only.search(name):
            if len(self.passed_over) < EXAMPLES:
                self.passed_over[name] = None
            return
        self.told += 1
        rip = place.pop("rip")
        event = {"kind": kind, "name": name, **place, "from": self._code.format(rip), **event}
        line = json.dumps(event) if self._as_json else format_event(event, len(self._calls))
        self._write(f"{line}\n")


def _in_call(current: Current) -> bool:
    """Whether a hypercall is under way."""
    calls = current.domain.calls
    return bool(calls) and calls[-1].result is None


def _place(current: Current) -> Event:
    cpu = current.cpu
    rip = caller(current) if _in_call(current) else cpu.rip
    return {"at_ns": cpu.now_ns, "vcpu": current.vcpu.vcpu_id, "rip": rip}


# Text.


def format_event(event: Event, depth: int = 0) -> str:
    """One line: the time, the vcpu, what happened, and where the guest was.

    `depth` is the number of calls that the event is in. What a call did comes before the call, and
    further right.
    """
    what = "  " * event.get("depth", depth) + _FORMATS[event["kind"]](event)
    return f"{event['at_ns'] / 1e9:12.6f} v{event['vcpu']} {what}  <{event['from']}>"


def _format_call(event: Event) -> str:
    name = event["name"].partition(" ")[0]
    shown = format_args(event["args"], event.get("out", {}))
    if "begins" in event:
        return f"{name}({shown}) begins"
    line = f"{name}({shown}) = {format_result(event['result'])}"
    if "reason" not in event:
        return line
    return f"{line} ({STANDING if 'standing' in event else ''}{event['reason']})"


def _format_mmu(event: Event) -> str:
    if event["name"] != "entry":
        level = f" L{event['level']}" if "level" in event else ""
        return f"mmu: {event['name']}{level} mfn {event['mfn']:#x}"
    how = ", by an emulated store" if "emulated" in event else ""
    return (
        f"mmu: L{event['level']}[{event['index']:#x}] of mfn {event['table']:#x}:"
        f" {event['old']} -> {event['new']}{how}"
    )


def _format_event(event: Event) -> str:
    if event["name"] == "upcall":
        return f"event: upcall by {event['how']}{', but masked' if 'masked' in event else ''}"
    states = "".join(
        f", {words}"
        for key, words in (("pending", "pending already"), ("masked", "but masked"))
        if key in event
    )
    port, what, vcpu = event["port"], event["what"], event["vcpu_notified"]
    return f"event: port {port} ({what}) raised for vcpu {vcpu}{states}"


def _format_trap(event: Event) -> str:
    if event["name"] == "iret":
        return f"trap: iret to {event['to']:#x}, in {event['mode']} mode"
    code = event.get("error_code")
    if code is None:
        shown = ""
    elif event["name"].startswith("#PF"):
        bits = " ".join(name for bit, name in PFEC_NAMES.items() if code & bit)
        shown = f", error code {code:#x} ({bits or 'none'})"
    else:
        shown = f", error code {code:#x}"
    return f"trap: {event['name']}{shown}, in {event['mode']} mode"


def _format_vcpu(event: Event) -> str:
    place = f" at {event['at']:#x}" if "at" in event else ""
    return f"vcpu {event['of']}: {event['name']}{place}{', ignored' if 'ignored' in event else ''}"


_FORMATS: Final[dict[str, Format]] = {
    "hypercalls": _format_call,
    "mmu": _format_mmu,
    "events": _format_event,
    "traps": _format_trap,
    "vcpus": _format_vcpu,
}
