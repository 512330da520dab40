"""dom0/control: a toolstack's requests, and what becomes of them; the guest is a test's hands."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field

import pytest

from busfakes import Bus
from xenemu.abi.io.xenbus import XenbusState
from xenemu.abi.sched import SHUTDOWN_suspend
from xenemu.cli.channel import MAX_UNREAD
from xenemu.dom0.bus import BusBackend
from xenemu.dom0.control import MAX_SENT, MAX_UNSENT, MAX_WAITING, MAX_WATCHES, Control
from xenemu.dom0.verbs import VERBS
from xenemu.errors import XenError
from xenemu.hv import scheduler
from xenemu.hv.audit import audit
from xenemu.hv.snapshot import DomainSnapshot
from xenemu.hv.state.domain import Domain
from xenemu.hv.state.vcpu import RunState
from xenemu.pv.personality import PV64
from xenemu.pv.state import PvVcpu

SECOND = 1_000_000_000
HOME = "/local/domain/1/"


@dataclass
class Toy(BusBackend):
    """A device without pages or ports."""

    kind = "vtoy"

    def open(self, domain: Domain) -> None:
        """Whatever the frontend has is fine."""


@dataclass
class Hands:
    """A toolstack at a guest: asks, and hears answers and events; and the guest's own hands."""

    toy: Toy = field(default_factory=lambda: Toy(0, later=True))
    control: Control = field(default_factory=lambda: Control(VERBS))

    def __post_init__(self) -> None:
        self.bus = Bus([self.control, self.toy])
        self.control.current, self.control.personality = self.bus.current, PV64

    def line(self, line: bytes, who: int = 1) -> list[dict]:
        """Ask by a line; the lines that come at once."""
        self.control.feed(self.bus.domain, b"%d %s" % (who, line))
        self.bus.settle()
        return self.heard()

    def ask(self, do: str, who: int = 1, **fields: object) -> list[dict]:
        return self.line(json.dumps({"id": 9, "do": do, **fields}).encode(), who)

    def answer(self, do: str, **fields: object) -> dict:
        """The answer, which comes at once."""
        (answer,) = self.ask(do, **fields)
        assert answer.pop("id") == 9
        return answer

    def heard(self) -> list[dict]:
        """What has come since, to whomever."""
        return [json.loads(line.partition(b" ")[2]) for _, line in self.control.take_sent()]

    def later(self, seconds: float = 0) -> list[dict]:
        """What comes until so much of the guest's time has passed."""
        self.bus.settle(int(seconds * SECOND))
        self.control.pump(self.bus.domain)
        return self.heard()

    def put(self, path: str, value: str) -> None:
        """Write a node as the guest."""
        self.bus.store.write(self.bus.session, HOME + path, value.encode("latin-1"))
        self.bus.store.wake(self.bus.domain)

    def node(self, path: str) -> str:
        return self.bus.store.read(self.bus.session, HOME + path).decode("latin-1")


@pytest.fixture
def hands() -> Iterator[Hands]:
    hands = Hands()
    yield hands
    assert audit(hands.bus.domain) == []


@pytest.mark.parametrize("how", ["poweroff", "reboot", "halt"])
def test_a_shutdown_is_answered_once_the_guest_has_emptied_the_node(hands: Hands, how: str) -> None:
    assert hands.ask("shutdown", how=how) == []
    assert hands.node("control/shutdown") == how
    assert hands.later(59) == []
    hands.put("control/shutdown", "")
    assert hands.later() == [{"id": 9, "ok": True, "acknowledged": True}]
    assert hands.later(100) == []


def test_a_guest_that_ignores_a_request_is_told_of(hands: Hands) -> None:
    hands.ask("shutdown", how="reboot")
    (answer,) = hands.later(60)
    assert not answer["ok"]
    assert answer["error"] == (
        "the guest has not acknowledged reboot in control/shutdown (nor has it said"
        " control/feature-reboot) within 60 s of its time"
    )
    assert hands.node("control/shutdown") == "reboot"


def test_a_guest_that_says_that_it_can_is_told_of_without_a_hint(hands: Hands) -> None:
    hands.put("control/feature-poweroff", "1")
    hands.ask("shutdown", within="2")
    (answer,) = hands.later(2)
    assert answer["error"].endswith("poweroff in control/shutdown within 2 s of its time")


def test_a_late_acknowledgement_is_an_event(hands: Hands) -> None:
    hands.ask("shutdown", within=1)
    assert [answer["ok"] for answer in hands.later(1)] == [False]
    hands.put("control/shutdown", "")
    assert hands.later(1) == [{"event": "late", "id": 9, "do": "shutdown", "acknowledged": True}]
    assert hands.later(1) == []


