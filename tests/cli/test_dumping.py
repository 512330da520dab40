"""`xenemu run --core`: when a core is written, and where to."""

from __future__ import annotations

import resource
import shutil
import subprocess
import sys

import pytest
from backports import zstd
from elftools.elf.elffile import ELFFile

from tinyguest import CRASH, POWEROFF, kernel, shutdown
from xenemu.cli.dumping import CoreWhen, Dumping
from xenemu.dom0.control import Refused
from xenemu.errors import UsageError
from xenemu.image import load
from xenemu.machine import DomainConfig, Machine
from xenemu.outputs import Outputs


@pytest.fixture
def call(tmp_path):
    def call(code, *words, file_size=None):
        (tmp_path / "kernel").write_bytes(kernel(code))
        command = [sys.executable, "-m", "xenemu", "run", tmp_path / "kernel", "--memory", "32M"]
        return subprocess.run(
            [*map(str, command), *map(str, words)],
            capture_output=True,
            check=False,
            text=True,
            stdin=subprocess.DEVNULL,
            preexec_fn=file_size
            and (lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, file_size))),
        )

    return call


def test_a_core_is_written_after_a_crash(call, tmp_path):
    result = call(shutdown(CRASH), "--core", tmp_path / "core")
    assert result.returncode == 4
    assert f"--core: 32 MiB of memory in {tmp_path}/core; it has no VMCOREINFO" in result.stderr
    with (tmp_path / "core").open("rb") as file:
        assert ELFFile(file)["e_type"] == "ET_CORE"
    status = (tmp_path / "core").stat()
    assert status.st_blocks * 512 < status.st_size / 8  # zeroes take no room
    if shutil.which("gdb"):
        words = ["-batch", "-nx", "-ex", "x/i $pc - 2", "-c", str(tmp_path / "core")]
        shown = subprocess.run(["gdb", *words], capture_output=True, check=False, text=True)
        assert "syscall" in shown.stdout, shown.stdout + shown.stderr
    again = call(shutdown(CRASH), "--core", tmp_path / "core")
    assert again.returncode == 7 and "the file exists" in again.stderr
    after = (tmp_path / "core").stat()
    assert (after.st_size, after.st_mtime_ns) == (status.st_size, status.st_mtime_ns)


def test_after_a_good_end_there_is_none_unless_asked(call, tmp_path):
    result = call(shutdown(POWEROFF), "--core", tmp_path / "core")
    assert (result.returncode, (tmp_path / "core").stat().st_size) == (0, 0)
    assert "--core: not written, as the guest neither crashed nor hung" in result.stderr
    result = call(shutdown(POWEROFF), "--core", tmp_path / "core", "--core-when", "always")
    assert result.returncode == 0
    assert (tmp_path / "core").stat().st_size > 32 << 20


def test_each_domain_that_crashed_leaves_one(call, tmp_path):
    words = ["--on-crash", "restart", "--max-restarts", "1"]
    files = [tmp_path / "first", tmp_path / "second"]
    for file in files:
        words += ["--core", file]
    result = call(shutdown(CRASH), *words)
    told = [line for line in result.stderr.splitlines() if "--core: 32 MiB" in line]
    assert [line.split(";")[0].split()[-1] for line in told] == list(map(str, files))


def test_what_cannot_be_written_is_taken_back(call, tmp_path):
    result = call(shutdown(CRASH), "--core", tmp_path / "core", file_size=1 << 20)
    assert result.returncode == 7
    assert result.stderr.splitlines()[-1] == f"xenemu: --core {tmp_path}/core: File too large"
    assert (tmp_path / "core").stat().st_size == 0
    assert "guest-crash, exit 4" in result.stderr  # what the guest did is told all the same


def test_when_needs_a_file():
    with Outputs() as outputs, pytest.raises(UsageError, match="--core-when: say which file"):
        Dumping.parse(outputs, [], CoreWhen.ALWAYS)


def test_a_file_that_a_copy_of_this_process_has_written_is_passed_over(tmp_path):
    (tmp_path / "kernel").write_bytes(kernel(shutdown(CRASH)))
    loaded = load(tmp_path / "kernel")
    machine = Machine(loaded, DomainConfig(32 << 20))
    with Outputs() as outputs:
        dumping = Dumping.parse(outputs, [tmp_path / "core"], None)
        (tmp_path / "core").write_text("written")
        with pytest.raises(UsageError, match="no file"):
            dumping.write(machine, loaded)
    assert (tmp_path / "core").read_text() == "written"


def test_a_recorded_run_can_have_one_later(call, tmp_path):
    """And it is compressed, as its name says."""
    call(shutdown(CRASH), "--record", tmp_path / "run", "--core", tmp_path / "first")
    command = [sys.executable, "-m", "xenemu", "replay", tmp_path / "run"]
    command += ["--core", tmp_path / "second.zst"]
    result = subprocess.run(list(map(str, command)), capture_output=True, check=False)
    assert b"zstd -d" in result.stderr
    packed = (tmp_path / "second.zst").read_bytes()
    assert zstd.decompress(packed) == (tmp_path / "first").read_bytes()
    assert len(packed) < 1 << 20


def test_who_asks_gets_the_next_file_and_the_end_one_that_is_left(tmp_path):
    (tmp_path / "kernel").write_bytes(kernel(shutdown(CRASH)))
    loaded = load(tmp_path / "kernel")
    machine = Machine(loaded, DomainConfig(32 << 20))
    with Outputs() as outputs:
        paths = [tmp_path / name for name in ("first", "second")]
        dumping = Dumping.parse(outputs, paths, None)
        verb = dumping.verb(machine, lambda: loaded)
        assert f"of memory in {paths[0]}" in verb.do(None, None)["written"]
        assert f"of memory in {paths[1]}" in dumping.end(machine, loaded, 4)
        assert "no file is left" in dumping.end(machine, loaded, 4)
        with pytest.raises(Refused, match="begin the run with one more --core FILE"):
            verb.do(None, None)
    assert paths[0].read_bytes() == paths[1].read_bytes()
