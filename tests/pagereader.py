"""Reads a page that xenemu has made, as a strict browser would."""

from __future__ import annotations

from html.parser import HTMLParser

VOID = ("meta", "br", "input")


class Reader(HTMLParser):
    """Notes what a page would load, its scripts, its text, and tags that are left open."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.scripts: list[str] = []
        self.said = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        if tag not in VOID:
            self.open.append(tag)
        self.loads += [
            f"{name}={value}"
            for name, value in attributes
            if (name in ("src", "href", "srcset", "action") and not str(value).startswith("#"))
            or name.startswith("on")
        ]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] == ["script"]:
            self.scripts.append(data)
        elif self.open[-1:] != ["style"]:
            self.said += data
