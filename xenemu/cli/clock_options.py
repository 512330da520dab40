"""The option of a guest's wall clock."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Final

import typer

from xenemu import image
from xenemu.cli.completing import among
from xenemu.errors import UsageError
from xenemu.machine import DomainConfig

NOW, IMAGE = "now", "image"
MAX_YEAR: Final = 2500

Wallclock = Annotated[
    str | None,
    typer.Option(
        help="What the guest's wall clock shows at first: a date or a time as ISO 8601 writes it,"
        " in UTC if it names no zone; now; or image, for a day on which KERNEL had been built."
        " 2026-01-01 if not given, so that each run is the same.",
        metavar="TIME|now|image",
        autocompletion=among((NOW, IMAGE)),
    ),
]


def parse_wallclock(option: str, text: str | None, kernel: Path) -> int:
    """Nanoseconds since 1970; UsageError, or ImageError if the kernel cannot be read for it."""
    if text is None:
        return DomainConfig.wallclock_ns
    if text == NOW:
        return time.time_ns()
    from datetime import UTC, datetime  # noqa: PLC0415 (few runs want it)

    if text == IMAGE:
        from xenemu.image.built import built  # noqa: PLC0415

        when = built(image.load(kernel))
        if when is None:
            raise UsageError(f"{option} image: nothing in {kernel} says when it was built")
    else:
        try:
            when = datetime.fromisoformat(text)
        except ValueError:
            when = None
    if when is None or not 1970 < when.year <= MAX_YEAR:
        raise UsageError(
            f"{option} {text}: give a time such as 2026-11-29T18:35:00Z, from 1971 to {MAX_YEAR},"
            " now or image"
        )
    when = when if when.tzinfo else when.replace(tzinfo=UTC)
    whole = when.replace(microsecond=0)
    return int(whole.timestamp()) * 10**9 + when.microsecond * 1000
