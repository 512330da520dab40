"""Hostile frontends, for a moment; and a fault of a backend's is found."""

from __future__ import annotations

import pytest

from fuzz.devices import GUESTS, Failed, fuzz
from xenemu.dom0 import grants
from xenemu.dom0.block import Block
from xenemu.dom0.bus import BusBackend

STEPS = 2000


@pytest.mark.parametrize("kind", GUESTS)
def test_nothing_fails_and_nothing_grows(kind: str) -> None:
    assert fuzz(kind, 1, STEPS) < 1000


@pytest.mark.parametrize(
    ("owner", "name"), [(grants, "unmap_grant"), (BusBackend, "_forget"), (Block, "own_handles")]
)
def test_what_a_backend_forgets_is_found(
    owner: object, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(owner, name, lambda *arguments: ())
    with pytest.raises(Failed, match="block, seed 1, step"):
        fuzz("block", 1, STEPS)
