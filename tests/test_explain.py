"""Refusals explained: one rule, one sentence, and what is to be known of the frames."""

from __future__ import annotations

import pytest

from fakes import (
    KERNEL_ONLY,
    L1,
    L2,
    ROOT,
    SHARED_INFO,
    make_pv_current,
    make_pvh_current,
    protect,
)
from hypercalls import TABLE
from xenemu.abi.xen import MMUEXT_PIN_L1_TABLE, Nr
from xenemu.abi.xen import mmuext_op as mmuext_op_t
from xenemu.explain import REFUSALS, Explainer, facts
from xenemu.hv.current import Current
from xenemu.hv.observe import Watch
from xenemu.peek import Code
from xenemu.x86.paging import RW, US, P

SPARE, DATA = 40, 41
ARGUMENT = 0x26000  # frame 38


@pytest.fixture
def current() -> Current:
    current = make_pv_current()
    current.table = TABLE
    return current


@pytest.fixture
def told(current: Current, code: Code) -> list[str]:
    told: list[str] = []
    Watch(current).add(Explainer(code, told.append))
    return told


def call(current: Current, number: int, *args: int) -> int:
    assert current.table is not None
    return current.table.call(current, number, [*args, 0, 0, 0, 0, 0, 0])


def pin(current: Current, mfn: int) -> int:
    current.write_struct(ARGUMENT, mmuext_op_t(MMUEXT_PIN_L1_TABLE, mfn, 0))
    return call(current, Nr.mmuext_op, ARGUMENT, 1, 0, 0x7FF0)


# Facts.


def test_a_table_of_the_builders(current: Current, code: Code) -> None:
    sentence = current.domain.frames.describe(L2)
    assert facts(current, sentence, code) == [
        "mfn 0x12 was made l2_page_table by the domain builder"
    ]


def test_a_table_of_a_hypercalls(current: Current, code: Code) -> None:
    current.cpu.now_ns, current.cpu.rip = 1_500_000, 0x21000
    protect(current, SPARE)
    assert pin(current, SPARE) == 0
    current.cpu.now_ns, current.cpu.rip = 9_000_000, 0x22000
    assert facts(current, current.domain.frames.describe(SPARE), code) == [
        "mfn 0x28 was made l1_page_table by mmuext_op at 0.001500 s, from 0x21000"
    ]


def test_where_a_frame_is_mapped_writable(current: Current, code: Code) -> None:
    assert facts(current, current.domain.frames.describe(DATA), code) == [
        "mfn 0x29 is mapped RW by entry 0x29 of the L1 in mfn 0x13, at 0x29000"
    ]


def test_a_frame_mapped_writable_often(current: Current, code: Code) -> None:
    for index in range(100, 105):
        current.domain.frames.mod_entry((L1 << 12) + 8 * index, DATA << 12 | P | RW | US, 1)
    lines = facts(current, current.domain.frames.describe(DATA), code)
    assert len(lines) == 5
    assert lines[-1] == "mfn 0x29 is mapped RW by 2 more entries"


