"""A share: a directory of the host's that the guest mounts by 9P2000.L, over xen's transport.

The guest puts requests into a ring of bytes, and a server outside answers them, one after the
other. So the answers depend on the requests and the directory only, and not on who is faster. Each
answer reaches the guest when a server would have had the time for it.

Header: public/io/9pfs.h; docs/misc/9pfs.pandoc
In Xen: tools/libs/light/libxl_9pfs.c. In QEMU: hw/9pfs/xen-9p-backend.c
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import field
from typing import ClassVar, Final, Protocol

from xenemu.abi.errno import EINVAL, EIO
from xenemu.abi.io.ninepfs import (
    IN_CONS,
    IN_PROD,
    OUT_CONS,
    OUT_PROD,
    REF,
    RING_ORDER,
    VERSION,
)
from xenemu.dom0.bus import BusBackend
from xenemu.dom0.p9_messages import HEADER, Export, Refused, amend, amend_answer, error
from xenemu.dom0.ring import INDEX_MASK, Pages, RingError
from xenemu.dom0.xenstore_tree import WATCH_FIRED
from xenemu.errors import XenError
from xenemu.hv.memory import Memory
from xenemu.hv.state.domain import Domain
from xenemu.records import dataclass

MAX_RINGS: Final = 8
MAX_ORDER: Final = 9
WORK: Final = WATCH_FIRED + 1  # the timer
MAX_MESSAGE: Final = 64 << 10  # bytes; diod agrees to no more
LATENCY_NS: Final = 20_000  # until an answer, beside the time that its bytes take
BYTES_PER_US: Final = 1000


class ServerError(Exception):
    """The server cannot answer any more: `str()` says why."""


class Server(Protocol):
    """A server of 9P2000.L with one connection. It is outside: no snapshot has its state."""

    def ask(self, request: bytes, before: int) -> bytes:
        """The answer to a request, which is awaited.

        ServerError: there will be none, or the server has not had `before` requests until now. So
        it has in mind what the guest does not know of: files that were opened after a snapshot.
        """

    def leave_if(self, leaves: Callable[[], bool]) -> None:
        """Do not wait for an answer any longer once `leaves` says True."""


@dataclass
class ByteRing:
    """Both directions of a ring, whose frontend may store anything, even into our indices."""

    interface: Pages
    data: Pages
    port: int
    out_cons: int
    in_prod: int
    answers: deque[tuple[int, bytes]] = field(default_factory=deque)  # with when each is due
    is_full: bool = False  # an answer that is due has no room

    @property
    def size(self) -> int:
        """Bytes of one direction."""
        return self.data.size // 2

    def waiting(self, memory: Memory) -> int:
        """Bytes in the ring "out"; more than `size` when the frontend's index is nonsense."""
        return (self.interface.read_uint(memory, OUT_PROD) - self.out_cons) & INDEX_MASK

    def take(self, memory: Memory) -> bytes | None:
        """Take a request, or None if there is none yet. RingError: the frontend has broken it."""
        waiting = self.waiting(memory)
        if waiting > self.size:
            raise RingError(f"{waiting} bytes of requests in a ring of {self.size}")
        if waiting < HEADER.size:
            return None
        length = HEADER.unpack(self._out(memory, HEADER.size))[0]
        if not HEADER.size <= length <= min(MAX_MESSAGE, self.size):
            raise RingError(f"a request that says it has {length} bytes")
        if waiting < length:
            return None
        request = self._out(memory, length)
        self.out_cons = (self.out_cons + length) & INDEX_MASK
        self.interface.write_uint(memory, OUT_CONS, self.out_cons)
        return request

    def put(self, memory: Memory, answer: bytes) -> bool:
        """Put an answer, or return False if there is no room. RingError: as for `take`."""
        cons = self.interface.read_uint(memory, IN_CONS)
        used = (self.in_prod - cons) & INDEX_MASK
        if used > self.size:
            raise RingError(f"{used} bytes of answers in a ring of {self.size}")
        if len(answer) > self.size - used:
            return False
        start = self.in_prod & (self.size - 1)
        first = answer[: self.size - start]
        self.data.write(memory, start, first)
        self.data.write(memory, 0, answer[len(first) :])
        self.in_prod = (self.in_prod + len(answer)) & INDEX_MASK
        self.interface.write_uint(memory, IN_PROD, self.in_prod)
        return True

    def _out(self, memory: Memory, size: int) -> bytes:
        """The next bytes of the ring "out"."""
        start = self.out_cons & (self.size - 1)
        first = min(size, self.size - start)
        tail = self.data.read(memory, self.size, size - first)
        return self.data.read(memory, self.size + start, first) + tail


