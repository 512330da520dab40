"""A guest under test, on the engine: tiny guests of a few instructions."""

from __future__ import annotations

import pytest

from tinyguest import BLOCK, CRASH, POWEROFF, SPIN, UNDEFINED, kernel, say, shutdown
from xenemu.outcome import End
from xenemu.smoke.plan import Boot, Step
from xenemu.smoke.session import Session
from xenemu.smoke.verdict import Finding, Verdict

# xor %edi, %edi; vcpu_op(VCPUOP_down, 0): what Linux does when it halts with interrupts off.
DOWN = bytes.fromhex("b818000000 bf02000000 31f6 31d2 0f05")


@pytest.fixture
def session(tmp_path):
    """A function that makes a session of code and keys of a boot."""

    def make(code, **keys):
        path = tmp_path / "kernel"
        path.write_bytes(kernel(code))
        return Session(Boot("guest", path, memory=64 << 20, **keys))

    return make


def verdicts(session):
    return [finding.verdict for finding in session.run_plan()]


def test_phases_in_their_order(session):
    linux = session(say(b"Linux version 6\nRun /init as init process\n") + shutdown(POWEROFF))
    assert verdicts(linux) == []
    assert [phase.name for phase in linux.phases] == [
        *("loaded", "built", "console", "kernel", "init", "end")
    ]


def test_expectations_are_met_in_order_and_end_the_run(session):
    steps = (Step("one"), Step("(?P<number>two)"))
    guest = session(say(b"one\ntwo\n") + SPIN, expect=steps)
    assert verdicts(guest) == []
    assert guest.outcome.end is End.EXPECTED
    assert guest.captures == {"number": "two"}


def test_an_expectation_out_of_order_is_not_met(session):
    guest = session(say(b"one\ntwo\n") + shutdown(POWEROFF), expect=(Step("two"), Step("one")))
    (finding,) = guest.run_plan()
    where = "'one' is in line 1 of the console, but not after 'two': 'one'"
    assert finding == Finding(Verdict.UNMET, f"the guest powered off; {where}")


def test_which_panic_it_must_be(session):
    code = say(b"[    0.000000] Kernel panic - not syncing: VFS\n") + shutdown(CRASH)
    for words, expected in (("not syncing: VFS", []), ("not syncing: Oops", [Verdict.UNMET])):
        guest = session(code, expect=(Step(words),), exit=("panic",))
        assert verdicts(guest) == expected
        assert guest.reason == "Kernel panic - not syncing: VFS", "also of a boot that has passed"
    guest = session(say(b"not syncing: VFS\n") + shutdown(POWEROFF), exit=("panic",))
    assert verdicts(guest) == [Verdict.END]


def test_an_end_that_is_asked_for_is_waited_for(session):
    guest = session(say(b"one\n") + shutdown(POWEROFF), expect=(Step("one"),), exit=("poweroff",))
    assert verdicts(guest) == []
    assert guest.outcome.end is End.POWEROFF


def test_what_is_forbidden_ends_the_run(session):
    guest = session(say(b"oh no\n") + SPIN, reject=("no$",))
    (finding,) = guest.run_plan()
    assert finding.verdict is Verdict.REJECTED
    assert finding.reason == "the console shows 'no', which 'no$' forbids"


def test_a_loop_is_named(session):
    guest = session(say(b"one\n") + SPIN, quiet_timeout=0.12)
    (finding,) = guest.run_plan()
    loop = "in a loop in 0xffffffff81000000-0xffffffff810000ff, and silent in its last 0.1"
    assert finding.reason.startswith(f"it printed nothing for 0.12 s of its own time, {loop}")
    assert "samples: 100% 0xffffffff81000000-0xffffffff810000ff" in guest.report()


@pytest.mark.parametrize(
    ("keys", "verdict"),
    [
        ({"quiet_timeout": 0.02}, Verdict.QUIET),
        ({"virtual_timeout": 0.02}, Verdict.TIMEOUT),
    ],
)
def test_limits_in_the_guests_time_are_met_at_the_same_instruction(session, keys, verdict):
    ends = []
    for _ in range(2):
        guest = session(say(b"one\n") + SPIN, **keys)
        assert verdicts(guest) == [verdict]
        ends.append(guest.machine.engine.instructions)
    assert ends[0] == ends[1] > 0


def test_a_limit_in_the_hosts_time(session):
    assert verdicts(session(SPIN, timeout=0.01)) == [Verdict.TIMEOUT]


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (shutdown(CRASH), [Verdict.CRASH]),
        (UNDEFINED, [Verdict.REFUSED]),
        (BLOCK, [Verdict.IDLE]),
        (DOWN, [Verdict.IDLE]),
    ],
)
def test_ends_that_no_one_wants(session, code, expected):
    guest = session(code)
    assert verdicts(guest) == expected
    assert "Registers of vcpu 0:" in guest.report()


def test_a_crash_in_the_slice_of_the_last_expectation_counts(session):
    guest = session(say(b"one\n") + shutdown(CRASH), expect=(Step("one"),))
    assert verdicts(guest) == [Verdict.CRASH]


def test_tests_on_the_console_count(session):
    guest = session(say(b"TAP version 13\n1..1\nnot ok 1 a\n") + shutdown(POWEROFF))
    assert verdicts(guest) == [Verdict.TESTS]


def test_a_guest_goes_on_where_it_was_left(session):
    guest = session(say(b"one\n") + say(b"two\n") + shutdown(POWEROFF))
    assert guest.run([Step("one")], 60, to_end=False).end is End.EXPECTED
    assert guest.run([Step("two")], 60, to_end=False).end is End.EXPECTED
    assert guest.run([], 60).end is End.POWEROFF
    assert guest.run([Step("three")], 60).end is End.POWEROFF
