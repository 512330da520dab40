"""The host's side of the console, on pipes, files and a pseudo-terminal."""

from __future__ import annotations

import os
import pty
import signal
import termios

import pytest

from xenemu.cli.expect import Expectations
from xenemu.cli.status import Status
from xenemu.cli.terminal import HostTerminal
from xenemu.errors import OutputError
from xenemu.outcome import End
from xenemu.outputs import Output

ROOM = 1024


def terminal(stdin=None, stdout=None, expect=(), log=None):
    return HostTerminal(stdin, stdout, Expectations(expect), Status(None), log)


class Pipe:
    """Two ends, each closed once, by the test or after it."""

    def __init__(self):
        reader, writer = os.pipe()
        self.reader = os.fdopen(reader, "rb", buffering=0)
        self.writer = os.fdopen(writer, "wb", buffering=0)
        self.stdin, self.stdout = reader, writer


@pytest.fixture
def pipe():
    ends = Pipe()
    yield ends
    ends.reader.close()
    ends.writer.close()


@pytest.fixture
def keyboard():
    """The two ends of a pseudo-terminal."""
    master, slave = pty.openpty()
    yield master, slave
    os.close(master)
    os.close(slave)


# Pipes and files.


def test_a_pipe_is_read_as_far_as_there_is_room(pipe):
    ours = terminal(pipe.stdin)
    pipe.writer.write(b"ls\nhelp\n")
    assert [ours.read(3, 0), ours.read(ROOM, 0)] == [b"ls\n", b"help\n"]
    assert ours.read(0, None) == b""
    assert not (ours.exhausted or ours.interactive)


def test_a_silent_pipe_does_not_wait(pipe):
    ours = terminal(pipe.stdin)
    assert ours.read(ROOM, 0) == b""
    assert ours.read(ROOM, 1000) == b""
    assert not ours.exhausted


def test_a_wait_for_a_timer_that_is_centuries_away(pipe):
    pipe.writer.write(b"x")
    assert terminal(pipe.stdin).read(ROOM, 1 << 64) == b"x"


def test_the_end_of_a_pipe_ends_a_wait(pipe):
    ours = terminal(pipe.stdin)
    pipe.writer.close()
    assert ours.read(ROOM, None) == b""
    assert ours.exhausted


def test_dev_null_and_nothing_are_exhausted():
    with open(os.devnull, "rb") as null:
        ours = terminal(null.fileno())
        assert ours.read(ROOM, 0) == b""
    assert ours.exhausted and terminal(None).exhausted


def test_ctrl_bracket_in_a_pipe_is_input(pipe):
    pipe.writer.write(b"a\x1db")
    ours = terminal(pipe.stdin)
    assert ours.read(ROOM, 0) == b"a\x1db"
    assert ours.check() is None


# A person's terminal.


def test_keys_go_to_the_guest_as_they_are(keyboard):
    master, slave = keyboard
    with terminal(slave) as ours:
        assert ours.interactive
        os.write(master, b"\x03\x04\x13\x1a\r")
        assert ours.read(ROOM, None) == b"\x03\x04\x13\x1a\r"


def test_ctrl_bracket_leaves(keyboard):
    master, slave = keyboard
    with terminal(slave) as ours:
        os.write(master, b"exit\x1d\x1dlost")
        assert ours.read(ROOM, None) == b"exit"
        assert ours.check().end is End.STOPPED


def test_output_is_still_processed(keyboard):
    _, slave = keyboard
    with terminal(slave):
        assert termios.tcgetattr(slave)[1] & termios.OPOST


@pytest.mark.parametrize("error", [None, KeyboardInterrupt, RuntimeError])
def test_the_terminal_is_restored_however_it_ends(keyboard, error):
    _, slave = keyboard
    before = termios.tcgetattr(slave)
    try:
        with terminal(slave):
            assert termios.tcgetattr(slave) != before
            if error:
                raise error
    except (KeyboardInterrupt, RuntimeError):
        pass
    assert termios.tcgetattr(slave) == before


def test_a_terminal_that_has_this_process_in_front_is_read(keyboard, monkeypatch):
    monkeypatch.setattr(os, "tcgetpgrp", lambda descriptor: os.getpgrp())
    assert terminal(keyboard[1]).interactive


def test_a_terminal_that_another_process_has_is_left_alone(keyboard, monkeypatch):
    _, slave = keyboard
    monkeypatch.setattr(os, "tcgetpgrp", lambda descriptor: os.getpgrp() + 1)
    before = termios.tcgetattr(slave)
    with terminal(slave) as ours:
        assert termios.tcgetattr(slave) == before
        assert ours.exhausted and not ours.interactive


def test_a_terminal_that_is_hung_up_is_exhausted():
    master, slave = pty.openpty()
    with terminal(slave) as ours:
        os.close(master)
        assert ours.read(ROOM, None) == b""
        assert ours.exhausted and not ours.interactive
    os.close(slave)


# Signals.


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_the_run_and_a_wait(pipe, signum):
    before = signal.getsignal(signum)
    with terminal(pipe.stdin) as ours:
        signal.raise_signal(signum)
        assert ours.read(ROOM, None) == b""
        assert ours.check().reason == f"stopped by {signum.name}"
        assert ours.signum == signum
    assert signal.getsignal(signum) is before


def test_a_signal_interrupts_a_wait_that_has_begun(pipe):
    with terminal(pipe.stdin) as ours:
        signal.signal(signal.SIGALRM, ours._on_signal)
        signal.setitimer(signal.ITIMER_REAL, 0.01)
        assert ours.read(ROOM, None) == b""
        assert ours.signum == signal.SIGALRM
    signal.signal(signal.SIGALRM, signal.SIG_DFL)