def test_nobody_waits_who_does_not_want_to(hands: Hands) -> None:
    assert hands.answer("shutdown", within=0) == {"ok": True, "asked": True}
    assert hands.control.waiting == {}


def test_nonsense_in_the_guests_nodes_is_no_acknowledgement(hands: Hands) -> None:
    hands.ask("shutdown", within=1)
    for nonsense in ("\0", "yes", "\xff" * 100):
        hands.put("control/shutdown", nonsense)
        assert hands.later() == []
    assert [answer["ok"] for answer in hands.later(1)] == [False]


def test_a_guest_that_ends_leaves_nobody_waiting(hands: Hands) -> None:
    hands.ask("vcpu", number=0, state="online", within=0)
    hands.ask("sysrq", key="b")
    hands.ask("events", who=2)
    scheduler.shutdown(hands.bus.domain, 1)
    assert hands.later() == [
        {"id": 9, "ok": False, "error": "the guest has ended before it did this"},
        {"event": "shutdown", "reason": "reboot"},
    ]


def test_sysrq_is_taken_when_the_node_is_empty(hands: Hands) -> None:
    assert hands.ask("sysrq", key="h") == []
    assert hands.node("control/sysrq") == "h"
    hands.put("control/sysrq", "\0")
    assert hands.later() == [{"id": 9, "ok": True, "taken": True}]


def test_a_paused_domain_runs_nothing(hands: Hands) -> None:
    domain, vcpu = hands.bus.domain, hands.bus.current.vcpu
    vcpu.online, vcpu.runstate = True, RunState.RUNNING
    assert scheduler.next_vcpu(domain, vcpu) is vcpu
    assert hands.answer("pause") == {"ok": True}
    assert scheduler.next_vcpu(domain, vcpu) is None
    assert vcpu.runstate is RunState.OFFLINE
    assert hands.answer("pause") == {"ok": False, "error": "the guest is paused already"}
    assert hands.answer("status")["state"] == "paused"
    assert hands.answer("unpause") == {"ok": True}
    assert scheduler.next_vcpu(domain, vcpu) is vcpu
    assert vcpu.runstate is RunState.RUNNABLE
    assert not hands.answer("unpause")["ok"]


def test_an_nmi_waits_for_the_vcpu(hands: Hands) -> None:
    vcpu = hands.bus.current.vcpu
    vcpu.online = vcpu.blocked = True
    vcpu.arch = PvVcpu(0)
    assert hands.answer("nmi") == {"ok": True, "vcpu": 0}
    assert vcpu.arch.nmi_pending and not vcpu.blocked
    assert hands.answer("nmi", vcpu=7)["error"] == "there is no vcpu 7; there are 1"


def test_a_memory_target_is_reached_by_the_guests_balloon(hands: Hands) -> None:
    pages = hands.bus.domain.pages
    hands.bus.store.write(hands.control.connection, HOME + "memory/static-max", b"4096")
    assert hands.ask("memory", target="2M") == []
    assert hands.node("memory/target") == "2048"
    assert pages.max_pages == (2048 + 1024) // 4
    before, pages.tot_pages = pages.tot_pages, 512
    assert hands.later() == [{"id": 9, "ok": True, "target_kib": 2048, "has_kib": 2048}]
    pages.tot_pages = before


def test_memory_that_the_guest_cannot_have_is_refused(hands: Hands) -> None:
    before = hands.bus.domain.pages.max_pages
    for target in ("1G", "-1", "0", "x", "", "9" * 30):
        assert not hands.answer("memory", target=target)["ok"]
    assert hands.node("memory/target") == "1024"
    assert hands.bus.domain.pages.max_pages == before


def test_a_vcpu_follows_its_node(hands: Hands) -> None:
    vcpu = hands.bus.current.vcpu
    vcpu.online = False
    assert hands.ask("vcpu", number="0", state="online") == []
    assert hands.node("cpu/0/availability") == "online"
    vcpu.online = True
    assert hands.later() == [{"id": 9, "ok": True, "vcpu": 0, "state": "online"}]
    assert hands.answer("vcpu", number=0, state="offline")["error"] == "vcpu 0 stays online"
    assert "no vcpu 1" in hands.answer("vcpu", number=1, state="online")["error"]


def test_the_store_is_read_and_changed_as_dom0(hands: Hands) -> None:
    assert hands.answer("xenstore", op="write", path="data/x", value="\xe9") == {"ok": True}
    assert hands.node("data/x") == "\xe9"
    assert hands.answer("xenstore", op="read", path=HOME + "data/x")["value"] == "\xe9"
    assert hands.answer("xenstore", op="ls", path="data")["nodes"] == {
        HOME + "data": "",
        HOME + "data/x": "\xe9",
    }
    assert hands.answer("xenstore", op="rm", path="data/x") == {"ok": True}
    assert "error" in hands.answer("xenstore", op="read", path="data/x")
    assert "error" in hands.answer("xenstore", op="write", path="data/x", value="\u0100")
    assert "error" in hands.answer("xenstore", op="read", path="a b")


