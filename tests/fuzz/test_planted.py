"""The fuzzer is worth running: a fault that is planted is noticed, and nothing is without it."""

from __future__ import annotations

import pytest

from fuzz import runner
from fuzz.__main__ import make_world
from fuzz.planted import FAULTS, Fault, planted

LIVES, STEPS = 40, 60


@pytest.fixture(scope="module")
def worlds():
    return {
        kind: make_world(kind[0], "model", kind[1])
        for kind in {(fault.environment, fault.vcpus) for fault in FAULTS}
    }


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.what)
def test_the_recipe_for_it_finds_a_planted_fault(fault: Fault, worlds) -> None:
    world = worlds[fault.environment, fault.vcpus]
    assert first_failure(world, fault, 3) is None
    with planted(fault):
        assert first_failure(world, fault, LIVES) is not None


def first_failure(world, fault, lives):
    for number in range(1, lives + 1):
        failure, _ = runner.live(world, 1, number, STEPS, only=fault.recipe)
        if failure is not None:
            print(number, failure)
            return failure
    return None
