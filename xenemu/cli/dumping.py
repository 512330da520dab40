"""``--core``: the guest's memory and registers in a file, once it has ended."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import field
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Final

import typer

from xenemu.errors import UsageError, XenemuError
from xenemu.hv.current import Current
from xenemu.image import Image
from xenemu.machine import Machine
from xenemu.outputs import Output, Outputs
from xenemu.records import dataclass

if TYPE_CHECKING:
    from xenemu.dom0.control import Answer, Ask, Control, Verb
    from xenemu.dump import Core

PACKED_SUFFIX: Final = ".zst"
WORTH_IT: Final = {4, 5, 6}  # exit codes after which the guest is worth a look


class CoreWhen(Enum):
    """After which ends a core is written."""

    CRASH = "crash"
    ALWAYS = "always"


CoreTo = Annotated[
    list[Path] | None,
    typer.Option(
        "--core",
        help="If the guest crashes, panics or hangs, write its memory and registers to this file,"
        " which must be new or empty: an ELF core for gdb, crash and drgn; if its name ends in"
        " .zst, compressed. Say it again for each that gdb's monitor dump or xenemu control asks"
        " for.",
        metavar="FILE",
    ),
]
CoreAfter = Annotated[
    CoreWhen | None,
    typer.Option(
        "--core-when", help="Write --core only after a crash or a hang, or however the run ends."
    ),
]


@dataclass
class Dumping:
    """Core files that are to be written, each open already.

    One is for the run's end. Those before it are for who asks while the guest runs: gdb's `monitor
    dump`, and the verb of a control channel.
    """

    outputs: list[Output]
    always: bool
    save: Callable[[Current, Image, Output, bool], Core]
    has_looked: bool = field(default=False, init=False)  # at a domain that has crashed before
    # System calls: this one leaves holes in a file, and empties it after a failure.
    calls: ClassVar = ("ftruncate",)

    @classmethod
    def parse(
        cls, outputs: Outputs, paths: list[Path] | None, when: CoreWhen | None
    ) -> Dumping | None:
        """What the options ask for; UsageError."""
        if not paths:
            if when is not None:
                raise UsageError("--core-when: say which file to write: --core FILE")
            return None
        from xenemu.dump import save  # noqa: PLC0415 (few runs want it, and only before `confine`)

        files = [outputs.open("--core", path) for path in paths]
        return cls(files, when is CoreWhen.ALWAYS, save)

    def look(self, machine: Machine, image: Image, code: int) -> str:
        """The same for a guest that has ended so, and whose place another one takes.

        Nothing is said if nothing is written. OutputError.
        """
        if code not in WORTH_IT or not self._left:
            return ""
        self.has_looked = True
        return f"--core: {self.write(machine, image)}"

    def end(self, machine: Machine, image: Image, code: int) -> str:
        """Write a file if `code` is worth it, and say in words what is in it; OutputError.

        Nothing is said if the only file has the core of a domain before this one.
        """
        if not self.always and code not in WORTH_IT:
            return "--core: not written, as the guest neither crashed nor hung"
        if not self._left:
            return "" if self.has_looked else "--core: not written in the end, as no file is left"
        return f"--core: {self.write(machine, image)}"

    @property
    def _left(self) -> list[Output]:
        """Those that nobody has written. A gdb may have gone back to before it asked for one."""
        return [output for output in self.outputs if not output.is_written]

    def write(self, machine: Machine, image: Image) -> str:
        """Write the next file now, and say in words what is in it; OutputError, UsageError."""
        if not self._left:
            raise UsageError("there is no file for it: begin the run with one more --core FILE")
        output = self._left[0]
        self.outputs.remove(output)
        path = output.name.partition(" ")[2]
        packed = path.endswith(PACKED_SUFFIX)
        core = self.save(machine.current, image, output, packed)
        unpack = f"; unpack it first: zstd -d {path}" if packed else ""
        return f"{core.size >> 20} MiB of memory in {path}{core.remarks}{unpack}"

    def verb(self, machine: Machine, load: Callable[[], Image]) -> Verb:
        """The verb of a control channel that asks for one."""
        from xenemu.dom0.control import Refused, Verb  # noqa: PLC0415 (few runs have a channel)

        def do(control: Control, ask: Ask) -> Answer:
            try:
                return {"written": self.write(machine, load())}
            except XenemuError as error:
                raise Refused(str(error)) from None

        return Verb("dump", "", "Write the guest's core into the next --core FILE.", do)
