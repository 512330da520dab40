"""xenemu/pvh/lapic.py: the timer"""

from __future__ import annotations

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xenemu.pvh.lapic import Lapic

NOW = 1_000_000_000
VECTOR = 0x40
PERIODIC = 1 << 17
MASKED = 1 << 16
DIVIDERS = {0: 2, 1: 4, 2: 8, 3: 16, 8: 32, 9: 64, 10: 128, 11: 1}
BY_1 = 0xB
MS = 1_000_000


def make_timer(count: int, lvtt: int = VECTOR, divider: int = BY_1) -> Lapic:
    """Enabled, and counting since NOW."""
    lapic = Lapic(0)
    lapic.write(0xF0, 0x1FF, NOW)
    lapic.write(0x320, lvtt, NOW)
    lapic.write(0x3E0, divider, NOW)
    lapic.write(0x380, count, NOW)
    return lapic


def count_at(lapic: Lapic, after_ns: int) -> int:
    return lapic.read(0x390, NOW + after_ns)


def fire(lapic: Lapic) -> int:
    """Fire at its deadline, which it returns, relative to NOW."""
    deadline_ns = lapic.deadline_ns()
    assert deadline_ns is not None
    lapic.fire_timer(deadline_ns)
    return deadline_ns - NOW


def ticks_taken(lapic: Lapic) -> int:
    """Take and end every interrupt there is, and count them."""
    ticks = 0
    while lapic.pending_vector() == VECTOR:
        lapic.accept(VECTOR)
        lapic.write(0xB0, 0, NOW)
        ticks += 1
    return ticks


@pytest.mark.parametrize(("code", "divisor"), DIVIDERS.items())
def test_a_cycle_is_10_ns_times_the_divisor(code: int, divisor: int) -> None:
    lapic = make_timer(1000, divider=code)
    assert lapic.deadline_ns() == NOW + 1000 * 10 * divisor
    assert count_at(lapic, 10 * divisor - 1) == 1000
    assert count_at(lapic, 10 * divisor) == 999


def test_one_shot_interrupts_once() -> None:
    lapic = make_timer(1000)
    assert fire(lapic) == 10_000
    assert ticks_taken(lapic) == 1
    assert lapic.deadline_ns() is None
    assert count_at(lapic, 10_000) == count_at(lapic, 1 << 60) == 0


def test_a_one_shot_count_ends_at_0() -> None:
    lapic = make_timer(1000)
    assert [count_at(lapic, ns) for ns in (0, 5_000, 9_990, 9_999, 10_000, 20_000)] == [
        1000, 500, 1, 1, 0, 0,
    ]  # fmt: skip


