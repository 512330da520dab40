"""`xenemu run --explain` and `--trace`: options, streams, and that the guest does not notice."""

from __future__ import annotations

import json
import signal
import subprocess
import sys

import pytest

from guests.build import ENVIRONMENTS, build, guests


@pytest.fixture(scope="module", params=["pv64", "pvh64"])
def hello(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("hello") / "hello"
    return build(guests()["hello"], ENVIRONMENTS[request.param], path)


@pytest.fixture(scope="module")
def pv_guest(tmp_path_factory):
    """A guest that is refused many things."""
    path = tmp_path_factory.mktemp("guest") / "pv-writable-pt"
    return build(guests()["pv-writable-pt"], ENVIRONMENTS["pv64"], path)


def end_of(result):
    """The last line, without the time here."""
    return result.stderr.decode().splitlines()[-1].rpartition(",")[0]


ALL_KINDS = "hypercalls,mmu,events,traps,vcpus"


@pytest.mark.parametrize(
    "options",
    [
        ("--explain",),
        *(("--trace", kind) for kind in ALL_KINDS.split(",")),
        ("--explain", "--trace", ALL_KINDS, "--trace-format", "json"),
    ],
)
def test_the_guest_does_not_notice(hello, xenemu_run, options):
    plain, watched = xenemu_run(hello), xenemu_run(hello, *options)
    assert (watched.returncode, watched.stdout) == (plain.returncode, plain.stdout)
    assert end_of(watched) == end_of(plain)


def test_a_guest_that_is_refused_much_does_not_notice(pv_guest, xenemu_run, tmp_path):
    plain = xenemu_run(pv_guest)
    options = ("--explain", "--trace", ALL_KINDS, "--trace-file", tmp_path / "trace")
    watched = xenemu_run(pv_guest, *options)
    assert (watched.returncode, watched.stdout) == (plain.returncode, plain.stdout)
    assert end_of(watched) == end_of(plain)


def test_a_trace_is_on_standard_error(hello, xenemu_run):
    result = xenemu_run(hello, "--trace", "hypercalls", "--trace-filter", "shutdown")
    first, last = result.stderr.decode().splitlines()
    assert "sched_op(shutdown, {reason=SHUTDOWN_poweroff}) = 0  <" in first
    assert last.startswith("xenemu: poweroff, exit 0")


def test_a_filter_that_nothing_passes_says_so(hello, xenemu_run):
    result = xenemu_run(hello, "--trace", "hypercalls", "--trace-filter", "shutdwn")
    first, last = result.stderr.decode().splitlines()
    assert first.startswith("xenemu: --trace-filter 'shutdwn' is in no event's name; there were ")
    assert first.count("'") == 2 + 1 + 2 * 3  # the filter, event's, and three names
    assert last.startswith("xenemu: poweroff, exit 0")


def test_a_filter_may_leave_out(hello, xenemu_run):
    stderr = xenemu_run(hello, "--trace", "hypercalls", "--trace-filter", "^(?!console_io)").stderr
    assert b"sched_op(shutdown" in stderr and b"console_io" not in stderr


def test_a_trace_in_a_file_is_json_line_by_line(hello, xenemu_run, tmp_path):
    path = tmp_path / "trace"
    result = xenemu_run(hello, "--trace", ALL_KINDS, "--trace-format", "json", "--trace-file", path)
    assert result.stderr.count(b"\n") == 1
    events = [json.loads(line) for line in path.read_text().splitlines()]
    assert {"hypercalls", "events"} <= {event["kind"] for event in events}
    times = [event["at_ns"] for event in events if event.get("depth", 0) == 0]
    assert times == sorted(times)


def test_refusals_are_explained(pv_guest, xenemu_run):
    stderr = xenemu_run(pv_guest, "--explain").stderr.decode()
    assert "refused: " in stderr
    assert "  called from:\n" in stderr
    assert "was made l1_page_table by " in stderr


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--trace", "syscalls"), "--trace syscalls: 'syscalls' is none of hypercalls, mmu,"),
        (("--trace", ""), "--trace : '' is none of"),
        (("--trace-filter", "x"), "--trace-filter: say with --trace what to trace"),
        (("--trace-format", "json"), "--trace-format: say with --trace what to trace"),
        (("--trace-file", "/nonexistent"), "--trace-file: say with --trace what to trace"),
        (("--trace", "mmu", "--trace-filter", "("), "--trace-filter '(' is no regular"),
        (("--trace", "mmu", "--trace-file", "/no/file"), "--trace-file /no/file: No such file"),
        (("--trace", "mmu", "--trace-file", __file__), "the file exists"),
        (
            ("--trace", "hypercalls", "--trace-file", "/dev/full"),
            "--trace-file /dev/full: No space",
        ),
    ],
)
def test_what_cannot_be_honoured_is_one_line_and_7(hello, xenemu_run, options, words):
    result = xenemu_run(hello, *options)
    line = result.stderr.decode()
    assert (result.returncode, line.count("\n")) == (7, 1)
    assert line.startswith("xenemu: ") and words in line


def shell(hello, options, redirection):
    command = f"{sys.executable} -m xenemu run {hello} {options} {redirection}"
    return subprocess.run(command, shell=True, capture_output=True, check=False)


def test_standard_error_may_be_closed(hello):
    result = shell(hello, "--explain --trace hypercalls", "2>&-")
    assert result.returncode == 0
    assert b"SUCCESS" in result.stdout


def test_a_reader_of_the_trace_that_left_is_sigpipe(hello):
    command = [sys.executable, "-m", "xenemu", "run", hello, "--trace", "hypercalls"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    process.stderr.close()
    assert process.wait() == 128 + signal.SIGPIPE
