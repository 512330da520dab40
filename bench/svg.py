"""Two kinds of charts as SVG, which follow the reader's light or dark screen."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final
from xml.sax.saxutils import escape

WIDTH: Final = 760
BAR, GAP, GROUP_GAP = 16, 3, 12  # heights, in pixels
CHARACTER: Final = 7.3  # the width of one, at the size of labels: a guess that is rather too large
NUMBERS: Final = 58  # the room for a number after a bar
TOP: Final = 58  # the room for the title and the legend
PLOT_HEIGHT: Final = 240  # of a chart of lines

# Ours in colour, peers in grey. The second of each pair is for dark screens.
COLOURS: Final = {
    "ours": ("#0868ac", "#5ab4f0"),
    "ours2": ("#0b8a66", "#3ccf9f"),
    "peer": ("#b9b9b9", "#6e6e6e"),
    "peer2": ("#878787", "#9d9d9d"),
    "late": ("#c4500a", "#f0883e"),
}
TEXT: Final = ("#1f2328", "#e6edf3")
FAINT: Final = ("#d0d7de", "#3d444d")
GROUND: Final = ("#ffffff", "#0d1117")


@dataclass(frozen=True)
class Bar:
    """A bar: its kind (of `COLOURS`), its value, and what is written after it."""

    kind: str
    value: float
    text: str


def bars(
    title: str,
    legend: Mapping[str, str],
    groups: Sequence[tuple[str, Sequence[Bar]]],
    *,
    logarithmic: bool = False,
    mark: float | None = None,
) -> str:
    """Horizontal bars, in groups with a label each; `mark` is a value with a line of its own."""
    left = 14 + CHARACTER * max(len(label) for label, _ in groups)
    room = WIDTH - left - NUMBERS
    values = [bar.value for _, group in groups for bar in group]
    length = _scale(values if mark is None else [*values, mark], room, logarithmic)
    body, y = [], float(TOP)
    for label, group in groups:
        height = len(group) * (BAR + GAP) - GAP
        body.append(_text(left - 8, y + height / 2, label, "end"))
        for bar in group:
            width = max(length(bar.value), 1)
            body.append(f'<rect class="{bar.kind}" x="{left:.1f}" y="{y:.1f}" width="{width:.1f}"'
                        f' height="{BAR}" rx="2"/>')  # fmt: skip
            end = max(width, length(mark)) if mark is not None else width  # not on the line
            body.append(_text(left + end + 5, y + BAR / 2, bar.text))
            y += BAR + GAP
        y += GROUP_GAP
    if mark is not None:
        x = left + length(mark)
        body.append(f'<path class="mark" d="M{x:.1f} {TOP - 6}V{y - GROUP_GAP + 3:.1f}"/>')
    return _document(title, legend, body, y)


def _scale(values: Sequence[float], room: float, logarithmic: bool) -> Callable[[float], float]:
    """How long a value's bar is."""
    most = max(values)
    if not logarithmic:
        return lambda value: room * value / most
    least = min(values) / 2
    return lambda value: room * math.log(value / least) / math.log(most / least)


def lines(
    title: str,
    legend: Mapping[str, str],
    ticks: Sequence[str],
    curves: Mapping[str, Sequence[float]],
) -> str:
    """A line for each kind, with a value at each of the ticks of the axis below; from 0 up."""
    left, right = 44.0, WIDTH - 24.0
    most = max(max(curve) for curve in curves.values())
    step = _step(most)
    top = step * math.ceil(most / step)

    def x(number: int) -> float:
        return left + (right - left) * number / (len(ticks) - 1)

    def y(value: float) -> float:
        return TOP + PLOT_HEIGHT * (1 - value / top)

    body = []
    for number in range(round(top / step) + 1):
        at = y(number * step)
        body.append(f'<path class="grid" d="M{left:.1f} {at:.1f}H{right:.1f}"/>')
        body.append(_text(left - 8, at, f"{number * step:g}", "end"))
    body += [_text(x(number), y(0) + 16, tick, "middle") for number, tick in enumerate(ticks)]
    for kind, curve in curves.items():
        points = " ".join(f"{x(n):.1f},{y(value):.1f}" for n, value in enumerate(curve))
        body.append(f'<polyline class="line {kind}-line" points="{points}"/>')
        body += [f'<circle class="{kind}" cx="{x(n):.1f}" cy="{y(value):.1f}" r="3.5"/>'
                 for n, value in enumerate(curve)]  # fmt: skip
    return _document(title, legend, body, y(0) + 36)


def _step(most: float) -> float:
    """A round step of which three to eight reach `most`."""
    power = 10.0 ** math.floor(math.log10(most))
    return next(power * part for part in (0.2, 0.5, 1, 2) if most / (power * part) <= 8)


def _text(x: float, y: float, text: str, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y + 4:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _document(title: str, legend: Mapping[str, str], body: Sequence[str], height: float) -> str:
    x, marks = 14.0, []
    for kind, name in legend.items():
        marks.append(f'<rect class="{kind}" x="{x:.1f}" y="34" width="11" height="11" rx="2"/>')
        marks.append(_text(x + 16, 39.5, name))
        x += 34 + CHARACTER * len(name)
    size = f"{WIDTH} {math.ceil(height)}"
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {size}" role="img">',
            f"<title>{escape(title)}</title>",
            f"<style>\n{_style()}\n</style>",
            '<rect class="ground" width="100%" height="100%" rx="6"/>',
            f'<text class="title" x="14" y="22">{escape(title)}</text>',
            *marks,
            *body,
            "</svg>\n",
        ]
    )


def _style() -> str:
    light, dark = ("\n".join(_rules(number)) for number in (0, 1))
    return (
        "text { font: 12px system-ui, sans-serif }\n"
        ".title { font-weight: 600; font-size: 14px }\n"
        ".line { fill: none; stroke-width: 2 }\n"
        ".mark { stroke-width: 1.5; stroke-dasharray: 4 3 }\n"
        f"{light}\n@media (prefers-color-scheme: dark) {{\n{dark}\n}}"
    )


def _rules(screen: int) -> Iterator[str]:
    """The colours for a light screen, 0, or a dark one, 1."""
    yield f"text {{ fill: {TEXT[screen]} }}"
    yield f".mark {{ stroke: {TEXT[screen]} }}"
    yield f".ground {{ fill: {GROUND[screen]} }}"
    yield f".grid {{ stroke: {FAINT[screen]} }}"
    for kind, colours in COLOURS.items():
        yield f".{kind} {{ fill: {colours[screen]} }}"
        yield f".{kind}-line {{ stroke: {colours[screen]} }}"