def test_an_ignored_signal_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with terminal():
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    signal.signal(signal.SIGHUP, before)


# Output.


def test_output_goes_to_stdout_and_the_log_byte_for_byte(pipe, tmp_path):
    with (tmp_path / "log").open("wb", buffering=0) as log:
        ours = terminal(None, pipe.stdout, log=Output(log.fileno(), "--log log"))
        ours.write(b"\x00\xff\r\n")
    assert pipe.reader.read(ROOM) == (tmp_path / "log").read_bytes() == b"\x00\xff\r\n"


def test_output_ends_the_run_when_every_expectation_is_met(pipe):
    ours = terminal(None, pipe.stdout, expect=["one", "two"])
    ours.write(b"one\n")
    assert ours.check() is None
    ours.write(b"two\n")
    assert ours.check().end is End.EXPECTED


def test_a_closed_stdout_is_no_error():
    ours = terminal(None, None, expect=["one"])
    ours.write(b"one\n")
    assert ours.check().end is End.EXPECTED


def test_a_reader_that_left_ends_the_run(pipe):
    pipe.reader.close()
    ours = terminal(None, pipe.stdout)
    ours.write(b"one\n")
    assert ours.signum == signal.SIGPIPE
    assert ours.check().end is End.STOPPED


def test_a_full_disk_is_an_error_that_names_the_file(pipe):
    with open("/dev/full", "wb", buffering=0) as full:
        named = Output(full.fileno(), "--log full")
        for ours in (terminal(None, full.fileno()), terminal(None, pipe.stdout, log=named)):
            with pytest.raises(OutputError, match=r"^(standard output|--log full): No space left"):
                ours.write(b"one\n")


def test_a_signal_ends_a_write_that_nobody_reads(pipe):
    with terminal(None, None, log=Output(pipe.stdout, "--log pipe")) as ours:
        signal.signal(signal.SIGALRM, ours._on_signal)
        signal.setitimer(signal.ITIMER_REAL, 0.01)
        ours.write(bytes(1 << 20))  # more than a pipe holds
        assert ours.signum == signal.SIGALRM
    signal.signal(signal.SIGALRM, signal.SIG_DFL)


def test_a_file_has_what_came_before_a_signal_and_with_it(tmp_path):
    with (tmp_path / "log").open("wb", buffering=0) as log:
        ours = terminal(None, None, log=Output(log.fileno(), "--log log"))
        ours.signum = signal.SIGTERM
        ours.write(b"last words")
    assert (tmp_path / "log").read_bytes() == b"last words"


# Waiting for somebody else.


def test_a_caller_ends_the_wait_for_input(pipe):
    quiet = Pipe()
    ours = terminal(quiet.stdin)
    ours.callers = lambda: [pipe.stdin]
    pipe.writer.write(b"x")
    assert ours.read(ROOM, None) == b""
    assert not ours.exhausted
    quiet.reader.close()
    quiet.writer.close()


def test_a_packet_ends_a_wait_with_and_without_a_person(pipe):
    quiet = Pipe()
    pipe.writer.write(b"x")
    for stdin in (quiet.stdin, None):
        assert terminal(stdin).read(ROOM, None, [pipe.stdin]) == b""
    quiet.reader.close()
    quiet.writer.close()


def test_room_on_a_wire_ends_a_wait_for_packets(pipe):
    quiet = Pipe()
    assert terminal().read(ROOM, None, [quiet.stdin], [pipe.stdout]) == b""
    quiet.reader.close()
    quiet.writer.close()


def test_a_signal_ends_a_wait_for_packets(pipe):
    with terminal() as ours:
        signal.signal(signal.SIGALRM, ours._on_signal)
        signal.setitimer(signal.ITIMER_REAL, 0.01)
        assert ours.read(ROOM, None, [pipe.stdin]) == b""
        assert ours.check().end is End.STOPPED
    signal.signal(signal.SIGALRM, signal.SIG_DFL)


def test_what_is_typed_meanwhile_is_kept_for_the_guest(keyboard, pipe):
    master, slave = keyboard
    ours = terminal(slave)
    ours.interactive = True
    with ours:
        os.write(master, b"ls")
        pipe.writer.write(b"x")
        assert ours.wait([pipe.stdin], "held")
        while not ours._typed:
            assert ours.wait([pipe.stdin], "held")
        assert ours.read(1, 0) + ours.read(ROOM, 0) == b"ls"


def test_ctrl_c_ends_a_wait_only_where_nobody_else_is(keyboard, pipe):
    """Else it is the guest's, who is still held."""
    master, slave = keyboard
    ours = terminal(slave)
    ours.interactive = True
    with ours:
        os.write(master, b"a\x03")
        while b"\x03" not in ours._typed:
            assert ours.wait([pipe.stdin], "held", None, alone=False)
        os.write(master, b"\x03")
        assert not ours.wait([pipe.stdin], "waiting", None, alone=True)
    assert ours.signum == signal.SIGINT
    assert ours.check().reason == "stopped by SIGINT"


def test_a_wait_ends_when_its_time_has_passed(pipe):
    ours = terminal()
    assert ours.wait([pipe.stdin], "waiting", 0, alone=True)
    assert ours.wait([pipe.stdin], "waiting", 1e-3, alone=True)


def test_ctrl_bracket_leaves_while_the_guest_is_held(keyboard, pipe):
    master, slave = keyboard
    ours = terminal(slave)
    ours.interactive = True
    with ours:
        os.write(master, b"\x1d\x1d")
        assert not ours.wait([pipe.stdin], "held")
    assert ours.check().end is End.STOPPED


def test_a_signal_ends_a_wait(pipe):
    ours = terminal()
    ours.signum = signal.SIGTERM
    assert not ours.wait([pipe.stdin], "held")
