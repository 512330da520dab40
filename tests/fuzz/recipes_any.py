"""Recipes for every guest: grants, ports, FIFO queues, waiting, the xenstore."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import TYPE_CHECKING

from fakes import DOMID
from fuzz.furnish import GRANTED
from fuzz.making import call, grant_op, pages, store, sub_op
from fuzz.world import Step
from xenemu.abi.event_channel import (
    EVTCHNOP_alloc_unbound,
    EVTCHNOP_bind_interdomain,
    EVTCHNOP_bind_ipi,
    EVTCHNOP_bind_vcpu,
    EVTCHNOP_bind_virq,
    EVTCHNOP_close,
    EVTCHNOP_expand_array,
    EVTCHNOP_init_control,
    EVTCHNOP_reset,
    EVTCHNOP_send,
    EVTCHNOP_set_priority,
    EVTCHNOP_unmask,
    EVTCHNSTAT_closed,
    EVTCHNSTAT_unbound,
)
from xenemu.abi.grant_table import (
    GNTMAP_contains_pte,
    GNTMAP_device_map,
    GNTMAP_host_map,
    GNTMAP_readonly,
    gnttab_map_grant_ref,
    gnttab_unmap_and_replace,
    gnttab_unmap_grant_ref,
)
from xenemu.abi.io.xs_wire import XS, xenstore_domain_interface
from xenemu.abi.sched import SCHEDOP_block, SCHEDOP_poll, SCHEDOP_yield, sched_poll
from xenemu.abi.xen import DOMID_SELF, Nr, Virq
from xenemu.dom0.xenstore import XenstoreRing
from xenemu.x86.paging import PAGE_SHIFT

if TYPE_CHECKING:
    from fuzz.steps import Steps

XS_REQ_CONS = xenstore_domain_interface.offsetof("req_cons", 8)
XS_RSP_CONS = xenstore_domain_interface.offsetof("rsp_cons", 8)
UNMAP, UNMAP_AND_REPLACE = 1, 7  # GNTTABOP_*

PATHS = (
    "name", "memory/target", "/local/domain/1/name", "data", "data/a", "control/shutdown", "/",
    "/local/domain/0", "/vm", "device/vif/0", "@introduceDomain", "@releaseDomain", "a" * 300,
    "/local/domain/1/data/../x", "", "data//b", "/local/domain/1",
)  # fmt: skip
OWN_PATHS = ("data", "data/a", "data/a/b", "data/a/c", "data/d/e/f", "data/d")


def grants(steps: Steps) -> Iterator[Step]:
    """Grants of the guest's own, mapped in a way, and unmapped in parts, in other ways."""
    random, domain = steps.random, steps.world.current.domain
    made: list[tuple[int, int]] = []  # a handle, and where it was mapped
    for _ in range(random.choice((1, 1, 2, 3))):
        before = set(domain.grants.maptrack.mappings)
        op = _grant_to_map(steps)
        yield grant_op(steps, 0, op)
        new = set(domain.grants.maptrack.mappings) - before
        made += [(handle, op.host_addr) for handle in new]
    while made:
        handle, host_addr = random.choice(made)
        mapping = domain.grants.maptrack.mappings.get(handle)
        if mapping is None or random.random() < 0.1:
            made.remove((handle, host_addr))
            continue
        dev_bus_addr = domain.grants.active[mapping.ref].mfn << PAGE_SHIFT
        host, device = random.choice(((1, 1), (1, 0), (0, 1)))
        if random.random() < 0.1:
            (elsewhere,) = pages(steps, 1)
            replace = gnttab_unmap_and_replace(host_addr, elsewhere, handle, 0)
            yield grant_op(steps, UNMAP_AND_REPLACE, replace)
        else:
            undo = gnttab_unmap_grant_ref(host_addr * host, dev_bus_addr * device, handle, 0)
            yield grant_op(steps, UNMAP, undo)


