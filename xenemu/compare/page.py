"""A comparison as an HTML page: in one file, with no script and nothing from the network."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from typing import Final

from xenemu.compare.boots import Comparison, Row

COLOURS: Final = ("#3b6ea5", "#b5502d", "#4b8b3b", "#7a4ea3", "#9a7b1c", "#2c8c8c", "#a33b62")
STYLE: Final = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2em auto; max-width: 75em; padding: 0 1em;
       color: #222; background: #fff }
h1 { font-size: 1.5em } h2 { font-size: 1.15em; margin-top: 2em; border-bottom: 1px solid #ccc }
table { border-collapse: collapse; width: 100% }
td, th { padding: .2em .6em; text-align: left; vertical-align: top; border-bottom: 1px solid #eee }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums }
code, td.f { font: 13px/1.4 ui-monospace, monospace } tr.all td { background: #f0f4ee }
.bar { display: flex; height: 1.1em; border-radius: .2em; overflow: hidden; min-width: 20em }
.bar span { display: block } .key { display: inline-block; width: .8em; height: .8em }
details { margin: .4em 0 } summary { cursor: pointer }
@media (prefers-color-scheme: dark) {
  body { background: #181a1b; color: #ddd } td, th { border-color: #333 } h2 { border-color: #444 }
  tr.all td { background: #1f2a1d } }
"""
COMMON: Final = "#8a948a"


def page(comparison: Comparison, title: str, steps: int, unreached: list[str]) -> str:
    """The page, with `steps` functions of each boot side by side."""
    names = comparison.names
    body = [
        f"<h1>{escape(title)}</h1>",
        _join(comparison),
        _section("Boots", _boots(comparison)),
        _section("Who runs how much", _shares(comparison)),
        _section(
            f"The first {steps} functions, side by side", _rows(names, comparison.rows(steps))
        ),
        _section("Run by one only", "".join(_list(n, comparison.only(n)) for n in names)),
    ]
    if unreached:
        body.append(_section("Init code that no boot ran", _list("its functions", unreached)))
    for kind in comparison.kinds:
        body.append(_section(kind, _asked(comparison, kind)))
    maps = "".join(_list(boot.name, boot.memory_map) for boot in comparison.boots)
    body.append(_section("Memory, as the kernel says", maps))
    head = f'<meta charset="utf-8"><title>{escape(title)}</title><style>{STYLE}</style>'
    whole = f'<html lang="en"><head>{head}</head>\n<body>{"".join(body)}</body></html>'
    return f"<!DOCTYPE html>\n{whole}\n"


def _section(title: str, content: str) -> str:
    return f"<h2>{escape(title)}</h2>\n{content}\n"


def _join(comparison: Comparison) -> str:
    if comparison.join is None:
        return "<p>They never join.</p>"
    return f"<p>They join at <code>{escape(comparison.join)}</code>.</p>"


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
            _key(number) + escape(boot.name),
            *(f"{n:,}" for n in (boot.instructions, len(boot.order), boot.coverage.bytes >> 10)),
            *(f"{boot.first[station]:,}" for station in stations),
            escape(boot.end),
        ]
        for number, boot in enumerate(comparison.boots)
    ]
    return _table(heads, rows, numbers=range(1, 4 + len(stations)))


def _shares(comparison: Comparison) -> str:
    rows = []
    for milestone in (*comparison.milestones, None):
        share = comparison.share(milestone)
        parts = []
        for names, count in share.by.items():
            colour = COMMON if names == comparison.names else _blend(comparison, names)
            said = escape(f"{count} by {', '.join(names)}")
            parts.append(f'<span style="flex:{count};background:{colour}" title="{said}"></span>')
        percent = 100 * share.common / share.total if share.total else 0
        until = f"before <code>{escape(milestone)}</code>" if milestone else "in all"
        details = "<br>".join(escape(f"{n} by {', '.join(who)}") for who, n in share.by.items())
        bar = f'<div class="bar">{"".join(parts)}</div>'
        rows.append(
            [
                until,
                f"{share.total:,}",
                f"{percent:.0f}%",
                bar + f"<details><summary>by whom</summary>{details}</details>",
            ]
        )
    return _table(["", "functions", "by all", ""], rows, numbers=range(1, 3))


def _blend(comparison: Comparison, names: tuple[str, ...]) -> str:
    own = [_colour(comparison.names.index(name)) for name in names]
    size = 100 / len(own)
    stops = ", ".join(f"{c} {n * size:.0f}% {(n + 1) * size:.0f}%" for n, c in enumerate(own))
    return own[0] if len(own) == 1 else f"linear-gradient({stops})"


def _rows(names: tuple[str, ...], rows: list[Row]) -> str:
    said = []
    for row in rows:
        if row.common is not None:
            cell = f'<td class="f" colspan="{len(names)}">{escape(row.common)}</td>'
            said.append(f'<tr class="all">{cell}</tr>')
        else:
            cells = (f'<td class="f">{"<br>".join(map(escape, own))}</td>' for own in row.apart)
            said.append(f"<tr>{''.join(cells)}</tr>")
    heads = "".join(f"<th>{_key(n)}{escape(name)}</th>" for n, name in enumerate(names))
    return f"<table><tr>{heads}</tr>{''.join(said)}</table>"


def _asked(comparison: Comparison, kind: str) -> str:
    table = comparison.asked(kind)
    rows = [
        [escape(what), *(f"{n:,}" if n else "" for n in counts)] for what, counts in table.items()
    ]
    return _table(["", *comparison.names], rows, numbers=range(1, 1 + len(comparison.names)))


def _list(title: str, items: Iterable[str]) -> str:
    items = list(items)
    said = "<br>".join(f"<code>{escape(item)}</code>" for item in items)
    return f"<details><summary>{escape(title)}: {len(items)}</summary>{said}</details>"


def _table(heads: list[str], rows: list[list[str]], numbers: range) -> str:
    def line(cells: list[str], kind: str) -> str:
        return "".join(
            f"<{kind}{' class=n' if n in numbers else ''}>{cell}</{kind}>"
            for n, cell in enumerate(cells)
        )

    body = "".join(f"<tr>{line(row, 'td')}</tr>\n" for row in rows)
    return f"<table><tr>{line(list(map(escape, heads)), 'th')}</tr>\n{body}</table>"


def _key(number: int) -> str:
    return f'<span class="key" style="background:{_colour(number)}"></span> '


def _colour(number: int) -> str:
    return COLOURS[number % len(COLOURS)]
