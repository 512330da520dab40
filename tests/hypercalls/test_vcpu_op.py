"""hypercalls/vcpu_op.py"""

from __future__ import annotations

import pytest

from fakes import FIRST_GUEST_FRAME, FakeCpu, make_current
from hypercalls.vcpu_op import vcpu_op
from xenemu.abi import vcpu as abi
from xenemu.abi.errno import EEXIST, EFAULT, EINVAL, ENOENT, ENOSYS
from xenemu.abi.features import XENFEAT_auto_translated_physmap
from xenemu.abi.layout import Struct
from xenemu.abi.sched import SHUTDOWN_poweroff
from xenemu.abi.xen import vcpu_time_info
from xenemu.errors import XenError
from xenemu.hv import event_channel, scheduler
from xenemu.hv.clock import EPOCH_NS, write_time
from xenemu.hv.current import Current
from xenemu.hv.dispatch import StandingAnswer
from xenemu.hv.frame_table import PGT_l1_page_table
from xenemu.hv.scheduler import PERIODIC, SINGLESHOT
from xenemu.hv.shared_info import event_pending, vcpu_field
from xenemu.hv.state.vcpu import RunState
from xenemu.hv.waking import wake

ARGUMENT = 0x20000
AREA = 0x21000
NOW = 1000
FRAME = FIRST_GUEST_FRAME + 8


@pytest.fixture(params=[8, 4])
def current(request: pytest.FixtureRequest) -> Current:
    current = make_current(request.param, vcpus=2)
    assert isinstance(current.cpu, FakeCpu)
    current.cpu.now_ns = NOW
    return current


def call(current: Current, command: int, op: Struct | None = None, vcpu_id: int = 0) -> int:
    pointer = 0
    if op is not None:
        current.write_struct(ARGUMENT, op)
        pointer = ARGUMENT
    assert vcpu_op.handler is not None
    return vcpu_op.handler(current, command, vcpu_id, pointer) or 0


def refused(
    current: Current, errno: int, command: int, op: Struct | None = None, vcpu_id: int = 0
) -> None:
    vcpus, timers = repr(current.domain.vcpus), repr(current.domain.timers)
    counts = list(current.domain.frames.count)
    with pytest.raises(XenError) as error:
        call(current, command, op, vcpu_id)
    assert error.value.errno == errno
    assert (repr(current.domain.vcpus), repr(current.domain.timers)) == (vcpus, timers)
    assert list(current.domain.frames.count) == counts


def test_a_vcpu_must_exist(current: Current) -> None:
    refused(current, ENOENT, abi.VCPUOP_is_up, vcpu_id=2)


def test_a_command_must_exist(current: Current) -> None:
    refused(current, ENOSYS, 14)


# Up and down.


def test_the_count_of_vcpus_is_no_refusal_to_worry_about(current: Current) -> None:
    with pytest.raises(StandingAnswer):
        call(current, abi.VCPUOP_is_up, vcpu_id=2)


def test_the_boot_vcpu_is_up(current: Current) -> None:
    assert call(current, abi.VCPUOP_is_up) == 1
    assert call(current, abi.VCPUOP_is_up, vcpu_id=1) == 0


def test_a_running_vcpu_cannot_be_initialised(current: Current) -> None:
    refused(current, EEXIST, abi.VCPUOP_initialise)


def test_the_context_of_a_vcpu_must_be_readable(current: Current) -> None:
    """Xen copies it in before it looks at the vcpu."""
    assert vcpu_op.handler is not None
    with pytest.raises(XenError) as error:
        vcpu_op.handler(current, abi.VCPUOP_initialise, 0, 1 << 30)
    assert error.value.errno == EFAULT


@pytest.mark.parametrize(
    "command",
    [abi.VCPUOP_register_runstate_phys_area, abi.VCPUOP_register_vcpu_time_phys_area],
)
def test_what_later_xens_have_is_unknown(current: Current, command: int) -> None:
    refused(current, ENOSYS, command, abi.vcpu_get_physid(0))


def test_a_vcpu_comes_up_only_when_initialised(current: Current) -> None:
    refused(current, EINVAL, abi.VCPUOP_up, vcpu_id=1)
    vcpu = current.domain.vcpus[1]
    vcpu.initialised = True
    call(current, abi.VCPUOP_up, vcpu_id=1)
    assert vcpu.runnable and vcpu.runstate is RunState.RUNNABLE


def test_a_vcpu_can_take_itself_down(current: Current) -> None:
    current.domain.vcpus[1].online = True
    call(current, abi.VCPUOP_down)
    assert not current.vcpu.online and current.vcpu.runstate is RunState.OFFLINE
    assert isinstance(current.cpu, FakeCpu) and current.cpu.stopped
    assert current.domain.shutdown_code is None


