"""A network interface: the backend that Linux's netback is on a real host.

Packets that the guest sends wait in `sent`, each with its virtual time, for whoever carries them
(`take_sent`). Packets for the guest come by `feed`, and wait until it has posted buffers. The wire
has whole packets only: checksums that the guest left out are filled in, and large TCP packets are
cut, as Linux does for a card that cannot.

A guest that breaks the rules of the ring has its interface disabled, as xenvif_fatal_tx_err does.

DIVERGES: one queue; no control ring, no multicast control and no room for XDP, as Linux's older
netbacks. Packets are never merged for the guest.

Header: public/io/netif.h
In Xen: Linux's drivers/net/xen-netback
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import field
from typing import ClassVar, Final, NamedTuple

from xenemu.abi.errno import EINVAL, EOPNOTSUPP
from xenemu.abi.io.netif import (
    EXTRA,
    RX_REQUEST,
    RX_RESPONSE,
    RX_SLOT,
    TX_REQUEST,
    TX_RESPONSE,
    TX_SLOT,
    XEN_NETIF_EXTRA_FLAG_MORE,
    XEN_NETIF_EXTRA_TYPE_GSO,
    XEN_NETIF_EXTRA_TYPE_MAX,
    XEN_NETIF_EXTRA_TYPE_NONE,
    XEN_NETIF_GSO_TYPE_TCPV4,
    XEN_NETIF_GSO_TYPE_TCPV6,
    XEN_NETIF_NR_SLOTS_MIN,
    XEN_NETIF_RSP_ERROR,
    XEN_NETIF_RSP_NULL,
    XEN_NETIF_RSP_OKAY,
    NETRXF_more_data,
    NETTXF_csum_blank,
    NETTXF_extra_info,
    NETTXF_more_data,
)
from xenemu.abi.io.ring import REQ_EVENT, REQ_PROD
from xenemu.abi.io.xenbus import XenbusState
from xenemu.dom0 import offload
from xenemu.dom0.bus import BusBackend
from xenemu.dom0.grants import read_grant, write_grant
from xenemu.dom0.offload import ETH_HLEN, OffloadError
from xenemu.dom0.ring import INDEX_MASK, BackRing, RingError
from xenemu.errors import XenError
from xenemu.hv.grant_table import GrantError
from xenemu.hv.state.domain import Domain
from xenemu.records import dataclass
from xenemu.x86.paging import PAGE_SIZE

LOOK: Final = 1  # the timer for a look at the rings
FATAL_SLOTS: Final = 20  # a packet of so many is an attack
MAX_PACKET: Final = (64 << 10) - 1
QUEUE_LIMIT: Final = 1 << 20  # bytes that wait, in each direction
IP_VERSIONS: Final = {XEN_NETIF_GSO_TYPE_TCPV4: 4, XEN_NETIF_GSO_TYPE_TCPV6: 6}


class Slot(NamedTuple):
    """A transmit request: one piece of a packet; the first one's size is the whole packet's."""

    ref: int
    offset: int
    flags: int
    id: int
    size: int


class Gso(NamedTuple):
    """How a large packet is to be cut: data bytes of each part, and the IP version."""

    size: int
    version: int


class BadFrontend(Exception):
    """The guest has broken a rule, for which the interface is disabled."""


class BadPacket(Exception):
    """A packet cannot be taken; its requests are answered with an error."""


@dataclass
class Counts:
    """What has passed, and what has not."""

    sent: int = 0
    received: int = 0
    bad: int = 0  # sent, but answered with an error, or not for any wire
    dropped: int = 0  # come from the wire, but the guest had no room, or was not connected


@dataclass
class Vif(BusBackend):
    """A network interface of one domain's."""

    kind: ClassVar[str] = "vif"

    mac: str
    tx: BackRing | None = field(default=None, init=False)
    rx: BackRing | None = field(default=None, init=False)
    tx_port: int = field(default=0, init=False)
    rx_port: int = field(default=0, init=False)
    takes_several: bool = field(default=False, init=False)  # slots for a packet: feature-sg
    disabled: bool = field(default=False, init=False)
    queue: deque[bytes] = field(default_factory=deque, init=False)  # for the guest
    queued: int = field(default=0, init=False)  # bytes of it
    sent: list[tuple[int, bytes]] = field(default_factory=list, init=False)
    unsent: int = field(default=0, init=False)  # bytes of it
    waiting: bool = field(default=False, init=False)  # requests wait until they are taken away
    counts: Counts = field(default_factory=Counts, init=False)

    # What the xenstore says.

    def frontend_nodes(self) -> Mapping[str, str | int]:
        return {"handle": self.devid, "mac": self.mac}

    def backend_nodes(self) -> Mapping[str, str | int]:
        return {
            "script": "/etc/xen/scripts/vif-bridge",
            "mac": self.mac,
            "bridge": "xenbr0",
            "handle": self.devid,
            "type": "vif",
        }

    def probe(self, domain: Domain) -> None:
        for feature in ("sg", "gso-tcpv4", "gso-tcpv6", "ipv6-csum-offload", "rx-copy"):
            self.write(f"feature-{feature}", 1)
        self.write("feature-rx-flip", 0)
        self.write("feature-split-event-channels", 1)
        self.write("multi-queue-max-queues", 1)
        self.write("feature-ctrl-ring", 0)

    def open(self, domain: Domain) -> None:
        queues = self.read_number("multi-queue-num-queues", 1)
        if queues != 1:
            message = f"guest requested {queues} queues, exceeding the maximum of 1."
            raise XenError(EINVAL, message)
        rings = [
            BackRing.attach(
                domain.memory, self.map_pages(domain, [self.read_number(f"{way}-ring-ref")]), size
            )
            for way, size in (("tx", TX_SLOT), ("rx", RX_SLOT))
        ]
        if not self.read_number("request-rx-copy", 0):
            raise XenError(EOPNOTSUPP, "the frontend does not ask for request-rx-copy")
        if self.read("event-channel-tx") is not None:
            self.tx_port = self.bind(domain, self.read_number("event-channel-tx"))
            self.rx_port = self.bind(domain, self.read_number("event-channel-rx"))
        else:
            self.tx_port = self.rx_port = self.bind(domain, self.read_number("event-channel"))
        self.takes_several = bool(self.read_number("feature-sg", 0))
        self.tx, self.rx = rings

    def shut(self, domain: Domain) -> None:
        self.counts.dropped += len(self.queue)
        self.queue.clear()
        self.tx = self.rx = None
        self.tx_port = self.rx_port = self.queued = 0
        self.disabled = self.waiting = False

    # What moves the packets.

    @property
    def listens(self) -> bool:
        """Whether it has room, and what it takes would reach the guest."""
        return self.state == XenbusState.CONNECTED and not self.disabled and self.has_room

    @property
    def has_room(self) -> bool:
        """Whether it takes a packet now, if only to drop it."""
        return self.queued < QUEUE_LIMIT

    def feed(self, domain: Domain, data: bytes) -> None:
        """Take a packet for the guest, or drop it; `pump` delivers it."""
        most = MAX_PACKET if self.takes_several else PAGE_SIZE
        if not self.listens or not ETH_HLEN <= len(data) <= most:
            self.counts.dropped += 1
            return
        self.queue.append(data)
        self.queued += len(data)

    def take_sent(self) -> Iterable[tuple[int, bytes]]:
        """What the guest has sent since this was asked last, each packet with its virtual time."""
        sent, self.sent, self.unsent = self.sent, [], 0
        return sent

    def event(self, domain: Domain, port: int) -> None:
        domain.timers.set((self.name, LOOK), 0)  # the clock is asked there

    def due(self, domain: Domain, number: int, now_ns: int) -> None:
        if self.tx is None or self.disabled:
            return
        try:
            if self._transmit(domain, self.tx, now_ns):
                self.tell(domain, self.tx_port)
        except (BadFrontend, RingError) as error:
            self._disable(domain, error)
        self._deliver(domain)

    def pump(self, domain: Domain) -> None:
        """Deliver what has been fed; go on with what the guest sends if there is room again."""
        self._deliver(domain)
        if self.waiting and self.unsent < QUEUE_LIMIT:
            domain.timers.set((self.name, LOOK), 0)

    def _deliver(self, domain: Domain) -> None:
        if self.rx is None or self.disabled or not self.queue:
            return
        try:
            if self._receive(domain, self.rx):
                self.tell(domain, self.rx_port)
        except RingError as error:
            self._disable(domain, error)

    def _disable(self, domain: Domain, error: Exception) -> None:
        """Take nothing more from the guest, and give it nothing: xenvif_fatal_tx_err."""
        self.disabled = True
        self.complain(domain, XenError(EINVAL, f"fatal error; disabling device: {error}"))

    # From the guest.

    def _transmit(self, domain: Domain, ring: BackRing, now_ns: int) -> bool:
        """Take packets while there is room for them; whether the guest wants an event."""
        memory = domain.memory
        while not (full := self.unsent >= QUEUE_LIMIT) and ring.final_check(memory):
            while self.unsent < QUEUE_LIMIT and (request := ring.take(memory)) is not None:
                self._take_packet(domain, ring, Slot(*TX_REQUEST.unpack(request)), now_ns)
        self.waiting = full
        return ring.push(memory)

    def _take_packet(self, domain: Domain, ring: BackRing, first: Slot, now_ns: int) -> None:
        extras, gso = self._take_extras(domain, ring, first.flags)
        slots, problem = [first], ""
        while slots[-1].flags & NETTXF_more_data:
            slots.append(Slot(*TX_REQUEST.unpack(self._next(domain, ring, "data"))))
            if len(slots) > FATAL_SLOTS:
                raise BadFrontend(f"Malicious frontend using {len(slots)} slots")
        try:
            sizes = _sizes(slots)
            packet = b"".join(
                read_grant(domain, slot.ref, slot.offset, size)
                for slot, size in zip(slots, sizes, strict=True)
            )
        except BadPacket as error:
            problem = str(error)
        except GrantError as error:
            problem = error.reason
        status = XEN_NETIF_RSP_ERROR if problem else XEN_NETIF_RSP_OKAY
        for index, slot in enumerate(slots):
            ring.put(domain.memory, TX_RESPONSE.pack(slot.id, status))
            for _ in range(0 if index else extras):
                ring.put(domain.memory, TX_RESPONSE.pack(0, XEN_NETIF_RSP_NULL))
        if problem:
            self._note(problem)
            return
        for observer in domain.watch or ():
            observer.served(self.name, f"sent, {len(packet)} bytes")
        try:
            self._send([*_whole_packets(packet, first.flags, gso)], now_ns)
        except OffloadError as error:
            self._note(str(error))

    def _take_extras(self, domain: Domain, ring: BackRing, flags: int) -> tuple[int, Gso | None]:
        """How many extra segments follow, and what they say of GSO."""
        count, gso, more = 0, None, flags & NETTXF_extra_info
        while more:
            kind, extra_flags, size, gso_type, _ = EXTRA.unpack(
                self._next(domain, ring, "extra info")[: EXTRA.size]
            )
            if not XEN_NETIF_EXTRA_TYPE_NONE < kind < XEN_NETIF_EXTRA_TYPE_MAX:
                raise BadFrontend(f"Invalid extra type: {kind}")
            if kind == XEN_NETIF_EXTRA_TYPE_GSO:
                if not size:
                    raise BadFrontend("GSO size must not be zero.")
                if gso_type not in IP_VERSIONS:
                    raise BadFrontend(f"Bad GSO type {gso_type}.")
                gso = Gso(size, IP_VERSIONS[gso_type])
            count, more = count + 1, extra_flags & XEN_NETIF_EXTRA_FLAG_MORE
        return count, gso

    def _next(self, domain: Domain, ring: BackRing, what: str) -> bytes:
        request = ring.take(domain.memory)
        if request is None:
            raise BadFrontend(f"Missing {what} of a packet")
        return request

    def _send(self, packets: list[bytes], now_ns: int) -> None:
        self.sent += [(now_ns, packet) for packet in packets]
        self.unsent += sum(map(len, packets))
        self.counts.sent += len(packets)

    def _note(self, problem: str) -> None:
        """Count a packet that goes nowhere, and say why."""
        self.counts.bad += 1
        self.reason = problem

    # To the guest.

    def _receive(self, domain: Domain, ring: BackRing) -> bool:
        """Deliver packets while the guest has buffers; whether it wants an event."""
        memory = domain.memory
        while self.queue:
            packet = self.queue[0]
            needed = -(-len(packet) // PAGE_SIZE)
            if not _has_buffers(domain, ring, needed):
                break
            self.queue.popleft()
            self.queued -= len(packet)
            for at in range(0, len(packet), PAGE_SIZE):
                request = ring.take(memory)
                assert request is not None
                buffer_id, ref = RX_REQUEST.unpack(request)
                piece = packet[at : at + PAGE_SIZE]
                flags = NETRXF_more_data if at + PAGE_SIZE < len(packet) else 0
                try:
                    write_grant(domain, ref, 0, piece)
                    status = len(piece)
                except GrantError as error:
                    status, self.reason = error.status, error.reason
                ring.put(memory, RX_RESPONSE.pack(buffer_id, 0, flags, status))
            self.counts.received += 1
            for observer in domain.watch or ():
                observer.served(self.name, f"received, {len(packet)} bytes")
        return ring.push(memory)


def _sizes(slots: list[Slot]) -> list[int]:
    """The bytes in each slot of a packet: the first slot says the size of all of them."""
    if len(slots) > XEN_NETIF_NR_SLOTS_MIN:
        raise BadPacket(f"Too many slots ({len(slots)}) exceeding limit, dropping packet")
    left = slots[0].size
    for slot in slots[1:]:
        if slot.size > left:
            raise BadPacket(f"Invalid tx request, slot size {slot.size} > remaining size {left}")
        left -= slot.size
    sizes = [left, *(slot.size for slot in slots[1:])]
    for slot, size in zip(slots, sizes, strict=True):
        if slot.offset + size > PAGE_SIZE:
            raise BadFrontend(f"Cross page boundary, txp->offset: {slot.offset}, size: {size}")
    if left < ETH_HLEN:
        raise BadPacket(f"Bad packet size: {left}")
    return sizes


def _whole_packets(packet: bytes, flags: int, gso: Gso | None) -> Iterable[bytes]:
    """What goes to the wire for a packet of the guest's; OffloadError."""
    if gso is not None:
        return offload.segment(packet, gso.size, gso.version)
    return [offload.fill_checksum(packet) if flags & NETTXF_csum_blank else packet]


def _has_buffers(domain: Domain, ring: BackRing, needed: int) -> bool:
    """Whether the guest has posted so many; if not, ask for an event when it posts the next.

    xenvif_rx_ring_slots_available
    """
    put = ring.pages.read_uint(domain.memory, REQ_PROD)
    if (put - ring.rsp_prod) & INDEX_MASK > ring.slots:
        raise RingError(f"bogus buffers in the ring: {put} put, {ring.rsp_prod} used")
    if (put - ring.req_cons) & INDEX_MASK >= needed:
        return True
    ring.pages.write_uint(domain.memory, REQ_EVENT, put + 1)
    return False
