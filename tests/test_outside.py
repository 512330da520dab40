"""machine/outside: how a run takes what comes from outside, and lets idle time pass for it."""

from __future__ import annotations

import socket

import pytest

import elfwriter
from unattended import Unattended
from xenemu.image.loader import load
from xenemu.machine import DomainConfig, Limits, Machine
from xenemu.machine.outside import Outside
from xenemu.outcome import End, Outcome

# mov $29, %eax; mov $SCHEDOP_block, %edi; syscall; and again
WAIT = bytes.fromhex("b81d000000 bf01000000 0f05 ebf2")
# jmp to itself
SPIN = b"\xeb\xfe"


class Line:
    """A backend that notes what it is fed, and when. A packet may shut the domain down."""

    name = "line"
    has_room = listens = True

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.fed: list[tuple[int, bytes]] = []
        self.to_send: list[tuple[int, bytes]] = []

    def feed(self, domain, data: bytes) -> None:
        self.fed.append((self.machine.engine.now_ns, data))
        if data == b"end":
            domain.shutdown_code = 0

    def take_sent(self):
        sent, self.to_send = self.to_send, []
        return sent


class Datagrams:
    """A source whose packets are datagrams."""

    writing = None

    def __init__(self, end: socket.socket) -> None:
        self.end = end
        end.setblocking(False)
        self.sent: list[tuple[int, bytes]] = []

    @property
    def reading(self) -> int:
        return self.end.fileno()

    def receive(self, now_ns: int) -> list[bytes]:
        try:
            return [self.end.recv(100)]
        except BlockingIOError:
            return []

    def send(self, now_ns: int, data: bytes) -> None:
        self.sent.append((now_ns, data))

    def flush(self) -> None:
        pass


class Waiting(Unattended):
    """Waits by a clock of its own: after so many seconds, `calls` happens."""

    def __init__(self, seconds: float = 0, calls=lambda: None) -> None:
        super().__init__()
        self.now_s, self.seconds, self.calls = 0.0, seconds, calls
        self.waited: list[tuple[int | None, tuple[int, ...]]] = []

    def read(self, room, wait_ns, reading=(), writing=()) -> bytes:
        if wait_ns != 0:
            self.waited.append((wait_ns, tuple(reading)))
            self.now_s += self.seconds
            self.calls()
        return b""

    def clock(self) -> float:
        return self.now_s


@pytest.fixture
def wired(tmp_path):
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)

    def wired(code: bytes):
        notes = elfwriter.Phdr(b"".join(elfwriter.PV_NOTES), elfwriter.PT_NOTE, paddr=0, vaddr=0)
        path = tmp_path / "kernel"
        path.write_bytes(elfwriter.elf([elfwriter.Phdr(code, memsz=0x2000), notes]))
        machine = Machine(load(path), DomainConfig(64 << 20), "pv")
        machine.domain.timers.deadlines_ns.clear()  # Xen starts a periodic one
        return machine, Line(machine), Datagrams(ours), theirs

    with ours, theirs:
        yield wired


def test_an_idle_guest_waits_for_a_packet_as_long_as_the_host_does(wired) -> None:
    machine, line, source, theirs = wired(WAIT)
    terminal = Waiting(3.5, lambda: theirs.send(b"end"))
    outcome = machine.run(terminal, Limits(clock=terminal.clock), sources=[(line, source)])
    assert outcome.end is End.POWEROFF
    assert terminal.waited == [(None, (source.reading,))]
    ((at_ns, data),) = line.fed
    assert data == b"end" and 3.5e9 <= at_ns < 3.6e9


def test_a_timeout_ends_the_wait(wired) -> None:
    machine, line, source, _ = wired(WAIT)
    terminal = Waiting(6)
    limits = Limits(5, terminal.clock)
    assert machine.run(terminal, limits, sources=[(line, source)]).end is End.TIMEOUT
    assert terminal.waited == [(5_000_000_000, (source.reading,))]


