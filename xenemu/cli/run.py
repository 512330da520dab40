"""`xenemu run`: boot a kernel, with its console on this process's standard input and output."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final
from uuid import UUID

import typer

from xenemu import entries
from xenemu.cli.attended import AttendedRun, Confine, check_confine, controlled, listening
from xenemu.cli.clock_options import Wallclock, parse_wallclock
from xenemu.cli.completing import among
from xenemu.cli.configured import Configurable
from xenemu.cli.covering import CoverageByVcpu, Covering
from xenemu.cli.dumping import CoreAfter, CoreTo, Dumping
from xenemu.cli.ends_options import (
    RESTARTS,
    MaxRestarts,
    OnCrash,
    OnPoweroff,
    OnReboot,
    OnSoftReset,
    OnWatchdog,
    life_of,
)
from xenemu.cli.engine_options import CACHE, TranslationCache, bound_translations
from xenemu.cli.guest import Fresh, Guest
from xenemu.cli.guest_options import (
    Busybox,
    Cmdline,
    Disk,
    DraftNotes,
    EfiRoot,
    Init,
    Initrd,
    Kernel,
    MaxMem,
    Memory,
    Net,
    Overlay,
    RngSeed,
    Rootfs,
    ScheduleSeed,
    Sharing,
    Slice,
    initial_ramdisk,
)
from xenemu.cli.input_options import (
    Input,
    QuietTimeout,
    Send,
    VirtualTimeout,
    expectations_of,
)
from xenemu.cli.one_way import one_way
from xenemu.cli.patience import Patience
from xenemu.cli.record_options import Record, begin
from xenemu.cli.screen import is_terminal
from xenemu.cli.suspend_options import (
    OnSuspend,
    Restore,
    SuspendedFor,
    parse_away,
    suspending_of,
)
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
from xenemu.disks import opened, parse_disk, with_overlay
from xenemu.entries.zero_page import SUBARCHES
from xenemu.errors import UsageError
from xenemu.machine import DomainConfig, Limits
from xenemu.machine.ends import Action
from xenemu.network import networked
from xenemu.options import (
    parse_draft_notes,
    parse_maxmem,
    parse_maxvcpus,
    parse_memory,
    parse_module,
    parse_name,
    parse_nanoseconds,
    parse_seconds,
    parse_seed,
    parse_slice,
    parse_subarch,
    parse_uuid,
    parse_vcpus,
    read_tree,
)
from xenemu.outcome import EXIT_BUG, EXIT_FIT, EXIT_IMAGE
from xenemu.outputs import Outputs
from xenemu.shares import parse_share, served

if TYPE_CHECKING:
    from xenemu.recording.start import Start

COMMAND: Final = Configurable
HELP_EPILOG: Final = f"""\b
Examples:
  xenemu run vmlinuz --initrd initrd.gz --cmdline "console=hvc0"
  xenemu run vmlinuz --busybox /bin/busybox --cmdline "console=hvc0"   gives a shell
  xenemu run vmlinuz --cmdline "console=hvc0" --timeout 60 --expect "login:"
  xenemu run systemd-bootx64.efi --entry efi --efi-root esp      a boot loader
  xenemu run guest.cfg --memory 1G                    what xl create would start
  xenemu run vmlinuz --cmdline "console=hvc0" --core vmcore --record run   for later
  printf 'ls\\n' | xenemu run grub-x86_64-xen.bin --expect '\\(memdisk\\)'

\b
Exit codes:
  0    it powered off, rebooted or suspended itself, or every --expect was met,
       or you left with Ctrl-] twice
  3    it ended, or you left, before every --expect was met, those of --input too,
       or its --snapshot was taken
  4    the guest crashed, or it panicked, whatever came after; or its watchdog ran out
  5    the hypervisor crashed it, for a rule that it broke; or a triple fault that
       is no reboot
  6    --timeout passed or another limit, or the guest waits for what can never
       come: with no timer set, and no more input
  {EXIT_IMAGE}    the kernel cannot be used, these options cannot be honoured, or a file cannot
       be written
  {EXIT_FIT}    the kernel, its initrd or a module does not fit in the guest's memory
  {EXIT_BUG}   xenemu's own fault: a bug, or its installation is incomplete
  128+N  signal N ended xenemu: 130 for SIGINT, 141 for a closed standard output

