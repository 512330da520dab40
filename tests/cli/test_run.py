"""`xenemu run`: exit codes, streams and options, with guests of a few instructions."""

from __future__ import annotations

import importlib
import os
import pty
import signal
import subprocess
import sys
import termios
from contextlib import suppress

import pytest

import elfwriter
from guests.build import ENVIRONMENTS, build, guests
from tinyguest import (
    BLOCK,
    CRASH,
    POWEROFF,
    REBOOT,
    SPIN,
    UNDEFINED,
    kernel,
    say,
    shutdown,
    wait_until,
)
from xenemu import cli, image
from xenemu.cli.expect import Expectations
from xenemu.cli.judge import judge
from xenemu.linux import LogLine
from xenemu.machine import Limits
from xenemu.outcome import End, Outcome
from xenemu.smoke.initramfs import build as initramfs
from xenemu.smoke.verdict import Facts


@pytest.fixture
def boot(tmp_path, xenemu_run):
    path = tmp_path / "kernel"

    def boot(code, *options, symbols=None, **more):
        path.write_bytes(kernel(code, symbols))
        return xenemu_run(path, "--memory", "64M", *options, **more)

    return boot


# Exit codes.


def test_a_guest_that_sleeps_after_its_input_goes_on_and_the_person_is_told(boot):
    long = wait_until(61_000_000_000) + wait_until(900_000_000_000) + shutdown(POWEROFF)
    result = boot(say(b"$ ") + long)
    assert (result.returncode, result.stdout) == (0, b"$ ")
    told = [line for line in result.stderr.splitlines() if b"the input has ended" in line]
    assert len(told) == 1 and b"Ctrl-C or --timeout ends the run" in told[0]
    short = wait_until(59_000_000_000) + shutdown(POWEROFF)
    for code, options in ((short, ()), (long, ("--timeout", "60"))):
        assert b"input" not in boot(code, *options).stderr


def test_the_time_out_counts_from_the_beginning(monkeypatch, tmp_path):
    """A kernel that is slow to load leaves no time for its guest."""
    now_s = 0.0

    def load(path):
        nonlocal now_s
        now_s = 5.0
        return real_load(path)

    module = importlib.import_module("xenemu.cli.run")
    real_load = image.load
    monkeypatch.setattr(image, "load", load)
    monkeypatch.setattr(module, "Limits", lambda timeout: Limits(timeout, lambda: now_s))
    path = tmp_path / "kernel"
    path.write_bytes(kernel(say(b"late") + shutdown(POWEROFF)))
    assert cli.main(["run", str(path), "--memory", "64M", "--timeout", "4", "--confine=off"]) == 6


@pytest.mark.parametrize(
    ("code", "options", "exit_code", "words"),
    [
        (shutdown(POWEROFF), (), 0, "poweroff, exit 0: the guest powered off"),
        (shutdown(REBOOT), (), 0, "reboot, exit 0: "),
        (shutdown(POWEROFF), ("--expect", "login"), 3, "unmet, exit 3: the guest powered off; n"),
        (shutdown(CRASH), (), 4, "guest-crash, exit 4: "),
        (shutdown(CRASH), ("--expect", "login"), 4, "never seen: 'login'"),
        (shutdown(252), (), 4, "exit 4: shutdown reason 252, which Xen does not define; virtual"),
        (UNDEFINED, (), 5, "refused, exit 5: #UD at 0xffffffff81000000"),
        (SPIN, ("--timeout", "0.2"), 6, "timeout, exit 6: still running after 0.2 s"),
        (BLOCK, (), 6, "idle, exit 6: the guest waits"),
    ],
)
def test_exit_code_and_last_line(boot, code, options, exit_code, words):
    result = boot(code, *options)
    assert result.returncode == exit_code
    assert result.stdout == b""
    last = result.stderr.decode().splitlines()[-1]
    assert words in last
    assert "instructions" in last


def test_a_shutdown_reason_that_xen_does_not_define_is_explained(boot):
    words = b"\nxenemu: what to do: look at its last call, with --trace hypercalls; SHUTDOWN_* in"
    assert words in boot(shutdown(252)).stderr


@pytest.mark.parametrize(
    ("code", "told"), [(shutdown(POWEROFF), False), (shutdown(CRASH), True), (UNDEFINED, True)]
)
def test_a_report_follows_what_went_wrong(boot, code, told):
    stderr = boot(code).stderr.decode()
    for heading in ("Registers of vcpu 0:", "Backtrace:", "Page walk of cr2"):
        assert (heading in stderr) is told


