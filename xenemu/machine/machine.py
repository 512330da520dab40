"""A machine: what is done with a host on an engine."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from xenemu.hv.debug import Debugger
from xenemu.hv.state.domain import Backend
from xenemu.machine.core import Core
from xenemu.machine.ends import Life
from xenemu.machine.loop import Run
from xenemu.machine.outside import Line, Outside, Source
from xenemu.machine.terminal import Limits, Terminal
from xenemu.outcome import Outcome

if TYPE_CHECKING:
    from xenemu.machine.snapshot import Snapshot


class Machine(Core):
    """A machine, which runs, and goes back to what it was."""

    def snapshot(self) -> Snapshot:
        """Keep what the machine is now: between two slices, or where a debugger holds it.

        A process that is to be confined imports `machine.snapshot` before that.
        """
        from xenemu.machine.snapshot import Snapshot  # noqa: PLC0415 (few runs want one)

        return Snapshot.of(self)

    def restore(self, snapshot: Snapshot) -> None:
        """Make the machine what it was at a snapshot that it took; not while it runs."""
        snapshot.put_back(self)

    @classmethod
    def revive(cls, snapshot: Snapshot, backends: Iterable[Backend] = ()) -> Machine:
        """A new machine, which goes on from another's snapshot.

        `backends` are those that the other had. DecodeError: the snapshot is damaged, or of another
        version.
        """
        machine = cls.__new__(cls)
        snapshot.revive(machine, backends)
        return machine

    def run(
        self,
        terminal: Terminal,
        limits: Limits | None = None,
        audit_ns: int | None = None,
        debugger: Debugger | None = None,
        sources: Sequence[tuple[Line, Source]] = (),
        keep: Callable[[], None] | None = None,
        kind: Callable[..., Outside] = Outside,
        life: Life | None = None,
    ) -> Outcome:
        """Run the guest to its end, or until `terminal`, `limits` or `debugger` say to stop.

        With `audit_ns`, audit the domain each time that so much virtual time has passed, and in
        the end. `sources` are what brings input from outside besides the terminal, each with its
        backend. `keep` is called between slices of the guest; it may take a snapshot. `kind` makes
        what is outside of those three: another one records the run, or repeats one.
        `life` says what becomes of a domain that ends.
        """
        outside = kind(self, terminal, sources, limits or Limits())
        return Run(self, outside, debugger, keep, life or Life()).run(audit_ns)