After 4, 5, 6, 70, 130 and 143, standard error tells the last hypercalls, the
registers, the backtrace and the page walk of the last fault; after 6, 130 and 143
also where the guest has spent its time.
"""


def _known_mode(mode: str) -> str:
    if mode not in entries.MODES:
        choices = ", ".join(map(repr, entries.MODES))
        raise typer.BadParameter(f"{mode!r} is not one of {choices}.")
    return mode


def run(
    context: typer.Context,
    kernel: Kernel,
    mode: Annotated[
        str,
        typer.Option(
            "--entry",
            "--mode",
            help="By which entry to boot it; auto takes pvh or pv, as the kernel offers.",
            metavar=f"<{'|'.join(entries.MODES)}>",
            autocompletion=among(entries.MODES),
            callback=_known_mode,
            rich_help_panel="The kernel",
        ),
    ] = entries.AUTO,
    subarch: Annotated[
        str | None,
        typer.Option(
            help="The hardware_subarch that linux32 or linux64 tell the kernel: xen, with a"
            " start_info to go with it, or a number.",
            metavar="xen|N",
            autocompletion=among(SUBARCHES),
        ),
    ] = None,
    draft_notes: DraftNotes = None,
    cmdline: Cmdline = "",
    initrd: Initrd = None,
    init: Init = None,
    rootfs: Rootfs = None,
    busybox: Busybox = None,
    module: Annotated[
        list[str] | None,
        typer.Option(
            help="A further module to give a PVH kernel, with a command line of its own if you"
            " like; for several, say it again.",
            metavar="FILE[=CMDLINE]",
        ),
    ] = None,
    disk: Disk = None,
    overlay: Overlay = None,
    share: Sharing = None,
    net: Net = None,
    pcap: Annotated[
        Path | None,
        typer.Option(
            help="Write all packets of all interfaces, with the guest's time, to this file, which"
            " must be new or empty: pcapng, for wireshark and tshark.",
            metavar="FILE",
        ),
    ] = None,
    efi_root: EfiRoot = None,
    vcpus: Annotated[
        str,
        typer.Option(
            help="How many vcpus the guest has, up to 128.",
            metavar="N",
            rich_help_panel="The machine",
        ),
    ] = "1",
    maxvcpus: Annotated[
        str | None,
        typer.Option(
            help="How many vcpus there are, of which --vcpus are online at first; the guest can"
            " bring up the others.",
            metavar="N",
        ),
    ] = None,
    memory: Memory = "256M",
    maxmem: MaxMem = None,
    name: Annotated[
        str,
        typer.Option(help="What the domain is called, as the xenstore tells it.", metavar="TEXT"),
    ] = DomainConfig.name,
    uuid: Annotated[
        str, typer.Option(help="The domain's UUID, as the xenstore tells it.", metavar="UUID")
    ] = str(UUID(bytes=DomainConfig.uuid)),
    slice: Slice = "100us",
    schedule_seed: ScheduleSeed = None,
    rng_seed: RngSeed = "0",
    debug_xen: Annotated[
        bool,
        typer.Option(
            "--debug-xen",
            help="Spoil the arguments of finished hypercalls, as a debug build of Xen does, to"
            " find kernels that rely on them.",
        ),
    ] = False,
    wallclock: Wallclock = None,
    timeout: Timeout = None,
    virtual_timeout: VirtualTimeout = None,
    quiet_timeout: QuietTimeout = None,
    expect: Expect = None,
    send: Send = None,
    script: Input = None,
    log: Log = None,
    snapshot: SnapshotTo = None,
    snapshot_at: SnapshotAt = None,
    record: Record = None,
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
    on_poweroff: OnPoweroff = Action.DESTROY,
    on_reboot: OnReboot = Action.DESTROY,
    on_crash: OnCrash = Action.DESTROY,
    on_watchdog: OnWatchdog = Action.DESTROY,
    on_soft_reset: OnSoftReset = Action.SOFT_RESET,
    max_restarts: MaxRestarts = RESTARTS,
    on_suspend: OnSuspend = "end",
    suspended_for: SuspendedFor = "1s",
    restore: Restore = None,
    audit: Audit = None,
    no_fast: NoFast = False,
    translation_cache: TranslationCache = CACHE,
    confined: Confined = Confine.AUTO,
    verbose: Verbose = False,
) -> None:
    """Boot KERNEL as a Xen guest, and show its console.

    The console is standard output; all else goes to standard error. Standard input is what is
    typed at the console: from a terminal key by key, with Ctrl-] twice to leave, or from a pipe
    or a file. The run ends when the guest powers off, crashes, or waits for what can never come:
    for no timer, and for no input, since that has ended. Linux always has a timer; --timeout ends
    it.
    """
    limits = Limits(parse_seconds("--timeout", timeout) if timeout is not None else None)
    patience = Patience.parse(virtual_timeout, quiet_timeout)
    expectations = expectations_of(context, expect, send, script)
    size = parse_memory("--memory", memory)
    online = parse_vcpus("--vcpus", vcpus)
    config = DomainConfig(
        size,
        os.fsencode(cmdline),
        initial_ramdisk(initrd, init, rootfs, busybox, size),
        name=parse_name("--name", name),
        uuid=parse_uuid("--uuid", uuid),
        vcpus=online,
        maxvcpus=None if maxvcpus is None else parse_maxvcpus("--maxvcpus", maxvcpus, online),
        maxmem=None if maxmem is None else parse_maxmem("--maxmem", maxmem, size),
        debug_xen=debug_xen,
        rng_seed=parse_seed("--rng-seed", rng_seed),
        slice_ns=parse_slice("--slice", slice),
        schedule_seed=(
            None if schedule_seed is None else parse_seed("--schedule-seed", schedule_seed)
        ),
        subarch=None if subarch is None else parse_subarch("--subarch", subarch),
        modules=tuple(parse_module("--module", text, size) for text in module or []),
        efi_root=read_tree("--efi-root", efi_root) if efi_root is not None else None,
        wallclock_ns=parse_wallclock("--wallclock", wallclock, kernel),
    )
    if draft_notes is not None and mode != entries.DRAFT:
        raise UsageError(f"--draft-notes: only --entry {entries.DRAFT} reads these notes")
    note_types = (
        parse_draft_notes("--draft-notes", draft_notes) if draft_notes is not None else None
    )
    is_shell = busybox is not None and init is None and rootfs is None
    audit_ns = parse_nanoseconds("--audit", audit) if audit is not None else None
    life = life_of(on_poweroff, on_reboot, on_crash, on_watchdog, on_soft_reset, max_restarts)
    away_ns = parse_away(suspended_for)
    check_confine(confined)
    bound_translations(translation_cache)
    guest: Guest = Fresh(kernel, mode, config, note_types)
    if restore is not None:
        from xenemu.cli.restoring import Restored  # noqa: PLC0415 (few runs want it)

        restored = Restored.read(restore, kernel, mode, config, away_ns)
        guest, config = restored, restored.config
        is_shell |= restored.is_shell
    if record is not None and (restore is not None or on_suspend.startswith("save=")):
        raise UsageError("--record: no recording can have a guest that is saved or restored")
    if overlay is not None:
        disk = with_overlay("--overlay", overlay, disk or [])
    disks = [parse_disk("--disk", text) for text in disk or []]
    shares = [parse_share("--share", text) for text in share or []]
    asked = Watching.parse(explain, trace, trace_filter, trace_format, trace_file is not None)
    if pcap is not None and not net:
        raise UsageError("--pcap: the guest has no network; give it one: --net none-but-pcap")
    with (
        Outputs() as outputs,
        listening(gdb) as listener,
        controlled("--control", control) as channel,
        opened("--disk", disks) as blocks,
        served("--share", shares) as directories,
        networked("--net", net or (), config.name) as wired,
    ):
        keeping = None
        if snapshot or snapshot_at is not None:
            from xenemu.cli.keeping import Keeping, header_of  # noqa: PLC0415 (few runs want it)

            if shares:
                raise UsageError("--snapshot: what a --share has open cannot be in it")
            header = header_of(kernel, config.memory, config.name, disk or [], net or [])
            header.is_shell = is_shell
            asked_for = gdb is not None or control is not None or is_terminal(sys.stdin)
            keeping = Keeping.parse(
                outputs, snapshot or [], snapshot_at, header, expectations, asked_for
            )

        def start() -> Start:
            from xenemu.recording.start import start_of  # noqa: PLC0415 (few runs want it)

            made_of = {"initrd": initrd, "init": init, "rootfs": rootfs, "busybox": busybox}
            return start_of(
                kernel,
                mode,
                config,
                draft_notes=note_types,
                ramdisk=made_of,
                modules=module or [],
                efi_root=efi_root,
                disks=disk or [],
                shares=directories,
                vifs=wired.vifs if wired else [],
                expects=expectations.unmet_in_any_order,
                script=expectations.script.parts if expectations.script else (),
                life=life,
                on_suspend=(on_suspend, away_ns),
            )

        attended = AttendedRun(
            guest,
            symbols,
            is_shell=is_shell,
            limits=limits,
            audit_ns=audit_ns,
            fast=not no_fast,
            expectations=expectations,
            watching=asked,
            confined=confined,
            verbose=verbose,
            log=outputs.open("--log", log) if log else None,
            trace_file=outputs.open("--trace-file", trace_file) if trace_file else None,
            covering=Covering.parse(outputs, coverage, coverage_by_vcpu, config.all_vcpus),
            viewing=Viewing.parse(
                outputs, timeline, timeline_host_time, profile or (), profile_every, memory_map, gdb
            ),
            listener=listener,
            wired=wired,
            capture=outputs.open("--pcap", pcap) if pcap else None,
            devices=[*blocks, *directories],
            keeping=keeping,
            channel=channel,
            life=life,
            recorder=begin(outputs, record, gdb, start),
            shares=directories,
            dumping=Dumping.parse(outputs, core, core_when),
            suspending=suspending_of(outputs, on_suspend, away_ns),
            patience=patience,
            takes_input=script is None,
            one_way=one_way(disks, shares) if gdb else "",
        )
        code = attended.run()
    raise typer.Exit(code)
