"""From figures to tables in Markdown, and from there into a document."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from bench.measure import BenchError
from bench.rows import Figures

Column = tuple[str, int]  # a figure, and the digits after its point


def plain(figures: Figures, columns: Sequence[Column], rows: Iterable[str] | None = None) -> str:
    """A line for each row, with the medians."""
    lines = [["", *(name for name, _ in columns)]]
    for row in figures.rows if rows is None else rows:
        lines.append([row, *(cell(figures.median(row, name), n) for name, n in columns)])
    return markdown(lines, names=1)


def cell(value: float | None, digits: int) -> str:
    """A number; nothing if there is none."""
    return "" if value is None else f"{value:.{digits}f}"


def markdown(lines: Sequence[Sequence[str]], names: int) -> str:
    """Lay out a table; the first columns are `names`, the others numbers."""
    widths = [max(map(len, cells)) for cells in zip(*lines, strict=True)]
    rule = ["-" * width if i < names else "-" * (width - 1) + ":" for i, width in enumerate(widths)]
    return "\n".join(
        "| " + " | ".join(_aligned(*cell, i < names) for i, cell in enumerate(row)) + " |"
        for row in (list(zip(line, widths, strict=True)) for line in [lines[0], rule, *lines[1:]])
    )


def _aligned(text: str, width: int, left: bool) -> str:
    return text.ljust(width) if left else text.rjust(width)


def markers(name: str) -> tuple[str, str]:
    """What stands before and after the block of a document that is made of a group."""
    return f"<!-- bench:{name} -->", f"<!-- bench:{name} end -->"


def has_block(text: str, name: str) -> bool:
    """Whether a document has a place for a group."""
    return markers(name)[0] in text


def replace_block(text: str, name: str, block: str) -> str:
    """Put `block` between the markers of `name` in `text`.

    Raises `BenchError` unless each marker is there once, in order.
    """
    begin, end = markers(name)
    if not text.count(begin) == text.count(end) == 1 or text.index(begin) > text.index(end):
        raise BenchError(f"{begin} and, after it, {end} must be there, once each")
    before, after = text[: text.index(begin)], text[text.index(end) + len(end) :]
    return f"{before}{begin}\n{block.strip()}\n{end}{after}"
