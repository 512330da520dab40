"""`xenemu smoke`: its arguments, what it prints, and its exit codes, with tiny guests."""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import pty
import re
import signal
import subprocess
import sys
import termios
from pathlib import Path
from xml.etree import ElementTree

import pytest
from backports import zstd
from rich.console import Console
from rich.live import Live

import elfwriter
from tinyguest import BLOCK, CRASH, POWEROFF, SPIN, UNDEFINED, kernel, say, shutdown
from xenemu import cli
from xenemu.cli import matrix
from xenemu.cli.matrix import _Display
from xenemu.cpu import coverage
from xenemu.smoke import worker
from xenemu.smoke.plan import Boot

KERNELS = {
    "good": say(b"one\ntwo\n") + shutdown(POWEROFF),
    "crash": say(b"one\n") + shutdown(CRASH),
    "refused": UNDEFINED,
    "idle": BLOCK,
    "spin": SPIN,
    "talk": say(b"hello\n") + SPIN,
}


@pytest.fixture
def place(tmp_path, monkeypatch):
    """The directory with the kernels, and nothing of a CI's variables."""
    for name, code in KERNELS.items():
        (tmp_path / name).write_bytes(kernel(code))
    (tmp_path / "broken").write_bytes(b"#!/bin/sh\n")
    for variable in ("GITHUB_ACTIONS", "GITHUB_STEP_SUMMARY", "GITHUB_WORKSPACE"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def smoke(place, capfd):
    """A function that runs the command; its exit code, standard output and standard error."""

    def run(*arguments):
        code = cli.main(["smoke", *map(str, arguments)])
        return (code, *capfd.readouterr())

    return run


def test_kernels_of_the_command_line(smoke):
    code, out, err = smoke("good", "crash", "--memory", "64M")
    assert code == 4
    assert "          ok  good: the guest powered off (" in err
    assert "       crash  crash: the guest crashed" in err
    assert out.splitlines()[-1] == "1 of 2 boots passed"


@pytest.mark.parametrize(
    ("kernel", "options", "code", "verdict"),
    [
        ("good", (), 0, "pass"),
        ("good", ("--expect", "one", "--expect", "two"), 0, "pass"),
        ("good", ("--expect", "two", "--expect", "one"), 3, "unmet"),
        ("good", ("--reject", "two"), 3, "rejected"),
        ("good", ("--exit", "reboot"), 3, "end"),
        ("crash", ("--expect", "two"), 4, "crash"),
        ("crash", ("--exit", "crash"), 0, "pass"),
        ("refused", (), 5, "refused"),
        ("idle", (), 6, "idle"),
        ("spin", ("--virtual-timeout", "0.05"), 6, "timeout"),
        ("spin", ("--quiet-timeout", "0.05"), 6, "quiet"),
        ("spin", ("--timeout", "0.1"), 6, "timeout"),
        ("broken", (), 7, "image"),
        ("good", ("--memory", "1M"), 8, "fit"),
    ],
)
def test_verdicts_and_their_exit_codes(smoke, kernel, options, code, verdict):
    memory = () if "--memory" in options else ("--memory", "64M")
    found, out, _ = smoke(kernel, *memory, *options)
    table = out[out.index("verdict  ") :].splitlines()
    assert (found, table[1].split()[0]) == (code, verdict)


def test_a_page_and_what_it_compares_with(smoke, place):
    (place / "plan.toml").write_text('[[boot]]\nname = "it"\nkernel = "good"\nmemory = "64M"\n')
    assert smoke("plan.toml", "--html", "1.html", "--baseline", "kept")[0] == 0
    assert "No earlier boot of this name has passed" in (place / "1.html").read_text()
    (place / "good").write_bytes(kernel(say(b"one\n2\n") + shutdown(CRASH)))
    assert smoke("plan.toml", "--html", "2.html", "--baseline", "kept")[0] == 4
    page = (place / "2.html").read_text()
    assert "2 lines of the console differ from the last that passed" in page
    assert '<span class="less">-two</span>\n<span class="more">+2</span>' in page


def test_a_baseline_without_a_page_is_refused(smoke, place):
    code, _, err = smoke("good", "--baseline", "kept")
    assert (code, err) == (
        7, "xenemu: --baseline: say which page is to compare with it: --html FILE\n",
    )  # fmt: skip
    assert not (place / "kept").exists()


def test_several_of_an_option_are_several_boots(smoke):
    _, out, _ = smoke("good", "--list", "--mode", "pv", "--mode", "pvh", "--memory", "64M")
    assert out == "good pv\ngood pvh\n"


def test_a_plan(smoke, place):
    (place / "plan.toml").write_text(
        '[defaults]\nmemory = "64M"\n[[boot]]\nkernel = "good"\nexpect = "(?P<what>t.o)"\n'
    )
    assert smoke("plan.toml")[0] == 0
    code, out, err = smoke("plan.toml", "--mode", "pv")
    assert (code, out, err) == (7, "", "xenemu: --mode: plan.toml says that; change it there\n")


def test_a_bad_plan_runs_nothing(smoke, place):
    (place / "plan.toml").write_text('[[boot]]\nkernel = "good"\n\ntimeot = 5\n')
    code, out, err = smoke("plan.toml", "--junit", "out.xml")
    assert (code, out) == (7, "")
    assert err.startswith("xenemu: plan.toml:4: timeot: unknown key; did you mean timeout? There")
    assert not (place / "out.xml").exists()


def test_dry_run_tells_each_and_runs_none(smoke):
    code, out, err = smoke("good", "spin", "--dry-run", "--cmdline", "quiet")
    assert (code, err) == (0, "")
    assert out.splitlines()[0].startswith("good: good, auto, 256 MiB, 'quiet', timeout 300 s")


def test_dry_run_finds_what_the_run_would(smoke, place, monkeypatch):
    """All that can be wrong before a guest's first instruction, and no file is left."""
    monkeypatch.setenv("PATH", "")
    (place / "login.sh").write_text("#!/bin/sh\n")
    (place / "plan.toml").write_text(
        '[defaults]\nkernel = "good"\nmemory = "64M"\n'
        '[[boot]]\nname = "fine"\n'
        '[[boot]]\nname = "script"\ninit = "login.sh"\n'
        '[[boot]]\nname = "mode"\nmode = "pvh"\n'
        '[[boot]]\nname = "none"\nkernel = "broken"\n'
    )
    outputs = ("--junit", "j.xml", "--log-dir", "new/logs")
    before = sorted(os.listdir())
    code, out, err = smoke("plan.toml", "--dry-run", *outputs)
    assert code == 7
    assert [line.split(":")[0] for line in out.splitlines()] == ["fine", "script", "mode", "none"]
    script, mode, none = err.splitlines()
    assert script.startswith("xenemu: plan.toml:6: script: busybox: not found, and a script needs")
    assert mode.startswith("xenemu: plan.toml:9: mode: ")
    assert none.startswith("xenemu: plan.toml:12: none: ")
    assert sorted(os.listdir()) == before


def test_dry_run_minds_what_the_user_has(smoke, place):
    (place / "mine").write_text("mine")
    code, out, err = smoke("good", "--dry-run", "--junit", "mine", "--memory", "64M")
    assert (code, out, err.count("\n")) == (7, "", 1)
    assert (place / "mine").read_text() == "mine"


@pytest.mark.parametrize(
    ("shard", "names"), [("1/2", ["good", "refused"]), ("2/2", ["crash"]), ("4/4", [])]
)
def test_a_shard_is_a_part(smoke, shard, names):
    code, out, err = smoke("good", "crash", "refused", "--list", "--shard", shard)
    assert (code, out.splitlines()) == (0, names)
    assert err == ("" if names else "xenemu: --shard 4/4: nothing to boot, of 3 in all\n")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--shard", "3/2"), "--shard 3/2: give a part and their number"),
        (("--shard", "x"), "--shard x: give a part"),
        (("--memory", "x"), "--memory: x: give a number and a unit"),
        (("--init", "none"), "--init: none: there is no such file"),
        (("--timeout", "0"), "--timeout 0: give seconds, above 0"),
        (("--quiet-timeout", "abc"), "--quiet-timeout abc: give seconds, above 0"),
        (("--vcpus", "none"), "--vcpus none: give a number of vcpus, from 1 to 128"),
        (("--rng-seed", "abc"), "--rng-seed abc: give a number from 0 to"),
        (("--schedule-seed", "abc"), "--schedule-seed abc: give a number from 0 to"),
        (("--slice", "0"), "--slice 0: give a time from 1ns to 10ms"),
        (("--mode", "pv", "--mode", "pv"), "--mode: 'pv' is there twice"),
        (("sub/good",), "kernel: two would be named 'good'; a plan can name each"),
        (("plan.toml",), "plan.toml: a plan stands alone; put the other kernels into it"),
        (("--rootfs", "none"), "--rootfs: none: there is no such file"),
        (("--junit", "none/x"), "--junit none/x: No such file"),
        (("--log-dir", "good"), "--log-dir good: File exists"),
        (("--expect", ""), "--expect: '' matches before anything is printed"),
    ],
)
def test_what_cannot_be_honoured_is_one_line_and_7(smoke, place, options, words):
    (place / "sub").mkdir()
    (place / "sub" / "good").write_bytes(b"")
    code, out, err = smoke("good", *options)
    assert (code, out) == (7, "")
    assert err.startswith(f"xenemu: {words}")
    assert err.count("\n") == 1


