"""`xenemu smoke`: boot a matrix of kernels, and tell what became of each."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from xenemu import entries
from xenemu.cli import github, matrix
from xenemu.cli.completing import among
from xenemu.cli.covering import CoverageByVcpu, check_by_vcpu
from xenemu.options import parse_count, parse_seconds, parse_seed, parse_slice, parse_vcpus

HELP_EPILOG: Final = """\b
Examples:
  xenemu smoke matrix.toml --jobs 4 --junit results.xml --html boots.html
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
        Texts,
        typer.Option(
            "--entry",
            "--mode",
            help="auto, pv, pvh, ...; say it again for another boot.",
            metavar="ENTRY",
            autocompletion=among(entries.MODES),
        ),
    ] = None,
    cmdline: Annotated[
        Texts, _option("The command line; say it again for another boot.", "TEXT")
    ] = None,
    memory: Annotated[
        Texts, _option("The guest's memory, 256M if not given; as above.", "SIZE")
    ] = None,
    vcpus: Annotated[Texts, _option("How many vcpus, 1 if not given; as above.", "N")] = None,
    maxvcpus: Annotated[
        str | None,
        _option("How many vcpus there are, online or not; as --vcpus if not given.", "N"),
    ] = None,
    initrd: Annotated[Path | None, _option("An initial ramdisk.", "FILE")] = None,
    init: Annotated[
        Path | None,
        _option("Make an initramfs: a script, with busybox, or a static program.", "FILE"),
    ] = None,
    rootfs: Annotated[Path | None, _option("Make an initramfs of a directory.", "DIR")] = None,
    busybox: Annotated[
        Path | None,
        _option("The static busybox to take, else the one in PATH; alone, a shell.", "FILE"),
    ] = None,
    expect: Annotated[
        Texts,
        _option("What the console must show; several, in this order (run takes any).", "REGEX"),
    ] = None,
    reject: Annotated[Texts, _option("What the console must not show.", "REGEX")] = None,
    exit: Annotated[Texts, _option("How it must end: poweroff, reboot, panic, ...", "WORD")] = None,
    tolerate: Annotated[
        Texts, _option("What the kernel may do: warning, oops, bug, lockup.", "WORD")
    ] = None,
    rng_seed: Annotated[
        str | None, _option("What RDRAND and RDSEED begin with; 0.", "NUMBER")
    ] = None,
    slice: Annotated[
        str | None, _option("How long a vcpu runs while others could; 100us.", "TIME")
    ] = None,
    schedule_seed: Annotated[
        Texts,
        _option("Let vcpus run in an order that this draws; say it again for another boot.", "N"),
    ] = None,
    timeout: Annotated[
        str | None,
        _option("Give up after as many seconds of real time, loading included; 300.", "SECONDS"),
    ] = None,
    virtual_timeout: Annotated[
        str | None, _option("Give up after this many seconds of the guest's time.", "SECONDS")
    ] = None,
    quiet_timeout: Annotated[
        str | None,
        _option("Give up after as many of the guest's seconds without output; 20.", "SECONDS"),
    ] = None,
    jobs: Annotated[
        str | None,
        typer.Option(
            "-j",
            "--jobs",
            metavar="N",
            help="How many boots at a time; one for each CPU if not given, or all there are for"
            " --executor.",
        ),
    ] = None,
    executor: Annotated[
        str | None,
        _option("Boot on the workers of the executor that this returns.", "MODULE:FUNCTION"),
    ] = None,
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
        bool, typer.Option("--dry-run", help="Load and build each boot, print it, run nothing.")
    ] = False,
    junit: Annotated[Path | None, _option("Write JUnit's XML.", "FILE")] = None,
    json: Annotated[Path | None, _option("Write JSON in KernelCI's form.", "FILE")] = None,
    tap: Annotated[Path | None, _option("Write TAP.", "FILE")] = None,
    html: Annotated[
        Path | None,
        _option("Write a page to look at: the matrix, consoles, what has changed.", "FILE"),
    ] = None,
    baseline: Annotated[
        Path | None,
        _option("Where --html keeps boots that passed, to compare with; the cache.", "DIR"),
    ] = None,
    coverage: Annotated[
        Path | None, _option("Write which code ran in all boots together, for lcov.", "FILE")
    ] = None,
    coverage_by_vcpu: CoverageByVcpu = False,
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
        "tolerate": tolerate,
    }  # fmt: skip
    times = {
        "timeout": timeout, "virtual_timeout": virtual_timeout, "quiet_timeout": quiet_timeout,
    }  # fmt: skip
    with github.told():
        given: dict[str, Any] = {
            key: value for key, value in described.items() if value not in (None, [])
        }
        for key, text in times.items():
            if text is not None:
                given[key] = parse_seconds(f"--{key.replace('_', '-')}", text)
        if vcpus:
            given["vcpus"] = [parse_vcpus("--vcpus", text) for text in vcpus]
        if maxvcpus is not None:
            given["maxvcpus"] = parse_vcpus("--maxvcpus", maxvcpus)
        if rng_seed is not None:
            given["rng_seed"] = parse_seed("--rng-seed", rng_seed)
        if slice is not None:
            given["slice"] = parse_slice("--slice", slice)
        if schedule_seed:
            given["schedule_seed"] = [parse_seed("--schedule-seed", one) for one in schedule_seed]
        at_a_time = parse_count("--jobs", jobs) if jobs is not None else None
        here = at_a_time or len(os.sched_getaffinity(0))
        boots = matrix.boots(what, given, shard)
        check_by_vcpu(coverage, coverage_by_vcpu)
        files = matrix.Files(junit, json, tap, coverage, log_dir, coverage_by_vcpu, html, baseline)
        if list_only:
            for boot in boots:
                typer.echo(boot.name)
            raise typer.Exit
        if dry_run:
            raise typer.Exit(matrix.check(boots, here, files))
        most = at_a_time if executor else here
        raise typer.Exit(matrix.run(boots, most, fail_fast, files, executor))
