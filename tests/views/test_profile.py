"""A profile: exact samples, stacks with names, and the forms that tools read."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from xml.etree import ElementTree

import pytest
from test_snapshot import Script

import elfwriter
import tinyguest
from fuzz import fresh
from xenemu.hv.building import DomainConfig
from xenemu.image import load
from xenemu.machine import Machine
from xenemu.views.flame import flame_graph
from xenemu.views.profile import PROGRAM, Profile, Sampler
from xenemu.views.speedscope import speedscope

START, CALLED = elfwriter.ENTRY, elfwriter.ENTRY + 0x40
LOOPS = 100_000
# call CALLED; and there: push %rbp; mov %rsp, %rbp; mov $LOOPS, %ecx; loop .; pop %rbp; ret
CALL = b"\xe8" + (CALLED - START - 5).to_bytes(4, "little")
LOOP = b"\x55\x48\x89\xe5\xb9" + LOOPS.to_bytes(4, "little") + b"\xe2\xfe\x5d\xc3"
CODE = (CALL + tinyguest.SHUTDOWN).ljust(CALLED - START, b"\xcc") + LOOP
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture
def kernel(tmp_path: Path) -> Path:
    path = tmp_path / "kernel"
    path.write_bytes(tinyguest.kernel(CODE, {"start": START, "called": CALLED}))
    return path


def run(kernel: Path, every_ns: int | None) -> tuple[Profile | None, int, int]:
    machine = Machine(load(kernel), DomainConfig(64 << 20), "pv")
    sampler = Sampler(machine, load(kernel), every_ns) if every_ns else None
    machine.sampler = sampler.run if sampler else None
    machine.run(Script(machine))
    profile = sampler.profile() if sampler else None
    return profile, machine.engine.instructions, machine.engine.now_ns


def test_a_function_has_the_samples_of_its_time_under_its_caller(kernel: Path) -> None:
    profile, _, _ = fresh.call(partial(run, kernel, 1000))
    assert profile is not None
    stacks = dict(profile.counted())
    assert LOOPS // 1000 - 1 <= stacks["start", "called"] <= LOOPS // 1000 + 1
    assert sum(stacks.values()) - stacks["start", "called"] <= 2


def test_a_profile_repeats_and_changes_nothing(kernel: Path) -> None:
    first, again = (fresh.call(partial(run, kernel, 777)) for _ in range(2))
    without = fresh.call(partial(run, kernel, None))
    assert first == again
    assert first[1:] == without[1:]


@pytest.fixture
def profile() -> Profile:
    stacks = {("main", "a;b"): 0, ("main",): 1, (PROGRAM,): 2, ("main", "<&]]>\x00"): 3}
    return Profile(10_000_000, stacks, {0: [0, 0, 1], 1: [2, 3]})


def test_folded_stacks_have_a_line_each(profile: Profile) -> None:
    del profile.of_vcpu[1]
    assert profile.folded() == "main 1\nmain;a:b 2\n"


def test_of_several_vcpus_each_is_a_root(profile: Profile) -> None:
    assert [stack[0] for stack, _ in profile.counted()] == ["vcpu 0"] * 2 + ["vcpu 1"] * 2


def test_the_top_functions_come_with_their_shares(profile: Profile) -> None:
    lines = profile.top().splitlines()
    assert lines[0] == "5 samples, one each 10 ms in which a vcpu ran"
    assert lines[2] == "  40.0%   40.0%  a;b"
    assert "  20.0%   80.0%  main" in lines
    assert not any(line.endswith("vcpu 0") for line in lines)


def test_no_samples_are_told_and_drawn() -> None:
    empty = Profile(10_000_000)
    assert empty.top() == "0 samples, one each 10 ms in which a vcpu ran\n"
    assert empty.folded() == ""
    assert json.loads(speedscope(empty, "x"))["profiles"] == []
    ElementTree.fromstring(flame_graph(empty, "x"))


def test_speedscope_has_each_sample_in_order(profile: Profile) -> None:
    document = json.loads(speedscope(profile, "a guest"))
    names = [frame["name"] for frame in document["shared"]["frames"]]
    first, second = document["profiles"]
    named = [[names[n] for n in stack] for stack in first["samples"]]
    assert named == [["main", "a;b"], ["main", "a;b"], ["main"]]
    assert first["weights"] == [10_000_000] * 3
    assert (first["startValue"], first["endValue"]) == (0, 30_000_000)
    assert second["name"] == "vcpu 1"


def test_a_flame_graph_has_a_box_above_its_callers(profile: Profile) -> None:
    root = ElementTree.fromstring(flame_graph(profile, "<a guest>"))
    boxes = {
        box.find(f"{SVG}title").text.partition(": ")[0]: box.find(f"{SVG}rect").attrib
        for box in root.iter(f"{SVG}g")
    }
    width: Callable[[str], float] = lambda name: float(boxes[name]["width"])  # noqa: E731
    assert width("all") == pytest.approx(width("vcpu 0") + width("vcpu 1"), abs=0.1)
    assert width("a;b") == pytest.approx(width("all") * 2 / 5, abs=0.1)
    assert float(boxes["a;b"]["y"]) < float(boxes["vcpu 0"]["y"]) < float(boxes["all"]["y"])
    assert float(boxes["a;b"]["x"]) + width("a;b") <= float(boxes["vcpu 1"]["x"]) + 0.1
    assert "<&]]>\u2400" in boxes
