"""xenemu/hv/scheduler.py"""

from __future__ import annotations

from itertools import pairwise

import pytest

from fakes import FakeCpu, make_current
from xenemu.abi.sched import SHUTDOWN_crash, SHUTDOWN_poweroff, SHUTDOWN_watchdog
from xenemu.abi.vcpu import vcpu_runstate_info
from xenemu.abi.xen import Virq
from xenemu.hv import event_channel, scheduler, waking
from xenemu.hv.current import Current
from xenemu.hv.scheduler import PERIODIC, SINGLESHOT, SLICE_NS, WATCHDOG
from xenemu.hv.shared_info import event_pending
from xenemu.hv.state.schedule import SHARED_SLICE_NS, Schedule
from xenemu.hv.state.vcpu import RunState
from xenemu.hv.waking import POLL

AREA = 0x20000
READ_ONLY = 0x5000


@pytest.fixture
def current() -> Current:
    current = make_current(vcpus=2)
    current.vcpu.runstate = RunState.RUNNING
    event_channel.bind_virq(current.domain, Virq.TIMER, 0)
    return current


def pass_time(current: Current, ns: int) -> None:
    assert isinstance(current.cpu, FakeCpu)
    current.cpu.now_ns += ns


def times(current: Current) -> list[int]:
    return current.vcpu.runstate_times_ns


def fire(current: Current, kind: str, number: int = 0) -> None:
    scheduler.TIMERS[kind](current, number)


# Blocking.


def test_a_blocked_vcpu_leaves_the_cpu(current: Current) -> None:
    scheduler.block(current)
    assert current.vcpu.blocked and not current.vcpu.runnable
    assert isinstance(current.cpu, FakeCpu) and current.cpu.stopped


def test_a_poll_is_over_when_its_vcpu_wakes(current: Current) -> None:
    current.domain.timers.set((POLL, 0), 1000)
    scheduler.block(current, frozenset({3}))
    waking.wake(current.domain, current.vcpu)
    assert not current.vcpu.blocked and not current.vcpu.poll_ports
    assert current.domain.timers.next_ns() is None


# Turns.


def test_a_slice_is_short_while_another_vcpu_could_run() -> None:
    current = make_current(vcpus=3)
    domain = current.domain
    assert scheduler.begin_slice(current, SLICE_NS) == SLICE_NS
    domain.vcpus[2].online = True
    assert scheduler.begin_slice(current, SLICE_NS) == SHARED_SLICE_NS
    assert scheduler.begin_slice(current, 50) == 50
    domain.schedule.shared_ns = 60
    assert scheduler.begin_slice(current, SLICE_NS) == 60
    domain.vcpus[2].blocked = True
    assert scheduler.begin_slice(current, SLICE_NS) == SLICE_NS


def test_who_spins_in_pause_gives_the_slice_away_if_another_could_run() -> None:
    current = make_current(vcpus=2)
    for online, pauses in ((True, scheduler.SPIN), (False, 0)):
        current.domain.vcpus[1].online = online
        scheduler.begin_slice(current, SLICE_NS)
        assert current.cpu.pauses == pauses


def make_running(count: int, seed: int | None = None) -> Current:
    current = make_current(vcpus=count)
    current.domain.schedule = Schedule(seed=seed)
    for vcpu in current.domain.vcpus:
        vcpu.online = True
    return current


def turns(current: Current, count: int) -> list[tuple[int, int]]:
    """Who comes next, and for how long."""
    found = []
    for _ in range(count):
        after = scheduler.next_vcpu(current.domain, current.vcpu)
        assert after is not None
        current.vcpu = after
        found.append((after.vcpu_id, scheduler.begin_slice(current, SLICE_NS)))
    return found


def test_turns_go_round_past_those_that_cannot_run() -> None:
    current = make_running(4)
    domain = current.domain
    domain.vcpus[2].blocked = True
    assert [vcpu_id for vcpu_id, _ in turns(current, 4)] == [1, 3, 0, 1]
    for vcpu in domain.vcpus[1:]:
        vcpu.online = False
    assert scheduler.next_vcpu(domain, domain.vcpus[0]) is domain.vcpus[0]
    domain.vcpus[0].blocked = True
    assert scheduler.next_vcpu(domain, domain.vcpus[0]) is None


def test_only_those_run_that_a_debugger_lets() -> None:
    for seed in (None, 1):
        domain = make_running(4, seed).domain
        last = domain.vcpus[2]
        assert scheduler.next_vcpu(domain, last, {0, 2}) is domain.vcpus[0]
        assert scheduler.next_vcpu(domain, last, {2}) is last
        last.blocked = True
        assert scheduler.next_vcpu(domain, last, {2}) is None


