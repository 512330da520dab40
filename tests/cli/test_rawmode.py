"""The person's terminal is as it was, whatever ends or stops xenemu."""

from __future__ import annotations

import faulthandler
import os
import pty
import resource
import signal
import subprocess
import sys
import termios

import pytest

from tinyguest import SPIN, kernel, say
from xenemu.cli.rawmode import DEADLY, RawMode


@pytest.fixture
def keyboard():
    """The two ends of a pseudo-terminal."""
    master, slave = pty.openpty()
    yield master, slave
    os.close(master)
    os.close(slave)


class Process:
    """One that has put a terminal into raw mode, and reads keys until Ctrl-]."""

    def __init__(self, slave):
        self._end, theirs = os.pipe()
        self.pid = os.fork()
        if not self.pid:
            _die_quietly()
            os.dup2(theirs, 2)  # as the guard has it, too
            raw = RawMode(slave)
            os.write(2, b"raw")
            while b"\x1d" not in os.read(slave, 16):
                pass
            raw.leave()
            os._exit(0)
        os.close(theirs)
        assert os.read(self._end, 3) == b"raw"

    def wait(self):
        """The wait status, once the process and its guard have ended."""
        assert os.read(self._end, 1) == b""
        os.close(self._end)
        return os.waitpid(self.pid, 0)[1]


def _die_quietly():
    faulthandler.disable()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def test_it_is_raw_until_it_is_left(keyboard):
    _, slave = keyboard
    before = termios.tcgetattr(slave)
    raw = RawMode(slave)
    assert not termios.tcgetattr(slave)[3] & (termios.ICANON | termios.ECHO | termios.ISIG)
    raw.leave()
    assert termios.tcgetattr(slave) == before


def test_a_signal_that_ends_the_process_at_once(keyboard):
    _, slave = keyboard
    before = termios.tcgetattr(slave)
    for signum in (*DEADLY, signal.SIGSEGV, signal.SIGKILL):
        process = Process(slave)
        assert termios.tcgetattr(slave) != before
        os.kill(process.pid, signum)
        assert os.WTERMSIG(process.wait()) == signum
        assert termios.tcgetattr(slave) == before, signum


def test_while_it_is_stopped_the_terminal_is_as_it_was(keyboard):
    master, slave = keyboard
    before = termios.tcgetattr(slave)
    process = Process(slave)
    os.kill(process.pid, signal.SIGTSTP)
    assert os.WIFSTOPPED(os.waitpid(process.pid, os.WUNTRACED)[1])
    assert termios.tcgetattr(slave) == before
    os.kill(process.pid, signal.SIGCONT)
    os.write(master, b"\x1d")  # raw again, it sees this without a line end
    assert process.wait() == 0
    assert termios.tcgetattr(slave) == before


def test_what_somebody_else_has_set_meanwhile_stays(keyboard):
    """A shell may be quicker than the guard."""
    _, slave = keyboard
    process = Process(slave)
    other = termios.tcgetattr(slave)
    other[3] |= termios.ECHO
    termios.tcsetattr(slave, termios.TCSANOW, other)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert termios.tcgetattr(slave) == other


@pytest.mark.parametrize("signum", [signal.SIGQUIT, signal.SIGTERM])
def test_a_run(keyboard, tmp_path, signum):
    """SIGQUIT: in order before it dies, without the guard."""
    _, slave = keyboard
    before = termios.tcgetattr(slave)
    (tmp_path / "kernel").write_bytes(kernel(say(b"up\n") + SPIN))
    script = 'ulimit -c 0; exec "$0" -m xenemu run "$1" --memory 64M'
    process = subprocess.Popen(
        ["sh", "-c", script, sys.executable, tmp_path / "kernel"],
        stdin=slave,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert process.stdout.read(3) == b"up\n"
    assert termios.tcgetattr(slave) != before
    process.send_signal(signum)
    assert process.wait() in (-signum, 128 + signum)
    process.stdout.close()
    assert termios.tcgetattr(slave) == before
