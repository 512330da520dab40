"""From a crash back to the store that caused it, with a real gdb; and steps back by the hundred."""

from __future__ import annotations

import re

import pytest

from gdbtools import Client, addresses, after_console, place, run_gdb, to, waiting
from guests.build import ENVIRONMENTS, build, guests

GUEST = guests()["wild-write"]
STEPS = 1000


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wild")
    return {name: build(GUEST, ENVIRONMENTS[name], folder / name) for name in GUEST.environments}


@pytest.mark.parametrize("environment", GUEST.environments)
def test_from_the_crash_back_to_who_wrote_the_pointer(built, environment):
    with waiting(built[environment], "--memory", GUEST.memory) as guest:
        lines = run_gdb(
            f"target remote {guest.address}", "continue", "watch buffers[2].data",
            "reverse-continue", "bt", "x/i $pc", "delete", "reverse-finish", "reverse-step", "bt 1",
            *("reverse-next", "break set_name", "continue", "reverse-stepi", "reverse-continue"),
            *("delete", "watch buffers[2].data", "reverse-continue", "reverse-continue"),
            "kill",
        )  # fmt: skip
    text = "\n".join(lines)
    assert "Program received signal SIGABRT" in text
    back = lines[lines.index("Hardware watchpoint 1: buffers[2].data") + 1 :]
    old, new = (re.search(rf"{which} value = .*?(0x\w+)", text)[1] for which in ("Old", "New"))
    assert bytes.fromhex(old[2:])[::-1] == b" of them" and int(old, 16) & (1 << 56) - 1 == int(
        new, 16
    )
    frames = [line for line in back if re.match(r"#\d", line)]
    assert "in set_name (" in frames[0] and "in guest_main ()" in frames[1]
    assert re.search(r"=> 0x\w+ <set_name\+\d+>:\tmov +%\w+,-?(0x1)?\(", text), text
    assert ["set_name" in frame for frame in frames[:2]] == [True, False]
    hits = [line for line in back if line.startswith("Breakpoint 2, set_name (")]
    assert [re.search('name@entry=.*"(.*)"', hit)[1] for hit in hits] == ["second", "first"]
    assert re.search(r'Old value = .* <memory\+512> ""\nNew value = .* 0x0\nguest_main', text), text
    assert "No more reverse-execution history" in text


def test_a_thousand_steps_back_are_the_forward_trace_backwards(built):
    path = built["pvh64"]
    with waiting(path, "--memory", "4M") as guest:
        client = Client(guest.address)
        forward = [place(client, to(client, addresses(path)["work"]))]
        for _ in range(STEPS):
            forward.append(place(client, after_console(client.ask(b"vCont;s"), client)))
        back = [forward[-1]]
        for _ in range(STEPS):
            back.append(place(client, after_console(client.ask(b"bs"), client)))
    assert back == forward[::-1]
    assert len({vaddr for _, vaddr in forward}) > 10
