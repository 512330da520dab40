"""``--coverage``: which code of a kernel a run has run, in a file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from xenemu.image import Image
from xenemu.machine import Machine
from xenemu.outputs import Output, Outputs
from xenemu.peek import Code


@dataclass(frozen=True)
class Covering:
    """The file, of drcov's form or of lcov's."""

    output: Output
    is_lcov: bool

    @classmethod
    def parse(cls, outputs: Outputs, path: Path | None) -> Covering | None:
        """What the option asks for; UsageError if the file cannot be written."""
        if path is None:
            return None
        from xenemu.coverage import LCOV_SUFFIX  # noqa: PLC0415 (nobody else pays for it)

        return cls(outputs.open("--coverage", path), path.suffix == LCOV_SUFFIX)

    def begin(self, machine: Machine, image: Image) -> Callable[[], None]:
        """Note what runs from now on; gives what writes the file (OutputError) after the run.

        What that wants of the disk is read now: a run that is confined opens nothing later.
        """
        from xenemu import coverage  # noqa: PLC0415
        from xenemu.image.lines import LineTable  # noqa: PLC0415

        lines = LineTable.read(Path(image.symbol_file.path)) if self.is_lcov else None
        log = machine.record_blocks()

        def write() -> None:
            code = Code(image, machine.current)
            self.output.write(coverage.write(log.blocks(), image, code, self.is_lcov, lines))

        return write