def test_a_guests_many_nodes_do_not_fill_an_answer(hands: Hands) -> None:
    for number in range(200):
        hands.put(f"data/{number}", "\xff" * 1900)
    answer = hands.answer("xenstore", op="ls", path="data")
    assert answer["truncated"] and 0 < len(answer["nodes"]) < 100
    assert len(json.dumps(answer)) < MAX_UNREAD


def test_answers_that_nobody_takes_are_bounded(hands: Hands) -> None:
    hands.put("data/x", "\xff" * 1900)
    line = b'1 {"do": "xenstore", "op": "read", "path": "data/x"}'
    for _ in range(MAX_SENT):
        hands.control.feed(hands.bus.domain, line)
    assert sum(len(sent) for _, sent in hands.control.sent) < MAX_UNSENT + (1 << 20)
    assert hands.heard()[-1]["error"] == "too much is asked at once"
    assert hands.answer("status")["ok"]


def test_a_watch_tells_its_own_client(hands: Hands) -> None:
    hands.ask("xenstore", who=2, op="watch", path="data")
    hands.put("data/y", "1")
    told = {"event": "watch", "watched": HOME + "data", "path": HOME + "data/y", "value": "1"}
    assert told in hands.later()
    hands.control.feed(hands.bus.domain, b"2")
    hands.put("data/y", "2")
    assert hands.later() == []
    assert hands.control.connection.watches == []


def test_watches_and_waiting_requests_are_bounded(hands: Hands) -> None:
    for number in range(MAX_WATCHES):
        assert hands.ask("xenstore", op="watch", path=f"data/{number}")[0]["ok"]
    assert not hands.answer("xenstore", op="watch", path="data/more")["ok"]
    for _ in range(MAX_WAITING):
        assert hands.ask("shutdown") == []
    assert "wait for the guest already" in hands.answer("shutdown")["error"]


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"status",
        b"[]",
        b"7",
        b'"x"',
        b"{",
        b"[" * 60000,
        b"\xff\xfe",
        b"{}",
        b'{"do": 3}',
        b'{"do": "nothing"}',
        b'{"do": "status", "more": 1}',
        b'{"do": "shutdown", "how": ["poweroff"]}',
        b'{"do": "shutdown", "how": "hard"}',
        b'{"do": "shutdown", "within": "nan"}',
        b'{"do": "shutdown", "within": -1}',
        b'{"do": "sysrq", "key": "hh"}',
        b'{"do": "sysrq"}',
        b'{"do": "vcpu", "number": "\xc2\xb2", "state": "online"}',
        b'{"do": "attach", "device": "x"}',
        b'{"do": "status", "id": NaN}',
        b'{"do": "shutdown", "within": 1e999}',
        b'{"do": "xenstore", "op": "watch", "path": "\\ud800"}',
        b'{"do": "xenstore", "op": "watch", "path": "@\xe4\xb8\xad"}',
        b'{"do": "xenstore", "op": "read", "path": ""}',
    ],
)
def test_what_is_no_request_is_refused(hands: Hands, line: bytes) -> None:
    before = DomainSnapshot.of(hands.bus.domain)
    told = hands.line(b" " + line)
    assert [answer["ok"] for answer in told] == [False]
    assert DomainSnapshot.of(hands.bus.domain) == before


def test_a_device_comes_later_and_goes(hands: Hands) -> None:
    toy, bus = hands.toy, hands.bus
    assert toy.frontend not in bus.store.nodes and toy.backend not in bus.store.nodes
    assert hands.answer("status")["devices"][0]["attached"] is False
    assert hands.ask("attach", device="vtoy-0") == []
    assert bus.seen(toy, "state") == str(XenbusState.INIT_WAIT.value)
    bus.switch(toy, XenbusState.CONNECTED)
    assert hands.later() == [{"id": 9, "ok": True, "device": "vtoy-0", "devid": 0}]
    assert not hands.answer("attach", device="vtoy-0")["ok"]
    assert hands.ask("detach", device="vtoy-0") == []
    assert (bus.seen(toy, "state"), bus.seen(toy, "online")) == ("5", "0")
    assert audit(bus.domain) == []
    bus.switch(toy, XenbusState.CLOSED)
    assert hands.later() == [{"id": 9, "ok": True, "device": "vtoy-0"}]
    assert bus.store.nodes.get(toy.frontend) is bus.store.nodes.get(toy.backend) is None
    assert hands.ask("attach", device="vtoy-0") == []


