"""A timeline: what goes on which track, and that slices nest."""

from __future__ import annotations

import zlib
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
from test_snapshot import Script

from fakes import KERNEL_STACK, make_pv_current, make_pvh_current
from fuzz import fresh
from guests.build import ENVIRONMENTS, build, guests
from hypercalls import TABLE
from xenemu.abi.errno import ENOENT
from xenemu.abi.vcpu import VCPUOP_is_up
from xenemu.abi.xen import Nr
from xenemu.hv import scheduler, timers
from xenemu.hv.building import DomainConfig
from xenemu.hv.cpu import Reg
from xenemu.hv.current import Current
from xenemu.hv.dispatch import hypercall
from xenemu.hv.state.vcpu import RunState
from xenemu.image import load
from xenemu.machine import Machine
from xenemu.pv import traps
from xenemu.pv.state import Trap, pv
from xenemu.views.perfetto import PerfettoWriter
from xenemu.views.timeline import MAX_SLOTS, Timeline

HANDLER = 0x21000


class Written:
    """A writer that keeps what it is told: (time, what, name) by the track's name."""

    def __init__(self) -> None:
        self.names = ["process"]
        self.told: dict[str, list[tuple[int, str, str]]] = {}
        self.details: list[dict[str, int | str]] = []

    def process(self, name: str) -> int:
        return 0

    def track(self, name: str, parent: int, unit: str | None = None) -> int:
        self.names.append(name)
        self.told[name] = []
        return len(self.names) - 1

    def _tell(self, track: int, at_ns: int, what: str, name: str, details=None) -> None:
        self.told[self.names[track]].append((at_ns, what, name))
        self.details.append(details or {})

    def begin(self, track, at_ns, name, details=None) -> None:
        self._tell(track, at_ns, "begin", name, details)

    def end(self, track, at_ns) -> None:
        self._tell(track, at_ns, "end", "")

    def instant(self, track, at_ns, name, details=None) -> None:
        self._tell(track, at_ns, "now", name, details)

    def kind(self, track, name, details=None):
        return track, name, details

    def slice(self, kind, at_ns, until_ns) -> None:
        track, name, details = kind
        self.begin(track, at_ns, name, details)
        self.end(track, until_ns)

    def count(self, track, at_ns, value) -> None:
        self._tell(track, at_ns, "count", "")

    def close(self) -> None:
        """All slices nest, and all have ended."""
        for track, told in self.told.items():
            depth = 0
            for _, what, _ in told:
                depth += {"begin": 1, "end": -1}.get(what, 0)
                assert depth >= 0, track
            assert depth == 0, track


class Notes:
    CALL, PAGE_FAULT, SYSCALL, INT80, IRET = range(5)

    def __init__(self, take) -> None:
        self.take = take
        self.noted: list[tuple[int, ...]] = []

    def drain(self) -> None:
        noted, self.noted = self.noted, []
        self.take(noted)

    close = drain


class Watched:
    """A timeline of a guest on a FakeCpu."""

    def __init__(self, current: Current, host_time: bool = False) -> None:
        self.current, self.writer = current, Written()
        current.table = TABLE
        self.timeline = Timeline(self, self.writer, "guest", host_time)

    def note_lane(self, take) -> Notes:
        self.notes = Notes(take)
        return self.notes

    def end(self) -> dict[str, list[tuple[int, str, str]]]:
        self.timeline.close()
        return self.writer.told


@pytest.fixture
def watched() -> Watched:
    current = make_pv_current()
    current.cpu.now_ns = 100
    current.cpu.regs[Reg.RSP] = KERNEL_STACK
    state = pv(current)
    state.traps = {14: Trap(0xE033, HANDLER)}
    state.event_callback = Trap(0xE033, HANDLER)
    return Watched(current)


def call(watched: Watched, number: int, *args: int) -> None:
    regs = watched.current.cpu.regs
    regs[Reg.RAX] = number
    for register, value in zip((Reg.RDI, Reg.RSI, Reg.RDX, Reg.R10), args, strict=False):
        regs[register] = value
    hypercall(watched.current, 2)


def test_a_hypercall_is_a_slice_and_a_refusal_an_instant_in_it(watched: Watched) -> None:
    call(watched, Nr.sched_op, 99, 0)
    told = watched.end()["vcpu 0 hypercalls"]
    assert told == [(100, "begin", "sched_op"), (100, "now", "ENOSYS"), (100, "end", "")]


def test_what_the_lane_did_comes_before_what_the_model_does(watched: Watched) -> None:
    watched.notes.noted = [(50, 60, 0x26000, 1, 0, 0x7FF0, 0, Notes.CALL, Nr.mmu_update, 0, 0)]
    call(watched, Nr.sched_op, 0, 0)
    told = watched.end()["vcpu 0 hypercalls"]
    assert told[:3] == [
        (50, "begin", "mmu_update"),
        (60, "end", ""),
        (100, "begin", "sched_op(yield)"),
    ]
    assert {"count": 1, "pdone": 0} in watched.writer.details


def test_the_one_refusal_of_the_lane_is_told_as_the_models(watched: Watched) -> None:
    vcpu_op = Nr.vcpu_op, VCPUOP_is_up, 7, 0
    call(watched, *vcpu_op)
    number, *args = vcpu_op
    watched.notes.noted = [(100, 100, *args, 0, -ENOENT, Notes.CALL, number, 0, 0)]
    told = watched.end()["vcpu 0 hypercalls"]
    assert told[:3] == told[3:]
    assert told[0] == (100, "begin", "vcpu_op(is_up)")
    assert watched.writer.details[1] == watched.writer.details[4]


