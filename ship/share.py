"""Make manual pages and completion scripts of the commands' own help: ``python ship/share.py DIR``.

DIR becomes what is ``share`` below a prefix: of a virtual environment, or of the system.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from inspect import cleandoc
from pathlib import Path
from typing import Any, Final

import typer
from typer._completion_shared import get_completion_script

if __name__ == "__main__":  # then only this folder is searched for modules
    sys.path.insert(0, str(Path(__file__).parents[1]))
from xenemu import __version__
from xenemu.cli import COMPLETE, parser

COMPLETIONS: Final = {
    "bash": "bash-completion/completions/xenemu",
    "zsh": "zsh/site-functions/_xenemu",
    "fish": "fish/vendor_completions.d/xenemu.fish",
}
# zsh loads a function's file when it is first called, which is to complete, too.
BEGUN: Final = "compdef _xenemu_completion xenemu"
LOADED: Final = f"""\
if [ "$zsh_eval_context[-1]" = loadautofunc ]; then
  _xenemu_completion "$@"
else
  {BEGUN}
fi"""
Paragraphs = list[list[str]]


def files() -> dict[str, str]:
    """The text of each file, by its path."""
    group: Any = typer.main.get_command(parser())
    context = group.make_context("xenemu", [], resilient_parsing=True)
    made = {"man/man1/xenemu.1": page(group, context)}
    for name, command in group.commands.items():
        below = command.make_context(name, [], parent=context, resilient_parsing=True)
        made[f"man/man1/xenemu-{name}.1"] = page(command, below)
    for shell, path in COMPLETIONS.items():
        script = get_completion_script(prog_name="xenemu", complete_var=COMPLETE, shell=shell)
        made[path] = script.strip().replace(BEGUN, LOADED) + "\n"
    return made


def page(command: Any, context: Any) -> str:
    """A page of man(7), of what `--help` says."""
    name = " ".join(filter(None, (context.parent and "xenemu", context.info_name)))
    usage = " ".join(command.collect_usage_pieces(context))
    text = paragraphs(command.help)
    title = name.replace(" ", "-")
    summary = " ".join(text[0]).rstrip(".")
    lines = [
        f'.TH {title.upper()} 1 "" "xenemu {__version__}" "xenemu"',
        *(".SH NAME", f"{title} \\- {escaped(summary[0].lower() + summary[1:])}"),
        *(
            ".SH SYNOPSIS",
            f"\\fB{name}\\fR {escaped(usage)}",
        ),
        *(".SH DESCRIPTION", *body(text)),
    ]
    for heading, rows in sections(command, context):
        lines.append(f".SH {heading.upper()}")
        for term, words in rows:
            lines += [".TP", f"\\fB{escaped(term)}\\fR", escaped(words)]
    if command.epilog:
        lines += body(paragraphs(command.epilog))
    below = getattr(command, "commands", {})
    others = [f"\\fBxenemu\\-{each}\\fR(1)" for each in below] or ["\\fBxenemu\\fR(1)"]
    return "\n".join([*lines, ".SH SEE ALSO", ",\n".join(others), ""])


def sections(command: Any, context: Any) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """The tables of a command's help, as its own formatter is given them."""
    table = Table()
    command.format_options(context, table)
    if hasattr(command, "format_commands") and "Commands" not in table.sections:
        command.format_commands(context, table)
    yield from table.sections.items()


class Table:
    """Takes what a help's formatter is told to write, and keeps it."""

    width, current_indent = 10_000, 0

    def __init__(self) -> None:
        self.sections: dict[str, list[tuple[str, str]]] = {}
        self._rows: list[tuple[str, str]] = []

    def section(self, name: str) -> Table:
        """Begin a table."""
        self._rows = self.sections.setdefault(name, [])
        return self

    def write_dl(self, rows: Any, *_: object) -> None:
        """Keep rows of a table."""
        self._rows += [(str(term), " ".join(str(words).split())) for term, words in rows]

    def __enter__(self) -> Table:
        return self

    def __exit__(self, *exception: object) -> None:
        pass


def paragraphs(text: str) -> Paragraphs:
    """The lines of each; one that begins with a backspace stays as it is, as in the help."""
    return [part.splitlines() for part in re.split(r"\n\s*\n", cleandoc(text)) if part.strip()]


def body(text: Paragraphs) -> Iterator[str]:
    """Paragraphs in roff: those that stay as they are keep their line ends."""
    for lines in text:
        kept = lines[0].strip() == "\b"
        if kept and len(lines) > 1 and lines[1].endswith(":"):
            yield f".SH {lines[1].removesuffix(':').upper()}"
            yield from (".nf", *map(escaped, lines[2:]), ".fi")
        elif kept:
            yield from (".PP", ".nf", *map(escaped, lines[1:]), ".fi")
        else:
            yield from (".PP", *map(escaped, lines))


def escaped(line: str) -> str:
    """A line without what roff would take for its own."""
    line = line.replace("\\", "\\e").replace("-", "\\-").strip("\b")
    return f"\\&{line}" if line.startswith((".", "'")) else line


def main(folder: Path) -> None:
    """Write them all."""
    for name, text in files().items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
