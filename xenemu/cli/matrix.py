"""What `xenemu smoke` does: its boots, their progress, and what is told of them."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

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


def boots(what: Sequence[Path], described: dict[str, Any], shard: str | None) -> list[Boot]:
    """The boots of a plan, or of the options; UsageError: they are not as they should be."""
    return _shard(_boots(what, described), shard)


def run(
    boots: list[Boot],
    jobs: int,
    fail_fast: bool,
    junit: Path | None,
    json: Path | None,
    tap: Path | None,
    log_dir: Path | None,
) -> int:
    """Boot all, write the results to the files given, tell of them; return the exit code."""
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
    return worst(results)


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


def describe(boot: Boot) -> str:
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
