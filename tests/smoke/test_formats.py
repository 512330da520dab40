"""Results as files: what JUnit's, KernelCI's and TAP's readers, and GitHub, insist on."""

from __future__ import annotations

import json
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from xenemu.smoke import formats
from xenemu.smoke.ktap import Case, Status, parse
from xenemu.smoke.plan import Boot
from xenemu.smoke.results import Result, never_run, worst
from xenemu.smoke.session import Phase
from xenemu.smoke.verdict import Finding, Verdict

CASES = [
    Case(("list", "add"), Status.PASS),
    Case(("list", "del"), Status.FAIL, "it is there"),
    Case(("skip me",), Status.SKIP, "no memory"),
]


@pytest.fixture
def results(tmp_path):
    """One that passed, one that failed, one that could not be, and one that was stopped."""
    kernel = tmp_path / "vmlinuz"
    kernel.write_bytes(b"kernel")
    good = Result(Boot("good pv", kernel), reason="the guest powered off", mode="pv64")
    good.host_s, good.virtual_ns, good.cases = 2.0004, 1_500_000_000, CASES
    good.phases, good.captures = [Phase("kernel", 10, 0.1)], {"version": "6.1"}
    good.log = "    0.000000  \x1b[1mhello\0\n"
    bad = Result(Boot("bad: 100%, <x>", kernel), [Finding(Verdict.PANIC, "no root\n|")])
    bad.report = "Backtrace:\n  panic"
    broken = Result(Boot("broken", kernel), [Finding(Verdict.IMAGE, "truncated")])
    return [good, bad, broken, never_run(Boot("late", kernel), "stopped by SIGTERM")]


# JUnit. The rules are those of the schemas that Ant's and Jenkins's readers go by.


def suites(results):
    root = ElementTree.fromstring(formats.junit(results))
    assert (root.tag, root.attrib) == ("testsuites", {})
    return list(root)


def test_a_suite_has_what_its_schema_demands(results):
    for number, suite in enumerate(suites(results)):
        given = suite.attrib
        assert suite.tag == "testsuite"
        assert {"name", "hostname", "package"} <= set(given)
        assert given["id"] == str(number)
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d", given["timestamp"])
        assert re.fullmatch(r"\d+\.\d{1,3}", given["time"])
        tags = [child.tag for child in suite]
        cases = tags.count("testcase")
        assert tags == ["properties", *["testcase"] * cases, "system-out", "system-err"]
        assert int(given["tests"]) == cases
        for kind, count in (("failure", "failures"), ("error", "errors"), ("skipped", "skipped")):
            assert int(given[count]) == len(suite.findall(f"testcase/{kind}"))


def test_a_case_has_what_its_schema_demands(results):
    for suite in suites(results):
        for case in suite.findall("testcase"):
            assert set(case.attrib) == {"name", "classname", "time"}
            assert len(case) <= 1
            for fault in case:
                assert fault.tag in ("failure", "error", "skipped")
                assert fault.tag == "skipped" or {"type", "message"} <= set(fault.attrib)


def test_boots_and_tests_are_cases(results):
    good, bad, broken, late = suites(results)
    names = [(case.get("classname"), case.get("name")) for case in good.findall("testcase")]
    assert names == [
        ("good pv", "boot"),
        ("good pv.list", "add"),
        ("good pv.list", "del"),
        ("good pv", "skip me"),
    ]
    assert bad.find("testcase/failure").get("type") == "panic"
    assert bad.find("testcase/failure").text == "Backtrace:\n  panic"
    assert broken.find("testcase/error").get("message") == "truncated"
    assert late.find("testcase/skipped").get("message") == "stopped by SIGTERM"


def test_what_no_xml_can_have_is_replaced(results):
    text = suites(results)[0].find("system-out").text
    assert text == "    0.000000  \ufffd[1mhello\ufffd\n"


