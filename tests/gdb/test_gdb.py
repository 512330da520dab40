"""A real gdb on real kernels: from the entry point through every mode to a power-off."""

from __future__ import annotations

import re
import signal
import subprocess
import sys

import pytest

import elfwriter
from gdbtools import TIMEOUT_S, gdb_command, run_gdb, waiting, write_script
from guests import initramfs
from guests.build import ENVIRONMENTS, build, guests
from moduleguest import MODULES, module_initramfs
from xenemu import image
from xenemu.image.elf import EI_OSABI
from xenemu.machine import DomainConfig, Machine
from xenemu.outcome import EXIT_IMAGE

STEPS = 1000
CMDLINE = "console=hvc0"
WAIT_AND_POWER_OFF = b"#!/bin/sh\necho READY\nread line\necho GOT $line\npoweroff -f\n"
CONSOLE_LINE = re.compile(r"virtual time \S+ s, (\d+) instructions")


@pytest.fixture(scope="session")
def kernel(guest_image):
    return guest_image("debian-cloud-amd64")


@pytest.fixture(scope="session")
def initrd(guest_image, tmp_path_factory):
    """An initramfs that waits for a line of input, and then powers off."""
    path = tmp_path_factory.mktemp("gdb") / "initrd.gz"
    path.write_bytes(initramfs.build(guest_image("busybox").read_bytes(), WAIT_AND_POWER_OFF))
    return path


def line_with(lines, words):
    found = [line for line in lines if words in line]
    assert found, "\n".join(lines)
    return found[0]


# The entry point.


def test_the_entry_of_a_32_bit_kernel(guest_image):
    path = guest_image("grub-i386-xen_pvh")
    with waiting(path) as guest:
        lines = run_gdb(
            f"target remote {guest.address}", "info registers eip cs cr0", "x/2i $pc", "stepi",
            "monitor disas", "kill",
        )  # fmt: skip
    entry = image.load(path).notes.phys32_entry
    assert line_with(lines, "eip ").split()[1] == f"{entry:#x}"
    assert "[ ET PE ]" in line_with(lines, "cr0").replace("PE ET", "ET PE")
    assert not [line for line in lines if "%r" in line]
    shown = line_with(lines, f"=> {entry:#x}").split("\t")[1].split()[0]
    assert shown == disassembled(path, entry).split()[0]


def disassembled(path, entry):
    from capstone import CS_ARCH_X86, CS_MODE_32, CS_OPT_SYNTAX_ATT, Cs  # noqa: PLC0415

    reader = Cs(CS_ARCH_X86, CS_MODE_32)
    reader.syntax = CS_OPT_SYNTAX_ATT
    part = next(s for s in image.load(path).segments if s.paddr <= entry < s.paddr + s.memsz)
    insn = next(reader.disasm(bytes(part.data[entry - part.paddr :][:16]), entry))
    return f"{insn.mnemonic} {insn.op_str}"


def test_the_entry_of_a_64_bit_kernel_as_pvh_is_32_bit_code(kernel):
    with waiting(kernel, "--mode", "pvh", "--cmdline", CMDLINE) as guest:
        lines = run_gdb(
            f"target remote {guest.address}", "monitor disas", "monitor arch auto", "stepi",
            "x/2i $pc", "break start_kernel", "continue", "x/i $pc", "kill",
        )  # fmt: skip
    entry = image.load(kernel).notes.phys32_entry
    assert line_with(lines, f"=> {entry:#x}:").endswith("cld")
    assert "<pvh_start_xen+1>:\tlgdtl" in line_with(lines, f"=> {entry + 1:#x}")
    assert "in start_kernel ()" in line_with(lines, "Breakpoint 1, 0xffffffff")
    assert "<start_kernel>:\tcall" in line_with(lines, "=> 0xffffffff")


def test_the_entry_of_a_64_bit_kernel_as_pv(kernel):
    with waiting(kernel, "--mode", "pv", "--cmdline", CMDLINE) as guest:
        lines = run_gdb(
            f"target remote {guest.address}", "info registers rip xen_event_mask", "kill"
        )
    entry = image.load(kernel).notes.entry
    assert line_with(lines, "rip ").split()[1:] == [f"{entry:#x}", f"{entry:#x}", "<startup_xen>"]
    assert line_with(lines, "xen_event_mask").split()[1] == "0x1"


