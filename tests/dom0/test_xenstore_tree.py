"""xenemu/dom0/xenstore_tree.py"""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xenemu.abi import errno
from xenemu.dom0.xenstore_model import (
    MAX_ENTRIES,
    MAX_TRANSACTION_NODES,
    Access,
    Connection,
    Event,
    Permission,
    Transaction,
)
from xenemu.dom0.xenstore_tree import Store
from xenemu.errors import XenError

READ_ONLY = (Permission(0, Access.NONE), Permission(1, Access.READ))
OWN = (Permission(1, Access.NONE),)
DOM0 = Connection(0)


@pytest.fixture
def store() -> Store:
    """Domain 1 may read its home, and owns ``data`` in it."""
    store = Store()
    store.mkdir(DOM0, "/local/domain/1")
    store.set_perms(DOM0, "/local/domain/1", READ_ONLY)
    store.mkdir(DOM0, "/local/domain/1/data")
    store.set_perms(DOM0, "/local/domain/1/data", OWN)
    return store


@pytest.fixture
def guest(store: Store) -> Connection:
    return store.connect(1)


def begin(store: Store, conn: Connection) -> Transaction:
    tx = conn.transaction(store.transaction_start(conn))
    assert tx is not None
    return tx


def refused(store: Store, expected: int, operation: Callable[..., object], *args: object) -> None:
    """The operation fails with this errno and leaves the nodes as they were."""
    before = copy.deepcopy((store.nodes, store.entries))
    with pytest.raises(XenError) as error:
        operation(*args)
    assert errno.NAMES[error.value.errno] == errno.NAMES[expected]
    assert (store.nodes, store.entries) == before


# Nodes.


def test_a_value_is_read_as_it_was_written(store: Store, guest: Connection) -> None:
    store.write(guest, "data/x", b"\0binary\xff")
    assert store.read(guest, "/local/domain/1/data/x") == b"\0binary\xff"


def test_children_are_listed_in_the_order_of_their_creation(
    store: Store, guest: Connection
) -> None:
    for name in ("b", "c", "a"):
        store.mkdir(guest, f"data/{name}")
    assert store.directory(guest, "data") == ("b", "c", "a")


def test_parents_are_made_and_inherit_permissions_but_the_owner(
    store: Store, guest: Connection
) -> None:
    store.set_perms(guest, "data", (*OWN, Permission(2, Access.READ)))
    store.write(guest, "data/x/y", b"1")
    assert store.get_perms(guest, "data/x") == (*OWN, Permission(2, Access.READ))
    assert store.entries[1] == 3


def test_mkdir_of_what_exists_changes_nothing(store: Store, guest: Connection) -> None:
    store.write(guest, "data", b"value")
    before = dict(store.nodes)
    store.mkdir(guest, "data")
    assert store.nodes == before


def test_rm_takes_all_below(store: Store, guest: Connection) -> None:
    store.write(guest, "data/x/y/z", b"")
    store.rm(guest, "data/x")
    assert store.directory(guest, "data") == ()
    assert store.entries[1] == 1
    refused(store, errno.ENOENT, store.read, guest, "data/x/y")


def test_rm_of_nothing_is_fine_below_a_node_that_exists(store: Store, guest: Connection) -> None:
    store.rm(guest, "data/x")
    refused(store, errno.ENOENT, store.rm, guest, "data/x/y")


def test_the_root_stays(store: Store) -> None:
    refused(store, errno.EINVAL, store.rm, DOM0, "/")


def test_a_transaction_removes_nothing_whose_parent_it_saw_missing(
    store: Store, guest: Connection
) -> None:
    tx = begin(store, guest)
    refused(store, errno.ENOENT, store.read, guest, "data/a", tx)
    store.mkdir(guest, "data/a/b")  # by others, meanwhile
    refused(store, errno.EINVAL, store.rm, guest, "data/a/b", tx)


def test_a_deep_path_is_removed_without_recursion(store: Store) -> None:
    path = "/d" * 1000
    store.mkdir(DOM0, path)
    store.rm(DOM0, "/d")
    assert not [path for path in store.nodes if path.startswith("/d")]


