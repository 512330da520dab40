"""The log of hypercalls. Plain data."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True, eq=False)
class CallRecord:
    """One hypercall: for the log that a crash prints, and for what came of it.

    The record is in the log from the beginning of the call. `result` is None until the call ends.
    `rip` is after the instruction that made the call, mostly in a stub. `caller` is where that stub
    was called from, if an observer looked. With `standing`, the refusal is Xen's declared answer,
    whatever the arguments.
    """

    at_ns: int
    vcpu_id: int
    rip: int
    name: str
    args: tuple[int, ...] = ()
    result: int | None = None
    reason: str = ""
    standing: bool = False
    caller: int = 0