@dataclass
class Share(BusBackend):
    """A directory that the guest knows by its tag."""

    kind: ClassVar[str] = "9pfs"
    not_state: ClassVar[tuple[str, ...]] = (*BusBackend.not_state, "server")

    tag: str
    export: Export
    server: Server = field(repr=False)
    rings: list[ByteRing] = field(default_factory=list, init=False)
    busy_until_ns: int = field(default=0, init=False)
    asked: int = field(default=0, init=False)  # requests that the server has answered

    @property
    def label(self) -> str:
        return self.tag

    def frontend_nodes(self) -> Mapping[str, str | int]:
        return {"tag": self.tag}

    def backend_nodes(self) -> Mapping[str, str | int]:
        return {"path": os.fsdecode(self.export.path), "security_model": "none"}

    def probe(self, domain: Domain) -> None:
        self.write("versions", VERSION)
        self.write("max-rings", MAX_RINGS)
        self.write("max-ring-page-order", MAX_ORDER)

    def open(self, domain: Domain) -> None:
        version = self.read("version")
        if version != VERSION.encode():
            raise XenError(EINVAL, f"version {version!r} of the protocol, not {VERSION}")
        count = self.read_number("num-rings")
        if not 1 <= count <= MAX_RINGS:
            raise XenError(EINVAL, f"{count} rings; there may be 1 to {MAX_RINGS}")
        for number in range(count):
            self.rings.append(self._ring(domain, number))

    def _ring(self, domain: Domain, number: int) -> ByteRing:
        memory = domain.memory
        interface = self.map_pages(domain, [self.read_number(f"ring-ref{number}")])
        order = interface.read_uint(memory, RING_ORDER)
        if not 1 <= order <= MAX_ORDER:
            raise XenError(EINVAL, f"ring {number} of order {order}; it may be 1 to {MAX_ORDER}")
        refs = [interface.read_uint(memory, REF + 4 * page) for page in range(1 << order)]
        data = self.map_pages(domain, refs)
        port = self.bind(domain, self.read_number(f"event-channel-{number}"))
        out_cons = interface.read_uint(memory, OUT_CONS)
        in_prod = interface.read_uint(memory, IN_PROD)
        return ByteRing(interface, data, port, out_cons, in_prod)

    def leave_if(self, leaves: Callable[[], bool]) -> None:
        self.server.leave_if(leaves)

    def shut(self, domain: Domain) -> None:
        domain.timers.cancel((self.name, WORK))
        self.rings.clear()

    def event(self, domain: Domain, port: int) -> None:
        """There are requests, or there is room for answers, or the frontend has taken an answer."""
        for ring in self.rings:
            if ring.port == port and (ring.is_full or ring.waiting(domain.memory)):
                domain.timers.set((self.name, WORK), 0)

    def due(self, domain: Domain, number: int, now_ns: int) -> None:
        """Hand over the answers that are due, and have the server answer new requests."""
        try:
            for ring in self.rings:
                self._deliver(domain, ring, now_ns)
                self._answer(domain, ring, now_ns)
        except (RingError, ServerError) as error:
            self.shut(domain)
            self.fail(domain, XenError(EIO, str(error)))
            return
        next_ns = [ring.answers[0][0] for ring in self.rings if ring.answers]
        later_ns = [due_ns for due_ns in next_ns if due_ns > now_ns]
        if later_ns:  # for others there was no room, and an event comes when there is
            domain.timers.set((self.name, WORK), min(later_ns))

    def _deliver(self, domain: Domain, ring: ByteRing, now_ns: int) -> None:
        told = False
        while ring.answers and ring.answers[0][0] <= now_ns:
            ring.is_full = not ring.put(domain.memory, ring.answers[0][1])
            if ring.is_full:
                break
            ring.answers.popleft()
            told = True
        if told:
            self.tell(domain, ring.port)

    def _answer(self, domain: Domain, ring: ByteRing, now_ns: int) -> None:
        """Take requests while the answers to earlier ones are not too many."""
        while sum(len(answer) for _, answer in ring.answers) < ring.size:
            request = ring.take(domain.memory)
            if request is None:
                return
            answer = self._ask(request)
            took_ns = LATENCY_NS + (len(request) + len(answer)) * 1000 // BYTES_PER_US
            self.busy_until_ns = max(self.busy_until_ns, now_ns) + took_ns
            ring.answers.append((self.busy_until_ns, answer))

    def _ask(self, request: bytes) -> bytes:
        try:
            amended = amend(request, self.export)
        except Refused as refused:
            return error(request, refused.errno)
        answer = self.server.ask(amended, self.asked)
        self.asked += 1
        return amend_answer(request, answer, self.export)
