"""Restored and continued equals never stopped: console, time, registers and memory, to the byte."""

from __future__ import annotations

import hashlib
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from guests.build import ENVIRONMENTS, build, guests
from guests.initramfs import DEFAULT_INIT
from unattended import Unattended
from xenemu.hv.building import DomainConfig
from xenemu.hv.calls import CallRecord
from xenemu.hv.current import Current, Observer
from xenemu.hv.observe import Watch
from xenemu.image import load
from xenemu.machine import SLICE_NS, Machine, snapshot_file
from xenemu.machine.snapshot import Snapshot
from xenemu.outcome import End, Outcome
from xenemu.smoke.initramfs import build as build_initramfs

OWN = [(name, kind) for name, guest in guests().items() for kind in guest.environments]
MOST_SLICES = 100_000
SHORT_SLICE_NS = 20_000  # of the first SHORT_SLICES, so that small guests have some
SHORT_SLICES = 20


@dataclass
class Script(Unattended):
    """A terminal without a person, which stops the run after each of some numbers of slices."""

    machine: Machine
    stops: tuple[int, ...] = ()
    slices: int = 0
    shown: bytearray = field(default_factory=bytearray)

    def check(self) -> Outcome | None:
        self.slices += 1
        if self.slices == SHORT_SLICES:
            self.machine.slice_ns = SLICE_NS
        if self.slices in (*self.stops, MOST_SLICES):
            return Outcome(End.STOPPED, f"after slice {self.slices}")
        return None


def end_of(machine: Machine, terminal: Script) -> tuple[object, ...]:
    """Run a machine to its end: all that can be compared."""
    outcome = machine.run(terminal)
    engine = machine.engine
    return (
        outcome,
        bytes(terminal.shown),
        engine.instructions,
        engine.now_ns,
        engine.store(),
        [(record.name, record.at_ns, record.result) for record in machine.domain.calls],
        hashlib.sha256(machine.domain.memory.bytes[: 64 << 20]).hexdigest(),
    )


def through_a_file(snapshot: Snapshot) -> Snapshot:
    """The snapshot as it is after it was written and read."""
    with tempfile.NamedTemporaryFile() as file:
        snapshot_file.write(file.write, a_header(), snapshot)
        file.flush()
        return snapshot_file.read(Path(file.name)).snapshot


def a_header(disks: int = 0) -> snapshot_file.Header:
    """A header that says nothing of the guest, but how many disks it has."""
    named = ["/d"] * disks
    return snapshot_file.Header(kernel="/k", kernel_digest="", entry="", memory=0, disks=named)


def assert_the_same(make, stops: tuple[int, ...]) -> int:
    """Compare a run to its end with runs that are stopped, and taken back; how often it was."""
    machine = make()
    whole = Script(machine)
    straight = end_of(machine, whole)
    stops = tuple(stop for stop in stops if stop < whole.slices)  # the last may be a crash's
    machine = make()
    terminal = Script(machine, stops)
    slice_ns, kept = machine.slice_ns, []
    while machine.run(terminal).end is End.STOPPED and terminal.slices in stops:
        # The slice that was stopped begins with a look at the terminal, which comes again.
        terminal.slices -= 1
        terminal.stops = tuple(stop for stop in terminal.stops if stop > terminal.slices + 1)
        kept.append((machine.snapshot(), terminal.slices, bytes(terminal.shown)))
    for snapshot, slices, shown in reversed(kept):
        if snapshot is kept[0][0]:  # and one by another machine, from a file
            machine = Machine.revive(through_a_file(snapshot))
        else:
            machine.restore(snapshot)
        machine.slice_ns = slice_ns if slices < SHORT_SLICES else SLICE_NS
        assert end_of(machine, Script(machine, (), slices, bytearray(shown))) == straight
    return len(kept)


@pytest.mark.parametrize(("name", "kind"), OWN)
def test_own_guests(tmp_path: Path, name: str, kind: str) -> None:
    def make() -> Machine:
        machine = Machine(kernel, config, environment.mode)
        machine.slice_ns = SHORT_SLICE_NS
        return machine

    guest, environment = guests()[name], ENVIRONMENTS[kind]
    kernel = load(build(guest, environment, tmp_path / name))
    initrd = (guest.folder / guest.initrd).read_bytes() if guest.initrd else b""
    config = DomainConfig(64 << 20, guest.cmdline.encode(), initrd, vcpus=guest.vcpus)
    assert assert_the_same(make, (1, 4, 9)) > 0


class Holds:
    """A debugger that holds the guest once, `steps` instructions after the run's beginning."""

    def __init__(self, machine: Machine, steps: int) -> None:
        self.machine, self.steps = machine, steps
        self.kept: Snapshot | None = None

    def run(self, deadline_ns: int) -> None:
        debug = self.machine.debug
        debug.begin(deadline_ns)
        while not debug.over and self.kept is None:
            debug.step()
            self.steps -= 1
            if not self.steps:
                self.kept = self.machine.snapshot()
        if not debug.over:
            debug.run()

    def look(self) -> None: ...

    def calls(self) -> bool:
        return False

    def idle(self) -> bool:
        return False

    def ended(self, outcome: Outcome) -> None: ...


@pytest.mark.parametrize(("name", "kind"), [("race", "pv64"), ("ap-start-pvh", "pvh64")])
def test_within_a_slice(tmp_path: Path, name: str, kind: str) -> None:
    guest, environment = guests()[name], ENVIRONMENTS[kind]
    kernel = load(build(guest, environment, tmp_path / name))
    config = DomainConfig(64 << 20, guest.cmdline.encode(), vcpus=guest.vcpus)
    machine = Machine(kernel, config, environment.mode)
    straight = end_of(machine, Script(machine))[2:]
    for steps in (1, 700, 3001):
        machine = Machine(kernel, config, environment.mode)
        holds = Holds(machine, steps)
        machine.run(Script(machine), debugger=holds)
        assert holds.kept is not None
        revived = Machine.revive(through_a_file(holds.kept))
        assert end_of(revived, Script(revived))[2:] == straight


def test_what_a_seed_draws_next(tmp_path: Path) -> None:
    kernel = load(build(guests()["race"], ENVIRONMENTS["pv64"], tmp_path / "race"))
    config = DomainConfig(64 << 20, vcpus=2, slice_ns=20_000, schedule_seed=3)
    assert assert_the_same(lambda: Machine(kernel, config, "pv"), (20, 50, 100)) == 3


@pytest.mark.parametrize("mode", ["pv", "pvh"])
def test_debian(guest_image, mode: str) -> None:
    initrd = build_initramfs(guest_image("busybox").read_bytes(), DEFAULT_INIT.read_bytes())
    kernel = load(guest_image("debian-cloud-amd64"))
    config = DomainConfig(128 << 20, b"console=hvc0", initrd)
    assert assert_the_same(lambda: Machine(kernel, config, mode), (40, 100, 160)) == 3


def test_a_restored_machine_is_watched(tmp_path: Path) -> None:
    class Calls(Observer):
        def __init__(self) -> None:
            self.names: list[str] = []

        def call_begins(self, current: Current, row: object, record: CallRecord) -> None:
            self.names.append(record.name)

    kernel = load(build(guests()["hello"], ENVIRONMENTS["pv64"], tmp_path / "hello"))
    machine = Machine(kernel, DomainConfig(64 << 20), "pv")
    calls = Calls()
    Watch.of(machine.current).add(calls)
    start = machine.snapshot()
    machine.run(Script(machine))
    once = list(calls.names)
    machine.restore(start)
    machine.run(Script(machine))
    assert once
    assert calls.names == once + once
