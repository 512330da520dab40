"""How a command's help shows its arguments and its options."""

from __future__ import annotations

from typing import Any

from typer.core import TyperCommand


class Command(TyperCommand):
    """Shows an argument that must be given as manuals do: KERNEL, without typer's braces.

    Options are in groups. A group begins with an option that has its title, as a
    `rich_help_panel`, and goes on to the next such option.
    """

    # The context's class is typer's own, or click's: it depends on typer's version.
    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        return [piece.strip("{}") for piece in super().collect_usage_pieces(ctx)]

    def format_options(self, ctx: Any, formatter: Any) -> None:
        title = "Options"
        sections: dict[str, list[tuple[str, str]]] = {"Arguments": [], title: []}
        for param in self.get_params(ctx):
            if record := param.get_help_record(ctx):
                is_option = param.param_type_name == "option"
                title = (is_option and getattr(param, "rich_help_panel", None)) or title
                sections.setdefault(title if is_option else "Arguments", []).append(record)
        for name, records in sections.items():
            if records:
                with formatter.section(name):
                    formatter.write_dl(records)
