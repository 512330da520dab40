"""A bound on translated code costs time, and changes nothing else."""

from __future__ import annotations

import pytest

from tests.cpu.test_engine import CODE, INC_RAX
from tests.cpu.test_engine import engine as fresh_engine
from xenemu.cpu.engine import MIN_CACHE, Engine
from xenemu.hv.cpu import Reg
from xenemu.machine import limit_translations
from xenemu.x86.paging import Maddr

BLOCK = INC_RAX + b"\xeb\x00"  # and a jump to what follows
BLOCKS = 10_000  # more than the least cache has room for


def after_two_rounds(engine: Engine) -> tuple[object, int]:
    """Where many blocks in a circle have got to, and how many were translated."""
    circle = BLOCK * BLOCKS
    back = (-len(circle) - 5).to_bytes(4, "little", signed=True)
    engine._memory.write(Maddr(CODE), circle + b"\xe9" + back)
    for deadline in (BLOCKS, 2 * BLOCKS + 7, 4 * BLOCKS):
        engine.run(deadline)
    assert engine.regs[Reg.RAX] >= 2 * BLOCKS - 1
    state = (engine.rip, engine.regs[Reg.RAX], engine.instructions, engine.now_ns)
    return state, engine.statistics()["blocks_translated"]


def test_what_runs_does_not_depend_on_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Engine, "translation_cache", Engine.translation_cache)
    roomy, once = after_two_rounds(fresh_engine.__wrapped__())
    limit_translations(MIN_CACHE)
    tight, again = after_two_rounds(fresh_engine.__wrapped__())
    assert tight == roomy
    assert once < BLOCKS + 10 and again > BLOCKS * 3 / 2
