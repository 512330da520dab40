"""What the xenstore consists of: nodes, permissions, watches, transactions, connections.

Plain data, with the quotas that bound it. Paths are text in Latin-1, a character a byte.

In Xen: tools/xenstore/xenstored_core.h, xenstored_watch.c, xenstored_transaction.c
"""

from __future__ import annotations

from dataclasses import field
from enum import IntFlag
from typing import Final, NamedTuple

from xenemu.abi.errno import ENOENT
from xenemu.abi.io.xs_wire import XENSTORE_PAYLOAD_MAX, XENSTORE_REL_PATH_MAX
from xenemu.errors import XenError
from xenemu.records import dataclass

# xenstored's default quotas of an unprivileged domain.
MAX_ENTRIES: Final = 1000
MAX_ENTRY_SIZE: Final = 2048
MAX_WATCHES: Final = 128
MAX_TRANSACTIONS: Final = 10
MAX_TRANSACTION_NODES: Final = 1024
MAX_PERMISSIONS: Final = 5
MAX_PATH: Final = XENSTORE_REL_PATH_MAX
MAX_OUTSTANDING: Final = 20  # requests
# DIVERGES: the memory quota counts undelivered watch events only; the rest is bounded by the
# quotas above.
MAX_MEMORY: Final = (2 << 20) + (512 << 10)

# What xenstored's record of a node takes beside the value and the children's names.
RECORD_HEADER: Final = 24
RECORD_PERMISSION: Final = 8


class Access(IntFlag):
    """What a permission grants; OWNER is what only the owner has."""

    NONE = 0
    READ = 1
    WRITE = 2
    OWNER = 4


class Permission(NamedTuple):
    """One of a node's permissions; the first names the owner, and what all others may do."""

    domid: int
    access: Access


Permissions = tuple[Permission, ...]


@dataclass(frozen=True)
class Node:
    """A node; `children` are names in the order of their creation."""

    value: bytes
    permissions: Permissions
    children: tuple[str, ...] = ()
    generation: int = 0

    @property
    def owner(self) -> int:
        return self.permissions[0].domid

    @property
    def record_size(self) -> int:
        """Bytes that count towards the quota of an entry's size."""
        names = sum(len(name) + 1 for name in self.children)
        permissions = RECORD_PERMISSION * len(self.permissions)
        return RECORD_HEADER + permissions + len(self.value) + names


class Event(NamedTuple):
    """A watch that fired: the path as its watcher names it, and the watcher's token."""

    path: str
    token: bytes


@dataclass(frozen=True)
class Watch:
    """A registered watch; `prefix` is what is left out of reported paths."""

    path: str
    token: bytes
    prefix: str = ""

    def reported(self, path: str) -> str:
        """A path as the watcher names it: relative if its watch was."""
        return path[len(self.prefix) :].removeprefix("/") if self.prefix else path

    def matches(self, path: str, exact: bool) -> bool:
        if exact or path == self.path:
            return path == self.path
        return self.path == "/" or path.startswith(self.path + "/")


@dataclass
class Accessed:
    """A node in a transaction: as the transaction sees it, and as it was when first seen."""

    node: Node | None
    generation: int
    permissions: Permissions | None
    modified: bool = False
    fires: bool = False
    exact: bool = False


@dataclass
class Transaction:
    """What a transaction has seen and changed; `entries` is nodes gained, by owner."""

    id: int
    accessed: dict[str, Accessed] = field(default_factory=dict)
    entries: dict[int, int] = field(default_factory=dict)
    failed: bool = False


@dataclass
class Connection:
    """A domain's session: its watches, its transactions, and its events not yet delivered.

    The transport takes `events`, and calls `delivered` when the domain has them. Until then an
    identical event is not posted again. `backend` is the one of dom0's that is the transport, or
    that has the session itself.
    """

    domid: int
    backend: str = ""
    watches: list[Watch] = field(default_factory=list)
    transactions: dict[int, Transaction] = field(default_factory=dict)
    next_transaction_id: int = 1
    events: list[Event] = field(default_factory=list)
    undelivered: set[Event] = field(default_factory=set)
    undelivered_bytes: int = 0

    @property
    def home(self) -> str:
        """Where relative paths start."""
        return f"/local/domain/{self.domid}"

    @property
    def privileged(self) -> bool:
        return self.domid == 0

    def transaction(self, tx_id: int) -> Transaction | None:
        """Find a transaction by its id; 0 means none; ENOENT if there is no such transaction."""
        if tx_id == 0:
            return None
        if tx_id not in self.transactions:
            raise XenError(ENOENT, f"there is no transaction {tx_id}")
        return self.transactions[tx_id]

    def post(self, event: Event) -> None:
        """Queue an event, unless it waits already, is too long, or the quota is used up."""
        size = event_size(event)
        too_much = self.undelivered_bytes + size > MAX_MEMORY
        if event in self.undelivered or size > XENSTORE_PAYLOAD_MAX or too_much:
            return
        self.events.append(event)
        self.undelivered.add(event)
        self.undelivered_bytes += size

    def delivered(self, event: Event) -> None:
        """Forget an event that has reached the domain."""
        if event in self.undelivered:
            self.undelivered.discard(event)
            self.undelivered_bytes -= event_size(event)

    def reset(self) -> None:
        """Drop all watches and transactions."""
        self.watches.clear()
        self.transactions.clear()

    def allowed(self, permissions: Permissions) -> Access:
        """What this connection may do with a node of these permissions."""
        if self.privileged or permissions[0].domid == self.domid:
            return Access.READ | Access.WRITE | Access.OWNER
        for permission in permissions[1:]:
            if permission.domid == self.domid:
                return permission.access
        return permissions[0].access


def event_size(event: Event) -> int:
    """The bytes of its message, which count against the quota."""
    return len(event.path) + 1 + len(event.token) + 1