def test_a_crash_by_the_hypervisor_says_what_to_do(boot):
    lines = boot(UNDEFINED).stderr.decode().splitlines()
    assert lines[0].startswith("xenemu: #UD at 0xffffffff81000000, but the guest has no handler")
    assert lines[1].startswith("xenemu: what to do: register handlers before")


def test_a_report_says_which_feature_an_instruction_lacks(boot):
    told = boot(b"\xc5\xf8\x77").stderr.decode()  # vzeroupper
    assert "The last #UD:\n  0xffffffff81000000: vzeroupper\n  the instruction is AVX: " in told


def test_a_report_ends_though_the_stack_pointer_is_not_aligned(boot):
    load = bytes.fromhex("bc01002000")  # mov $0x200001, %esp
    assert b"Backtrace:" in boot(load + UNDEFINED).stderr


def test_verbose_reports_however_it_ends(boot):
    stderr = boot(shutdown(POWEROFF), "-v").stderr.decode()
    assert "as pv64, 64 MiB\n" in stderr.splitlines(keepends=True)[0]
    assert "sched_op(shutdown, 0x" in stderr


@pytest.mark.parametrize(("options", "exit_code"), [((), 0), (("--debug-xen",), 4)])
def test_debug_xen_spoils_what_was_an_argument(boot, options, exit_code):
    version = bytes.fromhex("b811000000 31ff 31f6 0f05")  # xen_version(XENVER_version, 0)
    crash = shutdown(CRASH)
    unless_spoilt = b"\x85\xff\x74" + bytes([len(crash)])  # test %edi, %edi; je to after the crash
    code = version + unless_spoilt + crash + shutdown(POWEROFF)
    assert boot(code, *options).returncode == exit_code


# Expectations.


def test_expectations_end_the_run(boot):
    result = boot(say(b"one\ntwo\n") + SPIN, "--expect", "^two$", "--expect", "one")
    assert (result.returncode, result.stdout) == (0, b"one\ntwo\n")


def test_an_expectation_beats_the_crash_that_follows_it(boot):
    for end in (UNDEFINED, shutdown(CRASH)):
        assert boot(say(b"one\n") + end, "--expect", "one").returncode == 0


@pytest.mark.parametrize(
    ("end", "judged"),
    [
        (End.POWEROFF, End.UNMET),
        (End.STOPPED, End.UNMET),
        (End.GUEST_CRASH, End.GUEST_CRASH),
        (End.REFUSED, End.REFUSED),
        (End.TIMEOUT, End.TIMEOUT),
        (End.IDLE, End.IDLE),
    ],
)
def test_what_counts_when_an_expectation_is_not_met(end, judged):
    outcome = judge(Outcome(end, "it ended"), Expectations(["a", "b"]), FakeWitness())
    assert outcome == Outcome(judged, "it ended; never seen: 'a', 'b'")


# Panics.


class FakeWitness:
    """A kernel with a memory of this."""

    pattern = ""

    def __init__(self, doubts=True, **memory):
        self.memory, self.doubts = memory, lambda outcome, headlines: doubts

    def facts(self, outcome, console):
        return Facts(outcome.end, outcome.reason, console=console, **self.memory)


NO_ROOT = "Kernel panic - not syncing: no root"
PANICKED = f"[    1.000000] {NO_ROOT}\r\n[ 1.1] CPU: 0\r\n".encode()


@pytest.mark.parametrize(
    ("end", "judged", "reason"),
    [
        (End.GUEST_CRASH, End.GUEST_CRASH, f"it ended: {NO_ROOT}"),
        (End.TIMEOUT, End.GUEST_CRASH, f"{NO_ROOT}; it ended"),
        (End.IDLE, End.GUEST_CRASH, f"{NO_ROOT}; it ended"),
        (End.TRIPLE_FAULT, End.GUEST_CRASH, f"{NO_ROOT}; it ended"),
        (End.REBOOT, End.GUEST_CRASH, f"{NO_ROOT}; it ended"),
        (End.POWEROFF, End.GUEST_CRASH, f"{NO_ROOT}; it ended"),
        (End.STOPPED, End.STOPPED, f"it ended; before that, {NO_ROOT}"),
        (End.REFUSED, End.REFUSED, "it ended"),
        (End.EXPECTED, End.EXPECTED, "it ended"),
    ],
)
def test_a_panic_is_a_crash_and_named_however_the_run_ended(end, judged, reason):
    expectations = Expectations([])
    expectations.feed(PANICKED)
    outcome = judge(Outcome(end, "it ended", "advice"), expectations, FakeWitness(panicked=True))
    assert (outcome.end, outcome.reason) == (judged, reason)
    if judged is not end:
        assert not outcome.advice  # which was about how it ended


