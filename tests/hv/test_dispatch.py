"""hv/dispatch: hypercalls by number, their arguments and their answers."""

from __future__ import annotations

import pytest

from fakes import FakeCpu, make_current
from xenemu.abi.callback import callback_unregister
from xenemu.abi.errno import EBUSY, EFAULT, EINVAL, ENOSYS, EPERM
from xenemu.errors import DomainCrash, XenError
from xenemu.hv.current import Current
from xenemu.hv.dispatch import (
    ALL,
    INT,
    PTR,
    PV,
    U64,
    ULONG,
    Arg,
    Continue,
    Handler,
    Hypercall,
    HypercallTable,
    SubOps,
    format_call,
    format_result,
    hypercall,
)
from xenemu.hv.frame_table import PGT_l1_page_table

WORDS = [0x1_1111_1111, 0x2_2222_2222, 3, 4, 5, 6]
POINTER = 0x10000


@pytest.fixture
def current() -> Current:
    return make_current()


def call(
    current: Current, handler: Handler | None, args: tuple[Arg, ...] = (), **row: object
) -> int:
    table = HypercallTable([Hypercall(7, "seven", ALL, args, handler, **row)])  # type: ignore[arg-type]
    return table.call(current, 7, WORDS)


def test_arguments_have_their_c_types(current: Current) -> None:
    seen: list[tuple[int, ...]] = []
    call(current, lambda _, *args: seen.append(args), (INT, ULONG, PTR, U64))
    assert seen == [(0x1111_1111, 0x2_2222_2222, 3, 4)]


def test_a_32_bit_guest_passes_64_bits_in_two_registers(current: Current) -> None:
    seen: list[tuple[int, ...]] = []
    current.vcpu.environment = "pv32"
    table = HypercallTable(
        [Hypercall(7, "seven", PV, (U64, INT), lambda _, *args: seen.append(args))]
    )
    table.call(current, 7, [1, 2, 3, 0, 0])
    assert seen == [(0x2_0000_0001, 3)]


def test_no_result_is_zero(current: Current) -> None:
    assert call(current, lambda _: None) == 0
    assert call(current, lambda _: 17) == 17


def test_a_refusal_is_a_negative_errno_with_its_reason_in_the_log(current: Current) -> None:
    def refuse(_: Current) -> None:
        raise XenError(EBUSY, "in use")

    assert call(current, refuse) == -EBUSY
    assert current.domain.calls[-1].reason == "in use"
    assert format_call(current.domain.calls[-1]).endswith("seven() = -EBUSY: in use")


def test_what_was_refused_without_failing_is_in_the_log(current: Current) -> None:
    def refuse_some(current: Current) -> None:
        for nr in range(20):
            current.vcpu.remark(f"no {nr}")

    assert call(current, refuse_some) == 0
    reason = current.domain.calls[-1].reason
    assert reason.startswith("no 0; no 1; ") and reason.endswith("; no 6; and more")
    call(current, lambda _: 0)
    assert current.domain.calls[-1].reason == ""


def test_an_errno_has_its_reason_behind_what_was_refused_before(current: Current) -> None:
    def refuse(current: Current) -> None:
        current.vcpu.remark("not this")
        raise XenError(EBUSY, "in use")

    assert call(current, refuse) == -EBUSY
    assert current.domain.calls[-1].reason == "not this; in use"


@pytest.mark.parametrize("number", [6, 8, 1 << 40 | 7, (1 << 64) - 1])
def test_an_unknown_number_is_enosys(current: Current, number: int) -> None:
    table = HypercallTable([Hypercall(7, "seven", ALL, (), lambda _: 0)])
    assert table.call(current, number, WORDS) == -ENOSYS


def test_a_caller_that_may_not_finds_no_hypercall(current: Current) -> None:
    current.vcpu.environment = "pvh64"
    table = HypercallTable([Hypercall(7, "seven", PV, (), lambda _: 0)])
    assert table.call(current, 7, WORDS) == -ENOSYS


def test_a_row_without_handler_has_xens_answer(current: Current) -> None:
    assert call(current, None, answer=EPERM, note="not for you") == -EPERM
    assert current.domain.calls[-1].reason == "seven: not for you"


