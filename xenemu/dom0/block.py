"""A block device: the backend that Linux's xen-blkback is on a real host.

A request takes time: a disk does one after the other, at NS_PER_BYTE or DISCARD_NS, and each is
done LATENCY_NS after that. The backend looks for requests NOTICE_NS after an event. That is when a
page that was asked for then would be there. It moves the bytes of all requests that it finds, as a
copy by grants, and puts their responses into the ring. But the frontend is shown a response only
when the request is done. Responses of requests that are done within GATHER_NS of the first are
shown with the last of them, by one event.

While requests are under way, the backend wants no event for others: it looks for them when those
are done. It also does so after a discard, which may take the host some time.

If the disk is `persistent`, and the frontend uses that, the pages of its requests stay mapped.

Header: public/io/blkif.h
In Xen: Linux's drivers/block/xen-blkback; tools/libs/light/libxl_disk.c
"""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from xenemu.abi.errno import EINVAL, ENOSYS
from xenemu.abi.io.blkif import (
    BLKIF_OP_DISCARD,
    BLKIF_OP_FLUSH_DISKCACHE,
    BLKIF_OP_READ,
    BLKIF_OP_WRITE,
    BLKIF_OP_WRITE_BARRIER,
    BLKIF_RSP_EOPNOTSUPP,
    BLKIF_RSP_ERROR,
    BLKIF_RSP_OKAY,
    SECTOR_SHIFT,
    VDISK_READONLY,
    blkif_request,
    blkif_response,
)
from xenemu.dom0 import disk as disks
from xenemu.dom0 import grants
from xenemu.dom0.block_lane import NOTHING, ORDINARY, Lane, lane_of
from xenemu.dom0.block_request import (
    FLUSHES,
    MAX_INDIRECT_SEGMENTS,
    SECTOR_SIZE,
    BadRequestError,
    Request,
    UnknownRequestError,
    check,
    decode,
    identify,
)
from xenemu.dom0.bus import BusBackend
from xenemu.dom0.disk import Disk
from xenemu.dom0.ring import BackRing, RingError
from xenemu.errors import XenError
from xenemu.hv.grant_copy import Part
from xenemu.hv.grant_table import GrantError
from xenemu.hv.state.domain import Domain
from xenemu.hv.state.timers import Key
from xenemu.x86.paging import PAGE_SHIFT, PAGE_SIZE, Maddr, Mfn

LATENCY_NS: Final = 50_000
GATHER_NS: Final = 1_000_000
NS_PER_BYTE: Final = 1  # 1 GB/s
DISCARD_NS: Final = 10_000

MAX_QUEUES: Final = 4
MAX_RING_PAGE_ORDER: Final = 4
MAX_PERSISTENT: Final = 1056  # pages that a queue keeps mapped: blkback's max_pgrants
WIDTHS: Final = {b"x86_64-abi": 8, b"x86_32-abi": 4}

OPERATIONS: Final = {  # as a watcher is told of them
    BLKIF_OP_READ: "read",
    BLKIF_OP_WRITE: "write",
    BLKIF_OP_WRITE_BARRIER: "write barrier",
    BLKIF_OP_FLUSH_DISKCACHE: "flush",
    BLKIF_OP_DISCARD: "discard",
}

NOTICE_NS: Final = LATENCY_NS + PAGE_SIZE * NS_PER_BYTE

# The numbers of timers.
DONE: Final = 1  # requests are done
LOOK: Final = 2  # and above it, one for each queue: there may be requests in it


Done = dict[int, int]


@dataclass(slots=True)
class Pending:
    """A request under way: its queue, when it is done, and the ring's index after its response."""

    queue: int
    due_ns: int
    rsp_prod: int
    is_discard: bool


@dataclass
class Queue:
    """A ring with its port. `persistent` has the pages that stay mapped, by their references.

    `look` is the timer for which an event asks.
    """

    ring: BackRing
    port: int
    look: Key
    persistent: dict[int, tuple[int, Mfn]] = field(default_factory=dict)
    halted: bool = False  # for good: its frontend has broken the ring


