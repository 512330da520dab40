"""xenemu/dom0/xenstore_model.py"""

from __future__ import annotations

import pytest

from xenemu.abi.errno import ENOENT
from xenemu.dom0.xenstore_model import (
    MAX_MEMORY,
    Access,
    Connection,
    Event,
    Permission,
    Watch,
)
from xenemu.errors import XenError

ALL = Access.READ | Access.WRITE | Access.OWNER


@pytest.mark.parametrize(
    ("domid", "access"),
    [(0, ALL), (1, ALL), (2, Access.READ), (3, Access.NONE), (4, Access.WRITE)],
)
def test_the_owner_and_dom0_may_all_others_what_the_list_says(domid: int, access: Access) -> None:
    permissions = (
        Permission(1, Access.WRITE),
        Permission(2, Access.READ),
        Permission(3, Access.NONE),
    )
    assert Connection(domid).allowed(permissions) == access


@pytest.mark.parametrize(
    ("path", "exact", "fires"),
    [
        ("/a", False, True),
        ("/a/b", False, True),
        ("/ab", False, False),
        ("/", False, False),
        ("/a", True, True),
        ("/a/b", True, False),
    ],
)
def test_a_watch_fires_for_its_node_and_those_below(path: str, exact: bool, fires: bool) -> None:
    assert Watch("/a", b"t").matches(path, exact) is fires


def test_a_watch_of_the_root_fires_for_all() -> None:
    assert Watch("/", b"t").matches("/a/b", exact=False)


def test_a_relative_watch_reports_relative_paths() -> None:
    watch = Watch("/local/domain/1", b"t", "/local/domain/1")
    assert watch.reported("/local/domain/1/device/vif") == "device/vif"
    assert watch.reported("/local/domain/1") == ""


def test_an_event_that_waits_is_not_posted_again() -> None:
    connection = Connection(1)
    event = Event("a", b"t")
    connection.post(event)
    connection.post(event)
    assert connection.events == [event]
    connection.delivered(event)
    connection.post(event)
    assert connection.events == [event, event]


def test_an_event_longer_than_a_message_is_dropped() -> None:
    connection = Connection(1)
    connection.post(Event("a" * 4094, b"t"))
    assert (connection.events, connection.undelivered_bytes) == ([], 0)


def test_undelivered_events_are_bounded() -> None:
    connection = Connection(1)
    for i in range(1000):
        connection.post(Event("a" * 4000, b"%d" % i))
    assert connection.undelivered_bytes <= MAX_MEMORY
    assert len(connection.events) < 1000


def test_transaction_0_is_none_and_an_unknown_one_is_an_error() -> None:
    connection = Connection(1)
    assert connection.transaction(0) is None
    with pytest.raises(XenError) as refused:
        connection.transaction(1)
    assert refused.value.errno == ENOENT
