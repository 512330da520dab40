"""Fuzz the hypervisor: ``python -m fuzz --env pv64 --seed 1``, with tests/ on the path.

Each environment has a process of its own. A failure is minimised, and written to a file that
``--replay FILE`` performs again; once it is mended, the file belongs into tests/fuzz/regressions.
The exit code is 1 if there was one.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from fuzz import runner
from fuzz.engine import EngineWorld
from fuzz.model import WORLDS
from fuzz.world import World
from xenemu.abi.errno import NAMES

MIB = 1 << 20
ENVIRONMENTS = tuple(WORLDS)
DEFAULT_STEPS = {"model": 10_000, "engine": 1_000}


def make_world(environment: str, backend: str) -> World:
    """A world of an environment on a backend."""
    world: World = WORLDS[environment]() if backend == "model" else EngineWorld(environment)
    return world


def load(path: Path) -> tuple[World, list[dict[str, Any]]]:
    """The world and the steps of a file that was written for a failure."""
    found = json.loads(path.read_text())
    return make_world(found["environment"], found["backend"]), found["steps"]


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m fuzz", description="Fuzz the hypervisor.")
    parser.add_argument("--env", action="append", choices=ENVIRONMENTS, help="default: all")
    parser.add_argument("--backend", choices=("model", "engine"), default="model")
    parser.add_argument("--steps", type=int, help="of each environment")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--seconds", type=float, help="stop after so much time")
    parser.add_argument("--jobs", type=int, default=2, help="environments at a time")
    parser.add_argument("--keep-going", action="store_true", help="look for further failures")
    parser.add_argument("--out", type=Path, default=Path(), help="the folder for failures")
    parser.add_argument("--replay", type=Path, metavar="FILE", help="perform a file's steps")
    options = parser.parse_args(arguments)
    options.env = options.env or list(ENVIRONMENTS)
    options.steps = options.steps or DEFAULT_STEPS[options.backend]
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Fuzz, or replay."""
    options = parse(arguments)
    if options.replay is not None:
        failure = runner.replay(*load(options.replay))
        print("nothing fails" if failure is None else f"{failure.kind}\n{failure.detail}")
        return int(failure is not None)
    if len(options.env) > 1:
        with ThreadPoolExecutor(options.jobs) as pool:
            codes = list(pool.map(lambda env: _in_a_process(options, env), options.env))
        return int(any(codes))
    return _fuzz(options, options.env[0])


def _in_a_process(options: argparse.Namespace, env: str) -> int:
    """Fuzz one environment where it can do no harm; say so if the process dies."""
    command = [sys.executable, "-m", "fuzz", "--env", env, "--backend", options.backend]
    command += ["--steps", str(options.steps), "--seed", str(options.seed)]
    command += ["--out", str(options.out)]
    command += ["--seconds", str(options.seconds)] if options.seconds else []
    command += ["--keep-going"] if options.keep_going else []
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    print(result.stdout + result.stderr, end="", flush=True)
    if result.returncode < 0:
        journal = _journal(options, env)
        print(f"{env}: the process died of signal {-result.returncode}; its steps: {journal}")
    return result.returncode


def _journal(options: argparse.Namespace, env: str) -> Path:
    return Path(options.out / f"fuzz-{env}-{options.backend}-journal.jsonl")


def _fuzz(options: argparse.Namespace, env: str) -> int:
    world = make_world(env, options.backend)
    first = runner.rss()
    journal = _journal(options, env) if options.backend == "engine" else None
    report = runner.run(
        world, options.seed, options.steps, options.seconds, options.keep_going, journal
    )
    if journal is not None:
        journal.unlink()
    _tell(f"{env}, {options.backend}", world, report, first)
    grown = runner.growth(report)
    if grown > world.growth_limit:
        print(f"  FAILED: the process grew by {grown >> 20} MiB")
    for number, (failure, steps) in enumerate(report.failures.values(), 1):
        print(f"  FAILED: {failure.kind}")
        fewest, again = runner.minimise(world, steps)
        path = options.out / f"fuzz-{env}-{options.backend}-{options.seed}-{number}.json"
        kept = {"environment": env, "backend": options.backend, "failure": failure.kind}
        path.write_text(json.dumps(kept | {"steps": fewest}, indent=1) + "\n")
        shown = again or failure
        print("    " + "\n    ".join(shown.detail.splitlines()[-12:]))
        print(f"    {len(fewest)} of {len(steps)} steps: python -m fuzz --replay {path}")
    return int(bool(report.failures) or grown > world.growth_limit)


def _tell(title: str, world: World, report: runner.Report, first: int) -> None:
    """Print what a run did."""
    table, last = world.table, report.rss[-1]
    rate = report.steps / max(report.cpu_s, 0.001)
    print(f"{title}: {report.steps} steps in {report.cpu_s:.1f} s of CPU, {rate:.0f}/s")
    results = [f"{table.results[0]} done", f"{table.results[1]} continued"]
    refused = sorted((-number, count) for number, count in table.results.items() if number < 0)
    results += [f"{NAMES.get(errno, errno)} {count}" for errno, count in refused]
    print(f"  hypercalls: {', '.join(results)}")
    print(f"  slowest hypercall: {table.slowest[0] * 1000:.0f} ms, {table.slowest[1]}")
    print(f"  memory: {first / MIB:.0f} MiB at first, {last / MIB:.0f} MiB in the end")
    print(f"  {report.lives} lives; ended by")
    for what, count in report.crashes.most_common():
        print(f"    {count:6} {what}")


if __name__ == "__main__":
    sys.exit(main())
