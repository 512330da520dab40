"""The ways into a kernel, a file for each: what `--entry` can ask for.

A file here may have `ENTRIES`, a list of `BootEntry`. That is all it takes to add them: nothing
else names them.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterable
from typing import Any, Final

from xenemu.boot.entry import BootEntry, Verdict
from xenemu.errors import ImageError
from xenemu.image import Image

__all__ = ["AUTO", "ENTRIES", "MODES", "BootEntry", "Verdict", "choose", "discover", "verdicts"]

AUTO: Final = "auto"
Entry = BootEntry[Any, Any, Any]


def discover(path: Iterable[str], package: str) -> dict[str, Entry]:
    """The entries of the modules of a package, by name: first those that auto may choose."""
    found: list[Entry] = []
    for module in sorted(pkgutil.iter_modules(path), key=lambda module: module.name):
        found += getattr(importlib.import_module(f"{package}.{module.name}"), "ENTRIES", [])
    return {entry.name: entry for entry in sorted(found, key=lambda entry: not entry.auto)}


ENTRIES: Final = discover(__path__, __name__)
MODES: Final = (AUTO, *dict.fromkeys(entry.mode for entry in ENTRIES.values()))


def verdicts(image: Image) -> dict[str, Verdict]:
    """What each entry says of an image, by its name."""
    return {name: entry.verdict(image) for name, entry in ENTRIES.items()}


def choose(image: Image, mode: str = AUTO) -> Entry:
    """Settle by which entry an image is booted; ImageError says why it cannot be."""
    wanted = [entry for entry in ENTRIES.values() if mode in (entry.mode, AUTO)]
    if mode == AUTO:
        wanted = sorted(filter(lambda entry: entry.auto, wanted), key=lambda entry: -entry.auto)
    reasons = []
    for entry in wanted:
        verdict = entry.verdict(image)
        if verdict.bootable:
            return entry
        reasons.append(f"{entry.name}: {verdict.reason}")
    others = [other for other in ENTRIES.values() if other not in wanted]
    able = [f"--entry {other.mode}" for other in others if other.verdict(image).bootable]
    advice = f"; it can with {' or '.join(dict.fromkeys(able))}" if able else ""
    raise ImageError(f"{image.path}: cannot boot as {mode}: {'; '.join(reasons)}{advice}")
