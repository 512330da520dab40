"""The command line: ``xenemu run``, ``smoke``, ``compare``, ``inspect``, ``hypercalls``.

A person's mistake is one line on standard error; a traceback is a bug of xenemu's, and says so.
"""

from __future__ import annotations

import gc
import os
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Annotated, Final, get_type_hints

import typer

from xenemu import __version__
from xenemu.cli.command import Command
from xenemu.cli.mistakes import mistake_in
from xenemu.errors import EngineError, FitError, XenemuError, exhaustion
from xenemu.outcome import EXIT_BUG, EXIT_FIT, EXIT_IMAGE

# Each is a function in the module of its name. There, HELP_EPILOG is what its help ends with, and
# COMMAND is the class of its parser, if that is a special one.
COMMANDS: Final = (
    "run", "resume", "replay", "diverge", "control", "smoke", "compare", "inspect", "image",
    "hypercalls", "doctor",
)  # fmt: skip

COMPLETE: Final = "_XENEMU_COMPLETE"  # set by what shells have to complete words
EXIT_INTERRUPTED: Final = 130  # as a shell reports SIGINT
EXIT_PIPE: Final = 141  # as a shell reports SIGPIPE
PARSER_PIPE: Final = 1  # what the parser of arguments exits with if standard output was closed


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"xenemu {__version__}")
        raise typer.Exit


def xenemu(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Show the version and exit.", callback=_show_version, is_eager=True
        ),
    ] = False,
) -> None:
    """A Xen hypervisor in a process: boot Xen guest kernels on a software CPU.

    It needs no Xen, no KVM and no privileges. Begin with "xenemu inspect KERNEL", which tells
    what a kernel can boot as, and "xenemu run KERNEL", which boots it.
    """
    if context.invoked_subcommand is None:
        typer.echo(context.get_help(), err=True)
        raise typer.Exit(EXIT_IMAGE)


def parser(arguments: Sequence[str] = ()) -> typer.Typer:
    """The parser of a command line.

    It knows the command that `arguments` begin with, and only that command is imported. If they
    begin with none, it knows them all.
    """
    app = typer.Typer(
        name="xenemu",
        add_completion=False,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback(invoke_without_command=True)(xenemu)
    for name in [each for each in COMMANDS if each in arguments[:1]] or COMMANDS:
        module = import_module(f"xenemu.cli.{name}")
        epilog, parses = getattr(module, "HELP_EPILOG", None), getattr(module, "COMMAND", Command)
        command = getattr(module, name)
        # Typer would evaluate the text of each of them four times.
        command.__annotations__ = get_type_hints(command, include_extras=True)
        app.command(cls=parses, epilog=epilog)(command)
    return app


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code; `arguments` are those of the process."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    try:
        _read_ahead(given)
        command = parser(_completed(given))
        if not gc.isenabled():
            gc.freeze()
            gc.enable()
        code = command(given, prog_name="xenemu", standalone_mode=False)
        if sys.stdout is not None:
            sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except SystemExit as end:
        if not end.code:  # a shell's question is answered
            return 0
        return EXIT_PIPE if end.code == PARSER_PIPE else EXIT_BUG
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except EngineError as error:
        return _fail(str(error), EXIT_BUG)
    except FitError as error:
        return _fail(str(error), EXIT_FIT)
    except XenemuError as error:
        return _fail(str(error), EXIT_IMAGE)
    except Exception as error:
        named = [name for name in given[:1] if name in COMMANDS]
        if mistake := mistake_in(error, " ".join(["xenemu", *named])):
            return _fail(mistake, EXIT_IMAGE)
        if exhausted := exhaustion(error):
            return _fail(exhausted, EXIT_IMAGE)
        verbose = {"-v", "--verbose"} & set(given)
        if verbose:
            traceback.print_exc()
        return _fail(_describe_bug(error, bool(verbose)), EXIT_BUG)


def _completed(arguments: Sequence[str]) -> Sequence[str]:
    """The words that a shell wants to have completed, if it does; else `arguments`."""
    if COMPLETE in os.environ:
        from xenemu.cli import completing  # noqa: PLC0415 (only a shell's function wants it)

        return completing.words()
    return arguments


def _read_ahead(arguments: Sequence[str]) -> None:
    """Begin to read the snapshot that is to be gone on from, while its command is imported."""
    if arguments[:1] == ["resume"]:
        from xenemu import snapfile  # noqa: PLC0415 (no other command reads one)

        files = (Path(word) for word in arguments[1:])
        if file := next(filter(snapfile.looks_like_one, files), None):
            snapfile.read_ahead(file)


def _describe_bug(error: Exception, shown: bool) -> str:
    last = traceback.extract_tb(error.__traceback__)[-1]
    what = f"{type(error).__name__}: {error}".splitlines()[0]
    where = f"{Path(last.filename).name}:{last.lineno}"
    how = "" if shown else "; -v shows the traceback"
    return f"bug in xenemu {__version__}: {what} ({where}); please report it{how}"


def _fail(sentence: str, code: int) -> int:
    with suppress(OSError):  # nobody can be told, but by the code
        typer.echo(f"xenemu: {sentence}", err=True)
    return code
