"""Recording and repeating a run: what came from outside comes at the same instants again."""

from __future__ import annotations

import socket
from dataclasses import replace
from pathlib import Path

import pytest

import tinyguest
from unattended import Unattended
from xenemu.dom0.p9 import ServerError
from xenemu.image.loader import load
from xenemu.machine import DomainConfig, Limits, Machine
from xenemu.outcome import End, Outcome
from xenemu.recording import file as recording_file
from xenemu.recording.events import Arrived, Checked, Ended, Waited
from xenemu.recording.file import Header, Writer
from xenemu.recording.player import Player
from xenemu.recording.recorder import Recorder
from xenemu.recording.start import start_of

COUNT = 5  # packets until the guest is shut down
# A loop of 3 instructions, which the CPU leaves at its timer: inc %rax; nop; jmp
SPIN = bytes.fromhex("48ffc0 90 ebfa")
WAIT = tinyguest.BLOCK + b"\xeb" + bytes([256 - len(tinyguest.BLOCK) - 2])


class Line:
    """A backend whose packets change the guest's memory; after COUNT of them it shuts it down."""

    name, has_room, listens = "line", True, True

    def __init__(self) -> None:
        self.fed: list[tuple[int, int, bytes]] = []

    def attach(self, machine: Machine) -> Machine:
        self.machine = machine
        machine.domain.backends[self.name] = self
        return machine

    def pump(self, domain) -> None: ...

    def feed(self, domain, data: bytes) -> None:
        engine = self.machine.engine
        self.fed.append((engine.instructions, engine.now_ns, data))
        domain.memory.bytes[-1] ^= data[0]
        if len(self.fed) == COUNT:
            domain.shutdown_code = 0

    def take_sent(self):
        return ()


class Packets:
    """A source that has packets every so many times that it is asked."""

    writing = None

    def __init__(self, every: int) -> None:
        self.every, self.asked = every, 0
        self.ends = socket.socketpair()

    @property
    def reading(self) -> int:
        return self.ends[0].fileno()

    def receive(self, now_ns: int) -> list[bytes]:
        self.asked += 1
        return [] if self.asked % self.every else [bytes([self.asked & 0xFF]), b"more"]

    def send(self, now_ns: int, data: bytes) -> None: ...

    def flush(self) -> None: ...


class Person(Unattended):
    """Waits by a clock of its own, and may leave in the middle of a slice."""

    def __init__(self, leaves_at: int = 0) -> None:
        super().__init__()
        self.now_s, self.leaves_at, self.looks = 0.0, leaves_at, 0

    def read(self, room, wait_ns, reading=(), writing=()) -> bytes:
        if wait_ns != 0:
            self.now_s += 0.0123
        return b""

    def clock(self) -> float:
        return self.now_s

    def leaves(self) -> bool:
        self.looks += 1
        return bool(self.leaves_at) and self.looks >= self.leaves_at

    def check(self) -> Outcome | None:
        if self.leaves_at and self.looks >= self.leaves_at:
            return Outcome(End.STOPPED, "left")
        return None


@pytest.fixture
def make(tmp_path: Path):
    def make(code: bytes, **changes: int) -> Machine:
        path = tmp_path / "kernel"
        path.write_bytes(tinyguest.kernel(code))
        return Machine(load(path), DomainConfig(64 << 20, **changes), "pv")

    return make


@pytest.fixture
def record(make, tmp_path: Path):
    """Record a run: its machine, line and outcome."""

    def record(code: bytes, person: Person, every: int = 3, checks: int = 100_000):
        line = Line()
        machine = line.attach(make(code))
        header = Header(start=start_of(tmp_path / "kernel", "pv", DomainConfig(64 << 20)))
        with (tmp_path / "recording").open("wb") as file:
            recorder = Recorder(Writer(file.write, header), checks)
            outcome = machine.run(
                person,
                Limits(clock=person.clock),
                sources=[(line, Packets(every))] if every else [],
                kind=recorder.outside,
            )
        return machine, line, outcome

    return record


@pytest.fixture
def repeat(make, tmp_path: Path):
    """Repeat a recorded run: its machine, line and outcome."""

    def repeat(code: bytes, recording=None, **changes: int):
        line = Line()
        machine = line.attach(make(code, **changes))
        player = Player(recording or read(tmp_path))
        return machine, line, machine.run(Unattended(), kind=player.outside)

    return repeat


def read(tmp_path: Path) -> recording_file.Recording:
    return recording_file.read(tmp_path / "recording")


def end_of(machine: Machine) -> tuple[object, ...]:
    engine = machine.engine
    return engine.instructions, engine.now_ns, engine.store(), bytes(machine.domain.memory.bytes)


@pytest.mark.parametrize("code", [SPIN, WAIT])
def test_what_came_comes_at_the_same_instants_again(record, repeat, tmp_path, code) -> None:
    machine, line, outcome = record(code, Person())
    again, heard, repeated = repeat(code)
    assert outcome.end is End.POWEROFF
    assert repeated == outcome
    assert heard.fed == line.fed
    assert end_of(again) == end_of(machine)
    events = read(tmp_path).events
    assert sum(isinstance(event, Arrived) for event in events) >= COUNT
    assert any(isinstance(event, Waited if code is WAIT else Checked) for event in events)


def test_a_run_that_was_left_ends_before_the_same_instruction(record, repeat, tmp_path) -> None:
    machine, _, outcome = record(SPIN, Person(leaves_at=3), every=0)
    assert outcome.end is End.STOPPED
    again, _, repeated = repeat(SPIN)
    assert repeated == outcome
    assert end_of(again) == end_of(machine)


