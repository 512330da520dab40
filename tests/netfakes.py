"""A netfront on fakes: the rings of one interface, and buffers that the guest has granted."""

from __future__ import annotations

from dataclasses import dataclass, field

from busfakes import Bus, FrontRing
from grantfakes import grant
from xenemu.abi.io.netif import (
    EXTRA,
    RX_REQUEST,
    RX_RESPONSE,
    RX_SLOT,
    TX_REQUEST,
    TX_RESPONSE,
    TX_SLOT,
    XEN_NETIF_EXTRA_TYPE_GSO,
    NETTXF_extra_info,
    NETTXF_more_data,
)
from xenemu.abi.io.xenbus import XenbusState
from xenemu.dom0.net import Vif
from xenemu.hv import event_channel
from xenemu.hv.state.domain import DOM0
from xenemu.x86.paging import PAGE_SIZE, Maddr, Mfn

MAC = "00:16:3e:00:00:01"


@dataclass
class Front:
    """A guest with one connected interface."""

    nodes: dict[str, str | int] = field(default_factory=dict)
    vif: Vif = field(default_factory=lambda: Vif(0, MAC))
    bus: Bus = field(init=False)

    def __post_init__(self) -> None:
        self.bus = Bus([self.vif])
        self.rings = [self.bus.share() for _ in range(2)]
        (_, tx), (_, rx) = self.rings
        self.tx = FrontRing(self.bus.domain, [tx], TX_SLOT)
        self.rx = FrontRing(self.bus.domain, [rx], RX_SLOT)
        self.tx_port, self.rx_port = self.bus.port(), self.bus.port()
        self.buffers = [self.bus.share() for _ in range(20)]
        self.connect()

    def connect(self) -> None:
        """Do what netfront does to connect; `nodes` says where else, None is without one."""
        nodes = {
            "tx-ring-ref": self.rings[0][0],
            "rx-ring-ref": self.rings[1][0],
            "event-channel-tx": self.tx_port,
            "event-channel-rx": self.rx_port,
            "request-rx-copy": 1,
            "feature-rx-notify": 1,
            "feature-sg": 1,
            **self.nodes,
        }
        there = {name: value for name, value in nodes.items() if value is not None}
        self.bus.put(self.vif, there)
        self.bus.switch(self.vif, XenbusState.CONNECTED)

    def begin_anew(self) -> None:
        """Close, whatever has become of it, and connect with rings and grants as at first."""
        self.bus.switch(self.vif, XenbusState.CLOSED)
        for ref, mfn in (*self.rings, *self.buffers):
            grant(self.bus.domain, ref, mfn, to=DOM0)
        for (_, mfn), ring in zip(self.rings, (self.tx, self.rx), strict=True):
            self.bus.domain.memory.write(Maddr(mfn * PAGE_SIZE), bytes(PAGE_SIZE))
            ring.req_prod = ring.rsp_cons = 0
            ring.__post_init__()
        self.bus.switch(self.vif, XenbusState.INITIALISING)
        self.connect()

    def fill(self, number: int, data: bytes, offset: int = 0) -> int:
        """Write into one of the buffers; its reference."""
        ref, mfn = self.buffers[number]
        self.bus.domain.memory.write(Maddr(mfn * PAGE_SIZE + offset), data)
        return ref

    def contents(self, number: int, size: int) -> bytes:
        _, mfn = self.buffers[number]
        return self.bus.domain.memory.read(Maddr(mfn * PAGE_SIZE), size)

    def post(self, *numbers: int) -> None:
        """Give the backend buffers to receive into."""
        for number in numbers:
            self.rx.put(RX_REQUEST.pack(number, self.buffers[number][0]))
        self.notify(self.rx_port)

    def notify(self, port: int) -> None:
        event_channel.send(self.bus.domain, port)
        self.bus.settle()

    def slot(self, ref: int, size: int, flags: int = 0, offset: int = 0, id: int = 0) -> None:
        self.tx.put(TX_REQUEST.pack(ref, offset, flags, id, size))

    def send(self, packet: bytes, flags: int = 0, gso: tuple[int, int] | None = None) -> list[int]:
        """Send a packet in pages; the status of each response."""
        pieces = [packet[at : at + PAGE_SIZE] for at in range(0, len(packet), PAGE_SIZE)]
        for number, piece in enumerate(pieces):
            more = NETTXF_more_data if number < len(pieces) - 1 else 0
            size = len(piece) if number else len(packet)
            extra = NETTXF_extra_info if gso and not number else 0
            self.slot(self.fill(number, piece), size, flags | more | extra, id=number)
            if extra:
                self.tx.put(EXTRA.pack(XEN_NETIF_EXTRA_TYPE_GSO, 0, *gso, 0))
        return self.go()

    def go(self) -> list[int]:
        """Send the event for transmit requests; the status of each response."""
        self.notify(self.tx_port)
        found = []
        while len(found) <= self.tx.slots and (response := self.tx.take(TX_RESPONSE.size)):
            found.append(TX_RESPONSE.unpack(response)[1])
        return found

    def sent(self) -> list[bytes]:
        return [packet for _, packet in self.vif.take_sent()]

    def receive(self, packet: bytes) -> list[tuple[int, int, int, int]]:
        """Have a packet come from the wire; what the guest finds in its ring."""
        self.vif.feed(self.bus.domain, packet)
        return self.received()

    def received(self) -> list[tuple[int, int, int, int]]:
        self.vif.pump(self.bus.domain)
        found = []
        while response := self.rx.take(RX_RESPONSE.size):
            found.append(RX_RESPONSE.unpack(response))
        return found

    def mfn(self, number: int) -> Mfn:
        return self.buffers[number][1]
