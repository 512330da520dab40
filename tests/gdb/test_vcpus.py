"""gdb and several vcpus: a thread for each, and one that goes on while the others are held."""

from __future__ import annotations

import re
import subprocess

import pytest

from gdbtools import Client, run_gdb, waiting
from guests.build import ENVIRONMENTS, build, guests
from xenemu.gdb.rsp import encode

TRAMPOLINE = 0x9000
RIP = 16  # its number


def built(tmp_path_factory, name, environment):
    return build(guests()[name], ENVIRONMENTS[environment], tmp_path_factory.mktemp(name) / name)


@pytest.fixture(scope="module")
def pvh(tmp_path_factory):
    """A guest that starts vcpu 1 in real mode, and vcpu 2 by a hypercall."""
    return built(tmp_path_factory, "ap-start-pvh", "pvh64")


@pytest.fixture(scope="module")
def pv(tmp_path_factory):
    """A guest with two vcpus that poll, and of which the second goes down."""
    return built(tmp_path_factory, "ap-start", "pv64")


def held(path, vcpus):
    return waiting(path, "--vcpus", vcpus, "--memory", "64M")


def addresses(path):
    listed = subprocess.run(["nm", path], capture_output=True, check=True, text=True).stdout
    return {line.split()[2]: int(line.split()[0], 16) for line in listed.splitlines()}


def rip(client, thread):
    assert client.ask(b"Hg%x" % thread) == b"OK"
    return int.from_bytes(bytes.fromhex(client.ask(b"p%x" % RIP).decode()), "little")


def after_console(client, answer=None):
    """A stop reply, and what was said before it."""
    said = ""
    answer = client.next() if answer is None else answer
    while answer[:1] == b"O":
        said += bytes.fromhex(answer[1:].decode()).decode()
        answer = client.next()
    return answer, said


def thread_of(answer):
    return int(re.search(rb";thread:([0-9a-f]+);", answer)[1], 16)


def to(client, vaddr):
    """Let the guest come to an address; the thread that does."""
    client.ask(b"Z0,%x,1" % vaddr)
    answer = client.ask(b"vCont;c")
    client.ask(b"z0,%x,1" % vaddr)
    assert b";swbreak:;" in answer
    return thread_of(answer)


# The protocol.


def test_a_vcpu_that_is_down_is_a_thread_that_is_alive(pvh):
    with held(pvh, 3) as guest:
        client = Client(guest.address)
        assert client.ask(b"qfThreadInfo") == b"m1,2,3"
        assert client.ask(b"T3") == b"OK"
        assert client.ask(b"T4")[:2] == b"E."
        text = bytes.fromhex(client.ask(b"qThreadExtraInfo,2").decode())
        assert text == b"vcpu 1, down, not initialised"
        assert b'name="vcpu 2">down, not initialised<' in client.ask(b"qXfer:threads:read::0,1000")


def test_a_breakpoint_stops_the_vcpu_that_comes_to_it(pvh):
    with held(pvh, 3) as guest:
        client = Client(guest.address)
        assert to(client, TRAMPOLINE) == 2
        assert rip(client, 2) == TRAMPOLINE
        assert rip(client, 1) != TRAMPOLINE
        assert to(client, addresses(pvh)["ap_entry"]) == 2
        client.ask(b"vCont;s:2")
        assert to(client, addresses(pvh)["ap_entry"]) == 3


def test_only_the_thread_with_an_action_moves(pvh):
    with held(pvh, 3) as guest:
        client = Client(guest.address)
        to(client, TRAMPOLINE)
        first = rip(client, 1)
        for _ in range(30):
            answer = client.ask(b"vCont;s:2")
            assert thread_of(answer) == 2
        assert rip(client, 1) == first
        second = rip(client, 2)
        moved = set()
        for _ in range(10):
            answer = client.ask(b"vCont;t:2;s:1")
            assert thread_of(answer) == 1
            moved.add(rip(client, 1))
        assert len(moved) > 1
        assert rip(client, 2) == second