def test_a_timeout_comes_again_without_the_time(record, repeat, tmp_path, make) -> None:
    person = Person()
    machine = make(WAIT)
    line = Line()
    line.attach(machine)
    header = Header(start=start_of(tmp_path / "kernel", "pv", DomainConfig(64 << 20)))
    with (tmp_path / "recording").open("wb") as file:
        outcome = machine.run(
            person,
            Limits(1, person.clock),
            sources=[(line, Packets(1 << 30))],
            kind=Recorder(Writer(file.write, header)).outside,
        )
    assert outcome.end is End.TIMEOUT
    again, _, repeated = repeat(WAIT)
    assert repeated == outcome
    assert end_of(again) == end_of(machine)


def test_another_run_is_told_by_where_it_began_to_differ(record, repeat, tmp_path) -> None:
    # rdrand %rax; then a loop of so many turns
    code = bytes.fromhex("480fc7f0 83e07f 0500100000 ffc8 75fc") + tinyguest.shutdown(0)
    machine, _, _ = record(code, Person(), every=0, checks=1)
    again, _, outcome = repeat(code, rng_seed=7)
    assert outcome.end is End.DIVERGED
    assert outcome.exit_code == 9
    assert "differ" in outcome.reason
    assert again.engine.instructions <= machine.engine.instructions


def test_a_byte_of_memory_is_enough_to_differ(record, repeat, tmp_path) -> None:
    record(SPIN, Person(), checks=1000)
    recording = read(tmp_path)
    at = next(n for n, event in enumerate(recording.events) if isinstance(event, Checked) and n)
    recording.events[at].state = b"x" * 8
    _, _, outcome = repeat(SPIN, recording)
    assert outcome.end is End.DIVERGED
    assert "its registers or its memory were others" in outcome.reason


@pytest.mark.parametrize(
    ("receiver", "words"),
    [("nobody", "'nobody' takes nothing"), ("control", "'control' cannot take what came")],
)
def test_what_nobody_sends_is_told(record, repeat, tmp_path, receiver, words) -> None:
    record(SPIN, Person())
    recording = read(tmp_path)
    at = next(n for n, event in enumerate(recording.events) if isinstance(event, Arrived))
    recording.events[at].receiver = receiver
    _, _, outcome = repeat(SPIN, recording)
    assert outcome.end is End.DIVERGED
    assert words in outcome.reason


def test_a_guest_that_ends_earlier_is_told(record, repeat, tmp_path) -> None:
    record(WAIT, Person())
    _, _, outcome = repeat(tinyguest.shutdown(tinyguest.POWEROFF))
    assert outcome.end is End.DIVERGED
    assert "it ended (the guest powered off), and the recorded one went on" in outcome.reason


@pytest.mark.parametrize("code", [SPIN, WAIT])
def test_a_recording_that_was_cut_is_repeated_up_to_the_cut(record, repeat, tmp_path, code) -> None:
    record(code, Person(), checks=1000)
    whole = read(tmp_path)
    for count in range(len(whole.events)):
        cut = replace(whole, events=whole.events[:count])
        machine, _, outcome = repeat(code, cut)
        assert (outcome.end, outcome.exit_code) == (End.UNMET, 3)
        assert "the recording ends here" in outcome.reason
        last = cut.events[-1] if count else None
        assert last is None or machine.past.turns == last.turns


def test_a_debugger_may_go_back_over_what_came(record, make, tmp_path) -> None:
    """A snapshot in the middle of a replay knows how far it is."""
    _, _, outcome = record(SPIN, Person())
    again = Line()
    machine = again.attach(make(SPIN))
    kept = []

    def keep() -> None:
        if len(again.fed) == 2 and not kept:
            del machine.domain.backends["line"]  # which has no state that could be kept
            kept.append((machine.snapshot(), list(again.fed)))
            machine.domain.backends["line"] = again

    player = Player(read(tmp_path))
    assert machine.run(Unattended(), keep=keep, kind=player.outside) == outcome
    once, fed = end_of(machine), again.fed
    ((snapshot, before),) = kept
    del machine.domain.backends["line"]
    machine.restore(snapshot)
    again.attach(machine)
    again.fed = before
    assert machine.run(Unattended(), kind=player.outside) == outcome
    assert (end_of(machine), again.fed) == (once, fed)


def test_a_share_answers_what_its_server_answered(tmp_path: Path, make) -> None:
    class Server:
        def ask(self, request: bytes, before: int) -> bytes:
            if request == b"bad":
                raise ServerError("it is gone")
            return request.upper()

    class Share:
        name, server = "9pfs0", Server()

    machine = make(SPIN)
    header = Header(start=start_of(tmp_path / "kernel", "pv", DomainConfig(64 << 20)))
    with (tmp_path / "recording").open("wb") as file:
        recorder = Recorder(Writer(file.write, header))
        share = Share()
        recorder.hear(machine, share)
        assert share.server.ask(b"one", 0) == b"ONE"
        with pytest.raises(ServerError):
            share.server.ask(b"bad", 1)
        recorder.writer.flush()
    server = Player(read(tmp_path)).server("9pfs0")
    assert server.ask(b"one", 0) == b"ONE"
    with pytest.raises(ServerError, match="it is gone"):
        server.ask(b"bad", 1)
    with pytest.raises(ServerError, match="no more answers"):
        server.ask(b"two", 2)


def test_the_end_is_in_the_recording(record, tmp_path) -> None:
    machine, _, outcome = record(WAIT, Person())
    ended = read(tmp_path).ended
    assert isinstance(ended, Ended)
    assert (ended.end, ended.reason) == (End.POWEROFF, outcome.reason)
    assert ended.instructions == machine.engine.instructions
