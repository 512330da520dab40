"""Options that say how a person attends a run, for all commands that have one attended."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from xenemu.cli.attended import Confine
from xenemu.cli.completing import among
from xenemu.cli.watch import TraceFormat
from xenemu.trace import KINDS

Timeout = Annotated[
    str | None,
    typer.Option(
        help="Give up after this many seconds of real time, loading included.",
        metavar="SECONDS",
        rich_help_panel="The run",
    ),
]
Expect = Annotated[
    list[str] | None,
    typer.Option(
        help="End with success once the console has shown this regular expression; with"
        " several, once it has shown each, in any order (smoke wants its own in order).",
        metavar="REGEX",
    ),
]
Log = Annotated[
    Path | None,
    typer.Option(
        help="Also write the console to this file, which must be new or empty.",
        metavar="FILE",
    ),
]
NoFast = Annotated[
    bool,
    typer.Option(
        "--no-fast",
        help="Let the Python model do all of the hypervisor's work, and C none of it: slower,"
        " with the same result. If something differs, that is a bug of xenemu's.",
    ),
]
Explain = Annotated[
    bool,
    typer.Option(
        "--explain",
        help="Tell of each refusal as it happens: the rule, the frames, who typed or maps"
        " them, and the backtrace.",
        rich_help_panel="To look at it",
    ),
]
Trace = Annotated[
    str | None,
    typer.Option(
        help="Tell what the guest does, decoded: any of hypercalls, mmu, events, traps, vcpus.",
        metavar="KIND[,KIND...]",
        autocompletion=among(KINDS, of_several=True),
    ),
]
TraceFilter = Annotated[
    str | None,
    typer.Option(
        help="Trace only what has a name, such as 'mmuext_op PIN' or '#PF', in which this"
        " regular expression is found.",
        metavar="REGEX",
    ),
]
TraceFile = Annotated[
    Path | None,
    typer.Option(
        help="Write the trace to this file, which must be new or empty, not to standard error.",
        metavar="FILE",
    ),
]
HowTraced = Annotated[
    TraceFormat, typer.Option(help="Write the trace as text, or as a JSON object a line.")
]
Coverage = Annotated[
    Path | None,
    typer.Option(
        help="Write which code ran to this file, which must be new or empty: if its name ends"
        " in .info, for lcov's genhtml; else in drcov's form.",
        metavar="FILE",
    ),
]
Audit = Annotated[
    str | None,
    typer.Option(
        help="Check the hypervisor's own books each time that so much virtual time has passed,"
        " and in the end; what is wrong ends the run. For xenemu's developers.",
        metavar="SECONDS",
        rich_help_panel="xenemu itself",
    ),
]
Gdb = Annotated[
    str | None,
    typer.Option(
        help="Wait at the first instruction for a gdb, and let it debug the guest. Without"
        " HOST, on the loopback interface; port 0 is any that is free. With stdio, the"
        " console goes to standard error.",
        metavar="[HOST]:PORT|unix:PATH|stdio",
    ),
]
Confined = Annotated[
    Confine,
    typer.Option(
        "--confine",
        help="Before the guest runs, give up opening files and sockets and starting programs:"
        " auto where this host can, off never; must ends the run where it cannot.",
    ),
]
Symbols = Annotated[
    Path | None,
    typer.Option(
        help="Take the kernel's symbols, and for gdb its debug information, from this ELF: the"
        " vmlinux of the same build.",
        metavar="FILE",
    ),
]
Verbose = Annotated[
    bool,
    typer.Option(
        "-v", "--verbose", help="Tell more: the report however it ends, tracebacks of bugs."
    ),
]
SnapshotTo = Annotated[
    list[Path] | None,
    typer.Option(
        "--snapshot",
        help="Keep the guest as it is at --snapshot-at in this file, which must be new or empty;"
        " xenemu resume goes on from there. Without --snapshot-at, when gdb's monitor snapshot or"
        " xenemu control asks for it; for several, say it again.",
        metavar="FILE",
        rich_help_panel="What it leaves",
    ),
]
SnapshotAt = Annotated[
    str | None,
    typer.Option(
        help="When to take the snapshot: once the console has shown this regular expression, or at"
        " this time of the guest's, as in 1.5s.",
        metavar="REGEX|TIME",
    ),
]
Control = Annotated[
    Path | None,
    typer.Option(
        help="Listen at this path for xenemu control, which does to the guest what xl does: shut it"
        " down, pause it, plug devices. Idle time then passes as this host's does.",
        metavar="PATH",
        rich_help_panel="The life of the guest",
    ),
]