def test_a_failure_shows_the_console_and_where_it_was(smoke):
    _, out, _ = smoke("crash", "--memory", "64M")
    assert out.startswith("=== crash: crash: the guest crashed, by its own account\n")
    assert "  one\n" in out
    assert "Registers of vcpu 0:" in out


def test_github_is_told(smoke, place, monkeypatch):
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(place / "summary"))
    _, out, _ = smoke("good", "crash", "--memory", "64M")
    assert "::error title=crash - crash::the guest crashed" in out
    assert "::group::crash: crash: " in out
    assert "::endgroup::" in out
    assert "| ✅ | good | pass |" in (place / "summary").read_text()


def test_github_is_told_of_a_wrong_plan_at_its_line(smoke, place, monkeypatch):
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_WORKSPACE", str(place.parent))
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(place / "summary"))
    (place / "plan.toml").write_text('[[boot]]\nkernel = "good"\n\ntimeot = 5\n')
    code, out, err = smoke("plan.toml")
    title = "title=xenemu%3A nothing was booted::"
    where = f"::error file={place.name}/plan.toml,line=4,{title}timeot: unknown key"
    assert code == 7
    assert out.startswith(where)
    assert err.startswith("xenemu: plan.toml:4: timeot: ")
    assert "nothing was booted\n\n    plan.toml:4: timeot: " in (place / "summary").read_text()
    code, out, err = smoke("good", "--junit", "good")
    assert (code, out.count("\n"), err.count("\n")) == (7, 1, 1)
    assert out.startswith(f"::error {title}--junit good: the file exists")