def test_a_device_that_the_guest_keeps_is_told_of_and_can_be_taken(hands: Hands) -> None:
    hands.ask("attach", device="vtoy-0")
    hands.bus.switch(hands.toy, XenbusState.CONNECTED)
    hands.later()
    hands.ask("detach", device="vtoy-0")
    (answer,) = hands.later(10)
    assert answer["error"].startswith("the guest has not let vtoy-0 go")
    assert hands.toy.is_plugged
    assert hands.answer("detach", device="vtoy-0", force="yes") == {
        "ok": True,
        "device": "vtoy-0",
        "forced": True,
    }
    assert not hands.toy.is_plugged


def test_a_driver_that_does_not_come_is_told_of(hands: Hands) -> None:
    hands.ask("attach", device="vtoy-0")
    (answer,) = hands.later(10)
    assert answer["error"].startswith("the guest's driver, in state 1, has not connected to vtoy-0")


def test_what_waits_is_in_a_snapshot(hands: Hands) -> None:
    hands.ask("shutdown", within=1)
    snapshot = DomainSnapshot.of(hands.bus.domain)
    hands.later(1)
    hands.bus.cpu.now_ns = 0
    hands.bus.current.domain = snapshot.restore(hands.bus.domain)
    assert [answer["ok"] for answer in hands.later(1)] == [False]


def test_only_a_suspended_guest_is_resumed():
    hands = Hands()
    refused = hands.answer("resume")
    assert not refused["ok"] and "is not suspended" in refused["error"]
    assert hands.control.wish == ""
    scheduler.shutdown(hands.bus.domain, SHUTDOWN_suspend)
    assert not hands.answer("resume", how="twice")["ok"]
    assert hands.control.wish == ""
    assert hands.ask("resume") == []
    assert hands.control.wish == "new"
    scheduler.resume(hands.bus.domain)
    assert hands.later() == [{"id": 9, "ok": True, "how": "new", "domid": 1}]
    scheduler.shutdown(hands.bus.domain, SHUTDOWN_suspend)
    assert hands.ask("resume", how="cancel") == []
    assert hands.control.wish == "cancel"


def test_a_suspend_is_answered_once_the_guest_has_suspended_itself(hands: Hands) -> None:
    assert hands.ask("shutdown", how="suspend", within=2) == []
    hands.put("control/shutdown", "")
    assert hands.later(1) == []
    scheduler.shutdown(hands.bus.domain, SHUTDOWN_suspend)
    assert hands.later() == [{"id": 9, "ok": True, "acknowledged": True}]
    scheduler.resume(hands.bus.domain)
    hands.ask("shutdown", how="suspend", within=2)
    hands.put("control/shutdown", "")
    assert hands.later(2)[0]["error"].startswith("the guest has acknowledged suspend, and has not")


WORDS = (
    *("", "0", "1", "7", "-1", "online", "offline", "suspend", "h", "1M", "2M", "0.5", "yes", "no"),
    *("\u4e2d", "\ud800", "@x", "/", "/local/domain/1", "/local/domain/0/backend", "control", ".."),
    *("control/shutdown", "device", "device/vtoy", "device/vtoy/0/state", "a b", "x" * 5000, "new"),
    *(True, False, None, 3, 1e308, -1, 1 << 70),
)


def do_anything(draw: random.Random, hands: Hands) -> None:
    """Ask for anything, or be a guest that writes anything, or let time pass."""
    who = draw.randrange(3)
    if draw.random() < 0.7:
        verb = draw.choice([*VERBS.values()])
        request = {name: draw.choice(WORDS) for name in verb.fields if draw.random() < 0.9}
        if "device" in request:
            request["device"] = "vtoy-0"
        if "op" in request:
            request["op"] = draw.choice(("read", "write", "rm", "ls", "watch"))
        hands.ask(verb.name, who, **request, **draw.choice(({}, {"within": "0.1"})))
    elif draw.random() < 0.2:
        hands.control.feed(hands.bus.domain, b"%d" % who)
    else:
        with suppress(XenError):  # the toolstack may have removed the node above it
            node = draw.choice(("control/shutdown", "control/sysrq", "device/vtoy/0/state"))
            hands.put(node, draw.choice(("", "\0", "1", "4", "5", "6", "zz", "\xff")))
    hands.later(draw.choice((0, 0.1, 20)))


def test_nothing_that_is_asked_and_nothing_that_a_guest_writes_is_an_exception() -> None:
    for seed in range(40):
        draw, hands = random.Random(seed), Hands()
        hands.bus.current.vcpu.arch = PvVcpu(0)
        for _ in range(50):
            do_anything(draw, hands)
        assert len(hands.control.waiting) <= MAX_WAITING
