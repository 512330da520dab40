"""``--coverage``: which code of a kernel a run has run, in a file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from xenemu.image import Image
from xenemu.machine import Machine
from xenemu.outputs import Output, Outputs


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

    def begin(self, machine: Machine, image: Image) -> Callable[[], str]:
        """Note what runs from now on.

        The function returned writes the file (OutputError), and says in words what is not in it.
        """
        from xenemu import coverage  # noqa: PLC0415

        recording = coverage.Recording(machine, image, self.is_lcov)

        def write() -> str:
            self.output.write(recording.file())
            return recording.missing

        return write
