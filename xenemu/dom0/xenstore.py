"""The xenstore service of one domain: xenstored's end of its ring.

A request is taken from the ring when it is complete, and the `Store` answers it. The answers wait
here until the ring has room. While `MAX_OUTSTANDING` answers wait, no request is taken. If a domain
breaks the protocol, the page's `error` field tells it so, and it is ignored from then on.

Header: public/io/xs_wire.h
In Xen: tools/xenstore/xenstored_core.c, xenstored_domain.c
"""

from __future__ import annotations

import copy
import re
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import field
from typing import Final

from xenemu.abi import errno
from xenemu.abi.grant_table import GNTTAB_RESERVED_XENSTORE
from xenemu.abi.io.xs_wire import (
    ERROR_NAMES,
    XENSTORE_ERROR_PROTO,
    XENSTORE_ERROR_RINGIDX,
    XENSTORE_PAYLOAD_MAX,
    XENSTORE_RING_SIZE,
    XS,
    xenstore_domain_interface,
    xsd_sockmsg,
)
from xenemu.dom0 import storecheck
from xenemu.dom0.backend import RingBackend
from xenemu.dom0.byte_ring import ByteRing
from xenemu.dom0.xenstore_model import (
    MAX_OUTSTANDING,
    Access,
    Connection,
    Event,
    Permission,
    Permissions,
    Transaction,
)
from xenemu.dom0.xenstore_tree import Store
from xenemu.errors import XenError
from xenemu.hv.state.domain import Domain
from xenemu.records import dataclass
from xenemu.x86.paging import PAGE_SHIFT, Maddr

_at = xenstore_domain_interface.layout(8).offsets  # the same in both widths
REQ: Final = ByteRing(_at["req"], XENSTORE_RING_SIZE, _at["req_cons"], _at["req_prod"])
RSP: Final = ByteRing(_at["rsp"], XENSTORE_RING_SIZE, _at["rsp_cons"], _at["rsp_prod"])
HEADER_SIZE: Final = xsd_sockmsg.sizeof(8)
STORES: Final = ("store", "connection")  # attributes that belong to the store


@dataclass
class Outgoing:
    """A message on its way to the domain: what is left of it, and the event that it carries."""

    data: bytes
    event: Event | None = None


