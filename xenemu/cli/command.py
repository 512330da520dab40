"""How a command's help shows its arguments."""

from __future__ import annotations

from typing import Any

from typer.core import TyperCommand


class Command(TyperCommand):
    """Shows an argument that must be given as manuals do: KERNEL, without typer's braces."""

    # The context's class is typer's own, or click's: it depends on typer's version.
    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        return [piece.strip("{}") for piece in super().collect_usage_pieces(ctx)]
