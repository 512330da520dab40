"""A hostile netfront: random slots, indices, grants, nodes and states, and packets from the wire.

``python -m netfuzz 200000 SEED`` takes so many steps, with tests/ on the path.
"""

from __future__ import annotations

import random
import resource
import sys

from grantfakes import grant
from netfakes import Front
from packets import frame, tcp, udp
from xenemu.abi.io.netif import EXTRA, RX_REQUEST, TX_REQUEST
from xenemu.dom0.net import QUEUE_LIMIT
from xenemu.hv.audit import audit
from xenemu.hv.snapshot import DomainSnapshot

NODES = (
    "tx-ring-ref", "rx-ring-ref", "event-channel-tx", "event-channel-rx", "event-channel",
    "request-rx-copy", "feature-sg", "multi-queue-num-queues", "state", "queue-0/tx-ring-ref",
)  # fmt: skip
VALUES = ("", "x", "-1", "0", "1", "2", "7", "4294967295", "99999999999999999999", " 3", "3x")
MOST_SEGMENTS = 1024 * (1 << 8)  # bytes that the headers of one packet's segments may add


class Hostile:
    """A guest with an interface that it abuses; `step` does one random thing."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.front = Front()
        self.disabled = 0
        self.connected = 0
        self.actions = (
            *[self.slots] * 8, *[self.buffers] * 4, *[self.from_wire] * 4, *[self.packet] * 4,
            self.index, self.grants, self.node, self.state, self.settle, self.empty, self.keep,
            *[self.reconnect] * 2,
        )  # fmt: skip

    def step(self) -> None:
        self.random.choice(self.actions)()
        front = self.front
        front.vif.pump(front.bus.domain)
        front.bus.settle()
        assert front.vif.queued <= QUEUE_LIMIT + (64 << 10)
        assert front.vif.queued == sum(map(len, front.vif.queue))
        assert front.vif.unsent <= QUEUE_LIMIT + (64 << 10) + MOST_SEGMENTS
        assert len(front.vif.ports) <= 2 and len(front.vif.shared) <= 2

    def ref(self) -> int:
        known = [ref for ref, _ in (*self.front.rings, *self.front.buffers)]
        return self.random.choice([*known, 0, 1, 511, 512, self.random.getrandbits(32)])

    def number(self, bits: int) -> int:
        top = (1 << bits) - 1
        near = self.random.choice([0, 1, 14, 100, 1000, 4096, top])
        wild = self.random.getrandbits(bits)
        return self.random.choice([near, max(0, near - 1), min(top, near + 1), wild])

    def slots(self) -> None:
        """A few transmit slots of any content: requests, extra segments, noise."""
        for _ in range(self.random.choice([1, 1, 2, 3, 25])):
            request = TX_REQUEST.pack(
                self.ref(), self.number(16), self.random.choice([0, 1, 4, 8, 9, 12, 15, 65535]),
                self.number(16), self.number(16),
            )  # fmt: skip
            extra = EXTRA.pack(
                self.random.choice([0, 1, 1, 1, 2, 5]), self.random.choice([0, 0, 1]),
                self.number(16), self.random.choice([1, 1, 2, 3]), 0,
            )  # fmt: skip
            noise = self.random.randbytes(12)
            self.front.tx.put(self.random.choice([request, request, extra, noise]))
        if self.has_port():
            self.front.notify(self.front.tx_port)

    def packet(self) -> None:
        """A packet that may be good, to be cut or completed."""
        version = self.random.choice([4, 6])
        make, protocol = self.random.choice([(tcp, 6), (udp, 17)])
        data = bytearray(frame(version, protocol, make(bytes(self.random.choice([0, 9, 9000])))))
        for _ in range(self.random.choice([0, 0, 1, 5])):
            data[self.random.randrange(min(80, len(data)))] = self.random.getrandbits(8)
        gso = self.random.choice([None, (1000, 1), (1000, 2), (1, 1), (9, 2)])
        if self.has_port():
            self.front.send(bytes(data), self.random.choice([0, 1, 3]), gso)

    def has_port(self) -> bool:
        return bool(self.front.vif.ports)

    def buffers(self) -> None:
        for _ in range(self.random.choice([1, 4, 30])):
            self.front.rx.put(RX_REQUEST.pack(self.number(16), self.ref()))
        if self.has_port():
            self.front.notify(self.front.rx_port)

    def from_wire(self) -> None:
        size = self.random.choice([0, 13, 14, 60, 1514, 4096, 4097, 60_000, 65_535, 70_000])
        for _ in range(self.random.choice([1, 1, 40])):
            self.front.vif.feed(self.front.bus.domain, bytes(size))

    def index(self) -> None:
        ring = self.random.choice([self.front.tx, self.front.rx])
        ring.set(self.random.choice([0, 4, 8, 12]), self.number(32))

    def grants(self) -> None:
        """Change a grant, perhaps while it is in use."""
        ref, mfn = self.random.choice([*self.front.rings, *self.front.buffers])
        flags = self.random.choice([0, 1, 1, 1, 5, 2, 3])
        grant(
            self.front.bus.domain, ref, self.random.choice([mfn, mfn, mfn, 0, 1 << 30]), flags,
            self.random.choice([0, 0, 0, 1, 7]),
        )  # fmt: skip

    def node(self) -> None:
        self.front.bus.put(self.front.vif, {self.random.choice(NODES): self.random.choice(VALUES)})

    def state(self) -> None:
        self.front.bus.put(self.front.vif, {"state": self.random.randrange(9)})

    def settle(self) -> None:
        self.front.bus.settle(self.random.randrange(10**9))

    def empty(self) -> None:
        self.front.sent()

    def keep(self) -> None:
        """Go back to where it was just now; seldom, as that takes long."""
        if self.random.random() < 0.1:
            current = self.front.bus.current
            current.domain = DomainSnapshot.of(current.domain).restore(current.domain)
            self.front.tx.domain = self.front.rx.domain = current.domain

    def reconnect(self) -> None:
        """A frontend that begins anew, or a new guest."""
        self.connected += self.has_port()
        self.disabled += self.front.vif.disabled
        faults = audit(self.front.bus.domain)
        assert faults == [], faults
        if self.front.vif.gone or self.random.random() < 0.05:
            self.front = Front()
        else:
            self.front.begin_anew()


def run(steps: int, seed: int) -> Hostile:
    """Take so many steps."""
    hostile = Hostile(seed)
    for _ in range(steps):
        hostile.step()
    return hostile


if __name__ == "__main__":
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = run(int(sys.argv[1]), int(sys.argv[2]))
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    print(f"clean; {found.connected} ends connected, {found.disabled} disabled; {grown} KiB grown")