@pytest.mark.parametrize(
    "path",
    ["", "data/", "data//x", "da ta", "data.x", "d\xe4ta", "@special", "data\n", "/a" * 1500],
)
def test_a_bad_path_is_einval(store: Store, guest: Connection, path: str) -> None:
    refused(store, errno.EINVAL, store.write, guest, path, b"")
    refused(store, errno.EINVAL, store.read, guest, path)


def test_the_limit_of_a_path_starts_behind_the_domains_home(
    store: Store, guest: Connection
) -> None:
    store.write(guest, "data/" + "x" * 1000, b"")
    assert store.read(guest, "data/" + "x" * 1000) == b""
    refused(store, errno.ENOENT, store.read, guest, "data/" + "x" * 2043)
    refused(store, errno.EINVAL, store.read, guest, "data/" + "x" * 2044)


def test_a_long_directory_is_read_in_parts_of_whole_names(store: Store) -> None:
    names = [f"{i:0100}" for i in range(50)]
    for name in names:
        store.mkdir(DOM0, f"/big/{name}")
    whole, offset = b"", 0
    for _ in range(2):
        generation, part = store.directory_part(DOM0, "/big", offset)
        whole, offset = whole + part, offset + len(part)
        assert len(str(generation)) + 1 + len(part) <= 4096
        assert part.endswith(b"\0")
    assert whole.split(b"\0") == [name.encode() for name in names] + [b"", b""]
    assert store.directory_part(DOM0, "/big", 99999)[1] == b"\0"


# Permissions.


def test_a_node_below_one_of_anothers_is_eacces(store: Store, guest: Connection) -> None:
    for operation in (store.mkdir, store.rm):
        refused(store, errno.EACCES, operation, guest, "x")
    refused(store, errno.EACCES, store.write, guest, "x", b"")
    refused(store, errno.EACCES, store.read, guest, "/elsewhere")


def test_only_the_owner_sets_permissions(store: Store, guest: Connection) -> None:
    refused(store, errno.EACCES, store.set_perms, guest, "/local/domain/1", OWN)


def test_a_domain_does_not_give_its_nodes_away(store: Store, guest: Connection) -> None:
    others = (Permission(2, Access.NONE),)
    refused(store, errno.EPERM, store.set_perms, guest, "data", others)


def test_permissions_are_counted(store: Store, guest: Connection) -> None:
    refused(store, errno.ENOSPC, store.set_perms, guest, "data", OWN * 6)
    refused(store, errno.EINVAL, store.set_perms, guest, "data", ())


def test_special_permissions_are_the_control_domains(store: Store, guest: Connection) -> None:
    refused(store, errno.EACCES, store.set_perms, guest, "@releaseDomain", OWN)
    refused(store, errno.EINVAL, store.set_perms, guest, "@other", OWN)


# Quotas.


def test_an_entry_has_less_than_2048_bytes(store: Store, guest: Connection) -> None:
    refused(store, errno.ENOSPC, store.write, guest, "data", bytes(2048 - 32))
    refused(store, errno.ENOSPC, store.write, guest, "data/x", bytes(2048 - 32))
    store.write(guest, "data", bytes(2048 - 33))


def test_a_domain_has_1000_entries(store: Store, guest: Connection) -> None:
    for i in range(MAX_ENTRIES):
        if store.entries[1] < MAX_ENTRIES - 1:
            store.mkdir(guest, f"data/{i // 100}/{i % 100}")
    refused(store, errno.ENOSPC, store.mkdir, guest, "data/x/y")
    store.mkdir(guest, "data/x")
    assert store.entries[1] == MAX_ENTRIES
    refused(store, errno.ENOSPC, store.write, guest, "data/y", b"")


# Transactions.


