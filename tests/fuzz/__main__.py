"""Fuzz the hypervisor: ``python -m fuzz --env pv64 --seed 1``, with tests/ on the path.

Each environment and seed has a process of its own. A failure may be the death of that process. A
failure is minimised, and written to a file that ``--replay FILE`` performs again. Once the bug is
mended, the file goes into tests/fuzz/regressions. The exit code is 1 if there was a failure.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

from fuzz import fresh, runner
from fuzz.engine import EngineWorld
from fuzz.minimise import minimise, replay
from fuzz.model import ModelWorld
from fuzz.model_pv import Pv32World, Pv64World
from fuzz.model_pvh import Pvh32World, Pvh64World
from fuzz.planted import FAULTS, planted
from fuzz.runner import Failure, Found, Report
from fuzz.world import World
from xenemu.abi.errno import NAMES

MIB = 1 << 20
WORLDS: dict[str, type[ModelWorld]] = {
    world.environment: world for world in (Pv64World, Pv32World, Pvh64World, Pvh32World)
}
ENVIRONMENTS = tuple(WORLDS)
DEFAULT_STEPS = {"model": 10_000, "engine": 1_000}
PLANTED_STEPS = 100_000


def make_world(environment: str, backend: str, vcpus: int = 1) -> World:
    """A world of an environment on a backend, where so many vcpus run."""
    if backend == "model":
        return WORLDS[environment](vcpus)
    return EngineWorld(environment, vcpus)


def load(path: Path) -> tuple[World, list[dict[str, Any]]]:
    """The world and the steps of a file that was written for a failure."""
    found = json.loads(path.read_text())
    world = make_world(found["environment"], found["backend"], found.get("vcpus", 1))
    return world, found["steps"]


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m fuzz", description="Fuzz the hypervisor.")
    parser.add_argument("--env", action="append", choices=ENVIRONMENTS, help="default: all")
    parser.add_argument("--backend", choices=("model", "engine"), default="model")
    parser.add_argument("--vcpus", type=int, choices=range(1, 5), default=1, help="1 to 4")
    parser.add_argument("--steps", type=int, help="of each environment")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--seeds", type=int, default=1, help="so many, from that one on")
    parser.add_argument("--seconds", type=float, help="stop after so much time")
    parser.add_argument("--jobs", type=int, default=2, help="environments and seeds at a time")
    parser.add_argument("--keep-going", action="store_true", help="look for further failures")
    parser.add_argument("--out", type=Path, default=Path(), help="the folder for failures")
    parser.add_argument("--brief", action="store_true", help="a line for each run that is clean")
    parser.add_argument("--planted", action="store_true", help="see that planted faults are found")
    parser.add_argument("--replay", type=Path, metavar="FILE", help="perform a file's steps")
    options = parser.parse_args(arguments)
    options.env = options.env or list(ENVIRONMENTS)
    usual = PLANTED_STEPS if options.planted else DEFAULT_STEPS[options.backend]
    options.steps = options.steps or usual
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Fuzz, or replay."""
    options = parse(arguments)
    if options.replay is not None:
        failure = replay(*load(options.replay))
        print("nothing fails" if failure is None else f"{failure.kind}\n{failure.detail}")
        return int(failure is not None)
    if options.planted:
        return _look_for_planted(options)
    runs = list(product(range(options.seed, options.seed + options.seeds), options.env))
    if len(runs) == 1:
        return _fuzz(options, options.env[0])
    with ThreadPoolExecutor(options.jobs) as pool:
        failed = sum(pool.map(lambda run: _in_a_process(options, *run), runs))
    print(f"{len(runs)} runs of up to {options.steps} steps: {failed or 'none'} failed")
    return int(failed > 0)


def _look_for_planted(options: argparse.Namespace) -> int:
    """Plant each fault, and fuzz its environment; say when it is found."""
    missed = 0
    for fault in FAULTS:
        world = make_world(fault.environment, "model", fault.vcpus)
        with planted(fault):
            report = fresh.call(partial(runner.run, world, options.seed, options.steps))
        how = "; ".join(report.found) or "MISSED"
        missed += not report.found
        print(f"{fault.environment}: {fault.what}\n  {report.steps} steps: {how}", flush=True)
    print(f"{len(FAULTS)} faults: {missed or 'none'} missed in {options.steps} steps")
    return int(missed > 0)


