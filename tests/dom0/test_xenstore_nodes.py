"""xenemu/dom0/xenstore_nodes.py"""

from __future__ import annotations

import pytest

from xenemu.abi.errno import EACCES
from xenemu.dom0.xenstore_model import Connection
from xenemu.dom0.xenstore_nodes import populate
from xenemu.dom0.xenstore_tree import Store
from xenemu.errors import XenError

UUID = bytes(range(16))


@pytest.fixture
def store() -> Store:
    store = Store()
    populate(store, 1, "guest", UUID, 262144, 2, 0x123, 2, 0x124, 1)
    return store


@pytest.fixture
def guest(store: Store) -> Connection:
    return store.connect(1)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("name", b"guest"),
        ("domid", b"1"),
        ("vm", b"/vm/00010203-0405-0607-0809-0a0b0c0d0e0f"),
        ("memory/target", b"262144"),
        ("cpu/1/availability", b"online"),
        ("control/platform-feature-xs_reset_watches", b"1"),
        ("console/ring-ref", b"291"),
        ("console/port", b"2"),
        ("store/ring-ref", b"292"),
        ("/vm/00010203-0405-0607-0809-0a0b0c0d0e0f/name", b"guest"),
    ],
)
def test_the_guest_reads(store: Store, guest: Connection, path: str, value: bytes) -> None:
    assert store.read(guest, path) == value


@pytest.mark.parametrize(
    "path",
    ["control/shutdown", "control/feature-poweroff", "data/x", "attr/os", "console/backend-id"],
)
def test_the_guest_writes_what_is_its_own(store: Store, guest: Connection, path: str) -> None:
    store.write(guest, path, b"x")
    assert store.read(guest, path) == b"x"


@pytest.mark.parametrize("path", ["name", "memory/target", "new", "device/vif/0", "console/port"])
def test_the_guest_does_not_write_what_is_the_toolstacks(
    store: Store, guest: Connection, path: str
) -> None:
    before = dict(store.nodes)
    with pytest.raises(XenError) as refused:
        store.write(guest, path, b"x")
    assert refused.value.errno == EACCES
    assert store.nodes == before


def test_vcpus_beyond_those_that_are_online_are_for_hot_plug() -> None:
    store = Store()
    populate(store, 1, "guest", UUID, 65536, 3, 3, 2, 4, 1, online=1)
    said = [store.read(store.connect(1), f"cpu/{n}/availability") for n in range(3)]
    assert said == [b"online", b"offline", b"offline"]


def test_the_guest_does_not_see_other_domains(store: Store, guest: Connection) -> None:
    with pytest.raises(XenError) as refused:
        store.directory(guest, "/local/domain")
    assert refused.value.errno == EACCES


def test_two_domains_get_the_same_tree_whenever_it_is_made() -> None:
    first, second = Store(), Store()
    for store in (first, second):
        populate(store, 1, "guest", UUID, 65536, 1, 3, 2, 4, 1)
    assert list(first.nodes.items()) == list(second.nodes.items())


def test_a_domain_may_begin_with_less_memory_than_it_can_have() -> None:
    store = Store()
    populate(store, 1, "guest", UUID, 524288, 1, 3, 2, 4, 1, target_kb=262144)
    guest = store.connect(1)
    assert store.read(guest, "memory/target") == b"262144"
    assert store.read(guest, "memory/static-max") == b"524288"
