"""`xenemu image`: files that a guest's own loader would make, and that Xen has no loader for."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from xenemu.errors import ImageError, UsageError
from xenemu.image.files import map_file
from xenemu.image.freebsd_module import freebsd_module
from xenemu.outputs import Outputs


class Kind(StrEnum):
    """What can be made."""

    FREEBSD_MODULE = "freebsd-module"


def image(
    kind: Annotated[
        Kind,
        typer.Argument(
            metavar="KIND", help="What to make: freebsd-module, for an amd64 kernel of FreeBSD."
        ),
    ],
    file: Annotated[
        Path,
        typer.Argument(metavar="FILE", help="Where to write it; the file must be new or empty."),
    ],
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NAME=VALUE",
            help="A variable of the kernel's environment, as loader.conf has it; for several, say"
            " it again. The kernel's command line does not count beside a module.",
        ),
    ] = None,
    memory_disk: Annotated[
        Path | None,
        typer.Option(metavar="DISK", help="An image of a disk, to be /dev/md0 in the guest."),
    ] = None,
) -> None:
    """Make what a guest's own loader would leave in memory, for --initrd.

    freebsd-module: the environment, and a disk in memory, in the form that FreeBSD's loader gives
    them. xenemu run KERNEL --initrd FILE then takes the place of the loader.
    """
    variables = dict(map(_variable, set_ or ()))
    made = freebsd_module(variables, _disk(memory_disk) if memory_disk else b"")
    with Outputs() as outputs:
        outputs.open(kind, file).write(made)


def _variable(text: str) -> tuple[str, str]:
    name, separator, value = text.partition("=")
    if not name or not separator:
        raise UsageError(f"--set {text}: say NAME=VALUE, as vfs.root.mountfrom=ufs:/dev/md0")
    return name, value


def _disk(path: Path) -> bytes:
    try:
        return bytes(map_file(path))
    except ImageError as error:
        raise UsageError(f"--memory-disk {path}: {error}") from None
    except OSError as error:
        raise UsageError(f"--memory-disk {path}: {error.strerror}") from None
