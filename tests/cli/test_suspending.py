"""cli/suspending: what becomes of a guest that suspends itself, in a run."""

from __future__ import annotations

import json
from dataclasses import dataclass, field

from savedguests import Screen, make

from tinyguest import POWEROFF, kernel, shutdown
from xenemu.cli.suspending import Action, Suspending
from xenemu.dom0.verbs import VERBS
from xenemu.machine import Machine
from xenemu.machine.ends import Life
from xenemu.outcome import End

TWICE = "the hypercall returned {}\nthe hypercall returned {}\nTest result: SUCCESS\n"


@dataclass
class Toolstack:
    """A source of requests, one at each look while the guest is suspended."""

    machine: Machine
    requests: list[dict]
    heard: list[dict] = field(default_factory=list)
    writing = None

    @property
    def reading(self) -> int | None:
        return 99 if self.requests else None

    def receive(self, now_ns: int) -> list[bytes]:
        if not self.requests or self.machine.domain.shutdown_code is None:
            return []
        return [b"1 %s" % json.dumps(self.requests.pop(0)).encode()]

    def send(self, now_ns: int, data: bytes) -> None:
        self.heard.append(json.loads(data[2:]))

    def flush(self) -> None:
        """Nothing waits."""


class Patient(Screen):
    """A terminal that waits without a clock."""

    def read(self, room, wait_ns, reading=(), writing=()) -> bytes:
        return b""


def run(suspending: Suspending, *requests: dict):
    """Run the guest to its end; how it ended, what it printed, what was told and heard."""
    machine, told = make("pvh64"), []
    life = Life(tell=told.append)
    suspending.take_part(life)
    machine.control.verbs = VERBS
    screen, toolstack = Patient(), Toolstack(machine, list(requests))
    outcome = machine.run(screen, sources=[(machine.control, toolstack)], life=life)
    return outcome.end, screen.shown.decode(), told, toolstack.heard


def test_a_preserved_guest_goes_on_as_a_toolstack_wishes():
    end, shown, told, heard = run(
        Suspending(Action.PRESERVE, 1_000_000_000),
        *({"do": "events"}, {"do": "status"}),
        *({"do": "resume"}, {"do": "resume", "how": "cancel"}),
    )
    assert end is End.POWEROFF and shown.endswith(TWICE.format(0, 1)), (end, shown, told, heard)
    assert [sentence.split()[1] for sentence in told] == ["resumed", "cancelled"]
    events = [line["event"] for line in heard if "event" in line]
    assert events == ["shutdown", "resume", "shutdown", "resume", "shutdown"]


def test_a_preserved_guest_that_nobody_resumes_ends_the_run():
    end, shown, told, heard = run(Suspending(Action.PRESERVE, 0), {"do": "status"})
    assert (end, told) == (End.SUSPEND, []) and "returned" not in shown
    assert heard[0]["ok"]


def test_a_guest_that_cannot_be_saved_goes_on(monkeypatch):
    suspending = Suspending(Action.RESUME, 0)
    machine_page_holes = "xenemu.machine.migration.pvh_save.PARAMS"
    monkeypatch.setattr(machine_page_holes, ())  # so that a restore would not find its rings
    end, shown, told, _ = run(suspending)
    assert end is End.POWEROFF and shown.endswith(TWICE.format(1, 1))
    assert told[0].endswith("where a ring is; it goes on")


def test_a_preserved_guest_needs_somebody_who_says_what_becomes_of_it(tmp_path, xenemu_run):
    (tmp_path / "kernel").write_bytes(kernel(shutdown(POWEROFF)))
    done = xenemu_run(tmp_path / "kernel", "--on-suspend", "preserve")
    assert (done.returncode, done.stdout) == (7, b"")
    assert b"--on-suspend preserve: nobody could say what becomes of the guest" in done.stderr
