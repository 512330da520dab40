"""Guests that have suspended themselves, and what is saved of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from guests.build import ENVIRONMENTS, build, guests
from unattended import Unattended
from xenemu.hv.building import DomainConfig
from xenemu.image import load
from xenemu.machine import Machine, life
from xenemu.machine.ends import Life
from xenemu.machine.migration import envelope
from xenemu.machine.migration.envelope import Told
from xenemu.outcome import End, Outcome

MEMORY = 4 << 20
KINDS = ("pv64", "pv32", "pvh64")
CONFIG = DomainConfig(MEMORY, uuid=bytes(range(16)))
TOLD = Told("guest", CONFIG.uuid, MEMORY, MEMORY, 1, 1)
SECOND_NS = 1_000_000_000
MOST_SLICES = 50


@dataclass
class Screen(Unattended):
    """Ends a run after so many slices."""

    shown: bytearray = field(default_factory=bytearray)
    slices: int = 0

    def check(self) -> Outcome | None:
        self.slices += 1
        return Outcome(End.STOPPED, "enough") if self.slices > MOST_SLICES else None


def make(kind: str, config: DomainConfig = CONFIG) -> Machine:
    """A machine with the guest of guests/suspend, before it runs."""
    with TemporaryDirectory() as folder:
        kernel = build(guests()["suspend"], ENVIRONMENTS[kind], Path(folder) / "kernel")
        return Machine(load(kernel), config, ENVIRONMENTS[kind].mode)


def suspended(kind: str, config: DomainConfig = CONFIG) -> Machine:
    """The same, when it has suspended itself for the first time."""
    machine = make(kind, config)
    assert machine.run(Screen()).end is End.SUSPEND
    return machine


@cache
def stream(kind: str) -> bytes:
    """What `--on-suspend save=` writes of it."""
    written = bytearray()
    envelope.write(written.extend, life.save(suspended(kind)), TOLD)
    return bytes(written)


@cache
def entry_of(kind: str):
    """The entry by which it was booted."""
    return make(kind).entry


def revive(kind: str, data: bytes) -> Machine:
    """Another machine, from a stream; StreamError."""
    saved, _ = envelope.read(memoryview(data))
    return life.revive(entry_of(kind), saved, CONFIG, (), SECOND_NS)


def to_the_end(machine: Machine, suspend=life.cancel) -> tuple[End, str]:
    """Run a machine; `suspend` is what is done with each further suspend."""

    def go_on(suspended: Machine) -> bool:
        suspend(suspended)
        return True

    screen = Screen()
    outcome = machine.run(screen, life=Life(suspended=go_on))
    return outcome.end, screen.shown.decode()
