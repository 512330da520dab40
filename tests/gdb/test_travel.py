"""gdb in reverse: what was done is done again, and nothing is left of having gone back."""

from __future__ import annotations

import os
import re
import select

import pytest

from gdbtools import TIMEOUT_S, Client, addresses, after_console, place, run_gdb, to, waiting
from guests.build import ENVIRONMENTS, build, guests
from xenemu.gdb.rsp import encode

STEPS = 16
COUNT = re.compile(rb"virtual time \S+ s, (\d+) instructions")


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("travel")

    def built(name, environment):
        path = folder / f"{name}-{environment}"
        return path if path.exists() else build(guests()[name], ENVIRONMENTS[environment], path)

    return built


@pytest.mark.parametrize(
    ("name", "environment", "start"),
    [
        ("ap-start", "pv64", "second_main"),  # hypercalls, turns of two vcpus
        ("ap-start-pvh", "pvh64", "ap_main"),  # and interrupts
        ("pv-traps", "pv64", "trap"),  # exceptions and their returns
        ("event-callback", "pvh32", "guest_main"),
        ("idt-delivery", "pvh64", "trap"),
    ],
)
def test_steps_back_are_the_steps_forward_backwards(built, name, environment, start):
    own = guests()[name]
    path = built(name, environment)
    options = ("--memory", own.memory, "--vcpus", own.vcpus, "--cmdline", own.cmdline)
    with waiting(path, *options) as guest:
        client = Client(guest.address)
        forward = [place(client, to(client, addresses(path)[start]))]
        for _ in range(STEPS):
            forward.append(place(client, after_console(client.ask(b"vCont;s"), client)))
        back = [forward[-1]]
        for _ in range(STEPS):
            back.append(place(client, after_console(client.ask(b"bs"), client)))
        assert back == forward[::-1]
        assert after_console(client.ask(b"vCont;c"), client)[:1] == b"W"


def test_a_run_that_was_taken_back_prints_and_counts_as_one_that_was_not(built, xenemu_run):
    path = built("ap-start-pvh", "pvh64")
    options = ("--vcpus", "3", "--memory", "64M")
    alone = xenemu_run(path, *options)
    with waiting(path, *options) as guest:
        lines = run_gdb(
            f"target remote {guest.address}", "break down_and_up", "continue",
            "reverse-stepi 20", "watch taken[1]", *["reverse-continue"] * 3, "delete",
            "reverse-continue", "info threads", "break down_and_up", "continue", "detach",
        )  # fmt: skip
        out, err = guest.finish()
    values = [line for line in lines if re.match(r"(Old|New) value", line)]
    assert values == [
        f"{which} value = {value}"
        for new in (4, 3, 2)
        for which, value in (("Old", new + 1), ("New", new))
    ]
    assert "xenemu: from here on the run can be repeated, and not before" in lines
    assert "No more reverse-execution history." in lines
    assert "_start ()" in "\n".join(lines)
    assert out == alone.stdout
    assert COUNT.search(err)[1] == COUNT.search(alone.stderr)[1]


def test_from_a_crash_back_to_who_did_it(built):
    """A triple fault ends the guest; then the guest is taken back, and ends again."""
    path = built("ap-start-pvh", "pvh64")
    there = addresses(path)["ap_entry"]
    with waiting(path, "--vcpus", "3", "--memory", "64M") as guest:
        client = Client(guest.address)
        assert client.ask(b"M%x,2:0f0b" % there) == b"OK"  # where vcpu 1 has no IDT yet
        crashed = after_console(client.ask(b"vCont;c"), client)
        assert crashed[:3] == b"T06"
        end = place(client, crashed)
        assert end == (2, there.to_bytes(8, "little").hex().encode())
        assert place(client, after_console(client.ask(b"bs"), client)) == end  # before it crashes
        before = place(client, after_console(client.ask(b"bs"), client))
        assert before[0] == 2 and before[1] != end[1]
        client.ask(b"Z0,9000,1")
        answer = client.ask(b"bc")
        assert (b";swbreak:;" in answer, place(client, answer)[0]) == (True, 2)
        client.ask(b"z0,9000,1")
        assert after_console(client.ask(b"vCont;c"), client)[:3] == b"T06"
        assert client.ask(b"vCont;c") == b"W05"


