"""A profile as a flame graph: one SVG, which loads nothing from anywhere.

Each box is a function, above its caller, and as wide as the samples in which it was on the stack.
Boxes side by side are in the order of their names, and not of time. A click on a box shows it as
wide as the picture, a click on the lowest one shows all again, and Ctrl-F finds what is visible. A
browser shows a tooltip; other viewers show the picture alone.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from xenemu.views.profile import Profile
from xenemu.webpage import text

WIDTH, ROW, MARGIN, HEAD = 1200, 18, 10, 40  # pixels
LETTER: Final = 7.0  # pixels, of the font's widest ordinary letter
NARROWEST: Final = 0.2  # pixels of a box that is drawn
HUES: Final = 40  # degrees, from red on

STYLE: Final = """
svg { background: #fff; font: 12px ui-monospace, monospace }
text { fill: #222; pointer-events: none } .title { font: 16px system-ui, sans-serif }
g.b rect { stroke: #fff; stroke-width: .5 } g.b text { fill: #222 }
g.b:hover rect { stroke: #000; stroke-width: 1 } g.b { cursor: pointer } g.dim { opacity: .5 }
@media (prefers-color-scheme: dark) { svg { background: #181a1b } text { fill: #ddd }
g.b rect { stroke: #181a1b } g.b:hover rect { stroke: #fff } g.b text { fill: #111 } }
"""
# Only attributes and text that are there already are changed.
SCRIPT: Final = """
const boxes = [...document.querySelectorAll("g.b")].map(g => ({g, x: +g.dataset.x,
  w: +g.dataset.w, y: +g.dataset.y, rect: g.querySelector("rect"), text: g.querySelector("text"),
  name: g.querySelector("text").dataset.name}));
function show(to) {
  for (const b of boxes) {
    const below = b.y < to.y && b.x <= to.x && b.x + b.w >= to.x + to.w;
    const within = b.x >= to.x && b.x + b.w <= to.x + to.w && b.y >= to.y;
    b.g.style.display = below || within ? "" : "none";
    b.g.classList.toggle("dim", below);
    if (!below && !within) continue;
    const x = below ? 0 : (b.x - to.x) / to.w, w = below ? 1 : b.w / to.w;
    b.rect.setAttribute("x", MARGIN + x * SPAN); b.rect.setAttribute("width", w * SPAN);
    b.text.setAttribute("x", MARGIN + x * SPAN + 3);
    const room = Math.floor((w * SPAN - 6) / LETTER);
    b.text.textContent = room < 3 ? "" : b.name.length <= room ? b.name
      : b.name.slice(0, room - 2) + "..";
  }
}
for (const b of boxes) b.g.addEventListener("click", () => show(b));
"""


@dataclass
class Node:
    """A function on a stack: how many samples, and what it called, by name."""

    count: int = 0
    calls: dict[str, Node] = field(default_factory=dict)


def flame_graph(profile: Profile, title: str) -> str:
    """The picture, as an SVG file."""
    root, depth = Node(), 0
    for stack, times in profile.counted():
        root.count, node, depth = root.count + times, root, max(depth, len(stack))
        for name in stack:
            node = node.calls.setdefault(name, Node())
            node.count += times
    height = HEAD + (depth + 1) * ROW + MARGIN
    span = WIDTH - 2 * MARGIN
    script = SCRIPT
    for name, value in (("MARGIN", MARGIN), ("SPAN", span), ("LETTER", LETTER)):
        script = script.replace(name, f"{value:g}")
    boxes = "\n".join(_boxes("all", root, 0.0, 0, root.count, height))
    summary = f"{title}: {profile.count} samples, one each {profile.every_ns / 1e6:g} ms"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}"'
        f' width="{WIDTH}" height="{height}">\n<style>{STYLE}</style>\n'
        f'<text class="title" x="{MARGIN}" y="24">{text(summary)}</text>\n'
        f"{boxes}\n<script><![CDATA[{script}]]></script>\n</svg>\n"
    )


def _boxes(
    name: str, node: Node, before: float, level: int, whole: int, height: int
) -> Iterator[str]:
    """A function's box, and those of what it called; `before` are the samples to its left."""
    span = WIDTH - 2 * MARGIN
    width = span * node.count / whole if whole else span
    if width < NARROWEST:
        return
    x, y = MARGIN + (span * before / whole if whole else 0), height - MARGIN - (level + 1) * ROW
    share = 100 * node.count / whole if whole else 0
    room = int((width - 6) / LETTER)
    shown = "" if room < 3 else name if len(name) <= room else f"{name[: room - 2]}.."
    hue = zlib.crc32(name.encode()) % HUES
    lightness = 62 + zlib.crc32(name.encode()) // HUES % 14
    yield (
        f'<g class="b" data-x="{before:g}" data-w="{node.count}" data-y="{level}">'
        f"<title>{text(name)}: {node.count} samples, {share:.2f}%</title>"
        f'<rect x="{x:.2f}" y="{y}" width="{width:.2f}" height="{ROW - 1}"'
        f' fill="hsl({hue} 85% {lightness}%)"/>'
        f'<text x="{x + 3:.2f}" y="{y + 13}" data-name="{text(name)}">{text(shown)}</text></g>'
    )
    for called, callee in sorted(node.calls.items()):
        yield from _boxes(called, callee, before, level + 1, whole, height)
        before += callee.count
