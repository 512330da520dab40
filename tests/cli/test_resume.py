"""`xenemu run --snapshot` and `xenemu resume`: the rest of a run, and what is refused."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys

import msgspec
import pytest

from tinyguest import POWEROFF, kernel, say, shutdown, wait_until
from xenemu.machine import snapshot_file
from xenemu.snapfile import MAGIC as SNAPSHOT_MAGIC

PARTS = say(b"one\n") + wait_until(1_000_000_000) + say(b"two\n")
GUEST = PARTS + wait_until(2_000_000_000) + say(b"three\n") + shutdown(POWEROFF)


@pytest.fixture
def place(tmp_path):
    (tmp_path / "kernel").write_bytes(kernel(GUEST))
    return tmp_path


@pytest.fixture
def call(place):
    def call(*words):
        command = [sys.executable, "-m", "xenemu", *map(str, words)]
        return subprocess.run(command, capture_output=True, check=False, stdin=subprocess.DEVNULL)

    return call


@pytest.fixture
def keep(place, call):
    def keep(at, *options):
        small = ("--memory", "64M", *options)
        return call("run", place / "kernel", *small, "--snapshot", place / "snap",
                    "--snapshot-at", at)  # fmt: skip

    return keep


def last(result):
    """The last line without what the host's clock says."""
    return result.stderr.decode().splitlines()[-1].rpartition(",")[0]


@pytest.mark.parametrize(("at", "rest"), [("two", b"three\n"), ("0.5s", b"two\nthree\n")])
def test_what_is_resumed_ends_as_what_was_not_stopped(keep, call, place, at, rest):
    whole = keep(at)
    assert whole.stdout == b"one\ntwo\nthree\n"
    assert b"--snapshot: taken at " in whole.stderr
    resumed = call("resume", place / "snap")
    assert (resumed.returncode, resumed.stdout) == (0, rest)
    assert last(resumed) == last(whole)


def test_the_run_is_the_same_with_a_snapshot_and_without(keep, call, place):
    plain = call("run", place / "kernel", "--memory", "64M")
    assert last(keep("two")) == last(plain)


def test_a_snapshot_may_be_taken_of_what_was_resumed(keep, call, place):
    keep("one")
    call("resume", place / "snap", "--snapshot", place / "later", "--snapshot-at", "two")
    assert call("resume", place / "later").stdout == b"three\n"


def test_expectations_are_of_what_comes_after(keep, call, place):
    keep("two")
    assert call("resume", place / "snap", "--expect", "three").returncode == 0
    result = call("resume", place / "snap", "--expect", "one")
    assert result.returncode == 3
    assert b"never seen: 'one'" in result.stderr


def test_a_snapshot_that_never_came_is_told(keep):
    result = keep("four")
    assert result.returncode == 3
    assert b"--snapshot: not taken: 'four' never came" in result.stderr


def test_the_kernel_may_have_moved_but_not_changed(keep, call, place):
    keep("two")
    (place / "kernel").rename(place / "moved")
    gone = call("resume", place / "snap")
    assert gone.returncode == 7
    assert b"not a file; say where it is: --kernel" in gone.stderr
    assert call("resume", place / "snap", "--kernel", place / "moved").stdout == b"three\n"
    with (place / "moved").open("ab") as file:
        file.write(b"x")
    other = call("resume", place / "snap", "--kernel", place / "moved")
    assert other.returncode == 7
    assert b"moved is another file; say where it is: --kernel" in other.stderr


