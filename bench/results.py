"""Keep what was measured: ``results.json``, which git keeps the past of."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from bench.measure import BenchError
from bench.rows import Figures, Samples

ROOT: Final = Path(__file__).parents[1]
FILE: Final = Path(__file__).with_name("results.json")
MEASURED: Final = ("xenemu", "hypercalls", "guests")
BUSY: Final = 1.0  # a load, before anything is measured, of which a table tells


@dataclass(frozen=True)
class Record:
    """A group that was measured: when, of which commit, on what, and the samples."""

    at: str
    commit: str
    python: str
    processor: str
    cpus: int
    load: float  # of the minute before it began
    versions: Mapping[str, str]  # of the peers
    rounds: int
    samples: Samples

    @property
    def figures(self) -> Figures:
        """Its medians."""
        return Figures(self.samples)

    def conditions(self) -> str:
        """Say in a sentence or two what was measured, on what."""
        how = f"medians of {self.rounds} by turns" if self.rounds > 1 else "one run"
        peers = "".join(f", {name} {version}" for name, version in self.versions.items())
        load = f" Others used the machine, too (load {self.load:.1f})." * (self.load > BUSY)
        return (
            f"{self.at[:10]}, commit {self.commit}, Python {self.python}{peers}; {how}, on"
            f" {self.cpus} CPUs of {self.processor}.{load}"
        )


def record(samples: Samples, versions: Mapping[str, str], load: float, rounds: int) -> Record:
    """What was measured just now, with what it was measured of."""
    rounded = {
        row: {name: [float(f"{value:.5g}") for value in values] for name, values in columns.items()}
        for row, columns in samples.items()
    }
    return Record(
        at=datetime.now(UTC).isoformat(timespec="seconds"),
        commit=_commit(),
        python=platform.python_version(),
        processor=_processor(),
        cpus=os.cpu_count() or 1,
        load=round(load, 1),
        versions=versions,
        rounds=rounds,
        samples=rounded,
    )


def machine() -> str:
    """The processor and the Python here."""
    return f"{_processor()}, Python {platform.python_version()}"


def _commit() -> str:
    """The commit, with a + if what is measured was changed since."""
    commit = _git("rev-parse", "--short", "HEAD")
    changed = _git("status", "--porcelain", "--untracked-files=no", "--", *MEASURED)
    return f"{commit}{'+' * bool(changed)}" if commit else "unknown"


def load(file: Path = FILE) -> dict[str, Record]:
    """Read all groups; BenchError: the file cannot be read or is none of ours."""
    try:
        return _parse(file.read_text()) if file.exists() else {}
    except OSError as error:
        raise BenchError(f"{file}: {error.strerror}") from None
    except ValueError:
        raise BenchError(f"{file}: not what `python -m bench measure` writes") from None


def _parse(text: str) -> dict[str, Record]:
    try:
        return {name: Record(**group) for name, group in json.loads(text).items()}
    except (TypeError, AttributeError) as error:
        raise ValueError(str(error)) from None


def store(name: str, group: Record, file: Path = FILE) -> None:
    """Put a group in the place of what was measured of it before."""
    groups = load(file) | {name: group}
    lines = (f"{json.dumps(key)}: {_dump(value)}" for key, value in sorted(groups.items()))
    draft = file.with_suffix(".new")
    draft.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    draft.replace(file)


def _dump(group: Record) -> str:
    """A line for each row, so that git shows what changed."""
    fields = asdict(group)
    rows = fields.pop("samples")
    lines = ",\n    ".join(f"{json.dumps(row)}: {json.dumps(rows[row])}" for row in rows)
    return f'{json.dumps(fields)[:-1]}, "samples": {{\n    {lines}}}}}'


def compare(revision: str, file: Path = FILE) -> Iterator[str]:
    """Say how each median differs from what `revision` has of the file, a line each."""
    text = _git("show", f"{revision}:./{file.name}", folder=file.parent)
    try:
        before = _parse(text or "")
    except ValueError:
        raise BenchError(f"{revision} has no {file.name} that can be compared") from None
    for name, group in load(file).items():
        if name not in before or before[name].at == group.at:
            continue
        old = before[name]
        yield f"{name}: {old.commit} ({old.at}) -> {group.commit} ({group.at})"
        for row, columns in group.samples.items():
            for figure in columns:
                new, past = group.figures.median(row, figure), old.figures.median(row, figure)
                if new is not None and past:
                    yield f"{new / past:6.2f}  {row}, {figure}: {past:g} -> {new:g}"
                else:
                    yield f"   new  {row}, {figure}: {new:g}"


def _git(*words: str, folder: Path = ROOT) -> str | None:
    command = ("git", "-C", str(folder), *words)
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            return value.strip()
    return "an unnamed processor"
