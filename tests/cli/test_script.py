"""What a script types, and when, by a clock that the test turns."""

from __future__ import annotations

from pathlib import Path

import pytest

from xenemu.cli.expect import Expectations
from xenemu.cli.script import WINDOW, Script, checked, pairs, read_script, unescaped
from xenemu.cli.status import Status
from xenemu.cli.terminal import HostTerminal
from xenemu.errors import UsageError

S = 1_000_000_000


class Clock:
    now_ns = 0

    def __call__(self):
        return self.now_ns


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def begun(clock):
    """A function from parts to a script that has begun."""

    def begun(*parts, **more):
        script = Script(parts, **more)
        script.begin(clock)
        return script

    return begun


def test_a_text_is_typed_after_what_is_expected(begun):
    script = begun(("expect", "login:"), ("send", "root\n"), ("expect", "# $"), ("send", "ls\n"))
    assert (script.take(), script.unmet) == (b"", ["login:", "# $"])
    script.feed("debian log")
    assert script.take() == b""
    script.feed("in: ")
    assert (script.take(), script.take(), script.unmet) == (b"root\n", b"", ["# $"])
    script.feed("# ")
    assert (script.take(), script.unmet) == (b"ls\n", [])


def test_each_is_looked_for_after_the_one_before_it(begun):
    script = begun(("expect", "b"), ("expect", "a"), ("expect", "^c"))
    script.feed("a b")
    assert script.unmet == ["a", "^c"]
    script.feed("a c")
    assert script.unmet == ["^c"]
    script.feed("-" * 3 * WINDOW)
    script.feed("c")  # the cut is not the start of a line
    assert script.unmet == ["^c"]
    script.feed("\nc")
    assert script.unmet == []


def test_one_piece_of_the_console_may_meet_several(begun):
    script = begun(("expect", "a"), ("send", "1"), ("expect", "a"), ("send", "2"))
    script.feed("aa")
    assert script.take() == b"12"


def test_a_time_is_the_guests(begun, clock):
    script = begun(("at", str(2 * S)), ("send", "x"), ("wait", str(3 * S)), ("send", "y"))
    assert (script.take(), script.due_ns) == (b"", 2 * S)
    clock.now_ns = 2 * S
    assert (script.due_ns, script.take()) == (2 * S, b"x")
    assert (script.due_ns, script.take()) == (5 * S, b"")
    clock.now_ns = 6 * S
    assert (script.due_ns, script.take(), script.due_ns) == (6 * S, b"y", None)


def test_a_wait_begins_when_what_is_before_it_is_done(begun, clock):
    script = begun(("expect", "x"), ("wait", str(S)), ("send", "y"))
    clock.now_ns = 7 * S
    assert script.due_ns is None
    script.feed("x")
    assert script.due_ns == 8 * S


def test_a_time_that_is_past_is_told_once(clock):
    script, told = Script((("at", str(S)), ("expect", "x"), ("at", str(2 * S)), ("send", "y"))), []
    script.begin(clock, told.append)
    clock.now_ns = 3 * S
    assert (script.due_ns, told) == (None, [])  # it came in time
    script.feed("x")
    assert (script.take(), script.take()) == (b"y", b"")
    assert told == [
        "the script's at 2s comes too late: the guest's clock shows 3.000000s; the script goes on"
        " at once"
    ]


def test_pairs_are_in_the_order_of_the_command_line():
    script = pairs(["a", "b", "c"], ["1\\n"], ["expect", "memory", "expect", "send", "expect"])
    assert script.parts == (("expect", "a"), ("expect", "b"), ("send", "1\n"), ("expect", "c"))
    assert script.ends
    assert not pairs(["a"], ["1"], ["expect", "send"]).ends
    with pytest.raises(UsageError, match="--send x: say after which --expect"):
        pairs(["a"], ["x"], ["send", "expect"])


def test_a_run_ends_when_the_last_is_met_unless_something_is_typed_then(begun):
    for ends in (True, False):
        met = Expectations((), begun(("expect", "a"), ends=ends))
        met.feed(b"a")
        assert met.met is ends
    both = Expectations(["b"], begun(("expect", "a")))
    both.feed(b"b")
    assert (both.met, both.unmet, both.unmet_in_any_order) == (False, ["a"], [])
    both.feed(b"a")
    assert both.met


def test_what_escapes_stand_for():
    assert unescaped(r"a\n\r\t\e\\n\x03", "") == "a\n\r\t\x1b\\n\x03"
    assert unescaped(r"\xff", "").encode(errors="surrogateescape") == b"\xff"
    for wrong in (r"\q", r"\x1", "\\"):
        with pytest.raises(UsageError, match=r"--send .*: there is no"):
            unescaped(wrong, "--send")


def test_a_file(tmp_path):
    path = tmp_path / "script"
    path.write_bytes(
        b"# logs in\n\nexpect login: \nsend root\\n\n"
        b"at 2.5s\nsendline ls \xff\r\nwait 1\nsendline\n"
    )
    assert read_script("--input", path).parts == (
        *(("expect", "login: "), ("send", "root\n"), ("at", "2500000000")),
        *(("send", "ls \udcff\n"), ("wait", "1000000000"), ("send", "\n")),
    )
    assert not read_script("--input", path).ends


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("expect a\nfoo bar", r"script:2: 'foo' is no word of a script; there are expect, send"),
        (" send x", "script:1: '' is no word"),
        ("at 2m", "script:1: at: give seconds of the guest's time, as in 1.5s"),
        ("wait 9999999s", "script:1: wait: give seconds"),
        ("wait", "script:1: wait: give seconds"),
        ("expect (", r"script:1: '\(' is no regular expression"),
        ("expect", "script:1: '' matches before anything is printed"),
        (r"send \q", r"script:1: \\q: there is no \\q"),
        ("#" * (2 << 20), "script: longer than 1 MiB, so no script"),
    ],
)
def test_what_a_file_cannot_say(tmp_path, text, why):
    (tmp_path / "script").write_text(text)
    with pytest.raises(UsageError, match=why):
        read_script("--input", tmp_path / "script")


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(UsageError, match=r"--input .*/none: No such file"):
        read_script("--input", tmp_path / "none")


def test_a_recordings_script_is_checked():
    good = [("expect", "a"), ("send", "\n"), ("at", "5"), ("wait", "7")]
    assert checked("rec", good) == good
    for wrong in (("at", "x"), ("wait", "1" * 19), ("expect", "(")):
        with pytest.raises(UsageError, match=r"^rec: its script"):
            checked("rec", [wrong])


def test_a_terminal_types_what_the_script_says(begun, clock):
    script = begun(("expect", "#"), ("send", "ls\n"), ("at", str(S)), ("send", "x"))
    ours = HostTerminal(None, None, Expectations((), script), Status(None))
    assert (ours.exhausted, ours.due_ns, ours.read(9, 0)) == (True, None, b"")
    ours.write(b"/ # ")
    assert (ours.exhausted, ours.due_ns) == (False, 0)
    assert (ours.read(2, 0), ours.read(9, 0)) == (b"ls", b"\n")
    assert (ours.exhausted, ours.due_ns, ours.read(9, 0)) == (False, S, b"")
    clock.now_ns = S
    assert (ours.read(9, 0), ours.exhausted, ours.due_ns) == (b"x", True, None)


def test_standard_input_is_no_script():
    with pytest.raises(UsageError, match=r"^--input -: standard input is typed without --input; a"):
        read_script("--input", Path("-"))
