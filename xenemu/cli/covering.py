"""``--coverage``: which code of a kernel a run has run, in a file; or in one for each vcpu."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from xenemu.errors import UsageError
from xenemu.image import Image
from xenemu.machine import Machine
from xenemu.outputs import Output, Outputs
from xenemu.records import dataclass

CoverageByVcpu = Annotated[
    bool,
    typer.Option(
        "--coverage-by-vcpu",
        help="Tell the vcpus apart in --coverage. In lcov's form, each is a test: vcpu0, vcpu1, ..."
        " In drcov's, each has a file in addition: boot.vcpu0.cov beside boot.cov.",
    ),
]


@dataclass(frozen=True)
class Covering:
    """The files, of drcov's form or of lcov's: one, and if asked, in drcov's one for each vcpu."""

    outputs: list[Output]
    is_lcov: bool
    by_vcpu: bool

    @classmethod
    def parse(
        cls, outputs: Outputs, path: Path | None, by_vcpu: bool, vcpus: int
    ) -> Covering | None:
        """What the options ask for; UsageError if a file cannot be written."""
        check_by_vcpu(path, by_vcpu)
        if path is None:
            return None
        from xenemu.coverage import LCOV_SUFFIX  # noqa: PLC0415 (nobody else pays for it)

        is_lcov, paths = path.suffix == LCOV_SUFFIX, [path]
        if by_vcpu and not is_lcov:
            paths += [path.with_name(f"{path.stem}.vcpu{n}{path.suffix}") for n in range(vcpus)]
        files = [outputs.open("--coverage", each) for each in paths]
        return cls(files, is_lcov, by_vcpu)

    def begin(self, machine: Machine, image: Image) -> Callable[[], str]:
        """Note what runs from now on.

        The function returned writes the files (OutputError), and says in words what they lack.
        """
        from xenemu import coverage  # noqa: PLC0415

        recording = coverage.Recording(machine, image, self.is_lcov, self.by_vcpu)

        def write() -> str:
            for output, data in zip(self.outputs, recording.files(), strict=True):
                output.write(data)
            return recording.missing

        return write


def check_by_vcpu(coverage: Path | None, by_vcpu: bool) -> None:
    """UsageError if vcpus are to be told apart in a file that nobody asked for."""
    if by_vcpu and coverage is None:
        raise UsageError("--coverage-by-vcpu: say where to, with --coverage FILE")
