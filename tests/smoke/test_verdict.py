"""What a boot is judged to be, from facts written down by hand."""

from __future__ import annotations

import pytest

from xenemu.linux import TAINT_DIE, TAINT_SOFTLOCKUP, TAINT_WARN, LogLine
from xenemu.outcome import End
from xenemu.smoke.ktap import Case, Status
from xenemu.smoke.results import CODES
from xenemu.smoke.verdict import Facts, Finding, Verdict, advice, judge, kernel_lines

PANIC = "Kernel panic - not syncing: VFS: no root"
KILLED = "Kernel panic - not syncing: Attempted to kill init! exitcode=0x00000300"
WARNING = "WARNING: CPU: 0 PID: 1 at kernel/x.c:3 f+0x1/0x2"
BUG = "kernel BUG at kernel/x.c:3!"
OOPS = "BUG: kernel NULL pointer dereference, address: 0000000000000000"
LOCKUP = "watchdog: BUG: soft lockup - CPU#0 stuck for 26s! [x:1]"
BANNER = "Linux version 6.1.0"


def stamped(*lines):
    return [f"[    1.234567] {line}" for line in (BANNER, *lines)]


DUMPED = stamped(PANIC) + stamped()  # a panic, and another kernel after it


def verdicts(ended=End.POWEROFF, exits=(), tolerate=(), **facts):
    found = judge(Facts(ended, "it ended", **facts), exits, tolerate)
    return [finding.verdict for finding in found]


@pytest.mark.parametrize(
    ("ended", "expected"),
    [
        (End.POWEROFF, []),
        (End.REBOOT, []),
        (End.SUSPEND, []),
        (End.EXPECTED, []),
        (End.GUEST_CRASH, [Verdict.CRASH]),
        (End.WATCHDOG, [Verdict.WATCHDOG]),
        (End.REFUSED, [Verdict.REFUSED]),
        (End.TRIPLE_FAULT, [Verdict.TRIPLE_FAULT]),
        (End.TIMEOUT, [Verdict.TIMEOUT]),
        (End.IDLE, [Verdict.IDLE]),
    ],
)
def test_the_machine_comes_first(ended, expected):
    assert verdicts(ended) == expected


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        ({"ended": End.GUEST_CRASH, "console": stamped(PANIC)}, [Verdict.PANIC]),
        ({"ended": End.GUEST_CRASH, "console": stamped(KILLED)}, [Verdict.INIT_EXIT]),
        ({"ended": End.GUEST_CRASH, "log": [LogLine(0, 0, PANIC)]}, [Verdict.PANIC]),
        ({"ended": End.GUEST_CRASH, "log": [LogLine(0, 1, PANIC)]}, [Verdict.CRASH]),
        ({"ended": End.STOPPED, "panicked": True}, [Verdict.PANIC]),
        ({"ended": End.POWEROFF, "halted": True}, [Verdict.IDLE]),
        ({"ended": End.IDLE, "died_early": True}, [Verdict.PANIC]),
        ({"ended": End.POWEROFF, "halted": True, "died_early": True}, [Verdict.PANIC]),
        ({"ended": End.TIMEOUT, "panicked": True}, [Verdict.PANIC]),
        ({"ended": End.TRIPLE_FAULT, "panicked": True}, [Verdict.PANIC]),
        ({"ended": End.REBOOT, "panicked": True}, [Verdict.PANIC]),
        ({"ended": End.REFUSED, "panicked": True}, [Verdict.REFUSED, Verdict.PANIC]),
        ({"ended": End.TIMEOUT, "panicked": None, "console": stamped(PANIC)}, [Verdict.PANIC]),
        ({"ended": End.TIMEOUT, "panicked": None, "console": [BANNER, PANIC]}, [Verdict.PANIC]),
        ({"ended": End.TIMEOUT, "panicked": None, "console": stamped()}, [Verdict.TIMEOUT]),
        ({"ended": End.TIMEOUT, "panicked": None, "console": [PANIC]}, [Verdict.TIMEOUT]),
        ({"ended": End.TIMEOUT, "console": stamped(PANIC)}, [Verdict.TIMEOUT]),
        ({"ended": End.REBOOT, "panicked": None, "console": DUMPED}, [Verdict.PANIC]),
        ({"ended": End.REBOOT, "console": DUMPED}, []),
    ],
)
def test_what_a_crash_was(facts, expected):
    assert verdicts(**facts) == expected


def test_a_panic_has_the_kernels_words():
    (finding,) = judge(Facts(End.GUEST_CRASH, "it crashed", console=stamped(PANIC)))
    assert finding.reason == PANIC


FREEBSD = ["---<<BOOT>>---", "Copyright (c) 1992-2021 The FreeBSD Project.", "panic: no root"]
NETBSD = [f"[   1.0000000] {line}" for line in ("NetBSD 9.3 (GENERIC) #0", "panic: no root")]
OPENBSD = ["OpenBSD 7.4 (GENERIC) #1397: Tue", "panic: no root"]