def test_a_blocked_vcpu_that_goes_down_stays_blocked_until_it_is_woken(current: Current) -> None:
    vcpu = current.domain.vcpus[1]
    for comes_back in (True, False):
        vcpu.online = vcpu.blocked = True
        vcpu.runstate = RunState.BLOCKED
        call(current, abi.VCPUOP_down, vcpu_id=1)
        assert (vcpu.online, vcpu.runstate) == (False, RunState.BLOCKED)
        if comes_back:
            call(current, abi.VCPUOP_up, vcpu_id=1)
            assert (vcpu.runnable, vcpu.runstate) == (False, RunState.BLOCKED)
        wake(current.domain, vcpu)
        scheduler.enter(current)
        woken = RunState.RUNNABLE if comes_back else RunState.OFFLINE
        assert (vcpu.runnable, vcpu.runstate) == (comes_back, woken)


def test_the_last_vcpu_down_powers_off(current: Current) -> None:
    call(current, abi.VCPUOP_down)
    assert current.domain.shutdown_code == SHUTDOWN_poweroff


# Runstate and time areas.


def test_the_runstate_is_copied_out(current: Current) -> None:
    current.vcpu.runstate = RunState.RUNNING
    assert vcpu_op.handler is not None
    vcpu_op.handler(current, abi.VCPUOP_get_runstate_info, 0, AREA)
    info = current.read_struct(abi.vcpu_runstate_info, AREA)
    assert (info.state, int.from_bytes(info.time[:8], "little")) == (RunState.RUNNING, NOW)


def test_a_registered_runstate_area_is_written_at_once(current: Current) -> None:
    current.vcpu.runstate_since_ns = 77
    op = abi.vcpu_register_runstate_memory_area(AREA)
    call(current, abi.VCPUOP_register_runstate_memory_area, op)
    assert current.vcpu.runstate_area == AREA
    assert current.read_struct(abi.vcpu_runstate_info, AREA).state_entry_time == 77


def test_another_vcpus_runstate_area_is_written_when_it_runs(current: Current) -> None:
    op = abi.vcpu_register_runstate_memory_area(AREA)
    call(current, abi.VCPUOP_register_runstate_memory_area, op, vcpu_id=1)
    assert current.read(AREA, 64) == bytes(64)
    assert current.domain.vcpus[1].runstate_area == AREA


@pytest.mark.parametrize("vcpu_id", [0, 1])
def test_a_registered_time_area_is_written_at_once(current: Current, vcpu_id: int) -> None:
    current.cpu.now_ns = 3 * EPOCH_NS + 5
    op = abi.vcpu_register_time_memory_area(AREA)
    call(current, abi.VCPUOP_register_vcpu_time_memory_area, op, vcpu_id=vcpu_id)
    assert current.domain.vcpus[vcpu_id].time_area == AREA
    assert current.read_struct(vcpu_time_info, AREA).system_time == 3 * EPOCH_NS


@pytest.mark.parametrize(
    ("width", "area"), [(8, 1 << 47), (8, 0xFFFF_87FF_FFFF_F000), (4, 0xF5800000)]
)
def test_an_area_in_xens_own_range_is_refused(width: int, area: int) -> None:
    current = make_current(width)
    op = abi.vcpu_register_time_memory_area(area)
    refused(current, EFAULT, abi.VCPUOP_register_vcpu_time_memory_area, op)
    refused(current, EFAULT, abi.VCPUOP_register_runstate_memory_area, op)


def test_a_translated_guest_has_no_range_of_xens() -> None:
    current = make_current(width=4)
    current.domain.features = 1 << XENFEAT_auto_translated_physmap
    op = abi.vcpu_register_time_memory_area(0xF8000000)
    call(current, abi.VCPUOP_register_vcpu_time_memory_area, op)
    assert current.vcpu.time_area == 0xF8000000


# Timers.


def test_a_periodic_timer_is_armed_and_stopped(current: Current) -> None:
    call(current, abi.VCPUOP_set_periodic_timer, abi.vcpu_set_periodic_timer(1_000_000))
    assert current.domain.timers.deadlines_ns == {(PERIODIC, 0): NOW + 1_000_000}
    call(current, abi.VCPUOP_stop_periodic_timer)
    assert current.domain.timers.next_ns() is None and current.vcpu.periodic_ns == 0


def test_another_vcpus_periodic_timer_is_armed_and_stopped(current: Current) -> None:
    op = abi.vcpu_set_periodic_timer(1_000_000)
    call(current, abi.VCPUOP_set_periodic_timer, op, vcpu_id=1)
    assert current.domain.timers.deadlines_ns == {(PERIODIC, 1): NOW + 1_000_000}
    call(current, abi.VCPUOP_stop_periodic_timer, vcpu_id=1)
    assert current.domain.timers.next_ns() is None