def test_a_disk_comes_along_and_must_be_as_it_was(keep, call, place):
    disk = place / "disk.img"
    disk.write_bytes(bytes(4096))
    keep("two", "--disk", disk)
    assert call("resume", place / "snap").stdout == b"three\n"
    disk.write_bytes(b"x" * 4096)
    result = call("resume", place / "snap")
    assert result.returncode == 7
    assert b"something else is there now; say where it is: --disk FILE,name=xvda" in result.stderr
    (place / "moved.img").write_bytes(bytes(4096))
    moved = call("resume", place / "snap", "--disk", f"{place}/moved.img,name=xvda")
    assert moved.stdout == b"three\n"
    other = call("resume", place / "snap", "--disk", f"{place}/moved.img,name=xvdb")
    assert (other.returncode, other.stdout) == (7, b"")
    assert b"name=xvdb: give FILE,name=xvda" in other.stderr


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--snapshot", "x"), b"--snapshot: say when"),
        (("--snapshot-at", "x"), b"--snapshot-at: say which file"),
        (("--snapshot", "x", "--snapshot-at", "("), b"--snapshot-at '(' is no regular"),
        (("--snapshot", "x", "--snapshot-at", "1s", "--disk", "disk.img,rw"), b"would change"),
        (("--snapshot", "x", "--snapshot-at", "1s", "--share", "."), b"what a --share has open"),
        (("--snapshot", "x", "--snapshot-at", "1s", "--net", "socket:wire"),
         b"--snapshot: what is at the other end of --net socket:wire cannot be in it"),
        (("--snapshot", "kernel", "--snapshot-at", "1s"), b"--snapshot kernel: "),
    ],
)  # fmt: skip
def test_what_cannot_be_kept_is_one_line(call, place, monkeypatch, options, words):
    monkeypatch.chdir(place)
    (place / "disk.img").write_bytes(bytes(4096))
    result = call("run", "kernel", "--memory", "64M", *options)
    assert result.returncode == 7
    (line,) = result.stderr.splitlines()
    assert words in line
    assert not (place / "x").exists()


def test_what_is_no_snapshot_is_told(call, place):
    rec, fifo = place / "rec", place / "fifo"
    rec.write_bytes(b"xenemu recording\n" + bytes(100))
    os.mkfifo(fifo)
    for path, words in (
        (rec, b"rec: a recording, no snapshot: xenemu replay repeats its run"),
        (fifo, b"fifo: this is no snapshot of xenemu's"),
    ):
        assert words in call("resume", path).stderr


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"disks": ["disk.img,rw"]}, b"no snapshot of xenemu's has rw in it"),
        ({"disks": ["disk.img,overlay=new"]}, b"no snapshot of xenemu's has overlay= in it"),
        ({"nets": ["none-but-pcap", "socket:new"]}, b"has --net socket:new in it: do not trust it"),
        ({"nets": ["user,hostfwd=tcp:2222:22"]}, b"has --net user,hostfwd=tcp:2222:22 in it"),
        ({"disk_digests": []}, b"its header makes no sense"),
        ({"disks": ["disk\0.img"]}, b"its header makes no sense"),
        ({"kernel": "a\0b"}, b"its header makes no sense"),
        ({"memory": 0}, b"its header makes no sense"),
        ({"memory": 1025}, b"its header makes no sense"),
        ({"vcpus": 1 << 30}, b"its header makes no sense"),
    ],
)
def test_a_strangers_header_gets_nothing(keep, call, place, monkeypatch, changes, words):
    monkeypatch.chdir(place)
    (place / "disk.img").write_bytes(bytes(4096))
    keep("two", "--disk", "disk.img")
    change(place / "snap", changes)
    result = call("resume", "snap")
    assert result.returncode == 7
    (line,) = result.stderr.splitlines()
    assert words in line
    assert sorted(path.name for path in place.iterdir()) == ["disk.img", "kernel", "snap"]


def change(snapshot, changes):
    """Change fields of a snapshot's header, and seal it again."""
    data = snapshot.read_bytes()[: -snapshot_file.DIGEST_SIZE]
    start = len(SNAPSHOT_MAGIC) + 4
    end = start + int.from_bytes(data[len(SNAPSHOT_MAGIC) : start], "little")
    header = msgspec.msgpack.encode(msgspec.msgpack.decode(data[start:end]) | changes)
    data = SNAPSHOT_MAGIC + len(header).to_bytes(4, "little") + header + data[end:]
    snapshot.write_bytes(data + hashlib.blake2b(data, digest_size=32).digest())


def test_a_file_without_an_end_is_not_read(call):
    assert b"this is no snapshot of xenemu's" in call("resume", "/dev/zero").stderr


def test_what_is_no_snapshot_is_one_line(call, place):
    result = call("resume", place / "kernel")
    assert result.returncode == 7
    assert b"this is no snapshot of xenemu's" in result.stderr
