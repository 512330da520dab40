"""The ways into a kernel, a file for each: what `--entry` can ask for.

A file here may have `ENTRIES`, a list of `BootEntry`. `modes.FILES` says which modes it has. That
is all it takes to add them: nothing else names them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from importlib import import_module
from typing import Any, Final

from xenemu.entries.entry import BootEntry, Verdict
from xenemu.entries.modes import AUTO, DRAFT, FILES, MODES, PREFERRED
from xenemu.errors import ImageError
from xenemu.image import Image

__all__ = [
    "AUTO",
    "DRAFT",
    "ENTRIES",
    "MODES",
    "BootEntry",
    "Verdict",
    "choose",
    "of_mode",
    "verdicts",
]

Entry = BootEntry[Any, Any, Any]


class Entries(Mapping[str, Entry]):
    """The entries of some modes, by name; when one is asked for, the modes' files are imported."""

    def __init__(self, modes: Iterable[str]) -> None:
        self._modes = modes

    @cached_property
    def _found(self) -> dict[str, Entry]:
        found: dict[str, Entry] = {}
        for mode in self._modes:
            declared = import_module(f"{__name__}.{FILES[mode]}").ENTRIES
            found |= {entry.name: entry for entry in declared if entry.mode == mode}
        return found

    def __getitem__(self, name: str) -> Entry:
        return self._found[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._found)

    def __len__(self) -> int:
        return len(self._found)


ENTRIES: Final = Entries(FILES)


def of_mode(mode: str) -> Mapping[str, Entry]:
    """The entries of a mode, by name; none if there is no such mode."""
    return Entries([each for each in FILES if each == mode])


def verdicts(image: Image) -> dict[str, Verdict]:
    """What each entry says of an image, by its name."""
    return {name: entry.verdict(image) for name, entry in ENTRIES.items()}


def choose(image: Image, mode: str = AUTO) -> Entry:
    """Settle by which entry an image is booted; ImageError says why it cannot be."""
    wanted = Entries(PREFERRED if mode == AUTO else (mode,))
    reasons = []
    for entry in wanted.values():
        verdict = entry.verdict(image)
        if verdict.bootable:
            return entry
        reasons.append(verdict.reason if mode == entry.name else f"{entry.name}: {verdict.reason}")
    others = [other for name, other in ENTRIES.items() if name not in wanted]
    able = [f"--entry {other.mode}" for other in others if other.verdict(image).bootable]
    advice = f"; it can with {' or '.join(dict.fromkeys(able))}" if able else ""
    raise ImageError(f"{image.path}: cannot boot as {mode}: {'; '.join(reasons)}{advice}")
