"""Watch a guest: hypercalls, page tables, events, and how its kernel is entered.

Nothing is asked on the way of a guest that nobody watches. `Watch.add` of the first observer puts
other classes in the place of the hypercall table, the frame table, the event channels and the
domain, which tell the observers and then do what they always do; `remove` of the last one puts
the old ones back. What is rare or long anyway asks `Current.watch`.

An observer only looks: a guest runs the same with it and without.
"""

from __future__ import annotations

import copyreg
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar, SupportsIndex

from xenemu.hv.dispatch import Hypercall, HypercallTable
from xenemu.hv.domain import CallRecord, Current, Domain
from xenemu.hv.event_channel import EventChannels
from xenemu.hv.pagetype import Frames


class Observer:
    """What can be seen; each method does nothing, for a subclass to override."""

    def call_begins(self, current: Current, row: Hypercall | None, record: CallRecord) -> None:
        """A hypercall begins; those of a multicall do so between its beginning and its end."""

    def call_ends(self, current: Current, row: Hypercall | None, record: CallRecord) -> None:
        """It ended. Without a result, it is to be continued, or ended the guest."""

    def entry_set(self, current: Current, maddr: int, old: int, new: int) -> None:
        """An entry of a page table was changed, as a hypercall or a store asked."""

    def pinned(self, current: Current, mfn: int, level: int) -> None:
        """A page table was pinned; level 0: unpinned."""

    def root_set(self, current: Current, mfn: int, user: bool) -> None:
        """A table became the root of the kernel's or the user's address space."""

    def raised(self, current: Current, port: int, was_pending: bool) -> None:
        """An event was raised on a port."""

    def upcall(self, current: Current, how: str) -> None:
        """The guest is called for its events."""

    def entered(self, current: Current, what: str, error_code: int | None) -> None:
        """The guest's kernel is entered, for an exception, an interrupt or a system call."""

    def left(self, current: Current, rip: int) -> None:
        """The guest's kernel returned by HYPERVISOR_iret, called at `rip`, to where the CPU is."""

    def logged(self, current: Current, sentence: str) -> None:
        """Something was refused outside of a hypercall's result."""


@dataclass
class Watch:
    """The observers of one machine."""

    current: Current
    observers: list[Observer] = field(default_factory=list)
    _table: HypercallTable | None = None  # the table that is watched

    @classmethod
    def of(cls, current: Current) -> Watch:
        """The watch of a machine, a new one if nobody watches it."""
        return current.watch or cls(current)

    def add(self, observer: Observer) -> None:
        """Tell an observer what happens from now on."""
        if not self.observers:
            self._install()
        self.observers.append(observer)

    def remove(self, observer: Observer) -> None:
        """Tell it no more; ValueError if it was not told."""
        self.observers.remove(observer)
        if not self.observers:
            self._uninstall()

    def __iter__(self) -> Iterator[Observer]:
        return iter(self.observers)

    def pause(self) -> None:
        """Watch nothing for now: the domain is to be replaced."""
        if self.observers:
            self._uninstall()

    def resume(self) -> None:
        """Watch again what is there now."""
        if self.observers:
            self._install()

    def _install(self) -> None:
        current, domain = self.current, self.current.domain
        current.watch, self._table = self, current.table
        if current.table is not None:
            current.table = WatchedTable(list(current.table.rows.values()))
            current.table.watch = self
        for watched, subclass in _watched(domain):
            watched.__class__ = subclass
            watched.__dict__["watch"] = self

    def _uninstall(self) -> None:
        current, domain = self.current, self.current.domain
        current.watch, current.table = None, self._table
        for watched, subclass in _watched(domain):
            watched.__class__ = subclass.__bases__[-1]
            del watched.__dict__["watch"]


def _watched(domain: Domain) -> list[tuple[object, type]]:
    """What is watched of a domain, with the class that does so: its last base is the usual one."""
    return [
        (domain, WatchedDomain),
        (domain.frames, WatchedFrames),
        (domain.events, WatchedEvents),
    ]


class WatchedTable(HypercallTable):
    """The hypercall table, watched."""

    watch: Watch

    def make(self, current: Current, row: Hypercall | None, record: CallRecord) -> int:
        """Make a call between its two notices."""
        for observer in self.watch:
            observer.call_begins(current, row, record)
        try:
            return super().make(current, row, record)
        finally:
            for observer in self.watch:
                observer.call_ends(current, row, record)


class Watched:
    """What is watched; a copy of it, or what a snapshot keeps of it, is not."""

    watch: ClassVar[Watch]  # in the instance, and no field of a dataclass

    def __reduce_ex__(self, protocol: SupportsIndex) -> tuple[object, ...]:
        """Copy as the class that is watched."""
        usual = type(self).__bases__[-1]
        state = {name: value for name, value in vars(self).items() if name != "watch"}
        return copyreg.__newobj__, (usual,), state  # type: ignore[attr-defined]


class WatchedDomain(Watched, Domain):
    """A domain, with its log watched."""

    def log(self, sentence: str) -> None:
        """Note a refusal, and tell it."""
        super().log(sentence)
        for observer in self.watch:
            observer.logged(self.watch.current, sentence)


class WatchedFrames(Watched, Frames):
    """The frame table, with what changes page tables watched."""

    def mod_entry(self, maddr: int, entry: int, pg_owner: int, preserve_ad: bool = False) -> bool:
        """Set an entry, and tell what it was and is."""
        old = self.memory.words[maddr >> 3]
        flush = super().mod_entry(maddr, entry, pg_owner, preserve_ad)
        for observer in self.watch:
            observer.entry_set(self.watch.current, maddr, old, self.memory.words[maddr >> 3])
        return flush

    def pin(self, mfn: int, domid: int, level: int) -> None:
        """Pin a table, and tell it."""
        super().pin(mfn, domid, level)
        for observer in self.watch:
            observer.pinned(self.watch.current, mfn, level)

    def unpin(self, mfn: int, domid: int) -> None:
        """Unpin a table, and tell it."""
        super().unpin(mfn, domid)
        for observer in self.watch:
            observer.pinned(self.watch.current, mfn, 0)


class WatchedEvents(Watched, EventChannels):
    """The event channels, with what is raised watched."""

    def set_pending(self, domain: Domain, port: int) -> None:
        """Raise an event, and tell it."""
        was_pending = self.is_pending(domain, port)
        super().set_pending(domain, port)
        for observer in self.watch:
            observer.raised(self.watch.current, port, was_pending)