# KernelCI. In KernelCI: kcidb-io, schema/v05_03.py


def test_a_report_has_what_kernelci_demands(results):
    report = json.loads(formats.kcidb(results))
    assert report["version"] == {"major": 5, "minor": 3}
    known = {"id", "build_id", "origin", "path", "status", "comment", "environment", "start_time"}
    known |= {"duration", "log_excerpt", "misc"}
    for test in report["tests"]:
        assert {"id", "build_id", "origin"} <= set(test) <= known
        assert re.fullmatch(r"[a-z0-9_]+", test["origin"])
        assert all(test[key].startswith(f"{test['origin']}:") for key in ("id", "build_id"))
        assert re.fullmatch(r"[a-zA-Z0-9_-]+(\.[a-zA-Z0-9_-]+)*", test["path"])
        assert set(test["environment"]) <= {"comment", "compatible", "misc"}
        assert len(test.get("log_excerpt", "")) <= 16384
        assert "\0" not in test["comment"] + test.get("log_excerpt", "")
    ids = [test["id"] for test in report["tests"]]
    assert len(set(ids)) == len(ids)


def test_a_status_for_each(results):
    tests = json.loads(formats.kcidb(results))["tests"]
    assert [(test["path"], test["status"]) for test in tests] == [
        ("boot", "PASS"),
        ("list.add", "PASS"),
        ("list.del", "FAIL"),
        ("skip_me", "SKIP"),
        ("boot", "FAIL"),
        ("boot", "ERROR"),
        ("boot", "SKIP"),
    ]
    assert tests[0]["misc"]["captures"] == {"version": "6.1"}


def test_a_kernel_that_is_gone_has_no_digest(results):
    results[0].boot.kernel.unlink()
    assert "sha256" not in json.loads(formats.kcidb(results))["tests"][0]["build_id"]


# TAP: what this writes, the parser of KTAP reads.


def test_tap(results):
    text = formats.tap(results)
    assert text.startswith("TAP version 14\n1..4\n")
    cases = [(case.name, case.status.value) for case in parse(text.splitlines())]
    assert cases == [
        ("good pv.list.add", "pass"),
        ("good pv.list.del", "fail"),
        ("good pv.skip me", "skip"),
        ("bad: 100%, <x>", "fail"),
        ("broken", "fail"),
        ("late", "skip"),
    ]


# GitHub.


def test_an_annotation_is_one_line_whatever_is_in_it(results):
    line = formats.github_annotation(results[1])
    assert line == "::error title=bad%3A 100%25%2C <x> - panic::no root%0A|"


def test_a_summary_is_a_table(results):
    lines = formats.github_summary(results).splitlines()
    assert lines[0] == "### xenemu: 1 of 4 boots passed"
    rows = [line for line in lines if line.startswith("| ")][1:]
    assert len(rows) == 4
    assert all(len(re.findall(r"(?<!\\)\|", row)) == 7 for row in rows)
    assert "3 tests, 1 failed, 1 skipped" in rows[0]


# Exit codes.


@pytest.mark.parametrize(
    ("verdicts", "code"),
    [
        ([], 0),
        ([None, None], 0),
        ([None, Verdict.SKIPPED], 0),
        ([None, Verdict.UNMET], 3),
        ([Verdict.UNMET, Verdict.QUIET], 6),
        ([Verdict.QUIET, Verdict.WARNING], 4),
        ([Verdict.PANIC, Verdict.REFUSED], 5),
        ([Verdict.REFUSED, Verdict.FIT], 8),
        ([Verdict.FIT, Verdict.IMAGE], 7),
        ([Verdict.IMAGE, Verdict.XENEMU], 70),
    ],
)
def test_the_exit_code_is_the_worst(verdicts, code):
    results = [
        Result(Boot("x", Path()), [Finding(verdict, "")] if verdict else []) for verdict in verdicts
    ]
    assert worst(results) == worst(results[::-1]) == code