def test_a_continuation_has_raw_registers_and_is_not_logged(current: Current) -> None:
    def more(_: Current, *args: int) -> None:
        raise Continue(args[0] + 1, 1 << 40)

    current.vcpu.environment = "pv32"
    table = HypercallTable([Hypercall(7, "seven", ALL, (INT, U64), more)])
    with pytest.raises(Continue) as again:
        table.call(current, 7, [1, 2, 3])
    assert again.value.new_args == (2, 0, 1 << 8)
    assert not current.domain.calls


def test_a_call_that_makes_another_vcpu_runnable_gives_it_the_cpu(current: Current) -> None:
    assert isinstance(current.cpu, FakeCpu)
    for reschedule in (False, True):
        current.domain.reschedule = reschedule
        current.table = HypercallTable([Hypercall(7, "seven", ALL, (), lambda _: None)])
        current.cpu.regs[0] = 7
        hypercall(current, 2)
        assert current.cpu.stopped is reschedule


def test_the_guests_end_goes_through(current: Current) -> None:
    def crash(_: Current) -> None:
        raise DomainCrash("broken")

    with pytest.raises(DomainCrash):
        call(current, crash)
    assert format_call(current.domain.calls[-1]).endswith("seven() = ?")


def test_the_log_has_where_a_call_came_from_not_where_it_leads(current: Current) -> None:
    def leave(current: Current) -> None:
        current.cpu.rip = 0x9999

    current.cpu.rip = 0x1234
    call(current, leave)
    assert current.domain.calls[-1].rip == 0x1234


def test_the_log_keeps_64_calls(current: Current) -> None:
    for _ in range(100):
        call(current, lambda _: 0)
    assert len(current.domain.calls) == 64


def test_xens_standing_answer_is_told_from_a_refusal(current: Current) -> None:
    def refuse(_: Current) -> None:
        raise XenError(EPERM, "not you")

    call(current, None, answer=EPERM)
    call(current, refuse)
    assert [record.standing for record in current.domain.calls] == [True, False]


def test_a_frame_remembers_the_call_that_typed_it(current: Current) -> None:
    frames = current.domain.frames
    frames.get_page_type(17, PGT_l1_page_table)
    call(current, lambda _: frames.get_page_type(18, PGT_l1_page_table))
    frames.get_page_type(19, PGT_l1_page_table)
    assert frames.typed_by == {18: current.domain.calls[0], 19: None}


def test_a_number_is_declared_once() -> None:
    rows = [Hypercall(7, "seven", ALL), Hypercall(7, "also", ALL)]
    with pytest.raises(ValueError, match="declared twice"):
        HypercallTable(rows)


# Sub-operations.


def make_ops() -> SubOps:
    ops = SubOps("ops", unknown=EINVAL)

    @ops.sub(1, callback_unregister, copy_back=True)
    def swap(current: Current, op: callback_unregister) -> int:
        if op.type == 9:
            raise XenError(EBUSY, "nine")
        op.type, op._unused = op._unused, op.type
        return 5

    @ops.sub(2)
    def plain(current: Current, pointer: int) -> int:
        return pointer

    ops.answer(3, "forbidden", EPERM, "not for a domU")
    return ops


def test_a_sub_operations_struct_is_copied_in_and_back(current: Current) -> None:
    current.write_struct(POINTER, callback_unregister(1, 2))
    assert make_ops()(current, 1, POINTER) == 5
    assert current.read_struct(callback_unregister, POINTER) == callback_unregister(2, 1)


def test_a_refusal_copies_nothing_back(current: Current) -> None:
    current.write_struct(POINTER, callback_unregister(9, 2))
    before = bytes(current.domain.memory.bytes)
    with pytest.raises(XenError):
        make_ops()(current, 1, POINTER)
    assert bytes(current.domain.memory.bytes) == before


def test_without_a_struct_the_pointer_is_passed(current: Current) -> None:
    assert make_ops()(current, 2, 1 << 60) == 1 << 60


@pytest.mark.parametrize(
    ("command", "pointer", "errno"), [(1, 1 << 60, EFAULT), (3, 0, EPERM), (4, 0, EINVAL)]
)
def test_sub_operations_refuse(current: Current, command: int, pointer: int, errno: int) -> None:
    with pytest.raises(XenError) as refusal:
        make_ops()(current, command, pointer)
    assert refusal.value.errno == errno


def test_a_command_is_declared_once() -> None:
    with pytest.raises(ValueError, match="declared twice"):
        make_ops().answer(1, "again", EPERM, "")


def test_results_are_for_people() -> None:
    assert [format_result(n) for n in (0, 17, -EINVAL, -9999)] == ["0", "17", "-EINVAL", "-9999"]
