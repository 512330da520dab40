"""A comparison as text, and as what JSON has."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any, Final

from xenemu.compare.boots import Comparison, Row, Share

SHOWN: Final = 12  # functions in a row of those that each boot runs alone
LISTED: Final = 40  # functions that one boot alone runs, or that none does


def text(comparison: Comparison, steps: int, unreached: list[str]) -> str:
    """All that there is to say, for a terminal; `steps` functions of each boot side by side."""
    sections = {
        "Boots": _boots(comparison),
        "Functions run": _shares(comparison),
        f"The first {steps} functions of each, side by side": _rows(comparison.rows(steps)),
    }
    for name in comparison.names:
        sections[f"Run by {name} only"] = _list(comparison.only(name))
    sections["Init code that no boot ran"] = _list(unreached)
    for kind in comparison.kinds:
        sections[kind] = _asked(comparison, kind)
    sections["Memory, as the kernel says"] = _memory(comparison)
    parts = [
        f"{title}:\n" + "".join(f"  {line}\n" for line in lines)
        for title, lines in ((t, list(ls)) for t, ls in sections.items())
        if lines
    ]
    return "\n".join(parts)


def document(comparison: Comparison, steps: int, unreached: list[str]) -> dict[str, Any]:
    """The same for programs."""
    return {
        "boots": [
            {
                "name": boot.name,
                "end": boot.end,
                "instructions": boot.instructions,
                "functions": len(boot.order),
                "code_bytes": boot.coverage.bytes,
                "milestones": {name: boot.first.get(name) for name in comparison.milestones},
                "order": boot.order,
                "only": comparison.only(boot.name),
                "memory_map": boot.memory_map,
            }
            for boot in comparison.boots
        ],
        "join": comparison.join,
        "functions": [_share(comparison.share(name)) for name in (*comparison.milestones, None)],
        "rows": [{"common": row.common, "apart": row.apart} for row in comparison.rows(steps)],
        "unreached_init": unreached,
        "asked": {kind: comparison.asked(kind) for kind in comparison.kinds},
    }


def _share(share: Share) -> dict[str, Any]:
    by = [{"boots": names, "functions": count} for names, count in share.by.items()]
    return {"until": share.milestone, "total": share.total, "common": share.common, "by": by}


def _boots(comparison: Comparison) -> Iterator[str]:
    for boot in comparison.boots:
        size = f"{len(boot.order)} functions, {boot.coverage.bytes >> 10} KiB of code"
        yield f"{boot.name}: {boot.instructions} instructions, {size}; {boot.end}"
        for name in comparison.milestones:
            yield f"    {name} after {boot.first[name]}"
    join = comparison.join
    yield f"they join at {join}" if join else "they never join"


def _shares(comparison: Comparison) -> Iterator[str]:
    for milestone in (*comparison.milestones, None):
        share = comparison.share(milestone)
        until = f"before {milestone}" if milestone else "in all"
        percent = 100 * share.common / share.total if share.total else 0
        yield f"{until}: {share.total}, {share.common} of them by all ({percent:.0f}%)"
        for names, count in share.by.items():
            if names != comparison.names:
                yield f"    {count} by {', '.join(names)} only"


def _rows(rows: list[Row]) -> Iterator[str]:
    for row in rows:
        if row.common is not None:
            yield f"= {row.common}"
            continue
        alike: dict[tuple[str, ...], list[str]] = {}
        for number, names in enumerate(row.apart, 1):
            alike.setdefault(names, []).append(str(number))
        for names, who in alike.items():
            if names:
                more = f" and {len(names) - SHOWN} more" if names[SHOWN:] else ""
                yield f"    {', '.join(who)}: {', '.join(names[:SHOWN])}{more}"


def _list(functions: list[str]) -> Iterator[str]:
    yield from islice(functions, LISTED)
    if functions[LISTED:]:
        yield f"and {len(functions) - LISTED} more"


def _asked(comparison: Comparison, kind: str) -> Iterator[str]:
    table = comparison.asked(kind)
    if not table:
        return
    width = max(map(len, table))
    yield " " * width + "".join(f"  {name:>12}" for name in comparison.names)
    for what, counts in table.items():
        yield f"{what:{width}}" + "".join(f"  {count or '-':>12}" for count in counts)


def _memory(comparison: Comparison) -> Iterator[str]:
    for boot in comparison.boots:
        yield f"{boot.name}:" + ("" if boot.memory_map else " it says nothing")
        yield from (f"    {line}" for line in boot.memory_map)
