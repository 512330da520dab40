"""``--on-suspend``: what becomes of a guest that has suspended itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import field, replace
from enum import Enum
from pathlib import Path
from typing import Final

from xenemu.dom0 import renewal
from xenemu.errors import UsageError
from xenemu.machine import life
from xenemu.machine.core import Core
from xenemu.machine.ends import Life
from xenemu.machine.migration import envelope
from xenemu.machine.migration.envelope import Told
from xenemu.machine.migration.records import StreamError
from xenemu.outputs import Output, Outputs
from xenemu.records import dataclass

CHOICES: Final = "end, resume, cancel, preserve or save=FILE"
SAVE: Final = "save="


class Action(Enum):
    """What can be done with it, besides to end the run."""

    RESUME = "resume"
    CANCEL = "cancel"
    SAVE = "save"
    PRESERVE = "preserve"


WISHES: Final = {"new": Action.RESUME, "cancel": Action.CANCEL}  # of a toolstack's


@dataclass
class Suspending:
    """What is done with a guest that suspends itself; `away_ns` is how long it is away."""

    action: Action
    away_ns: int
    output: Output | None = None  # to save it to
    saved: bool = field(default=False, init=False)
    is_shell: bool = False  # what the file says of the guest: see `Told`

    @classmethod
    def parse(cls, outputs: Outputs, text: str, away_ns: int) -> Suspending:
        """What ``--on-suspend`` asks for, other than to end the run; UsageError."""
        if text.startswith(SAVE) and text != SAVE:
            path = Path(text.removeprefix(SAVE))
            return cls(Action.SAVE, away_ns, outputs.open("--on-suspend save=", path))
        return cls(cls.action_of(text), away_ns)

    @classmethod
    def action_of(cls, text: str) -> Action:
        """An action that needs no file, by its name; UsageError."""
        if text not in (Action.RESUME.value, Action.CANCEL.value, Action.PRESERVE.value):
            raise UsageError(f"--on-suspend: {text!r} is not {CHOICES}")
        return Action(text)

    @property
    def waits(self) -> bool:
        """Whether a suspended guest waits for a toolstack."""
        return self.action is Action.PRESERVE

    def take_part(self, life: Life) -> None:
        """Be asked, in a run, what becomes of a guest that is suspended."""
        life.keeps_suspended = self.waits
        life.suspended = lambda machine: self.live_on(machine, life.tell)

    def live_on(self, machine: Core, tell: Callable[[str], None]) -> bool:
        """Do it with a machine whose domain has suspended itself; whether a domain goes on.

        A guest that cannot be saved goes on, as under xl: its hypercall returns 1.
        """
        at = f"at {machine.engine.now_ns / 1e9:.3f} s of the guest's time"
        action = self.action
        if action is Action.PRESERVE:
            action, machine.control.wish = WISHES[machine.control.wish], ""
        try:
            if action is Action.SAVE:
                self._save(machine)
                tell(f"--on-suspend: saved {at}")
                return False
            if action is Action.RESUME:
                life.renew(machine, self.away_ns)
                told = f"resumed as domain {machine.domain.domid}, suspended {at}"
            else:
                life.cancel(machine)
                told = f"cancelled {at}"
        except StreamError as error:
            life.cancel(machine)
            told = f"the guest cannot be saved: {error}; it goes on"
        tell(f"--on-suspend: {told}")
        machine.control.say("resume", domid=machine.domain.domid)
        return True

    @property
    def missing(self) -> str:
        """What was asked for and has not come, in a sentence."""
        if self.output is None or self.saved:
            return ""
        return f"{self.output.name}: not written: the guest was not saved"

    def _save(self, machine: Core) -> None:
        """Write the file, once; StreamError, and nothing is written."""
        assert self.output is not None
        saved = life.save(machine)
        envelope.write(self.output.write, saved, replace(_told(machine), is_shell=self.is_shell))
        self.saved = True


def _told(machine: Core) -> Told:
    """What the toolstack knows of a machine's domain."""
    known = renewal.describe(machine.domain, machine.host.store)
    return Told(
        name=known.config.name,
        uuid=known.config.uuid,
        memory=known.config.most_memory,
        target=known.config.memory,
        vcpus=known.config.vcpus,
        maxvcpus=known.config.all_vcpus,
    )
