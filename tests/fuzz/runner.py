"""Perform steps, notice what must not happen, and find the fewest steps that make it happen."""

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
from typing import Any, TextIO

from fuzz.steps import Steps
from fuzz.world import Step, World
from xenemu.errors import DomainCrash

HANG_S = 1.0  # CPU time that no hypercall may take
LIFE = 400  # steps until the world begins again, whatever happened
PAGE = 4096


@dataclass(frozen=True)
class Failure:
    """What went wrong: the same `kind` is the same bug, as far as one can tell."""

    kind: str
    detail: str


class Hang(BaseException):
    """A step took too long; no handler of the hypervisor's catches it."""


@dataclass
class Report:
    """What a run did."""

    steps: int = 0
    lives: int = 0
    crashes: Counter[str] = field(default_factory=Counter)
    cpu_s: float = 0.0
    rss: list[int] = field(default_factory=list)
    failures: dict[str, tuple[Failure, list[Step]]] = field(default_factory=dict)


def _alarm(*_: object) -> None:
    raise Hang


def attempt(world: World, step: Step, report: Report | None = None) -> Failure | None:
    """Do one step. A domain that crashes is replaced; a Failure is a bug."""
    signal.setitimer(signal.ITIMER_VIRTUAL, world.hang_s)
    try:
        world.perform(step)
    except DomainCrash as crash:
        if report is not None:
            report.crashes[f"{type(crash).__name__}: {_general(str(crash))}"] += 1
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        failure = audit(world)
        world.restart()
        return failure
    except Hang:
        return Failure(f"hang in {_where_now()}", traceback.format_exc())
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        last = next((f for f in reversed(frames) if "/fuzz/" not in f.filename), frames[-1])
        place = f"{Path(last.filename).name}:{last.name}"
        return Failure(f"{type(error).__name__} in {place}", traceback.format_exc())
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    took, what = world.table.slowest
    return Failure("slow hypercall", f"{took:.1f} s: {what}") if took > HANG_S else None


def _where_now() -> str:
    lines = [line for line in traceback.format_exc().splitlines() if line.startswith("  File")]
    return lines[-1].split("/")[-1] if lines else "?"


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

    The steps since the world began are in `journal`, should the process itself die.
    """
    signal.signal(signal.SIGVTALRM, _alarm)
    report = Report()
    started = time.process_time()
    ends = None if deadline_s is None else time.monotonic() + deadline_s
    while report.steps < steps and (ends is None or time.monotonic() < ends):
        report.lives += 1
        with nullcontext() if journal is None else journal.open("w") as log:
            drawn = Steps(f"{seed}.{report.lives}", world)
            failure, done = _live(world, drawn, min(LIFE, steps - report.steps), report, log)
        report.rss.append(rss())
        if failure is not None:
            world.restart()
            report.failures.setdefault(failure.kind, (failure, done))
            if not keep_going:
                break
    report.cpu_s = time.process_time() - started
    return report


def _live(
    world: World, drawn: Steps, most: int, report: Report, log: TextIO | None
) -> tuple[Failure | None, list[Step]]:
    """Do steps until the domain ends; the failure, if there was one, and the steps."""
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
        if failure is None and len(done) % world.audit_every == 0:
            failure = audit(world)
        if failure is not None or report.crashes.total() != ended:
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
    """Perform steps from the start, with an audit after each."""
    signal.signal(signal.SIGVTALRM, _alarm)
    world.restart()
    for step in steps:
        failure = attempt(world, step) or audit(world)
        if failure is not None:
            world.restart()
            return failure
    return None


def minimise(world: World, steps: Sequence[Step]) -> tuple[list[Step], Failure | None]:
    """The fewest of the steps, and the shortest, that fail as all of them do; and how.

    With an audit after each step, that may be another failure than the one that was noticed. None:
    they do not fail again.
    """
    best, found = list(steps), replay(world, steps)
    if found is None:
        return best, None
    kind = found.kind

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
        for simpler in _simpler(step):
            candidate = [*best[:n], simpler, *best[n + 1 :]]
            if fails(candidate):
                best = candidate
    return best, found


def _simpler(step: Step) -> list[dict[str, Any]]:
    """The step with less in it."""
    return [
        {key: value for key, value in step.items() if key != left_out}
        for left_out in ("data", "user", "input", "rsp")
        if left_out in step
    ]