def _in_a_process(options: argparse.Namespace, seed: int, env: str) -> bool:
    """Fuzz one environment from one seed; whether something failed."""
    command = [sys.executable, "-m", "fuzz", "--env", env, "--backend", options.backend]
    command += ["--vcpus", str(options.vcpus)]
    command += ["--steps", str(options.steps), "--seed", str(seed), "--out", str(options.out)]
    command += ["--seconds", str(options.seconds)] if options.seconds else []
    command += ["--keep-going"] if options.keep_going else []
    command += ["--brief"] if options.brief or options.seeds > 1 else []
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    print(result.stdout + result.stderr, end="", flush=True)
    return result.returncode != 0


def _fuzz(options: argparse.Namespace, env: str) -> int:
    world = make_world(env, options.backend, options.vcpus)
    name = f"fuzz-{env}-{options.backend}-{options.vcpus}-{options.seed}"
    report = _run(options, world, options.out / f"{name}-journal.jsonl")
    title = f"{env}, {options.backend}, seed {options.seed}"
    title += f", {options.vcpus} vcpus" if options.vcpus > 1 else ""
    _tell(title, report, brief=options.brief)
    grown = runner.growth(report)
    if grown > world.growth_limit:
        print(f"  FAILED: the process grew by {grown >> 20} MiB")
    for number, found in enumerate(report.found.values(), 1):
        print(f"  FAILED: {found.failure.kind}")
        fewest, again = minimise(world, options.seed, found)
        path = options.out / f"{name}-{number}.json"
        shown = again or found.failure
        kept = {"environment": env, "backend": options.backend, "vcpus": options.vcpus}
        kept |= {"failure": shown.kind}
        path.write_text(json.dumps(kept | {"steps": fewest}, indent=1) + "\n")
        print("    " + "\n    ".join(shown.detail.splitlines()[-12:]))
        how = "" if again else ", which do not fail again: it depends on the host"
        print(f"    {len(fewest)} steps{how}: python -m fuzz --replay {path}")
    return int(bool(report.found) or grown > world.growth_limit)


def _run(options: argparse.Namespace, world: World, journal: Path) -> Report:
    """Fuzz a copy of a world. Its death is a failure, too, of the steps that it wrote down."""
    try:
        return fresh.call(
            lambda: runner.run(
                world,
                options.seed,
                options.steps,
                options.seconds,
                options.keep_going,
                journal,
            )
        )
    except fresh.Died as death:
        return _last_report(journal, Failure(f"the process {death}", f"the process {death}"))
    finally:
        journal.unlink(missing_ok=True)


def _last_report(journal: Path, failure: Failure) -> Report:
    """A report of a run whose process died."""
    lines = [json.loads(line) for line in journal.read_text().splitlines()]
    life = lines[0]["life"]
    found = {failure.kind: Found(failure, lines[1:], life)}
    return Report(lines[0]["steps"] + len(lines[1:]), life, found=found)


def _tell(title: str, report: Report, brief: bool) -> None:
    """Print what a run did."""
    rate = report.steps / max(report.cpu_s, 0.001)
    line = f"{title}: {report.steps} steps in {report.cpu_s:.1f} s of CPU, {rate:.0f}/s"
    if brief:
        calls, grown = sum(report.results.values()), runner.growth(report) / MIB
        print(f"{line}; {report.lives} lives, {calls} hypercalls, {grown:+.1f} MiB")
        return
    print(line)
    results = [f"{report.results[0]} done", f"{report.results[1]} continued"]
    refused = sorted((-number, count) for number, count in report.results.items() if number < 0)
    results += [f"{NAMES.get(errno, errno)} {count}" for errno, count in refused]
    print(f"  hypercalls: {', '.join(results)}")
    print(f"  slowest hypercall: {report.slowest[0] * 1000:.0f} ms, {report.slowest[1]}")
    if report.rss:
        first, last = report.rss[0] / MIB, report.rss[-1] / MIB
        print(f"  memory: {first:.0f} MiB after the first life, {last:.0f} MiB in the end")
    print(f"  {report.lives} lives; ended by")
    for what, count in report.crashes.most_common():
        print(f"    {count:6} {what}")


if __name__ == "__main__":
    sys.exit(main())