def test_a_transaction_is_seen_when_it_commits(store: Store, guest: Connection) -> None:
    tx = begin(store, guest)
    store.write(guest, "data/x", b"1", tx)
    assert store.read(guest, "data/x", tx) == b"1"
    refused(store, errno.ENOENT, store.read, guest, "data/x")
    store.transaction_end(guest, tx, commit=True)
    assert store.read(guest, "data/x") == b"1"
    assert store.entries[1] == 2


def test_an_aborted_transaction_leaves_nothing(store: Store, guest: Connection) -> None:
    before = dict(store.nodes)
    tx = begin(store, guest)
    store.rm(guest, "data", tx)
    store.transaction_end(guest, tx, commit=False)
    assert (store.nodes, guest.transactions) == (before, {})


def test_a_change_of_a_node_that_was_read_is_a_conflict(store: Store, guest: Connection) -> None:
    tx = begin(store, guest)
    store.read(guest, "data", tx)
    store.write(guest, "data/x", b"1", tx)
    store.write(guest, "data", b"2")
    refused(store, errno.EAGAIN, store.transaction_end, guest, tx, True)
    assert guest.transactions == {}


def test_a_node_made_where_there_was_none_is_a_conflict(store: Store, guest: Connection) -> None:
    tx = begin(store, guest)
    with pytest.raises(XenError):
        store.read(guest, "data/x", tx)
    store.mkdir(guest, "data/x")
    refused(store, errno.EAGAIN, store.transaction_end, guest, tx, True)


def test_changes_elsewhere_do_not_conflict(store: Store, guest: Connection) -> None:
    store.mkdir(guest, "data/x")
    tx = begin(store, guest)
    store.write(guest, "data", b"1", tx)
    store.write(guest, "data/x", b"2")
    store.transaction_end(guest, tx, commit=True)
    assert (store.read(guest, "data"), store.read(guest, "data/x")) == (b"1", b"2")


def test_transactions_neither_nest_nor_end_twice(store: Store, guest: Connection) -> None:
    tx = begin(store, guest)
    refused(store, errno.EBUSY, store.transaction_start, guest, tx)
    refused(store, errno.ENOENT, store.transaction_end, guest, None, True)


def test_a_domain_has_few_transactions(store: Store, guest: Connection) -> None:
    ids = [store.transaction_start(guest) for _ in range(11)]
    assert ids == list(range(1, 12))
    refused(store, errno.ENOSPC, store.transaction_start, guest)
    assert len(guest.transactions) == 11


def test_a_transaction_of_too_many_nodes_never_commits(store: Store, guest: Connection) -> None:
    tx = begin(store, guest)
    with pytest.raises(XenError) as error:
        for i in range(MAX_TRANSACTION_NODES + 1):
            store.rm(guest, f"data/{i}", tx)
    assert error.value.errno == errno.ENOSPC
    refused(store, errno.ENOMEM, store.transaction_end, guest, tx, True)


# Watches.


def fired(conn: Connection) -> list[tuple[str, bytes]]:
    """Take the events, as a transport that delivers them at once."""
    events, conn.events = conn.events, []
    for event in events:
        conn.delivered(event)
    return [tuple(event) for event in events]


def test_a_new_watch_fires_once(store: Store, guest: Connection) -> None:
    store.watch(guest, "nowhere", b"t")
    assert fired(guest) == [("nowhere", b"t")]


def test_changes_at_and_below_fire(store: Store, guest: Connection) -> None:
    store.watch(guest, "data", b"t")
    fired(guest)
    store.write(guest, "data/x/y", b"")
    store.write(guest, "data/x/y", b"")
    store.set_perms(guest, "data/x", OWN)
    store.read(guest, "data/x")
    assert fired(guest) == [("data/x/y", b"t"), ("data/x", b"t")]


def test_removal_fires_for_the_node_and_for_watched_ones_below(
    store: Store, guest: Connection
) -> None:
    store.write(guest, "data/x/y", b"")
    store.watch(guest, "data", b"above")
    store.watch(guest, "/local/domain/1/data/x/y", b"below")
    fired(guest)
    store.rm(guest, "data/x")
    assert fired(guest) == [("data/x", b"above"), ("/local/domain/1/data/x/y", b"below")]