def test_the_others_go_on_while_a_thread_steps(pvh):
    """Thread 1 comes into the CPU again, and makes its step, when its turn has come."""
    with held(pvh, 3) as guest:
        client = Client(guest.address)
        to(client, TRAMPOLINE)
        first, second = rip(client, 1), rip(client, 2)
        assert thread_of(client.ask(b"vCont;s:1;c")) == 1
        assert rip(client, 1) != first
        assert rip(client, 2) != second


def test_a_range_is_stepped_in_one_thread(pvh):
    with held(pvh, 3) as guest:
        client = Client(guest.address)
        to(client, TRAMPOLINE)
        answer = client.ask(b"vCont;r%x,%x:2" % (TRAMPOLINE, TRAMPOLINE + 0xF))
        assert thread_of(answer) == 2
        assert rip(client, 2) == TRAMPOLINE + 0xF


def test_hc_says_whom_c_and_s_are_about(pvh):
    with held(pvh, 3) as guest:
        client = Client(guest.address)
        to(client, TRAMPOLINE)
        first = rip(client, 1)
        assert client.ask(b"Hc2") == b"OK"
        assert thread_of(client.ask(b"s")) == 2
        assert rip(client, 2) == TRAMPOLINE + 3
        assert rip(client, 1) == first
        assert client.ask(b"Hc9")[:2] == b"E."
        assert client.ask(b"Hcz")[:1] == b"E"


@pytest.mark.parametrize("packet", [b"vCont;s:9", b"vCont;c:1;s:9"])
def test_a_thread_that_is_not_there_cannot_go_on(pvh, packet):
    with held(pvh, 3) as guest:
        client = Client(guest.address)
        before = client.ask(b"g")
        assert client.ask(packet) == b"E.there is no thread 9"
        assert client.ask(b"g") == before


def test_a_vcpu_that_is_down_does_not_go_on_alone(pvh):
    with held(pvh, 3) as guest:
        client = Client(guest.address)
        answer, said = after_console(client, client.ask(b"vCont;c:2;s:3"))
        assert answer[:3] == b"T05"
        assert (
            said
            == "xenemu: vcpu 1 and vcpu 2 cannot go on alone: down until another brings it up\n"
        )
        assert to(client, TRAMPOLINE) == 2


def test_a_vcpu_that_goes_down_alone_is_held(pv):
    """The second vcpu of ap-start goes down by VCPUOP_down."""
    with held(pv, 2) as guest:
        client = Client(guest.address)
        to(client, addresses(pv)["second_main"])
        stage = addresses(pv)["stage"]
        assert client.ask(b"Z2,%x,4" % stage) == b"OK"
        while int.from_bytes(bytes.fromhex(client.ask(b"m%x,4" % stage).decode()), "little") != 2:
            answer, _ = after_console(client, client.ask(b"vCont;c"))
        client.ask(b"z2,%x,4" % stage)
        assert thread_of(answer) == 2
        answer, said = after_console(client, client.ask(b"vCont;c:2"))
        assert answer[:3] == b"T05"
        assert "vcpu 1 cannot go on alone" in said
        assert (
            "vcpu 1, down, kernel mode"
            in bytes.fromhex(client.ask(b"qThreadExtraInfo,2").decode()).decode()
        )


def test_one_that_waits_for_another_that_is_held_waits_until_ctrl_c(pv):
    with held(pv, 2) as guest:
        client = Client(guest.address)
        assert to(client, addresses(pv)["second_main"]) == 2
        client.send(encode(b"vCont;c:2"))
        answer = client.next()
        assert bytes.fromhex(answer[1:].decode()) == (
            b"xenemu: vcpu 1 may wait for a vcpu that gdb holds; Ctrl-C, and then"
            b" set scheduler-locking off\n"
        )
        client.send(b"\x03")
        assert client.next()[:3] == b"T02"
        state = bytes.fromhex(client.ask(b"qThreadExtraInfo,2").decode()).decode()
        assert re.fullmatch(r"vcpu 1, polling port \d+, kernel mode", state)
        answer, said = after_console(client, client.ask(b"vCont;c"))
        assert (answer, said) == (b"W00", "")