def test_a_bsd_kernel_of_which_gdb_knows_only_the_name(tmp_path):
    """gdb fetches its file without the mark, and is told what to do if it has the file itself."""
    path = build(guests()["hello"], ENVIRONMENTS["pvh64"], tmp_path / "kernel")
    content = bytearray(path.read_bytes())
    content[EI_OSABI] = 9
    path.write_bytes(content)
    script = ("tbreak guest_main", "continue", "bt")
    with waiting(path) as guest:
        fetched = run_gdb(f"target remote {guest.address}", *script, "detach")
        told = guest.finish()[1].decode()
    with waiting(path) as guest:
        connect = f"target remote {guest.address}"
        own = run_gdb("set osabi none", f"file {path}", connect, *script, "kill")
    for lines in (fetched, own):
        frames = [line for line in lines if re.match(r"#\d", line)]
        assert "guest_main" in frames[0] and "_start" in frames[-1]
        assert not [line for line in lines if "??" in line or "not built" in line]
    assert "the kernel's file is FreeBSD's" in told


def test_a_stripped_kernel_has_the_debug_information_of_the_file_beside_it(tmp_path):
    """gdb knows lines and types, the report knows names, and a kernel of another build is none."""
    vmlinux = build(guests()["hello"], ENVIRONMENTS["pv64"], tmp_path / "built")
    kernel, beside, other = (tmp_path / name for name in ("kernel", "vmlinux", "other"))
    for path, number, options in ((kernel, 1, ["-S"]), (beside, 1, []), (other, 2, [])):
        note = tmp_path / "note"
        note.write_bytes(elfwriter.note(3, bytes([number]) * 20, "GNU"))
        add = f"--add-section=.note.gnu.build-id={note}"
        command = ["objcopy", *options, add, vmlinux, path]
        subprocess.run(command, check=True)
    for arguments in ((kernel, "--symbols", beside), (beside,)):
        with waiting(*arguments) as guest:
            connect = f"target remote {guest.address}"
            lines = run_gdb(connect, "tbreak guest_main", "continue", "info source", "kill")
        assert "Source language is c." in lines
        line_with(lines, "guest_main () at ")
    refused = subprocess.run(
        [sys.executable, "-m", "xenemu", "run", kernel, "--symbols", other],
        capture_output=True, timeout=TIMEOUT_S, check=False, text=True,
    )  # fmt: skip
    assert refused.returncode == EXIT_IMAGE and not refused.stdout
    (line,) = refused.stderr.splitlines()
    assert f"--symbols {other}: is of another build" in line
    assert "01" * 20 in line and "02" * 20 in line


# From there on.


@pytest.mark.parametrize("environment", ["pv64", "pv32"])
def test_a_pv_guest_is_held_for_the_faults_that_it_gets(tmp_path, environment):
    """Of its many stores to page tables, Xen does all but one itself."""
    path = build(guests()["pv-writable-pt"], ENVIRONMENTS[environment], tmp_path / "kernel")
    with waiting(path, "--mode", "pv", "--memory", "64M") as guest:
        lines = run_gdb(
            f"target remote {guest.address}", "monitor break-on fault PF",
            "continue", "continue",
        )  # fmt: skip
        out = guest.finish()[0].decode()
    said = [line for line in lines if "#PF on" in line]
    assert len(said) == 1 and " at guest_main+" in said[0]
    assert said[0].endswith(", error code 0x3: the guest is where its handler begins")
    line_with(lines, "trap_stubs () at ")
    line_with(lines, "exited normally")
    assert "Test result: SUCCESS" in out


def test_a_32_bit_kernel_is_stopped_by_name_from_before_paging_on(guest_image):
    path = guest_image("debian-686-pae")
    with waiting(path, "--mode", "pvh", "--cmdline", CMDLINE) as guest:
        lines = run_gdb(
            f"target remote {guest.address}", "p $cr0", "x/i start_kernel", "break start_kernel",
            "continue", "p $cr0", "x/i start_kernel", "kill",
        )  # fmt: skip
    assert "PG" not in line_with(lines, "$1 = ")
    assert "PG" in line_with(lines, "$2 = ")
    assert line_with(lines, "Breakpoint 1, ").endswith("in start_kernel ()")
    first, second = (line[3:] for line in lines if "<start_kernel>:" in line)
    assert first == second


