"""dom0/net: packets through the rings of a network interface, and guests that break the rules."""

from __future__ import annotations

import copy

import pytest

from grantfakes import grant, state
from netfakes import Front
from packets import frame, is_right, tcp, udp
from xenemu.abi.io.netif import (
    EXTRA,
    XEN_NETIF_EXTRA_FLAG_MORE,
    XEN_NETIF_GSO_TYPE_TCPV4,
    XEN_NETIF_GSO_TYPE_TCPV6,
    XEN_NETIF_RSP_ERROR,
    XEN_NETIF_RSP_NULL,
    XEN_NETIF_RSP_OKAY,
    NETRXF_more_data,
    NETTXF_csum_blank,
    NETTXF_extra_info,
    NETTXF_more_data,
)
from xenemu.abi.io.ring import REQ_PROD
from xenemu.abi.io.xenbus import XenbusState
from xenemu.dom0.net import QUEUE_LIMIT
from xenemu.hv.audit import audit
from xenemu.hv.snapshot import DomainSnapshot
from xenemu.x86.paging import PAGE_SIZE

ERROR, NULL, OKAY = XEN_NETIF_RSP_ERROR, XEN_NETIF_RSP_NULL, XEN_NETIF_RSP_OKAY
PACKET = bytes(range(200))


@pytest.fixture
def front() -> Front:
    return Front()


def test_the_store_has_what_netback_offers(front: Front) -> None:
    seen = {
        name: front.bus.seen(front.vif, name)
        for name in ("feature-sg", "feature-gso-tcpv4", "feature-rx-copy", "feature-rx-flip", "mac")
    }
    assert list(seen.values()) == ["1", "1", "1", "0", "00:16:3e:00:00:01"]
    assert front.bus.seen(front.vif, "state") == str(XenbusState.CONNECTED.value)
    assert audit(front.bus.domain) == []


def test_a_packet_leaves_with_its_time(front: Front) -> None:
    front.bus.settle(5_000)
    assert front.send(PACKET) == [OKAY]
    assert front.vif.take_sent() == [(5_000, PACKET)]
    assert front.vif.take_sent() == []
    assert front.bus.take_event(front.tx_port)


def test_a_packet_may_lie_in_several_pages(front: Front) -> None:
    large = bytes(range(256)) * 100
    assert front.send(large) == [OKAY] * 7
    assert front.sent() == [large]


@pytest.mark.parametrize("version", [4, 6])
def test_a_checksum_that_was_left_out_is_filled_in(front: Front, version: int) -> None:
    packet = frame(version, 17, udp(b"question"))
    front.send(packet)
    front.send(packet, NETTXF_csum_blank)
    as_it_was, filled = front.sent()
    assert as_it_was == packet and is_right(filled, version)


def test_a_large_tcp_packet_is_cut_for_the_wire(front: Front) -> None:
    kinds = {4: XEN_NETIF_GSO_TYPE_TCPV4, 6: XEN_NETIF_GSO_TYPE_TCPV6}
    for version, kind in kinds.items():
        large = frame(version, 6, tcp(bytes(9000)))
        assert front.send(large, NETTXF_csum_blank, (1400, kind)) == [OKAY, NULL, OKAY, OKAY]
        parts = front.sent()
        assert len(parts) == 7 and all(is_right(part, version) for part in parts)


def test_what_is_no_tcp_goes_nowhere(front: Front) -> None:
    assert front.send(PACKET, 0, (1400, XEN_NETIF_GSO_TYPE_TCPV4)) == [OKAY, NULL]
    assert front.send(PACKET, NETTXF_csum_blank) == [OKAY]
    assert front.sent() == [] and front.vif.counts.bad == 2


def test_a_packet_arrives_in_buffers(front: Front) -> None:
    front.post(3, 4, 5)
    assert front.receive(PACKET) == [(3, 0, 0, len(PACKET))]
    assert front.contents(3, len(PACKET)) == PACKET
    large = bytes(range(256)) * 20
    found = [(4, 0, NETRXF_more_data, PAGE_SIZE), (5, 0, 0, len(large) - PAGE_SIZE)]
    assert front.receive(large) == found
    assert front.contents(4, PAGE_SIZE) + front.contents(5, 1024) == large
    assert front.bus.take_event(front.rx_port)