@pytest.mark.parametrize(
    ("cmdline", "console", "hints"),
    [("ro", b"", True), ("console=hvc0", b"", False), ("ro", PANICKED, False)],
)
def test_a_silent_panic_hints_at_the_console(cmdline, console, hints):
    words = f"Command line: {cmdline}", NO_ROOT
    log = [LogLine(0, 0, text) for text in words]
    expectations = Expectations([])
    expectations.feed(console)
    for end in (End.GUEST_CRASH, End.POWEROFF):
        outcome = judge(Outcome(end, "it ended"), expectations, FakeWitness(panicked=True, log=log))
        assert NO_ROOT in outcome.reason
        assert ("put console=hvc0 on" in outcome.advice) == hints


@pytest.mark.parametrize(
    ("lines", "console", "hints"),
    [
        (["Command line: ro"], b"", True),
        (["Command line: console=hvc0 ro"], b"", False),
        (["Command line: ro", "printk: console [hvc0] enabled"], b"", False),
        (["Command line: ro"], b"hello\n", False),
        ([], b"", False),
    ],
)
def test_a_linux_that_prints_nothing_hints_at_the_console(lines, console, hints):
    expectations = Expectations(["login:"])
    expectations.feed(console)
    log = [LogLine(0, 0, text) for text in lines]
    for end in (End.POWEROFF, End.TIMEOUT):
        outcome = judge(Outcome(end, "it ended"), expectations, FakeWitness(log=log))
        assert outcome.reason.startswith("it ended")
        assert ("put console=hvc0 on" in outcome.advice) == hints


def test_no_kernel_is_asked_for_a_good_end():
    outcome = judge(Outcome(End.POWEROFF, "it ended"), Expectations([]), FakeWitness(doubts=False))
    assert outcome == Outcome(End.POWEROFF, "it ended")


PANIC_CPU = elfwriter.ENTRY + 0x100


@pytest.mark.parametrize("code", [BLOCK, shutdown(REBOOT)])
def test_a_kernels_memory_says_that_it_panicked(boot, code):
    code = say(b"[    1.000000] Kernel panic - not syncing: no root\n") + code
    result = boot(code.ljust(0x104, b"\0"), symbols={"panic_cpu": PANIC_CPU})
    last = result.stderr.decode().splitlines()[-1]
    assert result.returncode == 4, last
    assert f"guest-crash, exit 4: {NO_ROOT}; " in last


def test_a_bsds_memory_says_that_it_panicked(boot):
    words = PANIC_CPU + 8
    data = words.to_bytes(8, "little") + b"no root\0"
    result = boot(BLOCK.ljust(0x100, b"\0") + data, symbols={"panicstr": PANIC_CPU})
    last = result.stderr.decode().splitlines()[-1]
    assert result.returncode == 4, last
    assert "guest-crash, exit 4: panic: no root; " in last


@pytest.mark.parametrize("after", [b"", b"[    0.000000] Linux version 6.1\n"])
def test_a_program_that_says_panic_is_none(boot, after):
    code = say(b"[    1.000000] Kernel panic - not syncing: no root\n" + after)
    code += shutdown(POWEROFF)
    code = code.ljust(0x100, b"\0") + b"\xff" * 4  # PANIC_CPU_INVALID
    assert boot(code, symbols={"panic_cpu": PANIC_CPU}).returncode == 0


# Streams.


def test_the_log_is_the_console(boot, tmp_path):
    log = tmp_path / "log"
    result = boot(say(b"one\r\n\xff\0") + shutdown(POWEROFF), "--log", log)
    assert log.read_bytes() == result.stdout == b"one\r\n\xff\0"