@dataclass
class XenstoreRing(RingBackend):
    """A domain's connection to the store, and messages under way."""

    store: Store = field(default_factory=Store)
    connection: Connection = field(init=False)  # from `connect` on
    incoming: bytearray = field(default_factory=bytearray)
    outgoing: deque[Outgoing] = field(default_factory=deque)
    error: int = 0  # XENSTORE_ERROR_*: the domain is ignored

    @property
    def name(self) -> str:
        return "xenstore"

    def connect(self, domain: Domain) -> None:
        self.connect_ring(domain, GNTTAB_RESERVED_XENSTORE, domain.xenstore.port)
        self.connection = self.store.connect(domain.domid, self.name)

    def disconnect(self, domain: Domain) -> None:
        """End the session, with all that was on the way."""
        super().disconnect(domain)
        self.store.disconnect(self.connection)
        self.incoming.clear()
        self.outgoing.clear()
        self.error = 0

    def pump(self, domain: Domain) -> None:
        """Serve what can be served now, and tell the guest if anything moved."""
        waits = self.connection.events or self.outgoing or REQ.used(domain.memory, self.mfn)
        if self.error or not waits:
            return
        if not (self.outgoing or self.connection.events or REQ.used(domain.memory, self.mfn)):
            self.store.wake(domain)  # the commonest case: no message waits, on either side
            return
        before = self._indices(domain)
        self._collect_events()
        self._send(domain)
        while not self.error and len(self.outgoing) < MAX_OUTSTANDING and self._receive(domain):
            self._collect_events()
            self._send(domain)
        if self._indices(domain) != before:
            self.tell(domain)
        self.store.wake(domain)

    def timer(self, domain: Domain, number: int, now_ns: int) -> None:
        """A backend has changed the store, and that is an event for the domain."""
        self.pump(domain)

    def save(self) -> object:
        """What the domain has of the store and on the way, and the store, as it is for all."""
        own = {name: value for name, value in vars(self).items() if name not in STORES}
        return copy.deepcopy(own), self.store.save()

    def restore(self, state: object) -> None:
        assert isinstance(state, tuple)
        own, store = state
        vars(self).update(copy.deepcopy(own))
        self.store.restore(store)

    def check(self, domain: Domain) -> Iterator[str]:
        """See `storecheck`."""
        waits = [*self.connection.events]
        waits += [message.event for message in self.outgoing if message.event is not None]
        # After an error, what waited is forgotten.
        return storecheck.check(self.store, self.connection, None if self.error else waits)

    def _indices(self, domain: Domain) -> tuple[int, int]:
        """The two indices that are ours to move."""
        page = self.mfn << PAGE_SHIFT
        read_uint = domain.memory.read_uint
        return read_uint(Maddr(page + REQ.cons), 4), read_uint(Maddr(page + RSP.prod), 4)

    def _send(self, domain: Domain) -> None:
        """Put waiting messages into the ring while there is room."""
        if self.outgoing and RSP.used(domain.memory, self.mfn) > RSP.size:
            self._ignore(domain, XENSTORE_ERROR_RINGIDX)
        while self.outgoing:
            message = self.outgoing[0]
            count = RSP.put(domain.memory, self.mfn, message.data)
            message.data = message.data[count:]
            if message.data:
                break
            self.outgoing.popleft()
            if message.event is not None:
                self.connection.delivered(message.event)

    def _receive(self, domain: Domain) -> bool:
        """Take at most one request, and answer it if it is complete; whether it was."""
        if REQ.used(domain.memory, self.mfn) > REQ.size:
            self._ignore(domain, XENSTORE_ERROR_RINGIDX)
            return False
        if not self._fill(domain, HEADER_SIZE):
            return False
        header = xsd_sockmsg.unpack(8, self.incoming[:HEADER_SIZE])
        if header.len > XENSTORE_PAYLOAD_MAX:
            self._ignore(domain, XENSTORE_ERROR_PROTO)
            return False
        if not self._fill(domain, HEADER_SIZE + header.len):
            return False
        payload = bytes(self.incoming[HEADER_SIZE:])
        self.incoming.clear()
        self._answer(header, payload)
        return True

    def _fill(self, domain: Domain, size: int) -> bool:
        """Take bytes until `size` of the request are here; whether they are."""
        missing = max(0, size - len(self.incoming))
        self.incoming += REQ.take(domain.memory, self.mfn, missing)
        return len(self.incoming) >= size

    def _answer(self, header: xsd_sockmsg, payload: bytes) -> None:
        """Serve one request; events that it caused go out before its reply."""
        try:
            reply_type, reply = header.type, self._serve(header, payload)
            if len(reply) > XENSTORE_PAYLOAD_MAX:
                raise XenError(errno.E2BIG, "the answer does not fit in a message")
        except XenError as error:
            name = errno.NAMES.get(error.errno, "")
            reply_type = XS.ERROR
            reply = _strings(name if name in ERROR_NAMES else "EINVAL")
        if reply_type != XS.WATCH:
            self._collect_events()
        reply_header = xsd_sockmsg(reply_type, header.req_id, header.tx_id, len(reply))
        self.outgoing.append(Outgoing(reply_header.pack(8) + reply))

    def _serve(self, header: xsd_sockmsg, payload: bytes) -> bytes:
        if header.type in PRIVILEGED:
            raise XenError(errno.EACCES, f"{XS(header.type).name} is for the control domain")
        if header.type not in SERVICES:
            raise XenError(errno.ENOSYS, f"xenstore has no message type {header.type}")
        tx = None
        if header.type not in (XS.WATCH, XS.UNWATCH):
            tx = self.connection.transaction(header.tx_id)
        return SERVICES[header.type](Request(self.store, self.connection, tx, payload))

    def _collect_events(self) -> None:
        for event in self.connection.events:
            payload = _strings(event.path) + event.token + b"\0"
            header = xsd_sockmsg(XS.WATCH_EVENT, 0, 0, len(payload))
            self.outgoing.append(Outgoing(header.pack(8) + payload, event))
        self.connection.events.clear()

    def _ignore(self, domain: Domain, error: int) -> None:
        """Give the domain up: say why in its page, and forget its messages and its session."""
        self.error = error
        page = self.mfn << PAGE_SHIFT
        domain.memory.write_uint(Maddr(page + _at["error"]), 4, error)
        self.incoming.clear()
        self.outgoing.clear()
        self.connection.reset()


@dataclass(frozen=True)
class Request:
    """A request as its service sees it."""

    store: Store
    conn: Connection
    tx: Transaction | None
    payload: bytes

    @property
    def argument(self) -> str:
        """The payload as one string; EINVAL unless its only NUL is at the end."""
        if self.payload.find(b"\0") != len(self.payload) - 1 or not self.payload:
            raise XenError(errno.EINVAL, "the payload is not one string")
        return self.payload[:-1].decode("latin-1")

    def strings(self, at_least: int, at_most: int | None = None) -> list[str]:
        """The payload's NUL-terminated strings; EINVAL for too few or too many."""
        strings = self.payload.decode("latin-1").split("\0")[:-1]
        if len(strings) < at_least or (at_most is not None and len(strings) > at_most):
            raise XenError(errno.EINVAL, f"the payload has {len(strings)} strings")
        return strings


