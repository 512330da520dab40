"""What becomes of a boot whose guest suspends itself: its `on_suspend`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from xenemu.machine import life
from xenemu.machine.core import Core
from xenemu.machine.migration.records import StreamError

AWAY_NS: Final = 1_000_000_000


def resumes(on_suspend: str, failed: Callable[[str], None]) -> Callable[[Core], bool]:
    """A function that lets a suspended guest go on, and says that it does: see `Life.suspended`.

    `failed` hears why a guest could not be resumed; it goes on as after ``cancel``.
    """

    def resume(machine: Core) -> bool:
        try:
            if on_suspend == "resume":
                life.renew(machine, AWAY_NS)
            else:
                life.cancel(machine)
        except StreamError as error:
            failed(f"the guest suspended itself, and cannot be resumed: {error}")
            life.cancel(machine)
        return True

    return resume