@pytest.mark.parametrize("mode", ["pv", "pvh"])
def test_names_callers_and_variables(kernel, mode):
    with waiting(kernel, "--mode", mode, "--cmdline", CMDLINE) as guest:
        lines = run_gdb(
            f"target remote {guest.address}",
            "p $cr0",
            "break start_kernel",  # as PVH, before paging is on
            "continue",
            "bt",
            "watch *(int *)&system_state",
            "continue",
            "bt 2",
            "info threads",
            "delete",
            "break tick_periodic",
            "continue",
            "finish",
            "p/x $pc",
            "p $xmm0.uint128",
            "p (int)system_state",
            "p *(long *)&jiffies_64",
            "p start_kernel",
            "info registers",
            "info registers cr0 efer xen_event_mask",
            "x/s &linux_banner",
            "kill",
        )
    assert ("PG" in line_with(lines, "$1 = ")) == (mode == "pv")
    assert line_with(lines, "Breakpoint 1, ").endswith("in start_kernel ()")
    caller = {"pv": "xen_start_kernel", "pvh": "secondary_startup_64_no_verify"}[mode]
    assert caller in line_with(lines, "#1 ")
    assert "Old value = 0" in lines
    assert "New value = 1" in lines
    assert "in rest_init ()" in "\n".join(lines)
    assert 'Thread 1 "vcpu 0" (running, kernel mode)' in line_with(lines, "* 1")
    assert "in tick_handle_periodic ()" in "\n".join(lines)
    assert "Linux version 6." in line_with(lines, "<linux_banner>")
    assert line_with(lines, "$4 = ") == "$4 = 1"
    ticks = int(line_with(lines, "$5 = ")[5:]) - (1 << 32)
    assert -300 * 1000 <= ticks < 0  # from five minutes before it wraps, HZ is 1000 at most
    assert "{<text variable, no debug info>}" in line_with(lines, "$6 = ")
    shown = [line.split()[0] for line in lines if line.startswith(("cr", "efer", "xen_"))]
    named = ["cr0", "efer", "xen_event_mask"]
    assert shown[-3:] == named and set(named) < set(shown[:-3])


@pytest.mark.parametrize(
    ("name", "mode", "pc"),
    [
        ("debian-cloud-amd64", "pv", "rip"),
        ("debian-cloud-amd64", "pvh", "rip"),
        ("grub-i386-xen_pvh", "pvh", "eip"),
        ("grub-i386-xen", "pv", "eip"),
    ],
)
def test_each_step_is_one_instruction(guest_image, tmp_path, name, mode, pc):
    path = guest_image(name)
    loop = f'set $i = 0\nwhile $i < {STEPS}\nstepi\nprintf "at %lx\\n", ${pc}\n'
    script = write_script(tmp_path / "steps", loop + "set $i = $i + 1\nend\n")
    with waiting(path, "--mode", mode, "--cmdline", CMDLINE) as guest:
        no_symbols = "set sysroot /nowhere"  # gdb is much faster without
        lines = run_gdb(no_symbols, f"target remote {guest.address}", script, "kill")
    stepped = [int(line.split()[1], 16) for line in lines if line.startswith("at ")]
    assert stepped == trace(path, mode)


def trace(path, mode):
    """Where a guest is after each of its first instructions, by runs of a nanosecond."""
    machine = Machine(image.load(path), DomainConfig(256 << 20, CMDLINE.encode()), mode)
    engine, places = machine.engine, []
    machine.exits.deliver_events()
    for _ in range(STEPS):
        engine.run(engine.now_ns + 1)
        places.append(engine.rip)
    return places


@pytest.fixture
def module_initrd(guest_image, tmp_path):
    path = tmp_path / "initrd.gz"
    path.write_bytes(module_initramfs(guest_image, "debian-cloud-amd64"))
    return path


