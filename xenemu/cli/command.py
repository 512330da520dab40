"""How a command's help shows its arguments and options, and in which order these were typed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from typer.core import TyperCommand

ORDERED: Final = "--send"  # an option that stands for itself and the one before it
ORDER: Final = "xenemu.order"  # where a context has the order


class Command(TyperCommand):
    """Shows an argument that must be given as manuals do: KERNEL, without typer's braces.

    Options are in groups. A group begins with an option that has its title, as a
    `rich_help_panel`, and goes on to the next such option.
    """

    # The context's class is typer's own, or click's: it depends on typer's version.
    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        typed = list(args)
        rest = super().parse_args(ctx, args)
        if any(each.partition("=")[0] == ORDERED for each in typed):
            _, _, order = self.make_parser(ctx).parse_args(args=typed)
            ctx.meta[ORDER] = [param.name for param in order]
        return rest

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


def order_of(context: Any) -> Sequence[str]:
    """The names of what was typed, in its order, if an option is among it for which that counts."""
    order: Sequence[str] = context.meta.get(ORDER, ())
    return order
