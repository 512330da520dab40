"""machine/ends: what becomes of a domain that ends, on guests of a few instructions."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

import tinyguest
from tinyguest import CRASH, POWEROFF, REBOOT, SPIN, say, shutdown
from unattended import Unattended
from xenemu.dom0.verbs import VERBS
from xenemu.image import load
from xenemu.machine import DomainConfig, Limits, Machine
from xenemu.machine.ends import Action, Life
from xenemu.outcome import End

DESTROY, RESTART, PRESERVE = Action.DESTROY, Action.RESTART, Action.PRESERVE


@pytest.fixture
def machine(tmp_path: Path) -> Callable[[bytes], Machine]:
    def machine(code: bytes) -> Machine:
        path = tmp_path / "kernel"
        path.write_bytes(tinyguest.kernel(code))
        return Machine(load(path), DomainConfig(32 << 20))

    return machine


class Toolstack:
    """A source of requests, one at each look; keeps what is answered."""

    writing = None

    def __init__(self, *requests: dict) -> None:
        self.requests, self.heard = list(requests), []

    @property
    def reading(self) -> int | None:
        return 99 if self.requests else None

    def receive(self, now_ns: int) -> list[bytes]:
        return [b"1 %s" % json.dumps(self.requests.pop(0)).encode()] if self.requests else []

    def send(self, now_ns: int, data: bytes) -> None:
        self.heard.append(json.loads(data[2:]))

    def flush(self) -> None:
        pass


def run(machine: Machine, life: Life, *requests: dict):
    """Run it to its end: the outcome, what was shown and told, and what the toolstack heard."""
    told: list[str] = []
    life.tell = told.append
    terminal, toolstack = Unattended(), Toolstack(*requests)
    machine.control.verbs = VERBS
    sources = [(machine.control, toolstack)]
    outcome = machine.run(terminal, Limits(60), audit_ns=10**9, sources=sources, life=life)
    return outcome, bytes(terminal.shown), told, toolstack.heard


def test_a_domain_is_destroyed_if_nobody_says_otherwise(machine) -> None:
    outcome, shown, told, _ = run(machine(say(b"up\n") + shutdown(REBOOT)), Life())
    assert (outcome.end, shown, told) == (End.REBOOT, b"up\n", [])


def test_a_new_domain_takes_the_place_of_one_that_ended(machine) -> None:
    ours = machine(say(b"up\n") + shutdown(REBOOT))
    life = Life({"reboot": RESTART, "poweroff": DESTROY}, max_restarts=2)
    outcome, shown, told, heard = run(ours, life, {"do": "events"})
    assert (outcome.end, shown) == (End.REBOOT, b"up\n" * 3)
    assert told == [
        "the guest asked to be rebooted: restarted, 1 of at most 2",
        "the guest asked to be rebooted: restarted, 2 of at most 2",
        "the guest asked to be rebooted: not restarted again, by --max-restarts",
    ]
    assert ours.domain.domid == 3 and list(ours.host.domains) == [3]
    assert [event.get("event") for event in heard[1:]] == ["shutdown", "restart"] * 2 + ["shutdown"]


def test_time_goes_on_in_the_new_domain(machine) -> None:
    code = say(b"up\n") + shutdown(REBOOT)
    once = machine(code)
    run(once, Life())
    instructions, now_ns = once.engine.instructions, once.engine.now_ns
    twice = machine(code)
    run(twice, Life({"reboot": RESTART}, max_restarts=1))
    assert (twice.engine.instructions, twice.engine.now_ns) == (2 * instructions, 2 * now_ns)


def test_each_end_has_its_rule(machine) -> None:
    ends = {
        "poweroff": shutdown(POWEROFF),
        "reboot": shutdown(REBOOT),
        "crash": shutdown(CRASH),
        "watchdog": shutdown(4),
    }
    for name, code in ends.items():
        for rule in ends:
            _, _, told, _ = run(machine(code), Life({rule: RESTART}, max_restarts=1))
            assert bool(told) == (name == rule)


def test_a_guest_that_the_hypervisor_ends_has_crashed(machine) -> None:
    outcome, _, told, _ = run(machine(tinyguest.UNDEFINED), Life({"crash": RESTART}, 1))
    assert outcome.end is End.REFUSED and len(told) == 2


def test_the_same_run_is_the_same_again(machine) -> None:
    code = say(b"up\n") + shutdown(REBOOT)
    ends = []
    for _ in range(2):
        ours = machine(code)
        run(ours, Life({"reboot": RESTART}, 3))
        ends.append((ours.engine.now_ns, ours.engine.instructions, ours.printed))
    assert ends[0] == ends[1]


def test_a_preserved_domain_can_be_looked_at(machine) -> None:
    ours = machine(shutdown(CRASH) + SPIN)
    requests = [{"do": "status"}] * 3 + [{"do": "xenstore", "op": "read", "path": "name"}]
    outcome, _, told, heard = run(ours, Life({"crash": PRESERVE}), *requests, {"do": "destroy"})
    assert outcome.end is End.GUEST_CRASH
    assert told == ["the guest crashed, by its own account: preserved"]
    assert [answer["ok"] for answer in heard] == [True] * 5
    assert (heard[2]["state"], heard[2]["reason"]) == ("shutdown", "crash")


def test_a_preserved_domain_that_the_hypervisor_ended_has_crashed(machine) -> None:
    ours, rules = machine(tinyguest.UNDEFINED), Life({"crash": PRESERVE})
    requests = ({"do": "events"}, {"do": "status"}, {"do": "shutdown"}, {"do": "destroy"})
    outcome, _, told, heard = run(ours, rules, *requests)
    assert outcome.end is End.REFUSED and told[0].endswith(": preserved")
    answers = [line for line in heard if "ok" in line]
    assert (answers[1]["state"], answers[1]["reason"]) == ("shutdown", "crash")
    assert answers[1]["vcpus"][0]["state"] == "paused"
    assert answers[2] == {"id": None, "ok": False, "error": "the guest has ended"}
    assert {"event": "shutdown", "reason": "crash"} in heard


def test_nobody_looks_at_a_preserved_domain_without_a_channel(machine) -> None:
    outcome, _, told, _ = run(machine(shutdown(CRASH)), Life({"crash": PRESERVE}))
    assert outcome.end is End.GUEST_CRASH and len(told) == 1


def test_a_destroyed_domain_ends_the_run(machine) -> None:
    outcome, _, _, heard = run(machine(SPIN), Life({"poweroff": RESTART}), {"do": "destroy"})
    assert outcome.end is End.STOPPED
    assert heard == [{"id": None, "ok": True}]


def test_a_paused_domain_that_nobody_unpauses_ends_the_run(machine) -> None:
    outcome, _, _, _ = run(machine(SPIN), Life(), {"do": "pause"})
    assert outcome.end is End.IDLE
    assert outcome.reason == "the guest is paused, and nobody can unpause it"


def test_a_paused_domain_goes_on(machine) -> None:
    requests = [{"do": "pause"}, {"do": "status"}, {"do": "unpause"}, {"do": "status"}]
    ours = machine(SPIN)
    _, _, _, heard = run(ours, Life(), *requests, {"do": "destroy"})
    assert [answer.get("state") for answer in heard[:4]] == [None, "paused", None, "running"]


def test_what_is_due_at_once_is_done_in_a_paused_domain(machine) -> None:
    ours = machine(SPIN)
    requests = [{"do": "pause"}, {"do": "xenstore", "op": "watch", "path": "data"}]
    waits: list[int | None] = []

    class Waiting(Unattended):
        def read(self, room, wait_ns, reading=(), writing=()) -> bytes:
            waits.append(wait_ns)
            return b""

    terminal, toolstack = Waiting(), Toolstack(*requests, {"do": "status"}, {"do": "destroy"})
    ours.control.verbs = VERBS
    ours.run(terminal, Limits(60), sources=[(ours.control, toolstack)])
    assert all(wait_ns is None or wait_ns >= 0 for wait_ns in waits)
    assert "watch" in [event.get("event") for event in toolstack.heard]
