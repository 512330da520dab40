"""What becomes of a boot whose guest suspends itself: its `on_suspend`, or what somebody asks."""

from __future__ import annotations

from collections.abc import Callable

from xenemu.machine import life
from xenemu.machine.core import Core
from xenemu.machine.migration.records import StreamError
from xenemu.smoke.plan import SUSPENDED_FOR_NS


def resumes(on_suspend: str, failed: Callable[[str], None]) -> Callable[[Core], bool]:
    """A function that lets a suspended guest go on, and says that it does: see `Life.suspended`.

    With ``end``, it does what the toolstack was asked for (`Control.wish`). `failed` hears why a
    guest could not be resumed; it goes on as after ``cancel``.
    """

    def resume(machine: Core) -> bool:
        wish, machine.control.wish = machine.control.wish, ""
        try:
            if on_suspend == "resume" or wish == "new":
                life.renew(machine, SUSPENDED_FOR_NS)
            else:
                life.cancel(machine)
        except StreamError as error:
            failed(f"the guest suspended itself, and cannot be resumed: {error}")
            life.cancel(machine)
        return True

    return resume
