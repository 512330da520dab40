"""dom0/p9: a guest's requests go to a server, and its answers come back, by xen's transport."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from busfakes import Bus
from xenemu.abi.errno import EROFS
from xenemu.abi.io.ninepfs import IN_CONS, IN_PROD, OUT_CONS, OUT_PROD, REF, RING_ORDER
from xenemu.abi.io.xenbus import XenbusState
from xenemu.dom0.p9 import LATENCY_NS, MAX_MESSAGE, Server, ServerError, Share
from xenemu.dom0.p9_messages import HEADER, Export, T, error
from xenemu.hv import event_channel
from xenemu.hv.audit import audit
from xenemu.hv.snapshot import DomainSnapshot
from xenemu.x86.paging import PAGE_SIZE, Maddr, Mfn

SECOND_NS = 1_000_000_000


def message(kind: int, body: bytes = b"", tag: int = 7) -> bytes:
    return HEADER.pack(HEADER.size + len(body), kind, tag) + body


@dataclass
class EchoServer:
    """Answers with the request's body, or with what it is told; it remembers what it was asked."""

    asked: list[bytes] = field(default_factory=list)
    answer: Callable[[bytes], bytes] | None = None

    def ask(self, request: bytes, before: int) -> bytes:
        if before != len(self.asked):
            raise ServerError("files are open that the guest does not know of")
        self.asked.append(request)
        if self.answer:
            return self.answer(request)
        _, kind, tag = HEADER.unpack_from(request)
        return message(kind + 1, request[HEADER.size :], tag)

    def leave_if(self, leaves: Callable[[], bool]) -> None:
        raise NotImplementedError


