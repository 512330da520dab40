"""What became of a boot, told from what is certain first.

1. How the machine ended: the shutdown reason, the hypervisor's refusal, a triple fault, a wait for
   nothing.
2. What the kernel's memory says: panic_cpu and the taint.
3. What is printed. It gives the words for what the first two say, and counts by itself only where
   they say nothing. Then a line must begin as the kernel's lines do, with a time stamp unless the
   kernel prints none.

So a program that prints ``Kernel panic - not syncing`` raises no alarm.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import field
from enum import Enum
from typing import Final

from xenemu.linux import STAMP, TAINT_DIE, TAINT_SOFTLOCKUP, TAINT_WARN, LogLine
from xenemu.outcome import EXIT_BUG, EXIT_FIT, EXIT_IMAGE, End
from xenemu.records import dataclass
from xenemu.smoke.ktap import Case, Status


class Verdict(Enum):
    """What became of a boot, the gravest first; the value is a stable word."""

    XENEMU = "xenemu"  # its own fault: a bug, a crash of the engine
    IMAGE = "image"  # the kernel, or what goes with it, cannot be used
    FIT = "fit"
    REFUSED = "refused"
    TRIPLE_FAULT = "triple-fault"
    PANIC = "panic"
    INIT_EXIT = "init-exit"  # a panic because init ended
    CRASH = "crash"  # the guest said that it crashed, and not why
    WATCHDOG = "watchdog"
    BUG = "bug"
    OOPS = "oops"
    LOCKUP = "lockup"  # a soft lockup, an RCU stall, a hung task
    WARNING = "warning"
    IDLE = "idle"  # waits for what can never come
    QUIET = "quiet"
    TIMEOUT = "timeout"
    REJECTED = "rejected"  # the console has shown what it must not
    UNMET = "unmet"  # ended before every expectation was met
    END = "end"  # ended in another way than it should
    TESTS = "tests"  # a test failed, by its KTAP
    SKIPPED = "skipped"  # not run to its end, as everything was to stop
    PASS = "pass"

    @property
    def exit_code(self) -> int:
        """The exit code that says so, as documented for `xenemu run`."""
        return EXIT_CODES.get(self, 4 if self in KERNELS else 3)

    @property
    def is_kernels_own(self) -> bool:
        """Whether a kernel may go on after it, so that a plan may tolerate it."""
        return self in (Verdict.BUG, Verdict.OOPS, Verdict.LOCKUP, Verdict.WARNING)

    @property
    def is_error(self) -> bool:
        """Whether nothing is known of the kernel, because the boot did not take place."""
        return self in (Verdict.XENEMU, Verdict.IMAGE, Verdict.FIT)


KERNELS: Final = (
    *(Verdict.PANIC, Verdict.INIT_EXIT, Verdict.CRASH, Verdict.WATCHDOG),
    *(Verdict.BUG, Verdict.OOPS, Verdict.LOCKUP, Verdict.WARNING),
)
EXIT_CODES: Final = {
    Verdict.XENEMU: EXIT_BUG,
    Verdict.IMAGE: EXIT_IMAGE,
    Verdict.FIT: EXIT_FIT,
    Verdict.REFUSED: 5,
    Verdict.TRIPLE_FAULT: 5,
    Verdict.IDLE: 6,
    Verdict.QUIET: 6,
    Verdict.TIMEOUT: 6,
    Verdict.SKIPPED: 0,
    Verdict.PASS: 0,
}
ENDS: Final = {
    End.REFUSED: Verdict.REFUSED,
    End.TRIPLE_FAULT: Verdict.TRIPLE_FAULT,
    End.WATCHDOG: Verdict.WATCHDOG,
    End.IDLE: Verdict.IDLE,
    End.TIMEOUT: Verdict.TIMEOUT,
}
AFTERMATH: Final = {End.TRIPLE_FAULT, End.IDLE, End.TIMEOUT}  # what can follow a panic
CLEAN: Final = {
    End.POWEROFF: "poweroff",
    End.REBOOT: "reboot",
    End.SUSPEND: "suspend",
}

# What the kernel prints: the verdict, the taint bit that goes with it, and the line.
# In Linux: kernel/panic.c, kernel/watchdog.c, kernel/hung_task.c, kernel/rcu/tree_stall.h,
# lib/bug.c, arch/x86/kernel/dumpstack.c, arch/x86/mm/fault.c
PANIC: Final = re.compile(r"Kernel panic - not syncing: .*")
INIT_EXIT: Final = re.compile(PANIC.pattern[:-2] + "Attempted to kill init!")
BSD_PANIC: Final = re.compile(r"panic: .*")
PATTERNS: Final = [
    (Verdict.BUG, TAINT_DIE, re.compile(r"kernel BUG at \S+:\d+!")),
    (
        Verdict.OOPS,
        TAINT_DIE,
        re.compile(
            r"BUG: unable to handle |BUG: kernel NULL pointer|Oops: |general protection fault"
            r"|(?:invalid opcode|divide error|stack segment|double fault|int3): [0-9a-f]{4} \["
        ),
    ),
    (Verdict.LOCKUP, TAINT_SOFTLOCKUP, re.compile(r"watchdog: BUG: soft lockup - CPU#\d+ stuck")),
    (Verdict.LOCKUP, 0, re.compile(r"rcu: INFO: \w+ (?:self-)?detected (?:expedited )?stalls? on")),
    (Verdict.LOCKUP, 0, re.compile(r"INFO: task .{1,80} blocked for more than \d+ seconds")),
    (Verdict.WARNING, TAINT_WARN, re.compile(r"WARNING: (?:CPU: \d+ PID: \d+|\S+:\d+) at ")),
    (Verdict.WARNING, 0, re.compile(r"WARNING: (?:possible|suspicious|inconsistent|bad unlock) ")),
    (Verdict.BUG, 0, re.compile(r"BUG: (?!unable to handle |kernel NULL pointer)\S")),
]
BANNER: Final = re.compile(r"Linux version \d")
COMMAND_LINE: Final = re.compile(r"(?:Kernel c|C)ommand line: ")
CONSOLE: Final = re.compile(r"\bconsole=[hx]vc")  # hvc0; of old kernels, xvc0
OPENED: Final = re.compile(r"(?:printk: )?(?:boot)?console \[(?:hvc0|xenboot0)\] enabled")
BSD_BANNER: Final = re.compile(r"(?:Free|Net|Open|DragonFly )BSD \d|Copyright \(c\) .*BSD")
TAINTED: Final = {
    TAINT_DIE: (Verdict.OOPS, "the kernel's taint says that it oopsed (D)"),
    TAINT_SOFTLOCKUP: (Verdict.LOCKUP, "the kernel's taint says that it was locked up (L)"),
    TAINT_WARN: (Verdict.WARNING, "the kernel's taint says that it warned (W)"),
}


@dataclass(frozen=True)
class Finding:
    """Something that was found: what it makes of the boot, and a sentence."""

    verdict: Verdict
    reason: str


@dataclass
class Facts:
    """What is known of a boot that has ended.

    `ended` and `reason` are the machine's. `findings` are those of the code that watched the boot.
    `panicked`, `panic_message`, `taint`, `command_line` and `log` are from the kernel's memory
    (None, or nothing: it does not tell). `unmet` are patterns. `too_early` is where the console has
    the first of them before its turn. `before` is what was known when the guest was copied: what
    the kernel had complained of by then speaks against the guest that it was copied from.
    """

    ended: End
    reason: str
    panicked: bool | None = False
    panic_message: str = ""
    died_early: bool = False  # by an exception, before the kernel could handle any
    halted: bool = False  # every vcpu is down, and none had asked for a shutdown
    taint: int | None = None
    command_line: str = ""
    console: Sequence[str] = ()
    log: Sequence[LogLine] = ()
    unmet: Sequence[str] = ()
    too_early: str = ""
    findings: Sequence[Finding] = ()
    cases: Sequence[Case] = field(default=())
    before: Facts | None = None


def judge(
    facts: Facts, exits: Sequence[str] = (), tolerate: Sequence[Verdict] = ()
) -> list[Finding]:
    """Everything that speaks against a boot, the gravest first; nothing if it has passed.

    `exits` are the ends that are allowed: the word of a clean end, or a verdict. Such a verdict
    then does not speak against the boot.
    """
    ends = [*facts.findings, *_machine(facts)]
    found = [*ends, *_kernel(facts), *_tests(facts.cases)]
    spared = {*exits, *(verdict.value for verdict in tolerate)}
    is_said = any(finding.verdict.value not in spared for finding in ends)
    died = crash(facts)
    end = "" if is_said else f"{died.reason if died else facts.reason}; "
    if facts.unmet:
        found.append(Finding(Verdict.UNMET, f"{end}{_unmet(facts)}"))
        end = ""
    happened = {finding.verdict.value for finding in found} | {CLEAN.get(facts.ended, "")}
    if exits and not happened & set(exits):
        wanted = " or ".join(exits)
        found.append(Finding(Verdict.END, f"{end}it should have ended by {wanted}"))
    order = list(Verdict)
    return sorted(
        (finding for finding in found if finding.verdict.value not in spared),
        key=lambda finding: order.index(finding.verdict),
    )


def _machine(facts: Facts) -> list[Finding]:
    died = crash(facts)
    found = [died] if died else []
    if facts.ended in ENDS and not (died and facts.ended in AFTERMATH):
        found.append(Finding(ENDS[facts.ended], facts.reason))
    if facts.halted and not died:  # Xen then powers the domain off, as if it had asked
        found.append(Finding(Verdict.IDLE, "the guest halted for good, without a shutdown"))
    return found


def crash(facts: Facts) -> Finding | None:
    """What the kernel died of by its own account, however the domain ended; None if it did not.

    Memory decides. It may not tell, for example because it belongs to another kernel by now. Then
    the console decides. The console also gives the words of a crash.
    """
    words = f"panic: {facts.panic_message}" if facts.panic_message else ""
    words = words or _panic_message(_kernel_lines(facts))
    panicked = bool(words) if facts.panicked is None else facts.panicked
    if panicked or (words and facts.ended is End.GUEST_CRASH):
        kind = Verdict.INIT_EXIT if INIT_EXIT.match(words) else Verdict.PANIC
        return Finding(kind, words or "the kernel panicked, and what it said is not known")
    if facts.ended is End.GUEST_CRASH:
        return Finding(Verdict.CRASH, facts.reason)
    if facts.died_early:
        words = "an exception before the kernel could handle any: see the backtrace"
        return Finding(Verdict.PANIC, words)
    return None


def advice(facts: Facts) -> str:
    """What to do if a Linux ran and its console shows nothing; else nothing.

    A PVH kernel prints nothing there unless its command line says so, and before its console is
    there it prints nothing at all. A PV kernel prints anyway.
    """
    own = [line.text for line in facts.log if line.facility == 0]
    told = any(line.strip() for line in facts.console)
    if not own or told or any(OPENED.match(line) for line in own):
        return ""
    logged = (line for line in own if COMMAND_LINE.match(line))
    if CONSOLE.search(facts.command_line or next(logged, "")):
        return "the console shows nothing yet: put earlyprintk=xen on the kernel's command line"
    return "the console shows nothing: put console=hvc0 on the kernel's command line"


def _panic_message(lines: Sequence[str]) -> str:
    """The first panic in the kernel's own lines; nothing if there is none."""
    pattern = BSD_PANIC if any(BSD_BANNER.match(line) for line in lines) else PANIC
    return next((line for line in lines if pattern.match(line)), "")