def test_a_seed_draws_turns_that_come_again() -> None:
    drawn = [turns(make_running(4, seed), 200) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    order = [vcpu_id for vcpu_id, _ in drawn[0]]
    assert set(order) == {0, 1, 2, 3}
    assert all(one != other for one, other in pairwise(order))
    lengths = [length for _, length in drawn[0]]
    assert 0 < min(lengths) < SHARED_SLICE_NS / 50 and max(lengths) > SHARED_SLICE_NS
    assert max(lengths) < 2 * SHARED_SLICE_NS


def test_the_generator_is_splitmix64() -> None:
    schedule = Schedule(seed=1234567)
    drawn = [schedule.below(1 << 64) for _ in range(3)]
    assert drawn == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def test_a_seed_draws_nothing_for_a_vcpu_alone() -> None:
    current = make_running(1, 1)
    before = current.domain.schedule.state
    assert turns(current, 1) == [(0, SLICE_NS)]
    assert current.domain.schedule.state == before


def test_who_wakes_another_gives_way(current: Current) -> None:
    current.domain.reschedule = True
    scheduler.give_way(current)
    assert current.cpu.stopped and not current.domain.reschedule


def test_by_a_seed_who_wakes_another_may_go_on(current: Current) -> None:
    current.domain.schedule = Schedule(seed=1)
    other = current.domain.vcpus[1]
    other.online = other.blocked = True
    other.runstate = RunState.BLOCKED
    ways = set()
    for _ in range(20):
        other.blocked, other.runstate = True, RunState.BLOCKED
        current.cpu.stopped = False
        waking.wake(current.domain, other)
        scheduler.give_way(current)
        ways.add(current.cpu.stopped)
        if not current.cpu.stopped:
            assert other.runstate is RunState.RUNNABLE and not current.domain.reschedule
            assert current.cpu.pauses == scheduler.SPIN
            assert 0 < current.cpu.limit_ns - current.cpu.now_ns < 2 * SHARED_SLICE_NS
    assert ways == {False, True}


def test_a_waking_asks_for_another_turn(current: Current) -> None:
    waking.wake(current.domain, current.domain.vcpus[1])
    assert not current.domain.reschedule
    current.domain.vcpus[1].blocked = True
    waking.wake(current.domain, current.domain.vcpus[1])
    assert current.domain.reschedule


# Runstate.


def test_time_is_added_to_the_state_that_ends(current: Current) -> None:
    pass_time(current, 5)
    scheduler.block(current)
    pass_time(current, 7)
    waking.wake(current.domain, current.vcpu)
    scheduler.enter(current)
    assert current.vcpu.runstate is RunState.RUNNING
    assert times(current) == [5, 0, 7, 0]


def test_a_preempted_vcpu_waits(current: Current) -> None:
    pass_time(current, 5)
    scheduler.leave(current)
    pass_time(current, 3)
    scheduler.enter(current)
    assert times(current) == [5, 3, 0, 0]


def test_a_woken_vcpu_waits_while_another_runs(current: Current) -> None:
    scheduler.block(current)
    pass_time(current, 4)
    waking.wake(current.domain, current.vcpu)
    other = Current(current.domain, current.domain.vcpus[1], current.cpu, current.translate)
    scheduler.enter(other)
    pass_time(current, 6)
    scheduler.enter(current)
    assert times(current) == [0, 6, 4, 0]


def test_the_times_shown_include_the_present_state(current: Current) -> None:
    pass_time(current, 9)
    info = scheduler.runstate_info(current.vcpu, current.cpu.now_ns)
    assert info.time == (9).to_bytes(8, "little") + bytes(24)
    assert times(current) == [0, 0, 0, 0]


def test_a_vcpu_that_leaves_shows_in_its_area_what_it_waits_for(current: Current) -> None:
    current.vcpu.runstate_area = AREA
    scheduler.leave(current)
    assert current.read_struct(vcpu_runstate_info, AREA).state == RunState.RUNNABLE
    scheduler.enter(current)
    scheduler.block(current)
    scheduler.leave(current)
    assert current.read_struct(vcpu_runstate_info, AREA).state == RunState.BLOCKED


@pytest.mark.parametrize("width", [8, 4])
def test_a_vcpu_that_runs_again_finds_its_runstate_in_its_area(width: int) -> None:
    current = make_current(width)
    current.vcpu.runstate_area = AREA
    scheduler.block(current)
    pass_time(current, 8)
    scheduler.enter(current)
    info = current.read_struct(vcpu_runstate_info, AREA)
    assert (info.state, info.state_entry_time) == (RunState.RUNNING, 8)
    assert info.time[16:24] == (8).to_bytes(8, "little")


def test_a_runstate_area_is_laid_out_as_shared_info_is() -> None:
    """Not as the vcpu's last hypercall was, for the vcpu is in none."""
    current = make_current()
    current.vcpu.width, current.vcpu.runstate_area = 4, AREA
    pass_time(current, 8)
    scheduler.enter(current)
    info = vcpu_runstate_info.unpack(8, current.read(AREA, vcpu_runstate_info.sizeof(8)))
    assert info.state_entry_time == 8


def test_a_runstate_area_has_the_times_up_to_the_last_change(current: Current) -> None:
    current.vcpu.runstate_area = AREA
    scheduler.enter(current)
    pass_time(current, 9)
    scheduler.update_runstate_area(current)
    assert current.read_struct(vcpu_runstate_info, AREA).time == bytes(32)


def test_an_area_that_cannot_be_written_is_noted_as_stale(current: Current) -> None:
    current.vcpu.runstate_area = READ_ONLY
    before = current.read(READ_ONLY, 48)
    scheduler.enter(current)
    assert current.read(READ_ONLY, 48) == before
    assert current.vcpu.areas_stale


# Timers.


def test_a_singleshot_timer_raises_virq_timer_once(current: Current) -> None:
    fire(current, SINGLESHOT)
    assert event_pending(current.domain, current.vcpu)
    assert current.domain.timers.next_ns() is None


def test_a_singleshot_timer_wakes_its_vcpu(current: Current) -> None:
    scheduler.block(current)
    fire(current, SINGLESHOT)
    assert current.vcpu.runnable


def test_a_periodic_timer_raises_virq_timer_and_is_armed_again(current: Current) -> None:
    current.vcpu.periodic_ns = 1000
    pass_time(current, 50)
    fire(current, PERIODIC)
    assert event_pending(current.domain, current.vcpu)
    assert current.domain.timers.deadlines_ns == {(PERIODIC, 0): 1050}


def armed(current: Current) -> int | None:
    """When the periodic timer of vcpu 0 is due."""
    return current.domain.timers.deadlines_ns.get((PERIODIC, 0))


def test_a_periodic_timer_stops_while_its_vcpu_is_blocked(current: Current) -> None:
    scheduler.set_periodic_timer(current, current.vcpu, 1000)
    scheduler.block(current)
    assert armed(current) is None


def test_a_periodic_timer_stops_while_its_vcpu_is_down(current: Current) -> None:
    scheduler.set_periodic_timer(current, current.vcpu, 1000)
    scheduler.take_down(current, current.vcpu, "")
    assert armed(current) is None


def test_a_periodic_timer_stops_while_another_vcpu_has_the_cpu(current: Current) -> None:
    scheduler.set_periodic_timer(current, current.vcpu, 1000)
    scheduler.leave(current)
    assert armed(current) is None


def test_a_periodic_timer_goes_on_when_its_vcpu_runs_again(current: Current) -> None:
    scheduler.set_periodic_timer(current, current.vcpu, 1000)
    scheduler.leave(current)
    pass_time(current, 700)
    scheduler.enter(current)
    assert armed(current) == 1000 and not event_pending(current.domain, current.vcpu)


def test_a_missed_tick_comes_when_the_vcpu_runs_again(current: Current) -> None:
    scheduler.set_periodic_timer(current, current.vcpu, 1000)
    scheduler.leave(current)
    pass_time(current, 1070)
    scheduler.enter(current)
    assert event_pending(current.domain, current.vcpu) and armed(current) == 2070


def test_a_periodic_timer_that_another_vcpu_starts_wakes_its_vcpu(current: Current) -> None:
    sleeper = current.vcpu
    scheduler.block(current)
    current.vcpu = current.domain.vcpus[1]
    scheduler.set_periodic_timer(current, sleeper, 1000)
    assert armed(current) == 1000
    fire(current, PERIODIC)
    assert sleeper.runnable and event_pending(current.domain, sleeper)


def test_a_poll_that_times_out_ends_without_an_event(current: Current) -> None:
    scheduler.block(current, frozenset({3}))
    fire(current, POLL)
    assert current.vcpu.runnable
    assert not event_pending(current.domain, current.vcpu)


def test_a_watchdog_that_runs_out_shuts_the_domain_down(current: Current) -> None:
    fire(current, WATCHDOG, 1)
    assert current.domain.shutdown_code == SHUTDOWN_watchdog


def test_the_first_reason_to_shut_down_counts(current: Current) -> None:
    scheduler.shutdown(current.domain, SHUTDOWN_crash)
    scheduler.shutdown(current.domain, SHUTDOWN_poweroff)
    assert current.domain.shutdown_code == SHUTDOWN_crash