def test_a_trap_lasts_until_its_iret_and_to_a_program_all_are_over(watched: Watched) -> None:
    traps.inject_page_fault(watched.current, 0x1234, 0)
    watched.current.cpu.now_ns = 200
    traps.deliver_event(watched.current)
    iret = (Notes.IRET, 0, 0)
    watched.notes.noted = [
        (250, 0, 0, 0, 0, 0, 0, *iret, 0),  # to the kernel
        (300, 0, 0, 0, 0, 0, 0, Notes.SYSCALL, 0, 0, 1),
        (400, 0, 0, 0, 0, 0, 0, *iret, 1),  # to a program
        (500, 0, 0, 0, 0, 0, 0, *iret, 1),  # of a task that never entered the kernel
    ]
    assert watched.end()["vcpu 0 kernel entries"] == [
        (100, "begin", "#PF"),
        (200, "begin", "an event upcall"),
        (250, "end", ""),
        (300, "begin", "SYSCALL"),
        (400, "end", ""),
        (400, "end", ""),
    ]


def test_a_vcpu_is_in_one_state_at_a_time(watched: Watched) -> None:
    domain, (vcpu, *_) = watched.current.domain, watched.current.domain.vcpus
    scheduler.set_runstate(domain, vcpu, RunState.BLOCKED, 150)
    scheduler.set_runstate(domain, vcpu, RunState.RUNNING, 170)
    names = [name for *_, name in watched.end()["vcpu 0 runstate"] if name]
    assert names[-2:] == ["blocked", "running"]


def test_events_and_timers_are_instants(watched: Watched) -> None:
    current = watched.current
    current.domain.timers.set((scheduler.SINGLESHOT, 0), 90)
    timers.fire_due(current, scheduler.TIMERS)
    watched.timeline.raised(current, 0, True)
    told = watched.end()
    assert told["timers"] == [(100, "now", "singleshot 0")]
    assert told["port 0: closed"] == [(100, "now", "raised, pending already")]


def test_requests_under_way_together_are_on_tracks_of_their_own(watched: Watched) -> None:
    timeline, cpu = watched.timeline, watched.current.cpu
    timeline.served("vbd-51712", "read", 100, 300)
    timeline.served("vbd-51712", "write", 100, 400)
    cpu.now_ns = 350
    timeline.served("vbd-51712", "read", 310, 320)  # it was looked for after it was done
    for _ in range(2 * MAX_SLOTS):
        timeline.served("vbd-51712", "read", 330, 900)
    timeline.served("vif-0", "sent, 60 bytes")
    told = watched.end()
    first = [at_ns for at_ns, what, _ in told["vbd-51712"] if what != "now"]
    assert first == [100, 300, 310, 320, 330, 900]
    assert [name for _, what, name in told["vbd-51712 #2"] if what == "begin"][:1] == ["write"]
    assert f"vbd-51712 #{MAX_SLOTS}" in told
    assert f"vbd-51712 #{MAX_SLOTS + 1}" not in told
    assert told["vif-0"] == [(350, "now", "sent, 60 bytes")]


def test_the_console_has_lines_and_says_which_phase_begins(watched: Watched) -> None:
    timeline, current = watched.timeline, watched.current
    timeline.printed(current, b"\x1b[1mhel")
    current.cpu.now_ns = 120
    timeline.printed(current, b"lo\n[    0.000000] Linux version 6.1\n")
    current.cpu.now_ns = 130
    timeline.printed(current, b"[    0.000001] Run /init as init process\nLinux version 6.1\n")
    told = watched.end()
    assert told["console"][0] == (120, "now", "hello")
    assert [(at, name) for at, what, name in told["boot"] if what == "begin"] == [
        (100, "start"),
        (100, "console"),
        (120, "kernel"),
        (130, "init"),
    ]


def test_the_hosts_time_is_there_only_if_asked_for() -> None:
    assert "host CPU" not in Watched(make_pv_current()).end()
    watched = Watched(make_pv_current(), host_time=True)
    call(watched, Nr.sched_op, 0, 0)
    assert watched.end()["host CPU"][0][1] == "count"


def test_traps_of_a_pvh_guest_are_instants() -> None:
    watched = Watched(make_pvh_current())
    watched.timeline.entered(watched.current, "NMI", None)
    watched.timeline.upcall(watched.current, "callback vector")
    told = watched.end()["vcpu 0 kernel entries"]
    assert [what for _, what, _ in told] == ["now", "now"]


def test_nobody_watches_after_the_end(watched: Watched) -> None:
    assert watched.current.domain.watch is not None
    watched.end()
    assert watched.current.domain.watch is None


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("attack-writable-pt", "pv64"),
        ("attack-kernel-stack", "pv64"),
        ("storm", "pv32"),
        ("pv-traps", "pv32"),
        ("segment-limits", "pv32"),
    ],
)
def test_the_lanes_timeline_is_the_models(tmp_path: Path, name: str, kind: str) -> None:
    def end(fast: bool) -> tuple[int, int, object]:
        machine = Machine(kernel, config, "pv")
        machine.engine.fast = fast
        checksum = SimpleNamespace(value=0, size=0)

        def write(data: bytes) -> None:
            checksum.value, checksum.size = zlib.crc32(data, checksum.value), len(data)

        timeline = Timeline(machine, PerfettoWriter(write), name)
        machine.run(Script(machine))
        timeline.close()
        assert bool(machine.engine._shim.lane.taken) is fast
        return checksum.value, checksum.size, machine.engine.statistics()

    guest, environment = guests()[name], ENVIRONMENTS[kind]
    kernel = load(build(guest, environment, tmp_path / name))
    config = DomainConfig(64 << 20, guest.cmdline.encode(), vcpus=guest.vcpus)
    assert fresh.call(partial(end, True)) == fresh.call(partial(end, False))
