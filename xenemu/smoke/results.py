"""The result of a boot: everything that its process hands back, as plain data."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import field
from typing import Final

from xenemu.records import dataclass
from xenemu.smoke.ktap import Case, Status
from xenemu.smoke.plan import Boot
from xenemu.smoke.session import Phase
from xenemu.smoke.verdict import Finding, Verdict

# The worst first. 8 is 7's kind: what does not fit cannot be used.
CODES: Final = (70, 7, 8, 5, 4, 6, 3, 0)


@dataclass
class Result:
    """What became of one boot. Times are seconds, but for `Phase.virtual_ns`."""

    boot: Boot
    findings: list[Finding] = field(default_factory=list)
    reason: str = ""  # how it ended, where nothing speaks against it
    mode: str = ""  # what it was booted as
    started: float = 0.0  # since 1970
    host_s: float = 0.0
    cpu_s: float = 0.0
    peak_kib: int = 0
    virtual_ns: int = 0
    instructions: int = 0
    phases: list[Phase] = field(default_factory=list)
    captures: dict[str, str] = field(default_factory=dict)
    cases: list[Case] = field(default_factory=list)
    raw: bytes = b""  # the console
    log: str = ""  # the console with virtual times
    report: str = ""
    coverage: str = ""  # of lcov's form, if it was wanted
    core: bytes = b""  # compressed, if it was wanted and the guest crashed
    uncovered: str = ""  # why that does not have all that ran, in words
    recording: bytes = b""  # of a boot that did not pass, if it was wanted
    stopped: bool = False  # it was told to, before its end
    again: str = ""  # why it was tried once more, in words

    @property
    def verdict(self) -> Verdict:
        return self.findings[0].verdict if self.findings else Verdict.PASS

    @property
    def exit_code(self) -> int:
        return self.verdict.exit_code

    @property
    def skipped(self) -> bool:
        return self.verdict is Verdict.SKIPPED

    def skip(self, reason: str) -> Result:
        """Make the result that of a boot which was not run to its end."""
        self.findings = [Finding(Verdict.SKIPPED, reason)]
        return self

    @property
    def sentence(self) -> str:
        """Why the verdict is what it is; further findings follow the gravest."""
        reasons = [finding.reason for finding in self.findings] or [self.reason]
        return "; ".join(dict.fromkeys(filter(None, (*reasons, self.again))))

    @property
    def tests(self) -> str:
        """The test cases in numbers, such as ``12 tests, 1 failed``; empty if there are none."""
        if not self.cases:
            return ""
        failed = sum(case.status is Status.FAIL for case in self.cases)
        skipped = sum(case.status is Status.SKIP for case in self.cases)
        parts = [f"{len(self.cases)} tests", failed and f"{failed} failed"]
        return ", ".join(str(p) for p in (*parts, skipped and f"{skipped} skipped") if p)


def never_run(boot: Boot, reason: str) -> Result:
    """The result of a boot that has not begun."""
    return Result(boot, started=time.time()).skip(reason)


def worst(results: Iterable[Result]) -> int:
    """The exit code of them all."""
    return min((result.exit_code for result in results), key=CODES.index, default=0)