def _kernel(facts: Facts) -> list[Finding]:
    """What the kernel complained of, the first of each kind."""
    found: dict[Verdict, Finding] = {}
    seen = facts.before.taint or 0 if facts.before else 0  # taint bits whose words were found
    for text in _kernel_lines(facts, facts.before):
        for verdict, bit, pattern in PATTERNS:
            if not pattern.match(text):
                continue
            if not bit or facts.taint is None or facts.taint & bit:
                seen |= bit
                found.setdefault(verdict, Finding(verdict, text))
            break
    for bit, (verdict, reason) in TAINTED.items():
        if (facts.taint or 0) & bit & ~seen:
            found.setdefault(verdict, Finding(verdict, reason))
    return list(found.values())


def _kernel_lines(facts: Facts, before: Facts | None = None) -> list[str]:
    """What the kernel itself printed, as far as that can be told; after `before`, if given."""
    old = set(before.log) if before else set()
    own = [line.text for line in facts.log if line.facility == 0 and line not in old]
    programs = {line.text for line in facts.log if line.facility != 0}  # by /dev/kmsg
    shown = kernel_lines(facts.console)
    if before:
        shown = shown[len(kernel_lines(before.console)) :]
    return [*own, *(text for text in shown if text not in programs)]


def kernel_lines(console: Iterable[str]) -> list[str]:
    """The lines of a console that are the kernel's, without their stamps.

    A kernel's banner shows whether the kernel stamps its lines. Without a banner, stamps are
    expected.
    """
    stamped, found = True, []
    for line in console:
        stamp = STAMP.match(line)
        if stamp:
            found.append(line[stamp.end() :])
        elif not found and (BANNER.match(line) or BSD_BANNER.match(line)):
            stamped = False
            found.append(line)
        elif not stamped:
            found.append(line)
    return found


def _unmet(facts: Facts) -> str:
    """The first expectation that was not met; none of the others has had its turn."""
    first, *others = facts.unmet
    words = facts.too_early or f"never seen: {first!r}"
    hint = advice(facts)
    words += f" ({hint})" if hint else ""
    return f"{words}; not looked for: {', '.join(map(repr, others))}" if others else words


def _tests(cases: Sequence[Case]) -> list[Finding]:
    failed = [case for case in cases if case.status is Status.FAIL]
    if not failed:
        return []
    why = f" ({failed[0].reason})" if failed[0].reason else ""
    return [
        Finding(Verdict.TESTS, f"{len(failed)} of {len(cases)} tests failed: {failed[0].name}{why}")
    ]