def _grant_to_map(steps: Steps) -> gnttab_map_grant_ref:
    random = steps.random
    kinds = random.choice((GNTMAP_device_map, GNTMAP_host_map, GNTMAP_device_map | GNTMAP_host_map))
    flags = kinds | random.choice((0, GNTMAP_readonly))
    (host_addr,) = pages(steps, 1)
    if not steps.pv:
        flags &= ~GNTMAP_device_map
        flags |= GNTMAP_host_map
    elif random.random() < 0.2:
        flags |= GNTMAP_contains_pte
        host_addr = steps.values.machine_address()
    return gnttab_map_grant_ref(host_addr, flags, random.choice(GRANTED), DOMID, 0, 0, 0)


def ports(steps: Steps) -> Iterator[Step]:
    """Ports of the guest's that are connected to each other, or are to be."""
    random, channels = steps.random, steps.world.current.domain.events.channels
    yield event(steps, EVTCHNOP_alloc_unbound, "<HHI", DOMID_SELF, DOMID_SELF, 0)
    for _ in range(random.randrange(2, 9)):
        waiting = [n for n, one in enumerate(channels) if one.state == EVTCHNSTAT_unbound]
        closed = [n for n, one in enumerate(channels) if one.state == EVTCHNSTAT_closed]
        others = [n for n, one in enumerate(channels) if one.state > EVTCHNSTAT_unbound]
        # The first that is closed, but for port 0, is the next that anybody gets.
        port = random.choice([*waiting, *waiting, *others, *closed[1:2]])
        command = random.choice((EVTCHNOP_bind_interdomain,) * 3 + PORT_COMMANDS)
        if command == EVTCHNOP_bind_interdomain:
            yield event(steps, command, "<HxxII", DOMID_SELF, port, 0)
        elif command == EVTCHNOP_alloc_unbound:
            yield event(steps, command, "<HHI", DOMID_SELF, DOMID_SELF, 0)
        else:
            yield event(steps, command, "<II", port, 0)


PORT_COMMANDS = (
    EVTCHNOP_alloc_unbound, EVTCHNOP_close, EVTCHNOP_close, EVTCHNOP_send, EVTCHNOP_unmask,
    EVTCHNOP_bind_vcpu,
)  # fmt: skip
FIFO_COMMANDS = (
    (EVTCHNOP_send, 0), (EVTCHNOP_send, 0), (EVTCHNOP_send, 0), (EVTCHNOP_unmask, 0),
    (EVTCHNOP_set_priority, 3), (EVTCHNOP_bind_vcpu, 1), (EVTCHNOP_close, 0),
)  # fmt: skip
FIFO_WORDS = (0, 1 << 30, 1 << 31, 1 << 29, 5 | 1 << 29)


def fifo(steps: Steps) -> Iterator[Step]:
    """The FIFO ABI, with ports of each kind, words that the guest unmasks, and events."""
    values, random = steps.values, steps.random
    control, array = pages(steps, 2)
    where = struct.pack("<QIIB7x", values.own_frame(control), 0, random.randrange(2), 0)
    yield event(steps, EVTCHNOP_init_control, "24s", where)
    yield event(steps, EVTCHNOP_expand_array, "<Q", values.own_frame(array))
    for _ in range(3):
        yield event(steps, EVTCHNOP_bind_ipi, "<II", random.randrange(2), 0)
    yield event(steps, EVTCHNOP_alloc_unbound, "<HHI", DOMID_SELF, DOMID_SELF, 0)
    for _ in range(random.randrange(1, 12)):
        port = random.randrange(8)
        if random.randrange(6) == 0:
            word = struct.pack("<I", random.choice(FIFO_WORDS))
            yield store((array + 4 * port, word))
        else:
            command, more = random.choice(FIFO_COMMANDS)
            yield event(steps, command, "<II", port, more)
    if random.random() < 0.2:
        yield event(steps, EVTCHNOP_reset, "<Hxx", DOMID_SELF)


def event(steps: Steps, command: int, layout: str, *fields: int | bytes) -> Step:
    """event_channel_op, with its struct."""
    where = steps.values.put(struct.pack(layout, *fields))
    return call(steps, Nr.event_channel_op, command, where)