@pytest.mark.parametrize("console", [FREEBSD, NETBSD, OPENBSD])
def test_a_bsds_panic_has_its_words(console):
    facts = Facts(End.GUEST_CRASH, "it crashed", panicked=None, console=console)
    assert judge(facts) == [Finding(Verdict.PANIC, "panic: no root")]
    facts = Facts(End.TIMEOUT, "it hangs", panicked=True, panic_message="no root")
    assert judge(facts) == [Finding(Verdict.PANIC, "panic: no root")]


def test_a_program_in_linux_that_says_so_is_no_bsd():
    assert verdicts(panicked=None, console=[BANNER, "panic: runtime error"]) == []


@pytest.mark.parametrize(
    ("line", "bit", "verdict"),
    [
        (WARNING, TAINT_WARN, Verdict.WARNING),
        ("WARNING: kernel/x.c:3 at f+0x1/0x2, CPU#0: x/1", TAINT_WARN, Verdict.WARNING),
        ("WARNING: possible circular locking dependency detected", 0, Verdict.WARNING),
        (BUG, TAINT_DIE, Verdict.BUG),
        ("BUG: sleeping function called from invalid context at x.c:1", 0, Verdict.BUG),
        ("BUG: KASAN: use-after-free in f+0x1/0x2", 0, Verdict.BUG),
        (OOPS, TAINT_DIE, Verdict.OOPS),
        ("BUG: unable to handle page fault for address: ffff", TAINT_DIE, Verdict.OOPS),
        ("general protection fault, probably for non-canonical", TAINT_DIE, Verdict.OOPS),
        ("invalid opcode: 0000 [#1] PREEMPT SMP", TAINT_DIE, Verdict.OOPS),
        (LOCKUP, TAINT_SOFTLOCKUP, Verdict.LOCKUP),
        ("rcu: INFO: rcu_preempt self-detected stall on CPU", 0, Verdict.LOCKUP),
        ("INFO: task sh:12 blocked for more than 120 seconds.", 0, Verdict.LOCKUP),
    ],
)
def test_what_the_kernel_complains_of(line, bit, verdict):
    assert verdicts(console=stamped(line)) == [verdict]
    assert verdicts(console=stamped(line), taint=bit) == [verdict]
    assert verdicts(console=stamped(line), tolerate=[verdict]) == []
    if bit:
        assert verdicts(console=stamped(line), taint=0) == []


@pytest.mark.parametrize(
    ("bit", "verdict"),
    [
        (TAINT_DIE, Verdict.OOPS),
        (TAINT_WARN, Verdict.WARNING),
        (TAINT_SOFTLOCKUP, Verdict.LOCKUP),
        (1 << 12, None),  # an out-of-tree module
    ],
)
def test_a_taint_tells_where_nothing_was_printed(bit, verdict):
    assert verdicts(taint=bit) == ([verdict] if verdict else [])


@pytest.mark.parametrize("line", [PANIC, WARNING, BUG, OOPS, LOCKUP])
def test_a_line_that_quotes_the_kernel_is_no_alarm(line):
    quoted = [*stamped(), line, f"echo '{line}'", f"log: [    1.234567] {line}"]
    assert verdicts(console=quoted) == []


@pytest.mark.parametrize("line", [PANIC, WARNING, BUG, OOPS, LOCKUP])
def test_a_line_that_copies_the_kernels_is_no_alarm_where_memory_tells(line):
    assert verdicts(console=stamped(line), taint=0) == []


def test_a_program_that_writes_to_the_kernels_log_is_no_alarm():
    line = "BUG: fake"
    assert verdicts(console=stamped(line), log=[LogLine(0, 1, line)]) == []


def test_a_panic_counts_only_where_the_guest_has_crashed():
    assert verdicts(console=stamped(PANIC)) == []


@pytest.mark.parametrize(
    ("console", "lines"),
    [
        (["[    0.000000] Linux version 6", "x", "<6>[    1.5] no", "[ 1.000000][ T1] y"],
         ["Linux version 6", "y"]),
        (["Linux version 6", "x"], ["Linux version 6", "x"]),
        (["x"], []),
    ],
)  # fmt: skip
def test_the_banner_shows_whether_lines_are_stamped(console, lines):
    assert kernel_lines(console) == lines


def test_the_gravest_comes_first():
    found = verdicts(
        End.GUEST_CRASH,
        console=stamped(WARNING, OOPS, PANIC),
        unmet=["login"],
        cases=[Case(("a",), Status.FAIL)],
    )
    assert found == [*(Verdict.PANIC, Verdict.OOPS, Verdict.WARNING, Verdict.UNMET, Verdict.TESTS)]


def test_an_expectation_that_was_not_met():
    (finding,) = judge(Facts(End.POWEROFF, "it powered off", unmet=["login"]))
    assert finding == Finding(Verdict.UNMET, "it powered off; never seen: 'login'")


