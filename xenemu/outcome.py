"""Why a run ended, and the exit code that says so.

Exit codes avoid 1 and 2, which Python and argument parsers use themselves.
"""

from __future__ import annotations

from enum import Enum

from xenemu.records import dataclass


class End(Enum):
    """The ways a run can end; the value is a stable word for logs and JSON."""

    POWEROFF = "poweroff"
    REBOOT = "reboot"
    SUSPEND = "suspend"
    SOFT_RESET = "soft-reset"  # to start another kernel, which --on-soft-reset forbids
    EXPECTED = "expected"  # every expectation met
    UNMET = "unmet"  # ended without meeting an expectation
    GUEST_CRASH = "guest-crash"  # SHUTDOWN_crash: a panic, or a BUG() in the guest
    WATCHDOG = "watchdog"
    REFUSED = "refused"  # domain_crash(): the hypervisor ended it
    TRIPLE_FAULT = "triple-fault"
    TIMEOUT = "timeout"
    IDLE = "idle"  # blocked, and nothing is left that could wake it
    STOPPED = "stopped"  # the person at the terminal left
    DIVERGED = "diverged"  # a replay did not do what its recording says
    INCONSISTENT = "inconsistent"  # an audit found the hypervisor's books wrong: a bug of xenemu's


EXIT_IMAGE = 7  # unusable image, or a command line that cannot be honoured
EXIT_FIT = 8  # the kernel or a module does not fit in the guest's memory
EXIT_DIVERGED = 9  # a run does not do what another did
EXIT_BUG = 70  # xenemu's own fault (EX_SOFTWARE of sysexits.h)
EXIT_CODES = {
    End.POWEROFF: 0,
    End.REBOOT: 0,
    End.SUSPEND: 0,
    End.SOFT_RESET: 0,
    End.EXPECTED: 0,
    End.UNMET: 3,
    End.GUEST_CRASH: 4,
    End.WATCHDOG: 4,
    End.REFUSED: 5,
    End.TRIPLE_FAULT: 5,
    End.TIMEOUT: 6,
    End.IDLE: 6,
    End.STOPPED: 0,
    End.DIVERGED: EXIT_DIVERGED,
    End.INCONSISTENT: EXIT_BUG,
}


@dataclass(frozen=True)
class Outcome:
    """How a run ended: the `End`, one sentence for the person, and what to do if that is known.

    `held`: the run ended while a debugger held the guest, or while xenemu waited for a debugger. In
    that case, what the guest did before is not the reason.
    """

    end: End
    reason: str
    advice: str = ""
    held: bool = False

    @property
    def exit_code(self) -> int:
        """The process exit code that documents promise for this end."""
        return EXIT_CODES[self.end]
