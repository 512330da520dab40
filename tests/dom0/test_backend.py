"""A backend that nothing else knows of: a list with it in is all that it takes.

The guest grants dom0 a page, and has a port that waits for it. In the page it writes a reference to
another that it has granted, and sends an event. A microsecond later that one's first bytes are
reversed, and it gets an event.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from fakes import make_current
from grantfakes import HEAP, grant, state
from guests.build import ENVIRONMENTS, build, guests
from xenemu.abi.grant_table import (
    GNTTAB_RESERVED_CONSOLE,
    GNTTAB_RESERVED_XENSTORE,
    GTF_permit_access,
    GTF_reading,
    GTF_readonly,
    GTF_writing,
)
from xenemu.dom0.backend import RingBackend
from xenemu.dom0.grants import read_grant, write_grant
from xenemu.errors import XenError
from xenemu.hv import backend, event_channel, grant_table
from xenemu.hv.audit import audit
from xenemu.hv.backend import attach
from xenemu.hv.building import DomainConfig
from xenemu.hv.current import Current
from xenemu.hv.frame_table import PGT_l1_page_table
from xenemu.hv.grant_table import GrantError
from xenemu.hv.snapshot import DomainSnapshot
from xenemu.hv.state.domain import DOM0, Domain
from xenemu.hv.timers import fire_due
from xenemu.image import load
from xenemu.machine import Machine
from xenemu.x86.paging import PAGE_SIZE, Maddr

RING, DATA = HEAP[-1] + 3, HEAP[-1] + 4  # frames of the guest's
RING_REF, DATA_REF = 8, 9
SIZE = 8
DELAY_NS = 1000


@dataclass
class Echo(RingBackend):
    """What the guest shares with it, and requests under way: by their timers, which grant it is."""

    ref: int | None = None
    guest_port: int = 0
    requests: dict[int, int] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return "echo"

    def connect(self, domain: Domain) -> None:
        if self.ref is not None:
            self.connect_ring(domain, self.ref, self.guest_port)

    def notify(self, domain: Domain, port: int) -> None:
        assert port == self.port
        number = len(self.requests)
        self.requests[number] = domain.memory.read_uint(Maddr(self.mfn * PAGE_SIZE), 4)
        domain.timers.set((self.name, number), DELAY_NS)

    def pump(self, domain: Domain) -> None:
        pass

    def timer(self, domain: Domain, number: int, now_ns: int) -> None:
        ref = self.requests.pop(number)
        with suppress(GrantError):
            write_grant(domain, ref, 0, read_grant(domain, ref, 0, SIZE)[::-1])
        self.tell(domain)


@pytest.fixture
def current() -> Current:
    """A domain that has granted dom0 two pages."""
    current = make_current()
    current.domain.frames.add_to_heap(HEAP)
    grant_table.grow(current.domain, 1)
    grant(current.domain, RING_REF, RING, to=DOM0)
    grant(current.domain, DATA_REF, DATA, to=DOM0)
    return current


@pytest.fixture
def echo(current: Current) -> Echo:
    echo = Echo(ref=RING_REF, guest_port=event_channel.alloc_unbound(current.domain, DOM0))
    attach(current.domain, [echo])
    return echo


def ask(current: Current, echo: Echo, request: bytes, ref: int = DATA_REF) -> None:
    memory = current.domain.memory
    memory.write(Maddr(DATA * PAGE_SIZE), request)
    memory.write_uint(Maddr(RING * PAGE_SIZE), 4, ref)
    event_channel.send(current.domain, echo.guest_port)


def wait(current: Current) -> bytes:
    current.cpu.now_ns += DELAY_NS  # type: ignore[misc]
    fire_due(current, backend.timers(current.domain))
    return current.domain.memory.read(Maddr(DATA * PAGE_SIZE), SIZE)


def test_a_request_is_answered_when_its_time_has_come(current: Current, echo: Echo) -> None:
    ask(current, echo, b"abcdefgh")
    assert not event_channel.is_pending(current.domain, echo.guest_port)
    assert wait(current) == b"hgfedcba"
    assert event_channel.is_pending(current.domain, echo.guest_port)


@pytest.mark.parametrize("flags", [GTF_permit_access | GTF_readonly, 0])
def test_what_is_not_granted_is_left_alone(current: Current, echo: Echo, flags: int) -> None:
    grant(current.domain, DATA_REF, DATA, flags, to=DOM0)
    ask(current, echo, b"abcdefgh")
    assert wait(current) == b"abcdefgh"
    assert audit(current.domain) == []


def test_the_audit_knows_what_a_backend_holds(current: Current, echo: Echo) -> None:
    assert audit(current.domain) == []
    with pytest.raises(XenError):
        current.domain.frames.get_page_and_type(RING, current.domain.domid, PGT_l1_page_table)
    echo.handle = None
    assert audit(current.domain)


def test_a_port_that_waits_for_another_is_not_connected(current: Current) -> None:
    port = event_channel.alloc_unbound(current.domain, 7)
    before = state(current.domain)
    with pytest.raises(XenError):
        attach(current.domain, [Echo(ref=RING_REF, guest_port=port)])
    assert state(current.domain) == before
    assert current.domain.backends == {}


def test_a_page_that_is_not_granted_is_not_connected(current: Current) -> None:
    port = event_channel.alloc_unbound(current.domain, DOM0)
    grant(current.domain, RING_REF, RING, to=current.domain.domid)
    before = state(current.domain)
    with pytest.raises(GrantError):
        attach(current.domain, [Echo(ref=RING_REF, guest_port=port)])
    assert state(current.domain) == before
    assert current.domain.backends == {}


def test_what_is_under_way_goes_on_after_a_restore(current: Current, echo: Echo) -> None:
    ask(current, echo, b"abcdefgh")
    snapshot = DomainSnapshot.of(current.domain)
    assert wait(current) == b"hgfedcba"
    for _ in range(2):
        current.domain = snapshot.restore(current.domain)
        assert current.domain.backends == {"echo": echo}
        assert echo.requests == {0: DATA_REF}
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
    assert list(machine.domain.backends) == ["xenstore", "console", "control", "echo"]
    assert machine.timers.keys() >= {"echo", "xenstore", "console"}
    in_use = GTF_permit_access | GTF_reading | GTF_writing
    for ref in (GNTTAB_RESERVED_CONSOLE, GNTTAB_RESERVED_XENSTORE):
        assert grant_table.read_entry(machine.domain, ref).flags == in_use
