"""A comparison as an HTML page: in one file, with no script and nothing from the network."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from xenemu.compare.boots import Comparison, Row
from xenemu.webpage import bar, colour, document, folded, key, section, table, text

COMMON: Final = "#8a948a"


def page(comparison: Comparison, title: str, steps: int, unreached: list[str]) -> str:
    """The page, with `steps` functions of each boot side by side."""
    names = comparison.names
    body = [
        f"<h1>{text(title)}</h1>",
        _join(comparison),
        section("Boots", _boots(comparison)),
        section("Who runs how much", _shares(comparison)),
        section(f"The first {steps} functions, side by side", _rows(names, comparison.rows(steps))),
        section("Run by one only", "".join(_list(n, comparison.only(n)) for n in names)),
    ]
    if unreached:
        body.append(section("Init code that no boot ran", _list("its functions", unreached)))
    for kind in comparison.kinds:
        body.append(section(kind, _asked(comparison, kind)))
    maps = "".join(_list(boot.name, boot.memory_map) for boot in comparison.boots)
    body.append(section("Memory, as the kernel says", maps))
    return document(title, body)


def _join(comparison: Comparison) -> str:
    if comparison.join is None:
        return "<p>They never join.</p>"
    return f"<p>They join at <code>{text(comparison.join)}</code>.</p>"


def _boots(comparison: Comparison) -> str:
    stations = comparison.milestones
    heads = [
        "boot",
        "instructions",
        "functions",
        "KiB of code",
        *(f"to {s}" for s in stations),
        "end",
    ]
    rows = [
        [
            key(number) + text(boot.name),
            *(f"{n:,}" for n in (boot.instructions, len(boot.order), boot.coverage.bytes >> 10)),
            *(f"{boot.first[station]:,}" for station in stations),
            text(boot.end),
        ]
        for number, boot in enumerate(comparison.boots)
    ]
    return table(heads, rows, numbers=range(1, 4 + len(stations)))


def _shares(comparison: Comparison) -> str:
    rows = []
    for milestone in (*comparison.milestones, None):
        share = comparison.share(milestone)
        parts = [
            (count, _blend(comparison, names), f"{count} by {', '.join(names)}")
            for names, count in share.by.items()
        ]
        percent = 100 * share.common / share.total if share.total else 0
        until = f"before <code>{text(milestone)}</code>" if milestone else "in all"
        by_whom = folded("by whom", "<br>".join(text(said) for _, _, said in parts))
        rows.append([until, f"{share.total:,}", f"{percent:.0f}%", bar(parts) + by_whom])
    return table(["", "functions", "by all", ""], rows, numbers=range(1, 3))


def _blend(comparison: Comparison, names: tuple[str, ...]) -> str:
    if names == comparison.names:
        return COMMON
    own = [colour(comparison.names.index(name)) for name in names]
    size = 100 / len(own)
    stops = ", ".join(f"{c} {n * size:.0f}% {(n + 1) * size:.0f}%" for n, c in enumerate(own))
    return own[0] if len(own) == 1 else f"linear-gradient({stops})"


def _rows(names: tuple[str, ...], rows: list[Row]) -> str:
    said = []
    for row in rows:
        if row.common is not None:
            cell = f'<td class="f" colspan="{len(names)}">{text(row.common)}</td>'
            said.append(f'<tr class="all">{cell}</tr>')
        else:
            cells = (f'<td class="f">{"<br>".join(map(text, own))}</td>' for own in row.apart)
            said.append(f"<tr>{''.join(cells)}</tr>")
    heads = "".join(f"<th>{key(n)}{text(name)}</th>" for n, name in enumerate(names))
    return f"<table><tr>{heads}</tr>{''.join(said)}</table>"


def _asked(comparison: Comparison, kind: str) -> str:
    asked = comparison.asked(kind)
    rows = [
        [text(what), *(f"{n:,}" if n else "" for n in counts)] for what, counts in asked.items()
    ]
    return table(["", *comparison.names], rows, numbers=range(1, 1 + len(comparison.names)))


def _list(title: str, items: Iterable[str]) -> str:
    items = list(items)
    said = "<br>".join(f"<code>{text(item)}</code>" for item in items)
    return folded(f"{title}: {len(items)}", said)
