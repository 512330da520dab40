"""`xenemu compare`: what one kernel runs by each entry, or two kernels by one."""

from __future__ import annotations

import json as json_codec
import os
import sys
from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path
from typing import Annotated, Final

import typer

from xenemu import entries, image
from xenemu.cli import inherited
from xenemu.cli.completing import among
from xenemu.cli.guest_options import (
    Busybox,
    Cmdline,
    Init,
    Initrd,
    Memory,
    RngSeed,
    Rootfs,
    initial_ramdisk,
)
from xenemu.cli.screen import redraws
from xenemu.cli.signals import Interrupted, Noted
from xenemu.cli.status import Status
from xenemu.compare import page, survey, text
from xenemu.compare.boots import Comparison
from xenemu.confine import confine
from xenemu.errors import UsageError
from xenemu.image import Image
from xenemu.machine import DomainConfig, Limits, Machine
from xenemu.options import parse_memory, parse_seconds, parse_seed
from xenemu.outcome import End, Outcome
from xenemu.outputs import Outputs, encode

STEPS: Final = 100
HELP_EPILOG: Final = """\b
Examples:
  xenemu compare vmlinuz --busybox /bin/busybox --cmdline "console=hvc0"
  xenemu compare vmlinuz --entry pv,pvh --initrd initrd.gz --html boots.html
  xenemu compare vmlinux.old vmlinux.new --entry pvh --initrd initrd.gz

\b
Exit codes: 0; 7 if a kernel cannot be used, or these options cannot be honoured;
8 if it does not fit; 130 for SIGINT. How a boot ended is in what is printed.
"""
Request = tuple[str, Image, str]  # a boot's name, its kernel and its entry


class Nobody:
    """Types nothing, and reads nothing; the boot ends when a signal is noted."""

    interactive = False
    exhausted = True
    due_ns = None

    def __init__(self, noted: Noted) -> None:
        self._noted = noted

    def write(self, data: bytes) -> None: ...

    def read(
        self,
        room: int,
        wait_ns: int | None,
        reading: Sequence[int] = (),
        writing: Sequence[int] = (),
    ) -> bytes:
        return b""

    def check(self) -> Outcome | None:
        return Outcome(End.STOPPED, "stopped by a signal") if self._noted.signum else None

    def leaves(self) -> bool:
        return bool(self._noted.signum)


@cache
def _confine_once() -> None:
    inherited.close()
    confine()


def _run(machine: Machine, noted: Noted, seconds: float) -> Outcome:
    """Run a boot to its end. A signal stops it, because no callback of the engine's may raise.

    From the first run on, this process is confined as that of `xenemu run` is: by then the engine
    is loaded, and all files are open.
    """
    _confine_once()
    outcome = machine.run(Nobody(noted), Limits(seconds))
    if noted.signum:
        raise Interrupted(noted.signum)
    return outcome


def compare(
    kernels: Annotated[
        list[Path], typer.Argument(metavar="KERNEL [KERNEL]", help="One kernel, or two.")
    ],
    entry: Annotated[
        str | None,
        typer.Option(
            help="The entries to boot it by; all that the kernel has if it is not said. Two kernels"
            f" are booted by one. Any of {', '.join(entries.MODES[1:])}.",
            metavar="ENTRY[,ENTRY...]",
            autocompletion=among(entries.MODES[1:], of_several=True),
        ),
    ] = None,
    cmdline: Cmdline = "",
    initrd: Initrd = None,
    init: Init = None,
    rootfs: Rootfs = None,
    busybox: Busybox = None,
    memory: Memory = "256M",
    timeout: Annotated[
        str,
        typer.Option(
            help="Give up each boot after so many seconds of real time.", metavar="SECONDS"
        ),
    ] = "300",
    rng_seed: RngSeed = "0",
    steps: Annotated[
        int, typer.Option(help="How many functions to show side by side.", min=0, metavar="N")
    ] = STEPS,
    json: Annotated[
        Path | None, typer.Option(help="Also write it as JSON to this file.", metavar="FILE")
    ] = None,
    html: Annotated[
        Path | None, typer.Option(help="Also write it as a page to this file.", metavar="FILE")
    ] = None,
) -> None:
    """Boot KERNEL by several entries, and show what they have in common.

    Each boot runs to its end, or to --timeout. Then standard output shows the functions that all
    of them ran, or some, or one only; their order, side by side, and where they join; what each
    asked of the hypervisor and its platform; and which init code none of them reached.
    """
    size, seconds = parse_memory("--memory", memory), parse_seconds("--timeout", timeout)
    config = DomainConfig(
        size,
        os.fsencode(cmdline),
        initial_ramdisk(initrd, init, rootfs, busybox, size),
        rng_seed=parse_seed("--rng-seed", rng_seed),
    )
    wanted = _requests(kernels, entry)
    for _, kernel, mode in wanted:  # now that files may be read; and one that fails spoils all
        entries.choose(kernel, mode)
    status = Status(sys.stderr if redraws() else None)
    with Outputs() as outputs:
        json_file = outputs.open("--json", json) if json else None
        html_file = outputs.open("--html", html) if html else None
        boots = []
        try:
            with Noted() as noted:
                run = partial(_run, noted=noted, seconds=seconds)
                for name, kernel, mode in wanted:
                    status.phase(f"xenemu: booting {name}")
                    boots.append(survey.boot(name, kernel, config, mode, run))
        finally:
            typer.echo(status.end(), err=True, nl=False)
        found = Comparison(tuple(boots))
        unreached = found.unreached(survey.init_functions(wanted[0][1]))
        typer.echo(text.text(found, steps, unreached), nl=False)
        if json_file:
            document = text.document(found, steps, unreached)
            json_file.write(encode(json_codec.dumps(document, indent=1) + "\n"))
        if html_file:
            title = " and ".join(str(kernel) for kernel in kernels)
            html_file.write(encode(page.page(found, title, steps, unreached)))


def _requests(kernels: Sequence[Path], entry: str | None) -> list[Request]:
    """What is to be booted; UsageError if there is nothing to compare."""
    modes = entry.split(",") if entry is not None else []
    for mode in modes:
        if mode not in entries.MODES[1:]:
            raise UsageError(f"--entry {entry}: {mode!r} is none of {', '.join(entries.MODES[1:])}")
        if modes.count(mode) > 1:
            raise UsageError(f"--entry {entry}: {mode} twice")
    if len(kernels) > 2:
        raise UsageError(f"{kernels[2]}: give one kernel, or two")
    images = [image.load(kernel) for kernel in kernels]
    if len(images) == 2:
        if len(modes) > 1:
            raise UsageError(f"--entry {entry}: two kernels are compared by one entry")
        mode = modes[0] if modes else entries.AUTO
        names = [path.name for path in kernels]
        if names[0] == names[1]:
            names = [str(path) for path in kernels]
        if names[0] == names[1]:
            raise UsageError(f"{names[0]}: twice the same kernel")
        return [(name, own, mode) for name, own in zip(names, images, strict=True)]
    (kernel,) = images
    if not modes:
        verdicts = entries.verdicts(kernel)
        able = [entries.ENTRIES[name].mode for name, told in verdicts.items() if told.bootable]
        modes = list(dict.fromkeys(able))
        if len(modes) < 2:
            has = f"only {modes[0]}" if modes else "no entry"
            raise UsageError(f"{kernel.path}: it has {has}; see `xenemu inspect`")
    elif len(modes) < 2:
        raise UsageError(f"--entry {entry}: give at least two entries, or two kernels")
    return [(mode, kernel, mode) for mode in modes]
