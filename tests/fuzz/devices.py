"""Hostile frontends: ``python -m fuzz.devices --steps 200000``, with tests/ on the path.

A guest does random things to a device of dom0's: it writes nodes and states, rings and grants,
sends and closes ports, and lets time pass. It never does anything that a guest cannot. Nothing may
raise an exception, the audit must find nothing, and nothing may grow without an end. A failure is
told with the seed and the number of its step, which lead to it again.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import struct
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from busfakes import DEVICE_FRAMES, FIRST_REF, Bus
from grantfakes import grant
from xenemu.abi.grant_table import GTF_permit_access, GTF_readonly
from xenemu.abi.io.blkif import blkif_request, blkif_request_indirect, blkif_request_segment
from xenemu.abi.io.ninepfs import IN_CONS, IN_PROD, OUT_PROD, REF, RING_ORDER
from xenemu.abi.io.ring import REQ_EVENT, REQ_PROD, RSP_EVENT, RSP_PROD, SLOTS
from xenemu.dom0.block import Block
from xenemu.dom0.bus import BusBackend
from xenemu.dom0.control import Control
from xenemu.dom0.disk import BlocksInMemory, FileDisk, OverlayDisk
from xenemu.dom0.p9 import MAX_MESSAGE, ByteRing, ServerError, Share
from xenemu.dom0.p9_messages import HEADER, Export, T
from xenemu.dom0.verbs import VERBS
from xenemu.errors import XenError
from xenemu.hv import event_channel
from xenemu.hv.audit import audit
from xenemu.hv.state.domain import DOM0
from xenemu.pv.personality import PV64
from xenemu.x86.paging import PAGE_SIZE, Maddr

FRAMES = 40  # of the guest's, that it grants
REFS = range(FIRST_REF, FIRST_REF + FRAMES)
AUDIT_EVERY = 50
STATES = (*("1", "3", "3", "4", "5", "6") * 4, "2", "7", "8", "0", "x", "", "-1", "1" * 30)
STRANGE = ("", "x", "-1", "0", "4294967295", "99999999999999999999", "\0", "7 ", " 3", "\xff")
LIFE = 2000  # steps until there is a new guest; after fewer if its device is gone for good
GONE = 20


@dataclass
class Hostile:
    """A guest with one device, and the numbers from a seed that say what it does."""

    random: random.Random
    device: BusBackend
    request: Callable[[Hostile], bytes]  # what might be in a slot of the device's ring
    numbers: Sequence[str]  # nodes of the frontend's that are numbers
    texts: dict[str, Sequence[str]]  # and others, with their values
    ports: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.control = Control(VERBS)
        self.bus = Bus([self.control, self.device], pages=128)
        self.control.current, self.control.personality = self.bus.current, PV64
        for number, ref in enumerate(REFS):
            grant(self.bus.domain, ref, DEVICE_FRAMES + number, to=DOM0)
        self.ports = [self.bus.port() for _ in range(4)]

    @property
    def memory(self):  # type: ignore[no-untyped-def]
        return self.bus.domain.memory

    def step(self) -> None:
        """Do one thing."""
        usual = (self.put, self.connect) if self.device.shared else (self.connect,)
        rare = (self.write_number, self.write_text, self.switch, self.scribble, self.reopen)
        self.random.choice((*usual * 3, *rare, self.regrant, self.send, self.wait))()
        if self.random.random() < 0.01:
            self.toolstack()
        self.control.pump(self.bus.domain)
        self.control.take_sent()
        self.bus.store.wake(self.bus.domain)
        self.bus.settle(self.random.choice((0, 0, 1, 1000, 10**6)))
        self.bus.ring.connection.events.clear()
        self.bus.ring.connection.undelivered.clear()
        self.bus.ring.connection.undelivered_bytes = 0

    def toolstack(self) -> None:
        """Take the device away, or give it back."""
        request = {"do": "detach" if self.device.is_plugged else "attach", "within": 1}
        if self.device.is_plugged and self.random.random() < 0.2:
            request |= {"force": "yes"}
        line = json.dumps(request | {"device": self.device.name}).encode()
        self.control.feed(self.bus.domain, b"1 " + line)

    def write(self, name: str, value: str) -> None:
        with suppress(XenError):  # a node that is gone, or too many of them
            path = f"{self.device.frontend}/{name}"
            self.bus.store.write(self.bus.session, path, value.encode("latin-1"))

    def write_number(self) -> None:
        value = self.random.choice((*STRANGE, *map(str, REFS), *map(str, self.ports)))
        self.write(self.random.choice(self.numbers), value)

    def write_text(self) -> None:
        name = self.random.choice([*self.texts])
        self.write(name, self.random.choice(self.texts[name]))
        if self.random.random() < 0.02:
            with suppress(XenError):
                self.bus.store.rm(self.bus.session, f"{self.device.frontend}/{name}")

    def switch(self) -> None:
        self.write("state", self.random.choice(STATES))

    def connect(self) -> None:
        """Do what a good frontend does, for the most part."""
        if self.device.shared and self.random.random() < 0.8:
            return
        for name, values in self.texts.items():
            if self.random.random() < 0.7:
                self.write(name, self.random.choice(values[:2]))
        for number, name in enumerate(self.numbers):
            if "ring-ref" in name:
                ref = self.random.choice(REFS)
                self.write(name, str(ref))
                if ref not in self.bus.domain.grants.active:
                    frame = DEVICE_FRAMES + self.random.randrange(FRAMES)
                    grant(self.bus.domain, ref, frame, to=DOM0)
                    self.memory.write(Maddr(frame * PAGE_SIZE), bytes(SLOTS))
            elif "event-channel" in name:
                self.write(name, str(self.ports[number % len(self.ports)]))
        for state in ("6", "1", "3"):
            self.write("state", state)
            self.bus.store.wake(self.bus.domain)
            self.bus.settle()

    def put(self) -> None:
        """Put a request where a ring may be, and show it."""
        for pages in self.device.shared or ():
            start = pages.mfns[0] * PAGE_SIZE
            prod = self.memory.read_uint(Maddr(start + REQ_PROD), 4)
            request = self.request(self)
            offset = SLOTS + prod % 32 * len(request)
            if offset + len(request) <= PAGE_SIZE:
                self.memory.write(Maddr(start + offset), request)
            self.memory.write_uint(Maddr(start + REQ_PROD), 4, prod + self.random.choice((1, 1, 2)))
            rsp = self.memory.read_uint(Maddr(start + RSP_PROD), 4)
            self.memory.write_uint(Maddr(start + RSP_EVENT), 4, rsp + 1)
        self.send()

    def scribble(self) -> None:
        """Store something in a granted page, or in an index of a ring."""
        mfn = DEVICE_FRAMES + self.random.randrange(FRAMES)
        index = self.random.choice((REQ_PROD, REQ_EVENT, RSP_PROD, RSP_EVENT))
        offset = self.random.choice((index, self.random.randrange(PAGE_SIZE - 8)))
        value = self.random.choice((0, 1, 31, 33, 0xFFFF_FFFF, self.random.getrandbits(32)))
        self.memory.write_uint(Maddr(mfn * PAGE_SIZE + offset), 4, value)

    def regrant(self) -> None:
        """Change a grant, also one that is in use."""
        flags = self.random.choice((GTF_permit_access,) * 6 + (GTF_permit_access | GTF_readonly, 0))
        good = DEVICE_FRAMES + self.random.randrange(FRAMES)
        frame = self.random.choice((good,) * 9 + (0, 5, 1 << 30))
        entry = self.random.choice(REFS)
        if entry not in self.bus.domain.grants.active or self.random.random() < 0.1:
            grant(self.bus.domain, entry, frame, flags, to=DOM0)

    def send(self) -> None:
        with suppress(XenError):
            event_channel.send(self.bus.domain, self.random.choice(self.ports))

    def reopen(self) -> None:
        """Close a port, and get another, which may be the same."""
        number = self.random.randrange(len(self.ports))
        with suppress(XenError):
            event_channel.close(self.bus.domain, self.ports[number])
        self.ports[number] = self.bus.port()

    def wait(self) -> None:
        self.bus.settle(self.random.choice((1, 10_000, 10**7)))

    def size(self) -> int:
        """How much dom0 has for the guest, in objects."""
        events = self.bus.domain.events
        kept = (self.device.ports, self.device.shared, self.bus.domain.timers.deadlines_ns)
        mapped = self.bus.domain.grants.dom0
        return sum(map(len, (*kept, events.dom0_ports, mapped.home, self.bus.store.nodes)))


def block_request(guest: Hostile) -> bytes:
    """A request to a disk: sound, or wrong in some place, or nothing but noise."""
    draw = guest.random
    segments = [
        blkif_request_segment(
            draw.choice((*REFS, *REFS, 0, 4_000_000_000)),
            first := draw.choice((*(0,) * 30, 1, 7, 8, 255)),
            draw.choice((*(7,) * 30, first, 0, 8, 255)),
        ).pack(8)
        for _ in range(11)
    ]
    device = guest.device
    assert isinstance(device, Block)
    width = device.width
    count = draw.choice((0, 1, 1, 1, 2, 5, 11, 12, 255))
    sector = draw.choice((*range(0, 256, 8), 100, 500, 511, 512, 1 << 63, (1 << 64) - 1))
    kind = draw.randrange(10)
    if kind == 0:
        return draw.randbytes(blkif_request.sizeof(width))
    if kind == 1:
        refs = struct.pack("<10I", *(draw.choice((*REFS, 0, 77777)) for _ in range(10)))
        count = draw.choice((0, 1, 12, 255, 256, 257, 65535))
        operation = draw.choice((0, 1, 1, 2, 6))
        refs = refs if width == 4 else refs[:32]
        head = blkif_request_indirect(6, operation, count, 1, sector, 0, refs).pack(width)
        return head.ljust(blkif_request.sizeof(width))
    operation = draw.choice((0, 0, 1, 1, 2, 3, 4, 5, 9))
    request_id, packed = draw.getrandbits(64), b"".join(segments)
    return blkif_request(operation, count, 0, request_id, sector, packed).pack(width)


QUEUES = ("", "queue-0/", "queue-1/", "queue-2/", "queue-3/")
NAMES = ("event-channel", "ring-ref", "ring-ref0", "ring-ref1", "ring-ref2")


def block_guest(draw: random.Random) -> Hostile:
    """A guest with a disk of whose blocks some cannot be read, perhaps a read-only one."""
    size = 1 << 18
    blocks = BlocksInMemory({number: bytes(4096) for number in range(size >> 12) if number % 16})
    disk = OverlayDisk(FileDisk(-1, size), blocks)
    device = Block(
        51712,
        disk=disk,
        vdev="xvda",
        read_only=draw.random() < 0.2,
        sector_size=draw.choice((512, 512, 4096)),
        persistent=draw.random() < 0.4,
    )
    texts = {
        "protocol": ("x86_64-abi", "x86_32-abi", "x86_64-abi", "arm-abi", ""),
        "multi-queue-num-queues": ("1", "4", "2", "5", *STRANGE),
        "ring-page-order": ("0", "0", "0", "1", "4", "5", *STRANGE),
        "feature-persistent": ("0", "1", *STRANGE),
    }
    numbers = [queue + name for queue in QUEUES for name in NAMES]
    return Hostile(draw, device, block_request, numbers, texts)


@dataclass
class RandomServer:
    """Answers with noise of any size, and now and then not at all."""

    random: random.Random

    def ask(self, request: bytes, before: int) -> bytes:
        if self.random.random() < 0.002:
            raise ServerError("it has gone")
        kind = self.random.choice((T.RLERROR, request[4] + 1 & 0xFF, T.GETATTR + 1))
        size = self.random.choice((7, 7, 11, 100, 200, 4096, 5000, MAX_MESSAGE))
        return HEADER.pack(size, kind, 1) + self.random.randbytes(size - HEADER.size)

    def leave_if(self, leaves: Callable[[], bool]) -> None:
        """It never waits."""


class HostileSharer(Hostile):
    """A guest with a share, whose rings are of bytes."""

    def connect(self) -> None:
        for ref in REFS:
            place = Maddr((DEVICE_FRAMES + ref - FIRST_REF) * PAGE_SIZE)
            refs = self.random.sample(REFS[-9:], 8)  # seldom the page of a ring itself
            if self.random.random() < (0.01 if self.device.shared else 0.8):
                self.memory.write(place, bytes(RING_ORDER))
                self.memory.write_uint(Maddr(place + RING_ORDER), 4, self.random.choice((1, 2, 3)))
                self.memory.write(Maddr(place + REF), struct.pack("<8I", *refs))
        super().connect()

    def put(self) -> None:
        assert isinstance(self.device, Share)
        for ring in self.device.rings:
            message = self.request(self)
            prod = self.index(ring, OUT_PROD)
            start = prod % ring.size
            first = message[: ring.size - start]
            ring.data.write(self.memory, ring.size + start, first)
            ring.data.write(self.memory, ring.size, message[len(first) : len(first) + start])
            more = self.random.choice((len(message),) * 60 + (3, ring.size + 1))
            ring.interface.write_uint(self.memory, OUT_PROD, prod + more)
            if self.random.random() < 0.9:
                ring.interface.write_uint(self.memory, IN_CONS, self.index(ring, IN_PROD))
        self.send()

    def index(self, ring: ByteRing, offset: int) -> int:
        return ring.interface.read_uint(self.memory, offset)

    def size(self) -> int:
        assert isinstance(self.device, Share)
        waiting = [len(answer) >> 12 for ring in self.device.rings for _, answer in ring.answers]
        return super().size() + sum(waiting) + len(waiting)


def share_request(guest: Hostile) -> bytes:
    """A message of 9P: sound, or cut off, or with a wrong size, or nothing but noise."""
    draw = guest.random
    body = draw.randbytes(draw.choice((0, 4, 8, 12, 20, 60, 2000)))
    if draw.random() < 0.3:
        body = struct.pack("<IIHH", 1, 2, draw.choice((0, 1, 65535)), draw.choice((0, 3))) + body
    size = HEADER.size + len(body)
    if draw.random() < 0.02:
        size = draw.choice((0, 6, 1 << 15, 1 << 31, 0xFFFF_FFFF))
    return HEADER.pack(size, draw.choice((*T, draw.randrange(256))), draw.randrange(4)) + body


def share_guest(draw: random.Random) -> Hostile:
    """A guest with a share that it may perhaps change."""
    export = Export(b"/srv", draw.random() < 0.5, draw.choice((None, 1000)))
    device = Share(0, "root", export, RandomServer(draw))
    texts = {"version": ("1", "1", "2", *STRANGE), "num-rings": ("1", "2", "8", "9", *STRANGE)}
    numbers = [f"{name}{ring}" for ring in range(4) for name in ("event-channel-", "ring-ref")]
    return HostileSharer(draw, device, share_request, numbers, texts)


GUESTS: dict[str, Callable[[random.Random], Hostile]] = {
    "block": block_guest,
    "share": share_guest,
}


class Failed(AssertionError):
    """The number of the step, and what is wrong."""


def fuzz(kind: str, seed: int, steps: int) -> int:
    """Do so many steps; the most that dom0 ever had. Failed."""
    most = ends = 0
    for number in range(steps):
        if number >= ends:
            guest = GUESTS[kind](random.Random(f"{kind} {seed} {number}"))
            ends = number + LIFE
        try:
            guest.step()
            faults = [] if number % AUDIT_EVERY else audit(guest.bus.domain)
        except Exception:
            faults = [traceback.format_exc()]
        if faults:
            raise Failed(f"{kind}, seed {seed}, step {number}: {faults[0]}")
        most = max(most, guest.size())
        if guest.device.gone:
            ends = min(ends, number + GONE)
    return most


def main() -> int:
    """Fuzz each kind of device."""
    parser = argparse.ArgumentParser(prog="python -m fuzz.devices", description=fuzz.__doc__)
    parser.add_argument("--kind", action="append", choices=[*GUESTS], help="default: all")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--steps", type=int, default=200_000)
    options = parser.parse_args()
    for kind in options.kind or GUESTS:
        try:
            most = fuzz(kind, options.seed, options.steps)
        except Failed as failed:
            print(failed)
            return 1
        gc.collect()
        print(f"{kind}: {options.steps} steps, nothing fails; dom0 had at most {most} objects")
    return 0


if __name__ == "__main__":
    sys.exit(main())
