"""dom0/storecheck: a sentence for each thing that is wrong in the xenstore, and none otherwise."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from fakes import make_domain
from xenemu.dom0.xenstore import XenstoreRing
from xenemu.dom0.xenstore_model import MAX_WATCHES, Access, Connection, Permission, Watch

DOMAIN = make_domain()
DOM0 = Connection(0)
HOME = "/local/domain/1"


def busy_ring() -> XenstoreRing:
    """A store with nodes of both domains, in which a guest has a watch whose event waits."""
    ring = XenstoreRing()
    ring.connection = ring.store.connect(1)
    ring.store.mkdir(DOM0, HOME)
    ring.store.set_perms(DOM0, HOME, (Permission(1, Access.NONE),))
    ring.store.write(ring.connection, "data/a", b"1")
    ring.store.watch(ring.connection, "data", b"token")
    return ring


def test_a_busy_store_is_in_order() -> None:
    ring = busy_ring()
    assert ring.connection.undelivered
    assert list(ring.check(DOMAIN)) == []
    ring.store.rm(ring.connection, "data")
    assert list(ring.check(DOMAIN)) == []


def orphan(ring: XenstoreRing) -> None:
    del ring.store.nodes[f"{HOME}/data"]


def lose(ring: XenstoreRing) -> None:
    del ring.store.nodes[f"{HOME}/data/a"]


def miscount(ring: XenstoreRing) -> None:
    ring.store.entries[1] += 1


def forget_an_event(ring: XenstoreRing) -> None:
    ring.connection.events.clear()


def forget_its_size(ring: XenstoreRing) -> None:
    ring.connection.undelivered_bytes = 0


def watch_too_much(ring: XenstoreRing) -> None:
    ring.connection.watches = [Watch("/", b"%d" % n) for n in range(MAX_WATCHES + 2)]


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (orphan, f"{HOME}/data is not there, and its parent has 1 of it"),
        (lose, f"{HOME}/data/a is not there, and its parent has 1 of it"),
        (miscount, "d1 is counted 4 nodes of the xenstore, and has 3"),
        (forget_an_event, "the events that wait"),
        (forget_its_size, "is counted 0 bytes of events, and has 11"),
        (watch_too_much, "has 130 watches"),
    ],
)
def test_what_is_wrong_is_said(damage: Callable[[XenstoreRing], None], words: str) -> None:
    ring = busy_ring()
    damage(ring)
    assert any(words in fault for fault in ring.check(DOMAIN)), list(ring.check(DOMAIN))
