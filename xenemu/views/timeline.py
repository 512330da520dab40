"""What a guest does, by its virtual time: tracks for tools that show timelines.

The tracks are, each only if something is on it:

* the phases of the boot, by what Linux prints, and the lines of the console
* of each vcpu: its runstate, its hypercalls, and how its kernel is entered
* of each port: when an event was raised on it
* the timers that were due
* of each device of dom0's: its requests. Those that are under way together are on several tracks
* if it is asked for, the time that the host took

A PV guest's kernel is left by HYPERVISOR_iret. So a trap is a slice, from the entry to that. If it
comes back to a program, all traps are over, because the kernel may have switched to another task.
A PVH guest returns without the hypervisor, so what enters its kernel is an instant.

The lane stays open. What it does, it notes (cpu/lane_notes.py), and the timeline is the same as
without the lane.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar, Final, Protocol

from xenemu.abi.errno import NAMES as ERRNO_NAMES
from xenemu.console_text import PlainText
from xenemu.decode import argument_names, call_name, describe_port
from xenemu.hv.calls import CallRecord, refusal_by_cpu
from xenemu.hv.current import Current, Details, Observer
from xenemu.hv.dispatch import Hypercall
from xenemu.hv.frame_table import WORK_PER_CALL
from xenemu.hv.observe import Watch
from xenemu.hv.prices import WORK_NS
from xenemu.hv.state.vcpu import Vcpu
from xenemu.linux import MILESTONES
from xenemu.peek import in_kernel

HOST_NS: Final = 10_000_000  # of the guest's time, between two looks at the host's clock
MAX_LINE: Final = 256  # characters of a line of the console
MAX_SLOTS: Final = 16  # tracks of a device, for requests that are under way together
MAX_DEPTH: Final = 64  # of traps in traps
SMALL: Final = 1 << 12  # what a call's argument is told below, since it is no address
MAX_KINDS: Final = 1 << 12  # of the lane's calls, by their small arguments
UPCALL: Final = "an event upcall"
PAGE_FAULT: Final = "#PF"


class Writer(Protocol):
    """A format, such as `views.perfetto.PerfettoWriter`."""

    def process(self, name: str) -> int: ...
    def track(self, name: str, parent: int, unit: str | None = None) -> int: ...
    def begin(
        self, track: int, at_ns: int, name: str, details: Mapping[str, int | str] | None = None
    ) -> None: ...
    def end(self, track: int, at_ns: int) -> None: ...
    def instant(
        self, track: int, at_ns: int, name: str, details: Mapping[str, int | str] | None = None
    ) -> None: ...
    def kind(
        self, track: int, name: str, details: Mapping[str, int | str] | None = None
    ) -> Any: ...
    def slice(self, kind: Any, at_ns: int, until_ns: int) -> None: ...
    def count(self, track: int, at_ns: int, value: float) -> None: ...
    def close(self) -> None: ...


Note = tuple[int, ...]  # see `cpu.lane_notes`


class Notes(Protocol):
    """See `cpu.lane_notes.LaneNotes`."""

    CALL: int
    PAGE_FAULT: int
    SYSCALL: int
    INT80: int
    IRET: int

    def drain(self) -> None: ...
    def close(self) -> None: ...


class Watched(Protocol):
    """A `Machine`."""

    @property
    def current(self) -> Current: ...
    def note_lane(self, take: Callable[[Iterable[Note]], None]) -> Notes: ...


class Timeline(Observer):
    """Writes what a machine does from now on, until `close`.

    With `host_time`, how much of the CPU's time this process has taken, too: the file then differs
    from run to run.
    """

    shuts_lane: ClassVar[bool] = False

    def __init__(
        self, machine: Watched, writer: Writer, name: str, host_time: bool = False
    ) -> None:
        self._writer, self._current = writer, machine.current
        self._process = writer.process(name)
        self._tracks: dict[tuple[str, object], int] = {}
        self._text, self._line = PlainText(), ""
        assert self._current.table is not None
        self._rows: Mapping[int, Hypercall] = self._current.table.rows
        self._kinds: dict[tuple[int, ...], Any] = {}  # of slices, by the lane's calls
        self._arguments: dict[int, Sequence[str]] = {}  # names, by the hypercall's number
        self._depth: dict[int, int] = {}  # by vcpu: traps that are not over
        self._slots: dict[str, list[int]] = {}  # by device: when each of its tracks is free
        self._seen_milestones: set[str] = set()
        self._phase = self._track("phases", None, "boot")
        self._host = self._track("host", None, "host CPU", unit="s") if host_time else None
        self._next_look_ns = 0
        self._states: dict[int, int] = {}
        now_ns = self._now_ns
        writer.begin(self._phase, now_ns, "start")
        for vcpu in self._current.domain.vcpus:
            self._enter_state(vcpu, vcpu.runstate_since_ns)
        self._notes = machine.note_lane(self._lane_did)
        self._watch = Watch.of(self._current)
        self._watch.add(self)

    def close(self) -> None:
        """Write all that is not written yet; nothing more is told."""
        self._settle()
        self._notes.close()
        self._watch.remove(self)
        now_ns, writer = self._now_ns, self._writer
        writer.end(self._phase, now_ns)
        for track in self._states.values():
            writer.end(track, now_ns)
        for vcpu_id, depth in self._depth.items():
            for _ in range(depth):
                writer.end(self._traps(vcpu_id), now_ns)
        writer.close()

    # Tracks.

    def _track(self, kind: str, which: object, name: str, unit: str | None = None) -> int:
        track = self._tracks.get((kind, which))
        if track is None:
            track = self._writer.track(name, self._process, unit)
            self._tracks[kind, which] = track
        return track

    def _hypercalls(self, vcpu_id: int) -> int:
        return self._track("hypercalls", vcpu_id, f"vcpu {vcpu_id} hypercalls")

    def _traps(self, vcpu_id: int) -> int:
        return self._track("traps", vcpu_id, f"vcpu {vcpu_id} kernel entries")

    # Time.

    @property
    def _now_ns(self) -> int:
        return self._current.cpu.now_ns

    @property
    def _paid_ns(self) -> int:
        """Now, with what the call under way will have to pay for its work so far."""
        return self._now_ns + (WORK_PER_CALL - self._current.domain.frames.work_left) * WORK_NS

    def _settle(self) -> None:
        """Tell first what the lane did before, and what the host's clock says."""
        self._notes.drain()
        if self._host is not None and self._now_ns >= self._next_look_ns:
            self._next_look_ns = self._now_ns + HOST_NS
            self._writer.count(self._host, self._now_ns, time.process_time())

    # Hypercalls.

    def call_begins(self, current: Current, row: Hypercall | None, record: CallRecord) -> None:
        """A slice begins."""
        self._settle()
        track, name = self._hypercalls(record.vcpu_id), call_name(row, record)
        self._writer.begin(track, self._paid_ns, name, self._small(row, record.args))

    def call_ends(self, current: Current, row: Hypercall | None, record: CallRecord) -> None:
        """It ends; a refusal is an instant in it."""
        track = self._hypercalls(record.vcpu_id)
        if record.reason:
            error = ERRNO_NAMES.get(-(record.result or 0), "refused")
            self._writer.instant(track, self._paid_ns, error, {"reason": record.reason})
        self._writer.end(track, self._paid_ns)

    def _lane_did(self, notes: Iterable[Note]) -> None:
        kinds, known, put = self._notes, self._kinds, self._writer.slice
        for at_ns, until_ns, a, b, c, d, result, what, number, vcpu_id, user in notes:
            if what == kinds.CALL and result < 0:
                record = self._record(number, vcpu_id, a, b, c, d)
                record.result = result
                self._lane_refused(at_ns, until_ns, number, record)
            elif what == kinds.CALL:
                key = number, vcpu_id, *[v if v < SMALL else -1 for v in (a, b, c, d)]
                kind = known.get(key)
                if kind is None:
                    row, record = self._rows[number], self._record(number, vcpu_id, a, b, c, d)
                    small = self._small(row, record.args)
                    name = call_name(row, record)
                    kind = self._writer.kind(self._hypercalls(vcpu_id), name, small)
                    if len(known) < MAX_KINDS:
                        known[key] = kind
                put(kind, at_ns, until_ns)
            elif what == kinds.IRET:
                self._leave(vcpu_id, at_ns, bool(user))
            elif what == kinds.SYSCALL:
                self._enter(vcpu_id, at_ns, "SYSCALL", {"from": "user"})
            elif what == kinds.INT80:
                self._enter(vcpu_id, at_ns, "int 0x80", {"from": _side(user)})
            else:
                self._page_fault(vcpu_id, at_ns, f"{a:#x}", b, bool(user))

    def _record(self, number: int, vcpu_id: int, *args: int) -> CallRecord:
        """A call that the lane did."""
        row = self._rows[number]
        return CallRecord(0, vcpu_id, 0, row.name, args[: len(row.args)])

    def _lane_refused(self, at_ns: int, until_ns: int, number: int, record: CallRecord) -> None:
        """A call that the lane did, and whose result is an errno; see `hv.calls`."""
        row, track = self._rows[number], self._hypercalls(record.vcpu_id)
        self._writer.begin(track, at_ns, call_name(row, record), self._small(row, record.args))
        error = ERRNO_NAMES[-(record.result or 0)]
        self._writer.instant(track, until_ns, error, {"reason": refusal_by_cpu(record.args)})
        self._writer.end(track, until_ns)

    # The kernel is entered, and left.

    def entered(self, current: Current, what: str, error_code: int | None) -> None:
        """A trap."""
        self._settle()
        vcpu_id, now_ns, user = current.vcpu.vcpu_id, self._now_ns, not in_kernel(current)
        if current.domain.p2m is not None:
            self._writer.instant(self._traps(vcpu_id), now_ns, what)
        elif what.startswith(PAGE_FAULT) and error_code is not None:
            self._page_fault(vcpu_id, now_ns, what.rpartition(" ")[2], error_code, user)
        else:
            details: dict[str, int | str] = {"from": _side(user)}
            if error_code is not None:
                details["error code"] = f"{error_code:#x}"
            self._enter(vcpu_id, now_ns, what, details)

    def upcall(self, current: Current, how: str) -> None:
        """An upcall, unless it is told as a trap."""
        if current.domain.p2m is not None:
            self._settle()
            track = self._traps(current.vcpu.vcpu_id)
            self._writer.instant(track, self._now_ns, f"{UPCALL} by {how}")

    def left(self, current: Current, rip: int) -> None:
        """An iret."""
        self._settle()
        self._leave(current.vcpu.vcpu_id, self._now_ns, not in_kernel(current))

    def _page_fault(self, vcpu_id: int, at_ns: int, where: str, code: int, user: bool) -> None:
        details = {"address": where, "error code": f"{code:#x}", "from": _side(user)}
        self._enter(vcpu_id, at_ns, PAGE_FAULT, details)

    def _enter(self, vcpu_id: int, at_ns: int, what: str, details: Mapping[str, int | str]) -> None:
        depth = self._depth.get(vcpu_id, 0)
        if depth < MAX_DEPTH:
            self._depth[vcpu_id] = depth + 1
            self._writer.begin(self._traps(vcpu_id), at_ns, what, details)

    def _leave(self, vcpu_id: int, at_ns: int, to_user: bool) -> None:
        depth = self._depth.get(vcpu_id, 0)
        over = depth if to_user else min(depth, 1)
        self._depth[vcpu_id] = depth - over
        for _ in range(over):
            self._writer.end(self._traps(vcpu_id), at_ns)

    # Vcpus, events and timers.

    def runstate_changed(self, vcpu: Vcpu, now_ns: int) -> None:
        """Its slice ends, and another one begins."""
        self._settle()
        if vcpu.vcpu_id in self._states:
            self._writer.end(self._states[vcpu.vcpu_id], now_ns)
        self._enter_state(vcpu, now_ns)

    def _enter_state(self, vcpu: Vcpu, at_ns: int) -> None:
        track = self._track("runstate", vcpu.vcpu_id, f"vcpu {vcpu.vcpu_id} runstate")
        self._states[vcpu.vcpu_id] = track
        self._writer.begin(track, at_ns, vcpu.runstate.name.lower())

    def vcpu_changed(self, current: Current, vcpu: Vcpu, what: str, details: Details) -> None:
        """A vcpu comes or goes."""
        self._settle()
        track = self._track("runstate", vcpu.vcpu_id, f"vcpu {vcpu.vcpu_id} runstate")
        self._writer.instant(track, self._now_ns, what, details)

    def raised(self, current: Current, port: int, was_pending: bool) -> None:
        """An event on a port's track."""
        self._settle()
        channel = current.domain.events.channels[port]
        what = describe_port(channel)
        track = self._track("port", (port, what), f"port {port}: {what}")
        name = "raised, pending already" if was_pending else "raised"
        self._writer.instant(track, self._now_ns, name, {"vcpu": channel.notify_vcpu})

    def timer_fired(self, current: Current, kind: str, number: int) -> None:
        """A timer."""
        self._settle()
        track = self._track("timers", None, "timers")
        self._writer.instant(track, self._now_ns, f"{kind} {number}")

    # Devices and the console.

    def served(
        self, device: str, what: str, since_ns: int | None = None, until_ns: int | None = None
    ) -> None:
        """A request."""
        self._settle()
        if since_ns is None or until_ns is None:
            self._writer.instant(self._track(device, 0, device), self._now_ns, what)
            return
        slots = self._slots.setdefault(device, [])
        slot = next((n for n, free_ns in enumerate(slots) if free_ns <= since_ns), len(slots))
        if slot == len(slots):
            if slot == MAX_SLOTS:
                return
            slots.append(0)
        slots[slot] = until_ns
        track = self._track(device, slot, f"{device} #{slot + 1}" if slot else device)
        self._writer.begin(track, since_ns, what)
        self._writer.end(track, until_ns)

    def printed(self, current: Current, data: bytes) -> None:
        """Each line, when its end was shown; and which phase begins with it."""
        self._settle()
        now_ns = self._now_ns
        self._reach("console", now_ns)
        track = self._track("console", None, "console")
        *lines, self._line = (self._line + self._text.feed(data)).split("\n")
        for line in lines:
            self._writer.instant(track, now_ns, line[:MAX_LINE] or " ")
            for name, pattern in MILESTONES.items():
                if pattern.match(line):
                    self._reach(name, now_ns)
        self._line = self._line[:MAX_LINE]

    def _reach(self, phase: str, now_ns: int) -> None:
        if phase not in self._seen_milestones:
            self._seen_milestones.add(phase)
            self._writer.end(self._phase, now_ns)
            self._writer.begin(self._phase, now_ns, phase)

    def logged(self, current: Current, sentence: str) -> None:
        """A refusal that no hypercall tells."""
        self._settle()
        track = self._traps(current.vcpu.vcpu_id)
        self._writer.instant(track, self._now_ns, "refused", {"reason": sentence})

    def _small(self, row: Hypercall | None, args: Sequence[int]) -> Mapping[str, int]:
        """Small numbers among a call's arguments: others are addresses, of which each is new."""
        names = self._arguments.get(row.number if row else -1)
        if names is None:
            names = argument_names(row) if row else [f"argument {n}" for n in range(1, 7)]
            self._arguments[row.number if row else -1] = names
        return {name: value for name, value in zip(names, args, strict=False) if value < SMALL}


def _side(user: int | bool) -> str:
    """What was interrupted."""
    return "user" if user else "kernel"