def test_a_timer_comes_first(wired) -> None:
    machine, line, source, theirs = wired(WAIT)
    machine.domain.timers.set(("set_timer", 0), 2_000_000_000)
    machine.timers = {**machine.timers, "set_timer": lambda current, number: theirs.send(b"end")}
    terminal = Waiting(9)
    machine.run(terminal, Limits(clock=terminal.clock), sources=[(line, source)])
    assert [at_ns for at_ns, _ in line.fed] == [2_000_000_000]


def test_without_sources_idle_time_is_skipped(wired) -> None:
    machine, _, _, _ = wired(WAIT)
    terminal = Waiting()
    assert machine.run(terminal).end is End.IDLE
    assert terminal.waited == []


def test_idle_time_is_skipped_to_what_the_terminal_will_do(wired) -> None:
    """At that time, and not with the guest's next timer, which may be centuries away."""

    class Due(Waiting):
        @property
        def due_ns(self) -> int | None:
            return None if self.check() else 2_000_000_000

        def check(self) -> Outcome | None:
            is_over = machine.engine.now_ns >= 2_000_000_000
            return Outcome(End.TIMEOUT, "enough") if is_over else None

    for timer_ns in (None, 1 << 60):
        machine = wired(WAIT)[0]
        if timer_ns:
            machine.domain.timers.set(("set_timer", 0), timer_ns)
        terminal = Due()
        assert machine.run(terminal).end is End.TIMEOUT
        assert (machine.engine.now_ns, terminal.waited) == (2_000_000_000, [])


def test_what_is_due_and_cannot_be_taken_is_not_waited_for(wired, monkeypatch) -> None:
    machine, _, _, _ = wired(WAIT)
    terminal = Waiting()
    terminal.due_ns = 0
    # A guest whose ring is full, and that waits for nothing.
    monkeypatch.setattr(type(machine.console), "input_room", 0)
    assert machine.run(terminal).end is End.IDLE


def test_who_does_not_listen_is_not_waited_for_and_yet_fed(wired) -> None:
    machine, line, source, theirs = wired(WAIT)
    line.listens = False
    theirs.send(b"dropped")
    terminal = Waiting()
    assert machine.run(terminal, sources=[(line, source)]).end is End.IDLE
    assert terminal.waited == [] and [data for _, data in line.fed] == [b"dropped"]


def test_who_has_no_room_is_not_fed(wired) -> None:
    machine, line, source, theirs = wired(WAIT)
    line.has_room = line.listens = False
    theirs.send(b"waits")
    machine.run(Waiting(), sources=[(line, source)])
    assert line.fed == [] and source.receive(0) == [b"waits"]


def test_a_busy_guest_is_fed_between_slices(wired) -> None:
    machine, line, source, theirs = wired(SPIN)
    theirs.send(b"first")
    theirs.send(b"end")
    machine.run(Waiting(), sources=[(line, source)])
    (first_ns, _), (end_ns, _) = line.fed
    assert first_ns == 0 and 0 < end_ns <= machine.slice_ns + 1000


def test_what_a_backend_sends_leaves_with_its_time(wired) -> None:
    machine, line, source, _ = wired(WAIT)
    line.listens = False
    line.to_send = [(7, b"packet")]
    machine.run(Waiting(), sources=[(line, source)])
    assert source.sent == [(7, b"packet")]


def test_all_that_comes_from_outside_comes_through_one_place(wired, monkeypatch) -> None:
    came: list[tuple[int, str, bytes]] = []
    arrive = Outside.arrive

    def noting(outside: Outside, receiver, data: bytes) -> None:
        came.append((outside.machine.engine.now_ns, receiver.name, data))
        arrive(outside, receiver, data)

    class Typing(Waiting):
        exhausted = False

        def read(self, room, wait_ns, reading=(), writing=()) -> bytes:
            data, self.typed = self.typed, b""
            return data

    monkeypatch.setattr(Outside, "arrive", noting)
    machine, line, source, theirs = wired(SPIN)
    terminal = Typing()
    terminal.typed = b"ls\n"
    theirs.send(b"end")
    machine.run(terminal, sources=[(line, source)])
    assert came == [(0, "console", b"ls\n"), (0, "line", b"end")]
