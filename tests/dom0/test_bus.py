"""dom0/bus: what a frontend does in the xenstore, and what a backend makes of it."""

from __future__ import annotations

import copy

import pytest

from busfakes import Bus, Toy, connect
from fakes import DOMID
from grantfakes import state
from xenemu.abi.io.xenbus import XenbusState
from xenemu.dom0.xenstore import RSP
from xenemu.dom0.xenstore_model import Access, Permission
from xenemu.hv import event_channel
from xenemu.hv.audit import audit
from xenemu.hv.snapshot import DomainSnapshot

INITIALISING, INIT_WAIT = XenbusState.INITIALISING, XenbusState.INIT_WAIT
INITIALISED, CONNECTED = XenbusState.INITIALISED, XenbusState.CONNECTED
CLOSING, CLOSED = XenbusState.CLOSING, XenbusState.CLOSED


@pytest.fixture
def toy() -> Toy:
    return Toy(3)


@pytest.fixture
def bus(toy: Toy) -> Bus:
    return Bus([toy])


def holds_nothing(bus: Bus, toy: Toy) -> bool:
    return (
        (toy.shared, toy.ports) == ([], [])
        and bus.domain.grants.active.keys() == {1}
        and {end.backend for end in bus.domain.events.dom0_ports.values()} == {"xenstore"}
    )


def test_the_nodes_are_those_that_libxl_writes(bus: Bus, toy: Toy) -> None:
    frontend, backend = "/local/domain/1/device/vtoy/3", "/local/domain/0/backend/vtoy/1/3"
    assert (toy.frontend, toy.backend) == (frontend, backend)
    read = {
        path: {
            name: bus.store.read(bus.session, f"{path}/{name}")
            for name in bus.store.directory(bus.session, path)
        }
        for path in (frontend, backend)
    }
    assert read == {
        frontend: {"backend": backend.encode(), "backend-id": b"0", "state": b"1"},
        backend: {
            "frontend": frontend.encode(),
            "frontend-id": b"1",
            "online": b"1",
            "state": b"2",
            "colour": b"red",
            "hotplug-status": b"connected",
            "feature-play": b"1",
        },
    }
    for path, owner, reader in ((frontend, DOMID, 0), (backend, 0, DOMID)):
        permissions = bus.store.get_perms(bus.session, f"{path}/state")
        assert permissions == (Permission(owner, Access.NONE), Permission(reader, Access.READ))


def test_a_frontend_that_is_ready_is_connected(bus: Bus, toy: Toy) -> None:
    connect(bus, toy)
    assert (bus.seen(toy, "state"), bus.seen(toy, "size")) == ("4", "7")
    assert toy.events == toy.ports  # each end has an event when it is bound
    assert audit(bus.domain) == []


def test_each_port_is_told_from_the_other(bus: Bus, toy: Toy) -> None:
    tx, rx = connect(bus, toy)
    toy.events.clear()
    for port in (rx, tx):
        event_channel.send(bus.domain, port)
    assert toy.events == toy.ports[::-1]
    toy.tell(bus.domain, toy.ports[0])
    assert (bus.take_event(tx), bus.take_event(rx)) == (True, False)


def test_the_guest_hears_of_the_backends_state(bus: Bus, toy: Toy) -> None:
    bus.store.watch(bus.session, f"{toy.backend}/state", b"t")
    bus.store.wake(bus.domain)
    bus.settle()
    first = RSP.take(bus.domain.memory, bus.domain.xenstore.mfn, 1024)
    bus.take_event(bus.domain.xenstore.port)
    connect(bus, toy)
    assert RSP.take(bus.domain.memory, bus.domain.xenstore.mfn, 1024) == first
    assert bus.take_event(bus.domain.xenstore.port)


@pytest.mark.parametrize(
    ("missing", "reason"),
    [
        ("ring-ref", "reading /local/domain/1/device/vtoy/3/ring-ref"),
        ("event-channel-rx", "reading /local/domain/1/device/vtoy/3/event-channel-rx"),
    ],
)
def test_a_node_that_is_missing_ends_it(bus: Bus, toy: Toy, missing: str, reason: str) -> None:
    ref, _ = bus.share()
    nodes = {"ring-ref": ref, "event-channel-tx": bus.port(), "event-channel-rx": bus.port()}
    del nodes[missing]
    bus.put(toy, nodes)
    bus.switch(toy, INITIALISED)
    assert bus.seen(toy, "state") == "5"
    error = bus.store.nodes[f"/local/domain/0/error/{toy.nodename}/error"]
    assert error.value.decode() == f"22 {reason}"
    assert bus.domain.refusals[-1] == f"vtoy-3: {reason}"
    assert holds_nothing(bus, toy)
    assert audit(bus.domain) == []


