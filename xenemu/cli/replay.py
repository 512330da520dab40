"""`xenemu replay`: repeat a recorded run, to the byte."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from inspect import signature
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec
import typer

from xenemu import entries
from xenemu.cli.attended import AttendedRun, Confine, check_confine, listening
from xenemu.cli.command import Command
from xenemu.cli.covering import CoverageByVcpu, Covering
from xenemu.cli.dumping import CoreAfter, CoreTo, Dumping
from xenemu.cli.engine_options import CACHE, TranslationCache, bound_translations
from xenemu.cli.expect import Expectations
from xenemu.cli.guest import Fresh
from xenemu.cli.guest_options import initial_ramdisk
from xenemu.cli.run import run
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
    Coverage,
    Explain,
    Gdb,
    HowTraced,
    Log,
    NoFast,
    Symbols,
    Timeout,
    Trace,
    TraceFile,
    TraceFilter,
    Verbose,
)
from xenemu.disks import Access, name_all, opened, parse_disk
from xenemu.dom0.block import Block
from xenemu.dom0.net import Vif
from xenemu.dom0.p9 import Share
from xenemu.dom0.p9_messages import Export
from xenemu.errors import UsageError
from xenemu.hv.building import Module
from xenemu.image import DraftNotes
from xenemu.machine import DomainConfig, Limits
from xenemu.machine.ends import Life
from xenemu.network.wired import Wired
from xenemu.network.wires import Nobody
from xenemu.options import (
    digest_of,
    parse_module,
    parse_nanoseconds,
    parse_seconds,
    read_module,
    read_tree,
)
from xenemu.outputs import Outputs
from xenemu.recording import file as recording_file
from xenemu.recording.player import Player
from xenemu.recording.start import Named, Start, digest, digest_of_tree
from xenemu.records import dataclass


class Fixed(Command):
    """Says of an option that would change the guest why there is none."""

    # The context's class is typer's own, or click's: it depends on typer's version.
    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except Exception as error:
            name = getattr(error, "option_name", "")
            if name not in {f"--{each.replace('_', '-')}" for each in signature(run).parameters}:
                raise
            raise UsageError(
                f"{name}: the guest is the recorded one: record another to change it"
            ) from None


COMMAND: Final = Fixed
HELP_EPILOG: Final = """\b
Exit codes are those of the recorded run, and
  3    the recording ends before its run did
  7    a file is another one than was recorded
  9    the run was not repeated: standard error tells from which instruction on