def test_expectations_wait_for_each_other():
    facts = Facts(End.POWEROFF, "off", unmet=["login", "x", "y"])
    assert judge(facts)[0].reason == "off; never seen: 'login'; not looked for: 'x', 'y'"
    facts.too_early = "'login' is in line 1"
    assert judge(facts)[0].reason == "off; 'login' is in line 1; not looked for: 'x', 'y'"


@pytest.mark.parametrize(
    ("facts", "exits", "tolerate"),
    [
        ({"ended": End.TIMEOUT}, ["reboot"], []),
        ({"findings": [Finding(Verdict.QUIET, "ENDED")]}, ["reboot"], []),
        ({"ended": End.TIMEOUT}, ["timeout"], []),
        ({"ended": End.POWEROFF}, ["reboot"], []),
        ({"ended": End.POWEROFF, "console": stamped(WARNING)}, ["reboot"], [Verdict.WARNING]),
        ({"ended": End.POWEROFF, "console": stamped(WARNING)}, ["reboot"], []),
    ],
)
def test_how_it_ended_is_said_once(facts, exits, tolerate):
    known = {"ended": End.STOPPED, "reason": "ENDED"} | facts
    found = judge(Facts(**known, unmet=["login"]), exits, tolerate)
    assert "; ".join(finding.reason for finding in found).count("ENDED") == 1


@pytest.mark.parametrize(
    ("exits", "facts", "expected"),
    [
        (["poweroff"], {}, []),
        (["reboot"], {}, [Verdict.END]),
        (["reboot", "poweroff"], {}, []),
        (["panic"], {"ended": End.GUEST_CRASH, "panicked": True}, []),
        (["panic"], {}, [Verdict.END]),
        (["panic"], {"panicked": True, "console": stamped(OOPS)}, [Verdict.OOPS]),
        (["refused"], {"ended": End.REFUSED}, []),
        (["poweroff"], {"ended": End.IDLE}, [Verdict.IDLE, Verdict.END]),
    ],
)
def test_how_it_should_end(exits, facts, expected):
    assert verdicts(exits=exits, **facts) == expected


def test_a_test_that_failed_is_named():
    cases = [Case(("a",), Status.PASS), Case(("s", "b"), Status.FAIL, "why")]
    (finding,) = judge(Facts(End.POWEROFF, "", cases=cases))
    assert finding == Finding(Verdict.TESTS, "1 of 2 tests failed: s.b (why)")


def test_verdicts_are_in_the_order_of_their_exit_codes():
    codes = [verdict.exit_code for verdict in Verdict]
    assert codes == sorted(codes, key=CODES.index)
    assert set(codes) == set(CODES)


def test_an_unmet_expectation_names_the_panic_that_came_instead():
    facts = Facts(End.STOPPED, "it stands still", console=stamped(PANIC), unmet=["Oops"])
    facts.panicked = True
    (finding,) = judge(facts, exits=("panic",))
    assert finding == Finding(Verdict.UNMET, f"{PANIC}; never seen: 'Oops'")


def test_an_unmet_expectation_of_a_silent_linux_hints_at_the_console():
    log = [LogLine(0, 0, BANNER), LogLine(0, 0, "Command line: ro")]
    (finding,) = judge(Facts(End.POWEROFF, "it ended", log=log, unmet=["login:"]))
    hint = "the console shows nothing: put console=hvc0 on the kernel's command line"
    assert finding == Finding(Verdict.UNMET, f"it ended; never seen: 'login:' ({hint})")


def test_a_silent_linux_is_told_which_option_it_lacks():
    begun = [LogLine(0, 0, BANNER)]
    opened = LogLine(0, 0, "printk: console [hvc0] enabled")
    for line, log, words in (
        ("ro", begun, "put console=hvc0 on"),
        ("console=ttyS0", begun, "put console=hvc0 on"),
        ("console=hvc0", begun, "put earlyprintk=xen on"),  # it died, or hangs, before
        ("", [*begun, LogLine(0, 0, "Command line: console=hvc0")], "put earlyprintk=xen on"),
        ("console=hvc0", [*begun, opened], ""),
        ("console=hvc0", [], ""),  # no Linux
    ):
        said = advice(Facts(End.STOPPED, "", command_line=line, log=log))
        assert words in said and bool(words) == bool(said)


def test_what_a_kernel_had_said_before_it_was_copied_does_not_count():
    at_fork = Facts(
        End.EXPECTED, "", taint=TAINT_WARN, console=stamped(WARNING), log=[LogLine(1, 0, WARNING)]
    )
    again = {"console": stamped(WARNING, WARNING), "log": [*at_fork.log, LogLine(2, 0, WARNING)]}
    assert verdicts(taint=TAINT_WARN, console=stamped(WARNING), before=at_fork) == []
    assert verdicts(taint=TAINT_WARN, before=at_fork, **again) == [Verdict.WARNING]
    assert verdicts(taint=TAINT_WARN | TAINT_DIE, before=at_fork) == [Verdict.OOPS]
    assert verdicts(ended=End.STOPPED, panicked=True, before=at_fork) == [Verdict.PANIC]
