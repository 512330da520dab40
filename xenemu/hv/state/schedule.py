"""How a domain's vcpus share the one CPU. Plain data.

In Xen: common/sched/ has several schedulers, and vcpus that run at the same time.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random
from typing import Final

SHARED_SLICE_NS: Final = 100_000
MAX_SHARED_SLICE_NS: Final = 10_000_000


@dataclass
class Schedule:
    """Whose turn it is, and for how long: the same in each run, or drawn from a `seed`.

    * `shared_ns` is the slice of a vcpu while others could run, too.
    * `draws` is the generator of the seed. Only its `random` is used, which gives the same numbers
      in each version of Python.
    """

    shared_ns: int = SHARED_SLICE_NS
    seed: int | None = None
    draws: Random = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.draws = Random(self.seed or 0)

    @property
    def options(self) -> str:
        """The options of `xenemu run` that ask for it; empty for those that nobody need give."""
        seed = [] if self.seed is None else [f"--schedule-seed {self.seed}"]
        shared = [] if self.shared_ns == SHARED_SLICE_NS else [f"--slice {self.shared_ns}ns"]
        return " ".join(seed + shared)

    def below(self, limit: int) -> int:
        """Draw a number from 0 to `limit` - 1."""
        return int(self.draws.random() * limit)