def test_registers_of_a_thread_that_is_not_in_the_cpu_are_written(pvh):
    """vcpu 0 waits in a loop; it goes on from where gdb sends it."""
    with held(pvh, 3) as guest:
        client = Client(guest.address)
        to(client, TRAMPOLINE)
        there = addresses(pvh)["success"]
        assert rip(client, 1) != there
        assert client.ask(b"P%x=%b" % (RIP, there.to_bytes(8, "little").hex().encode())) == b"OK"
        assert rip(client, 1) == there
        assert rip(client, 2) == TRAMPOLINE
        assert to(client, there) == 1


def test_a_vcpu_that_is_reset_while_it_is_stepped_stops_where_it_begins_anew(pvh):
    """The second time, vcpu 1 has run, and has had an INIT; the STARTUP is to come."""
    with held(pvh, 3) as guest:
        client = Client(guest.address)
        starts = addresses(pvh)["start_in_real_mode"]
        assert to(client, starts) == 1
        client.ask(b"vCont;s:1")
        assert to(client, starts) == 1
        answer = client.ask(b"vCont;s:2;c")
        assert thread_of(answer) == 2
        assert rip(client, 2) == TRAMPOLINE


def test_a_vcpu_that_triple_faults_is_named_and_held(pvh):
    with held(pvh, 3) as guest:
        client = Client(guest.address)
        there = addresses(pvh)["ap_entry"]
        to(client, there)
        assert client.ask(b"M%x,2:0f0b" % there) == b"OK"  # it has no IDT yet
        answer, said = after_console(client, client.ask(b"vCont;c"))
        assert answer[:3] == b"T06"
        assert thread_of(answer) == 2
        assert said.startswith("xenemu: triple-fault: vcpu 1: triple fault at 0x")
        assert client.ask(b"vCont;c") == b"W05"
        _, err = guest.finish()
    report = err.decode()
    assert "\nRegisters of vcpu 1:\n  running, interrupts off\n" in report
    assert "\nOther vcpus:\n  vcpu 0: runnable, in kernel mode, interrupts off" in report
    assert report.index("Backtrace of vcpu 1:") < report.index("  vcpu 2: down, not initialised")


# gdb itself.