def test_a_log_with_something_in_it_is_kept(boot, tmp_path):
    log = tmp_path / "log"
    log.write_bytes(b"mine")
    result = boot(say(b"one\n"), "--log", log)
    assert (result.returncode, result.stdout) == (7, b"")
    assert b"the file exists" in result.stderr
    assert log.read_bytes() == b"mine"


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_streams_may_be_closed(boot, tmp_path, closed):
    boot(say(b"one\n") + shutdown(POWEROFF))
    command = f"{sys.executable} -m xenemu run {tmp_path / 'kernel'} --log {tmp_path / 'log'}"
    result = subprocess.run(f"{command} {closed}", shell=True, capture_output=True, check=False)
    assert result.returncode == 0
    assert (tmp_path / "log").read_bytes() == b"one\n"
    assert result.stdout == (b"" if ">&-" in closed.split() else b"one\n")


def test_a_reader_that_left_is_sigpipe(boot, tmp_path):
    boot(say(b"one\n") + shutdown(POWEROFF))
    command = [sys.executable, "-m", "xenemu", "run", tmp_path / "kernel"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    process.stdout.close()
    assert process.wait() == 128 + signal.SIGPIPE


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_run_with_its_number(boot, tmp_path, signum):
    boot(say(b"up\n") + SPIN, "--expect", "up")
    command = [sys.executable, "-m", "xenemu", "run", tmp_path / "kernel"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout.read(3) == b"up\n"
    process.send_signal(signum)
    _, stderr = process.communicate()
    assert process.returncode == 128 + signum
    assert f"stopped by {signum.name}".encode() in stderr
    assert b"Where it has spent its time:\n  of the last " in stderr


def test_a_person_leaves_with_ctrl_bracket(boot, tmp_path):
    boot(say(b"up\n") + SPIN, "--expect", "up")
    master, slave = pty.openpty()
    before = termios.tcgetattr(slave)
    command = [sys.executable, "-m", "xenemu", "run", tmp_path / "kernel"]
    process = subprocess.Popen(command, stdin=slave, stdout=slave, stderr=slave)
    shown = b""
    while b"up\r\n" not in shown:
        shown += os.read(master, 4096)
    os.write(master, b"\x1di")
    while b"state: running\r\n" not in shown:
        shown += os.read(master, 4096)
    os.write(master, b"\x1d\x1d")
    assert process.wait() == 0
    shown += os.read(master, 4096)
    assert b"as pv64, 256 MiB; Ctrl-] twice leaves\r\n" in shown
    assert b"xenemu: stopped, exit 0: left by Ctrl-]" in shown
    assert termios.tcgetattr(slave) == before
    os.close(master)
    os.close(slave)


# Options.


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--memory", "lots"), "--memory lots: give a number and a unit"),
        (("--mode", "pvh"), "cannot boot as pvh"),
        (("--vcpus", "129"), "--vcpus 129: give a number of vcpus, from 1 to 128"),
        (("--rng-seed", "dice"), "--rng-seed dice: give a number from 0 to 0xffffffffffffffff"),
        (("--schedule-seed", "-1"), "--schedule-seed -1: give a number from 0 to 0xff"),
        (("--slice", "1s"), "--slice 1s: give a time from 1ns to 10ms, as in 500, 20us or 1ms"),
        (("--initrd", "/nonexistent"), "--initrd /nonexistent: No such file"),
        (("--initrd", "/dev/null"), "--initrd /dev/null: the file is empty"),
        (
            ("--initrd", "a", "--rootfs", "b"),
            "--rootfs: there is --initrd a already; give one of them",
        ),
        (("--init", "/none"), "--init /none: No such file or directory"),
        (("--busybox", "/dev/null"), "--busybox /dev/null: not an ELF; give a static program"),
        (("--module", "/nonexistent"), "--module /nonexistent: No such file"),
        (("--module", f"{__file__}=x"), "a PV guest takes one module"),
        (("--cmdline", "x" * 2000), "the command line has 2000 bytes"),
        (("--timeout", "0"), "--timeout 0: give seconds, above 0"),
        (("--timeout", "nan"), "--timeout nan: "),
        (("--timeout", "abc"), "--timeout abc: give seconds, above 0"),
        (("--rootfs", "/no/dir"), "--rootfs /no/dir: there is no such directory"),
        (("--timeout", "inf"), "--timeout inf: "),
        (("--expect", "("), "--expect '(' is no regular expression"),
        (("--expect", "x*"), "--expect 'x*' matches before anything is printed; give what must"),
        (("--log", "/nonexistent/log"), "--log /nonexistent/log: No such file"),
    ],
)
def test_what_cannot_be_honoured_is_one_line_and_7(boot, options, words):
    result = boot(SPIN, *options)
    assert (result.returncode, result.stdout) == (7, b"")
    line = result.stderr.decode()
    assert line.startswith("xenemu: ") and words in line
    assert line.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--memory", "1M"), "give it more memory"),
        (("--initrd", "/dev/zero"), "--initrd /dev/zero: larger than the guest's memory"),
    ],
)
def test_what_does_not_fit_is_one_line_and_8(boot, options, words):
    result = boot(SPIN, *options)
    assert (result.returncode, result.stdout) == (8, b"")
    line = result.stderr.decode()
    assert line.startswith("xenemu: ") and words in line
    assert line.count("\n") == 1


