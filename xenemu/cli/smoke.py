"""`xenemu smoke`: boot a matrix of kernels, and tell what became of each."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich.console import Console
from rich.live import Live
from rich.text import Text

from xenemu.errors import UsageError
from xenemu.options import format_size
from xenemu.smoke import formats, runner
from xenemu.smoke.plan import Boot, load_plan, make_boots
from xenemu.smoke.results import Result, worst
from xenemu.smoke.worker import Progress

TAIL: Final = 20  # lines of a failed boot's console that are shown
REFRESHES: Final = 4  # per second

HELP_EPILOG: Final = """\b
Examples:
  xenemu smoke matrix.toml --jobs 4 --junit results.xml
  xenemu smoke vmlinuz --mode pv --mode pvh --init test.sh --cmdline console=hvc0

\b
The exit code is that of the worst boot: 70, 7, 8, 5, 4, 6, 3 or 0, as for
"xenemu run"; 7 also if the plan is wrong, and then nothing has run. docs/ci.md
explains the file and the verdicts.
"""

Texts = list[str] | None


def _option(text: str, metavar: str | None = None) -> Any:
    return typer.Option(help=text, metavar=metavar)


def smoke(
    what: Annotated[
        list[Path], typer.Argument(metavar="FILE.toml|KERNEL", help="A plan, or kernels.")
    ],
    mode: Annotated[
        Texts, _option("auto, pv or pvh; say it again for another boot.", "MODE")
    ] = None,
    cmdline: Annotated[
        Texts, _option("The command line; say it again for another boot.", "TEXT")
    ] = None,
    memory: Annotated[
        Texts, _option("The guest's memory, 256M if not given; as above.", "SIZE")
    ] = None,
    initrd: Annotated[Path | None, _option("An initial ramdisk.", "FILE")] = None,
    init: Annotated[
        Path | None,
        _option("Make an initramfs: a script, with busybox, or a static program.", "FILE"),
    ] = None,
    rootfs: Annotated[Path | None, _option("Make an initramfs of a directory.", "DIR")] = None,
    busybox: Annotated[
        Path | None, _option("The static busybox to take; if not given, the one in PATH.", "FILE")
    ] = None,
    expect: Annotated[
        Texts, _option("What the console must show; several, in this order.", "REGEX")
    ] = None,
    reject: Annotated[Texts, _option("What the console must not show.", "REGEX")] = None,
    exit: Annotated[Texts, _option("How it must end: poweroff, reboot, panic, ...", "WORD")] = None,
    tolerate: Annotated[
        Texts, _option("What the kernel may do: warning, oops, bug, lockup.", "WORD")
    ] = None,
    timeout: Annotated[
        float | None, _option("Give up after this many seconds of real time; 300.", "SECONDS")
    ] = None,
    virtual_timeout: Annotated[
        float | None, _option("Give up after this many seconds of the guest's time.", "SECONDS")
    ] = None,
    quiet_timeout: Annotated[
        float | None,
        _option("Give up after as many of the guest's seconds without output; 20.", "SECONDS"),
    ] = None,
    jobs: Annotated[
        int, typer.Option("-j", "--jobs", min=1, metavar="N", help="How many boots at a time.")
    ] = len(os.sched_getaffinity(0)),
    fail_fast: Annotated[
        bool, typer.Option("--fail-fast", help="Stop at the first that does not pass.")
    ] = False,
    shard: Annotated[
        str | None, _option("Take the I-th of N parts of the matrix, as in 2/4.", "I/N")
    ] = None,
    list_only: Annotated[
        bool, typer.Option("--list", help="Print the boots' names, and run nothing.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything, print each boot, run nothing.")
    ] = False,
    junit: Annotated[Path | None, _option("Write JUnit's XML.", "FILE")] = None,
    json: Annotated[Path | None, _option("Write JSON in KernelCI's form.", "FILE")] = None,
    tap: Annotated[Path | None, _option("Write TAP.", "FILE")] = None,
    log_dir: Annotated[
        Path | None, _option("Write each console, with the guest's time, and each report.", "DIR")
    ] = None,
) -> None:
    """Boot many kernels, each in a process of its own, and judge each.

    A boot passes if its console shows what is expected, in order, and it ends as it should:
    without expectations, by a power-off or a reboot.
    """
    described = {
        "mode": mode, "cmdline": cmdline, "memory": memory, "initrd": initrd, "init": init,
        "rootfs": rootfs, "busybox": busybox, "expect": expect, "reject": reject, "exit": exit,
        "tolerate": tolerate, "timeout": timeout, "virtual_timeout": virtual_timeout,
        "quiet_timeout": quiet_timeout,
    }  # fmt: skip
    boots = _shard(_boots(what, {k: v for k, v in described.items() if v}), shard)
    if list_only or dry_run:
        for boot in boots:
            typer.echo(boot.name if list_only else _describe(boot))
        raise typer.Exit
    wanted: dict[Path | None, Callable[[Sequence[Result]], str | bytes]] = {
        junit: formats.junit,
        json: formats.kcidb,
        tap: formats.tap,
    }
    for path in wanted:
        _check_writable(path)
    _make_folder(log_dir)
    with _watcher() as watcher:
        results = runner.run(boots, jobs, watcher, fail_fast)
    for path, write in wanted.items():
        if path:
            data = write(results)
            path.write_bytes(data if isinstance(data, bytes) else data.encode())
    if log_dir:
        _write_logs(log_dir, results)
    _tell(results, len(boots))
    raise typer.Exit(worst(results))


def _boots(what: Sequence[Path], described: dict[str, Any]) -> list[Boot]:
    if [path.suffix for path in what] == [".toml"]:
        if described:
            option = next(iter(described)).replace("_", "-")
            raise UsageError(f"--{option}: {what[0]} says that; change it there")
        return load_plan(what[0])
    table = {k: str(v) if isinstance(v, Path) else v for k, v in described.items()}
    return make_boots(table | {"kernel": [str(path) for path in what]})


def _shard(boots: list[Boot], shard: str | None) -> list[Boot]:
    if shard is None:
        return boots
    found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", shard, re.ASCII)
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        raise UsageError(f"--shard {shard}: give a part and their number, as in 2/4")
    return boots[int(found[1]) - 1 :: int(found[2])]


def _describe(boot: Boot) -> str:
    """A boot on one line, as `xenemu run` would be asked for it."""
    limits = f"timeout {boot.timeout:g} s, quiet {boot.quiet_timeout:g} s"
    ends = " or ".join(boot.exit) or ("expected" if boot.expect else "poweroff, reboot or suspend")
    parts = (boot.mode.value, format_size(boot.memory), repr(boot.full_cmdline), limits, ends)
    return f"{boot.name}: {boot.kernel}, {', '.join(parts)}"


def _check_writable(path: Path | None) -> None:
    """Say now that a result cannot be written, and not after an hour of boots."""
    if path is None:
        return
    try:
        with path.open("ab"):
            pass
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from None


def _make_folder(folder: Path | None) -> None:
    try:
        if folder:
            folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--log-dir {folder}: {error.strerror}") from None


# While it runs.


class _Lines:
    """A line on standard error for each boot that has ended."""

    def began(self, boot: Boot) -> None:
        pass

    def progress(self, boot: Boot, progress: Progress) -> None:
        pass

    def finished(self, result: Result) -> None:
        typer.echo(_line(result), err=True)


class _Display:
    """For a terminal: what has ended, and below it a line for each boot that runs."""

    def __init__(self, live: Live) -> None:
        self._live = live
        self._lines: dict[str, str] = {}

    def began(self, boot: Boot) -> None:
        self._lines[boot.name] = f"  ...    {boot.name}"
        self._show()

    def progress(self, boot: Boot, progress: Progress) -> None:
        virtual_s = progress.virtual_ns / 1e9
        self._lines[boot.name] = f"{virtual_s:8.3f}  {boot.name}: {progress.words}"
        self._show()

    def finished(self, result: Result) -> None:
        del self._lines[result.boot.name]
        style = "red" if result.findings else "green"
        self._live.console.print(Text(_line(result), style=style))
        self._show()

    def _show(self) -> None:
        lines = [Text(line, no_wrap=True, overflow="ellipsis") for line in self._lines.values()]
        self._live.update(Text("\n").join(lines))


@contextmanager
def _watcher() -> Iterator[runner.Watcher]:
    console = Console(stderr=True, highlight=False)
    if not console.is_terminal:
        yield _Lines()
        return
    with Live(console=console, transient=True, refresh_per_second=REFRESHES) as live:
        yield _Display(live)


def _line(result: Result) -> str:
    verdict = result.verdict.value if result.findings else "ok"
    took = f"{result.virtual_ns / 1e9:.3f} s of its time, {result.host_s:.1f} s here"
    return f"{verdict:>12}  {result.boot.name}: {result.sentence} ({took})"


# Afterwards.


def _write_logs(folder: Path, results: Sequence[Result]) -> None:
    for result in results:
        (folder / f"{result.boot.slug}.log").write_text(result.log)
        if result.report:
            (folder / f"{result.boot.slug}.report").write_text(result.report)


def _tell(results: Sequence[Result], planned: int) -> None:
    on_github = os.environ.get("GITHUB_ACTIONS") == "true"
    for result in results:
        if result.findings:
            _tell_failure(result, on_github)
    summary = os.environ.get("GITHUB_STEP_SUMMARY")
    if summary:
        with Path(summary).open("a", encoding="utf-8") as file:
            file.write(formats.github_summary(results))
    typer.echo(_table(results))
    passed = sum(not result.findings for result in results)
    skipped = f", {planned - len(results)} not run" if len(results) < planned else ""
    typer.echo(f"{passed} of {planned} boots passed{skipped}")


def _tell_failure(result: Result, on_github: bool) -> None:
    heading = f"{result.boot.name}: {result.verdict.value}: {result.sentence}"
    if on_github:
        typer.echo(formats.github_annotation(result))
    typer.echo(f"::group::{heading}" if on_github else f"=== {heading}")
    lines = result.log.splitlines()
    if lines:
        typer.echo("Console, with the guest's time:")
    if len(lines) > TAIL:
        typer.echo("  ...")
    for line in lines[-TAIL:]:
        typer.echo(f"  {line}")
    if result.report:
        typer.echo(result.report.rstrip())
    typer.echo("::endgroup::" if on_github else "")


def _table(results: Sequence[Result]) -> str:
    rows = [("verdict", "boot", "mode", "virtual s", "host s", "cpu s", "MiB", "tests")]
    rows += [
        (
            result.verdict.value,
            result.boot.name,
            result.mode,
            f"{result.virtual_ns / 1e9:.3f}",
            f"{result.host_s:.1f}",
            f"{result.cpu_s:.1f}",
            str(result.peak_kib >> 10),
            result.tests,
        )
        for result in results
    ]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    left = (0, 1, 2, 7)
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i in left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )
