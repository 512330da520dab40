"""dom0/renewal: dom0 lets go of a domain, and begins anew with the one that takes its place."""

from __future__ import annotations

from busfakes import Bus, Toy, connect
from xenemu.abi.io.xenbus import XenbusState
from xenemu.dom0 import renewal
from xenemu.dom0.xenstore_model import Connection
from xenemu.hv import event_channel, grant_table
from xenemu.hv.audit import audit
from xenemu.hv.state.domain import DOM0

ADMIN = Connection(0)


def connected() -> tuple[Bus, Toy]:
    toy = Toy(3)
    bus = Bus([toy])
    connect(bus, toy)
    assert toy.state is XenbusState.CONNECTED
    return bus, toy


def test_nothing_is_left_of_a_domain_that_dom0_lets_go():
    bus, toy = connected()
    renewal.release(bus.domain, bus.store)
    domain = bus.domain
    assert not domain.events.dom0_ports and not domain.grants.dom0.mappings
    assert not domain.grants.active and not domain.backends
    assert not bus.store.connections
    left = [path for path in bus.store.nodes if "/1" in path.removeprefix("/local/domain/0")]
    assert left == []
    assert bus.store.entries.get(domain.domid, 0) == 0
    assert toy.state is XenbusState.INITIALISING and not toy.ports and not toy.shared
    assert audit(domain) == []


def test_the_next_life_begins_as_the_first_one_did():
    bus, toy = connected()
    first = {p: n.value for p, n in Bus([Toy(3)]).store.nodes.items()}
    bus.store.write(bus.session, "data/mine", b"x")
    bus.store.write(ADMIN, "/local/domain/1/memory/target", b"512")
    known = renewal.release(bus.domain, bus.store)
    domain = bus.domain
    event_channel.reset(domain, False, lambda: False)
    for ring in (domain.console, domain.xenstore):
        ring.port = event_channel.alloc_unbound(domain, DOM0)
    renewal.connect(domain, known, bus.store)
    now = {p: n.value for p, n in bus.store.nodes.items()}
    assert now.pop("/local/domain/1/memory/target") == b"512"
    del first["/local/domain/1/memory/target"]
    assert now == first
    assert toy.state is XenbusState.INIT_WAIT
    assert audit(domain) == []
    bus.session = bus.ring.connection
    connect(bus, toy)
    assert toy.state is XenbusState.CONNECTED


def test_a_grant_of_version_2_can_be_seeded():
    bus, _ = connected()
    renewal.release(bus.domain, bus.store)
    grant_table.set_version(bus.domain, 2)
    grant_table.seed(bus.domain, 1, bus.domain.xenstore.mfn)
    entry = grant_table.read_entry(bus.domain, 1)
    assert (entry.flags, entry.domid, entry.frame) == (1, DOM0, bus.domain.xenstore.mfn)
