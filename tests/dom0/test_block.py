"""dom0/block: each kind of request, and what is wrong with some."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest

from busfakes import Bus, FrontRing
from grantfakes import state
from xenemu.abi.grant_table import GTF_permit_access, GTF_readonly, GTF_writing
from xenemu.abi.io.blkif import (
    BLKIF_OP_DISCARD,
    BLKIF_OP_FLUSH_DISKCACHE,
    BLKIF_OP_INDIRECT,
    BLKIF_OP_READ,
    BLKIF_OP_WRITE,
    BLKIF_OP_WRITE_BARRIER,
    blkif_request,
    blkif_request_discard,
    blkif_request_indirect,
    blkif_request_segment,
    blkif_response,
)
from xenemu.abi.io.ring import REQ_EVENT, REQ_PROD
from xenemu.abi.io.xenbus import XenbusState
from xenemu.dom0.block import DISCARD_NS, GATHER_NS, LATENCY_NS, MAX_PERSISTENT, NOTICE_NS, Block
from xenemu.encoding import decode, encode
from xenemu.hv import event_channel, grant_table
from xenemu.hv.audit import audit
from xenemu.hv.snapshot import DomainSnapshot
from xenemu.x86.paging import PAGE_SIZE, Maddr, Mfn

OKAY, ERROR, UNKNOWN = 0, -1, -2
SECTOR = 512
DISK_SIZE = 64 * PAGE_SIZE
CONTENT = bytes(range(256)) * (DISK_SIZE // 256)
Parts = tuple[int, int, int]  # a segment: its grant, its first sector and its last
PROTOCOLS = {8: "x86_64-abi", 4: "x86_32-abi"}


@dataclass
class ListDisk:
    """A disk in memory that remembers its flushes; `broken` makes it fail."""

    content: bytearray = field(default_factory=lambda: bytearray(CONTENT))
    log: list[str] = field(default_factory=list)
    broken: OSError | None = None

    @property
    def size(self) -> int:
        return len(self.content)

    def _do(self, what: str) -> None:
        if self.broken:
            raise self.broken
        self.log.append(what)

    def read(self, offset: int, views: Sequence[memoryview]) -> None:
        self._do("read")
        for view in views:
            view[:] = self.content[offset : offset + len(view)]
            offset += len(view)

    def write(self, offset: int, views: Sequence[memoryview]) -> None:
        self._do("write")
        for view in views:
            self.content[offset : offset + len(view)] = view
            offset += len(view)

    def discard(self, offset: int, size: int) -> None:
        self._do("discard")
        self.content[offset : offset + size] = bytes(size)

    def file_at(self, offset: int, size: int, to_write: bool) -> int | None:
        return None

    def flush(self) -> None:
        self._do("flush")

    def save(self) -> object:
        return bytes(self.content)

    def restore(self, state: object) -> None:
        assert isinstance(state, bytes)
        self.content[:] = state


@dataclass
class Guest:
    """A frontend with some queues."""

    width: int = 8
    queues: int = 1
    pages: int = 1
    persistent: bool = False
    read_only: bool = False
    sector_size: int = SECTOR
    nodes: dict[str, str | int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.disk = ListDisk()
        self.block = Block(
            51712,
            disk=self.disk,
            vdev="xvda",
            read_only=self.read_only,
            sector_size=self.sector_size,
            persistent=self.persistent,
        )
        self.bus = Bus([self.block], width=self.width)
        self.connect()

    def connect(self) -> None:
        self.rings, self.ports = [], []
        nodes: dict[str, str | int] = {"protocol": PROTOCOLS[self.width]}
        if self.persistent:
            nodes["feature-persistent"] = 1
        if self.queues > 1:
            nodes["multi-queue-num-queues"] = self.queues
        if self.pages > 1:
            nodes["ring-page-order"] = self.pages.bit_length() - 1
        for number in range(self.queues):
            place = f"queue-{number}/" if self.queues > 1 else ""
            shared = [self.bus.share() for _ in range(self.pages)]
            slot = blkif_request.sizeof(self.width)
            self.rings.append(FrontRing(self.bus.domain, [mfn for _, mfn in shared], slot))
            self.ports.append(self.bus.port())
            names = ["ring-ref"] if self.pages == 1 else [f"ring-ref{n}" for n in range(self.pages)]
            nodes |= {place + name: ref for name, (ref, _) in zip(names, shared, strict=True)}
            nodes[f"{place}event-channel"] = self.ports[-1]
        self.bus.put(self.block, nodes | self.nodes)
        self.bus.switch(self.block, XenbusState.INITIALISED)

    def submit(self, request: bytes, queue: int = 0) -> None:
        self.rings[queue].put(request)
        event_channel.send(self.bus.domain, self.ports[queue])

    def answer(self, queue: int = 0) -> tuple[int, int, int] | None:
        """The next response: its id, operation and status."""
        raw = self.rings[queue].take(blkif_response.sizeof(self.width))
        if raw is None:
            return None
        response = blkif_response.unpack(self.width, raw)
        return response.id, response.operation, response.status

    def ask(self, request: bytes, queue: int = 0) -> tuple[int, int, int] | None:
        self.submit(request, queue)
        self.bus.settle(10 * LATENCY_NS)
        assert audit(self.bus.domain) == []
        return self.answer(queue)

    def page(self, data: bytes = b"", flags: int = GTF_permit_access) -> tuple[int, Mfn]:
        ref, mfn = self.bus.share(flags)
        self.bus.domain.memory.write(Maddr(mfn * PAGE_SIZE), data)
        return ref, mfn

    def bytes_of(self, mfn: Mfn, start: int = 0, size: int = PAGE_SIZE) -> bytes:
        return self.bus.domain.memory.read(Maddr(mfn * PAGE_SIZE + start), size)

    def rw(
        self, operation: int, sector: int, *segments: tuple[int, int, int], **more: int
    ) -> bytes:
        packed = segments_of(self.width, segments)
        count = more.get("count", len(segments))
        packed = packed[: 11 * 8].ljust(11 * 8, b"\0")
        return blkif_request(operation, count, 0, more.get("id", 7), sector, packed).pack(
            self.width
        )

    def indirect(
        self, operation: int, sector: int, segments: Sequence[Parts], **more: int
    ) -> bytes:
        refs = []
        for first in range(0, len(segments), 512):
            ref, _ = self.page(segments_of(self.width, segments[first : first + 512]))
            refs.append(ref)
        packed = struct.pack(f"<{len(refs)}I", *refs).ljust(32 if self.width == 8 else 40, b"\0")
        count = more.get("count", len(segments))
        return blkif_request_indirect(
            BLKIF_OP_INDIRECT, operation, count, 9, sector, 0, packed
        ).pack(self.width)


def segments_of(width: int, segments: Sequence[Parts]) -> bytes:
    return b"".join(blkif_request_segment(*segment).pack(width) for segment in segments)


@pytest.fixture(params=[8, 4], ids=["x86_64-abi", "x86_32-abi"])
def guest(request: pytest.FixtureRequest) -> Guest:
    return Guest(request.param)


def test_the_nodes_are_those_of_blkback() -> None:
    guest = Guest()
    names = guest.bus.store.directory(guest.bus.session, guest.block.backend)
    seen = {name: guest.bus.seen(guest.block, name) for name in names}
    assert seen.pop("frontend") == guest.block.frontend
    assert seen == {
        **{"frontend-id": "1", "online": "1", "state": "4", "params": "", "dev": "xvda"},
        **{"script": "/etc/xen/scripts/block", "removable": "0", "bootable": "1", "type": "phy"},
        **{"mode": "w", "device-type": "disk", "discard-enable": "1", "specification": "xen"},
        **{"physical-device": "7:0", "physical-device-path": "/dev/loop0"},
        **{"hotplug-status": "connected", "feature-max-indirect-segments": "256"},
        **{"multi-queue-max-queues": "4", "max-ring-page-order": "4"},
        **{"feature-flush-cache": "1", "feature-barrier": "1", "feature-persistent": "0"},
        **{"discard-granularity": "4096", "discard-alignment": "0", "discard-secure": "0"},
        **{"feature-discard": "1", "sectors": str(DISK_SIZE // 512), "info": "0"},
        **{"sector-size": "512", "physical-sector-size": "512"},
    }


def test_a_disk_of_large_sectors_counts_in_small_ones() -> None:
    guest = Guest(sector_size=4096)
    nodes = [guest.bus.seen(guest.block, f"{name}sector-size") for name in ("", "physical-")]
    assert nodes == ["4096", "4096"]
    assert guest.bus.seen(guest.block, "sectors") == str(DISK_SIZE // 512)
    ref, mfn = guest.page()
    assert guest.ask(guest.rw(BLKIF_OP_READ, 8, (ref, 0, 7))) == (7, BLKIF_OP_READ, OKAY)
    assert guest.bytes_of(mfn) == CONTENT[4096:8192]
    for sector, first, last in ((7, 0, 7), (8, 0, 6), (8, 1, 7)):
        assert guest.ask(guest.rw(BLKIF_OP_READ, sector, (ref, first, last))) == (7, 0, ERROR)


def test_sectors_are_read_to_where_they_belong(guest: Guest) -> None:
    (ref, mfn), (second, other) = guest.page(), guest.page(b"\xee" * PAGE_SIZE)
    guest.disk.content[3 * SECTOR : 9 * SECTOR] = bytes(
        byte for sector in range(6) for byte in [sector + 1] * SECTOR
    )
    request = guest.rw(BLKIF_OP_READ, 3, (ref, 4, 7), (second, 2, 3))
    assert guest.ask(request) == (7, BLKIF_OP_READ, OKAY)
    assert guest.bytes_of(mfn, 4 * SECTOR, 4 * SECTOR) == guest.disk.content[1536 : 7 * SECTOR]
    expected = b"\xee" * 1024 + guest.disk.content[7 * SECTOR : 9 * SECTOR] + b"\xee" * 2048
    assert guest.bytes_of(other) == expected


def test_sectors_are_written(guest: Guest) -> None:
    (ref, _), (second, _) = guest.page(b"a" * PAGE_SIZE), guest.page(b"b" * PAGE_SIZE)
    request = guest.rw(BLKIF_OP_WRITE, 5, (ref, 7, 7), (second, 0, 1))
    assert guest.ask(request) == (7, BLKIF_OP_WRITE, OKAY)
    assert guest.disk.content[: 5 * SECTOR] == CONTENT[: 5 * SECTOR]
    assert guest.disk.content[5 * SECTOR : 8 * SECTOR] == b"a" * 512 + b"b" * 1024
    assert guest.disk.content[8 * SECTOR :] == CONTENT[8 * SECTOR :]


def test_a_page_with_code_is_read_into_and_its_translations_go() -> None:
    guest = Guest()
    ref, mfn = guest.page()
    memory = guest.bus.domain.memory
    memory.code[mfn] = 1
    memory.stale_code.clear()
    guest.ask(guest.rw(BLKIF_OP_WRITE, 0, (ref, 0, 7)))
    assert memory.stale_code == set()
    guest.ask(guest.rw(BLKIF_OP_READ, 0, (ref, 0, 0)))
    assert memory.stale_code == {mfn}


def test_flushes_and_barriers(guest: Guest) -> None:
    ref, _ = guest.page(b"x" * PAGE_SIZE)
    for operation, segments, log in (
        (BLKIF_OP_FLUSH_DISKCACHE, (), ["flush"]),
        (BLKIF_OP_FLUSH_DISKCACHE, ((ref, 0, 0),), ["write", "flush"]),
        (BLKIF_OP_WRITE_BARRIER, ((ref, 0, 0),), ["flush", "write", "flush"]),
        (BLKIF_OP_WRITE_BARRIER, (), ["flush", "flush"]),
    ):
        guest.disk.log.clear()
        assert guest.ask(guest.rw(operation, 0, *segments)) == (7, operation, OKAY)
        assert guest.disk.log == log


def test_discard(guest: Guest) -> None:
    request = blkif_request_discard(BLKIF_OP_DISCARD, 0, 0, 5, 8, 16).pack(guest.width)
    assert guest.ask(request) == (5, BLKIF_OP_DISCARD, OKAY)
    assert guest.disk.content[8 * SECTOR : 24 * SECTOR] == bytes(16 * SECTOR)
    assert guest.disk.content[24 * SECTOR :] == CONTENT[24 * SECTOR :]


def test_indirect_segments(guest: Guest) -> None:
    pages = [guest.page() for _ in range(30)]
    request = guest.indirect(BLKIF_OP_READ, 16, [(ref, 0, 7) for ref, _ in pages])
    assert guest.ask(request) == (9, BLKIF_OP_READ, OKAY)
    for n, (_, mfn) in enumerate(pages):
        assert guest.bytes_of(mfn) == CONTENT[(n + 2) * PAGE_SIZE : (n + 3) * PAGE_SIZE]
    request = guest.indirect(BLKIF_OP_WRITE, 0, [(ref, 0, 7) for ref, _ in pages])
    assert guest.ask(request) == (9, BLKIF_OP_WRITE, OKAY)
    size = 30 * PAGE_SIZE
    assert guest.disk.content[:size] == CONTENT[2 * PAGE_SIZE : 2 * PAGE_SIZE + size]


BAD_SEGMENTS = {
    "past the page": (0, 8),
    "backwards": (5, 4),
    "far past": (0, 255),
}


@pytest.mark.parametrize("sectors", BAD_SEGMENTS.values(), ids=BAD_SEGMENTS)
def test_a_segment_is_within_its_page(guest: Guest, sectors: tuple[int, int]) -> None:
    ref, _ = guest.page()
    for operation in (BLKIF_OP_READ, BLKIF_OP_WRITE):
        refused(guest, guest.rw(operation, 0, (ref, *sectors)), (7, operation, ERROR))
        refused(guest, guest.indirect(operation, 0, [(ref, *sectors)]), (9, operation, ERROR))


def refused(guest: Guest, request: bytes, answer: tuple[int, int, int]) -> None:
    """The request gets this answer, and nothing else changes but the ring and the clock."""
    before = state(guest.bus.domain)[1:]  # type: ignore[index]
    content = bytes(guest.disk.content)
    assert guest.ask(request) == answer
    assert guest.disk.content == content
    assert state(guest.bus.domain)[1:] == before  # type: ignore[index]
    assert guest.block.pending == type(guest.block.pending)()


def test_what_is_no_request_is_refused(guest: Guest) -> None:
    ref, _ = guest.page()
    last = DISK_SIZE // SECTOR
    rw, whole = guest.rw, (ref, 0, 7)
    discard = [
        blkif_request_discard(BLKIF_OP_DISCARD, 0, 0, 5, sector, count).pack(guest.width)
        for sector, count in ((last, 1), (0, last + 1), (1 << 63, 1 << 63), (0, (1 << 64) - 1))
    ]
    for request, answer in (
        (rw(BLKIF_OP_READ, 0), (7, BLKIF_OP_READ, ERROR)),
        (rw(BLKIF_OP_WRITE, 0, whole, count=12), (7, BLKIF_OP_WRITE, ERROR)),
        (rw(BLKIF_OP_READ, 0, whole, count=255), (7, BLKIF_OP_READ, ERROR)),
        (rw(BLKIF_OP_READ, last - 7, whole), (7, BLKIF_OP_READ, ERROR)),
        (rw(BLKIF_OP_WRITE, (1 << 64) - 1, whole), (7, BLKIF_OP_WRITE, ERROR)),
        (rw(BLKIF_OP_FLUSH_DISKCACHE, last, whole), (7, BLKIF_OP_FLUSH_DISKCACHE, ERROR)),
        (rw(4, 0, whole), (7, 4, UNKNOWN)),
        (rw(99, 0, whole), (7, 99, UNKNOWN)),
        (guest.indirect(BLKIF_OP_FLUSH_DISKCACHE, 0, [whole]), (9, 3, ERROR)),
        (guest.indirect(BLKIF_OP_INDIRECT, 0, [whole]), (9, BLKIF_OP_INDIRECT, ERROR)),
        (guest.indirect(BLKIF_OP_READ, 0, []), (9, BLKIF_OP_READ, ERROR)),
        (guest.indirect(BLKIF_OP_READ, 0, [whole], count=257), (9, BLKIF_OP_READ, ERROR)),
        (guest.indirect(BLKIF_OP_READ, 0, [whole], count=65535), (9, BLKIF_OP_READ, ERROR)),
        *((request, (5, BLKIF_OP_DISCARD, ERROR)) for request in discard),
    ):
        refused(guest, request, answer)


def test_wild_grants_are_refused(guest: Guest) -> None:
    good, _ = guest.page()
    only_read, mfn = guest.page(flags=GTF_permit_access | GTF_readonly)
    for ref in (0, 999, 4_000_000_000, only_read):
        refused(guest, guest.rw(BLKIF_OP_READ, 0, (good, 0, 7), (ref, 0, 7)), (7, 0, ERROR))
    table = [(good, 0, 7)]
    request = guest.indirect(BLKIF_OP_READ, 0, table)
    wild = struct.pack("<I", 999)
    at = request.index(struct.pack("<I", guest.bus.shared + 15))
    refused(guest, request[:at] + wild + request[at + 4 :], (9, BLKIF_OP_READ, ERROR))
    # What is only to be read can be written to the disk.
    assert guest.ask(guest.rw(BLKIF_OP_WRITE, 0, (only_read, 0, 7))) == (7, 1, OKAY)
    assert guest.disk.content[:PAGE_SIZE] == guest.bytes_of(mfn)


def test_a_read_only_disk_is_only_read() -> None:
    guest = Guest(read_only=True)
    assert (guest.bus.seen(guest.block, "mode"), guest.bus.seen(guest.block, "info")) == ("r", "4")
    ref, _ = guest.page()
    for operation in (BLKIF_OP_WRITE, BLKIF_OP_WRITE_BARRIER, BLKIF_OP_FLUSH_DISKCACHE):
        refused(guest, guest.rw(operation, 0, (ref, 0, 7)), (7, operation, ERROR))
    refused(guest, guest.indirect(BLKIF_OP_WRITE, 0, [(ref, 0, 7)]), (9, BLKIF_OP_WRITE, ERROR))
    discard = blkif_request_discard(BLKIF_OP_DISCARD, 0, 0, 5, 0, 8).pack(8)
    refused(guest, discard, (5, BLKIF_OP_DISCARD, ERROR))
    assert guest.ask(guest.rw(BLKIF_OP_READ, 0, (ref, 0, 7))) == (7, 0, OKAY)


@pytest.mark.parametrize(
    ("error", "status"), [(OSError(5, "I/O"), ERROR), (OSError(95, "no holes"), UNKNOWN)]
)
def test_an_error_of_the_host_is_an_error_of_the_request(error: OSError, status: int) -> None:
    guest = Guest()
    ref, _ = guest.page()
    guest.disk.broken = error
    assert guest.ask(guest.rw(BLKIF_OP_WRITE, 0, (ref, 0, 7))) == (7, 1, status)
    assert guest.block.pending == type(guest.block.pending)()


def test_a_request_takes_its_time_and_no_page_meanwhile() -> None:
    guest = Guest()
    ref, _ = guest.page()
    guest.submit(guest.rw(BLKIF_OP_READ, 0, (ref, 0, 7)))
    guest.bus.settle()
    assert grant_table.read_entry(guest.bus.domain, ref).flags == GTF_permit_access
    assert (guest.answer(), len(list(guest.block.held(guest.bus.domain)))) == (None, 1)
    guest.bus.settle(LATENCY_NS + PAGE_SIZE - 1)
    assert guest.answer() is None
    guest.bus.settle(1)
    assert guest.answer() == (7, BLKIF_OP_READ, OKAY)
    assert grant_table.read_entry(guest.bus.domain, ref).flags == GTF_permit_access
    assert audit(guest.bus.domain) == []


def test_requests_come_without_events_while_one_is_under_way() -> None:
    guest = Guest(queues=2)
    ref, _ = guest.page()
    ring = guest.rings[0]
    guest.submit(guest.rw(BLKIF_OP_READ, 0, (ref, 0, 7)))
    guest.bus.settle()
    asks_at = ring.get(REQ_EVENT)
    ring.put(guest.rw(BLKIF_OP_READ, 0, (ref, 0, 7), id=8))
    guest.rings[1].put(guest.rw(BLKIF_OP_READ, 0, (ref, 0, 7), id=9))  # and no event
    assert asks_at <= 1  # so none is due for the second request
    guest.bus.settle(LATENCY_NS + PAGE_SIZE)
    assert (guest.answer(), guest.answer(), guest.answer(1)) == ((7, 0, OKAY), None, None)
    guest.bus.settle(LATENCY_NS + 2 * PAGE_SIZE)
    assert (guest.answer(), guest.answer(1)) == ((8, 0, OKAY), (9, 0, OKAY))
    assert [ring.get(REQ_EVENT) for ring in guest.rings] == [3, 2]


def test_requests_are_done_together_by_one_event() -> None:
    guest = Guest()
    ref, _ = guest.page()
    took_ns = 60 * PAGE_SIZE
    for _ in range(6):
        guest.rings[0].put(guest.indirect(BLKIF_OP_READ, 0, [(ref, 0, 7)] * 60))
    event_channel.send(guest.bus.domain, guest.ports[0])
    guest.bus.settle()
    assert 4 * took_ns < GATHER_NS < 5 * took_ns
    guest.bus.settle(LATENCY_NS + 5 * took_ns - 1)
    assert guest.answer() is None
    guest.bus.settle(1)
    assert [guest.answer() for _ in range(6)] == [(9, 0, OKAY)] * 5 + [None]
    guest.bus.settle(took_ns)
    assert guest.answer() == (9, 0, OKAY)


def test_discards_take_time_so_that_the_host_is_heard_between_them() -> None:
    guest = Guest()
    for number in (5, 6):
        request = blkif_request_discard(BLKIF_OP_DISCARD, 0, 0, number, 8, 16).pack(guest.width)
        guest.submit(request)
    guest.bus.settle(NOTICE_NS)
    assert guest.disk.log == ["discard"]
    guest.bus.settle(LATENCY_NS + DISCARD_NS - NOTICE_NS)
    assert guest.answer() == (5, BLKIF_OP_DISCARD, OKAY)
    assert guest.disk.log == ["discard"] * 2
    guest.bus.settle(LATENCY_NS + DISCARD_NS - 1)
    assert guest.answer() is None
    guest.bus.settle(1)
    assert guest.answer() == (6, BLKIF_OP_DISCARD, OKAY)


def test_the_event_comes_with_the_answer() -> None:
    guest = Guest()
    ref, _ = guest.page()
    guest.submit(guest.rw(BLKIF_OP_READ, 0, (ref, 0, 7)))
    guest.bus.settle()
    assert not guest.bus.take_event(guest.ports[0])
    guest.bus.settle(10 * LATENCY_NS)
    assert guest.bus.take_event(guest.ports[0])


def test_several_queues_of_several_pages() -> None:
    guest = Guest(queues=4, pages=4)
    ref, _ = guest.page()
    for n in range(200):
        for queue in range(4):
            answer = guest.ask(guest.rw(BLKIF_OP_READ, n, (ref, 0, 0), id=n), queue)
            assert answer == (n, BLKIF_OP_READ, OKAY)
    assert {ring.slots for ring in guest.rings} == {128}


def test_persistent_grants_stay_mapped_until_the_frontend_closes() -> None:
    guest = Guest(persistent=True)
    ref, mfn = guest.page()
    for _ in range(3):
        assert guest.ask(guest.rw(BLKIF_OP_READ, 0, (ref, 0, 7))) == (7, 0, OKAY)
        assert grant_table.read_entry(guest.bus.domain, ref).flags & GTF_writing
    assert [*guest.block.queues[0].persistent] == [ref]
    guest.block.queues[0].persistent |= {n: (0, mfn) for n in range(10**6, 10**6 + MAX_PERSISTENT)}
    other, _ = guest.page()
    guest.submit(guest.rw(BLKIF_OP_READ, 0, (other, 0, 7)))
    guest.bus.settle(10 * LATENCY_NS)
    assert other not in guest.block.queues[0].persistent
    for n in range(10**6, 10**6 + MAX_PERSISTENT):
        del guest.block.queues[0].persistent[n]
    guest.bus.switch(guest.block, XenbusState.CLOSED)
    assert grant_table.read_entry(guest.bus.domain, ref).flags == GTF_permit_access
    assert audit(guest.bus.domain) == []


def test_what_was_taken_is_done_when_the_frontend_closes() -> None:
    guest = Guest()
    ref, _ = guest.page(b"w" * PAGE_SIZE)
    guest.submit(guest.rw(BLKIF_OP_WRITE, 0, (ref, 0, 7)))
    guest.bus.settle()
    guest.bus.switch(guest.block, XenbusState.CLOSED)
    assert guest.disk.content[:PAGE_SIZE] == b"w" * PAGE_SIZE
    assert audit(guest.bus.domain) == []
    guest.bus.settle(10 * LATENCY_NS)
    guest.bus.switch(guest.block, XenbusState.INITIALISING)
    guest.connect()
    assert guest.ask(guest.rw(BLKIF_OP_READ, 0, (ref, 0, 7))) == (7, 0, OKAY)


def test_a_ring_that_is_broken_is_halted_and_the_other_is_not() -> None:
    guest = Guest(queues=2)
    ref, _ = guest.page()
    guest.rings[0].set(REQ_PROD, 33)
    event_channel.send(guest.bus.domain, guest.ports[0])
    guest.bus.settle(NOTICE_NS)
    assert "queue 0 halted: bogus requests in the ring: 33 put" in guest.block.reason
    assert guest.bus.domain.refusals[-1].startswith("vbd-51712: queue 0 halted")
    assert guest.bus.seen(guest.block, "state") == "4"
    guest.rings[0].set(REQ_PROD, 0)
    assert guest.ask(guest.rw(BLKIF_OP_READ, 0, (ref, 0, 7)), 0) is None
    assert guest.ask(guest.rw(BLKIF_OP_READ, 0, (ref, 0, 7)), 1) == (7, 0, OKAY)


@pytest.mark.parametrize(
    ("nodes", "reason"),
    [
        ({"protocol": "sparc-abi"}, "38 unknown fe protocol sparc-abi"),
        ({"multi-queue-num-queues": 5}, "38 guest requested 5 queues, exceeding the maximum of 4."),
        ({"multi-queue-num-queues": 0}, "38 guest requested 0 queues, exceeding the maximum of 4."),
        ({"ring-page-order": 5}, "22 requested ring page order 5 exceed max:4"),
        ({"ring-page-order": 1}, "22 reading /local/domain/1/device/vbd/51712/ring-ref0"),
        ({"ring-ref": 999}, "22 mapping ring-ref port 1: mapping in shared page 999"),
        ({"event-channel": 77}, "22 mapping ring-ref port 77: there is no"),
    ],
)
def test_what_a_frontend_may_not_ask_for(nodes: dict[str, str | int], reason: str) -> None:
    guest = Guest(nodes=nodes)
    assert guest.bus.seen(guest.block, "state") == "5"
    error = guest.bus.store.nodes[f"/local/domain/0/error/{guest.block.nodename}/error"].value
    assert error.decode().startswith(reason.replace("port 1", f"port {guest.ports[0]}"))
    assert (guest.block.queues, guest.block.shared, guest.block.ports) == ([], [], [])
    assert audit(guest.bus.domain) == []


def test_the_layout_without_a_protocol_is_the_guests_own() -> None:
    for width in (4, 8):
        guest = Guest(width)
        guest.bus.switch(guest.block, XenbusState.CLOSED)
        guest.bus.switch(guest.block, XenbusState.INITIALISING)
        guest.bus.store.rm(guest.bus.session, f"{guest.block.frontend}/protocol")
        guest.bus.put(guest.block, {"state": 3})
        assert (guest.block.width, guest.bus.seen(guest.block, "state")) == (width, "4")


def test_requests_in_flight_go_on_after_a_restore() -> None:
    guest = Guest(persistent=True)
    (ref, mfn), (source, _) = guest.page(), guest.page(b"s" * PAGE_SIZE)
    guest.submit(guest.rw(BLKIF_OP_WRITE, 8, (source, 0, 7)))
    guest.submit(guest.rw(BLKIF_OP_READ, 8, (ref, 0, 7), id=8))
    guest.bus.settle()
    snapshot, now_ns = DomainSnapshot.of(guest.bus.domain), guest.bus.cpu.now_ns
    content = bytes(guest.disk.content)
    ends = []
    for _ in range(3):
        guest.bus.settle(10 * LATENCY_NS)
        ends.append(
            (guest.answer(), guest.answer(), guest.bytes_of(mfn), bytes(guest.disk.content))
        )
        assert audit(guest.bus.domain) == []
        guest.disk.content[:4] = b"more"
        guest.bus.current.domain = snapshot.restore(guest.bus.domain)
        guest.rings[0].domain = guest.bus.domain
        guest.bus.cpu.now_ns, guest.rings[0].rsp_cons = now_ns, 0
        assert guest.disk.content == content
        guest.block.restore(decode(encode(guest.block.save(), {}), {}, tuple))  # as a file has it
    assert ends[0][:3] == ((7, 1, OKAY), (8, 0, OKAY), b"s" * PAGE_SIZE)
    assert ends[1:] == ends[:2]