def test_no_kernel_is_one_line_and_7(tmp_path, xenemu_run):
    path = tmp_path / "kernel"
    path.write_bytes(b"#!/bin/sh\n")
    result = xenemu_run(path)
    assert result.returncode == 7
    assert result.stderr.decode() == f"xenemu: {path}: a script, not a kernel\n"


# Real guests.


@pytest.fixture(scope="module")
def hello(tmp_path_factory):
    return build(
        guests()["hello"], ENVIRONMENTS["pv64"], tmp_path_factory.mktemp("hello") / "hello"
    )


def test_a_guest_of_4_gib(hello, xenemu_run):
    result = xenemu_run(hello, "--mode", "pv", "--memory", "4G")
    assert result.returncode == 0, result.stderr
    assert b"1048576 pages" in result.stdout


def test_two_runs_are_the_same(hello, xenemu_run):
    runs = [xenemu_run(hello, "--mode", "pv", stdin=b"typed\n") for _ in range(2)]
    assert runs[0].stdout == runs[1].stdout
    counts = [run.stderr.decode().split(" instructions")[0].split()[-1] for run in runs]
    assert counts[0] == counts[1]


def test_grub_answers_what_is_piped_to_it(guest_image, xenemu_run):
    result = xenemu_run(
        guest_image("grub-x86_64-xen"),
        *("--timeout", "120"),
        *("--expect", r"^grub> ls\n\(memdisk\)"),
        *("--expect", r"^grub> help\n(.*\n)*.*xen_ls \[DIR\]"),
        stdin=b"ls\nhelp\n",
    )
    assert result.returncode == 0, result.stderr


def test_32_bit_grub_boots_nothing_with_its_own_message(guest_image, xenemu_run):
    result = xenemu_run(
        guest_image("grub-i386-xen"),
        *("--mode", "pv", "--timeout", "120"),
        *("--expect", r"^grub> ls\n\(memdisk\)"),
        *("--expect", r"^grub> help\n(.*\n)*.*xen_ls \[DIR\]"),
        *("--expect", r"^grub> boot\nerror: you need to load the kernel first\."),
        stdin=b"ls\nhelp\nboot\n",
    )
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(
    ("name", "page_directory"),
    [("gnumach-xen-486", 0x4012D000), ("gnumach-xen-486-i386", 0xC00EE000)],
)
def test_mach_stops_at_a_store_to_its_own_page_directory(
    guest_image, xenemu_run, name, page_directory
):
    """It made that one read-only itself, and loaded it; Xen 4.17 gives it the same #PF."""
    result = xenemu_run(guest_image(name), "--mode", "pv", "--timeout", "60")
    stderr = result.stderr.decode()
    assert result.returncode == 4, stderr
    walk = stderr.partition("Page walk of cr2")[2]
    assert f"{page_directory:#x} from cr3" in walk
    assert (
        walk.splitlines()[-2].endswith("references)") and "l2_page_table" in walk.splitlines()[-2]
    )


def test_a_shell_in_debians_kernel_reads_a_pipe(guest_image, xenemu_run, tmp_path):
    init = b"#!/bin/sh\nread word\necho got $word\npoweroff -f\n"
    initrd = tmp_path / "initrd.gz"
    initrd.write_bytes(initramfs(guest_image("busybox").read_bytes(), init))
    result = xenemu_run(
        guest_image("debian-cloud-amd64"),
        *("--mode", "pv", "--initrd", initrd, "--cmdline", "console=hvc0", "--timeout", "300"),
        stdin=b"hello\n",
    )
    assert result.returncode == 0, result.stderr
    assert b"got hello\r\n" in result.stdout


