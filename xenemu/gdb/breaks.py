"""Breakpoints on what a guest does with Xen: a hypercall, an event, a fault."""

from __future__ import annotations

from collections.abc import Callable

from xenemu.decode import Call, format_args
from xenemu.gdb.target import Refused
from xenemu.hv.calls import CallRecord
from xenemu.hv.current import Current, Observer
from xenemu.hv.dispatch import Hypercall, format_call
from xenemu.hv.observe import Watch
from xenemu.machine import TABLE, Machine
from xenemu.x86 import flags

VECTORS = 32


class Breaks(Observer):
    """Asks to hold the guest, with a sentence, when what was asked for happens.

    A hypercall holds the guest after the call, with the result. An event holds it where the event
    was raised. A fault of a PVH guest holds it before the guest gets the fault. A PV guest's fault
    goes to Xen, which may deal with it unseen. If the fault gets to the guest's handler, the guest
    is held there. `name` writes an address.
    """

    def __init__(
        self,
        machine: Machine,
        request: Callable[[str], None],
        name: Callable[[int], str] = hex,
    ) -> None:
        self._machine, self._request, self._name = machine, request, name
        self._native = machine.domain.p2m is not None
        self._calls: set[str] = set()
        self._ports: set[int] = set()
        self._vectors: set[int] = set()
        self._watch: Watch | None = None
        self._begun: list[Call] = []  # of those asked for; in a multicall there may be one more

    def clear(self) -> None:
        """Hold the guest for none of these any more."""
        self._calls.clear()
        self._ports.clear()
        self._vectors.clear()
        self._update()

    def on_hypercall(self, name: str) -> None:
        """Refused if Xen has no such hypercall."""
        if name not in {row.name for row in TABLE.rows.values()}:
            raise Refused(f"Xen has no hypercall {name!r}; `xenemu hypercalls` lists them")
        self._calls.add(name)
        self._update()

    def on_fault(self, text: str) -> None:
        """By number, or by name as in ``#PF``."""
        names = {name.lstrip("#"): vector for vector, name in flags.VECTOR_NAMES.items()}
        vector = names.get(text.lstrip("#").upper())
        if vector is None:
            vector = _number(text)
        if vector is None or vector >= VECTORS:
            raise Refused(f"there is no fault {text}: give a name such as #PF, or 0 to 31")
        self._vectors.add(vector)
        self._update()

    def on_event(self, text: str) -> None:
        """By port."""
        port = _number(text)
        if port is None:
            raise Refused(f"{text} is no port; `monitor events` lists them")
        self._ports.add(port)
        self._update()

    def describe(self) -> list[str]:
        """What the guest is held for."""
        lines = [f"hypercall {name}" for name in sorted(self._calls)]
        lines += [f"fault {flags.vector_name(vector)}" for vector in sorted(self._vectors)]
        lines += [f"event {port}" for port in sorted(self._ports)]
        return [f"holds on {line}" for line in lines] or ["holds on nothing"]

    def arm(self) -> None:
        """Have the CPU catch the faults that are asked for."""
        if self._native:
            self._machine.debug.catch_faults(self._vectors)

    def _update(self) -> None:
        self.arm()
        watches = bool(self._calls or self._ports or (self._vectors and not self._native))
        if watches == (self._watch is not None):
            return
        if self._watch is None:
            self._watch = Watch.of(self._machine.current)
            self._watch.add(self)
        else:
            self._watch.remove(self)
            self._watch = None
            self._begun.clear()

    # What happens.

    def call_begins(self, current: Current, row: Hypercall | None, record: CallRecord) -> None:
        """Look at the arguments while they are as the guest left them."""
        if record.name in self._calls:
            self._begun.append(Call(current, row, record))

    def call_ends(self, current: Current, row: Hypercall | None, record: CallRecord) -> None:
        """Hold the guest after a call that was asked for, unless it was held during the call."""
        if record.name in self._calls and self._begun:
            call = self._begun.pop()
            args = format_args(call.args, call.changes(current))
            self._request(format_call(record, args).strip())

    def entered(self, current: Current, what: str, error_code: int | None) -> None:
        """Hold a PV guest where its handler of a fault begins."""
        kind = what.partition(" ")[0]
        if self._native or kind not in map(flags.vector_name, self._vectors):
            return
        code = "" if error_code is None else f", error code {error_code:#x}"
        where = self._name(current.cpu.rip)
        self._request(f"{what} at {where}{code}: the guest is where its handler begins")

    def raised(self, current: Current, port: int, was_pending: bool) -> None:
        """Hold the guest where an event was raised."""
        if port in self._ports:
            again = ", where one was pending already" if was_pending else ""
            self._request(f"an event was raised on port {port}{again}")


def _number(text: str) -> int | None:
    """A number, decimal or with ``0x``; None if it is none, or below 0."""
    try:
        number = int(text, 0)
    except ValueError:
        return None
    return number if number >= 0 else None
