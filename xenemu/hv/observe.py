"""Watch a guest: hypercalls, page tables, events, and how its kernel is entered.

A domain's `watch` has its watchers. Mostly it is None, since nobody watches. The places where
something can be observed ask for `watch`, and do nothing else for a guest that nobody watches.

An observer only looks: a guest runs the same with it and without.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import field

from xenemu.hv.current import Current, Observer
from xenemu.records import dataclass


@dataclass
class Watch:
    """The observers of one machine; implements `hv.state.domain.Watchers`."""

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
        if observer.shuts_lane:
            self.current.cpu.open_lane(False)

    def remove(self, observer: Observer) -> None:
        """Tell an observer nothing more; ValueError if it was told nothing before."""
        self.observers.remove(observer)
        if not self.observers:
            self.current.domain.watch = None

    @property
    def shuts_lane(self) -> bool:
        """Whether somebody would not see what the lane does."""
        return any(observer.shuts_lane for observer in self.observers)

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