def test_github_is_told_of_a_boot_at_its_line(smoke, place, monkeypatch):
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    (place / "plan.toml").write_text('\n[[boot]]\nkernel = "crash"\nmemory = "64M"\n')
    _, out, _ = smoke("plan.toml")
    assert "::error file=plan.toml,line=2,title=crash - crash::the guest crashed" in out


def test_files_are_written(smoke, place):
    options = ("--junit", "j.xml", "--json", "k.json", "--tap", "t.tap", "--log-dir", "logs")
    smoke("good", "crash", "--memory", "64M", *options)
    assert (place / "j.xml").read_bytes().startswith(b"<?xml")
    assert (place / "k.json").read_text().startswith("{")
    assert (place / "t.tap").read_text().startswith("TAP version 14\n1..2\nok 1 - good\n")
    names = sorted(path.name for path in (place / "logs").iterdir())
    assert names == ["crash.core.zst", "crash.log", "crash.rec", "crash.report", "good.log"]
    core = zstd.decompress((place / "logs" / "crash.core.zst").read_bytes())
    assert core.startswith(b"\x7fELF") and len(core) > 64 << 20
    assert (place / "logs" / "good.log").read_text() == "    0.000000  one\n    0.000000  two\n"


def test_coverage_is_that_of_all_boots_together(smoke, place):
    for name in ("one", "other"):
        (place / name).write_bytes(kernel(shutdown(POWEROFF), {"start": elfwriter.ENTRY}))
    options = ("--coverage", "ran.info", "--memory", "64M")
    assert smoke("one", "other", "--mode", "auto", "--mode", "pv", *options)[0] == 0
    lines = (place / "ran.info").read_text().splitlines()
    assert [line for line in lines if line.startswith("SF:")] == ["SF:one", "SF:other"]


