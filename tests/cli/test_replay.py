"""`xenemu run --record` and `xenemu replay`: the same run again, and what is refused."""

from __future__ import annotations

import os
import pty
import select
import shlex
import subprocess
import sys
from contextlib import ExitStack, suppress

import pytest

from gdbtools import need_gdb
from tinyguest import BLOCK, POWEROFF, SPIN, kernel, say, shutdown, wait_until
from xenemu.cli.replay import Moved, Repeated
from xenemu.errors import UsageError
from xenemu.recording.file import read

GUEST = say(b"one\n") + wait_until(1_000_000_000) + say(b"two\n") + shutdown(POWEROFF)
SMALL = ("--memory", "64M")
XENEMU = (sys.executable, "-m", "xenemu")


@pytest.fixture
def place(tmp_path):
    (tmp_path / "kernel").write_bytes(kernel(GUEST))
    return tmp_path


@pytest.fixture
def call(place):
    def call(*words, **options):
        command = [*XENEMU, *map(str, words)]
        options = {"stdin": subprocess.DEVNULL, "cwd": place} | options
        return subprocess.run(command, capture_output=True, check=False, **options)

    return call


@pytest.fixture
def record(call):
    def record(*options, **more):
        return call("run", "kernel", *SMALL, "--record", "rec", *options, **more)

    return record


def test_limits_of_the_guests_time_and_a_script_come_again(call, place, record):
    (place / "kernel").write_bytes(
        kernel(say(b"one\n") + wait_until(8_000_000_000) + shutdown(POWEROFF))
    )
    (place / "script").write_text("at 2s\nsend x\nexpect never\n")
    for options, code, words in (
        (("--virtual-timeout", "3"), 6, "still running after 3 s of its own time"),
        (("--quiet-timeout", "3"), 6, "it printed nothing for 3 s of its own time"),
        (("--input", "script"), 3, "never seen: 'never'"),
        (("--expect", "one", "--send", "x", "--expect", "one"), 3, "never seen: 'one'"),
        (("--expect", "one", "--send", "x"), 0, "the guest powered off"),
    ):
        recorded = record(*options)
        repeated = call("replay", "rec")
        assert (recorded.returncode, repeated.returncode) == (code, code), recorded.stderr
        assert words in last(recorded) == last(repeated)
        (place / "rec").unlink()


def last(result):
    """The line of how it ended, without what the host's clock says."""
    lines = result.stderr.decode().splitlines()
    return next(line for line in lines if ", exit " in line).rpartition(",")[0]


def told(result):
    """What one line says, of a command that is refused."""
    assert (result.returncode, result.stdout) == (7, b"")
    (line,) = result.stderr.decode().splitlines()
    return line


def test_a_replay_is_the_run_again(record, call):
    run = record()
    for options in ((), ("--audit", "0.1"), ("--trace", "hypercalls"), ("--explain",)):
        again = call("replay", "rec", *options)
        assert (again.returncode, again.stdout) == (run.returncode, run.stdout)
        assert last(again) == last(run)


def test_a_recorded_run_is_the_run(record, call):
    assert last(record()) == last(call("run", "kernel", *SMALL))


def test_the_exit_code_is_that_of_the_run(record, call, place):
    for options, code in ((("--expect", "two"), 0), (("--expect", "three"), 3)):
        assert record(*options).returncode == code
        again = call("replay", "rec")
        assert again.returncode == code
        assert (b"never seen: 'three'" in again.stderr) == (code == 3)
        (place / "rec").unlink()


def test_a_timeout_comes_again_at_the_same_instruction(record, call, place):
    (place / "kernel").write_bytes(kernel(SPIN))
    run = record("--timeout", "1")
    again = call("replay", "rec")
    assert (run.returncode, again.returncode) == (6, 6)
    assert last(again) == last(run)
    assert "instructions" in last(run)


def test_a_killed_run_is_repeated_up_to_there(call, place):
    (place / "kernel").write_bytes(kernel(say(b"one\n") + SPIN))
    command = [*XENEMU, "run", "kernel", *SMALL, "--record", "rec"]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          cwd=place) as run:  # fmt: skip
        assert run.stdout.read(4) == b"one\n"
        while not _events(place / "rec"):
            pass
        run.kill()
    again = call("replay", "rec", "--timeout", "60")
    assert (again.returncode, again.stdout) == (3, b"one\n")
    assert b"the recording ends here" in again.stderr
    on = call("replay", "rec", "--beyond", "--timeout", "1")
    assert (on.returncode, on.stdout) == (6, b"one\n")


def _events(path):
    try:
        return read(path).events
    except UsageError:
        return []


