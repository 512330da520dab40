"""A domain may have any id: guests that use grants, ports and page tables run as they do as d1."""

from __future__ import annotations

from pathlib import Path

import pytest

from guests.build import ENVIRONMENTS, build, guests
from unattended import Unattended
from xenemu.hv.building import DomainConfig
from xenemu.image import load
from xenemu.machine import Machine

DOMID = 7
NAMES = ("attack-events", "attack-grants", "attack-writable-pt", "grant-tables", "physmap")
RUNS = [(name, kind) for name in NAMES for kind in guests()[name].environments]


@pytest.mark.parametrize(("name", "kind"), RUNS)
def test_a_guest_is_the_same_with_another_id(tmp_path: Path, name: str, kind: str) -> None:
    guest, environment = guests()[name], ENVIRONMENTS[kind]
    kernel = load(build(guest, environment, tmp_path / name))
    config = DomainConfig(64 << 20, guest.cmdline.encode(), domid=DOMID)
    machine, terminal = Machine(kernel, config, environment.mode), Unattended()
    outcome = machine.run(terminal, audit_ns=1_000_000)
    assert outcome.exit_code == guest.exit, outcome
    assert terminal.shown.decode().replace("\r\n", "\n") == guest.expected(kind)
    assert machine.domain.domid == DOMID
    assert machine.domain.frames.pages.keys() == {DOMID}
    store = machine.domain.backends["xenstore"].store  # type: ignore[attr-defined]
    assert store.nodes[f"/local/domain/{DOMID}/domid"].value == b"7"
    assert not any(path.startswith("/local/domain/1") for path in store.nodes)
