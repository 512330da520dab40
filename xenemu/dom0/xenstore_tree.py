"""The xenstore itself: nodes, permissions, watches and transactions. No I/O.

A `Store` holds the nodes of a host by absolute path, as xenstored does. Every operation is done for
a `Connection`, perhaps within a `Transaction`. A `Connection` is a domain's; domid 0 is privileged.
An operation raises XenError with the errno that xenstored would send. Paths are text in Latin-1, a
character for a byte. A relative path starts at the connection's ``/local/domain/<domid>``.

Nodes are immutable, so a transaction can hold the nodes that it saw. It records each node that it
touches. It commits if none of these has changed meanwhile. Otherwise it gets EAGAIN.

Header: public/io/xs_wire.h
In Xen: tools/xenstore/xenstored_core.c, xenstored_watch.c, xenstored_transaction.c
"""

from __future__ import annotations

import copy
import re
from dataclasses import field, replace
from typing import Final

from xenemu.abi.errno import (
    E2BIG,
    EACCES,
    EAGAIN,
    EBUSY,
    EEXIST,
    EINVAL,
    ENOENT,
    ENOMEM,
    ENOSPC,
    EPERM,
)
from xenemu.abi.io.xs_wire import XENSTORE_PAYLOAD_MAX, XENSTORE_REL_PATH_MAX
from xenemu.dom0.xenstore_model import (
    MAX_ENTRIES,
    MAX_ENTRY_SIZE,
    MAX_PATH,
    MAX_PERMISSIONS,
    MAX_TRANSACTION_NODES,
    MAX_TRANSACTIONS,
    MAX_WATCHES,
    Access,
    Accessed,
    Connection,
    Event,
    Node,
    Permission,
    Permissions,
    Transaction,
    Watch,
)
from xenemu.errors import XenError
from xenemu.hv.state.domain import Domain
from xenemu.records import dataclass

# DIVERGES: no write rate limit and no time limit on unread watch events, as xenstored measures
# both with the host's clock.

WATCH_FIRED: Final = 0  # the number of a backend's timer
NO_GENERATION: Final = -1  # of a node that does not exist

_VALID_PATH: Final = re.compile(r"/|(/[-0-9A-Za-z_@]+)+")
_DOMAIN_PREFIX: Final = re.compile(r"/local/domain/[0-9]{1,5}/")


def _parent(path: str) -> str:
    return path.rpartition("/")[0] or "/"


def _child(path: str, name: str) -> str:
    return f"/{name}" if path == "/" else f"{path}/{name}"


def _is_valid(path: str) -> bool:
    prefix = _DOMAIN_PREFIX.match(path)
    limit = MAX_PATH + (prefix.end() if prefix else 0)
    return len(path) <= limit and _VALID_PATH.fullmatch(path) is not None


def _root() -> dict[str, Node]:
    return {"/": Node(b"", (Permission(0, Access.NONE),))}