def test_keys_of_a_person_come_again(guest_image, call, place):
    """GRUB on a terminal, which a person types at, and leaves."""
    person, terminal = pty.openpty()
    grub = guest_image("grub-x86_64-xen")
    command = [*XENEMU, "run", str(grub), "--record", "rec", "--log", "log"]
    shown = b""
    with subprocess.Popen(command, stdin=terminal, stdout=terminal, stderr=terminal,
                          cwd=place) as run:  # fmt: skip
        os.close(terminal)
        for wanted, keys in ((b"grub> ", b"echo a''b\r"), (b"ab", b""), (b"grub> ", b"\x1d\x1d")):
            while wanted not in shown and select.select([person], [], [], 60)[0]:
                shown += os.read(person, 4096)
            shown = shown.partition(wanted)[2]
            for key in keys:
                os.write(person, bytes([key]))
        with suppress(OSError):  # the end of a terminal
            while more := os.read(person, 4096):
                shown += more
        os.close(person)
    assert run.returncode == 0
    again = call("replay", "rec")
    assert again.returncode == 0
    assert again.stdout == (place / "log").read_bytes()
    assert b"left by Ctrl-]" in again.stderr
    assert last(again).partition("virtual time")[2] in shown.decode()
    need_gdb()
    server = " ".join(map(shlex.quote, [*XENEMU, "replay", "rec", "--gdb", "stdio"]))
    steps = ["set remotetimeout 60", f"target remote | {server}", "stepi 5", "continue"]
    gdb = ["gdb", "-nx", "-q", "-batch", *(word for step in steps for word in ("-ex", step))]
    seen = subprocess.run(gdb, capture_output=True, check=True, cwd=place)
    assert again.stdout in seen.stderr
    assert b"exited normally" in seen.stdout


def test_a_toolstacks_verbs_come_again(call, place):
    (place / "kernel").write_bytes(kernel(BLOCK + SPIN))
    command = [*XENEMU, "run", "kernel", *SMALL, "--record", "rec", "--control", "asked"]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE,
                          cwd=place) as run:  # fmt: skip
        answer = call("control", "--wait", "60", "asked", "destroy")
        assert answer.stdout == b"done\n"
        told = run.communicate()[1]
    again = call("replay", "rec")
    assert again.returncode == run.returncode
    assert b"destroyed by the toolstack" in again.stderr
    assert last(again) in told.decode()


@pytest.mark.parametrize("option", ["--cmdline", "--record"])
def test_an_option_that_changes_the_guest_is_refused(record, call, option):
    record()
    assert f"{option}: the guest is the recorded one" in told(call("replay", "rec", option, "1"))


def repeated(place, **moved):
    """The start of what was recorded, with its disks open for no longer than this takes."""
    again = Repeated(place / "rec", read(place / "rec").header.start, Moved(**moved))
    with ExitStack() as files:
        return again.guest(), again.disks(files)


def test_a_file_that_is_another_now_is_refused(record, call, place):
    (place / "initrd").write_bytes(b"ramdisk")
    (place / "disk").write_bytes(bytes(4096))
    record("--initrd", "initrd", "--disk", "disk,rw")
    assert call("replay", "rec").returncode == 0
    moved = place / "moved"
    for name, option in (("kernel", "kernel"), ("initrd", "initrd"), ("disk", "disks")):
        kept = (place / name).read_bytes()
        moved.write_bytes(kept)
        (place / name).write_bytes(kept + b"x")
        with pytest.raises(UsageError, match=f"say where it is: --{option.rstrip('s')}"):
            repeated(place)
        (place / name).unlink()
        with pytest.raises(
            UsageError, match=f"rec: its .*{name}: .*; say where it is: --{option[:4]}"
        ):
            repeated(place)
        where = [f"{moved},name=xvda"] if name == "disk" else moved
        guest, (disk,) = repeated(place, **{option: where})
        assert guest.config.initrd == b"ramdisk"
        assert disk.params == "disk"  # as the guest has seen it
        (place / name).write_bytes(kept)


def test_a_ramdisk_that_was_made_is_made_again(record, call, place):
    (place / "init").write_bytes(kernel(SPIN))
    record("--init", "init", "--cmdline", "a=b")
    assert call("replay", "rec").returncode == 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--gdb", ":0"), "what gdb does to the guest is in no recording"),
        (("--disk", "disk,overlay=old"), "old has what earlier runs have written"),
        (("--log", "rec"), "rec: the same file as"),
    ],
)
def test_what_cannot_be_recorded_is_one_line(record, call, place, options, words):
    (place / "disk").write_bytes(bytes(4096))
    (place / "old").write_bytes(b"xenemu overlay")
    result = record(*options)
    assert result.returncode == 7
    assert not (place / "rec").exists()


def test_a_fifo_where_a_file_was_is_not_waited_for(record, call, place):
    for name in ("initrd", "module"):
        (place / name).write_bytes(b"x" * 100)
    assert record("--mode", "pv", "--initrd", "initrd").returncode == 0
    (place / "initrd").unlink()
    os.mkfifo(place / "initrd")
    for words in (("replay", "rec"), ("diverge", "rec", "rec")):
        result = call(*words)
        assert result.returncode != 0 and b"initrd: not a file" in result.stderr


def test_what_cannot_be_read_once_more_is_not_recorded(call, place):
    """A pipe, as of a shell's <(...): it is empty after the run."""
    reader, writer = os.pipe()
    os.write(writer, b"ramdisk")
    os.close(writer)
    path = f"/dev/fd/{reader}"
    result = call(
        *("run", "kernel", *SMALL, "--initrd", path, "--record", "rec"), pass_fds=[reader]
    )
    os.close(reader)
    assert f"--record: --initrd {path}: not a file that can be read once more" in told(result)
    assert not (place / "rec").exists()


def test_a_file_that_is_no_recording_is_told(record, call, place):
    assert "this is no recording of xenemu's" in told(call("replay", "kernel"))
    record()
    assert "a recording, not a kernel: xenemu replay repeats its run" in told(call("run", "rec"))
    (place / "rec").write_bytes((place / "rec").read_bytes()[:40])
    assert "it ends before it says what was recorded" in told(call("replay", "rec"))
