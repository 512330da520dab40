"""xenemu/hv/clock.py"""

from __future__ import annotations

import pytest

from fakes import make_current, make_domain
from xenemu.abi.xen import vcpu_time_info
from xenemu.hv.clock import (
    EPOCH_NS,
    refresh_time,
    update_secondary_time,
    update_time,
    update_wallclock,
    write_time,
)
from xenemu.hv.current import Current
from xenemu.hv.shared_info import field, vcpu_field

NOW = 123_456_789_012
AREA = 0x20000
READ_ONLY = 0x5000


def tsc_to_ns(info: vcpu_time_info, tsc: int) -> int:
    """What a guest computes."""
    delta = (tsc - info.tsc_timestamp) << info.tsc_shift
    return info.system_time + (delta * info.tsc_to_system_mul >> 32)


@pytest.mark.parametrize("width", [8, 4])
def test_a_guest_computes_the_tsc_itself(width: int) -> None:
    domain = make_domain(width, vcpus=2)
    vcpu = domain.vcpus[1]
    write_time(domain, vcpu, NOW)
    info = vcpu_time_info.unpack(width, domain.memory.read(vcpu_field(domain, vcpu, "time"), 32))
    assert info.system_time == NOW
    for later in (0, 1, 999_999_937, 1 << 40):
        assert tsc_to_ns(info, NOW + later) == NOW + later


def test_each_record_has_another_even_version() -> None:
    domain = make_domain()
    maddr = vcpu_field(domain, domain.vcpus[0], "time")
    versions = []
    for _ in range(3):
        write_time(domain, domain.vcpus[0], NOW)
        versions.append(domain.memory.read_uint(maddr, 4))
    assert versions == [2, 4, 6]


def test_a_version_that_the_guest_spoiled_is_survived() -> None:
    domain = make_domain()
    maddr = vcpu_field(domain, domain.vcpus[0], "time")
    domain.memory.write_uint(maddr, 4, 0xFFFFFFFF)
    write_time(domain, domain.vcpus[0], NOW)
    assert domain.memory.read_uint(maddr, 4) == 0


def record(current: Current) -> vcpu_time_info:
    maddr = vcpu_field(current.domain, current.vcpu, "time")
    return vcpu_time_info.unpack(8, current.domain.memory.read(maddr, 32))


def test_a_record_is_rewritten_when_another_second_has_begun() -> None:
    current = make_current()
    seen = []
    for now_ns in (0, EPOCH_NS - 1, EPOCH_NS, 2 * EPOCH_NS - 1, 5 * EPOCH_NS + 7):
        current.cpu.now_ns = now_ns
        refresh_time(current)
        seen.append((record(current).version, record(current).system_time // EPOCH_NS))
    assert seen == [(2, 0), (2, 0), (4, 1), (4, 1), (6, 5)]
    assert record(current).tsc_timestamp == record(current).system_time == 5 * EPOCH_NS


def test_a_record_that_the_guest_spoiled_is_rewritten() -> None:
    current = make_current()
    refresh_time(current)
    maddr = vcpu_field(current.domain, current.vcpu, "time")
    current.domain.memory.write_uint(maddr + 24, 4, 0xBAD)
    refresh_time(current)
    assert (record(current).version, record(current).tsc_to_system_mul) == (4, 1 << 31)


def test_a_place_that_is_new_gets_a_record_of_this_second() -> None:
    current = make_current()
    current.cpu.now_ns = 7 * EPOCH_NS + 5
    for _ in range(2):
        update_time(current, current.vcpu)
    assert (record(current).version, record(current).system_time) == (4, 7 * EPOCH_NS)


@pytest.mark.parametrize(("width", "high"), [(8, 3072 + 12), (4, 2304 + 12 + 24)])
def test_the_wall_clock_has_64_bits_of_seconds(width: int, high: int) -> None:
    domain = make_domain(width)
    domain.wallclock_ns = (5 << 32 | 7) * 1_000_000_000 + 11
    update_wallclock(domain)
    read = domain.memory.read_uint
    assert read(field(domain, "wc_sec"), 4) == 7
    assert read(field(domain, "wc_nsec"), 4) == 11
    assert read(domain.shared_info_maddr + high, 4) == 5
    assert read(field(domain, "wc_version"), 4) == 2


def test_the_second_record_is_the_same_in_guest_memory() -> None:
    current = make_current()
    current.vcpu.time_area = AREA
    current.cpu.now_ns = NOW
    refresh_time(current)
    assert current.read_struct(vcpu_time_info, AREA) == record(current)
    assert record(current).system_time == NOW // EPOCH_NS * EPOCH_NS


def test_a_second_record_that_cannot_be_written_is_noted_as_stale() -> None:
    current = make_current()
    current.vcpu.time_area = READ_ONLY
    before = current.read(READ_ONLY, 32)
    update_secondary_time(current, current.vcpu)
    assert current.read(READ_ONLY, 32) == before
    assert current.vcpu.areas_stale