def test_gdb_follows_a_vcpu_from_real_mode_on(pvh):
    with held(pvh, 3) as guest:
        lines = run_gdb(
            f"target remote {guest.address}", "info threads", f"break *{TRAMPOLINE}",
            "break ap_main thread 3", "continue", "info threads", "monitor disas", "thread 1",
            "bt -frame-arguments none", "monitor vcpu 0",
            "monitor disas $pc 1", "thread 2", "stepi", "delete 1",
            "continue", "bt -frame-arguments none", "p/x $cr3 == $xen_kernel_root",
            "monitor info vcpu", "tbreak down_and_up", "continue", "watch halts", *["continue"] * 2,
            "set scheduler-locking on", *["stepi"] * 3, "info threads",
            "set scheduler-locking off", "delete", "continue",
        )  # fmt: skip
        out, err = guest.finish()
    text = "\n".join(lines)
    listed = [line for line in lines if re.match(r"[* ] \d +Thread", line)]
    assert '* 1    Thread 1 "vcpu 0" (running, kernel mode)' in listed[0]
    assert '  2    Thread 2 "vcpu 1" (down, not initialised)' in listed[1]
    assert 'Thread 2 "vcpu 1" hit Breakpoint 1, 0x0000000000009000 in ?? ()' in lines
    assert '  1    Thread 1 "vcpu 0" (runnable, kernel mode)' in listed[3]
    assert '* 2    Thread 2 "vcpu 1" (running, kernel mode)' in listed[4]
    assert "of vcpu 1:\n=> 0x9000:\tmovl %cr0, %ecx\n   0x9003:\tmovw %cs, %ax" in text
    assert re.search(r"#\d+ .*start_by_ipi \(\)", text)
    assert "of vcpu 0:\n=> start_in_real_mode+" in text
    assert "0x0000000000009003 in ?? ()" in text
    assert 'Thread 3 "vcpu 2" hit Breakpoint 2, ap_main' in text  # and not vcpu 1 before
    assert re.search(r"#1 .* in ap_entry \(\)", text)
    assert "$1 = 0x1" in lines
    assert re.search(r"vcpu 1: blocked, in kernel mode at \S+\n  64-bit code at 0x8:0x", text)
    assert 'Thread 1 "vcpu 0" hit Hardware watchpoint 4: halts' in lines
    assert 'Thread 2 "vcpu 1" hit Hardware watchpoint 4: halts' in lines
    assert "xenemu: vcpu 1 cannot go on alone: down until another brings it up" in lines
    assert '* 2    Thread 2 "vcpu 1" (down, kernel mode)' in listed[7]
    assert "exited normally" in text
    assert out.decode().endswith("Test result: SUCCESS\n"), out
    assert b"poweroff, exit 0" in err


def test_a_run_with_gdb_is_the_run_without(pvh, pv, xenemu_run):
    """Also while one vcpu steps and the others go on."""
    for path, vcpus, entry, more in (
        (pvh, 3, "ap_main", ("tbreak interrupts", "watch goes_on", *["continue"] * 3)),
        (pv, 2, "second_main", ("watch rounds", "continue", "stepi 500", "delete", "stepi 500")),
    ):
        options = ("--vcpus", str(vcpus), "--memory", "64M")
        alone = xenemu_run(path, *options)
        with held(path, vcpus) as guest:
            run_gdb(
                f"target remote {guest.address}", f"break {entry}", "continue", "stepi 30",
                "info threads", "thread 1", "bt", "info registers", "x/20i $pc", "thread 2",
                "bt", "monitor info vcpu", "delete", *more, "detach",
            )  # fmt: skip
            out, err = guest.finish()
        assert out == alone.stdout
        count = re.compile(rb"virtual time \S+ s, (\d+) instructions")
        assert count.search(err)[1] == count.search(alone.stderr)[1]


@pytest.mark.parametrize(
    ("mode", "entry", "caller"),
    [("pv", "cpu_bringup_and_idle", "cpu_up"), ("pvh", "start_secondary", "cpu_up")],
)
def test_debians_cpus_come_up(guest_image, mode, entry, caller):
    kernel = guest_image("debian-cloud-amd64")
    options = ("--mode", mode, "--vcpus", "4", "--cmdline", "console=hvc0")
    with waiting(kernel, *options) as guest:
        lines = run_gdb(
            f"target remote {guest.address}", f"break {entry} thread 3", "continue",
            "info threads", "thread 1", "bt", "thread 2", "bt 3", "thread 3", "bt 2",
            "watch *(int *)&system_state", "continue", "x/s &linux_banner", "kill",
        )  # fmt: skip
    text = "\n".join(lines)
    listed = [line for line in lines if re.match(r"[* ] \d +Thread", line)]
    assert 'Thread 3 "vcpu 2" hit Breakpoint 1, ' in text
    assert re.search(rf"#\d+ .* in {caller} \(\)", text)
    assert '* 3    Thread 3 "vcpu 2" (running, kernel mode)' in listed[2]
    assert '  4    Thread 4 "vcpu 3" (down, not initialised)' in listed[3]
    assert "??" not in "".join(listed[:3])
    assert re.search(r'Thread \d "vcpu \d" hit Hardware watchpoint 2: ', text)
    assert "Linux version 6." in text