@dataclass
class Block(BusBackend):
    """A disk of a domain's.

    `vdev` is its name in the guest, such as xvda; `params` what the toolstack calls its file.
    `persistent` is whether grants may stay mapped. Linux then copies each page, so it is slower.
    """

    kind = "vbd"
    calls = disks.CALLS
    not_state = (*BusBackend.not_state, "disk", "lanes")  # the disk has a say of its own

    disk: Disk
    vdev: str
    params: str = ""
    read_only: bool = False
    sector_size: int = 512
    persistent: bool = False
    queues: list[Queue] = field(default_factory=list, init=False)
    width: int = field(default=8, init=False)  # of the ring's layout
    is_persistent: bool = field(default=False, init=False)
    pending: deque[Pending] = field(default_factory=deque, init=False)
    lanes: dict[int, Lane | None] = field(default_factory=dict, init=False, repr=False)
    free_ns: int = field(default=0, init=False)  # when the disk has nothing more to move

    @property
    def label(self) -> str:
        return self.vdev

    def frontend_nodes(self) -> Mapping[str, str | int]:
        return {"virtual-device": self.devid, "device-type": "disk"}

    def backend_nodes(self) -> Mapping[str, str | int]:
        mode = "r" if self.read_only else "w"
        minor = self.devid & 0xFF
        return {
            "params": self.params,
            "script": "/etc/xen/scripts/block",
            "removable": 0,
            "bootable": 1,
            "dev": self.vdev,
            "type": "phy",
            "mode": mode,
            "device-type": "disk",
            "discard-enable": 0 if self.read_only else 1,
            "specification": "xen",
            "physical-device": f"7:{minor:x}",  # a loop device
            "physical-device-path": f"/dev/loop{minor}",
        }

    def probe(self, domain: Domain) -> None:
        self.write("feature-max-indirect-segments", MAX_INDIRECT_SEGMENTS)
        self.write("multi-queue-max-queues", MAX_QUEUES)
        self.write("max-ring-page-order", MAX_RING_PAGE_ORDER)

    def open(self, domain: Domain) -> None:
        """Connect the queues, and say what the disk is; see `BusBackend.open`."""
        protocol = self.read("protocol")
        if protocol is None:
            self.width = domain.vcpus[0].width
        elif protocol in WIDTHS:
            self.width = WIDTHS[protocol]
        else:
            raise XenError(ENOSYS, f"unknown fe protocol {protocol[:63].decode('latin-1')}")
        self.is_persistent = self.persistent and bool(self.read_number("feature-persistent", 0))
        count = self.read_number("multi-queue-num-queues", 1)
        if not 1 <= count <= MAX_QUEUES:
            raise XenError(
                ENOSYS, f"guest requested {count} queues, exceeding the maximum of {MAX_QUEUES}."
            )
        pages = self._ring_pages()
        for number in range(count):
            place = f"queue-{number}/" if count > 1 else ""
            look = (self.name, LOOK + number)
            self.queues.append(self._open_queue(domain, place, pages, look))
        self._describe()

    def _ring_pages(self) -> int:
        order = self.read_number("ring-page-order", 0)
        if order > MAX_RING_PAGE_ORDER:
            raise XenError(
                EINVAL, f"requested ring page order {order} exceed max:{MAX_RING_PAGE_ORDER}"
            )
        return 1 << order

    def _open_queue(self, domain: Domain, place: str, pages: int, look: Key) -> Queue:
        port = self.read_number(f"{place}event-channel")
        if pages == 1 and self.read(f"{place}ring-ref0") is None:
            names = [f"{place}ring-ref"]
        else:
            names = [f"{place}ring-ref{number}" for number in range(pages)]
        refs = [self.read_number(name) for name in names]
        try:
            shared = self.map_pages(domain, refs)
            ring = BackRing.attach(domain.memory, shared, blkif_request.sizeof(self.width))
            return Queue(ring, self.bind(domain, port, NOTICE_NS), look)
        except XenError as error:
            reason = f"mapping ring-ref port {port}: {error.reason}"
            raise XenError(error.errno, reason) from None

    def _describe(self) -> None:
        """Write what a frontend must know of the disk."""
        can_write = 0 if self.read_only else 1
        self.write("feature-flush-cache", can_write)
        if can_write:
            self.write("discard-granularity", disks.BLOCK_SIZE)
            self.write("discard-alignment", 0)
            self.write("discard-secure", 0)
            self.write("feature-discard", 1)
        self.write("feature-barrier", can_write)
        self.write("feature-persistent", int(self.persistent))
        self.write("sectors", self.disk.size >> SECTOR_SHIFT)
        self.write("info", VDISK_READONLY if self.read_only else 0)
        self.write("sector-size", self.sector_size)
        self.write("physical-sector-size", self.sector_size)

    def shut(self, domain: Domain) -> None:
        """Do what there has been an event for; forget the answers, and unmap everything."""
        timers = domain.timers
        for number, queue in enumerate(self.queues):
            if queue.look in timers.deadlines_ns:
                timers.cancel(queue.look)
                self._take_all(domain, number, -1, {}, timers.asked_ns)
        timers.cancel((self.name, DONE))
        self.pending.clear()
        self.lanes.clear()
        for queue in self.queues:
            for handle, _ in queue.persistent.values():
                grants.unmap_grant(domain, handle)
        self.queues.clear()

    # Requests are served,

    def event(self, domain: Domain, port: int) -> None:
        for queue in self.queues:
            if queue.port == port:
                domain.timers.set_unless(queue.look, NOTICE_NS)

    def _take_all(
        self, domain: Domain, number: int, now_ns: int, done: Done, since_ns: int
    ) -> None:
        """Take the requests of a queue, as if they had been put at `since_ns`."""
        queue, memory = self.queues[number], domain.memory
        if queue.halted:
            return
        lane = self._lane(domain, number)
        try:
            while not (self.pending and self.pending[-1].is_discard):
                found = lane.next(not self.pending) if lane is not None else None
                if lane is not None and found == ORDINARY:
                    self._serve_ordinary(domain, number, lane, since_ns)
                elif found != NOTHING and (slot := queue.ring.take(memory)) is not None:
                    self._serve(domain, number, slot, since_ns)
                elif found == NOTHING or self.pending or not queue.ring.final_check(memory):
                    break
                self._collect(now_ns, done)
        except RingError as error:
            queue.halted = True
            self.complain(domain, XenError(EINVAL, f"queue {number} halted: {error}"))

    def _lane(self, domain: Domain, number: int) -> Lane | None:
        """The lane of a queue's ring, if its requests may be ordinary."""
        if self.is_persistent or self.width != 8 or self.sector_size != SECTOR_SIZE:
            return None
        lane = self._known_lane(domain, number)
        if lane is None:
            lane = self.lanes[number] = lane_of(domain, self.queues[number].ring)
        return lane if lane is not None and lane.opens(self.disk.size, self.read_only) else None

    def _known_lane(self, domain: Domain, number: int) -> Lane | None:
        lane = self.lanes.get(number)
        fits = lane is not None and lane.fits(domain, self.queues[number].ring)
        return lane if fits else None

    def _serve_ordinary(self, domain: Domain, number: int, lane: Lane, now_ns: int) -> None:
        """Do what a request asks for that C has taken."""
        request, disk, status = lane.request, self.disk, BLKIF_RSP_OKAY
        offset, size, operation = request.offset, request.size, request.operation
        try:
            descriptor = disk.file_at(offset, size, operation == BLKIF_OP_WRITE)
            if descriptor is not None:
                lane.move(descriptor)
            elif operation == BLKIF_OP_READ:
                disk.read(offset, lane.views())
            else:
                disk.write(offset, lane.views())
        except OSError as error:
            status = self._refuse(domain, error)
        lane.answer(status)
        took_ns = size * NS_PER_BYTE
        self._goes_on(domain, number, operation, lane.ring.rsp_prod, took_ns, now_ns)

    def _serve(self, domain: Domain, number: int, slot: bytes, now_ns: int) -> None:
        """Do what a request asks for, or refuse it."""
        queue, took_ns, status = self.queues[number], None, BLKIF_RSP_OKAY
        request_id, operation = identify(self.width, slot)
        try:
            request = decode(self.width, slot, partial(self._read_page, domain, queue))
            check(request, self.disk.size, self.sector_size, self.read_only)
            mfns = self._frames_of(domain, queue, request)
            took_ns = request.size * NS_PER_BYTE
            if operation == BLKIF_OP_DISCARD:
                took_ns = DISCARD_NS
            self._perform(domain, request, mfns)
        except (BadRequestError, UnknownRequestError, GrantError, OSError) as error:
            status = self._refuse(domain, error)
        self._answer(domain, number, (request_id, operation, status), took_ns, now_ns)

    def _refuse(self, domain: Domain, error: Exception) -> int:
        """The status that says what is wrong; the report says more."""
        why, unknown = f"{error}", isinstance(error, UnknownRequestError)
        if isinstance(error, OSError):
            why = f"{self.params}: {error.strerror or error}"
            unknown = error.errno == errno.EOPNOTSUPP
        domain.refusals.append(f"{self.name}: {why}")
        return BLKIF_RSP_EOPNOTSUPP if unknown else BLKIF_RSP_ERROR

    def _read_page(self, domain: Domain, queue: Queue, ref: int, size: int) -> bytes:
        (mfn,) = self._frames(domain, queue, (ref,), ((0, size),), into=False)
        return domain.memory.read(Maddr(mfn << PAGE_SHIFT), size)

    def _frames_of(self, domain: Domain, queue: Queue, request: Request) -> list[Mfn]:
        into = request.operation == BLKIF_OP_READ
        return self._frames(domain, queue, request.refs, request.parts, into=into)

    def _frames(
        self,
        domain: Domain,
        queue: Queue,
        refs: Sequence[int],
        parts: Sequence[Part],
        *,
        into: bool,
    ) -> list[Mfn]:
        """The frames of grants, which stay mapped if they may; GrantError."""
        if not self.is_persistent:
            return grants.frames_of(domain, refs, parts, into)
        found = []
        for ref, part in zip(refs, parts, strict=True):
            if ref not in queue.persistent and len(queue.persistent) < MAX_PERSISTENT:
                queue.persistent[ref] = grants.map_grant(domain, ref)
            if ref in queue.persistent:
                found.append(queue.persistent[ref][1])
            else:
                found += grants.frames_of(domain, (ref,), (part,), into)
        return found

    def _perform(self, domain: Domain, request: Request, mfns: list[Mfn]) -> None:
        views = _views(domain.memory.bytes, mfns, request.parts)
        match request.operation:
            case operation if operation == BLKIF_OP_READ:
                self.disk.read(request.offset, views)
                domain.memory.wrote_in(mfns)
            case operation if operation == BLKIF_OP_DISCARD:
                self.disk.discard(request.offset, request.size)
            case operation:
                if operation == BLKIF_OP_WRITE_BARRIER:
                    self.disk.flush()
                if operation == BLKIF_OP_WRITE or views:
                    self.disk.write(request.offset, views)
                if operation in FLUSHES:
                    self.disk.flush()

    # and answered.

    def _answer(
        self,
        domain: Domain,
        number: int,
        response: tuple[int, int, int],
        took_ns: int | None,
        now_ns: int,
    ) -> None:
        """Put a response: id, operation, status. Without a time, it needs to wait for others only.

        A guest's operation that there is none of is in the response, too.
        """
        ring = self.queues[number].ring
        ring.put(domain.memory, blkif_response.layout(self.width).packer.pack(*response))
        if took_ns is not None:
            self._goes_on(domain, number, response[1], ring.rsp_prod, took_ns, now_ns)
        else:
            due_ns = self.pending[-1].due_ns if self.pending else 0
            self.pending.append(Pending(number, due_ns, ring.rsp_prod, is_discard=False))

    def _goes_on(
        self,
        domain: Domain,
        number: int,
        operation: int,
        rsp_prod: int,
        took_ns: int,
        now_ns: int,
    ) -> None:
        """A request is under way, which the disk works on for so long."""
        self.free_ns = max(self.free_ns, now_ns) + took_ns
        due_ns = self.free_ns + LATENCY_NS
        self.pending.append(Pending(number, due_ns, rsp_prod, operation == BLKIF_OP_DISCARD))
        for observer in domain.watch or ():
            what = OPERATIONS.get(operation, f"operation {operation}")
            observer.served(self.name, what, now_ns, due_ns)

    def due(self, domain: Domain, number: int, now_ns: int) -> None:
        done: Done = {}
        self._collect(now_ns, done)
        if number >= LOOK:
            self._take_all(domain, number - LOOK, now_ns, done, now_ns - NOTICE_NS)
        for of in range(len(self.queues)):
            if of != number - LOOK:
                self._take_all(domain, of, now_ns, done, now_ns)
        for of, rsp_prod in done.items():
            self._push(domain, of, rsp_prod)
        self._set_timer(domain)

    def _collect(self, now_ns: int, done: Done) -> None:
        """Take out what is done by now: of each queue, the index after its last response."""
        pending = self.pending
        while pending and pending[0].due_ns <= now_ns:
            first = pending.popleft()
            done[first.queue] = first.rsp_prod

    def _push(self, domain: Domain, number: int, rsp_prod: int) -> None:
        queue, lane = self.queues[number], self._known_lane(domain, number)
        if queue.ring.push(domain.memory, rsp_prod) if lane is None else lane.push(rsp_prod):
            self.tell(domain, queue.port)

    def _set_timer(self, domain: Domain) -> None:
        """Set it for the last request of those that are done together."""
        if not self.pending:
            domain.timers.cancel((self.name, DONE))
            return
        due_ns = self.pending[0].due_ns
        latest_ns = due_ns + GATHER_NS
        for pending in self.pending:
            if pending.due_ns > latest_ns:
                break
            due_ns = pending.due_ns
        domain.timers.set((self.name, DONE), due_ns)

    # For the audit and for snapshots.

    def own_handles(self) -> Iterator[int]:
        for queue in self.queues:
            yield from (handle for handle, _ in queue.persistent.values())

    def save(self) -> object:
        return super().save(), self.disk.save()

    def restore(self, state: object) -> None:
        assert isinstance(state, tuple)
        own, kept = state
        super().restore(own)
        self.disk.restore(kept)


def _views(ram: memoryview, mfns: Sequence[Mfn], parts: Sequence[Part]) -> list[memoryview]:
    """Parts of frames as pieces of memory, as few as there can be."""
    views, start, end = [], 0, 0
    for mfn, (offset, size) in zip(mfns, parts, strict=True):
        at = (mfn << PAGE_SHIFT) + offset
        if at != end:
            if end:
                views.append(ram[start:end])
            start = at
        end = at + size
    if end:
        views.append(ram[start:end])
    return views
