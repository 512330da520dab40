"""A guest that keeps the host busy: the host is looked at within its slices, however it does that.

How long that takes by a clock is for bench/storms.py.
"""

from __future__ import annotations

import pytest

from bench.storms import GUEST, STORMS
from guests.build import ENVIRONMENTS, build, guests
from unattended import Unattended
from xenemu.image import load
from xenemu.machine import DomainConfig, Machine
from xenemu.outcome import End, Outcome

LOOKS = 300  # enough that the guest has begun to do nothing else
LEFT = Outcome(End.STOPPED, "left")


class Impatient(Unattended):
    """A terminal whose person leaves at the `LOOKS`th look; all looks are due at once."""

    def __init__(self, machine: Machine) -> None:
        super().__init__()
        self.machine = machine
        self.looks = 0

    def leaves(self) -> bool:
        self.machine.engine._clock.looked_ns = 0
        self.looks += 1
        return self.looks >= LOOKS

    def check(self) -> Outcome | None:
        return LEFT if self.looks >= LOOKS else None


@pytest.mark.parametrize("environment", STORMS)
def test_the_host_gets_through(environment, tmp_path):
    kind = ENVIRONMENTS[environment]
    image = load(build(guests()[GUEST], kind, tmp_path / environment))
    for storm in STORMS[environment]:
        config = DomainConfig(64 << 20, storm.encode())
        machine = Machine(image, config, kind.mode)
        terminal = Impatient(machine)
        assert machine.run(terminal) is LEFT, storm
        assert terminal.looks == LOOKS, storm
        # None needs anything like the whole of a slice, which is 10 ms, for a look.
        assert machine.engine.now_ns < LOOKS * 100_000, storm
