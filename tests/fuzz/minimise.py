"""From a failure to the fewest steps that make it happen, in a process where nothing was before.

Each try is a fork of a process that has only made its world. So the steps that are found fail
wherever they are performed from the beginning, even if they kill the process.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from fuzz import fresh, runner
from fuzz.runner import Failure, Found
from fuzz.world import RESTART, Step, World


def replay(world: World, steps: Sequence[Step]) -> Failure | None:
    """What performing steps in a fresh process comes to; `world` is to be untouched, and stays."""
    try:
        return fresh.call(lambda: runner.replay(world, steps))
    except fresh.Died as death:
        return Failure(f"the process {death}", f"the process {death}, and says no more")


def minimise(world: World, seed: int, found: Found) -> tuple[list[Step], Failure | None]:
    """The fewest steps, and the shortest, that fail again, and how; None: they do not.

    With an audit after each step, that may be another failure than the one that was noticed.
    """
    for steps in _candidates(world, seed, found):
        failure = replay(world, steps)
        if failure is not None:
            return _shorten(world, steps, failure.kind), failure
    return found.steps, None


def _candidates(world: World, seed: int, found: Found) -> Iterator[list[Step]]:
    """The steps of the life that failed; if something is left of earlier ones, those too."""
    yield found.steps
    lives = _lives(world, seed, found.life - 1)
    tail, number = found.steps, 1
    while lives:
        for _ in range(number):
            if lives:
                tail = [*lives.pop(), {"kind": RESTART}, *tail]
        yield tail
        number *= 2


def _lives(world: World, seed: int, lives: int) -> list[list[Step]]:
    """The steps of the first lives of a seed, which are always the same."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "lives"
        try:
            fresh.call(lambda: _write_lives(world, seed, lives, path))
        except fresh.Died:
            return []
        return [json.loads(line) for line in path.read_text().splitlines()]


def _write_lives(world: World, seed: int, lives: int, path: Path) -> None:
    with path.open("w") as log:
        for number in range(1, lives + 1):
            log.write(json.dumps(runner.live(world, seed, number)[1]) + "\n")


def _shorten(world: World, steps: Sequence[Step], kind: str) -> list[Step]:
    best = list(steps)

    def fails(candidate: Sequence[Step]) -> bool:
        failure = replay(world, candidate)
        return failure is not None and failure.kind == kind

    size = max(1, len(best) // 2)
    while size:
        at = 0
        while at < len(best):
            shorter = best[:at] + best[at + size :]
            if shorter and fails(shorter):
                best = shorter
            else:
                at += size
        size //= 2
    for n, step in enumerate(best):
        for left_out in ("data", "user", "input", "rsp", "leave"):
            simpler = {key: value for key, value in best[n].items() if key != left_out}
            if left_out in step and fails([*best[:n], simpler, *best[n + 1 :]]):
                best[n] = simpler
    return best
