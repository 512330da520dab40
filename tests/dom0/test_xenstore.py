"""xenemu/dom0/xenstore.py"""

from __future__ import annotations

import operator
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xenemu.abi.io.xs_wire import (
    XENSTORE_ERROR_PROTO,
    XENSTORE_ERROR_RINGIDX,
    XS,
    xenstore_domain_interface,
    xsd_sockmsg,
)
from xenemu.dom0.xenstore import REQ, RSP, XenstoreRing
from xenemu.dom0.xenstore_model import MAX_OUTSTANDING, Connection
from xenemu.dom0.xenstore_nodes import populate
from xenemu.dom0.xenstore_tree import Store
from xenemu.hv.memory import Memory
from xenemu.x86.paging import PAGE_SIZE, Maddr, Mfn

MFN = Mfn(1)
PORT = 1


pytestmark = pytest.mark.usefixtures("noted_events")


class Guest:
    """A domain reduced to its xenstore, and the guest's side of the ring."""

    def __init__(self) -> None:
        self.memory = Memory(2)
        self.raised: list[int] = []
        self.ring = XenstoreRing(MFN, PORT)
        self.ring.connection = self.ring.store.connect(1)
        populate(self.ring.store, 1, "guest", bytes(16), 65536, 1, Mfn(2), 2, MFN, PORT)

    def notify(self) -> None:
        self.ring.notify(self, PORT)  # type: ignore[arg-type]

    def put(self, data: bytes) -> None:
        assert REQ.put(self.memory, MFN, data) == len(data)

    def get(self) -> list[tuple[int, bytes]]:
        """Take the messages in the ring, notifying until no more come: (type, payload)."""
        data = b""
        while more := RSP.take(self.memory, MFN, 1024):
            data += more
            self.notify()
        messages = []
        while data:
            header = xsd_sockmsg.unpack(8, data[:16])
            messages.append((header.type, data[16 : 16 + header.len]))
            data = data[16 + header.len :]
        return messages

    def ask(self, kind: int, payload: bytes, tx_id: int = 0) -> list[tuple[int, bytes]]:
        self.put(message(kind, payload, tx_id))
        self.notify()
        return self.get()

    @property
    def error(self) -> int:
        offset = xenstore_domain_interface.offsetof("error", 8)
        return self.memory.read_uint(Maddr(PAGE_SIZE + offset), 4)


def message(kind: int, payload: bytes, tx_id: int = 0) -> bytes:
    return xsd_sockmsg(kind, 7, tx_id, len(payload)).pack(8) + payload


@pytest.fixture
def guest() -> Guest:
    return Guest()


@pytest.mark.parametrize(
    ("kind", "payload", "reply"),
    [
        (XS.READ, b"name\0", b"guest"),
        (XS.DIRECTORY, b"cpu/0\0", b"availability\0"),
        (XS.DIRECTORY, b"data\0", b""),
        (XS.GET_PERMS, b"memory\0", b"n0\0r1\0"),
        (XS.GET_DOMAIN_PATH, b"1\0", b"/local/domain/1\0"),
        (XS.GET_DOMAIN_PATH, b"-1\0", b"/local/domain/4294967295\0"),
        (XS.WRITE, b"data/x\0value", b"OK\0"),
        (XS.WRITE, b"data/x\0", b"OK\0"),
        (XS.MKDIR, b"data/x\0", b"OK\0"),
        (XS.RM, b"data\0", b"OK\0"),
        (XS.SET_PERMS, b"data\0n1\0b2\0", b"OK\0"),
        (XS.TRANSACTION_START, b"\0", b"1\0"),
        (XS.RESET_WATCHES, b"\0", b"OK\0"),
    ],
)
def test_a_request_is_answered(guest: Guest, kind: XS, payload: bytes, reply: bytes) -> None:
    assert guest.ask(kind, payload) == [(kind, reply)]
    assert set(guest.raised) == {PORT}


