"""Put what was measured into the documents: tables between markers, and pictures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from bench import gate, goals, pictures, report
from bench.groups import GROUPS
from bench.measure import BenchError
from bench.results import ROOT, Record

GOALS: Final = "goals"
PICTURES: Final = Path("docs/pictures")


def blocks(records: Mapping[str, Record]) -> dict[str, str]:
    """What each place of a document gets, by the name in its marker."""
    found = {GOALS: goals.table(records)} if records else {}
    if gate.FILE.exists():
        stored, told = gate.read()
        found["gate"] = f"{gate.table(stored)}\n\nMeasured of {told}."
    for name, record in records.items():
        if name in GROUPS:
            found[name] = f"{GROUPS[name].table(record.figures)}\n\n{record.conditions()}"
    return found


def update(records: Mapping[str, Record], root: Path = ROOT) -> Iterator[Path]:
    """Rewrite documents and pictures; give the paths of those that changed."""
    found = blocks(records)
    for path in (root / "README.md", *sorted((root / "docs").glob("*.md"))):
        text = path.read_text()
        for name, block in found.items():
            if report.has_block(text, name):
                try:
                    text = report.replace_block(text, name, block)
                except BenchError as error:
                    raise BenchError(f"{path}: {error}") from None
        yield from _write(path, text)
    (root / PICTURES).mkdir(exist_ok=True)
    for name, picture in pictures.draw(records).items():
        yield from _write(root / PICTURES / f"{name}.svg", picture)


def _write(path: Path, text: str) -> Iterator[Path]:
    if not path.exists() or path.read_text() != text:
        path.write_text(text)
        yield path
