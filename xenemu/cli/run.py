"""`xenemu run`: boot a kernel, with its console on this process's standard input and output."""

from __future__ import annotations

import errno
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, TextIO

import typer

from xenemu import boot, image
from xenemu.cli import inherited
from xenemu.cli.afterinput import AfterInput
from xenemu.cli.expect import Expectations
from xenemu.cli.screen import is_terminal, redraws
from xenemu.cli.status import Status
from xenemu.cli.terminal import HostTerminal
from xenemu.cli.watch import Sink, TraceFormat, Watching, watching
from xenemu.confine import confine, obstacle
from xenemu.errors import ImageError, UsageError
from xenemu.machine import DomainConfig, Limits, Machine
from xenemu.options import (
    format_size,
    parse_memory,
    parse_module,
    parse_seconds,
    parse_seed,
    read_module,
)
from xenemu.outcome import EXIT_BUG, EXIT_FIT, EXIT_IMAGE, End, Outcome
from xenemu.outputs import Output, Outputs
from xenemu.report import GIVEN_UP, report
from xenemu.smoke.verdict import Verdict, advice, crash
from xenemu.smoke.witness import Witness

if TYPE_CHECKING:
    from xenemu.gdb.channel import Listener
    from xenemu.gdb.server import Server

# Exit codes after which a person wants to know where it was.
REPORTED: Final = {4, 5, 6, EXIT_BUG, 128 + signal.SIGINT, 128 + signal.SIGTERM}
ENDED_BY_OTHERS: Final = {End.EXPECTED, End.REFUSED, End.INCONSISTENT}  # whatever the kernel says


class Confine(Enum):
    """Whether a run gives up what it does not need."""

    AUTO = "auto"
    OFF = "off"
    MUST = "must"


