"""What becomes of a domain that ends: xl's on_poweroff, on_reboot, on_crash and others.

In Xen: xl.cfg(5), tools/xl/xl_vmcontrol.c (handle_domain_death)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import field
from enum import Enum
from typing import Final

from xenemu.machine.core import Core
from xenemu.outcome import End, Outcome
from xenemu.records import dataclass

MAX_RESTARTS: Final = 10


class Action(Enum):
    """What to do with a domain that has ended."""

    DESTROY = "destroy"  # the run ends
    RESTART = "restart"  # a new domain of the same configuration takes its place
    PRESERVE = "preserve"  # it stays as it is, for whoever wants to look at it
    SOFT_RESET = "soft-reset"  # it goes on, in a domain that is renewed around its memory


# The name of the rule for each end of a guest's. A triple fault is a reboot, as Xen's
# HVM_PARAM_TRIPLE_FAULT_REASON says.
RULES: Final[Mapping[End, str]] = {
    End.POWEROFF: "poweroff",
    End.REBOOT: "reboot",
    End.TRIPLE_FAULT: "reboot",
    End.GUEST_CRASH: "crash",
    End.REFUSED: "crash",
    End.WATCHDOG: "watchdog",
    End.SOFT_RESET: "soft_reset",
}
# What is done if nobody says otherwise, where that is not to destroy it; as libxl has it.
USUAL: Final = {"soft_reset": Action.SOFT_RESET}


@dataclass
class Life:
    """The rules, by their names; whom to tell; and how often there was a new domain.

    `suspended` does what is to be done with a machine whose domain has suspended itself, and says
    whether a domain goes on. With `keeps_suspended`, that is asked once a toolstack has said what
    it wishes (`Control.wish`). `last_look` is called when a domain has ended so, before another one
    takes its place, or before it is renewed.
    """

    rules: Mapping[str, Action] = field(default_factory=dict)
    max_restarts: int = MAX_RESTARTS
    tell: Callable[[str], None] = lambda sentence: None
    restarts: int = 0
    suspended: Callable[[Core], bool] = lambda machine: False
    keeps_suspended: bool = False
    last_look: Callable[[Outcome], None] = lambda outcome: None

    @property
    def restarts_any(self) -> bool:
        """Whether there may be a new domain."""
        return Action.RESTART in self.rules.values()

    def after(self, outcome: Outcome) -> Action:
        """What to do after an end, which is counted and told."""
        rule = RULES.get(outcome.end, "")
        action = self.rules.get(rule, USUAL.get(rule, Action.DESTROY))
        if action is Action.RESTART and self.restarts >= self.max_restarts:
            self.tell(f"{outcome.reason}: not restarted again, by --max-restarts")
            return Action.DESTROY
        if action is Action.RESTART:
            self.restarts += 1
            count = f"{self.restarts} of at most {self.max_restarts}"
            self.tell(f"{outcome.reason}: restarted, {count}")
        elif action is Action.PRESERVE:
            self.tell(f"{outcome.reason}: preserved")
        elif action is Action.SOFT_RESET:
            self.tell(f"{outcome.reason}: the domain is renewed, and its memory stays")
        return action