@pytest.mark.parametrize("node", ["ring-ref", "event-channel-tx", "event-channel-rx"])
@pytest.mark.parametrize("value", ["", "x", "4000000000", "-1", "0", "1" * 40])
def test_a_wild_number_ends_it(bus: Bus, toy: Toy, node: str, value: str) -> None:
    ref, _ = bus.share()
    nodes = {"ring-ref": ref, "event-channel-tx": bus.port(), "event-channel-rx": bus.port()}
    before = state(bus.domain)
    bus.put(toy, {**nodes, node: value, "state": 3})
    assert (bus.seen(toy, "state"), holds_nothing(bus, toy)) == ("5", True)
    toy.reason = ""
    assert state(bus.domain)[1:] == before[1:]  # type: ignore[index]
    assert audit(bus.domain) == []


def test_a_frontend_that_was_refused_may_try_again(bus: Bus, toy: Toy) -> None:
    bus.switch(toy, INITIALISED)
    for frontend, backend in ((CLOSING, "5"), (CLOSED, "6"), (INITIALISING, "2")):
        bus.switch(toy, frontend)
        assert bus.seen(toy, "state") == backend
    connect(bus, toy)
    assert bus.seen(toy, "state") == "4"


def test_closing_keeps_what_is_mapped_until_the_frontend_is_closed(bus: Bus, toy: Toy) -> None:
    connect(bus, toy)
    bus.switch(toy, CLOSING)
    assert (bus.seen(toy, "state"), len(toy.ports), len(toy.shared)) == ("5", 2, 1)
    bus.switch(toy, CLOSED)
    assert (bus.seen(toy, "state"), holds_nothing(bus, toy)) == ("6", True)
    assert audit(bus.domain) == []


def test_a_kernel_after_kexec_connects_anew(bus: Bus, toy: Toy) -> None:
    ports = []
    for _ in range(3):
        connect(bus, toy)
        ports.append(list(toy.ports))
        for frontend in (CLOSING, CLOSED, INITIALISING):
            bus.switch(toy, frontend)
    assert ports == ports[:1] * 3  # dom0's ports are used again
    assert audit(bus.domain) == []


def test_a_second_connected_changes_nothing(bus: Bus, toy: Toy) -> None:
    connect(bus, toy)
    before = copy.deepcopy(toy.save())
    bus.switch(toy, CONNECTED)
    assert toy.save() == before


@pytest.mark.parametrize("written", [b"8", b"77", b"2"])
def test_a_state_that_makes_no_sense_ends_it(bus: Bus, toy: Toy, written: bytes) -> None:
    bus.put(toy, {"state": written.decode()})
    assert bus.seen(toy, "state") == "5"
    assert toy.reason == f"saw state {int(written)} at frontend"


@pytest.mark.parametrize("how", ["removed", "junk"])
def test_a_frontend_that_is_gone_does_not_come_back(bus: Bus, toy: Toy, how: str) -> None:
    connect(bus, toy)
    if how == "removed":
        bus.store.rm(bus.session, toy.frontend)
        bus.store.wake(bus.domain)
        bus.settle()
    else:
        bus.put(toy, {"state": "x"})
    assert (bus.seen(toy, "state"), holds_nothing(bus, toy)) == ("6", True)
    if how == "junk":  # a directory that was removed cannot be made again by the guest
        bus.put(toy, {"state": 1})
        connect(bus, toy)
    assert (bus.seen(toy, "state"), holds_nothing(bus, toy)) == ("6", True)
    assert audit(bus.domain) == []


def test_the_audit_knows_what_a_device_holds(bus: Bus, toy: Toy) -> None:
    connect(bus, toy)
    shared, ports, now = toy.shared, toy.ports, toy.state
    for attribute, value in (("shared", []), ("ports", [])):
        setattr(toy, attribute, value)
        assert audit(bus.domain)
        toy.shared, toy.ports = shared, ports
    toy.state = CLOSED
    assert audit(bus.domain)
    toy.state = now
    assert audit(bus.domain) == []


def test_what_was_restored_goes_on(bus: Bus, toy: Toy) -> None:
    snapshots = [DomainSnapshot.of(bus.domain)]
    connect(bus, toy)
    snapshots.append(DomainSnapshot.of(bus.domain))
    bus.switch(toy, CLOSED)
    for _ in range(2):
        for snapshot, now in zip(snapshots, ("2", "4"), strict=True):
            bus.current.domain = snapshot.restore(bus.domain)
            assert bus.seen(toy, "state") == now
            assert audit(bus.domain) == []
            bus.switch(toy, CLOSED)
            assert (bus.seen(toy, "state"), holds_nothing(bus, toy)) == ("6", True)