def test_coverage_by_vcpu_has_a_test_for_each(smoke, place):
    (place / "one").write_bytes(kernel(shutdown(POWEROFF), {"start": elfwriter.ENTRY}))
    options = ("--coverage", "ran.info", "--coverage-by-vcpu", "--memory", "64M")
    assert smoke("one", *options)[0] == 0
    assert (place / "ran.info").read_text().splitlines()[:2] == ["TN:vcpu0", "SF:one"]
    code, out, err = smoke("one", "--coverage-by-vcpu")
    assert (code, out) == (7, "")
    assert err == "xenemu: --coverage-by-vcpu: say where to, with --coverage FILE\n"


def test_coverage_that_lacks_something_says_so(smoke, place, monkeypatch):
    """Here the worker is this process, so that the log of blocks can be made small."""
    monkeypatch.setattr(coverage, "ROOM", 1)
    monkeypatch.setattr(coverage, "CHUNKS", 1)
    monkeypatch.setattr(coverage, "MOST", 1)
    nobody, _listens = multiprocessing.Pipe()
    run = lambda boots, *_, **__: [worker.Work(b, nobody).done() for b in boots]  # noqa: E731
    monkeypatch.setattr(matrix.runner, "run", run)
    (place / "one").write_bytes(kernel(say(b"x") + shutdown(POWEROFF), {"start": elfwriter.ENTRY}))
    code, _, err = smoke("one", "--coverage", "ran.info", "--memory", "64M")
    assert code == 0
    assert re.search(r"^xenemu: --coverage: one: .* none is noted after \d+ instr", err, re.M)
    assert smoke("one", "--memory", "64M")[2] == ""


OUTPUTS = ("--junit", "--json", "--tap", "--coverage", "--html")


def test_what_the_user_has_stays(smoke, place):
    (place / "mine").write_text("mine")
    (place / "good.report").write_text("mine")
    before = sorted(os.listdir())
    for options in (*((option, "mine") for option in OUTPUTS), ("--log-dir", ".")):
        code, out, err = smoke("good", "--memory", "64M", *options)
        assert (code, out, err.count("\n")) == (7, "", 1)
        assert err.startswith(f"xenemu: {options[0]} ") and "the file exists" in err
    assert sorted(os.listdir()) == before
    assert (place / "mine").read_text() == (place / "good.report").read_text() == "mine"


def test_two_outputs_are_never_one_file(smoke, place):
    before = sorted(os.listdir())
    for options in (
        *(("--junit", "x", "--json", "x"), ("--json", "x", "--tap", "./x")),
        ("--junit", "good.log", "--log-dir", "."),
    ):
        code, out, err = smoke("good", "--memory", "64M", *options)
        assert (code, out, err.count("\n")) == (7, "", 1)
        assert "the same file as --j" in err
    assert sorted(os.listdir()) == before


def test_a_full_disk_is_told_after_all_boots_ran(smoke, place):
    options = ("--junit", "/dev/full", "--json", "k.json", "--log-dir", "logs")
    code, out, err = smoke("good", "crash", "--memory", "64M", *options)
    assert (code, out.splitlines()[-1]) == (7, "1 of 2 boots passed")
    assert err.splitlines()[-1] == "xenemu: --junit /dev/full: No space left on device"
    assert (place / "k.json").read_text().startswith("{")
    assert (place / "logs" / "crash.log").exists()


def test_a_log_that_cannot_be_written_does_not_hide_the_others(smoke, place, monkeypatch):
    """The disk fills up as a log is written."""
    (place / "logs").mkdir()
    (place / "logs" / "good.log").symlink_to("/dev/full")
    code, out, err = smoke("good", "crash", "--memory", "64M", "--log-dir", "logs")
    assert (code, out.splitlines()[-1]) == (7, "1 of 2 boots passed")
    assert err.splitlines()[-1] == "xenemu: --log-dir logs/good.log: No space left on device"
    assert (place / "logs" / "crash.report").exists()


