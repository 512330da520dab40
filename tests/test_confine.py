"""confine: what a run can no longer do while its guest runs, and that the guest does not notice."""

from __future__ import annotations

import fcntl
import json
import os
import re
import subprocess
import sys
from errno import EACCES, EMFILE, EPERM
from pathlib import Path

import confined
import pytest
from confined import CALLS

from gdbtools import Client, waiting
from tinyguest import POWEROFF, SPIN, UNDEFINED, kernel, say, shutdown
from xenemu import confine
from xenemu.smoke import runner
from xenemu.smoke.plan import Boot

REFUSED = dict.fromkeys([*CALLS, "int 0x80"], EPERM)
HERE = Path(__file__).parent
# The host's clock, in the last line of a run.
CLOCK = re.compile(rb"[\d.]+ s here")


def python(code, *arguments, keep=None):
    """What a new Python prints that runs `code`; it inherits the descriptor to `keep`."""
    path = f"import sys; sys.path[:0] = {[str(HERE), str(HERE.parent)]!r}; "
    command = [sys.executable, "-c", path + code, *map(str, arguments)]
    kept = () if keep is None else (keep,)
    return subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, check=False, pass_fds=kept
    )


def answer(function, *arguments, **options):
    """The JSON that a function of confined.py prints in a new Python."""
    given = ", ".join([*map(repr, map(str, arguments)), *(f"{k}={v}" for k, v in options.items())])
    result = python(f"import confined; confined.{function}({given})")
    assert result.returncode == 0, result.stderr.decode()
    return json.loads(result.stdout.splitlines()[0])


@pytest.fixture
def guest(tmp_path):
    """The file of a guest with that code."""

    def write(code):
        path = tmp_path / "guest"
        path.write_bytes(kernel(code))
        return path

    return write


# What native code can do.


def test_native_code_can_do_nothing_that_a_run_does_not_need():
    assert EPERM not in answer("call").values()
    found = answer("call_confined")
    assert found.pop("trouble") == ""
    assert "seccomp" in found.pop("told")
    assert found == REFUSED


def test_a_process_that_is_copied_may_fork_and_its_copy_may_not():
    original, copy = answer("call_copied")
    own_limits = {"prctl": 0, "prlimit64": 0}
    assert original == REFUSED | own_limits
    assert copy == REFUSED


@pytest.mark.parametrize(
    ("options", "allowed"),
    [((), {}), (("--gdb", ":0"), {"socketpair": 0})],  # to a copy; a fork has other flags
)
def test_run_is_confined_when_its_guest_begins(guest, options, allowed):
    assert answer("run", guest(SPIN), *options) == REFUSED | allowed


def test_run_is_not_confined_if_told_so(guest):
    assert EPERM not in answer("run", guest(SPIN), "--confine", "off").values()


class Nobody:
    """Watches no boots."""

    def began(self, boot):
        pass

    def progress(self, boot, progress):
        pass

    def finished(self, result):
        pass


def smoke(path, main, name="boot", **keys):
    (result,) = runner.run([Boot(name, path, **keys)], 1, Nobody(), main=main)
    (finding,) = result.findings
    return json.loads(finding.reason)


def test_workers_of_smoke_are_confined(guest):
    assert smoke(guest(SPIN), confined.boot) == REFUSED


# What it was started with.


@pytest.fixture
def inherited():
    """An inheritable descriptor, beyond those that a worker opens."""
    with open(os.devnull) as file:
        descriptor = fcntl.fcntl(file.fileno(), fcntl.F_DUPFD, 200)
    yield descriptor
    os.close(descriptor)


@pytest.mark.parametrize(("how", "is_open"), [("auto", False), ("off", True)])
def test_what_run_inherited_is_closed_when_its_guest_begins(guest, inherited, how, is_open):
    arguments = (inherited, "run", guest(SPIN), "--confine", how)
    found = python("import confined; confined.run_with(*sys.argv[1:])", *arguments, keep=inherited)
    assert (found.returncode, json.loads(found.stdout)) == (0, is_open), found.stderr


def test_what_run_inherited_may_name_its_files(guest, tmp_path):
    with (tmp_path / "log").open("w") as log:
        arguments = ("run", guest(say(b"hello\n") + shutdown(POWEROFF)), "--confine", "must")
        arguments += ("--log", f"/dev/fd/{log.fileno()}")
        code = "from xenemu.__main__ import main; sys.exit(main())"
        assert python(code, *arguments, keep=log.fileno()).returncode == 0
    assert (tmp_path / "log").read_bytes() == b"hello\n"


def test_workers_of_smoke_inherit_nothing(guest, inherited):
    assert smoke(guest(SPIN), confined.boot_with, name=str(inherited)) is False


# What it refuses from which version on.
LANDLOCKED = {1: ("open", "openat", "openat2"), 4: ("connect",), 6: ("kill another",)}


