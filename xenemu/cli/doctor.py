"""`xenemu doctor`: what this machine lacks, for what, and how it gets that."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Final

import typer

from xenemu import cachedir, confine, needs
from xenemu.cli.completing import among
from xenemu.errors import UsageError, XenemuError
from xenemu.needs import Extra, Need
from xenemu.outcome import EXIT_IMAGE
from xenemu.smoke.initramfs import read_busybox

HELP_EPILOG: Final = """\b
Examples:
  xenemu doctor
  xenemu doctor share net && make test

\b
The exit code is 7 if something is missing for the topics that are named, or without
any, for "run"; else 0. Topics are the words of the second column.
"""
STDLIB: Final = Path("/usr/include/stdlib.h")


@dataclass(frozen=True)
class Check:
    """Something that xenemu uses: `trouble` says why it cannot, and `mend` what to do then."""

    topic: str
    what: str
    trouble: Callable[[], str]
    mend: str

    def line(self, trouble: str) -> str:
        """What a person reads of it."""
        start = f"{'lacks' if trouble else 'ok':<7}{self.topic:<11}{self.what}"
        return f"{start}: {trouble}; {self.mend}" if trouble else start


def _completed(incomplete: str) -> list[str]:
    """The topics that a word may become."""
    return among(dict.fromkeys(check.topic for check in all_checks()))(incomplete)


def doctor(
    topics: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[TOPIC]...",
            help="Only these, as in share net.",
            autocompletion=_completed,
        ),
    ] = None,
) -> None:
    """Say what this machine lacks, for what, and the command that mends it.

    Nothing is changed, and nothing is fetched.
    """
    checks = all_checks()
    known = dict.fromkeys(check.topic for check in checks)
    for topic in topics or []:
        if topic not in known:
            near = get_close_matches(topic, known, 1)
            guess = f"; did you mean {near[0]}?" if near else ""
            raise UsageError(f"doctor {topic}: give topics of {', '.join(known)}{guess}")
    lacking = set()
    for check in checks:
        if not topics or check.topic in topics:
            trouble = check.trouble()
            typer.echo(check.line(trouble))
            lacking |= {check.topic} if trouble else set()
    raise typer.Exit(EXIT_IMAGE if lacking & set(topics or ["run"]) else 0)


def all_checks() -> list[Check]:
    """Everything, in the order in which a person comes to need it."""
    return [
        Check("run", "the CPU's engine", _engine, "pip install --force-reinstall xenemu"),
        Check(
            "confine",
            f"{needs.SECCOMP.name}, which keeps a run from system calls",
            confine.obstacle,
            needs.SECCOMP.install,
        ),
        Check(
            "confine",
            "Landlock, which keeps a run from files",
            lambda: "" if confine.landlock_version() > 0 else "the kernel has none, or it is off",
            "boot this host with landlock in lsm=",
        ),
        Check(
            "initramfs",
            f"{needs.BUSYBOX.name}, a static one, for --init and --busybox",
            _busybox,
            needs.BUSYBOX.install,
        ),
        _program("share", needs.DIOD, "for --share"),
        _program("net", needs.PASST, "for --net user"),
        _program("debug", needs.GDB, "for --gdb and --core"),
        _extra("debug", needs.DRGN, "for --core"),
        _extra("qcow2", needs.QCOW2, "for disks in qcow2"),
        _extra("executor", needs.DASK, "for smoke --executor with Dask"),
        Check("images", "guest images, for make demo and make test", _images, "make guests"),
        _program("images", needs.MMDEBSTRAP, "to make a Debian with systemd"),
        _program("images", needs.MKFS, "to make its disk"),
        _program("build", needs.GCC, "to build xenemu from source"),
        Check(
            "build",
            "C's headers, to build xenemu from source",
            lambda: "" if STDLIB.exists() else f"there is no {STDLIB}",
            "apt-get install libc6-dev",
        ),
        _program("bench", needs.QEMU, "to compare with Xen on QEMU"),
    ]


def _program(topic: str, need: Need, purpose: str) -> Check:
    def trouble() -> str:
        return "" if need.find() else "not in PATH"

    return Check(topic, f"{need.name}, {purpose}", trouble, need.install)


def _extra(topic: str, extra: Extra, purpose: str) -> Check:
    def trouble() -> str:
        try:
            return "" if find_spec(extra.module) else "not installed"
        except ModuleNotFoundError:  # what it is in is not there, either
            return "not installed"

    return Check(topic, f"{extra.module}, {purpose}", trouble, extra.install)


def _engine() -> str:
    """Make an engine: the shim looks at Unicorn then."""
    try:
        from xenemu.machine.core import check_engine  # noqa: PLC0415 (it may fail)

        check_engine()
    except (XenemuError, OSError, ImportError) as error:
        return str(error)
    return ""


def _busybox() -> str:
    try:
        read_busybox()
    except UsageError as error:
        return "not in PATH" if needs.BUSYBOX.find() is None else str(error)
    return ""


def _images() -> str:
    folder = cachedir.directory("images")
    for record in sorted(folder.glob("*.json")):
        try:
            if (folder / json.loads(record.read_text())["path"]).exists():
                return ""
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return f"none in {folder}"
