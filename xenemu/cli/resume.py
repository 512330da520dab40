"""`xenemu resume`: go on from a snapshot, as `xenemu run` would have gone on."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Final

import typer

from xenemu import image
from xenemu.aside import Aside
from xenemu.cli import audited
from xenemu.cli.attended import AttendedRun, Confine, check_confine, controlled, listening
from xenemu.cli.covering import CoverageByVcpu, Covering
from xenemu.cli.dumping import CoreAfter, CoreTo, Dumping
from xenemu.cli.engine_options import CACHE, TranslationCache, bound_translations
from xenemu.cli.guest import Load
from xenemu.cli.input_options import (
    Input,
    QuietTimeout,
    Send,
    VirtualTimeout,
    expectations_of,
)
from xenemu.cli.keeping import Keeping
from xenemu.cli.patience import Patience
from xenemu.cli.screen import is_terminal
from xenemu.cli.suspend_options import OnSuspend, SuspendedFor, parse_away, suspending_of
from xenemu.cli.viewing import (
    MemoryMapTo,
    ProfileEvery,
    ProfileTo,
    TimelineHostTime,
    TimelineTo,
    Viewing,
)
from xenemu.cli.watch import TraceFormat, Watching
from xenemu.cli.watch_options import (
    Audit,
    Confined,
    Control,
    Coverage,
    Expect,
    Explain,
    Gdb,
    HowTraced,
    Log,
    NoFast,
    SnapshotAt,
    SnapshotTo,
    Symbols,
    Timeout,
    Trace,
    TraceFile,
    TraceFilter,
    Verbose,
)
from xenemu.disks import DiskSpec, name_all, opened, parse_disk
from xenemu.dom0.bus import BusBackend
from xenemu.errors import UsageError, XenError
from xenemu.machine import Limits, Machine, snapshot_file
from xenemu.machine.snapshot_file import Header, Saved
from xenemu.network import networked
from xenemu.network.asked import reaches_nobody
from xenemu.options import MAX_VCPUS, digest_of, parse_nanoseconds, parse_seconds
from xenemu.outputs import Outputs
from xenemu.records import dataclass

NONSENSE: Final = (  # what a snapshot's data can come to
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    TypeError,
    ValueError,
    XenError,
)


@dataclass
class Resumed:
    """A machine from the snapshot `file`, with its kernel and its disks where they are now."""

    file: Path
    saved: Saved
    kernel: Path
    disks: Sequence[DiskSpec]
    kernel_digest: str = ""  # if it is known already
    verb: str = "going on with"

    @property
    def memory(self) -> int:
        return self.saved.header.memory

    def load(self) -> Load:
        self._files = files = Aside(self._look_at_files)

        def load() -> image.Image:
            return files.result()()

        return load

    def _look_at_files(self) -> Load:
        """The kernel's image, for later; UsageError if it is another, or if a disk is."""
        header = self.saved.header
        at, advice = f"{self.file}: its kernel", "; say where it is: --kernel"
        found = self.kernel_digest or digest_of(self.kernel, at, advice)
        if found != header.kernel_digest:
            raise UsageError(f"{at}: {self.kernel} is another file{advice}")
        at = f"{self.file}: its disk"
        names = name_all(at, self.disks)
        for spec, (name, _), digest in zip(self.disks, names, header.disk_digests, strict=True):
            advice = f"; say where it is: --disk FILE,name={name}"
            if digest_of(spec.path, at, advice) != digest:
                raise UsageError(f"{at} {spec.path}: something else is there now{advice}")
        return image.load_later(self.kernel)

    def build(self, load: Load, devices: Sequence[BusBackend]) -> Machine:
        machine = revived(self.file, self.saved, devices)
        self._files.result()
        return machine


def check(file: Path, header: Header) -> None:
    """UsageError if a header asks for what `--snapshot` never keeps.

    A stranger's could want a disk to be written to, a file to be made, or the host's network.
    """
    at = f"{file}: its disk"
    texts = [header.kernel, header.name, *header.disks, *header.nets]
    wanted = [spec.leaves for spec in (parse_disk(at, text) for text in header.disks)]
    wanted += [f"--net {net}" for net in header.nets if not reaches_nobody(net)]
    for what in filter(None, wanted):
        raise UsageError(f"{file}: no snapshot of xenemu's has {what} in it: do not trust it")
    if (
        any("\0" in text for text in texts)
        or len(header.disks) != len(header.disk_digests)
        or header.memory <= 0
        or header.memory % 1024
        or not 0 < header.vcpus <= MAX_VCPUS
    ):
        raise UsageError(f"{file}: no snapshot that can go on: its header makes no sense")


def moved(file: Path, kept: Sequence[str], typed: Sequence[str]) -> list[str]:
    """The disks of a snapshot, where they are now, as --disk has them; UsageError."""
    at = f"{file}: its disk"
    names = name_all(at, [parse_disk(at, text) for text in kept])
    disks = {name: text for text, (name, _) in zip(kept, names, strict=True)}
    for text in typed:
        path, _, name = text.partition(",name=")
        if name not in disks:
            known = " or ".join(f"FILE,name={each}" for each in disks)
            raise UsageError(f"--disk {text}: {f'give {known}' if disks else f'{file} has none'}")
        _, comma, rest = disks[name].partition(",")
        disks[name] = f"{os.path.abspath(path)}{comma}{rest}"
    return list(disks.values())