@pytest.mark.parametrize(
    ("kind", "payload", "error"),
    [
        (XS.READ, b"nowhere\0", b"ENOENT\0"),
        (XS.READ, b"name", b"EINVAL\0"),
        (XS.READ, b"name\0\0", b"EINVAL\0"),
        (XS.READ, b"", b"EINVAL\0"),
        (XS.READ, b"/\0", b"EACCES\0"),
        (XS.WRITE, b"data/x", b"EINVAL\0"),
        (XS.WATCH, b"data\0", b"EINVAL\0"),
        (XS.WATCH, b"data\0t\0t\0", b"EINVAL\0"),
        (XS.UNWATCH, b"data\0t\0", b"ENOENT\0"),
        (XS.TRANSACTION_END, b"T\0", b"ENOENT\0"),
        (XS.TRANSACTION_END, b"X\0", b"EINVAL\0"),
        (XS.SET_PERMS, b"data\0x1\0", b"EINVAL\0"),
        (XS.SET_PERMS, b"data\0r\0", b"EINVAL\0"),
        (XS.SET_PERMS, b"data\0n2\0", b"EPERM\0"),
        (XS.CONTROL, b"print\0x\0", b"EACCES\0"),
        (XS.INTRODUCE, b"1\x001\x001\0", b"EACCES\0"),
        (XS.IS_DOMAIN_INTRODUCED, b"1\0", b"EACCES\0"),
        (XS.WATCH_EVENT, b"", b"ENOSYS\0"),
        (XS.ERROR, b"", b"ENOSYS\0"),
        (20, b"", b"ENOSYS\0"),
        (0xFFFF, b"", b"ENOSYS\0"),
    ],
)
def test_a_request_is_refused(guest: Guest, kind: int, payload: bytes, error: bytes) -> None:
    before = dict(guest.ring.store.nodes)
    assert guest.ask(kind, payload) == [(XS.ERROR, error)]
    assert guest.ring.store.nodes == before


def test_a_reply_echoes_the_request_and_transaction_ids(guest: Guest) -> None:
    guest.put(xsd_sockmsg(XS.READ, 0x1234, 0, 5).pack(8) + b"name\0")
    guest.notify()
    header = xsd_sockmsg.unpack(8, RSP.take(guest.memory, MFN, 16))
    assert (header.req_id, header.tx_id, header.len) == (0x1234, 0, 5)


def test_a_request_may_come_byte_by_byte(guest: Guest) -> None:
    for byte in message(XS.READ, b"domid\0"):
        guest.put(bytes([byte]))
        guest.notify()
    assert guest.get() == [(XS.READ, b"1")]


def test_a_partial_request_changes_nothing(guest: Guest) -> None:
    before = dict(guest.ring.store.nodes)
    guest.put(message(XS.RM, b"data\0")[:-1])
    guest.notify()
    assert (guest.get(), guest.ring.store.nodes) == ([], before)


def test_a_watch_is_acknowledged_then_fires_then_fires_before_a_writes_reply(
    guest: Guest,
) -> None:
    event = (XS.WATCH_EVENT, b"data\0token\0")
    assert guest.ask(XS.WATCH, b"data\0token\0") == [(XS.WATCH, b"OK\0"), event]
    assert guest.ask(XS.WRITE, b"data\0x") == [event, (XS.WRITE, b"OK\0")]


def test_a_watch_fires_when_the_toolstack_writes(guest: Guest) -> None:
    guest.ask(XS.WATCH, b"control/shutdown\0t\0")
    store = guest.ring.store
    store.write(store.connect(0), "/local/domain/1/control/shutdown", b"poweroff")
    guest.ring.pump(guest)  # type: ignore[arg-type]
    assert guest.get() == [(XS.WATCH_EVENT, b"control/shutdown\0t\0")]


def test_a_transaction_over_the_wire(guest: Guest) -> None:
    guest.ask(XS.TRANSACTION_START, b"\0")
    assert guest.ask(XS.WRITE, b"data\0new", tx_id=1) == [(XS.WRITE, b"OK\0")]
    assert guest.ask(XS.READ, b"data\0") == [(XS.READ, b"")]
    assert guest.ask(XS.TRANSACTION_END, b"T\0", tx_id=1) == [(XS.TRANSACTION_END, b"OK\0")]
    assert guest.ask(XS.READ, b"data\0") == [(XS.READ, b"new")]
    assert guest.ask(XS.READ, b"data\0", tx_id=1) == [(XS.ERROR, b"ENOENT\0")]


def test_reset_watches_drops_watches_and_transactions(guest: Guest) -> None:
    guest.ask(XS.WATCH, b"data\0t\0")
    guest.ask(XS.TRANSACTION_START, b"\0")
    guest.ask(XS.RESET_WATCHES, b"\0")
    assert guest.ask(XS.WRITE, b"data\0x") == [(XS.WRITE, b"OK\0")]
    assert guest.ring.connection.transactions == {}


def test_a_directory_part_starts_with_the_generation(guest: Guest) -> None:
    ((kind, payload),) = guest.ask(XS.DIRECTORY_PART, b"cpu/0\x000\0")
    generation, name, last, end = payload.split(b"\0")
    assert kind == XS.DIRECTORY_PART and generation.isdigit()
    assert (name, last, end) == (b"availability", b"", b"")


