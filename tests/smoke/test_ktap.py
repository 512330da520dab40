"""KTAP as KUnit and kselftest print it, whole and broken."""

from __future__ import annotations

import pytest

from xenemu.smoke.ktap import parse

KUNIT = """\
[    0.060000] printk: something else
[    0.500000] KTAP version 1
[    0.500001] 1..2
[    0.500002]     KTAP version 1
[    0.500003]     # Subtest: list
[    0.500004]     # module: list_test
[    0.500005]     1..3
[    0.500006]     ok 1 list_init
[    0.500007]     # list_add: EXPECTATION FAILED at lib/list-test.c:40
[    0.500008]     not ok 2 list_add
[    0.500009]         KTAP version 1
[    0.500010]         # Subtest: list_many
[    0.500011]         ok 1 one
[    0.500012]         ok 2 two # SKIP no memory
[    0.500013]     # list_many: pass:1 fail:0 skip:1 total:2
[    0.500014]     ok 3 list_many
[    0.500015] # list: pass:2 fail:1 skip:0 total:3
[    0.500016] not ok 1 list
[    0.500017] ok 2 empty
[    0.600000] Run /init as init process
"""
KSELFTEST = """\
TAP version 13
1..2
# selftests: size: get_size
# TAP version 13
# # Testing system size.
# ok 1 get runtime memory use
# 1..1
ok 1 selftests: size: get_size
# selftests: timers: adjtick
# sh: not found
not ok 2 selftests: timers: adjtick # exit=127
"""


def cases(text):
    return [(case.name, case.status.value, case.reason) for case in parse(text.splitlines())]


def test_kunit():
    assert cases(KUNIT) == [
        ("list.list_init", "pass", ""),
        ("list.list_add", "fail", ""),
        ("list.list_many.one", "pass", ""),
        ("list.list_many.two", "skip", "no memory"),
        ("empty", "pass", ""),
    ]


def test_kselftest():
    assert cases(KSELFTEST) == [
        ("selftests: size: get_size.get runtime memory use", "pass", ""),
        ("selftests: timers: adjtick", "fail", "exit=127"),
    ]


@pytest.mark.parametrize(
    ("line", "case"),
    [
        ("ok 1 a", ("a", "pass", "")),
        ("ok 1 - a", ("a", "pass", "")),
        ("ok 1", ("test 1", "pass", "")),
        ("not ok 1 a", ("a", "fail", "")),
        ("not ok 1 a # why", ("a", "fail", "why")),
        ("ok 1 a # SKIP no device", ("a", "skip", "no device")),
        ("ok 1 # skip", ("test 1", "skip", "")),
        ("not ok 1 a # TODO later", ("a", "skip", "TODO later")),
        ("not ok 1 a # XFAIL known", ("a", "skip", "XFAIL known")),
        ("not ok 1 a # TIMEOUT 45 seconds", ("a", "fail", "TIMEOUT 45 seconds")),
        ("ok 1 a # ERROR", ("a", "fail", "ERROR")),
    ],
)
def test_a_result(line, case):
    assert cases(f"KTAP version 1\n1..1\n{line}\n") == [case]


def test_no_header_is_no_ktap():
    assert cases("ok 1 a\n1..3\nnot ok 2 b\n") == []


def test_a_document_whose_tests_stop():
    assert cases("KTAP version 1\n1..3\nok 1 a\n[    1.0] Kernel panic\n") == [
        ("a", "pass", ""),
        ("(plan)", "fail", "1 of 3 tests have a result"),
    ]


def test_a_subtest_that_never_ends():
    text = "KTAP version 1\n1..1\n    KTAP version 1\n    # Subtest: list\n    1..2\n    ok 1 a\n"
    assert cases(text) == [
        ("list.a", "pass", ""),
        ("list.(plan)", "fail", "1 of 2 tests have a result"),
        ("(plan)", "fail", "0 of 1 tests have a result"),
    ]


def test_more_results_than_planned():
    assert cases("KTAP version 1\n1..1\nok 1 a\nok 2 b\n")[-1] == (
        "(plan)", "fail", "2 of 1 tests have a result"
    )  # fmt: skip


def test_a_plan_may_come_last():
    assert cases("TAP version 14\nok 1 a\n1..1\n") == [("a", "pass", "")]


def test_a_document_that_is_skipped():
    assert cases("TAP version 13\n1..0 # SKIP no root\n") == [("(all)", "skip", "no root")]


def test_a_suite_that_fails_though_its_cases_pass():
    text = "KTAP version 1\n1..1\n    # Subtest: s\n    1..1\n    ok 1 a\nnot ok 1 s\n"
    assert cases(text) == [("s.a", "pass", ""), ("s", "fail", "")]


def test_bail_out():
    assert cases("TAP version 13\n1..5\nok 1 a\nBail out! no memory\n") == [
        ("a", "pass", ""),
        ("(bail out)", "fail", "no memory"),
    ]


def test_several_documents():
    text = "TAP version 13\n1..1\nok 1 a\n"
    assert cases(text + text) == [("a", "pass", "")] * 2


def test_subtests_without_headers():
    text = (
        "TAP version 14\n1..2\n    # Subtest: s\n    1..1\n    ok 1 a\nok 1 s\n"
        "    # Subtest: t\n    1..1\n    ok 1 b\nok 2 t\n"
    )
    assert cases(text) == [("s.a", "pass", ""), ("t.b", "pass", "")]


def test_a_document_without_anything():
    assert cases("KTAP version 1\n") == [("(plan)", "fail", "it began, and has no results")]
