"""How far a run has come, for who repeats it. Plain data."""

from __future__ import annotations

from xenemu.records import dataclass


@dataclass
class Past:
    """How far a run has come.

    * `turns`: how often a vcpu got its turn, or idle time passed.
    * `heard`: how much of a recording has been repeated.
    * `trail`: a checksum of what the guest has done, if somebody keeps one.
    """

    turns: int = 0
    heard: int = 0
    trail: int = 0