def test_a_transaction_fires_when_it_commits(store: Store, guest: Connection) -> None:
    store.watch(guest, "data", b"t")
    fired(guest)
    tx = begin(store, guest)
    store.mkdir(guest, "data/x", tx)
    store.rm(guest, "data/x", tx)
    store.mkdir(guest, "data/y", tx)
    assert fired(guest) == []
    store.transaction_end(guest, tx, commit=True)
    assert fired(guest) == [("data/y", b"t")]


def test_a_change_that_may_not_be_read_does_not_fire(store: Store, guest: Connection) -> None:
    store.watch(guest, "/", b"t")
    fired(guest)
    store.write(DOM0, "/secret", b"")
    store.write(DOM0, "/local/domain/1/name", b"")
    assert fired(guest) == [("/local/domain/1/name", b"t")]


def test_who_loses_the_right_to_read_learns_of_it(store: Store, guest: Connection) -> None:
    store.mkdir(DOM0, "/shared/x")
    store.set_perms(DOM0, "/shared/x", READ_ONLY)
    store.watch(guest, "/shared/x", b"t")
    fired(guest)
    store.set_perms(DOM0, "/shared/x", READ_ONLY[:1])
    assert fired(guest) == [("/shared/x", b"t")]


def test_a_watch_is_registered_once_and_removed_once(store: Store, guest: Connection) -> None:
    store.watch(guest, "data", b"t")
    refused(store, errno.EEXIST, store.watch, guest, "/local/domain/1/data", b"t")
    store.unwatch(guest, "data", b"t")
    refused(store, errno.ENOENT, store.unwatch, guest, "data", b"t")
    assert guest.watches == []


def test_a_domain_has_few_watches(store: Store, guest: Connection) -> None:
    for i in range(129):
        store.watch(guest, "data", b"%d" % i)
    refused(store, errno.E2BIG, store.watch, guest, "data", b"x")
    assert len(guest.watches) == 129


def test_special_watches_are_accepted_and_never_fire_for_a_guest(
    store: Store, guest: Connection
) -> None:
    store.watch(guest, "@releaseDomain", b"t")
    assert fired(guest) == [Event("@releaseDomain", b"t")]
    refused(store, errno.EINVAL, store.watch, guest, "@" + "x" * 2048, b"t")


# The whole.

PATHS = st.sampled_from(["data", "data/a", "data/a/b", "data/c", "x", "/", "/local", "data/a/b/c"])
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["write", "mkdir", "rm", "set_perms", "begin", "commit", "abort"]),
        PATHS,
        st.integers(0, 2),
    ),
    max_size=30,
)


@given(STEPS)
def test_every_node_has_a_parent_that_lists_it_and_counts_agree(
    steps: list[tuple[str, str, int]],
) -> None:
    store = Store()
    store.mkdir(DOM0, "/local/domain/1/data")
    store.set_perms(DOM0, "/local/domain/1/data", OWN)
    guest = store.connect(1)
    for operation, path, which in steps:
        tx = guest.transactions.get(which)
        try:
            match operation:
                case "write":
                    store.write(guest, path, b"x", tx)
                case "mkdir" | "rm":
                    getattr(store, operation)(guest, path, tx)
                case "set_perms":
                    store.set_perms(guest, path, OWN, tx)
                case "begin":
                    store.transaction_start(guest)
                case _:
                    store.transaction_end(guest, tx, operation == "commit")
        except XenError:
            pass
    listed = {
        f"{'' if path == '/' else path}/{name}"
        for path, node in store.nodes.items()
        for name in node.children
    }
    assert listed == set(store.nodes) - {"/"}
    owned = [path for path, node in store.nodes.items() if node.owner == 1]
    assert store.entries[1] == len(owned)


def test_is_plain_data(store: Store, guest: Connection) -> None:
    store.watch(guest, "data", b"t")
    store.mkdir(guest, "data/x", begin(store, guest))
    assert pickle.loads(pickle.dumps(store)) == store
