"""hypercalls/set_timer_op.py"""

from __future__ import annotations

import pytest

from fakes import FakeCpu, make_current
from hypercalls.set_timer_op import set_timer_op
from xenemu.hv.current import Current
from xenemu.hv.scheduler import SINGLESHOT

NOW = 1_000_000
KEY = (SINGLESHOT, 0)


@pytest.fixture
def current() -> Current:
    current = make_current()
    assert isinstance(current.cpu, FakeCpu)
    current.cpu.now_ns = NOW
    return current


def call(current: Current, timeout_ns: int) -> int | None:
    assert set_timer_op.handler is not None
    return set_timer_op.handler(current, timeout_ns)


@pytest.mark.parametrize("timeout_ns", [NOW + 5, NOW, 1])
def test_the_timer_is_armed_also_for_the_past(current: Current, timeout_ns: int) -> None:
    assert call(current, timeout_ns) == 0
    assert current.domain.timers.deadlines_ns == {KEY: timeout_ns}


def test_0_stops_the_timer(current: Current) -> None:
    call(current, NOW + 5)
    call(current, 0)
    assert current.domain.timers.next_ns() is None


@pytest.mark.parametrize("timeout_ns", [1 << 63, (1 << 64) - 1, NOW + (1 << 50)])
def test_an_absurd_time_means_100_ms_from_now(current: Current, timeout_ns: int) -> None:
    call(current, timeout_ns)
    assert current.domain.timers.deadlines_ns == {KEY: NOW + 100_000_000}