@pytest.mark.parametrize("period_ns", [0, 999_999, 1 << 62, (1 << 64) - 1])
def test_a_period_that_is_refused(current: Current, period_ns: int) -> None:
    op = abi.vcpu_set_periodic_timer(period_ns)
    refused(current, EINVAL, abi.VCPUOP_set_periodic_timer, op)


@pytest.mark.parametrize("flags", [0, abi.VCPU_SSHOTTMR_future])
@pytest.mark.parametrize("timeout_ns", [1, NOW + 5])
def test_a_singleshot_timer_is_armed_also_for_the_past(
    current: Current, timeout_ns: int, flags: int
) -> None:
    op = abi.vcpu_set_singleshot_timer(timeout_ns, flags)
    assert call(current, abi.VCPUOP_set_singleshot_timer, op) == 0
    assert current.domain.timers.deadlines_ns == {(SINGLESHOT, 0): timeout_ns}
    call(current, abi.VCPUOP_stop_singleshot_timer)
    assert current.domain.timers.next_ns() is None


def test_another_vcpus_singleshot_timer_is_its_own(current: Current) -> None:
    op = abi.vcpu_set_singleshot_timer(NOW + 5, 0)
    refused(current, EINVAL, abi.VCPUOP_set_singleshot_timer, op, vcpu_id=1)
    refused(current, EINVAL, abi.VCPUOP_stop_singleshot_timer, vcpu_id=1)


# vcpu_info.


def register(offset: int = 0x40, mfn: int = FRAME) -> abi.vcpu_register_vcpu_info:
    return abi.vcpu_register_vcpu_info(mfn, offset, 0)


def test_a_moved_vcpu_info_keeps_its_contents(current: Current) -> None:
    current.domain.memory.bytes[current.vcpu.info + 1] = 1
    call(current, abi.VCPUOP_register_vcpu_info, register())
    assert current.vcpu.info == (FRAME << 12) + 0x40
    assert current.domain.memory.bytes[current.vcpu.info + 1] == 1


def test_a_moved_vcpu_info_has_a_new_version_of_the_time(current: Current) -> None:
    write_time(current.domain, current.vcpu, 0)
    current.cpu.now_ns = 3 * EPOCH_NS + 5
    call(current, abi.VCPUOP_register_vcpu_info, register())
    time = current.read_struct(vcpu_time_info, (FRAME << 12) + 0x40 + 32)
    assert (time.version, time.system_time) == (4, 3 * EPOCH_NS)


def test_everything_is_pending_in_a_moved_vcpu_info(current: Current) -> None:
    call(current, abi.VCPUOP_register_vcpu_info, register())
    selector = vcpu_field(current.domain, current.vcpu, "evtchn_pending_sel")
    width = current.vcpu.width
    assert current.domain.memory.read(selector, width) == b"\xff" * width
    assert event_pending(current.domain, current.vcpu)


def test_events_arrive_in_a_moved_vcpu_info(current: Current) -> None:
    call(current, abi.VCPUOP_register_vcpu_info, register())
    current.domain.memory.write(current.vcpu.info, bytes(16))
    domain = current.domain
    event_channel.send(domain, event_channel.bind_ipi(domain, 0))
    assert event_pending(domain, current.vcpu)


def test_the_page_of_a_vcpu_info_is_held_as_writable(current: Current) -> None:
    call(current, abi.VCPUOP_register_vcpu_info, register())
    with pytest.raises(XenError):
        current.domain.frames.get_page_type(FRAME, PGT_l1_page_table)


def test_a_vcpu_info_moves_once(current: Current) -> None:
    call(current, abi.VCPUOP_register_vcpu_info, register())
    refused(current, EINVAL, abi.VCPUOP_register_vcpu_info, register(0x80))


@pytest.mark.parametrize("op", [register(4096 - 63), register(mfn=5), register(mfn=1 << 40)])
def test_a_place_that_is_no_good_for_a_vcpu_info(
    current: Current, op: abi.vcpu_register_vcpu_info
) -> None:
    refused(current, EINVAL, abi.VCPUOP_register_vcpu_info, op)


def test_only_an_offline_vcpus_info_is_moved_for_it(current: Current) -> None:
    call(current, abi.VCPUOP_register_vcpu_info, register(), vcpu_id=1)
    other = make_current(vcpus=2)
    other.domain.vcpus[1].online = True
    refused(other, EINVAL, abi.VCPUOP_register_vcpu_info, register(), vcpu_id=1)


# What a domU does not get.


def test_a_vcpu_has_no_physical_cpu(current: Current) -> None:
    refused(current, EINVAL, abi.VCPUOP_get_physid)


def test_an_nmi_takes_no_argument(current: Current) -> None:
    refused(current, EINVAL, abi.VCPUOP_send_nmi, abi.vcpu_get_physid(0))