# Interruptions.


@pytest.fixture
def interrupted(place):
    """A function that interrupts a command once its standard error has a text."""

    def interrupted(text, signum, *arguments, stdout=subprocess.PIPE):
        command = [sys.executable, "-m", "xenemu", "smoke", *arguments, "--memory", "64M"]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        process = subprocess.Popen(command, stdout=stdout, stderr=subprocess.PIPE, env=environment)
        while text not in process.stderr.readline().decode():
            pass
        process.send_signal(signum)
        out, err = process.communicate()
        return process.returncode, (out or b"").decode(), err.decode()

    return interrupted


def test_an_interrupted_matrix_keeps_what_it_knows(interrupted, place):
    """One has ended, one runs, and one has not begun."""
    options = ("--junit", "j.xml", "--json", "k.json", "--tap", "t.tap", "--log-dir", "logs")
    names = ("good", "talk", "spin")
    code, out, _ = interrupted("ok  good", signal.SIGTERM, *names, "-j", "1", *options)
    assert code == 128 + signal.SIGTERM
    verdicts = [line.split()[:2] for line in out[out.index("verdict  ") :].splitlines()[1:4]]
    assert verdicts == [["pass", "good"], ["skipped", "talk"], ["skipped", "spin"]]
    assert out.splitlines()[-1] == "1 of 3 boots passed, 2 skipped"
    cases = ElementTree.parse(place / "j.xml").findall("testsuite/testcase")
    reasons = [[skip.get("message") for skip in case.findall("skipped")] for case in cases]
    assert reasons == [[], ["stopped by SIGTERM"], ["stopped by SIGTERM"]]
    tests = json.loads((place / "k.json").read_text())["tests"]
    assert [test["status"] for test in tests] == ["PASS", "SKIP", "SKIP"]
    assert "ok 3 - spin # SKIP stopped by SIGTERM" in (place / "t.tap").read_text()
    assert (place / "logs" / "good.log").read_text() == "    0.000000  one\n    0.000000  two\n"
    assert not (place / "logs" / "spin.log").exists()


def test_a_terminal_that_was_hung_up_does_not_hide_the_signal(interrupted, place):
    with open("/dev/full", "wb") as gone:
        code, _, err = interrupted(
            "ok  good", signal.SIGHUP, "good", "spin", "-j", "1", "--tap", "t.tap", stdout=gone
        )
    assert code == 128 + signal.SIGHUP
    assert "Traceback" not in err
    assert "# SKIP stopped by SIGHUP" in (place / "t.tap").read_text()


def test_a_log_is_there_when_its_boot_has_ended(interrupted, place):
    """Whatever then happens to xenemu; and the results say what is known until they are."""
    options = ("-j", "1", "--log-dir", "logs", "--junit", "j.xml")
    code, _, _ = interrupted("ok  good", signal.SIGKILL, "good", "spin", *options)
    assert code == -signal.SIGKILL
    assert (place / "logs" / "good.log").read_text().endswith("two\n")
    skipped = ElementTree.parse(place / "j.xml").findall("testsuite/testcase/skipped")
    assert [skip.get("message") for skip in skipped] == ["xenemu was killed"] * 2


def test_the_same_boots_have_the_same_consoles(smoke, place):
    for folder in ("first", "second"):
        smoke("good", "crash", "--memory", "64M", "--log-dir", folder)
    for log in (place / "first").glob("*.log"):
        assert log.read_bytes() == (place / "second" / log.name).read_bytes()


def test_fail_fast(smoke):
    code, out, _ = smoke("crash", "good", "--memory", "64M", "-j", "1", "--fail-fast")
    assert code == 4
    assert out.splitlines()[-1] == "0 of 2 boots passed, 1 skipped"


