"""Has a change made something slower? ``python -m bench gate``, or ``make bench-gate``.

A few rows are measured by turns with `calibration.py`, a fixed piece of work, and in units of it:
the least of a row by the least of that work, because others on the machine only add to either. So
another machine, or a busy one, gives much the same figures. Each is held against the one that
``gate.json`` has. It fails where it is larger by more than twice the noise: the noise is what
``gate --store`` has seen the same code differ from itself in several measurements. What fails is
measured as often again before it is called slower.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from bench import files, micro, report, results
from bench.files import XENEMU
from bench.measure import EXIT, BenchError, measure
from bench.rows import Row
from guests.initramfs import DEFAULT_INIT

FILE: Final = Path(__file__).with_name("gate.json")
ROUNDS: Final = 7
TIMES: Final = 5  # that `--store` measures the same code
LEAST_NOISE: Final = 0.03  # what luck may have hidden from `--store`
FACTOR: Final = 1000  # of the counts of guests/micro-costs
CALIBRATION: Final = "calibration"
OPERATIONS: Final = {
    "pv64": ("hypercall", "page fault", "mmu_update of 128", "address space"),
    "pv32": ("hypercall", "page fault", "mmu_update of 128", "address space"),
    "pvh64": ("hypercall", "event upcall"),
}


@dataclass(frozen=True)
class Stored:
    """What a row is held against: a multiple of the calibration, and how steady it is."""

    multiple: float
    noise: float

    @property
    def most(self) -> float:
        """What passes."""
        return self.multiple * (1 + 2 * max(self.noise, LEAST_NOISE))


@dataclass(frozen=True)
class Verdict:
    """A row, as it was measured, and what it is held against."""

    row: str
    multiple: float
    stored: Stored

    @property
    def word(self) -> str:
        """What is said of it."""
        if self.multiple > self.stored.most:
            return "SLOWER"
        least = self.stored.multiple**2 / self.stored.most
        return "faster" if self.multiple < least else "ok"

    def __str__(self) -> str:
        ratio, most = (value / self.stored.multiple for value in (self.multiple, self.stored.most))
        return f"{self.word:6} {ratio:5.2f} of what is stored (fails above {most:.2f})  {self.row}"


def main(store: bool) -> int:
    """Measure, print a line for each row, and what to do; 1 if something is slower."""
    with tempfile.TemporaryDirectory(prefix="xenemu-gate-") as name:
        folder = Path(name)
        rows = prepare(folder)
        if store:
            times = [multiples(measured(rows, ROUNDS, folder)) for _ in range(TIMES)]
            _write(noise_of(times))
            return 0
        stored, told = read()
        costs = measured(rows, ROUNDS, folder)
        verdicts = judge(multiples(costs), stored)
        slow = {verdict.row for verdict in verdicts if verdict.word == "SLOWER"}
        if slow:
            again = [row for row in rows if slow & set(row_names(row))]
            print("once more: " + ", ".join(row.name for row in again), file=sys.stderr)
            more = measured(again, ROUNDS, folder)
            verdicts = judge(multiples({name: [*costs[name], *more.get(name, ())]
                                        for name in costs}), stored)  # fmt: skip
    print("\n".join(map(str, verdicts)))
    print(advice(verdicts, told))
    load = os.getloadavg()[0]
    if load > 1 + (os.cpu_count() or 1):  # our own work is one
        print(f"Others use this machine (load {load:.1f}), which makes more noise than is stored.")
    if not told.endswith(results.machine()):
        print(f"This is another machine, or another Python: {results.machine()}. To be sure, store"
              " with `python -m bench gate --store` at the commit before the change.")  # fmt: skip
    return any(verdict.word == "SLOWER" for verdict in verdicts)


def prepare(folder: Path) -> list[Row]:
    """Write the files, and run each row once, so that the caches are filled."""
    hello = files.put_guest(folder, "hello", "pv64")
    (folder / "vmlinuz").symlink_to(files.image(files.CLOUD).path)
    files.put_initrd(folder, DEFAULT_INIT.read_bytes())
    boot = "run --memory 256M vmlinuz --initrd initrd.gz --cmdline console=hvc0 --mode"
    rows = [
        _whole("hello", ("run", "--memory", "64M", hello)),
        _whole("PVH boot", (*boot.split(), "pvh")),
        _whole("PV boot", (*boot.split(), "pv")),
        *(_operations(kind, folder) for kind in OPERATIONS),
    ]
    for row in rows:
        row.figures(folder)
    return rows


def _whole(name: str, words: Sequence[str]) -> Row:
    def run(folder: Path) -> Mapping[str, float]:
        return {name: measure((*XENEMU, *words), folder, files.environment(), {}).at[EXIT].cpu}

    return Row(name, run)


def _operations(kind: str, folder: Path) -> Row:
    guest = files.put_guest(folder, micro.GUEST, kind)
    words = micro.command(kind, guest, micro.MEMORY_MIB, FACTOR)

    def run(where: Path) -> Mapping[str, float]:
        costs = micro.costs(kind, words, where, FACTOR)
        return {f"{name}, {kind}": costs[name] for name in OPERATIONS[kind]}

    return Row(kind, run)


def row_names(row: Row) -> list[str]:
    """The names under which what a row measures is stored."""
    return [f"{name}, {row.name}" for name in OPERATIONS.get(row.name, ())] or [row.name]


def measured(rows: Sequence[Row], rounds: int, folder: Path) -> dict[str, list[float]]:
    """What each figure was in each round, and the calibration twice in each."""
    found: dict[str, list[float]] = {CALIBRATION: []}
    for number in range(1, rounds + 1):
        for row in rows:
            for name, value in row.figures(folder).items():
                found.setdefault(name, []).append(value)
            if row in (rows[0], rows[len(rows) // 2]):
                found[CALIBRATION].append(calibrate(folder))
        print(f"round {number} of {rounds}", file=sys.stderr, flush=True)
    return found


def multiples(costs: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """The least of each figure, in units of the least calibration."""
    unit = min(costs[CALIBRATION])
    return {name: min(values) / unit for name, values in costs.items() if name != CALIBRATION}


def calibrate(folder: Path) -> float:
    """CPU seconds of the fixed work."""
    command = (sys.executable, "-m", "bench.calibration")
    return measure(command, folder, files.environment(), {}).at[EXIT].cpu


def noise_of(times: Sequence[Mapping[str, float]]) -> dict[str, Stored]:
    """What is stored: the median of several measurements, and the farthest that one was off."""
    found = {}
    for name in times[0]:
        values = [time[name] for time in times]
        middle = statistics.median(values)
        noise = max(max(value / middle, middle / value) - 1 for value in values)
        found[name] = Stored(float(f"{middle:.4g}"), float(f"{noise:.3f}"))
    return found


def judge(found: Mapping[str, float], stored: Mapping[str, Stored]) -> list[Verdict]:
    """Hold each figure against what is stored; BenchError: nothing is."""
    for name in found:
        if name not in stored:
            raise BenchError(f"{FILE.name} has no {name!r}: python -m bench gate --store")
    return [Verdict(name, value, stored[name]) for name, value in found.items()]


def advice(verdicts: Sequence[Verdict], told: str) -> str:
    """What to do now."""
    words = [verdict.word for verdict in verdicts]
    if "SLOWER" in words:
        return (
            f"SLOWER, twice, than {told}. Look for the change: git bisect run make bench-gate."
            " If the cost is meant: python -m bench gate --store, and commit bench/gate.json"
            " with the reason."
        )
    if "faster" in words:
        return "Faster: python -m bench gate --store, and commit bench/gate.json, so that it stays."
    return f"As fast as {told}."


def read(file: Path = FILE) -> tuple[dict[str, Stored], str]:
    """What is stored, and of what it was measured; BenchError: nothing is."""
    try:
        data = json.loads(file.read_text())
        rows = {name: Stored(**row) for name, row in data["rows"].items()}
        return rows, f"{data['commit']} on {data['machine']}"
    except OSError as error:
        raise BenchError(f"{file}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise BenchError(f"{file}: not what `python -m bench gate --store` writes") from None


def table(stored: Mapping[str, Stored]) -> str:
    """What is stored: a line for each row."""
    lines = [["row", "calibrations; of an operation, billionths", "noise", "fails above"]]
    for name, row in stored.items():
        multiple = f"{row.multiple:.0f}" if row.multiple > 100 else f"{row.multiple:.2f}"
        lines.append([name, multiple, f"{row.noise:.1%}", f"{row.most / row.multiple:.2f} of it"])
    return report.markdown(lines, names=1)


def _write(rows: Mapping[str, Stored], file: Path = FILE) -> None:
    now = results.record({}, {}, 0.0, ROUNDS)
    data = {"at": now.at, "commit": now.commit, "machine": results.machine()}
    lines = (f"  {json.dumps(name)}: {json.dumps(asdict(row))}" for name, row in rows.items())
    text = json.dumps(data)[:-1] + ', "rows": {\n' + ",\n".join(lines) + "\n}}\n"
    json.loads(text)
    file.write_text(text)
    print(text, end="")
