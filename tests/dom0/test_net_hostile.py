"""dom0/net: a frontend that does anything at all harms nobody but itself."""

from __future__ import annotations

from netfuzz import run


def test_a_hostile_frontend_harms_nobody_else() -> None:
    hostile = run(2000, seed=18)
    assert hostile.connected > 20 and hostile.disabled > 5  # it got as far as that