def test_packets_wait_for_buffers(front: Front) -> None:
    assert front.receive(PACKET) == []
    assert front.receive(bytes(PAGE_SIZE + 1)) == []
    front.post(0)
    assert [status for *_, status in front.received()] == [len(PACKET)]
    front.post(1)
    assert front.received() == []  # the next one needs two
    front.post(2)
    assert [status for *_, status in front.received()] == [PAGE_SIZE, 1]


def test_a_queue_that_is_full_takes_no_more(front: Front) -> None:
    packet, fed = bytes(60_000), 0
    while front.vif.listens:
        front.vif.feed(front.bus.domain, packet)
        fed += 1
    assert fed == -(-QUEUE_LIMIT // len(packet)) and not front.vif.has_room
    front.vif.feed(front.bus.domain, packet)
    assert (front.vif.counts.dropped, len(front.vif.queue)) == (1, fed)


def test_a_frontend_without_sg_gets_no_more_than_a_page() -> None:
    front = Front({"feature-sg": 0})
    front.post(0, 1, 2)
    assert front.receive(bytes(PAGE_SIZE + 1)) == []
    assert front.receive(bytes(PAGE_SIZE)) == [(0, 0, 0, PAGE_SIZE)]


def test_nobody_who_is_not_connected_hears_anything(front: Front) -> None:
    front.bus.switch(front.vif, XenbusState.CLOSED)
    assert front.vif.has_room and not front.vif.listens
    front.vif.feed(front.bus.domain, PACKET)
    assert (front.vif.counts.dropped, len(front.vif.queue)) == (1, 0)


def test_a_buffer_that_is_not_granted_is_answered_with_the_grants_status(front: Front) -> None:
    front.buffers[0] = (999, front.mfn(0))
    front.post(0, 1)
    ((_, _, _, status),) = front.receive(PACKET)
    assert status < 0
    assert [status for *_, status in front.receive(PACKET)] == [len(PACKET)]


def test_a_piece_that_is_not_granted_is_an_error(front: Front) -> None:
    front.slot(999, 100)
    assert front.go() == [ERROR]
    grant(front.bus.domain, front.buffers[0][0], front.mfn(0), to=7)
    front.slot(front.buffers[0][0], 100)
    assert front.go() == [ERROR]
    assert front.sent() == [] and front.vif.counts.bad == 2
    assert front.vif.listens  # it goes on


def many(front: Front, count: int, size: int = 10) -> list[int]:
    for index in range(count):
        more = NETTXF_more_data if index < count - 1 else 0
        front.slot(front.buffers[0][0], size if index else 1000, more)
    return front.go()


@pytest.mark.parametrize(
    ("make", "answers", "reason"),
    [
        (lambda front: many(front, 19), 19, "Too many slots (19)"),
        (lambda front: many(front, 2, 1001), 2, "slot size 1001 > remaining size 1000"),
        (lambda front: many(front, 2, 995), 2, "Bad packet size: 5"),
        (lambda front: front.send(b"\1" * 13), 1, "Bad packet size: 13"),
    ],
)
def test_a_bad_packet_is_answered_with_errors(front: Front, make, answers, reason) -> None:
    assert make(front) == [ERROR] * answers
    assert front.sent() == []
    assert reason in front.vif.reason and not front.vif.disabled
    assert front.send(PACKET) == [OKAY]


def extra(front: Front, *fields: int) -> None:
    front.slot(front.buffers[0][0], 100, NETTXF_extra_info)
    front.tx.put(EXTRA.pack(*fields))


@pytest.mark.parametrize(
    ("break_rule", "reason"),
    [
        (lambda front: front.slot(front.buffers[0][0], 100, 0, 4000), "Cross page boundary"),
        (lambda front: many(front, 25), "Malicious frontend using 21 slots"),
        (lambda front: front.slot(16, 100, NETTXF_more_data), "Missing data"),
        (lambda front: front.slot(16, 100, NETTXF_extra_info), "Missing extra info"),
        (lambda front: extra(front, 1, XEN_NETIF_EXTRA_FLAG_MORE, 9, 1, 0), "Missing extra info"),
        (lambda front: extra(front, 0, 0, 0, 0, 0), "Invalid extra type: 0"),
        (lambda front: extra(front, 5, 0, 0, 0, 0), "Invalid extra type: 5"),
        (lambda front: extra(front, 1, 0, 0, 1, 0), "GSO size must not be zero"),
        (lambda front: extra(front, 1, 0, 9, 3, 0), "Bad GSO type 3"),
        (lambda front: front.tx.set(REQ_PROD, 257), "bogus requests in the ring"),
        (lambda front: front.tx.set(REQ_PROD, 0xFFFF_FFFF), "bogus requests in the ring"),
    ],
)
def test_who_breaks_a_rule_is_disabled(front: Front, break_rule, reason: str) -> None:
    break_rule(front)
    front.go()
    assert front.vif.disabled and reason in front.vif.reason
    assert any(reason in refusal for refusal in front.bus.domain.refusals)
    front.sent()
    front.post(0)
    front.fill(1, PACKET)
    front.slot(front.buffers[1][0], len(PACKET))
    before = state(front.bus.domain)
    assert front.go() == [] and front.sent() == []  # it does nothing any more
    assert front.receive(PACKET) == [] and len(front.vif.queue) == 0
    assert state(front.bus.domain) == before
    assert audit(front.bus.domain) == []


def test_bogus_buffers_disable_it(front: Front) -> None:
    front.rx.set(REQ_PROD, 300)
    front.receive(PACKET)
    assert front.vif.disabled and "bogus buffers" in front.vif.reason


@pytest.mark.parametrize(
    ("nodes", "reason"),
    [
        ({"multi-queue-num-queues": 2}, "guest requested 2 queues, exceeding the maximum of 1."),
        ({"request-rx-copy": 0}, "does not ask for request-rx-copy"),
        ({"rx-ring-ref": 999}, "mapping in shared page 999"),
        ({"tx-ring-ref": "x"}, "reading /local/domain/1/device/vif/0/tx-ring-ref"),
        ({"event-channel-rx": 99}, "port 99"),
        ({"event-channel-tx": None, "event-channel-rx": None}, "reading"),
    ],
)
def test_a_frontend_that_cannot_be_used_is_told_to_close(nodes, reason: str) -> None:
    front = Front(nodes)
    assert front.bus.seen(front.vif, "state") == str(XenbusState.CLOSING.value)
    assert reason in front.vif.reason
    assert not (front.vif.ports or front.vif.shared)
    assert audit(front.bus.domain) == []


def test_one_port_serves_both_rings() -> None:
    front = Front({"event-channel-tx": None, "event-channel-rx": None})
    front.bus.put(front.vif, {"event-channel": front.tx_port})
    front.bus.switch(front.vif, XenbusState.CLOSED)
    front.bus.switch(front.vif, XenbusState.INITIALISING)
    front.bus.switch(front.vif, XenbusState.CONNECTED)
    assert front.send(PACKET) == [OKAY]
    front.rx_port = front.tx_port
    front.post(0)
    assert len(front.receive(PACKET)) == 1


def test_a_frontend_may_begin_anew(front: Front) -> None:
    front.tx.set(REQ_PROD, 999)
    front.go()
    assert front.vif.disabled
    front.begin_anew()
    assert front.send(PACKET) == [OKAY]
    front.post(0)
    assert front.receive(PACKET) == [(0, 0, 0, len(PACKET))]
    assert audit(front.bus.domain) == []


def test_much_that_is_sent_at_once_waits_in_the_ring(front: Front) -> None:
    large = bytes(60_000)
    enough = -(-QUEUE_LIMIT // len(large))
    for _ in range(enough):
        assert front.send(large) == [OKAY] * 15
    front.slot(front.fill(0, PACKET), len(PACKET))
    assert front.go() == []
    front.vif.pump(front.bus.domain)
    assert front.go() == [] and front.vif.waiting
    assert len(front.sent()) == enough
    front.vif.pump(front.bus.domain)
    front.bus.settle()
    assert front.sent() == [PACKET]


def test_a_snapshot_has_what_waits(front: Front) -> None:
    front.receive(PACKET)
    front.send(PACKET[::-1])
    kept = DomainSnapshot.of(front.bus.domain)
    before = copy.deepcopy(front.vif.save())
    front.post(0)
    front.sent()
    assert len(front.received()) == 1 and front.vif.save() != before
    kept.restore(front.bus.domain)
    assert front.vif.save() == before
    assert front.sent() == [PACKET[::-1]] and list(front.vif.queue) == [PACKET]
