"""A command that also takes a guest's configuration for xl in the place of a kernel."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

from xenemu.cli.command import Command
from xenemu.xl import is_config, read_config


class Configurable(Command):
    """Reads the options of the configuration, if there is one, before those that were typed."""

    # The context's class is typer's own, or click's: it depends on typer's version.
    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        typed = list(args)
        rest = super().parse_args(ctx, list(args))
        kernel = ctx.params.get("kernel")
        if kernel is None or not is_config(Path(kernel)):
            return rest
        config = read_config(Path(kernel))
        sources = {name: ctx.get_parameter_source(name) for name in ctx.params}
        given = {
            name: ctx.params[name]
            for name, source in sources.items()
            if source is not None and source.name == "COMMANDLINE"
        }
        ctx.params.clear()
        rest = super().parse_args(ctx, [*config.arguments(given), *typed])
        ctx.params["kernel"] = config.kernel
        for note in config.notes:
            typer.echo(f"xenemu: {config.file}:{note.line}: {note.text}", err=True)
        return rest