class Frontend:
    """A guest's end: rings of 2 to the power of `order` pages."""

    def __init__(self, server: Server, rings: int = 1, order: int = 1) -> None:
        self.share = Share(0, "root", Export(b"/srv"), server)
        self.bus = Bus([self.share])
        self.size = PAGE_SIZE << order >> 1
        self.pages: list[tuple[Mfn, list[Mfn]]] = []
        self.ports: list[int] = []
        nodes: dict[str, str | int] = {"version": 1, "num-rings": rings}
        for number in range(rings):
            ref, interface = self.bus.share()
            data = [self.bus.share() for _ in range(1 << order)]
            self.pages.append((interface, [mfn for _, mfn in data]))
            self.set(number, RING_ORDER, order)
            for index, (data_ref, _) in enumerate(data):
                self.set(number, REF + 4 * index, data_ref)
            self.ports.append(self.bus.port())
            nodes |= {f"ring-ref{number}": ref, f"event-channel-{number}": self.ports[number]}
        self.nodes = nodes

    def connect(self) -> Frontend:
        self.bus.put(self.share, self.nodes)
        self.bus.switch(self.share, XenbusState.INITIALISED)
        self.bus.settle()
        for port in self.ports:
            self.bus.take_event(port)
        return self

    def get(self, ring: int, offset: int) -> int:
        return self.bus.domain.memory.read_uint(Maddr(self.pages[ring][0] * PAGE_SIZE + offset), 4)

    def set(self, ring: int, offset: int, value: int) -> None:
        place = Maddr(self.pages[ring][0] * PAGE_SIZE + offset)
        self.bus.domain.memory.write_uint(place, 4, value & 0xFFFF_FFFF)

    def byte(self, ring: int, offset: int) -> Maddr:
        return Maddr(self.pages[ring][1][offset // PAGE_SIZE] * PAGE_SIZE + offset % PAGE_SIZE)

    def put(self, data: bytes, ring: int = 0) -> None:
        """Put bytes into the ring "out", and tell dom0."""
        prod = self.get(ring, OUT_PROD)
        for index, value in enumerate(data):
            at = self.byte(ring, self.size + (prod + index) % self.size)
            self.bus.domain.memory.write_uint(at, 1, value)
        self.set(ring, OUT_PROD, prod + len(data))
        event_channel.send(self.bus.domain, self.ports[ring])
        self.bus.settle()

    def take(self, ring: int = 0) -> bytes:
        """All that is in the ring "in"."""
        cons, prod = self.get(ring, IN_CONS), self.get(ring, IN_PROD)
        count = (prod - cons) & 0xFFFF_FFFF
        places = [self.byte(ring, (cons + index) % self.size) for index in range(count)]
        self.set(ring, IN_CONS, prod)
        return b"".join(self.bus.domain.memory.read(place, 1) for place in places)

    def wait(self) -> None:
        self.bus.settle(SECOND_NS)

    @property
    def state(self) -> str:
        return self.bus.seen(self.share, "state")


@pytest.fixture
def server() -> EchoServer:
    return EchoServer()


@pytest.fixture
def guest(server: EchoServer) -> Frontend:
    return Frontend(server).connect()


def test_the_nodes_are_those_of_the_protocol(guest: Frontend) -> None:
    bus, share = guest.bus, guest.share
    assert bus.store.read(bus.session, f"{share.frontend}/tag") == b"root"
    names = ("versions", "max-rings", "max-ring-page-order", "state", "path")
    assert [bus.seen(share, name) for name in names] == ["1", "8", "9", "4", "/srv"]


def test_an_answer_comes_when_its_time_has_come(guest: Frontend) -> None:
    guest.put(message(T.WALK, b"where"))
    assert guest.take() == b""
    guest.bus.settle(LATENCY_NS)
    assert not guest.bus.take_event(guest.ports[0])
    guest.wait()
    assert guest.take() == message(T.WALK + 1, b"where")
    assert guest.bus.take_event(guest.ports[0])
    assert audit(guest.bus.domain) == []


def test_requests_are_answered_one_after_the_other(guest: Frontend, server: EchoServer) -> None:
    requests = [message(T.WALK, bytes([tag] * tag), tag) for tag in range(5)]
    guest.put(b"".join(requests))
    guest.wait()
    assert server.asked == requests
    expected = [message(T.WALK + 1, bytes([tag] * tag), tag) for tag in range(5)]
    assert guest.take() == b"".join(expected)


def test_a_request_may_come_in_pieces(guest: Frontend, server: EchoServer) -> None:
    request = message(T.WALK, b"where")
    for index in range(len(request)):
        assert server.asked == []
        guest.put(request[index : index + 1])
    assert server.asked == [request]


def test_a_ring_is_filled_again_and_again(guest: Frontend) -> None:
    body = bytes(range(256)) * 6
    for tag in range(9):
        guest.put(message(T.WALK, body, tag))
        guest.wait()
        assert guest.take() == message(T.WALK + 1, body, tag)
    assert guest.get(0, OUT_CONS) == 9 * len(message(T.WALK, body))


def test_rings_do_not_wait_for_each_other(server: EchoServer) -> None:
    guest = Frontend(server, rings=2).connect()
    body = bytes(guest.size // 2)
    for _ in range(3):  # more answers than have room
        guest.put(message(T.WALK, body), ring=0)
    guest.put(message(T.WALK, b"other"), ring=1)
    guest.wait()
    assert guest.take(1) == message(T.WALK + 1, b"other")


def test_answers_without_room_wait_and_stop_requests(guest: Frontend, server: EchoServer) -> None:
    request = message(T.WALK, bytes(guest.size // 2))
    sent, taken = 0, b""
    for _ in range(5):
        if guest.size - (guest.get(0, OUT_PROD) - guest.get(0, OUT_CONS)) >= len(request):
            guest.put(request)
            sent += 1
        guest.wait()
    assert (sent, len(server.asked)) == (4, 3)
    for _ in range(4):
        taken += guest.take()
        event_channel.send(guest.bus.domain, guest.ports[0])
        guest.wait()
    assert (len(server.asked), len(taken)) == (4, 4 * len(request))


def test_what_may_not_be_changed_is_refused_here(guest: Frontend, server: EchoServer) -> None:
    request = message(72, bytes(20))  # mkdir
    guest.put(request)
    guest.wait()
    assert guest.take() == error(request, EROFS)
    assert server.asked == []


@pytest.mark.parametrize(
    ("nodes", "reason"),
    [
        ({"version": 2}, "version"),
        ({"num-rings": 0}, "rings"),
        ({"num-rings": 9}, "rings"),
        ({"num-rings": 2}, "ring-ref1"),
        ({"ring-ref0": 3}, "mapping"),
        ({"event-channel-0": 999}, ""),
    ],
)
def test_a_frontend_that_is_wrong_is_not_connected(
    server: EchoServer, nodes: dict[str, str | int], reason: str
) -> None:
    guest = Frontend(server)
    guest.nodes |= nodes
    guest.connect()
    assert guest.state == str(XenbusState.CLOSING.value)
    assert reason in guest.share.reason
    assert guest.share.rings == guest.share.shared == guest.share.ports == []
    assert audit(guest.bus.domain) == []


@pytest.mark.parametrize("order", [0, 10, 0xFFFF_FFFF])
def test_a_ring_of_another_order_is_refused(server: EchoServer, order: int) -> None:
    guest = Frontend(server)
    guest.set(0, RING_ORDER, order)
    guest.connect()
    assert "order" in guest.share.reason
    assert audit(guest.bus.domain) == []


@pytest.mark.parametrize("size", [0, 6, PAGE_SIZE + 1, MAX_MESSAGE + 1, 0xFFFF_FFFF])
def test_a_request_that_lies_about_its_size_stops_the_share(guest: Frontend, size: int) -> None:
    guest.put(HEADER.pack(size, T.WALK, 1))
    assert (guest.state, str(size) in guest.share.reason) == ("5", True)
    guest.put(message(T.WALK))
    guest.wait()
    assert guest.take() == b""
    assert audit(guest.bus.domain) == []


@pytest.mark.parametrize("index", [OUT_PROD, IN_CONS])
def test_an_index_that_runs_away_stops_the_share(guest: Frontend, index: int) -> None:
    guest.put(message(T.WALK))
    guest.set(0, index, -PAGE_SIZE - 1)
    event_channel.send(guest.bus.domain, guest.ports[0])
    guest.wait()
    assert (guest.state, "in a ring of" in guest.share.reason) == ("5", True)


def test_a_server_that_is_gone_stops_the_share(guest: Frontend, server: EchoServer) -> None:
    def gone(request: bytes) -> bytes:
        raise ServerError("it has gone")

    server.answer = gone
    guest.put(message(T.WALK))
    assert (guest.state, guest.share.reason) == ("5", "it has gone")


def test_answers_under_way_are_in_a_snapshot_but_the_servers_files_are_not(
    guest: Frontend, server: EchoServer
) -> None:
    guest.put(message(T.WALK, b"where"))
    snapshot = DomainSnapshot.of(guest.bus.domain)
    guest.wait()
    guest.bus.current.domain = snapshot.restore(guest.bus.domain)
    guest.wait()
    assert guest.take() == message(T.WALK + 1, b"where")
    guest.put(message(T.WALK))  # nobody has asked since
    assert len(server.asked) == 2
    guest.bus.current.domain = snapshot.restore(guest.bus.domain)
    guest.set(0, OUT_PROD, guest.get(0, OUT_CONS))
    guest.put(message(T.WALK))
    assert (guest.state, len(server.asked)) == ("5", 2)
