"""What `xenemu smoke` does: its boots, their progress, and what it prints about them."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import typer
from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from xenemu.cli import github
from xenemu.cli.screen import redraws
from xenemu.cli.signals import Noted
from xenemu.errors import OutputError, UsageError
from xenemu.hv.state.schedule import Schedule
from xenemu.options import format_size
from xenemu.outcome import EXIT_IMAGE
from xenemu.outputs import Output, Outputs, encode
from xenemu.records import dataclass
from xenemu.smoke import formats, runner, worker
from xenemu.smoke.ending import console_end
from xenemu.smoke.plan import Boot, load_plan, make_boots
from xenemu.smoke.results import CODES, Result, never_run, worst
from xenemu.smoke.runner import Unseen
from xenemu.smoke.worker import Progress

if TYPE_CHECKING:
    from xenemu.smoke.page import Page

Format = Callable[[Sequence[Result]], str | bytes]

SUFFIXES: Final = (".log", ".report", ".rec", ".core.zst")  # of what a directory has of each boot
LOST: Final = 5  # outputs that are lost, each told of
REFRESHES: Final = 4  # per second
MOST_LINES: Final = 100  # of boots that run: an executor may have thousands


def boots(what: Sequence[Path], described: dict[str, Any], shard: str | None) -> list[Boot]:
    """The boots of a plan, or of the options; UsageError: they are not as they should be."""
    return _shard(_boots(what, described), shard)


@dataclass(frozen=True)
class Files:
    """The outputs that a person wants."""

    junit: Path | None = None
    json: Path | None = None
    tap: Path | None = None
    coverage: Path | None = None
    log_dir: Path | None = None
    coverage_by_vcpu: bool = False
    html: Path | None = None
    baseline: Path | None = None

    def page(self, boots: list[Boot]) -> Page | None:
        """The page for a person, if one is wanted; UsageError."""
        if self.html is None:
            if self.baseline is not None:
                raise UsageError("--baseline: say which page is to compare with it: --html FILE")
            return None
        from xenemu.smoke.page import Page  # noqa: PLC0415 (nobody else pays for it)

        return Page.of(boots, self.baseline)

    def open(
        self, outputs: Outputs, boots: list[Boot], page: Page | None
    ) -> tuple[list[_Document], _Logs | None]:
        """Open them; UsageError."""
        wanted: list[tuple[str, Path | None, Format]] = [
            ("--junit", self.junit, formats.junit),
            ("--json", self.json, formats.kcidb),
            ("--tap", self.tap, formats.tap),
            ("--coverage", self.coverage, formats.lcov),
        ]
        if page:
            wanted.append(("--html", self.html, page.text))
        documents = [
            _Document(outputs.open(name, path), form) for name, path, form in wanted if path
        ]
        return documents, _Logs(outputs, self.log_dir, boots) if self.log_dir else None


def check(boots: list[Boot], jobs: int, files: Files) -> int:
    """Do all that `run` does before a guest's first instruction; return the exit code.

    Tell of each boot what it is, and what is wrong with it. Leave no file.
    """
    _check_scratch()
    with Noted() as noted, Outputs() as outputs:
        files.open(outputs, boots, files.page(boots))
        outputs.discard()
        built = [replace(boot, is_origin=False) for boot in boots if not boot.origin]
        results = runner.run(built, jobs, Unseen(), main=worker.check, interruption=noted)
    found = {result.boot.name: result for result in results}
    for boot in boots:
        typer.echo(describe(boot))
        if boot.name in found and found[boot.name].findings:
            _tell_fault(found[boot.name])
    return 128 + noted.signum if noted.signum else worst(results)


def _tell_fault(result: Result) -> None:
    boot = result.boot
    place = f"{boot.place}: " if boot.place else ""
    typer.echo(f"xenemu: {place}{boot.name}: {result.sentence}", err=True)
    if github.is_here() and not result.skipped:
        typer.echo(formats.github_annotation(result))


def run(
    boots: list[Boot], jobs: int | None, fail_fast: bool, files: Files, executor: str | None = None
) -> int:
    """Boot all, write the results to the files given, tell of them; return the exit code.

    A signal stops the boots: what has not ended is skipped, and all else is done as ever. With
    `executor`, which names a function, the workers of what that returns boot.
    """
    _check_scratch()
    how = _runner(executor)
    covered, by_vcpu = files.coverage is not None, files.coverage_by_vcpu
    kept = files.log_dir is not None
    boots = [
        replace(boot, covered=covered, covered_by_vcpu=by_vcpu, recorded=kept, dumped=kept)
        for boot in boots
    ]
    with Noted() as noted, Outputs() as outputs:
        page = files.page(boots)
        documents, logs = files.open(outputs, boots, page)
        for document in documents:
            document.begin(boots)
        with _watcher(logs) as watcher:
            results = how(boots, jobs, watcher, fail_fast, interruption=noted)
        lost = logs.lost if logs else []
        for document in documents:
            with _noted_in(lost):
                document.end(results)
        if page:
            with _noted_in(lost):
                page.keep(results)
        with _noted_in(lost):
            github.summarise(formats.github_summary(results))
    for result in results:
        if result.uncovered:
            typer.echo(f"xenemu: --coverage: {result.boot.name}: {result.uncovered}", err=True)
    try:
        _tell(results)
    except OutputError:
        if not noted.signum:  # which may be that the terminal was hung up
            raise
    return _exit_code(results, lost, noted.signum)


def _runner(executor: str | None) -> Callable[..., list[Result]]:
    """How boots are run; UsageError."""
    if executor is None:
        return runner.run
    from xenemu.smoke import executor as elsewhere  # noqa: PLC0415 (few want it)

    return partial(elsewhere.run, elsewhere.named(executor))


def _check_scratch() -> None:
    """Say now that no boot can have a file for its last words."""
    try:
        tempfile.gettempdir()
    except OSError as error:
        raise UsageError(f"no place for temporary files: {error.strerror}") from None


def _exit_code(results: Sequence[Result], lost: Sequence[str], signum: int) -> int:
    """Tell of outputs that were lost; the exit code."""
    if lost:
        more = [f"{len(lost) - LOST} more outputs are lost"] if lost[LOST:] else []
        for sentence in [*lost[:LOST], *more]:
            typer.echo(f"xenemu: {sentence}", err=True)
    if signum:
        return 128 + signum
    return min(worst(results), EXIT_IMAGE if lost else 0, key=CODES.index)


def _boots(what: Sequence[Path], described: dict[str, Any]) -> list[Boot]:
    if [path.suffix for path in what] == [".toml"]:
        if described:
            option = _option(next(iter(described)))
            raise UsageError(f"{option}: {what[0]} says that; change it there")
        return load_plan(what[0])
    for path in what:
        if path.suffix == ".toml":
            raise UsageError(f"{path}: a plan stands alone; put the other kernels into it")
    table = {k: str(v) if isinstance(v, Path) else v for k, v in described.items()}
    return make_boots(table | {"kernel": [str(path) for path in what]}, spell=_option)


def _option(key: str) -> str:
    """What a key of a plan is called on the command line."""
    return key if key == "kernel" else f"--{key.replace('_', '-')}"


def _shard(boots: list[Boot], shard: str | None) -> list[Boot]:
    if shard is None:
        return boots
    found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", shard, re.ASCII)
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        raise UsageError(f"--shard {shard}: give a part and their number, as in 2/4")
    part = _with_origins(boots, boots[int(found[1]) - 1 :: int(found[2])])
    if not part:
        typer.echo(f"xenemu: --shard {shard}: nothing to boot, of {len(boots)} in all", err=True)
    return part


def _with_origins(boots: list[Boot], part: list[Boot]) -> list[Boot]:
    """A part of the boots, with those that others of it start from."""
    names = {boot.name for boot in part}
    for boot in reversed(boots):  # an origin stands before what starts from it
        if boot.name in names and boot.origin:
            names.add(boot.origin.name)
    return [boot for boot in boots if boot.name in names]


def describe(boot: Boot) -> str:
    """A boot on one line, as `xenemu run` would be asked for it."""
    limits = f"timeout {boot.timeout:g} s, quiet {boot.quiet_timeout:g} s"
    ends = " or ".join(boot.exit) or ("expected" if boot.expect else "poweroff, reboot or suspend")
    order = Schedule(boot.slice, boot.schedule_seed).options
    if boot.origin:
        machine = [f"from {boot.origin.name}", order]
    else:
        size = format_size(boot.memory) + (f", {boot.vcpus} vcpus" if boot.vcpus > 1 else "")
        machine = [str(boot.kernel), boot.mode, size, order, repr(boot.full_cmdline)]
    return f"{boot.name}: {', '.join(filter(None, (*machine, limits, ends)))}"


# What is written.


class _Document:
    """All results in one file."""

    def __init__(self, output: Output, form: Format) -> None:
        self._output, self._form = output, form

    def begin(self, boots: Sequence[Boot]) -> None:
        """Write what is true if xenemu is killed: a file that CI can read; OutputError."""
        if self._output.is_file:
            self.end([never_run(boot, "xenemu was killed") for boot in boots])

    def end(self, results: Sequence[Result]) -> None:
        """Write the results; OutputError."""
        data = self._form(results)
        self._output.write(encode(data) if isinstance(data, str) else data, anew=True)


class _Logs:
    """A directory with the console of each boot, written when that has ended.

    Of one that did not pass, it has the report, too, and the recording; of one that crashed, its
    core.
    """

    def __init__(self, outputs: Outputs, path: Path, boots: Sequence[Boot]) -> None:
        names = [f"{boot.slug}{suffix}" for boot in boots for suffix in SUFFIXES]
        self._folder = outputs.folder("--log-dir", path, names)
        self.lost: list[str] = []

    def write(self, result: Result) -> None:
        """Write them; what cannot be written is noted."""
        with _noted_in(self.lost):
            self._folder.write(f"{result.boot.slug}.log", result.log)
        if result.report:
            with _noted_in(self.lost):
                self._folder.write(f"{result.boot.slug}.report", result.report)
        if result.recording:
            with _noted_in(self.lost):
                self._folder.write(f"{result.boot.slug}.rec", result.recording)
        if result.core:
            with _noted_in(self.lost):
                self._folder.write(f"{result.boot.slug}.core.zst", result.core)
            result.core = b""  # a matrix may have many


@contextmanager
def _noted_in(lost: list[str]) -> Iterator[None]:
    """Note that an output is lost, and go on: there are others."""
    try:
        yield
    except OutputError as error:
        lost.append(str(error))


# While it runs.


class _Lines(Unseen):
    """A line on standard error for each boot that has ended; its log is written first."""

    def __init__(self, logs: _Logs | None) -> None:
        self._logs = logs

    def finished(self, result: Result) -> None:
        if self._logs:
            self._logs.write(result)
        self.show(result)

    def show(self, result: Result) -> None:
        typer.echo(_line(result), err=True)


class _Display(_Lines):
    """For a terminal: what has ended, and below it a line for each boot that runs."""

    def __init__(self, logs: _Logs | None, live: Live) -> None:
        super().__init__(logs)
        self._live = live
        self._lines: dict[str, str] = {}

    def began(self, boot: Boot) -> None:
        self._lines[boot.name] = f"  ...    {boot.name}"
        self._draw()

    def progress(self, boot: Boot, progress: Progress) -> None:
        virtual_s = progress.virtual_ns / 1e9
        self._lines[boot.name] = f"{virtual_s:8.3f}  {boot.name}: {progress.words}"
        self._draw()

    def show(self, result: Result) -> None:
        del self._lines[result.boot.name]
        style = "yellow" if result.skipped else "red" if result.findings else "green"
        self._live.console.print(Text(_line(result), style=style), soft_wrap=True)
        self._draw()

    def _draw(self) -> None:
        lines = [
            Text(line, no_wrap=True, overflow="ellipsis")
            for line in islice(self._lines.values(), MOST_LINES)
        ]
        self._live.update(Group(*lines))


@contextmanager
def _watcher(logs: _Logs | None) -> Iterator[runner.Watcher]:
    if not redraws():
        yield _Lines(logs)
        return
    console = Console(stderr=True, highlight=False)
    with Live(console=console, transient=True, refresh_per_second=REFRESHES) as live:
        console.show_cursor()  # which else would stay hidden when a signal ends or stops xenemu
        yield _Display(logs, live)


def _line(result: Result) -> str:
    verdict = result.verdict.value if result.findings else "ok"
    took = f"{result.virtual_ns / 1e9:.3f} s of its time, {result.host_s:.1f} s here"
    return f"{verdict:>12}  {result.boot.name}: {result.sentence} ({took})"


# Afterwards.


def _tell(results: Sequence[Result]) -> None:
    on_github = github.is_here()
    for result in results:
        if result.findings and not result.skipped:
            _tell_failure(result, on_github)
    typer.echo(_table(results))
    passed = sum(not result.findings for result in results)
    skipped = sum(result.skipped for result in results)
    typer.echo(
        f"{passed} of {len(results)} boots passed{f', {skipped} skipped' if skipped else ''}"
    )


def _tell_failure(result: Result, on_github: bool) -> None:
    heading = f"{result.boot.name}: {result.verdict.value}: {result.sentence}"
    if on_github:
        typer.echo(formats.github_annotation(result))
    typer.echo(f"::group::{heading}" if on_github else f"=== {heading}")
    lines = console_end(result.log)
    if lines:
        typer.echo("Console, with the guest's time:")
    if len(lines) < len(result.log.splitlines()):
        typer.echo("  ...")
    for line in lines:
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
