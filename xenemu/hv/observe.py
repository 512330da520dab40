"""Watch a guest: hypercalls, page tables, events, and how its kernel is entered.

A domain's `watch` has its watchers. Mostly it is None, since nobody watches. The places where
something can be observed ask for `watch`, and do nothing else for a guest that nobody watches.

An observer only looks: a guest runs the same with it and without.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from xenemu.hv.domain import CallRecord, Current

if TYPE_CHECKING:
    from xenemu.hv.dispatch import Hypercall


class Observer:
    """What can be seen; each method does nothing, for a subclass to override."""

    def call_begins(self, current: Current, row: Hypercall | None, record: CallRecord) -> None:
        """A hypercall begins; the calls of a multicall begin and end before the multicall ends."""

    def call_ends(self, current: Current, row: Hypercall | None, record: CallRecord) -> None:
        """It ended. Without a result, the call is to be continued, or it ended the guest."""

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
    """The observers of one machine; implements `hv.domain.Watchers`."""

    current: Current
    observers: list[Observer] = field(default_factory=list)

    @classmethod
    def of(cls, current: Current) -> Watch:
        """The watch of a machine, a new one if nobody watches it."""
        found = current.domain.watch
        return found if isinstance(found, cls) else cls(current)

    def add(self, observer: Observer) -> None:
        """Tell an observer what happens from now on."""
        self.observers.append(observer)
        self.current.domain.watch = self

    def remove(self, observer: Observer) -> None:
        """Tell an observer nothing more; ValueError if it was told nothing before."""
        self.observers.remove(observer)
        if not self.observers:
            self.current.domain.watch = None

    def __iter__(self) -> Iterator[Observer]:
        return iter(self.observers)

    def raised(self, port: int, was_pending: bool) -> None:
        """An event was raised on a port."""
        for observer in self.observers:
            observer.raised(self.current, port, was_pending)


def mod_entry(
    current: Current, maddr: int, entry: int, pg_owner: int, preserve_ad: bool = False
) -> bool:
    """Set an entry as `Frames.mod_entry` does, and tell what it was and is."""
    words = current.domain.memory.words
    old = words[maddr >> 3]
    flush = current.domain.frames.mod_entry(maddr, entry, pg_owner, preserve_ad)
    for observer in current.watch or ():
        observer.entry_set(current, maddr, old, words[maddr >> 3])
    return flush


def pin(current: Current, mfn: int, level: int) -> None:
    """Pin one of the domain's tables as `Frames.pin` does, and tell it."""
    current.domain.frames.pin(mfn, current.domain.domid, level)
    for observer in current.watch or ():
        observer.pinned(current, mfn, level)


def unpin(current: Current, mfn: int) -> None:
    """Unpin one of the domain's tables as `Frames.unpin` does, and tell it."""
    current.domain.frames.unpin(mfn, current.domain.domid)
    for observer in current.watch or ():
        observer.pinned(current, mfn, 0)
