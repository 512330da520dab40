"""KTAP on a console: the results of KUnit and of kselftest, as test cases.

A document begins with its version line. A subtest has a document of its own. It is indented, and
comes before the subtest's result. KUnit indents by spaces, kselftest's runner by ``# ``. Lines that
are not KTAP, such as the kernel's other messages, are passed over.

In Linux: Documentation/dev-tools/ktap.rst
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import field
from enum import Enum
from typing import Final

from xenemu.linux import STAMP
from xenemu.records import dataclass

LINE: Final = re.compile(
    r"(?P<indent>(?:\ \ |\#\ )*?)"
    r"(?:(?P<version>K?TAP\ version\ \d+)"
    r"|(?P<plan>1\.\.(?P<count>\d{1,6}))(?:\s+\#\s*SKIP\s*(?P<why>.*))?"
    r"|\#\ Subtest:\ (?P<subtest>.+)"
    r"|(?P<bail>Bail\ out!)\s*(?P<cause>.*)"
    r"|(?P<result>(?:not\ )?ok)\ (?P<number>\d+)(?:\ -)?(?:\ +(?P<name>[^\#]*?))?"
    r"(?:\s*\#\s*(?P<directive>SKIP|TODO|XFAIL|TIMEOUT|ERROR)\b:?\s*(?P<note>.*)"
    r"|\s*\#\s*(?P<remark>.*))?)\s*",
    re.VERBOSE | re.IGNORECASE,
)
EXPECTED_TO_FAIL: Final = ("TODO", "XFAIL")


class Status(Enum):
    """What became of a test case."""

    PASS = "pass"
    FAIL = "fail"
    SKIP = "skip"


@dataclass(frozen=True)
class Case:
    """A test without subtests, or a fault of a test that has some.

    `path` has the names of the tests around it, from the outermost to its own.
    """

    path: tuple[str, ...]
    status: Status
    reason: str = ""

    @property
    def name(self) -> str:
        return ".".join(self.path)


@dataclass
class _Document:
    indent: int
    name: str = ""
    plan: int | None = None
    results: int = 0
    cases: list[Case] = field(default_factory=list)
    subtests: _Document | None = None  # one that has ended, and whose result is yet to come

    def end_subtests(self, name: str = "") -> list[Case]:
        """The cases of the document below that has ended, under the name of its result."""
        inner, self.subtests = self.subtests, None
        cases = inner.close() if inner else []
        name = name or (inner.name if inner else "") or "(no result)"
        return [Case((name, *case.path), case.status, case.reason) for case in cases]

    def close(self) -> list[Case]:
        """Its cases, and one for what it promised and did not do."""
        self.cases += self.end_subtests()
        problem = ""
        if self.plan is not None and self.results != self.plan:
            problem = f"{self.results} of {self.plan} tests have a result"
        elif self.plan is None and not self.results:
            problem = "it began, and has no results"
        if problem:
            self.cases.append(Case(("(plan)",), Status.FAIL, problem))
        return self.cases


def parse(lines: Iterable[str]) -> list[Case]:
    """Return the cases of all documents on a console, in the order of their results."""
    cases: list[Case] = []
    stack: list[_Document] = []
    for line in lines:
        stamp = STAMP.match(line)
        found = LINE.fullmatch(line[stamp.end() :] if stamp else line)
        if not found:
            continue
        indent = len(found["indent"])
        if found["version"] and (not stack or indent <= stack[0].indent):
            cases += _close(stack)
            stack = [_Document(indent)]
        elif stack and indent >= stack[0].indent:
            _move_to(stack, indent, begins=bool(found["version"] or found["subtest"]))
            _take(stack[-1], found)
    return cases + _close(stack)


def _move_to(stack: list[_Document], indent: int, begins: bool) -> None:
    """Put the document on top that a line at `indent` belongs to; the line may begin a new one."""
    while stack[-1].indent > indent:
        _pop(stack)
    if begins and len(stack) > 1 and stack[-1].indent == indent and stack[-1].results:
        _pop(stack)  # its own result is missing
    if stack[-1].indent < indent:
        stack.append(_Document(indent))


def _pop(stack: list[_Document]) -> None:
    inner = stack.pop()
    stack[-1].cases += stack[-1].end_subtests()
    stack[-1].subtests = inner


def _close(stack: list[_Document]) -> list[Case]:
    while len(stack) > 1:
        _pop(stack)
    return stack[0].close() if stack else []


def _take(document: _Document, found: re.Match[str]) -> None:
    if found["plan"]:
        document.plan = int(found["count"])
        if found["why"] is not None:
            document.cases.append(Case(("(all)",), Status.SKIP, found["why"]))
    elif found["subtest"]:
        document.name = found["subtest"].strip()
    elif found["bail"]:
        reason = found["cause"] or "it bailed out"
        document.cases.append(Case(("(bail out)",), Status.FAIL, reason))
        document.plan, document.results = None, document.results + 1
    elif found["result"]:
        _result(document, found)


def _result(document: _Document, found: re.Match[str]) -> None:
    """Take in the result of a test, or of the document below that has just ended."""
    document.results += 1
    name = (found["name"] or "").strip() or f"test {found['number']}"
    case, inner = _case(name, found), document.end_subtests(name)
    document.cases += inner
    blamed = any(one.status is Status.FAIL for one in inner)
    if not inner or (case.status is Status.FAIL and not blamed):
        document.cases.append(case)


def _case(name: str, found: re.Match[str]) -> Case:
    directive, note = (found["directive"] or "").upper(), (found["note"] or "").strip()
    ok = found["result"].lower() == "ok"
    if directive == "SKIP":
        return Case((name,), Status.SKIP, note)
    if directive in EXPECTED_TO_FAIL:
        return Case((name,), Status.SKIP, f"{directive} {note}".strip())
    if ok and not directive:
        return Case((name,), Status.PASS)
    reason = f"{directive} {note}".strip() if directive else (found["remark"] or "").strip()
    return Case((name,), Status.FAIL, reason)
