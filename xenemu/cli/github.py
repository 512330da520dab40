"""A job on GitHub, if this runs in one: its annotations, and its page."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import typer

from xenemu.errors import OutputError, UsageError
from xenemu.outputs import encode
from xenemu.smoke.formats import github_error
from xenemu.smoke.plan_text import PlanError


def is_here() -> bool:
    """Whether standard output is read for workflow commands."""
    return os.environ.get("GITHUB_ACTIONS") == "true"


def summarise(text: str) -> None:
    """Add Markdown to the job's page; OutputError."""
    summary = os.environ.get("GITHUB_STEP_SUMMARY")
    if not summary:
        return
    try:
        with Path(summary).open("ab") as file:
            file.write(encode(text))
    except OSError as error:
        raise OutputError(f"GITHUB_STEP_SUMMARY {summary}: {error.strerror}") from None


@contextmanager
def told() -> Iterator[None]:
    """Tell GitHub, too, of a mistake that keeps all boots from running."""
    try:
        yield
    except UsageError as error:
        if is_here():
            typer.echo(_annotation(error))
        with suppress(OutputError):  # the mistake is worse
            summarise(f"### xenemu: nothing was booted\n\n    {error}\n")
        raise


def _annotation(error: UsageError) -> str:
    title = "xenemu: nothing was booted"
    if isinstance(error, PlanError):
        return github_error(error.problem, error.place, title)
    return github_error(str(error), title=title)