"""


@dataclass(frozen=True)
class Moved:
    """Where a person says that files are now."""

    kernel: Path | None = None
    initrd: Path | None = None
    disks: Sequence[str] = ()


@dataclass(frozen=True)
class Repeated:
    """The start of a recorded run, with its files as they were; all raise UsageError."""

    file: Path
    start: Start
    moved: Moved

    def guest(self) -> Fresh:
        """What is to be booted."""
        start, path = self.start, self.moved.kernel or Path(self.start.kernel.path)
        if start.mode not in entries.MODES:
            raise UsageError(f"{self.file}: its start makes no sense: mode {start.mode!r}")
        self._compare("kernel", path, start.kernel.digest, "--kernel")
        notes = DraftNotes(*start.draft_notes) if start.draft_notes else None
        return Fresh(path, start.mode, self._config(), notes, verb="repeating")

    def _compare(self, what: str, path: Path, wanted: str, option: str) -> None:
        at, advice = f"{self.file}: its {what}", f"; say where it is: {option}"
        if digest_of(path, at, advice) != wanted:
            raise UsageError(f"{at}: {path} is another file{advice}")

    def _config(self) -> DomainConfig:
        start = self.start
        plain = msgspec.structs.asdict(start.config)
        try:
            return DomainConfig(
                **plain,
                initrd=self._ramdisk(),
                modules=tuple(map(self._module, start.modules)),
                efi_root=self._tree(start.efi_root) if start.efi_root else None,
            )
        except ValueError as error:  # a name with a NUL in it
            raise UsageError(f"{self.file}: its start makes no sense: {error}") from None

    def _ramdisk(self) -> bytes:
        start, memory = self.start, self.start.config.memory
        if not start.ramdisk_digest:
            return b""
        made_of = {option: Path(path) for option, path in start.ramdisk.items()}
        initrd, init = made_of.get("initrd"), made_of.get("init")
        rootfs, busybox = made_of.get("rootfs"), made_of.get("busybox")
        for path in [self.moved.initrd] if self.moved.initrd else [initrd, init, busybox]:
            if path is not None and path.exists() and not path.is_file():
                raise UsageError(
                    f"{self.file}: its initial ramdisk {path}: not a file; say where it is:"
                    " --initrd"
                )
        if self.moved.initrd is not None:
            data = read_module("--initrd", self.moved.initrd, memory)
        else:
            try:
                data = initial_ramdisk(initrd, init, rootfs, busybox, memory)
            except UsageError as error:  # which begins with an option
                said = str(error).removeprefix("--")
                raise UsageError(f"{self.file}: its {said}; say where it is: --initrd") from None
        if digest(data) != start.ramdisk_digest:
            where = self.moved.initrd or ", ".join(start.ramdisk.values())
            raise UsageError(
                f"{self.file}: its initial ramdisk {where}: another is there now; say where it is:"
                " --initrd"
            )
        return data

    def _module(self, named: Named) -> Module:
        if Path(named.path).exists() and not Path(named.path).is_file():
            raise UsageError(f"{self.file}: its module {named.path}: not a file")
        module = parse_module(f"{self.file}: its module", named.path, self.start.config.memory)
        if digest(module.data) != named.digest:
            raise UsageError(f"{self.file}: its module {named.path}: another file is there now")
        cmdline = os.fsencode(named.said[1:]) if named.said else None
        return replace(module, cmdline=cmdline)

    def _tree(self, named: Named) -> dict[str, bytes]:
        tree = read_tree(f"{self.file}: its EFI root", Path(named.path))
        if digest_of_tree(tree) != named.digest:
            raise UsageError(f"{self.file}: its EFI root {named.path}: other files are there now")
        return tree

    def disks(self, files: ExitStack) -> list[Block]:
        """Its disks. Whatever the guest writes is kept for this run only."""
        at = f"{self.file}: its disk"
        kept = self.start.disks
        specs = [parse_disk(at, f"{named.path}{named.said}") for named in kept]
        names = [name for name, _ in name_all(at, specs)]
        paths = {name: spec.path for name, spec in zip(names, specs, strict=True)}
        for text in self.moved.disks:
            path, _, name = text.partition(",name=")
            if name not in paths:
                known = " or ".join(f"FILE,name={each}" for each in names)
                raise UsageError(
                    f"--disk {text}: {f'give {known}' if names else f'{self.file} has none'}"
                )
            paths[name] = Path(path)
        found = []
        for name, spec, named in zip(names, specs, kept, strict=True):
            option = f"--disk FILE,name={name}"
            self._compare("disk", paths[name], named.digest, option)
            access = Access.OVERLAY if spec.access is Access.WRITE else spec.access
            found.append(replace(spec, path=paths[name], name=name, access=access, overlay=None))
        blocks = files.enter_context(opened(at, found))
        for block, named in zip(blocks, kept, strict=True):
            block.params = named.given
        return blocks

    def shares(self, player: Player) -> list[Share]:
        """Its shared directories, of which there are the answers alone."""
        shares = []
        for devid, shared in enumerate(self.start.shares):
            export = Export(shared.path, shared.writable, shared.uid)
            share = Share(devid, shared.tag, export, player.server(""), later=shared.later)
            share.server = player.server(share.name)
            shares.append(share)
        return shares

    @property
    def life(self) -> Life:
        """What becomes of the domain when it ends."""
        start = self.start
        life = Life(start.rules, start.max_restarts)
        if start.on_suspend != "end":
            from xenemu.cli.suspending import Suspending  # noqa: PLC0415 (few runs want it)

            suspending = Suspending(Suspending.action_of(start.on_suspend), start.suspended_for_ns)
            suspending.take_part(life)
        return life

    @property
    def expectations(self) -> Expectations:
        """What its console had to show. What a script has typed comes from the recording."""
        start = self.start
        if not start.script:
            return Expectations(start.expects)
        from xenemu.cli.script import Script, checked  # noqa: PLC0415 (few runs want it)

        return Expectations(start.expects, Script(checked(str(self.file), start.script)))

    def network(self) -> Wired | None:
        """Its interfaces, with nobody at the other ends."""
        kept = enumerate(self.start.vifs)
        vifs = [Vif(index, vif.mac, later=vif.later) for index, vif in kept]
        return Wired(vifs, [Nobody() for _ in vifs]) if vifs else None


def replay(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What --record has written.")],
    kernel: Annotated[
        Path | None,
        typer.Option(
            help="Where the kernel is now, if it is not where it was booted from.", metavar="FILE"
        ),
    ] = None,
    initrd: Annotated[
        Path | None,
        typer.Option(
            help="Where the initial ramdisk is now, if it cannot be had as it was.", metavar="FILE"
        ),
    ] = None,
    disk: Annotated[
        list[str] | None,
        typer.Option(
            help="Where a disk is now, as it was when the run began; for several, say it again.",
            metavar="FILE,name=xvda",
        ),
    ] = None,
    beyond: Annotated[
        bool,
        typer.Option(
            "--beyond",
            help="Where a recording was cut, because its run was killed, let the guest go on"
            " without input.",
        ),
    ] = False,
    timeout: Timeout = None,
    log: Log = None,
    pcap: Annotated[
        Path | None,
        typer.Option(
            help="Write all packets of all interfaces, as run --pcap does.", metavar="FILE"
        ),
    ] = None,
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
    audit: Audit = None,
    no_fast: NoFast = False,
    translation_cache: TranslationCache = CACHE,
    confined: Confined = Confine.AUTO,
    verbose: Verbose = False,
) -> None:
    """Repeat a recorded run, to the byte.

    xenemu run --record writes the recording.

    What was typed, what came from the network and what a share's server answered comes again at the
    same instructions. Nothing is sent to anybody. The kernel must be there, and its disks, all as
    they were.
    """
    limits = Limits(parse_seconds("--timeout", timeout) if timeout is not None else None)
    recording = recording_file.read(file)
    start = recording.header.start
    repeated = Repeated(file, start, Moved(kernel, initrd, disk or ()))
    player = Player(recording, beyond)
    audit_ns = parse_nanoseconds("--audit", audit) if audit is not None else None
    check_confine(confined)
    bound_translations(translation_cache)
    asked = Watching.parse(explain, trace, trace_filter, trace_format, trace_file is not None)
    guest, wired = repeated.guest(), repeated.network()
    if pcap is not None and wired is None:
        raise UsageError(f"--pcap: the guest of {file} has no network")
    with Outputs() as outputs, listening(gdb) as listener, ExitStack() as files:
        attended = AttendedRun(
            guest,
            symbols,
            is_shell=False,
            limits=limits,
            audit_ns=audit_ns,
            fast=not no_fast,
            expectations=repeated.expectations,
            watching=asked,
            confined=confined,
            verbose=verbose,
            log=outputs.open("--log", log) if log else None,
            trace_file=outputs.open("--trace-file", trace_file) if trace_file else None,
            covering=Covering.parse(outputs, coverage, coverage_by_vcpu, guest.config.all_vcpus),
            viewing=Viewing.parse(
                outputs, timeline, timeline_host_time, profile or (), profile_every, memory_map, gdb
            ),
            listener=listener,
            wired=wired,
            capture=outputs.open("--pcap", pcap) if pcap else None,
            devices=[*repeated.disks(files), *repeated.shares(player)],
            player=player,
            dumping=Dumping.parse(outputs, core, core_when),
            life=repeated.life,
        )
        code = attended.run()
    raise typer.Exit(code)
