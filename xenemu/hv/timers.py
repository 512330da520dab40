"""What happens when a deadline is over: each kind of timer has its owner.

In Xen: common/timer.c.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from xenemu.hv.current import Current

# What to do when a timer of a kind is due; it is given the number, the second half of the key.
Owners = Mapping[str, Callable[["Current", int], None]]


def join(*tables: Owners) -> Owners:
    """One table of several; ValueError if two own the same kind of timer."""
    owners = {kind: due for table in tables for kind, due in table.items()}
    if len(owners) != sum(map(len, tables)):
        raise ValueError("a kind of timer has two owners")
    return owners


def fire_due(current: Current, owners: Owners) -> None:
    """For each timer that is due, do what its owner says."""
    for kind, number in current.domain.timers.pop_due(current.cpu.now_ns):
        for observer in current.watch or ():
            observer.timer_fired(current, kind, number)
        owners[kind](current, number)
