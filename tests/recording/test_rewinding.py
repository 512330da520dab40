"""recording/rewinding: a run that is taken back has its input again, and sends nothing twice."""

from __future__ import annotations

import pytest

import tinyguest
from unattended import Unattended
from xenemu.hv.debug import WentBack
from xenemu.image.loader import load
from xenemu.machine import DomainConfig, Limits, Machine
from xenemu.outcome import End
from xenemu.recording import rewinding
from xenemu.recording.rewinding import Rewindable

COUNT = 12  # packets until the guest is shut down
# A loop of 3 instructions, which the CPU leaves at its timer: inc %rax; nop; jmp
SPIN = bytes.fromhex("48ffc0 90 ebfa")
WAIT = tinyguest.BLOCK + b"\xeb" + bytes([256 - len(tinyguest.BLOCK) - 2])


class Line:
    """A backend that answers each packet, and whose packets change the guest's memory."""

    name, has_room, listens = "line", True, True

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        machine.domain.backends[self.name] = self
        self.count = 0
        self.answers: list[tuple[int, bytes]] = []
        self.fed: list[tuple[int, int, int, bytes]] = []

    def pump(self, domain) -> None: ...

    def feed(self, domain, data: bytes) -> None:
        engine, self.count = self.machine.engine, self.count + 1
        self.fed.append((self.count, engine.instructions, engine.now_ns, data))
        self.answers.append((engine.now_ns, data))
        domain.memory.bytes[-1] ^= data[0]
        if self.count == COUNT:
            domain.shutdown_code = 0

    def take_sent(self):
        sent, self.answers = self.answers, []
        return sent

    def save(self):
        return self.count

    def restore(self, state) -> None:
        self.count, self.answers = state, []


class Packets:
    """A source that has two packets in every third turn, once."""

    writing, reading = None, 0

    def __init__(self, machine: Machine) -> None:
        self.machine, self.given, self.sent, self.more = machine, set(), [], b"more"

    def receive(self, now_ns: int) -> list[bytes]:
        turns = self.machine.past.turns
        if turns % 3 or turns in self.given:
            return []
        self.given.add(turns)
        return [bytes([turns & 0xFF]), self.more]

    def send(self, now_ns: int, data: bytes) -> None:
        self.sent.append(data)

    def flush(self) -> None: ...


class Person(Unattended):
    """Waits by a clock of its own."""

    now_s = 0.0

    def read(self, room, wait_ns, reading=(), writing=()) -> bytes:
        if wait_ns != 0:
            self.now_s += 0.0123
        return b""

    def clock(self) -> float:
        return self.now_s


class Debugger:
    """Keeps a snapshot in one turn, and goes back to it in later ones; then `then` is called."""

    def __init__(self, machine: Machine, keeps: int, goes: tuple[int, ...], then=None) -> None:
        self.machine, self.keeps, self.goes = machine, keeps, list(goes)
        self.then = then or (lambda: None)
        self.run = machine.engine.run
        self.looks = 0

    def look(self) -> None:
        self.looks += 1
        if self.looks == self.keeps:
            self.snapshot, self.printed = self.machine.snapshot(), self.machine.printed
        if self.goes and self.looks == self.goes[0]:
            del self.goes[0]
            self.looks = self.keeps
            self.machine.restore(self.snapshot)
            self.machine.printed = self.printed
            self.then()
            raise WentBack

    def calls(self) -> bool:
        return False

    def idle(self) -> bool:
        raise AssertionError("the guest was never idle for good")

    def ended(self, outcome) -> None:
        pass


@pytest.fixture
def run(tmp_path):
    """Run a guest with a debugger; its line, its packets, how it ended and what it was then."""

    def run(code: bytes, keeps: int = 0, goes: tuple[int, ...] = (), then=None):
        path = tmp_path / "kernel"
        path.write_bytes(tinyguest.kernel(code))
        machine = Machine(load(path), DomainConfig(64 << 20), "pv")
        line, packets, person = Line(machine), Packets(machine), Person()
        after = None if then is None else lambda: then(machine, packets)
        outcome = machine.run(
            person,
            Limits(clock=person.clock),
            debugger=Debugger(machine, keeps, goes, after),
            sources=[(line, packets)],
            kind=Rewindable,
        )
        assert outcome.end is End.POWEROFF
        engine = machine.engine
        end = engine.instructions, engine.now_ns, engine.store(), bytes(machine.domain.memory.bytes)
        return line, packets, end

    return run


@pytest.mark.parametrize("code", [SPIN, WAIT])
@pytest.mark.parametrize(("keeps", "goes"), [(3, (9,)), (1, (14,)), (4, (5, 8, 8)), (6, (6,))])
def test_what_came_comes_again_and_nothing_is_sent_twice(run, code, keeps, goes) -> None:
    straight, sent, end = run(code)
    back, sent_once, same_end = run(code, keeps, goes)
    assert same_end == end
    assert sent_once.sent == sent.sent and len(sent.sent) == COUNT
    assert len(back.fed) > len(straight.fed) or goes == (6,)
    for fed in back.fed:  # with its count, its place and its bytes
        assert fed in straight.fed


def test_who_interferes_has_a_run_with_other_input(run) -> None:
    def interfere(machine, packets):
        machine.disturbed += 1
        packets.given.clear()
        packets.more = b"other"

    back, _, _ = run(SPIN, 3, (9,), interfere)
    counts = [count for count, *_ in back.fed]
    again = counts.index(3, counts.index(3) + 1)  # the first after it went back
    assert {data for *_, data in back.fed[:again]} >= {b"more"}
    assert b"more" not in {data for *_, data in back.fed[again:]}
    assert counts[-1] == COUNT


def test_too_much_input_makes_it_a_run_that_cannot_be_repeated(run, monkeypatch) -> None:
    monkeypatch.setattr(rewinding, "MOST_BYTES", 8)
    seen = []
    run(SPIN, 1, (9,), lambda machine, _: seen.append(machine.disturbed))
    assert seen[0] > 0
