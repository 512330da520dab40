"""Perform steps, and notice what must not happen."""

from __future__ import annotations

import json
import re
import signal
import time
import traceback
from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

from fuzz.recipes import Recipe
from fuzz.steps import Steps
from fuzz.world import RESTART, WORK, Step, World
from xenemu.errors import DomainCrash

HANG_S = 1.0  # CPU time that no hypercall may take
STUCK = 4  # times that a step may take what is a hang before its process is ended
LIFE = 400  # steps until the world begins again, whatever happened
PAGE = 4096


@dataclass(frozen=True)
class Failure:
    """What went wrong: the same `kind` is the same bug, as far as one can tell."""

    kind: str
    detail: str


class Hang(BaseException):
    """A step took too long; no handler of the hypervisor's catches it."""


@dataclass(frozen=True)
class Found:
    """A failure, the steps of the life that ended with it, and that life's number."""

    failure: Failure
    steps: list[Step]
    life: int


@dataclass
class Report:
    """What a run did."""

    steps: int = 0
    lives: int = 0
    crashes: Counter[str] = field(default_factory=Counter)
    cpu_s: float = 0.0
    rss: list[int] = field(default_factory=list)
    found: dict[str, Found] = field(default_factory=dict)  # by kind
    results: Counter[int] = field(default_factory=Counter)  # of hypercalls
    slowest: tuple[float, str] = (0.0, "none")


def _alarm(*_: object) -> None:
    raise Hang


signal.signal(signal.SIGVTALRM, _alarm)


def attempt(world: World, step: Step, report: Report | None = None) -> Failure | None:
    """Do one step. A domain that crashes is replaced; a Failure is a bug."""
    if step.get("kind") == RESTART:
        world.restart()
        return None
    if step.get("kind") == WORK:
        world.table.work = step["units"]
        return None
    _set_alarm(world.hang_s)
    try:
        world.perform(step)
    except DomainCrash as crash:
        if report is not None:
            report.crashes[f"{type(crash).__name__}: {_general(str(crash))}"] += 1
        _set_alarm(0)
        failure = audit(world)
        world.restart()
        return failure
    except Hang as hang:
        return Failure(f"hang in {_place(hang)}", traceback.format_exc())
    except Exception as error:
        return Failure(f"{type(error).__name__} in {_place(error)}", traceback.format_exc())
    finally:
        _set_alarm(0)
    took, what = world.table.slowest
    return Failure("slow hypercall", f"{took:.1f} s: {what}") if took > HANG_S else None


def _set_alarm(seconds: float) -> None:
    """Raise Hang after so much CPU time; end the process if it does not come back for that."""
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    signal.setitimer(signal.ITIMER_PROF, STUCK * seconds)


def _place(error: BaseException) -> str:
    """The innermost function on the way to an error that is not the fuzzer's own."""
    frames = traceback.extract_tb(error.__traceback__)
    last = next((f for f in reversed(frames) if "/fuzz/" not in f.filename), frames[-1])
    return f"{Path(last.filename).name}:{last.name}"


def _general(text: str) -> str:
    """A sentence without its numbers."""
    return re.sub(r"0x[0-9a-f]+|\d+", "N", text)[:110]


def audit(world: World) -> Failure | None:
    """A failure if the hypervisor's books are wrong."""
    faults = world.audit()
    if not faults:
        return None
    return Failure(f"audit: {_general(faults[0])}", "\n".join(faults[:20]))


def run(
    world: World,
    seed: int,
    steps: int,
    deadline_s: float | None = None,
    keep_going: bool = False,
    journal: Path | None = None,
) -> Report:
    """Do random steps; stop at the first failure unless told to keep going.

    `journal` has what was before the world began, and the steps since then, in case the process
    itself dies.
    """
    report = Report()
    started = time.process_time()
    ends = None if deadline_s is None else time.monotonic() + deadline_s
    while report.steps < steps and (ends is None or time.monotonic() < ends):
        report.lives += 1
        with nullcontext() if journal is None else journal.open("w") as log:
            if log is not None:
                log.write(json.dumps({"life": report.lives, "steps": report.steps}) + "\n")
            most = min(LIFE, steps - report.steps)
            failure, done = live(world, seed, report.lives, most, report, log)
        report.rss.append(rss())
        if failure is not None:
            report.found.setdefault(failure.kind, Found(failure, done, report.lives))
            if not keep_going:
                break
    report.cpu_s = time.process_time() - started
    report.results, report.slowest = world.table.results, world.table.slowest
    return report


def live(
    world: World,
    seed: int,
    number: int,
    most: int = LIFE,
    report: Report | None = None,
    log: TextIO | None = None,
    only: Recipe | None = None,
) -> tuple[Failure | None, list[Step]]:
    """Do random steps until the domain ends; a failure, if there was one, and the steps.

    If a recipe is given by `only`, the steps are of that recipe. The world begins again afterwards.
    """
    report = report or Report()
    drawn = Steps(f"{seed}.{number}", world, only)
    done: list[Step] = []
    while len(done) < most:
        step = drawn.draw()
        done.append(step)
        report.steps += 1
        if log is not None:
            log.write(json.dumps(step) + "\n")
            log.flush()
        ended = report.crashes.total()
        failure = attempt(world, step, report)
        if report.crashes.total() != ended:  # it has begun again
            return failure, done
        if failure is None and len(done) % world.audit_every == 0:
            failure = audit(world)
        if failure is not None:
            world.restart()
            return failure, done
    failure = audit(world)
    world.restart()
    return failure, done


def rss() -> int:
    """Bytes of memory that this process has now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE


def growth(report: Report) -> int:
    """By how much the process grew after a tenth of the run."""
    if len(report.rss) < 10:
        return 0
    return report.rss[-1] - report.rss[len(report.rss) // 10]


def replay(world: World, steps: Sequence[Step]) -> Failure | None:
    """Perform steps, with an audit after each since the world began for the last time."""
    last = max((n for n, step in enumerate(steps) if step.get("kind") == RESTART), default=-1)
    for n, step in enumerate(steps):
        failure = attempt(world, step) or (audit(world) if n >= last else None)
        if failure is not None:
            return failure
    return None