def on_a_terminal(*arguments: str, term: str, columns: int) -> tuple[int, bytes, bytes]:
    """Run xenemu with standard error on a terminal: exit code, standard output, what was shown."""
    master, slave = pty.openpty()
    termios.tcsetwinsize(slave, (24, columns))
    environment = {**os.environ, "TERM": term, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "xenemu", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=slave, env=environment)
    os.close(slave)
    shown = b""
    while True:
        try:
            shown += os.read(master, 4096)
        except OSError:  # the other side is closed
            break
    out, _ = process.communicate()
    os.close(master)
    return process.returncode, out, shown


def test_a_terminal_has_lines_that_live(place):
    code, out, shown = on_a_terminal("smoke", "good", "--memory", "64M", term="xterm", columns=40)
    assert code == 0
    # What lives may be gone before it is drawn, but for this; and the cursor was never away long.
    assert b"\x1b[?25l\x1b[?25h" in shown
    assert b"ok  good: the guest powered off (0.0" in shown  # which the terminal wraps by itself
    assert out.endswith(b"1 of 1 boots passed\n")


@pytest.mark.parametrize("command", ["smoke", "run"])
def test_a_terminal_that_only_goes_on_gets_plain_lines(place, command):
    name = "good-with-a-name-that-is-longer-than-a-line-of-this-terminal"
    (place / name).write_bytes((place / "good").read_bytes())
    code, _, shown = on_a_terminal(command, name, "--memory", "64M", term="dumb", columns=40)
    assert code == 0
    assert b"\x1b" not in shown and b"\r" not in shown.replace(b"\r\n", b"")
    assert name.encode() in shown


def test_lines_that_live_are_cropped_where_the_terminal_ends():
    console = Console(width=40, file=io.StringIO(), force_terminal=True)
    with Live(console=console, auto_refresh=False) as live:
        display = _Display(None, live)
        boot = Boot(name="a-name-that-is-longer-than-a-line-of-this-terminal", kernel=Path("k"))
        display.began(boot)
        lines = console.render_lines(live.renderable, pad=False)
    assert len(lines) == 1
    assert "".join(segment.text for segment in lines[0]).endswith("…")


def test_each_lost_output_is_named_as_far_as_they_are_few(capfd):
    lost = [f"--log-dir {number}.log: No space left on device" for number in range(7)]
    assert matrix._exit_code([], lost[:2], 0) == 7
    assert capfd.readouterr().err.splitlines() == [f"xenemu: {words}" for words in lost[:2]]
    matrix._exit_code([], lost, 0)
    *_, last, more = capfd.readouterr().err.splitlines()
    assert (last, more) == (f"xenemu: {lost[4]}", "xenemu: 2 more outputs are lost")


FROM = """
[[boot]]
name = "base"
kernel = "good"
memory = "64M"
expect = "one"

[[boot]]
name = "a"
from = "base"
schedule_seed = 5

[[boot]]
name = "b"
from = "a"
"""


def test_a_shard_has_what_its_boots_start_from(smoke, place):
    (place / "plan.toml").write_text(FROM.replace("schedule_seed = 5", 'snapshot = "two"'))
    for shard, names in (("1/3", ["base"]), ("2/3", ["base", "a"]), ("3/3", ["base", "a", "b"])):
        code, out, _ = smoke("plan.toml", "--list", "--shard", shard)
        assert (code, out.splitlines()) == (0, names)


def test_dry_run_tells_from_what_a_boot_starts(smoke, place):
    (place / "plan.toml").write_text(FROM.replace('from = "a"', 'from = "base"'))
    code, out, err = smoke("plan.toml", "--dry-run")
    assert (code, err) == (0, "")
    limits = "timeout 300 s, quiet 20 s, poweroff, reboot or suspend"
    assert out.splitlines()[1:] == [
        f"a: from base, --schedule-seed 5, {limits}",
        f"b: from base, {limits}",
    ]


def test_results_say_from_what_a_boot_started(smoke, place):
    (place / "plan.toml").write_text(FROM.partition('[[boot]]\nname = "b"')[0])
    smoke("plan.toml", "--junit", "j.xml")
    suites = ElementTree.fromstring((place / "j.xml").read_text())
    found = [
        {one.get("name"): one.get("value") for one in suite.iter("property")} for suite in suites
    ]
    assert ["from" in properties for properties in found] == [False, True]
    assert found[1]["from"] == "base"