def test_the_shell_of_a_busybox_ends_with_its_input(guest_image, xenemu_run, tmp_path):
    """Also while a program runs that never reads, after a line without an end, and resumed."""
    result = xenemu_run(
        guest_image("debian-cloud-amd64"),
        *("--mode", "pvh", "--busybox", guest_image("busybox"), "--cmdline", "console=hvc0 quiet"),
        *("--snapshot", tmp_path / "snap", "--snapshot-at", "^/ # "),
        stdin=b"sleep 100; echo awake\ncat\nfoo\necho $((6 * 7))",
    )
    assert result.returncode == 0, result.stderr
    assert b"\nawake\r" in result.stdout and b"\nfoo\r" in result.stdout
    assert b"poweroff, exit 0" in result.stderr
    resumed = subprocess.run(
        [sys.executable, "-m", "xenemu", "resume", tmp_path / "snap", "--timeout", "60"],
        input=b"echo $((6 * 9))\n",
        capture_output=True,
        check=False,
    )
    assert resumed.returncode == 0, resumed.stderr
    assert b"\nawake\r" in resumed.stdout and b"poweroff, exit 0" in resumed.stderr


def test_a_shell_needs_no_console_on_the_command_line(guest_image, xenemu_run):
    """And its Ctrl-C and Ctrl-D work: the terminal is its own."""
    result = xenemu_run(
        guest_image("debian-cloud-amd64"),
        *("--mode", "pvh", "--busybox", guest_image("busybox")),
        stdin=b"tty\necho $((6 * 7))\n",
    )
    assert result.returncode == 0, result.stderr
    assert b"console=hvc0 on its command line shows it here" in result.stdout
    assert b"\n/dev/hvc0\r" in result.stdout and b"\n42\r" in result.stdout
    assert b"what to do" not in result.stderr


def test_a_console_that_shows_nothing_is_told_while_the_guest_waits(
    guest_image, xenemu_run, tmp_path
):
    """Before its end, which only the time-out brings; and only once."""
    init = tmp_path / "init"
    init.write_text("#!/bin/sh\nread line\n")
    result = xenemu_run(
        guest_image("debian-cloud-amd64"),
        *("--mode", "pvh", "--init", init, "--busybox", guest_image("busybox"), "--timeout", "20"),
    )
    assert result.returncode == 6, result.stderr
    first, *others = result.stderr.decode().splitlines()
    assert first == (
        "xenemu: what to do: the console shows nothing:"
        " put console=hvc0 on the kernel's command line"
    )
    assert not any("what to do" in line for line in others)


def test_on_a_terminal_no_line_of_the_log_comes_twice(guest_image):
    """Which has both the console and the report."""
    master, slave = pty.openpty()
    command = [sys.executable, "-m", "xenemu", "run", guest_image("debian-cloud-amd64")]
    command += ["--mode", "pvh", "--cmdline", "console=hvc0"]
    process = subprocess.Popen(command, stdin=slave, stdout=slave, stderr=slave)
    os.close(slave)
    shown = b""
    with suppress(OSError):  # nobody has the other side any more
        while more := os.read(master, 4096):
            shown += more
    os.close(master)
    assert process.wait() == 4
    assert shown.count(b"] Please append a correct") == 1
    assert b"Kernel log" not in shown and b"Backtrace:\r\n" in shown


def test_a_panic_for_want_of_a_root(guest_image, xenemu_run):
    kernel = guest_image("debian-cloud-amd64")
    options = ("--mode", "pv", "--cmdline", "console=hvc0", "--timeout", "300")
    result = xenemu_run(kernel, *options)
    stderr = result.stderr.decode()
    assert result.returncode == 4, stderr
    assert "Kernel panic - not syncing: VFS: Unable to mount root fs" in stderr.splitlines()[-1]
    assert "panic+0x" in stderr and "mount_block_root+0x" in stderr


# Symbols in a file beside the kernel.


def test_a_report_has_the_names_of_the_file_beside_the_kernel(boot, tmp_path):
    vmlinux = tmp_path / "vmlinux"
    vmlinux.write_bytes(kernel(UNDEFINED, {"beside": elfwriter.ENTRY}))
    result = boot(UNDEFINED, "--symbols", vmlinux)
    assert result.returncode == 5
    assert b"beside+0x0" in result.stderr
    told = [line for line in result.stderr.splitlines() if b"unchecked" in line]
    assert told == [
        b"xenemu: --symbols %b: taken unchecked, as neither it nor the kernel has a build id: if it"
        b" is of another build, names are wrong" % bytes(vmlinux)
    ]
