"""The option of the CPU engine's own memory."""

from __future__ import annotations

from typing import Annotated, Final

import typer

from xenemu.errors import UsageError
from xenemu.machine import DEFAULT_CACHE, MAX_CACHE, MIN_CACHE, limit_translations
from xenemu.options import format_size, parse_memory

TranslationCache = Annotated[
    str,
    typer.Option(
        help="Keep at most this much translated code: it is host memory besides the guest's own."
        " When it is full, all is translated anew. No result depends on it, only the time.",
        metavar="SIZE",
    ),
]
CACHE: Final = f"{DEFAULT_CACHE >> 20}M"


def bound_translations(text: str) -> None:
    """Limit the translated code of the engines that begin from now on; UsageError."""
    size = parse_memory("--translation-cache", text)
    if not MIN_CACHE <= size <= MAX_CACHE:
        raise UsageError(
            f"--translation-cache {text}: give {format_size(MIN_CACHE)} to {format_size(MAX_CACHE)}"
        )
    limit_translations(size)