def test_only_so_many_tables_are_searched(
    current: Current, code: Code, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("xenemu.explain.MAX_TABLES", 1)
    protect(current, SPARE)
    pin(current, SPARE)
    lines = facts(current, current.domain.frames.describe(DATA), code)
    assert lines[-1] == "others may map mfn 0x29 RW: only 1 L1 tables were searched"


def test_a_mapping_that_no_address_reaches(current: Current, code: Code) -> None:
    for root_entry in (0, 1):
        current.domain.memory.words[(ROOT << 9) + root_entry] = 0
    assert facts(current, current.domain.frames.describe(DATA), code) == [
        "mfn 0x29 is mapped RW by entry 0x29 of the L1 in mfn 0x13, which is not in the tables"
        " in use"
    ]


def test_an_address_in_the_upper_half_is_canonical(current: Current, code: Code) -> None:
    words = current.domain.memory.words
    words[(ROOT << 9) + 511] = words[ROOT << 9]
    words[ROOT << 9] = words[(ROOT << 9) + KERNEL_ONLY // (1 << 39)] = 0
    (line,) = facts(current, current.domain.frames.describe(DATA), code)
    assert line.endswith("at 0xffffff8000029000")


def test_a_frame_that_xen_holds_writable(current: Current, code: Code) -> None:
    current.domain.frames.get_page_and_type(DATA, 1, 7)
    lines = facts(current, current.domain.frames.describe(DATA), code)
    assert lines[-1] == "mfn 0x29 is held writable by Xen itself, x1"


def test_a_native_guests_frames(code: Code) -> None:
    current = make_pvh_current()
    sentence = current.domain.frames.describe(SHARED_INFO)
    assert facts(current, sentence, code) == ["mfn 0x1 is held writable by Xen itself, x1"]


def test_where_an_access_of_xens_faulted(current: Current, told: list[str]) -> None:
    call(current, Nr.mmuext_op, 0x5000, 1, 0, 0x7FF0)
    assert told[-1].splitlines()[1] == (
        "  the walk to 0x5000 ends at L1[0x5] = 0x0 (mfn 0x0: not present)"
    )


def test_a_frame_that_is_nothing_has_no_facts(current: Current, code: Code) -> None:
    frames = current.domain.frames
    protect(current, SPARE)
    assert facts(current, f"{frames.describe(SPARE)} and {frames.describe(1 << 40)}", code) == []


# As they happen.


def test_a_refusal_has_rule_frames_and_backtrace(current: Current, told: list[str]) -> None:
    pin(current, DATA)
    assert len(told) == 1
    sentence, fact, *where = told[0].splitlines()
    assert sentence.startswith(
        "xenemu: at 0.000000 s on vcpu 0, mmuext_op(uops=[{cmd=MMUEXT_PIN_L1_TABLE, arg1=41,"
    )
    assert "= -EINVAL, refused: mfn 0x29 (d1's, type writable_page x1, 3 references) is" in sentence
    assert fact == "  mfn 0x29 is mapped RW by entry 0x29 of the L1 in mfn 0x13, at 0x29000"
    assert where[:2] == ["  called from:", "     0x21000"]


def test_a_standing_answer_is_one_calm_line(current: Current, told: list[str]) -> None:
    call(current, Nr.xsm_op, 0)
    assert told == [
        "xenemu: at 0.000000 s on vcpu 0, xsm_op(arg1=0) = -ENOSYS, Xen's answer to every domU:"
        " xsm_op: Xen is built without FLASK (from 0x21000)\n"
    ]


def test_what_is_refused_outside_hypercalls(current: Current, told: list[str]) -> None:
    current.log("no store here")
    assert told[0].startswith("xenemu: at 0.000000 s on vcpu 0, no store here\n  called from:\n")


def test_success_is_not_told(current: Current, told: list[str]) -> None:
    call(current, Nr.stack_switch, 0xE02B, 0x20000)
    assert told == []


def test_the_same_refusal_is_counted(current: Current, code: Code) -> None:
    told: list[str] = []
    explainer = Explainer(code, told.append)
    Watch(current).add(explainer)
    for port in range(1, 8):
        current.log(f"port {port} is no more")
    assert len(told) == 1
    explainer.close()
    assert told[1:] == ["xenemu: 6 times more at 0x21000: port # is no more\n"]


def test_another_place_is_another_refusal(current: Current, told: list[str]) -> None:
    for rip in (0x21000, 0x22000):
        current.cpu.rip = rip
        current.log("no")
    assert len(told) == 2


def test_there_is_an_end_of_refusals(current: Current, code: Code) -> None:
    told: list[str] = []
    explainer = Explainer(code, told.append)
    Watch(current).add(explainer)
    for rip in range(REFUSALS + 10):
        current.cpu.rip = rip
        current.log("no")
    assert len(told) == REFUSALS
    explainer.close()
    assert told[REFUSALS:] == [f"xenemu: 10 more that were not told, after {REFUSALS} kinds\n"]


def test_explaining_changes_nothing_of_the_guests(current: Current, code: Code) -> None:
    pin(current, DATA)
    bare = bytes(current.domain.memory.bytes)
    other = make_pv_current()
    other.table = TABLE
    Watch(other).add(Explainer(code, lambda _: None))
    pin(other, DATA)
    assert bytes(other.domain.memory.bytes) == bare
