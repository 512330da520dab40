"""A short fuzz of every environment on both backends; `make fuzz` does longer ones."""

from __future__ import annotations

import pytest

from fuzz import runner
from fuzz.__main__ import ENVIRONMENTS, make_world
from fuzz.world import Step
from xenemu.errors import DomainCrash

STEPS = {"model": 2000, "engine": 500}
SEED = 20


@pytest.mark.parametrize("environment", ENVIRONMENTS)
@pytest.mark.parametrize("backend", STEPS)
def test_nothing_that_a_guest_does_is_a_bug_of_ours(backend, environment):
    report = runner.run(make_world(environment, backend), SEED, STEPS[backend])
    assert report.steps == STEPS[backend]
    assert {kind: found.detail for kind, (found, _) in report.failures.items()} == {}


def test_a_seed_always_does_the_same():
    first, second = (make_world("pv64", "model") for _ in range(2))
    for world in (first, second):
        runner.run(world, SEED, 500)
    assert first.table.results == second.table.results
    assert bytes(first.current.domain.memory.bytes) == bytes(second.current.domain.memory.bytes)


# What the fuzzer is good for: it notices, and says so in few steps.


class Broken:
    """A world with a bug: two steps in this order, with any others between them."""

    environment, hang_s, audit_every = "pv64", 0.02, 100

    def __init__(self, ends):
        self.table = make_world("pv64", "model").table
        self.ends, self.seen = ends, 0

    def restart(self):
        self.seen = 0

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


@pytest.mark.parametrize(
    ("ends", "kind"),
    [
        ("audit", "audit: N frames are lost"),
        (raise_key_error, "KeyError in "),
        (spin, "hang in "),
    ],
)
def test_the_fewest_steps_are_found(ends, kind):
    steps: list[Step] = [{"kind": "call", "n": n, "data": []} for n in range(10)]
    fewest, failure = runner.minimise(Broken(ends), steps)
    assert fewest == [{"kind": "call", "n": 3}, {"kind": "call", "n": 6}]
    assert failure is not None
    assert failure.kind.startswith(kind)


def test_a_crash_of_the_guest_is_no_failure():
    world = Broken(crash)
    steps: list[Step] = [{"n": 3}, {"n": 6}]
    assert runner.replay(world, steps) is None
    assert world.seen == 0  # it began again