def test_a_periodic_count_begins_again() -> None:
    lapic = make_timer(100_000, VECTOR | PERIODIC)
    assert [count_at(lapic, ns) for ns in (0, 999_999, MS, 3 * MS // 2)] == [
        100_000, 1, 100_000, 50_000,
    ]  # fmt: skip


def test_periodic_ticks_do_not_drift() -> None:
    lapic = make_timer(100_000, VECTOR | PERIODIC)
    assert [fire(lapic) for _ in range(4)] == [MS, 2 * MS, 3 * MS, 4 * MS]
    lapic.fire_timer(NOW + 5 * MS + 123)
    assert lapic.deadline_ns() == NOW + 6 * MS
    assert count_at(lapic, 5 * MS + 10) == 99_999


def test_nothing_fires_before_its_time() -> None:
    lapic = make_timer(1000)
    before = pickle.dumps(lapic)
    lapic.fire_timer(NOW + 9_999)
    assert pickle.dumps(lapic) == before


def test_an_initial_count_of_0_stops_it() -> None:
    lapic = make_timer(1000)
    lapic.write(0x380, 0, NOW + 10)
    assert lapic.deadline_ns() is None
    assert lapic.read(0x390, NOW + 20) == 0
    lapic.fire_timer(NOW + MS)
    assert lapic.irr == 0


def test_writing_the_initial_count_starts_anew() -> None:
    lapic = make_timer(1000)
    lapic.write(0x380, 500, NOW + 9_000)
    assert lapic.deadline_ns() == NOW + 9_000 + 5_000
    assert count_at(lapic, 9_000) == 500


def test_the_initial_count_reads_as_written() -> None:
    assert make_timer(0xFFFFFFFF).read(0x380, NOW) == 0xFFFFFFFF


def test_the_largest_count_is_exact() -> None:
    lapic = make_timer(0xFFFFFFFF, divider=10)
    assert lapic.deadline_ns() == NOW + 0xFFFFFFFF * 1280
    assert count_at(lapic, 0xFFFFFFFF * 1280 - 1) == 1


def test_a_masked_timer_counts_and_does_not_interrupt() -> None:
    lapic = make_timer(1000, VECTOR | MASKED)
    assert lapic.deadline_ns() is None
    assert count_at(lapic, 5_000) == 500
    lapic.fire_timer(NOW + MS)
    assert lapic.irr == 0


def test_unmasking_in_time_brings_the_interrupt() -> None:
    lapic = make_timer(1000, VECTOR | MASKED)
    lapic.write(0x320, VECTOR, NOW + 4_000)
    assert fire(lapic) == 10_000
    assert ticks_taken(lapic) == 1


def test_unmasking_after_the_end_brings_nothing() -> None:
    lapic = make_timer(1000, VECTOR | MASKED)
    lapic.write(0x320, VECTOR, NOW + 10_000)
    assert lapic.deadline_ns() is None


def test_unmasking_a_periodic_timer_keeps_its_phase() -> None:
    lapic = make_timer(100_000, VECTOR | PERIODIC | MASKED)
    lapic.write(0x320, VECTOR | PERIODIC, NOW + 7 * MS // 2)
    assert fire(lapic) == 4 * MS


def test_disabling_by_software_stops_the_interrupt_and_not_the_count() -> None:
    lapic = make_timer(1000)
    lapic.write(0xF0, 0xFF, NOW)
    assert lapic.deadline_ns() is None
    assert count_at(lapic, 5_000) == 500


def test_disabling_by_apic_base_stops_the_interrupt() -> None:
    lapic = make_timer(1000)
    assert lapic.set_apic_base(0xFEE00000)
    assert lapic.deadline_ns() is None


def test_a_running_one_shot_becomes_periodic() -> None:
    lapic = make_timer(100_000)
    lapic.write(0x320, VECTOR | PERIODIC, NOW + 400_000)
    assert [fire(lapic), fire(lapic)] == [MS, 2 * MS]


def test_a_periodic_timer_becomes_one_shot_within_its_period() -> None:
    lapic = make_timer(100_000, VECTOR | PERIODIC)
    fire(lapic)
    lapic.write(0x320, VECTOR, NOW + 3 * MS // 2)
    assert fire(lapic) == 2 * MS
    assert lapic.deadline_ns() is None


def test_an_expired_one_shot_made_periodic_waits_for_a_count() -> None:
    lapic = make_timer(1000)
    fire(lapic)
    lapic.write(0x320, VECTOR | PERIODIC, NOW + MS)
    assert lapic.deadline_ns() is None
    assert lapic.read(0x390, NOW + MS) == 0


def test_the_vector_is_that_of_the_lvt_when_it_fires() -> None:
    lapic = make_timer(1000)
    lapic.write(0x320, 0x55, NOW + 5_000)
    fire(lapic)
    assert lapic.pending_vector() == 0x55


def test_an_illegal_timer_vector_is_an_error() -> None:
    lapic = make_timer(1000, 0x0F)
    fire(lapic)
    lapic.write(0x280, 0, NOW)
    assert (lapic.irr, lapic.read(0x280, NOW)) == (0, 1 << 6)


def test_a_new_divider_goes_on_from_the_same_count() -> None:
    lapic = make_timer(1000)
    lapic.write(0x3E0, 0, NOW + 4_000)
    assert count_at(lapic, 4_000) == 600
    assert lapic.deadline_ns() == NOW + 4_000 + 600 * 20


def test_a_new_divider_holds_for_the_next_periods() -> None:
    lapic = make_timer(100_000, VECTOR | PERIODIC)
    lapic.write(0x3E0, 0, NOW + 500_000)
    assert [fire(lapic), fire(lapic)] == [1_500_000, 3_500_000]


def test_a_new_divider_does_not_start_a_stopped_timer() -> None:
    lapic = make_timer(1000)
    fire(lapic)
    lapic.write(0x3E0, 0, NOW + MS)
    assert lapic.deadline_ns() is None


@given(
    count=st.integers(1, 0xFFFFFFFF),
    old=st.sampled_from(list(DIVIDERS)),
    new=st.sampled_from(list(DIVIDERS)),
    part=st.fractions(0, 1),
)
def test_no_divider_changes_a_count(count: int, old: int, new: int, part: float) -> None:
    lapic = make_timer(count, divider=old)
    after_ns = int(part * (count * 10 * DIVIDERS[old] - 1))
    before = count_at(lapic, after_ns)
    lapic.write(0x3E0, new, NOW + after_ns)
    assert count_at(lapic, after_ns) == before
    assert lapic.deadline_ns() is not None


def test_a_period_is_not_shorter_than_100_us() -> None:
    lapic = make_timer(1, VECTOR | PERIODIC)
    assert [fire(lapic), fire(lapic), fire(lapic)] == [10, 100_010, 200_010]


def test_ticks_that_come_too_fast_for_the_guest_are_owed() -> None:
    lapic = make_timer(100_000, VECTOR | PERIODIC)
    for _ in range(3):
        fire(lapic)
    assert ticks_taken(lapic) == 3
    assert lapic.ticks_owed == 0


def test_ticks_found_late_are_owed() -> None:
    lapic = make_timer(100_000, VECTOR | PERIODIC)
    lapic.fire_timer(NOW + 5 * MS)
    assert ticks_taken(lapic) == 5


def test_another_interrupt_does_not_pay_a_tick() -> None:
    lapic = make_timer(100_000, VECTOR | PERIODIC)
    lapic.fire_timer(NOW + 2 * MS)
    lapic.assert_vector(0x90)
    lapic.accept(0x90)
    assert lapic.ticks_owed == 1


def test_setting_the_timer_forgets_owed_ticks() -> None:
    lapic = make_timer(100_000, VECTOR | PERIODIC)
    lapic.fire_timer(NOW + 5 * MS)
    lapic.write(0x380, 100_000, NOW + 5 * MS)
    assert ticks_taken(lapic) == 1


def test_a_calibration_against_the_tsc_finds_100_mhz() -> None:
    """What FreeBSD does: start from the largest count, wait, see how far it came."""
    lapic = make_timer(0xFFFFFFFF, VECTOR | MASKED, divider=0)
    counted = 0xFFFFFFFF - count_at(lapic, 1_000_000_000)
    assert counted * 2 == 100_000_000


def test_tsc_deadline_mode_is_reserved() -> None:
    lapic = make_timer(1000, VECTOR | 1 << 18)
    assert lapic.read(0x320, NOW) == VECTOR
    assert fire(lapic) == 10_000


def test_the_timer_by_msr() -> None:
    lapic = make_timer(0)
    assert lapic.set_apic_base(0xFEE00C00)
    assert lapic.write_msr(0x838, 1000, NOW) == []
    assert lapic.read_msr(0x839, NOW + 5_000) == 500
    assert fire(lapic) == 10_000


def test_init_stops_the_timer() -> None:
    lapic = make_timer(1000)
    lapic.init()
    assert lapic.deadline_ns() is None
    assert count_at(lapic, 5_000) == 0