def waiting(steps: Steps) -> Iterator[Step]:
    """A timer and an event, for which the vcpu then waits, blocked or polling."""
    values, random, world = steps.values, steps.random, steps.world
    yield event(steps, EVTCHNOP_bind_virq, "<III", Virq.TIMER, 0, 0)
    for _ in range(random.randrange(1, 5)):
        when = world.current.cpu.now_ns + random.choice((0, 1000, 10**6))
        split = [when] if values.wide else [when & 0xFFFFFFFF, when >> 32]
        yield call(steps, Nr.set_timer_op, *split)
        port = world.current.domain.events.virqs.get((0, Virq.TIMER), 1)
        wait = random.choice((SCHEDOP_block, SCHEDOP_block, SCHEDOP_poll, SCHEDOP_yield))
        if wait == SCHEDOP_poll:
            wanted = random.choice(([port], [port, port], [values.port()], []))
            until = random.choice((0, when, when + 10**6, when + 10**9))
            where = values.words(wanted, 4) if wanted else 0
            yield sub_op(steps, Nr.sched_op, wait, sched_poll(where, len(wanted), until))
        else:
            yield call(steps, Nr.sched_op, wait, 0)
        if random.random() < 0.3:
            yield event(steps, EVTCHNOP_unmask, "<II", port, 0)


def store_request(steps: Steps) -> Iterator[Step]:
    """Messages in the ring of the xenstore that may well be wrong."""
    random = steps.random
    messages = b""
    for n in range(random.choice((1, 1, 2, 5))):
        parts = [random.choice(PATHS).encode() for _ in range(random.choice((1, 1, 2, 3)))]
        body = b"\0".join(parts) + random.choice((b"\0", b"\0", b"", b"\0token\0", b"T\0"))
        size = len(body) if random.random() < 0.95 else random.choice((0, 4096, 4097, 1 << 31))
        kind = random.randrange(24) if random.random() < 0.95 else random.getrandbits(32)
        messages += struct.pack("<4I", kind, n, random.choice((0, 0, 0, 1, 2, 7)), size) + body
    yield from _send(steps, messages, 0.05)


def store_tree(steps: Steps) -> Iterator[Step]:
    """Nodes of the guest's own that come and go, in transactions and out of them."""
    random, ring = steps.random, steps.world.current.domain.backends["xenstore"]
    assert isinstance(ring, XenstoreRing)
    for n in range(random.randrange(2, 10)):
        running = [0, *ring.connection.transactions]
        kind, rest = random.choice(TREE_REQUESTS)
        transaction = random.choice(running) if kind not in (XS.WATCH, XS.UNWATCH) else 0
        body = rest if kind in WITHOUT_PATH else random.choice(OWN_PATHS).encode() + rest
        yield from _send(steps, struct.pack("<4I", kind, n, transaction, len(body)) + body, 0)


WITHOUT_PATH = (XS.TRANSACTION_START, XS.TRANSACTION_END, XS.RESET_WATCHES)
TREE_REQUESTS = (
    *((XS.WRITE, b"\0value"),) * 4, *((XS.RM, b"\0"),) * 2, (XS.MKDIR, b"\0"),
    (XS.SET_PERMS, b"\0n1\0r0\0"), (XS.DIRECTORY, b"\0"), (XS.WATCH, b"\0token\0"),
    (XS.UNWATCH, b"\0token\0"), (XS.TRANSACTION_START, b"\0"), (XS.TRANSACTION_END, b"T\0"),
    (XS.TRANSACTION_END, b"F\0"), (XS.RESET_WATCHES, b"\0"),
)  # fmt: skip


def _send(steps: Steps, messages: bytes, wrong: float) -> Iterator[Step]:
    """Put messages into the xenstore's ring, and tell of them; take the answers, as a rule."""
    random, xenstore = steps.random, steps.world.windows["xenstore"]
    for start in range(0, min(len(messages), 4096), 1024):
        piece = messages[start : start + 1024]
        produced = len(piece)
        if random.random() < wrong:
            produced += random.choice((1, 1024, 1025, 1 << 31))
        indices = struct.pack("<II", 0, produced & 0xFFFFFFFF)
        yield store((xenstore, piece), (xenstore + XS_REQ_CONS, indices))
    if random.random() < 0.7:
        yield store((xenstore + XS_RSP_CONS, bytes(8)))