def test_a_module_has_names_and_callers_once_it_is_loaded(kernel, module_initrd):
    options = ("--mode", "pvh", "--memory", "256M", "--cmdline", f"{CMDLINE} quiet")
    with waiting(kernel, *options, "--initrd", module_initrd) as guest:
        lines = run_gdb(
            f"target remote {guest.address}", "monitor modules", "break do_init_module",
            *["continue"] * 3, "monitor modules", f"add-symbol-file target:{kernel}.modules",
            "delete", "break softdog_fire", "continue", "bt 3", "kill",
        )  # fmt: skip
    loaded = lines[lines.index(line_with(lines, "none, or a kernel")) :]
    listed = [line.split()[0] for line in loaded if re.fullmatch(r"\w+ +0xffffffffc\w+", line)]
    assert listed == list(reversed(MODULES))
    assert f"add-symbol-file target:{kernel}.modules" in line_with(lines, "for gdb to know")
    assert line_with(lines, "#0 ").endswith("in softdog_fire ()")
    assert line_with(lines, "#1 ").endswith("in __hrtimer_run_queues ()")


# The guest does not notice.


def finished(out, err, code):
    """A run's console, its instructions, and its exit code."""
    return out, int(CONSOLE_LINE.search(err.decode())[1]), code


@pytest.mark.parametrize("mode", ["pv", "pvh"])
def test_a_run_with_gdb_is_the_run_without(kernel, initrd, xenemu_run, mode):
    options = (kernel, "--mode", mode, "--cmdline", CMDLINE, "--initrd", initrd)
    alone = xenemu_run(*options, stdin=b"hello\n")
    with waiting(*options, stdin=subprocess.PIPE) as guest:
        guest.process.stdin.write(b"hello\n")
        guest.process.stdin.close()
        guest.process.stdin = None
        lines = run_gdb(
            f"target remote {guest.address}", "tbreak start_kernel", "continue", "stepi 300",
            "watch *(int *)&system_state", "continue", "x/100i $pc", "info registers", "bt",
            "monitor walk $pc", "delete", "break tick_periodic", "ignore 3 20", "continue",
            "stepi 50", "finish", "delete", "monitor break-on event 3",
            "continue", "stepi 400", "monitor break-on off",  # an upcall, and back
            "tbreak do_syscall_64", "continue", "finish", "stepi 300", "detach",
        )  # fmt: skip
        out, err = guest.finish()
        debugged = finished(out, err, guest.process.returncode)
    stops = ("Temporary breakpoint 1, ", "New value = 1", "Breakpoint 3, ", "raised on port 3")
    for stop in (*stops, "Temporary breakpoint 4, "):
        line_with(lines, stop)
    assert debugged == finished(alone.stdout, alone.stderr, alone.returncode)
    assert b"GOT hello" in alone.stdout


def test_ctrl_c_in_the_idle_loop_then_detach_and_power_off(kernel, initrd):
    options = (kernel, "--mode", "pvh", "--cmdline", CMDLINE, "--initrd", initrd)
    with waiting(*options, stdin=subprocess.PIPE) as guest:
        command = gdb_command(f"target remote {guest.address}", "continue", "bt", "detach")
        with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as gdb:
            console = b""
            while b"READY" not in console:
                piece = guest.process.stdout.read1()
                assert piece, console
                console += piece
            gdb.send_signal(signal.SIGINT)
            said, _ = gdb.communicate(timeout=TIMEOUT_S)
        assert b"Program received signal SIGINT" in said
        assert b"do_idle" in said
        out, err = guest.finish(input=b"hello\n")
        assert guest.process.returncode == 0
        assert b"GOT hello" in out
        assert b"poweroff, exit 0" in err


@pytest.mark.parametrize("environment", ["pv64", "pv32"])
def test_gdb_watches_what_the_guest_watches(environment, tmp_path):
    """The guest pv-debug checks what its own debug registers do, and says so."""
    own = guests()["pv-debug"]
    kernel = build(own, ENVIRONMENTS[environment], tmp_path / "pv-debug")
    watched = "watch *(int *)&watched"
    with waiting(kernel, "--mode", "pv", "--memory", own.memory) as guest:
        lines = run_gdb(
            f"target remote {guest.address}", watched, "break watched_instruction",
            *["continue"] * 12,
        )  # fmt: skip
        out, err = guest.finish()
        assert guest.process.returncode == 0, err
    assert out.decode() == own.expected(environment)
    assert "New value = 7" in lines
    assert "Breakpoint 2, " in "\n".join(lines)