def test_an_answer_larger_than_the_ring_waits_for_room(guest: Guest) -> None:
    guest.put(message(XS.WRITE, b"data\0" + b"x" * 900))
    guest.notify()
    guest.put(message(XS.READ, b"data\0") * 2)
    guest.notify()
    assert RSP.room(guest.memory, MFN) == 0
    value = (XS.READ, b"x" * 900)
    assert guest.get() == [(XS.WRITE, b"OK\0"), value, value]


def test_no_request_is_taken_while_many_answers_wait(guest: Guest) -> None:
    guest.ask(XS.WRITE, b"data\0" + b"x" * 900)
    for _ in range(3):
        room = REQ.room(guest.memory, MFN) // 21
        guest.put(message(XS.READ, b"data\0") * room)
        guest.notify()
    assert len(guest.ring.outgoing) == MAX_OUTSTANDING
    assert REQ.used(guest.memory, MFN) > 0
    assert len(guest.get()) > 2 * MAX_OUTSTANDING  # and all are answered in the end


def test_too_long_a_payload_ends_the_connection(guest: Guest) -> None:
    guest.put(xsd_sockmsg(XS.READ, 0, 0, 4097).pack(8))
    guest.notify()
    assert guest.error == XENSTORE_ERROR_PROTO
    assert guest.ask(XS.READ, b"name\0") == []


@pytest.mark.parametrize("ring", [REQ, RSP])
def test_nonsense_indices_end_the_connection(guest: Guest, ring: object) -> None:
    guest.put(message(XS.WATCH, b"data\0t\0"))
    offset = REQ.prod if ring is REQ else RSP.prod
    guest.memory.write_uint(Maddr(PAGE_SIZE + offset), 4, 5000)
    guest.notify()
    assert guest.error == XENSTORE_ERROR_RINGIDX
    assert (guest.ring.connection.watches, guest.ring.outgoing) == ([], type(guest.ring.outgoing)())


@given(st.lists(st.binary(max_size=1024), max_size=20))
def test_random_bytes_break_nothing(chunks: list[bytes]) -> None:
    guest = Guest()
    for chunk in chunks:
        guest.put(chunk[: REQ.room(guest.memory, MFN)])
        guest.notify()
    assert len(guest.ring.incoming) <= 16 + 4096
    assert len(guest.ring.outgoing) <= MAX_OUTSTANDING


KINDS = st.integers(0, 24)
WORDS = st.sampled_from([b"data", b"data/x", b"", b"t", b"T", b"n1", b"0", b"@x", b"/", b"name"])
REQUESTS = st.tuples(KINDS, st.lists(WORDS, max_size=3), st.integers(0, 3), st.booleans())


@given(st.lists(REQUESTS, max_size=40))
def test_any_requests_in_any_order_are_each_answered_once(
    requests: list[tuple[int, list[bytes], int, bool]],
) -> None:
    guest = Guest()
    for kind, words, tx_id, ended in requests:
        payload = b"\0".join(words) + (b"\0" if ended else b"")
        replies = [r for r in guest.ask(kind, payload, tx_id) if r[0] != XS.WATCH_EVENT]
        assert len(replies) == 1 and replies[0][0] in (kind, XS.ERROR)


@given(st.binary(min_size=2076, max_size=2076))
def test_whatever_the_page_holds_nothing_breaks(page: bytes) -> None:
    guest = Guest()
    guest.memory.write(Maddr(PAGE_SIZE), page)
    guest.notify()
    assert guest.memory.read(Maddr(0), PAGE_SIZE) == bytes(PAGE_SIZE)


def test_is_plain_data(guest: Guest) -> None:
    guest.ask(XS.WATCH, b"data\0t\0")
    guest.put(message(XS.READ, b"name\0")[:10])
    guest.notify()
    assert pickle.loads(pickle.dumps(guest.ring)) == guest.ring


def test_two_domains_share_a_store_through_a_restore() -> None:
    store = Store()
    rings = [XenstoreRing(MFN, PORT, store=store) for _ in range(2)]
    for domid, ring in enumerate(rings, 1):
        ring.connection = store.connect(domid)
    connections = [ring.connection for ring in rings]
    store.watch(rings[1].connection, "/tool", b"token")
    states = [ring.save() for ring in rings]
    store.write(Connection(0), "/tool/a", b"1")
    rings[1].connection.reset()
    rings[0].error = XENSTORE_ERROR_PROTO
    for _ in range(2):
        for ring, state in zip(rings, states, strict=True):
            ring.restore(state)
        assert [ring.connection for ring in rings] == store.connections
        assert all(map(operator.is_, store.connections, connections))
        assert all(ring.store is store for ring in rings)
        assert "/tool" not in store.nodes
        assert (rings[0].error, [watch.token for watch in connections[1].watches]) == (
            0,
            [b"token"],
        )
        store.write(Connection(0), "/tool", b"1")