def test_landlock_alone_keeps_files_ports_and_processes():
    found = answer("call_confined", "_library", "_limit")
    locked = re.search(r"Landlock (\d+)", found["told"])
    if locked is None:
        pytest.skip("this host has no Landlock")
    assert "seccomp" not in found["told"]
    for version, names in LANDLOCKED.items():
        for name in names:
            assert (found[name] in (EACCES, EPERM)) is (int(locked[1]) >= version), name
    assert found["pipe"] == found["fork"] == 0


def test_limits_alone_keep_descriptors():
    found = answer("call_confined", "_library", "_landlock")
    for name in ("openat", "pipe", "socket", "memfd_create", "dup"):
        assert found[name] == EMFILE, name
    with_debugger = answer("call_confined", "_library", "_landlock", debugger=True)
    assert with_debugger["open"] == 0


# Where it cannot be.

WITHOUT = "from xenemu import cli, confine; confine.LIBRARY = 'libnone.so.0'; sys.exit(cli.main())"


def test_a_host_that_cannot_runs_the_guest_the_same(guest):
    path = guest(say(b"hello\n") + shutdown(POWEROFF))
    result = python(WITHOUT, "run", path)
    assert (result.returncode, result.stdout) == (0, b"hello\n")
    assert result.stderr.count(b"\n") == 1


def test_a_host_that_cannot_is_told_with_v(guest):
    stderr = python(WITHOUT, "run", "-v", guest(shutdown(POWEROFF))).stderr.decode()
    assert re.search(r"^xenemu: confined by limits.*; there is no libseccomp\.so\.2", stderr, re.M)


def test_must_is_one_line_and_7_where_it_cannot_be(guest):
    path = guest(say(b"hello\n") + shutdown(POWEROFF))
    result = python(WITHOUT, "run", "--confine", "must", path)
    assert (result.returncode, result.stdout) == (7, b"")
    assert result.stderr == (
        b"xenemu: --confine must: this host cannot: there is no libseccomp.so.2; Debian and"
        b" Ubuntu have it in libseccomp2\n"
    )


def test_a_filter_that_fails_says_why(monkeypatch):
    monkeypatch.setattr(confine, "BOUND_CALLS", {"no_such_call": (0, (1,))})
    found = python(
        "from xenemu import confine; confine.BOUND_CALLS = {'no_such_call': (0, (1,))};"
        "print(confine.confine().trouble); open('/dev/null')"
    )
    assert found.stdout.startswith(b"the seccomp filter's rule for no_such_call: ")


# What is needed after it must be there before.


def test_nothing_is_imported_late(guest, tmp_path):
    options = ("--gdb", "stdio", "--net", "none-but-pcap", "--control", tmp_path / "socket")
    late = answer("run_late", guest(SPIN), *options)
    assert late == []
    assert smoke(guest(SPIN), confined.boot_late, net=("none-but-pcap",)) == []


def test_late_imports_are_noticed(guest, monkeypatch):
    script = "import confined; confined.confine.IMPORTED_LATE = ()"
    found = python(f"{script}; confined.run_late(*sys.argv[1:])", guest(SPIN), "--gdb", "stdio")
    assert "re._parser._escape: unicodedata" in json.loads(found.stdout.splitlines()[0])


def both_ways(xenemu_run, place, *arguments):
    """All that a run prints and writes, confined and not."""
    told = []
    for how in ("must", "off"):
        files = [place / f"{how}.{kind}" for kind in ("log", "trace")]
        log, trace = files
        options = ("--confine", how, "--explain", "--log", log)
        options += ("--trace", "hypercalls,events", "--trace-file", trace)
        result = xenemu_run(*arguments, *options)
        outputs = [result.returncode, result.stdout, CLOCK.sub(b"", result.stderr)]
        told.append(outputs + [file.read_bytes() for file in files])
    return told


def test_a_report_is_the_same_when_confined(guest, xenemu_run, tmp_path):
    confined_run, free = both_ways(xenemu_run, tmp_path, guest(say(b"hello\n") + UNDEFINED))
    assert confined_run == free
    code, stdout, stderr, log, trace = free
    assert (code, stdout, log) == (5, b"hello\n", b"hello\n")
    assert b"Registers of vcpu 0:" in stderr
    assert b"console_io" in trace


def test_debians_panic_is_the_same_when_confined(guest_image, xenemu_run, tmp_path):
    image = guest_image("debian-cloud-amd64")
    arguments = (image, "--mode", "pvh", "--memory", "128M", "--cmdline", "console=hvc0")
    confined_run, free = both_ways(xenemu_run, tmp_path, *arguments)
    assert confined_run == free
    assert free[0] == 4
    assert b"mount_block_root+0x" in free[2]


# The one thing that is left to do in the end.


def test_the_sockets_name_goes_even_if_the_run_is_killed(guest, tmp_path):
    path = tmp_path / "gdb"
    with waiting(guest(SPIN), "--memory", "64M", gdb=f"unix:{path}") as run:
        assert Client(run.address).ask(b"?").startswith(b"T05")
        run.process.kill()
        run.finish()  # when nobody has its streams open any more
        assert not path.exists()
