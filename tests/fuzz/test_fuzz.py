"""A short fuzz of every environment on both backends; `make fuzz` does longer ones."""

from __future__ import annotations

import hashlib
import json
import os
from functools import partial
from pathlib import Path

import pytest

from fuzz import __main__ as command
from fuzz import fresh, minimise, runner
from fuzz.__main__ import ENVIRONMENTS, make_world
from fuzz.runner import Failure, Found
from fuzz.world import RESTART, SWITCH, WORK, Step
from xenemu.abi.xen import Nr, multicall_entry
from xenemu.errors import DomainCrash

STEPS = {"model": 2000, "engine": 500}
SEED = 20


@pytest.mark.parametrize("environment", ENVIRONMENTS)
@pytest.mark.parametrize("backend", STEPS)
def test_nothing_that_a_guest_does_is_a_bug_of_ours(backend, environment):
    report = runner.run(make_world(environment, backend), SEED, STEPS[backend])
    assert report.steps == STEPS[backend]
    assert {kind: found.failure.detail for kind, found in report.found.items()} == {}


@pytest.mark.parametrize("environment", ENVIRONMENTS)
@pytest.mark.parametrize("backend", STEPS)
def test_a_life_is_the_same_whatever_was_before(backend, environment):
    world = make_world(environment, backend)
    first, second = fresh.call(lambda: [runner.live(world, SEED, n, 60)[1][:-1] for n in (1, 2)])
    alone = fresh.call(partial(digest, world, second))
    assert fresh.call(partial(digest, world, [*first, {"kind": RESTART}, *second])) == alone


# Several vcpus.


