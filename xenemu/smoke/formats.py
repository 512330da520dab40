"""Results for machines: JUnit's XML, KernelCI's JSON, TAP, and GitHub's annotations."""

from __future__ import annotations

import hashlib
import io
import json
import os
import platform
import re
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from junitparser import (
    Attr,
    Error,
    Failure,
    JUnitXml,
    Skipped,
    SystemErr,
    SystemOut,
    TestCase,
    TestSuite,
)

from xenemu import __version__
from xenemu.coverage import merged
from xenemu.smoke.ktap import Case, Status
from xenemu.smoke.plan_text import Place
from xenemu.smoke.results import Result
from xenemu.smoke.verdict import Verdict

BOOT: Final = "boot"  # the test case that is the boot itself
ORIGIN: Final = "xenemu"
KCIDB_VERSION: Final = {"major": 5, "minor": 3}
MAX_EXCERPT: Final = 16384  # characters of KernelCI's log_excerpt
MESSAGE: Final = "%\r\n"  # what a workflow command cannot have in its message,
PROPERTY: Final = MESSAGE + ":,"  # and in a property; % first
NOT_XML: Final = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


# JUnit.


class _Suite(TestSuite):
    """A suite with the attributes that strict schemas require within <testsuites>."""

    id = Attr("id")
    package = Attr("package")


def junit(results: Sequence[Result]) -> bytes:
    """A suite for each boot: the boot as a case, then the cases of its KTAP."""
    document = JUnitXml()
    for number, result in enumerate(results):
        document.append(_suite(number, result))
    buffer = io.BytesIO()
    document.write(buffer)
    return buffer.getvalue()


def _suite(number: int, result: Result) -> TestSuite:
    name = _xml(result.boot.name)
    suite = _Suite(name)
    suite.id, suite.package = str(number), "xenemu"
    suite.timestamp = _time(result).strftime("%Y-%m-%dT%H:%M:%S")
    suite.hostname = platform.node() or "localhost"
    for key, value in _facts(result).items():
        suite.add_property(key, _xml(str(value)))
    case = TestCase(BOOT, name, round(result.host_s, 3))
    if result.skipped:
        case.result = [Skipped(_xml(result.sentence))]
    elif result.findings:
        kind = Error if result.verdict.is_error else Failure
        fault = kind(_xml(result.sentence), result.verdict.value)
        fault.text = _xml(result.report or result.sentence)
        case.result = [fault]
    suite.add_testcase(case)
    for one in result.cases:
        suite.add_testcase(_case(name, one))
    suite.append(SystemOut(_xml(result.log)))
    suite.append(SystemErr(_xml(result.report)))
    suite.update_statistics()
    return suite


def _case(suite: str, one: Case) -> TestCase:
    *parents, last = one.path
    case = TestCase(_xml(last), _xml(".".join((suite, *parents))), 0.0)
    if one.status is Status.SKIP:
        case.result = [Skipped(_xml(one.reason))]
    elif one.status is Status.FAIL:
        case.result = [Failure(_xml(one.reason or "not ok"), "ktap")]
    return case


def _xml(text: str) -> str:
    """Text without the characters that no XML document can have."""
    return NOT_XML.sub("\N{REPLACEMENT CHARACTER}", text)


def _facts(result: Result) -> dict[str, Any]:
    """What a boot was, and what it took."""
    boot = result.boot
    facts: dict[str, Any] = {"from": boot.origin.name} if boot.origin else {}
    facts |= {
        "kernel": boot.kernel,
        "mode": result.mode or boot.mode,
        "memory_bytes": boot.memory,
        "cmdline": boot.full_cmdline,
        "verdict": result.verdict.value,
        "virtual_s": f"{result.virtual_ns / 1e9:.9f}",
        "instructions": result.instructions,
        "cpu_s": f"{result.cpu_s:.2f}",
        "peak_kib": result.peak_kib,
    }
    facts |= {f"capture.{key}": value for key, value in result.captures.items()}
    return facts | {f"phase.{p.name}": f"{p.virtual_ns / 1e9:.9f}" for p in result.phases}


# KernelCI.


def kcidb(results: Sequence[Result]) -> str:
    """The report that KernelCI's database takes, by its I/O schema.

    In KernelCI: kcidb-io, schema/v05_03.py
    """
    builds = {kernel: _digest(kernel) for kernel in {result.boot.kernel for result in results}}
    tests = [test for result in results for test in _tests(result, builds[result.boot.kernel])]
    return json.dumps({"version": KCIDB_VERSION, "tests": tests}, indent=2) + "\n"


