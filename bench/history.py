"""Keep what was measured, a line of JSON a time, and compare the last two."""

from __future__ import annotations

import json
import platform
import subprocess
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench.measure import BenchError


def append(file: Path, figures: Mapping[str, float]) -> None:
    """Add what was measured now, with the commit that it was measured of."""
    record = {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _commit(file.parent),
        "python": platform.python_version(),
        "figures": {name: round(value, 4) for name, value in figures.items()},
    }
    with file.open("a") as lines:
        lines.write(json.dumps(record) + "\n")


def _commit(folder: Path) -> str:
    command = ("git", "-C", folder, "describe", "--always", "--dirty")
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return result.stdout.strip()


def compare(file: Path) -> str:
    """Say how the last record differs from the one before; BenchError: there are no two."""
    try:
        records = [json.loads(line) for line in file.read_text().splitlines()]
        before, after = records[-2:]
        return "\n".join(_lines(before, after))
    except OSError as error:
        raise BenchError(f"{file}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise BenchError(f"{file}: not two records that can be compared") from None


def _lines(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[str]:
    yield f"{before['commit']} ({before['at']}) -> {after['commit']} ({after['at']})"
    for name, new in after["figures"].items():
        old = before["figures"].get(name)
        if old:
            yield f"{new / old:6.2f}  {name}: {old:g} -> {new:g}"
        else:
            yield f"   new  {name}: {new:g}"