@pytest.mark.parametrize("environment", ENVIRONMENTS)
@pytest.mark.parametrize("backend", STEPS)
def test_nothing_that_several_vcpus_do_is_a_bug_of_ours(backend, environment):
    world = make_world(environment, backend, 2)
    first, second = fresh.call(lambda: [runner.live(world, SEED, n, 60)[1][:-1] for n in (1, 2)])
    alone = fresh.call(partial(digest, world, second))
    assert fresh.call(partial(digest, world, [*first, {"kind": RESTART}, *second])) == alone
    report = runner.run(world, SEED, STEPS[backend] // 2)
    assert {kind: found.failure.detail for kind, found in report.found.items()} == {}


@pytest.mark.parametrize("environment", ENVIRONMENTS)
@pytest.mark.parametrize("backend", STEPS)
def test_a_call_that_is_left_goes_on_at_its_vcpus_next_turn(backend, environment):
    world = make_world(environment, backend, 2)
    width = world.current.vcpu.width
    entry = multicall_entry(Nr.xen_version, 0, bytes(6 * width)).pack(width)
    data = [[world.arena, (entry * 4).hex()]]
    runner.attempt(world, {"kind": WORK, "units": 1})
    call = {"kind": "call", "number": Nr.multicall, "args": [world.arena, 4], "leave": True}
    world.perform(call | {"data": data})
    assert world.current.vcpu.vcpu_id == 1
    assert 0 < len(done(world, width)) < 4
    world.perform({"kind": SWITCH, "vcpu": 0})
    assert world.current.vcpu.vcpu_id == 0
    assert len(done(world, width)) == 4


def done(world, width):
    """The results of the calls of a list that have one."""
    size = multicall_entry.sizeof(width)
    results = [world.current.read_uint(world.arena + n * size + width, width) for n in range(4)]
    return [result for result in results if result]


def digest(world, steps):
    """What the domain is like after some steps: memory, registers, time."""
    assert not any(runner.attempt(world, step) for step in steps)
    domain, cpu = world.current.domain, world.current.cpu
    used = b"".join(domain.memory.bytes[mfn << 12 : mfn + 1 << 12] for mfn in owned(domain.frames))
    registers = (*cpu.regs, cpu.rip, cpu.rflags, cpu.cr3, cpu.now_ns)
    return hashlib.sha256(used).hexdigest(), registers, sorted(domain.timers.deadlines_ns.items())


def owned(frames):
    return [mfn for mfn, count in enumerate(frames.count) if count]


# What the fuzzer is good for: it notices, and says so in few steps.


class Broken:
    """A world with a bug: two steps in this order, with any others between them."""

    environment, hang_s, audit_every = "pv64", 0.01, 100

    def __init__(self, ends, forgets=True):
        self.table = make_world("pv64", "model").table
        self.ends, self.forgets, self.seen = ends, forgets, 0

    def restart(self):
        self.seen *= not self.forgets

    def audit(self):
        return ["7 frames are lost"] if self.seen == 2 and self.ends == "audit" else []

    def perform(self, step):
        self.seen += step["n"] == (3, 6, 0)[self.seen]
        if self.seen == 2 and self.ends != "audit":
            self.ends()


def raise_key_error():
    raise KeyError("frame")


def crash():
    raise DomainCrash("the guest's own fault")


def spin():
    while True:
        pass


def spin_where_no_handler_runs():
    sum(iter(int, 1))


ALL = [{"n": n, "data": []} for n in range(10)]


@pytest.mark.parametrize(
    ("ends", "kind"),
    [
        ("audit", "audit: N frames are lost"),
        (raise_key_error, "KeyError in "),
        (spin, "hang in "),
        (os.abort, "the process died of SIGABRT"),
        (spin_where_no_handler_runs, "the process died of SIGPROF"),
    ],
)
def test_the_fewest_steps_are_found(ends, kind):
    found = Found(Failure(kind, ""), ALL, 1)
    fewest, failure = minimise.minimise(Broken(ends), 1, found)
    assert fewest == [{"n": 3}, {"n": 6}]
    assert failure is not None
    assert failure.kind.startswith(kind)


def test_an_earlier_life_that_is_needed_is_among_the_steps(monkeypatch):
    lives = {n: [{"n": n}] for n in range(1, 9)}
    monkeypatch.setattr(runner, "live", lambda world, seed, number: (None, lives[number]))
    found = Found(Failure("KeyError in ", ""), [{"n": 6}], 9)
    fewest, failure = minimise.minimise(Broken(raise_key_error, forgets=False), 1, found)
    assert fewest == [{"n": 3}, {"n": 6}]
    assert failure is not None


def test_an_error_of_the_fuzzers_own_is_no_finding():
    with pytest.raises(ChildProcessError):
        fresh.call(raise_key_error)


def test_what_does_not_fail_again_is_said_to():
    fewest, failure = minimise.minimise(Broken(crash), 1, Found(Failure("hang", ""), ALL, 1))
    assert (fewest, failure) == (ALL, None)


def test_a_crash_of_the_guest_is_no_failure():
    world = Broken(crash)
    steps: list[Step] = [{"n": 3}, {"n": 6}]
    assert runner.replay(world, steps) is None
    assert world.seen == 0  # it began again


# The command.


def break_world(monkeypatch, breaks, number):
    """Let the first `number`th hypercall of a kind break something."""
    made = command.make_world

    def make(environment, backend, vcpus=1):
        world = made(environment, backend, vcpus)
        perform = world.perform

        def broken(step):
            if step.get("number") == number:
                breaks()
            perform(step)

        world.perform = broken
        return world

    monkeypatch.setattr(command, "make_world", make)


@pytest.mark.parametrize("vcpus", [1, 2])
@pytest.mark.parametrize("breaks", [raise_key_error, os.abort])
def test_what_is_found_is_in_a_file_that_fails_again(breaks, vcpus, tmp_path, monkeypatch, capsys):
    break_world(monkeypatch, breaks, 26)
    options = ["--env", "pv64", "--steps", "200", "--out", str(tmp_path)]
    options += ["--vcpus", str(vcpus)]
    assert command.main(options) == 1
    (path,) = tmp_path.iterdir()
    assert f"python -m fuzz --replay {path}" in capsys.readouterr().out
    found = json.loads(path.read_text())
    assert found["vcpus"] == vcpus
    assert [step["number"] for step in found["steps"]] == [26]
    assert command.main(["--replay", str(path)]) == 1


def test_several_seeds_are_a_line_each(tmp_path, capfd, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
    options = ["--env", "pv64", "--steps", "5", "--seeds", "2", "--out", str(tmp_path)]
    assert command.main(options) == 0
    lines = sorted(capfd.readouterr().out.splitlines())
    assert [line.partition(":")[0] for line in lines] == [
        "2 runs of up to 5 steps", "pv64, model, seed 1", "pv64, model, seed 2",
    ]  # fmt: skip
    assert not list(tmp_path.iterdir())
