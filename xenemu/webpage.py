"""What pages for a browser are made of: one file each, which loads nothing from anywhere.

What is shown may be hostile: a guest's console, a file's name. So all text goes through `text`, and
no text is ever in a script. A page's policy (CSP) lets only the page's own script run.
"""

from __future__ import annotations

import hashlib
from base64 import b64encode
from collections.abc import Container, Iterable, Sequence
from html import escape
from typing import Final

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
# Characters that a browser would obey, drop, or refuse: a picture or a sign stands for each.
_SHOWN: Final = (
    {code: 0x2400 + code for code in range(0x20) if chr(code) not in "\t\n"}
    | {0x7F: 0x2421}
    | dict.fromkeys((*range(0x80, 0xA0), *range(0xFFFE, 0x10000), *range(0xD800, 0xE000)), 0xFFFD)
    # which turn the text around them: directional marks, embeddings and isolates
    | dict.fromkeys((0x61C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A)), 0xFFFD)
)


def text(words: str) -> str:
    """Text as HTML, whatever is in it."""
    return escape(words.translate(_SHOWN))


def document(title: str, parts: Iterable[str], style: str = "", script: str = "") -> str:
    """A whole page of these parts, which are HTML."""
    digest = b64encode(hashlib.sha256(script.encode()).digest()).decode()
    runs = f"'sha256-{digest}'" if script else "'none'"
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src {runs}"
    head = (
        '<meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width">'
        f"<title>{text(title)}</title><style>{STYLE}{style}</style>"
    )
    last = f"<script>{script}</script>" if script else ""
    body = f"<body>{''.join(parts)}{last}</body>"
    return f'<!DOCTYPE html>\n<html lang="en"><head>{head}</head>\n{body}</html>\n'


def section(title: str, content: str) -> str:
    """A heading, and what it is of."""
    return f"<h2>{text(title)}</h2>\n{content}\n"


def table(
    heads: Sequence[str],
    rows: Sequence[Sequence[str]],
    numbers: Container[int],
    kinds: Sequence[str] = (),
) -> str:
    """A table of cells that are HTML; `numbers` are the columns of numbers.

    `kinds` are the classes of the rows, if they have any.
    """

    def line(cells: Iterable[str], tag: str) -> str:
        return "".join(
            f"<{tag}{' class=n' if n in numbers else ''}>{cell}</{tag}>"
            for n, cell in enumerate(cells)
        )

    classes = [f' class="{kind}"' for kind in kinds] or [""] * len(rows)
    body = "".join(
        f"<tr{each}>{line(row, 'td')}</tr>\n" for each, row in zip(classes, rows, strict=True)
    )
    return f"<table><tr>{line(map(text, heads), 'th')}</tr>\n{body}</table>"


def bar(parts: Iterable[tuple[float, str, str]]) -> str:
    """A bar of parts, side by side: how large each is, its colour, and what it says."""
    spans = (
        f'<span style="flex:{size:g};background:{colour}" title="{text(said)}"></span>'
        for size, colour, said in parts
    )
    return f'<div class="bar">{"".join(spans)}</div>'


def folded(title: str, content: str, unfolded: bool = False) -> str:
    """What is shown when a person asks for it."""
    is_open = " open" if unfolded else ""
    return f"<details{is_open}><summary>{text(title)}</summary>{content}</details>"


def key(number: int) -> str:
    """A patch of the colour of something that has this number."""
    return f'<span class="key" style="background:{colour(number)}"></span> '


def colour(number: int) -> str:
    """One of a few colours."""
    return COLOURS[number % len(COLOURS)]
