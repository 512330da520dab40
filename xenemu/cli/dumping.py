"""``--core``: the guest's memory and registers in a file, once it has ended."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Final

import typer

from xenemu.errors import UsageError
from xenemu.hv.current import Current
from xenemu.image import Image
from xenemu.machine import Machine
from xenemu.outputs import Output, Outputs

if TYPE_CHECKING:
    from xenemu.dump import Core

PACKED_SUFFIX: Final = ".zst"
WORTH_IT: Final = {4, 5, 6}  # exit codes after which the guest is worth a look


class CoreWhen(Enum):
    """After which ends a core is written."""

    CRASH = "crash"
    ALWAYS = "always"


CoreTo = Annotated[
    Path | None,
    typer.Option(
        "--core",
        help="If the guest crashes, panics or hangs, write its memory and registers to this file,"
        " which must be new or empty: an ELF core for gdb, crash and drgn; if its name ends in"
        " .zst, compressed.",
        metavar="FILE",
    ),
]
CoreAfter = Annotated[
    CoreWhen | None,
    typer.Option(
        "--core-when", help="Write --core only after a crash or a hang, or however the run ends."
    ),
]


@dataclass(frozen=True)
class Dumping:
    """A core file that is to be written."""

    output: Output
    path: Path
    always: bool
    save: Callable[[Current, Image, Output, bool], Core]
    # System calls: this one leaves holes in a file, and empties it after a failure.
    calls: ClassVar = ("ftruncate",)

    @classmethod
    def parse(cls, outputs: Outputs, path: Path | None, when: CoreWhen | None) -> Dumping | None:
        """What the options ask for; UsageError."""
        if path is None:
            if when is not None:
                raise UsageError("--core-when: say which file to write: --core FILE")
            return None
        from xenemu.dump import save  # noqa: PLC0415 (few runs want it, and only before `confine`)

        return cls(outputs.open("--core", path), path, when is CoreWhen.ALWAYS, save)

    def end(self, machine: Machine, image: Image, code: int) -> str:
        """Write the file if `code` is worth it, and say in words what is in it; OutputError."""
        if not self.always and code not in WORTH_IT:
            return "--core: not written, as the guest neither crashed nor hung"
        packed = self.path.suffix == PACKED_SUFFIX
        core = self.save(machine.current, image, self.output, packed)
        unpack = f"; unpack it first: zstd -d {self.path}" if packed else ""
        return f"--core: {core.size >> 20} MiB of memory in {self.path}{core.remarks}{unpack}"