HELP_EPILOG: Final = f"""\b
Examples:
  xenemu run vmlinuz --initrd initrd.gz --cmdline "console=hvc0"
  xenemu run vmlinuz --busybox /bin/busybox --cmdline "console=hvc0"   gives a shell
  xenemu run vmlinuz --cmdline "console=hvc0" --timeout 60 --expect "login:"
  printf 'ls\\n' | xenemu run grub-x86_64-xen.bin --expect '\\(memdisk\\)'

\b
Exit codes:
  0    it powered off, rebooted or suspended itself, or every --expect was met,
       or you left with Ctrl-]
  3    it ended, or you left, before every --expect was met
  4    the guest crashed, or it panicked, whatever came after; or its watchdog ran out
  5    the hypervisor crashed it, for a rule that it broke; or a triple fault that
       is no reboot
  6    --timeout passed, or the guest waits for what can never come: with no timer
       set, and no more input
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
    if mode not in boot.MODES:
        choices = ", ".join(map(repr, boot.MODES))
        raise typer.BadParameter(f"{mode!r} is not one of {choices}.")
    return mode


def run(
    kernel: Annotated[
        Path, typer.Argument(metavar="KERNEL", help="bzImage, ELF, or compressed ELF.")
    ],
    mode: Annotated[
        str,
        typer.Option(
            help="What to boot it as; auto takes what the kernel offers.",
            metavar=f"<{'|'.join(boot.MODES)}>",
            callback=_known_mode,
        ),
    ] = boot.AUTO,
    cmdline: Annotated[str, typer.Option(help="The kernel's command line.")] = "",
    initrd: Annotated[
        Path | None, typer.Option(help="An initial ramdisk to give the kernel.", metavar="FILE")
    ] = None,
    init: Annotated[
        Path | None,
        typer.Option(
            help="Make an initramfs instead: of a script, with busybox, or of a static program.",
            metavar="FILE",
        ),
    ] = None,
    rootfs: Annotated[
        Path | None, typer.Option(help="Make an initramfs of a directory.", metavar="DIR")
    ] = None,
    busybox: Annotated[
        Path | None,
        typer.Option(
            help="The static busybox for --init and --rootfs, which else is the one in PATH;"
            " alone, it makes an initramfs that gives a shell, which ends with its input.",
            metavar="FILE",
        ),
    ] = None,
    module: Annotated[
        list[str] | None,
        typer.Option(
            help="A further module to give a PVH kernel, with a command line of its own if you"
            " like; for several, say it again.",
            metavar="FILE[=CMDLINE]",
        ),
    ] = None,
    memory: Annotated[
        str, typer.Option(help="The guest's memory: a number and K, M or G.", metavar="SIZE")
    ] = "256M",
    timeout: Annotated[
        str | None,
        typer.Option(
            help="Give up after this many seconds of real time, loading included.",
            metavar="SECONDS",
        ),
    ] = None,
    expect: Annotated[
        list[str] | None,
        typer.Option(
            help="End with success once the console has shown this regular expression; with"
            " several, once it has shown each, in any order (smoke wants its own in order).",
            metavar="REGEX",
        ),
    ] = None,
    log: Annotated[
        Path | None,
        typer.Option(
            help="Also write the console to this file, which must be new or empty.",
            metavar="FILE",
        ),
    ] = None,
    explain: Annotated[
        bool,
        typer.Option(
            "--explain",
            help="Tell of each refusal as it happens: the rule, the frames, who typed or maps"
            " them, and the backtrace.",
        ),
    ] = False,
    trace: Annotated[
        str | None,
        typer.Option(
            help="Tell what the guest does, decoded: any of hypercalls, mmu, events, traps.",
            metavar="KIND[,KIND...]",
        ),
    ] = None,
    trace_filter: Annotated[
        str | None,
        typer.Option(
            help="Trace only what has a name, such as 'mmuext_op PIN' or '#PF', in which this"
            " regular expression is found.",
            metavar="REGEX",
        ),
    ] = None,
    trace_file: Annotated[
        Path | None,
        typer.Option(
            help="Write the trace to this file, which must be new or empty, not to standard error.",
            metavar="FILE",
        ),
    ] = None,
    trace_format: Annotated[
        TraceFormat, typer.Option(help="Write the trace as text, or as a JSON object a line.")
    ] = TraceFormat.TEXT,
    rng_seed: Annotated[
        str,
        typer.Option(
            help="What the guest's RDRAND and RDSEED begin with: a number of 64 bits. The same seed"
            " gives the same run.",
            metavar="NUMBER",
        ),
    ] = "0",
    debug_xen: Annotated[
        bool,
        typer.Option(
            "--debug-xen",
            help="Spoil the arguments of finished hypercalls, as a debug build of Xen does, to"
            " find kernels that rely on them.",
        ),
    ] = False,
    audit: Annotated[
        str | None,
        typer.Option(
            help="Check the hypervisor's own books each time that so much virtual time has passed,"
            " and in the end; what is wrong ends the run. For xenemu's developers.",
            metavar="SECONDS",
        ),
    ] = None,
    gdb: Annotated[
        str | None,
        typer.Option(
            help="Wait at the first instruction for a gdb, and let it debug the guest. Without"
            " HOST, on the loopback interface; port 0 is any that is free. With stdio, the"
            " console goes to standard error.",
            metavar="[HOST]:PORT|unix:PATH|stdio",
        ),
    ] = None,
    confined: Annotated[
        Confine,
        typer.Option(
            "--confine",
            help="Before the guest runs, give up opening files and sockets and starting programs:"
            " auto where this host can, off never; must ends the run where it cannot.",
        ),
    ] = Confine.AUTO,
    symbols: Annotated[
        Path | None,
        typer.Option(
            help="Take the kernel's symbols, and for gdb its debug information, from this ELF: the"
            " vmlinux of the same build.",
            metavar="FILE",
        ),
    ] = None,
    verbose: Annotated[
        bool,
        typer.Option(
            "-v", "--verbose", help="Tell more: the report however it ends, tracebacks of bugs."
        ),
    ] = False,
) -> None:
    """Boot KERNEL as a Xen guest, and show its console.

    The console is standard output; all else goes to standard error. Standard input is what is
    typed at the console: from a terminal key by key, with Ctrl-] to leave, or from a pipe or a
    file. The run ends when the guest powers off, crashes, or waits for what can never come: for no
    timer, and for no input, since that has ended. Linux always has a timer; --timeout ends it.
    """
    limits = Limits(parse_seconds("--timeout", timeout) if timeout is not None else None)
    expectations = Expectations(expect or [])
    size = parse_memory("--memory", memory)
    config = DomainConfig(
        size,
        os.fsencode(cmdline),
        _initrd(initrd, init, rootfs, busybox, size),
        debug_xen=debug_xen,
        rng_seed=parse_seed("--rng-seed", rng_seed),
        modules=tuple(parse_module("--module", text, size) for text in module or []),
    )
    audit_ns = int(parse_seconds("--audit", audit) * 1e9) if audit is not None else None
    if confined is Confine.MUST and (why_not := obstacle()):
        raise UsageError(f"--confine must: this host cannot: {why_not}")
    asked = Watching.parse(explain, trace, trace_filter, trace_format, trace_file is not None)
    with Outputs() as outputs, _listen(gdb) as gdbs:
        log_file = outputs.open("--log", log) if log else None
        traced = outputs.open("--trace-file", trace_file) if trace_file else None
        code = _run(
            kernel,
            symbols,
            mode,
            config,
            busybox is not None and init is None and rootfs is None,
            limits,
            audit_ns,
            expectations,
            log_file,
            asked,
            traced,
            gdbs,
            confined,
            verbose,
        )
    raise typer.Exit(code)


def _initrd(
    initrd: Path | None, init: Path | None, rootfs: Path | None, busybox: Path | None, memory: int
) -> bytes:
    """The initial ramdisk that the options give or describe; empty if they do neither."""
    made = {"--init": init, "--rootfs": rootfs, "--busybox": busybox}
    asked = [option for option, path in made.items() if path is not None]
    if initrd is not None and asked:
        raise UsageError(f"{asked[0]}: there is --initrd {initrd} already; give one of them")
    if initrd is not None:
        return read_module("--initrd", initrd, memory)
    if not asked:
        return b""
    from xenemu.smoke import initramfs  # noqa: PLC0415 (nobody else pays for it)

    try:
        return initramfs.make(init, rootfs, busybox)
    except UsageError as error:  # which begins with a key of a plan
        raise UsageError(f"--{error}") from None


def _run(
    kernel: Path,
    symbols: Path | None,
    mode: str,
    config: DomainConfig,
    is_shell: bool,
    limits: Limits,
    audit_ns: int | None,
    expectations: Expectations,
    log: Output | None,
    asked: Watching,
    trace_file: Output | None,
    listener: Listener | None,
    confined: Confine,
    verbose: bool,
) -> int:
    stdin, stdout = (_descriptor(stream) for stream in (sys.stdin, sys.stdout))
    if listener and listener.takes_stdio:
        stdin, stdout = None, _descriptor(sys.stderr)
    told = is_terminal()
    status = Status(
        sys.stderr if redraws() else None, shared=stdout is not None and os.isatty(stdout)
    )
    try:
        status.phase(f"xenemu: loading {kernel}")
        loaded = _load(kernel, symbols, status)
        status.phase("xenemu: building the domain")
        machine = _build(loaded, config, mode)
        engine = machine.engine
        status.measure = lambda: (engine.now_ns, engine.instructions)
        after = AfterInput(
            lambda: engine.now_ns,
            is_shell and not (listener and listener.takes_stdio),
            None if is_shell or limits.timeout_s is not None else _tell_amid(status),
        )
        terminal = HostTerminal(stdin, stdout, expectations, status, log, after)
        status.make_room()
        if told or verbose:
            leave = "; Ctrl-] leaves" if terminal.interactive else ""
            size = format_size(config.memory)
            _tell(f"booting {kernel} as {machine.entry.name}, {size}{leave}")
        errors = _descriptor(sys.stderr)
        told_to = None if errors is None else Output(errors, "standard error")
        stderr = Sink(told_to, terminal, status)
        trace = stderr if trace_file is None else Sink(trace_file, terminal)
        server = None
        witness = Witness(machine, loaded)
        if listener:
            status.phase("xenemu: reading the kernel's symbols")
            server = _serve(listener, machine, loaded, terminal, limits, expectations, witness)
            status.make_room()
        started = time.monotonic()
        with terminal, watching(asked, machine.current, loaded, stderr, trace) as explainer:
            _confine(confined, listener is not None, verbose)
            if listener and not listener.takes_stdio:
                _tell(f"waiting for gdb: target remote {listener.address}")
            outcome = machine.run(terminal, limits, audit_ns, server)
        host_s = time.monotonic() - started
    finally:
        typer.echo(status.end(), err=True, nl=False)

    samples = machine.samples if outcome.end in GIVEN_UP else None
    outcome = judge(outcome, expectations, witness)
    code = 128 + terminal.signum if terminal.signum else outcome.exit_code
    if code in REPORTED or verbose:
        _tell(outcome.reason)
    if outcome.advice:
        _tell(f"what to do: {outcome.advice}")
    if code in REPORTED or verbose:
        typer.echo(report(machine.current, loaded, outcome.reason, samples), err=True)
    if explainer is not None:
        explainer.close()
    _tell(
        f"{outcome.end.value}, exit {code}: {outcome.reason}; virtual time"
        f" {engine.now_ns / 1e9:.3f} s, {engine.instructions} instructions, {host_s:.2f} s here"
    )
    return code


def _load(kernel: Path, symbols: Path | None, status: Status) -> image.Image:
    loaded = image.load(kernel)
    if symbols is None:
        return loaded
    try:
        found = image.with_symbols(loaded, symbols)
    except ImageError as error:
        raise UsageError(f"--symbols {error}") from None
    if found.unchecked:
        _tell_amid(status)(
            f"--symbols {symbols}: taken unchecked, as {found.unchecked}: if it is of another"
            " build, names are wrong"
        )
    return found.image


def _build(loaded: image.Image, config: DomainConfig, mode: str) -> Machine:
    try:
        return Machine(loaded, config, mode)
    except OSError as error:
        if error.errno != errno.ENOMEM:
            raise
        size = format_size(config.memory)
        raise UsageError(f"--memory: this host has no {size} to give; try less") from None


def judge(outcome: Outcome, expectations: Expectations, witness: Witness) -> Outcome:
    """What an end means: a kernel that panicked has crashed, however that ended the domain.

    Unmet expectations count unless something graver happened.
    """
    outcome = _ask_the_kernel(outcome, expectations, witness)
    if outcome.end in (End.TIMEOUT, End.STOPPED) and not outcome.held:
        outcome = replace(outcome, reason=outcome.reason + witness.pattern)
    if not expectations.unmet:
        return outcome
    reason = f"{outcome.reason}; never seen: " + ", ".join(map(repr, expectations.unmet))
    end = End.UNMET if outcome.exit_code == 0 else outcome.end
    return replace(outcome, end=end, reason=reason)


def _ask_the_kernel(outcome: Outcome, expectations: Expectations, witness: Witness) -> Outcome:
    headlines = expectations.headlines.lines
    if outcome.end in ENDED_BY_OTHERS or not witness.doubts(outcome, headlines):
        return outcome
    facts = witness.facts(outcome, headlines)
    died, hint = crash(facts), advice(facts)
    if died is None or died.verdict is Verdict.CRASH:  # which has no words
        silent = not expectations.tail.strip()
        return replace(outcome, advice=outcome.advice or (hint if silent else ""))
    if outcome.end is End.GUEST_CRASH:
        reason = f"{outcome.reason}: {died.reason}"
        return replace(outcome, reason=reason, advice=outcome.advice or hint)
    if outcome.end is End.STOPPED:
        return replace(outcome, reason=f"{outcome.reason}; before that, {died.reason}")
    return Outcome(End.GUEST_CRASH, f"{died.reason}; {outcome.reason}", hint)


def _confine(wanted: Confine, debugger: bool, verbose: bool) -> None:
    if wanted is Confine.OFF:
        return
    inherited.close()
    confinement = confine(debugger)
    if confinement.trouble and wanted is Confine.MUST:
        raise UsageError(f"--confine must: this host cannot: {confinement.trouble}")
    if verbose:
        trouble = f"; {confinement.trouble}" if confinement.trouble else ""
        _tell(f"confined by {confinement}{trouble}")


@contextmanager
def _listen(spec: str | None) -> Iterator[Listener | None]:
    """Listen for gdb."""
    if spec is None:
        yield None
        return
    from xenemu.gdb.channel import listen  # noqa: PLC0415 (nobody else pays for it)

    listener = listen(spec)
    try:
        yield listener
    finally:
        listener.close()


def _serve(
    listener: Listener,
    machine: Machine,
    loaded: image.Image,
    terminal: HostTerminal,
    limits: Limits,
    expectations: Expectations,
    witness: Witness,
) -> Server:
    from xenemu.gdb.server import Server  # noqa: PLC0415
    from xenemu.gdb.target import Target  # noqa: PLC0415

    server = Server(
        Target(machine, loaded),
        listener,
        terminal,
        limits,
        _tell,
        lambda outcome: judge(outcome, expectations, witness),
    )
    terminal.callers = server.descriptors
    return server


def _descriptor(stream: TextIO | None) -> int | None:
    """The descriptor of a standard stream; None if it was closed when this process began."""
    try:
        return stream.fileno() if stream else None
    except OSError:  # a stream that a test put there
        return None


def _tell_amid(status: Status) -> Callable[[str], None]:
    """Tell while the guest runs, on a line of its own."""

    def tell(sentence: str) -> None:
        typer.echo(status.new_line(), err=True, nl=False)
        _tell(sentence)

    return tell


def _tell(sentence: str) -> None:
    typer.echo(f"xenemu: {sentence}", err=True)
