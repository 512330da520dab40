"""A backend that nothing else knows of: a list with it in is all that it takes.

The guest shares a page of its own, and a port that waits for dom0. What it puts into the page's
first half comes back reversed in the second, a microsecond later, with an event.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pytest

from fakes import FIRST_GUEST_FRAME, make_current
from guests.build import ENVIRONMENTS, build, guests
from xenemu.dom0.backend import RingBackend
from xenemu.errors import XenError
from xenemu.hv import backend, event_channel
from xenemu.hv.audit import audit
from xenemu.hv.backend import attach
from xenemu.hv.building import DomainConfig
from xenemu.hv.current import Current
from xenemu.hv.frame_table import PGT_l1_page_table
from xenemu.hv.snapshot import DomainSnapshot
from xenemu.hv.state.domain import DOM0, Domain, Ring
from xenemu.hv.timers import fire_due
from xenemu.image import load
from xenemu.machine import Machine
from xenemu.x86.paging import PAGE_SIZE, Maddr, Mfn

PAGE = Mfn(FIRST_GUEST_FRAME + 3)
HALF = PAGE_SIZE // 2
DELAY_NS = 1000


@dataclass
class Echo(RingBackend):
    """Requests that are under way, by the number of the timer that ends them."""

    ring: Ring | None = None
    requests: dict[int, bytes] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return "echo"

    def connect(self, domain: Domain) -> None:
        if self.ring is not None:
            self.connect_ring(domain, self.ring)

    def notify(self, domain: Domain, port: int) -> None:
        assert port == self.port
        number = len(self.requests)
        self.requests[number] = domain.memory.read(Maddr(self.mfn * PAGE_SIZE), 8)
        domain.timers.set((self.name, number), DELAY_NS)

    def pump(self, domain: Domain) -> None:
        pass

    def timer(self, domain: Domain, number: int, now_ns: int) -> None:
        answer = self.requests.pop(number)[::-1]
        domain.memory.write(Maddr(self.mfn * PAGE_SIZE + HALF), answer)
        self.tell(domain)


@pytest.fixture
def current() -> Current:
    return make_current()


@pytest.fixture
def echo(current: Current) -> Echo:
    domain = current.domain
    echo = Echo(ring=Ring(PAGE, event_channel.alloc_unbound(domain, DOM0)))
    attach(domain, [echo])
    return echo


def ask(current: Current, echo: Echo, request: bytes) -> None:
    assert echo.ring is not None
    current.domain.memory.write(Maddr(PAGE * PAGE_SIZE), request)
    event_channel.send(current.domain, echo.ring.port)


def wait(current: Current) -> bytes:
    current.cpu.now_ns += DELAY_NS  # type: ignore[misc]
    fire_due(current, backend.timers(current.domain))
    return current.domain.memory.read(Maddr(PAGE * PAGE_SIZE + HALF), 8)


def test_a_request_is_answered_when_its_time_has_come(current: Current, echo: Echo) -> None:
    assert echo.ring is not None
    ask(current, echo, b"abcdefgh")
    assert not event_channel.is_pending(current.domain, echo.ring.port)
    assert wait(current) == b"hgfedcba"
    assert event_channel.is_pending(current.domain, echo.ring.port)


def test_the_audit_knows_what_a_backend_holds(current: Current, echo: Echo) -> None:
    assert audit(current.domain) == []
    with pytest.raises(XenError):
        current.domain.frames.get_page_and_type(PAGE, current.domain.domid, PGT_l1_page_table)
    echo.port = 0
    assert audit(current.domain)


def test_a_port_that_waits_for_another_is_not_connected(current: Current) -> None:
    domain = current.domain
    port = event_channel.alloc_unbound(domain, 7)
    with pytest.raises(XenError):
        attach(domain, [Echo(ring=Ring(PAGE, port))])
    assert audit(domain) == []
    assert domain.backends == {}


def test_what_is_under_way_goes_on_after_a_restore(current: Current, echo: Echo) -> None:
    ask(current, echo, b"abcdefgh")
    snapshot = DomainSnapshot(current.domain)
    assert wait(current) == b"hgfedcba"
    for _ in range(2):
        current.domain = snapshot.restore(current.domain)
        assert current.domain.backends == {"echo": echo}
        assert echo.requests == {0: b"abcdefgh"}
        assert wait(current) == b"hgfedcba"
        assert audit(current.domain) == []


def test_no_two_backends_have_one_name(current: Current, echo: Echo) -> None:
    with pytest.raises(ValueError, match="echo"):
        attach(current.domain, [Echo()])
    assert current.domain.backends == {"echo": echo}


def test_a_machine_is_given_a_backend_by_a_list(tmp_path: Path) -> None:
    kind = ENVIRONMENTS["pvh64"]
    image = load(build(guests()["hello"], kind, tmp_path / "kernel"))
    machine = Machine(image, DomainConfig(32 << 20), kind.mode, [Echo()])
    assert list(machine.domain.backends) == ["xenstore", "console", "echo"]
    assert machine.timers.keys() >= {"echo", "xenstore", "console"}