def revived(file: Path, saved: Saved, devices: Sequence[BusBackend]) -> Machine:
    """A machine that goes on from a snapshot; UsageError if the snapshot makes no sense.

    A snapshot may be a stranger's. What was read is plain data, but may be of any type and size. So
    whatever it comes to is the snapshot's fault. The books are audited when a file is first gone on
    with.
    """
    faults = []
    try:
        machine = Machine.revive(saved.snapshot, devices)
        if not audited.knows(saved.digest):
            faults = machine.personality.audit(machine.domain)
    except NONSENSE as error:
        raise UsageError(f"{file}: no snapshot that can go on: {error}") from None
    if faults:
        raise UsageError(f"{file}: no snapshot that can go on: {faults[0]}")
    audited.remember(saved.digest)
    return machine


def resume(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What --snapshot has written.")],
    kernel: Annotated[
        Path | None,
        typer.Option(
            help="Where the kernel is now, if it is not where it was booted from.", metavar="FILE"
        ),
    ] = None,
    disk: Annotated[
        list[str] | None,
        typer.Option(
            help="Where a disk is now, if it is not where it was; for several, say it again.",
            metavar="FILE,name=xvda",
        ),
    ] = None,
    timeout: Timeout = None,
    virtual_timeout: VirtualTimeout = None,
    quiet_timeout: QuietTimeout = None,
    expect: Expect = None,
    send: Send = None,
    script: Input = None,
    log: Log = None,
    snapshot: SnapshotTo = None,
    snapshot_at: SnapshotAt = None,
    core: CoreTo = None,
    core_when: CoreAfter = None,
    explain: Explain = False,
    trace: Trace = None,
    trace_filter: TraceFilter = None,
    trace_file: TraceFile = None,
    trace_format: HowTraced = TraceFormat.TEXT,
    coverage: Coverage = None,
    coverage_by_vcpu: CoverageByVcpu = False,
    timeline: TimelineTo = None,
    timeline_host_time: TimelineHostTime = False,
    profile: ProfileTo = None,
    profile_every: ProfileEvery = None,
    memory_map: MemoryMapTo = None,
    gdb: Gdb = None,
    symbols: Symbols = None,
    control: Control = None,
    on_suspend: OnSuspend = "end",
    suspended_for: SuspendedFor = "1s",
    audit: Audit = None,
    no_fast: NoFast = False,
    translation_cache: TranslationCache = CACHE,
    confined: Confined = Confine.AUTO,
    verbose: Verbose = False,
) -> None:
    """Go on from a snapshot, as if it had not been stopped.

    xenemu run --snapshot writes one.

    The guest does what it would have done if it had not been stopped, to the byte, but for what is
    typed. Its kernel must be there, and its disks, all as they were. Exit codes are those of xenemu
    run.
    """
    limits = Limits(parse_seconds("--timeout", timeout) if timeout is not None else None)
    saved = snapshot_file.read(file)
    header = saved.header
    check(file, header)
    header.disks = moved(file, header.disks, disk or [])
    disks = [parse_disk(f"{file}: its disk", text) for text in header.disks]
    header.kernel = os.path.abspath(kernel or header.kernel)
    known = "" if kernel else saved.kernel_digest
    guest = Resumed(file, saved, Path(header.kernel), disks, known)
    audit_ns = parse_nanoseconds("--audit", audit) if audit is not None else None
    away_ns = parse_away(suspended_for)
    check_confine(confined)
    bound_translations(translation_cache)
    patience = Patience.parse(virtual_timeout, quiet_timeout)
    expectations = expectations_of(context, expect, send, script)
    with (
        Outputs() as outputs,
        listening(gdb) as listener,
        controlled("--control", control) as channel,
        opened(f"{file}: its disk", disks) as devices,
        networked(f"{file}: its network", header.nets, header.name) as wired,
    ):
        keeping = None
        if snapshot or snapshot_at is not None:
            asked_for = gdb is not None or control is not None or is_terminal(sys.stdin)
            keeping = Keeping.parse(
                outputs, snapshot or [], snapshot_at, header, expectations, asked_for
            )
        attended = AttendedRun(
            guest,
            symbols,
            is_shell=header.is_shell,
            limits=limits,
            audit_ns=audit_ns,
            fast=not no_fast,
            expectations=expectations,
            watching=Watching.parse(
                explain, trace, trace_filter, trace_format, trace_file is not None
            ),
            confined=confined,
            verbose=verbose,
            log=outputs.open("--log", log) if log else None,
            trace_file=outputs.open("--trace-file", trace_file) if trace_file else None,
            covering=Covering.parse(outputs, coverage, coverage_by_vcpu, header.vcpus),
            viewing=Viewing.parse(
                outputs, timeline, timeline_host_time, profile or (), profile_every, memory_map, gdb
            ),
            listener=listener,
            wired=wired,
            devices=devices,
            keeping=keeping,
            channel=channel,
            dumping=Dumping.parse(outputs, core, core_when),
            suspending=suspending_of(outputs, on_suspend, away_ns),
            patience=patience,
            takes_input=script is None,
        )
        code = attended.run()
    raise typer.Exit(code)
