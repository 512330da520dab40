"""The verbs that do to a guest what xl does. Each is a file with a `Verb` called VERB."""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules
from typing import Final

from xenemu.dom0.control import Verb


def _find() -> dict[str, Verb]:
    found: list[Verb] = [
        import_module(f"{__name__}.{name}").VERB for _, name, _ in iter_modules(__path__)
    ]
    return {verb.name: verb for verb in found}


VERBS: Final = _find()