@dataclass
class Store:
    """All nodes by path, the connections whose watches may fire, and entries by owner."""

    nodes: dict[str, Node] = field(default_factory=_root)
    connections: list[Connection] = field(default_factory=list)
    entries: dict[int, int] = field(default_factory=dict)
    generation: int = 1

    def save(self) -> dict[str, object]:
        """All that it knows."""
        return copy.deepcopy(vars(self))

    def restore(self, state: dict[str, object]) -> None:
        """Know what `save` returned, and nothing else; who has a connection keeps it."""
        known = self.connections
        vars(self).update(copy.deepcopy(state))
        for n, mine in enumerate(known[: len(self.connections)]):
            vars(mine).update(vars(self.connections[n]))
            self.connections[n] = mine

    def connect(self, domid: int, backend: str = "") -> Connection:
        """Open a session for a domain, by one of dom0's backends."""
        connection = Connection(domid, backend)
        self.connections.append(connection)
        return connection

    def disconnect(self, connection: Connection) -> None:
        """End a session."""
        self.connections = [other for other in self.connections if other is not connection]

    def session(self, backend: str) -> Connection:
        """The session of a backend of dom0's, in a store from a snapshot; KeyError."""
        for connection in self.connections:
            if connection.backend == backend:
                return connection
        raise KeyError(f"the store has no session of {backend}")

    def wake(self, domain: Domain) -> None:
        """Have the backends of a domain's look at their events now, by a timer.

        Whoever has changed the store for a domain calls it.
        """
        for connection in self.connections:
            if connection.events and connection.backend:
                domain.timers.set((connection.backend, WATCH_FIRED), 0)

    # Operations on nodes.

    def read(self, conn: Connection, path: str, tx: Transaction | None = None) -> bytes:
        """Return a node's value; EINVAL, ENOENT, EACCES."""
        return self._readable(conn, path, tx).value

    def directory(
        self, conn: Connection, path: str, tx: Transaction | None = None
    ) -> tuple[str, ...]:
        """Return the names of a node's children, oldest first; EINVAL, ENOENT, EACCES."""
        return self._readable(conn, path, tx).children

    def directory_part(
        self, conn: Connection, path: str, offset: int, tx: Transaction | None = None
    ) -> tuple[int, bytes]:
        """Return the node's generation, and a part of its list of names, which end with NULs.

        The part starts `offset` bytes in the list, and holds whole names. The last part ends with
        an empty name. Errors are those of `directory`.
        """
        node = self._readable(conn, path, tx)
        names = b"".join(name.encode("latin-1") + b"\0" for name in node.children)
        if offset >= len(names):
            return node.generation, b"\0"
        room = XENSTORE_PAYLOAD_MAX - len(str(node.generation)) - 2
        end = len(names)
        if end - offset > room:
            end = max(offset, names.rfind(b"\0", offset, offset + room) + 1)
        part = names[offset:end]
        return node.generation, part + b"\0" if end == len(names) else part

    def write(
        self, conn: Connection, path: str, value: bytes, tx: Transaction | None = None
    ) -> None:
        """Set a node's value, making it and its parents if need be.

        EINVAL, EACCES; ENOSPC for an entry too large, or one too many.
        """
        path = self._canonical(conn, path)
        node = self._existing(conn, path, Access.WRITE, tx)
        if node is None:
            self._create(conn, path, value, tx)
        else:
            self._check_size(conn, changed := replace(node, value=value))
            self._put(conn, path, changed, tx)
        self._fire(path, tx)

    def mkdir(self, conn: Connection, path: str, tx: Transaction | None = None) -> None:
        """Make a node, and its parents, if there is none; errors as of `write`."""
        path = self._canonical(conn, path)
        if self._existing(conn, path, Access.WRITE, tx) is None:
            self._create(conn, path, b"", tx)
            self._fire(path, tx)

    def rm(self, conn: Connection, path: str, tx: Transaction | None = None) -> None:
        """Remove a node and everything below it.

        It is fine if there is no such node, but its parent is there. Else ENOENT. EINVAL, EACCES.
        """
        path = self._canonical(conn, path)
        if self._existing(conn, path, Access.WRITE, tx) is None:
            if self._get(conn, _parent(path), tx) is None:
                raise XenError(ENOENT, f"{path} has no parent")
            return
        if path == "/":
            raise XenError(EINVAL, "the root cannot be removed")
        parent = self._get(conn, _parent(path), tx)
        if parent is None:  # as the transaction saw it, before somebody made both
            raise XenError(EINVAL, f"to the transaction, {path} has no parent")
        self._fire(path, tx)
        for below in self._subtree(conn, path, tx):
            if below != path:
                self._fire(below, tx, exact=True)
            self._put(conn, below, None, tx)
        name = path.rpartition("/")[2]
        children = tuple(child for child in parent.children if child != name)
        self._put(conn, _parent(path), replace(parent, children=children), tx)

    def get_perms(self, conn: Connection, path: str, tx: Transaction | None = None) -> Permissions:
        """Return a node's permissions, the owner's first; EINVAL, ENOENT, EACCES."""
        return self._readable(conn, path, tx).permissions

    def set_perms(
        self, conn: Connection, path: str, permissions: Permissions, tx: Transaction | None = None
    ) -> None:
        """Replace a node's permissions.

        EACCES unless it is the connection's own, EPERM for another owner, ENOSPC for too many,
        EINVAL for none.
        """
        if not permissions:
            raise XenError(EINVAL, "a node needs an owner")
        if not conn.privileged and len(permissions) > MAX_PERMISSIONS:
            raise XenError(ENOSPC, f"more than {MAX_PERMISSIONS} permissions")
        if path in ("@introduceDomain", "@releaseDomain") and not conn.privileged:
            raise XenError(EACCES, f"{path} is the control domain's")
        path = self._canonical(conn, path)
        node = self._existing(conn, path, Access.WRITE | Access.OWNER, tx)
        if node is None:
            raise XenError(ENOENT, f"there is no {path}")
        if not conn.privileged and permissions[0].domid != node.owner:
            raise XenError(EPERM, "only a privileged domain gives nodes away")
        changed = replace(node, permissions=permissions)
        self._check_size(conn, changed)
        self._put(conn, path, changed, tx)
        self._fire(path, tx, before=node.permissions)

    # Transactions.

    def transaction_start(self, conn: Connection, tx: Transaction | None = None) -> int:
        """Begin a transaction and return its id; EBUSY within another, ENOSPC for too many."""
        if tx is not None:
            raise XenError(EBUSY, "transactions do not nest")
        if not conn.privileged and len(conn.transactions) > MAX_TRANSACTIONS:
            raise XenError(ENOSPC, f"more than {MAX_TRANSACTIONS} transactions")
        while conn.next_transaction_id in conn.transactions or not conn.next_transaction_id:
            conn.next_transaction_id = (conn.next_transaction_id + 1) & 0xFFFF_FFFF
        tx = Transaction(conn.next_transaction_id)
        conn.next_transaction_id = (conn.next_transaction_id + 1) & 0xFFFF_FFFF
        conn.transactions[tx.id] = tx
        return tx.id

    def transaction_end(self, conn: Connection, tx: Transaction | None, commit: bool) -> None:
        """End a transaction, in any case.

        ENOENT if there is none. A commit may get three errors, and then nothing changes: EAGAIN if
        a node that it touched has changed meanwhile, ENOMEM if one of its operations ran out of a
        quota, ENOSPC if it would exceed the number of entries.
        """
        if tx is None:
            raise XenError(ENOENT, "there is no transaction to end")
        del conn.transactions[tx.id]
        if not commit:
            return
        if tx.failed:
            raise XenError(ENOMEM, "an operation of the transaction failed")
        for owner, gained in tx.entries.items():
            if owner and gained and self.entries.get(owner, 0) + gained >= MAX_ENTRIES:
                raise XenError(ENOSPC, f"domain {owner} would have {MAX_ENTRIES} entries")
        for path, accessed in tx.accessed.items():
            if _generation(self.nodes.get(path)) != accessed.generation:
                raise XenError(EAGAIN, f"{path} has changed since it was read")
        for path, accessed in tx.accessed.items():
            if accessed.modified:
                self._put(conn, path, accessed.node, None)
        for path, accessed in tx.accessed.items():
            if accessed.fires:
                self._fire(path, None, exact=accessed.exact, before=accessed.permissions)

    # Watches.

    def watch(self, conn: Connection, path: str, token: bytes) -> None:
        """Register a watch, and fire it once.

        EINVAL for a bad path, EEXIST if it is there already, E2BIG for too many.
        """
        prefix = ""
        if path.startswith("@"):
            if len(path) > XENSTORE_REL_PATH_MAX:
                raise XenError(EINVAL, "the name of the special watch is too long")
        else:
            prefix = "" if path.startswith("/") else conn.home
            path = self._canonical(conn, path)
        watch = Watch(path, token, prefix)
        if any((w.path, w.token) == (path, token) for w in conn.watches):
            raise XenError(EEXIST, f"{path} is watched with this token already")
        if not conn.privileged and len(conn.watches) > MAX_WATCHES:
            raise XenError(E2BIG, f"more than {MAX_WATCHES} watches")
        conn.watches.append(watch)
        conn.post(Event(watch.reported(path), token))

    def unwatch(self, conn: Connection, path: str, token: bytes) -> None:
        """Remove a watch; ENOENT if there is none."""
        if not path.startswith(("/", "@")):
            path = f"{conn.home}/{path}"
        for watch in conn.watches:
            if (watch.path, watch.token) == (path, token):
                conn.watches.remove(watch)
                return
        raise XenError(ENOENT, f"{path} is not watched with this token")

    # Below: paths are absolute and valid.

    def _canonical(self, conn: Connection, path: str) -> str:
        """Make a path absolute; EINVAL if no node can have such a path."""
        if not path.startswith(("/", "@")):
            path = f"{conn.home}/{path}"
        if not _is_valid(path):
            raise XenError(EINVAL, f"{path[:80]!r} is not a valid path")
        return path

    def _readable(self, conn: Connection, path: str, tx: Transaction | None) -> Node:
        path = self._canonical(conn, path)
        node = self._existing(conn, path, Access.READ, tx)
        if node is None:
            raise XenError(ENOENT, f"there is no {path}")
        return node

    def _existing(
        self, conn: Connection, path: str, need: Access, tx: Transaction | None
    ) -> Node | None:
        """Find a node that the connection has all of `need` for.

        None only if the connection may know that there is no such node. It may, if it has some of
        `need` for the nearest node above. EACCES otherwise.
        """
        node = self._get(conn, path, tx)
        if node is not None:
            if conn.allowed(node.permissions) & need == need:
                return node
            raise XenError(EACCES, f"domain {conn.domid} has no {need!r} for {path}")
        above = node
        at = path
        while above is None:
            at = _parent(at)
            above = self._get(conn, at, tx)
        if not conn.allowed(above.permissions) & need:
            raise XenError(EACCES, f"domain {conn.domid} has no {need!r} for {at}")
        return None

    def _get(self, conn: Connection, path: str, tx: Transaction | None) -> Node | None:
        """Look a node up; a transaction remembers it. ENOSPC if that would be one too many."""
        if tx is None:
            return self.nodes.get(path)
        if path not in tx.accessed:
            if not conn.privileged and len(tx.accessed) >= MAX_TRANSACTION_NODES:
                tx.failed = True
                raise XenError(ENOSPC, f"more than {MAX_TRANSACTION_NODES} nodes in a transaction")
            node = self.nodes.get(path)
            permissions = node.permissions if node else None
            tx.accessed[path] = Accessed(node, _generation(node), permissions)
        return tx.accessed[path].node

    def _put(self, conn: Connection, path: str, node: Node | None, tx: Transaction | None) -> None:
        """Store a node, or with None remove it, and keep count of the owners' entries."""
        old = self._get(conn, path, tx)
        entries = self.entries if tx is None else tx.entries
        for changed, by in ((old, -1), (node, 1)):
            if changed is not None:
                entries[changed.owner] = entries.get(changed.owner, 0) + by
        if node is not None:
            node = replace(node, generation=self.generation)
        self.generation += 1
        if tx is not None:
            tx.accessed[path].node = node
            tx.accessed[path].modified = True
        elif node is not None:
            self.nodes[path] = node
        else:
            self.nodes.pop(path, None)

    def _create(self, conn: Connection, path: str, value: bytes, tx: Transaction | None) -> None:
        """Make a node and its missing parents, which inherit the permissions of the one above."""
        missing = []
        at = path
        while (above := self._get(conn, at, tx)) is None:
            missing.append(at)
            at = _parent(at)
        permissions = above.permissions
        if not conn.privileged:
            permissions = (Permission(conn.domid, permissions[0].access), *permissions[1:])
            held = self.entries.get(conn.domid, 0)
            held += tx.entries.get(conn.domid, 0) if tx else 0
            if held + len(missing) > MAX_ENTRIES:
                raise XenError(ENOSPC, f"domain {conn.domid} has {held} entries")
        made: dict[str, Node] = {}
        children: tuple[str, ...] = ()
        for new in missing:
            made[new] = Node(value if new == path else b"", permissions, children)
            children = (new.rpartition("/")[2],)
        made[at] = replace(above, children=above.children + children)
        for node in made.values():
            self._check_size(conn, node)
        for new, node in made.items():
            self._put(conn, new, node, tx)

    def _check_size(self, conn: Connection, node: Node) -> None:
        if not conn.privileged and node.record_size >= MAX_ENTRY_SIZE:
            raise XenError(ENOSPC, f"the entry would take {node.record_size} bytes")

    def _subtree(self, conn: Connection, path: str, tx: Transaction | None) -> list[str]:
        """The paths of a node and all below it, children before their parents."""
        order, todo = [], [path]
        while todo:
            at = todo.pop()
            order.append(at)
            node = self._get(conn, at, tx)
            todo += [_child(at, name) for name in node.children] if node else []
        return order[::-1]

    def _fire(
        self,
        path: str,
        tx: Transaction | None,
        exact: bool = False,
        before: Permissions | None = None,
    ) -> None:
        """Fire the watches of a changed node and, unless `exact`, of those above it.

        A connection learns of the change only if it may read the node now, or could read it under
        the permissions `before`, or may read the node's parent. In a transaction this waits for the
        commit.
        """
        if tx is not None:
            tx.accessed[path].fires = True
            tx.accessed[path].exact = exact
            return
        for conn in self.connections:
            if not self._may_see(conn, path, before):
                continue
            for watch in conn.watches:
                if watch.matches(path, exact):
                    conn.post(Event(watch.reported(path), watch.token))

    def _may_see(self, conn: Connection, path: str, before: Permissions | None) -> bool:
        if before is not None and conn.allowed(before) & Access.READ:
            return True
        node = self.nodes.get(path)
        if node is None:
            return False
        parent = self.nodes[_parent(path)]
        either = conn.allowed(node.permissions) | conn.allowed(parent.permissions)
        return bool(either & Access.READ)


def _generation(node: Node | None) -> int:
    return NO_GENERATION if node is None else node.generation