def _tests(result: Result, build: str) -> Iterator[dict[str, Any]]:
    boot, started = result.boot, _time(result)
    identity = f"{ORIGIN}:{started:%Y%m%dT%H%M%S}-{boot.slug}"
    common = {
        "build_id": f"{ORIGIN}:{build}",
        "origin": ORIGIN,
        "environment": {
            "comment": f"xenemu {__version__}, {boot.name}",
            "misc": {"mode": result.mode, "memory": boot.memory, "cmdline": boot.full_cmdline},
        },
        "start_time": started.isoformat(timespec="seconds"),
    }
    misc = _facts(result) | {
        "reason": result.sentence,
        "findings": [{"verdict": f.verdict.value, "reason": f.reason} for f in result.findings],
        "captures": result.captures,
        "phases": [
            {"name": p.name, "virtual_s": p.virtual_ns / 1e9, "host_s": round(p.host_s, 3)}
            for p in result.phases
        ],
        "kernel": str(boot.kernel),
    }
    yield common | {
        "id": identity,
        "path": BOOT,
        "status": _status(result),
        "comment": _plain(result.sentence),
        "duration": round(result.host_s, 3),
        "log_excerpt": _plain(result.log[-MAX_EXCERPT:]),
        "misc": misc,
    }
    for number, case in enumerate(result.cases, 1):
        yield common | {
            "id": f"{identity}-{number}",
            "path": ".".join(re.sub(r"[^A-Za-z0-9_-]+", "_", part) for part in case.path),
            "status": case.status.name,
            "comment": _plain(case.reason or case.name),
        }


def _status(result: Result) -> str:
    if result.verdict is Verdict.XENEMU:
        return "MISS"
    if result.skipped:
        return "SKIP"
    if result.verdict.is_error:
        return "ERROR"
    return "FAIL" if result.findings else "PASS"


def _digest(path: Path) -> str:
    """What tells one build of a kernel from another; its name, if it is gone by now."""
    try:
        with path.open("rb") as file:
            return "sha256-" + hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return path.name


def _plain(text: str) -> str:
    return text.replace("\0", "\N{REPLACEMENT CHARACTER}")


def _time(result: Result) -> datetime:
    return datetime.fromtimestamp(result.started, UTC)


# TAP.


def lcov(results: Sequence[Result]) -> str:
    """Which code the boots ran, together: how many of them ran each function and each line."""
    return merged(result.coverage for result in results)


def tap(results: Sequence[Result]) -> str:
    """TAP 14: a test for each boot, with a subtest for its KTAP."""
    lines = ["TAP version 14", f"1..{len(results)}"]
    for number, result in enumerate(results, 1):
        if result.cases:
            lines += [f"    # Subtest: {_tap(result.boot.name)}", f"    1..{len(result.cases)}"]
            lines += [f"    {_tap_case(at, case)}" for at, case in enumerate(result.cases, 1)]
        lines.append(_tap_boot(number, result))
        lines += ["  ---", f"  verdict: {result.verdict.value}"]
        lines += [f"  message: {json.dumps(result.sentence)}", "  ..."]
    return "\n".join(lines) + "\n"


def _tap_boot(number: int, result: Result) -> str:
    line = f"{number} - {_tap(result.boot.name)}"
    if result.skipped:
        return f"ok {line} # SKIP {_tap(result.sentence)}"
    return f"not ok {line}" if result.findings else f"ok {line}"


def _tap_case(number: int, case: Case) -> str:
    ok = "not ok" if case.status is Status.FAIL else "ok"
    line = f"{ok} {number} - {_tap(case.name)}"
    return f"{line} # SKIP {case.reason}" if case.status is Status.SKIP else line


def _tap(text: str) -> str:
    return text.replace("\\", "\\\\").replace("#", "\\#").replace("\n", " ")


# GitHub.


def github_annotation(result: Result) -> str:
    """The workflow command that shows a failed boot at the top of a run, and in its plan."""
    title = f"{result.boot.name} - {result.verdict.value}"
    return github_error(result.sentence, result.boot.place, title)


def github_error(text: str, place: Place | None = None, title: str = "") -> str:
    """The workflow command that shows an error, at its place in the repository's files."""
    known = {"file": _in_workspace(place.file) if place else "", "line": place and place.line}
    known["title"] = title
    properties = ",".join(f"{k}={_escape(str(v), PROPERTY)}" for k, v in known.items() if v)
    return f"::error {properties}".rstrip() + f"::{_escape(text, MESSAGE)}"


def _in_workspace(file: str) -> str:
    """A file's name as GitHub knows it: from the top of the repository that a job works on."""
    root, path = Path(os.environ.get("GITHUB_WORKSPACE", "")).resolve(), Path(file).resolve()
    return str(path.relative_to(root)) if path.is_relative_to(root) else file


def _escape(text: str, special: str) -> str:
    for character in special:
        text = text.replace(character, f"%{ord(character):02X}")
    return text


def github_summary(results: Sequence[Result]) -> str:
    """A table in Markdown for a job's page."""
    passed = sum(not result.findings for result in results)
    lines = [
        f"### xenemu: {passed} of {len(results)} boots passed",
        "",
        "| | boot | verdict | virtual s | host s | why |",
        "|---|---|---|--:|--:|---|",
    ]
    for result in results:
        mark = "⏭️" if result.skipped else "❌" if result.findings else "✅"
        why = ", ".join(filter(None, (result.tests, result.sentence)))
        cells = (mark, result.boot.name, result.verdict.value, f"{result.virtual_ns / 1e9:.3f}")
        row = " | ".join(_cell(cell) for cell in (*cells, f"{result.host_s:.1f}", why))
        lines.append(f"| {row} |")
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