def _strings(*texts: str) -> bytes:
    return b"".join(text.encode("latin-1") + b"\0" for text in texts)


OK: Final = _strings("OK")


def _atoi(text: str) -> int:
    """C's atoi() to an unsigned int."""
    match = re.match(r"[ \t\n\v\f\r]*([+-]?[0-9]+)", text)
    return int(match[1]) & 0xFFFF_FFFF if match else 0


def directory(request: Request) -> bytes:
    return _strings(*request.store.directory(request.conn, request.argument, request.tx))


def read(request: Request) -> bytes:
    return request.store.read(request.conn, request.argument, request.tx)


def get_perms(request: Request) -> bytes:
    permissions = request.store.get_perms(request.conn, request.argument, request.tx)
    return _strings(*(format_permission(p) for p in permissions))


def watch(request: Request) -> bytes:
    path, token = request.strings(2, 2)
    request.store.watch(request.conn, path, token.encode("latin-1"))
    return OK


def unwatch(request: Request) -> bytes:
    path, token = request.strings(2, 2)
    request.store.unwatch(request.conn, path, token.encode("latin-1"))
    return OK


def transaction_start(request: Request) -> bytes:
    return _strings(str(request.store.transaction_start(request.conn, request.tx)))


def transaction_end(request: Request) -> bytes:
    if request.argument not in ("T", "F"):
        raise XenError(errno.EINVAL, "a transaction ends with T or F")
    request.store.transaction_end(request.conn, request.tx, request.argument == "T")
    return OK


def get_domain_path(request: Request) -> bytes:
    return _strings(f"/local/domain/{_atoi(request.argument)}")


def write(request: Request) -> bytes:
    path, nul, value = request.payload.partition(b"\0")
    if not nul:
        raise XenError(errno.EINVAL, "the payload is no path and value")
    request.store.write(request.conn, path.decode("latin-1"), value, request.tx)
    return OK


def mkdir(request: Request) -> bytes:
    request.store.mkdir(request.conn, request.argument, request.tx)
    return OK


def rm(request: Request) -> bytes:
    request.store.rm(request.conn, request.argument, request.tx)
    return OK


def set_perms(request: Request) -> bytes:
    path, *texts = request.strings(2)
    request.store.set_perms(request.conn, path, parse_permissions(texts), request.tx)
    return OK


def reset_watches(request: Request) -> bytes:
    request.conn.reset()
    return OK


def directory_part(request: Request) -> bytes:
    path, offset = request.strings(2, 2)
    generation, part = request.store.directory_part(request.conn, path, _atoi(offset), request.tx)
    return _strings(str(generation)) + part


SERVICES: Final[dict[int, Callable[[Request], bytes]]] = {
    XS.DIRECTORY: directory,
    XS.READ: read,
    XS.GET_PERMS: get_perms,
    XS.WATCH: watch,
    XS.UNWATCH: unwatch,
    XS.TRANSACTION_START: transaction_start,
    XS.TRANSACTION_END: transaction_end,
    XS.GET_DOMAIN_PATH: get_domain_path,
    XS.WRITE: write,
    XS.MKDIR: mkdir,
    XS.RM: rm,
    XS.SET_PERMS: set_perms,
    XS.RESET_WATCHES: reset_watches,
    XS.DIRECTORY_PART: directory_part,
}
PRIVILEGED: Final = frozenset(
    (XS.CONTROL, XS.INTRODUCE, XS.RELEASE, XS.IS_DOMAIN_INTRODUCED, XS.RESUME, XS.SET_TARGET)
)

LETTERS: Final = {
    "n": Access.NONE,
    "r": Access.READ,
    "w": Access.WRITE,
    "b": Access.READ | Access.WRITE,
}


def format_permission(permission: Permission) -> str:
    """A permission on the wire: ``r1``."""
    letter = next(key for key, access in LETTERS.items() if access == permission.access)
    return f"{letter}{permission.domid}"


def parse_permissions(texts: list[str]) -> Permissions:
    """The inverse of `format_permission`; EINVAL for an unknown letter or no number."""
    permissions = []
    for text in texts:
        if not re.fullmatch(r"[nrwb][0-9]{1,10}", text):
            raise XenError(errno.EINVAL, f"{text[:20]!r} is not a permission")
        permissions.append(Permission(int(text[1:]) & 0xFFFF_FFFF, LETTERS[text[0]]))
    return tuple(permissions)
