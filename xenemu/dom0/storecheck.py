"""Check the xenstore against itself: the tree, the counts for the quotas, and what waits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

from xenemu.dom0.xenstore_model import (
    MAX_MEMORY,
    MAX_TRANSACTIONS,
    MAX_WATCHES,
    Connection,
    Event,
    event_size,
)
from xenemu.dom0.xenstore_tree import Store


def check(store: Store, session: Connection, waits: Iterable[Event] | None) -> Iterator[str]:
    """A sentence for each thing that is not as it should be; none if all is well.

    `waits` are the events on their way to the guest that has `session`, if they are known.
    """
    yield from _tree(store)
    for connection in store.connections:
        yield from _connection(connection)
    if waits is not None and session.undelivered != {*waits}:
        yield "the events that wait in the xenstore are not those that are to be delivered"


def _tree(store: Store) -> Iterator[str]:
    """Each node but the root is its parent's child, once, and counted for its owner."""
    listed = Counter(
        f"{path.rstrip('/')}/{name}" for path, node in store.nodes.items() for name in node.children
    )
    for path in sorted(store.nodes.keys() - {"/"} | listed.keys()):
        if path not in store.nodes or listed[path] != 1:
            is_there = "is there" if path in store.nodes else "is not there"
            yield f"the xenstore's {path} {is_there}, and its parent has {listed[path]} of it"
    owned = Counter(node.owner for path, node in store.nodes.items() if path != "/")
    for owner in sorted(owned.keys() | store.entries.keys()):
        counted = store.entries.get(owner, 0)
        if counted != owned[owner]:
            yield f"d{owner} is counted {counted} nodes of the xenstore, and has {owned[owner]}"


def _connection(connection: Connection) -> Iterator[str]:
    """A guest's session is within its quotas; only the first quota may be passed, by one."""
    who = f"d{connection.domid}'s session with the xenstore"
    size = sum(event_size(event) for event in connection.undelivered)
    if connection.undelivered_bytes != size:
        yield f"{who} is counted {connection.undelivered_bytes} bytes of events, and has {size}"
    if connection.privileged:
        return
    watches, transactions = len(connection.watches), len(connection.transactions)
    if watches > MAX_WATCHES + 1 or transactions > MAX_TRANSACTIONS + 1 or size > MAX_MEMORY:
        yield f"{who} has {watches} watches, {transactions} transactions, {size} bytes of events"