def test_what_cannot_be_repeated_is_not_gone_back_to(built):
    path = built("ap-start-pvh", "pvh64")
    names = addresses(path)
    with waiting(path, "--vcpus", "3", "--memory", "64M") as guest:
        client = Client(guest.address)
        to(client, names["ap_entry"])
        assert client.ask(b"P0=%b" % (b"11" * 8)) == b"OK"
        before = client.ask(b"g")
        said = client.ask(b"bs")
        assert b"and not before" in bytes.fromhex(said[1:].decode())
        assert client.next().startswith(b"T05") and client.ask(b"g") == before
        to(client, names["ap_main"])
        assert b"replaylog:begin" in after_console(client.ask(b"bc"), client)


def test_faults_that_are_asked_for_are_caught_after_a_way_back(built):
    path = built("idt-delivery", "pvh64")
    with waiting(path, "--memory", "64M") as guest:
        lines = run_gdb(
            f"target remote {guest.address}", "break trap", "continue",
            *[f"monitor break-on fault {name}" for name in ("#UD", "#PF", "#GP")],
            "reverse-stepi", "reverse-stepi", "delete", "continue", "monitor when", "kill",
        )  # fmt: skip
    assert any("which the guest has yet to see" in line for line in lines), lines
    assert re.search(r"after \d+ instructions, at \d\.\d{9} s", "\n".join(lines))


def test_a_person_goes_to_marks_counts_and_times(built):
    """gdb sees each of these places by `continue`, whichever way it is."""
    path = built("idt-delivery", "pvh64")
    with waiting(path, "--memory", "64M") as guest:
        lines = run_gdb(
            f"target remote {guest.address}", "break trap", "continue", "monitor checkpoint",
            "info registers rip rsp", "stepi 10", "monitor checkpoint",
            *("monitor goto 100", "continue", "monitor when"),
            *("monitor goto #1", "continue", "info registers rip rsp"),
            *("monitor goto 2us", "reverse-continue", "monitor when"),
            *("monitor goto #2", "monitor goto off", "monitor goto #2", "continue", "monitor when"),
            *("monitor checkpoints", "monitor goto 9s", "continue"),
        )  # fmt: skip
    marks = [line for line in lines if line.startswith("#")]
    assert marks[:2] == marks[2:] and len(marks) == 4
    whens = [line for line in lines if line.startswith("after ")]
    assert whens[0].startswith("after 100 instructions, ")
    assert 2e-6 <= float(whens[1].split()[-2]) < 3e-6
    assert whens[2] in marks[1]
    registers = [line for line in lines if re.match("r[is]p ", line)]
    assert registers[:2] == registers[2:] and len(registers) == 4
    assert lines.count("Program stopped.") == 4
    assert "gdb can go back to instruction 0, at 0.000000000 s" in lines
    assert "exited normally" in lines[-1]


def children(pid):
    """Descriptors of the processes that a process has begun: readable when they have ended."""
    with open(f"/proc/{pid}/task/{pid}/children") as listed:
        return [os.pidfd_open(int(child)) for child in listed.read().split()]


def have_ended(descriptors):
    """Whether all of these processes end within a time in which they must."""
    left = list(descriptors)
    while left and (ended := select.select(left, [], [], TIMEOUT_S)[0]):
        left = [descriptor for descriptor in left if descriptor not in ended]
    for descriptor in descriptors:
        os.close(descriptor)
    return not left


@pytest.mark.parametrize("end", ["SIGKILL", "kill", "detach"])
def test_no_copy_outlives_the_run_or_the_debugger(built, end):
    path = built("idt-delivery", "pvh64")
    with waiting(path, "--memory", "64M", "--confine", "must") as guest:
        client = Client(guest.address)
        to(client, addresses(path)["trap"])
        copies = children(guest.process.pid)
        assert len(copies) == 1
        if end == "SIGKILL":
            guest.process.kill()
        else:
            client.send(encode(b"k" if end == "kill" else b"D"))
        assert have_ended(copies)
