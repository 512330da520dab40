"""How a domain's vcpus share the one CPU. Plain data.

In Xen: common/sched/ has several schedulers, and vcpus that run at the same time.
"""

from __future__ import annotations

from dataclasses import field
from typing import Final

from xenemu.records import dataclass

SHARED_SLICE_NS: Final = 100_000
MAX_SHARED_SLICE_NS: Final = 10_000_000
WORD: Final = (1 << 64) - 1


@dataclass
class Schedule:
    """Whose turn it is, and for how long: the same in each run, or drawn from a `seed`.

    * `shared_ns` is the slice of a vcpu while others could run, too.
    * `state` is that of the generator, SplitMix64 (Steele, Lea and Flood, 2014).
    """

    shared_ns: int = SHARED_SLICE_NS
    seed: int | None = None
    state: int = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.state = self.seed or 0

    @property
    def options(self) -> str:
        """The options of `xenemu run` that ask for it; empty for those that nobody need give."""
        seed = [] if self.seed is None else [f"--schedule-seed {self.seed}"]
        shared = [] if self.shared_ns == SHARED_SLICE_NS else [f"--slice {self.shared_ns}ns"]
        return " ".join(seed + shared)

    def below(self, limit: int) -> int:
        """Draw a number from 0 to `limit` - 1."""
        mixed = self.state = (self.state + 0x9E3779B97F4A7C15) & WORD
        mixed = (mixed ^ mixed >> 30) * 0xBF58476D1CE4E5B9 & WORD
        mixed = (mixed ^ mixed >> 27) * 0x94D049BB133111EB & WORD
        return (mixed ^ mixed >> 31) * limit >> 64
