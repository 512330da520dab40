"""Deadlines in virtual time. Plain data; ties are broken by the order of setting.

What happens when one is due is in `xenemu.hv.timers`. In Xen: common/timer.c.
"""

from __future__ import annotations

from dataclasses import field

from xenemu.records import dataclass

SIGN = 1 << 63
NEVER_NS = 1 << 61  # 73 years: so far away that idle time is not skipped to it

Key = tuple[str, int]  # what the deadline is for, and which of those: mostly a vcpu


@dataclass
class Timers:
    """At most one deadline per key. `moved` tells the run loop to look at them again.

    `asked_ns` is when the guest last sent an event, for the backends, which see no clock.
    """

    deadlines_ns: dict[Key, int] = field(default_factory=dict)
    moved: bool = False
    asked_ns: int = 0

    def set(self, key: Key, deadline_ns: int) -> None:
        """Arm, or move, the timer of `key`.

        As in Xen, a deadline is signed, so a guest's deadline of 2^63 or more is long past. A
        deadline after NEVER_NS only disarms the timer.
        """
        self.deadlines_ns.pop(key, None)
        if deadline_ns >= SIGN:
            deadline_ns -= 2 * SIGN
        if deadline_ns < NEVER_NS:
            self.deadlines_ns[key] = deadline_ns
            self.moved = True

    def set_unless(self, key: Key, after_ns: int) -> None:
        """Arm the timer of `key` for so long after the guest's event, unless it is armed."""
        if key not in self.deadlines_ns:
            self.set(key, self.asked_ns + after_ns)

    def cancel(self, key: Key) -> None:
        """Disarm the timer of `key`, if it is armed."""
        self.deadlines_ns.pop(key, None)

    def next_ns(self) -> int | None:
        """The earliest deadline, or None."""
        return min(self.deadlines_ns.values(), default=None)

    def pop_due(self, now_ns: int) -> list[Key]:
        """Disarm and return every timer that is due, earliest first."""
        due = [key for key, deadline_ns in self.deadlines_ns.items() if deadline_ns <= now_ns]
        if due[1:]:
            due.sort(key=self.deadlines_ns.__getitem__)
        for key in due:
            del self.deadlines_ns[key]
        return due
