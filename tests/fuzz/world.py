"""A domain to do things to: what every backend has in common.

A `World` performs steps, each a dictionary of plain values, so that a list of them is a file::

    {"kind": "call", "number": 26, "args": [4096, 1, 0, 0x7ff0], "data": [[4096, "0d00..."]]}

`data` are bytes that the guest stores at addresses of its own before the step proper, where its
page tables let it. The kinds:

call    a hypercall; `rsp` may say where the stack is; `leave`: if it is preempted, another vcpu
        does the next steps, and the call goes on when its own vcpu has its turn again
store   a store of up to 8 bytes by one instruction; `user`: from user mode
insn    an instruction, `code`, with the registers `regs`; `user`: from user mode
trap    an exception, `vector` and `error`, that the CPU raises
msr     RDMSR or, with a `value`, WRMSR of `number` (PVH)
apic    a load from the local APIC's page or, with a `value`, a store (PVH)
time    nothing, for `ns`; what is due happens, and the console has `input`
switch  nothing; from now on `vcpu` does the steps, while it can run
work    nothing; from now on a hypercall may do but so many `units` (`Frames.work_left`), or 0: all
restart the world begins again, as after each life

A world can `restart`: everything is as it was when the guest had made itself at home. So a list of
steps does the same each time it is performed.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from typing import Any, Protocol

from hypercalls import TABLE
from xenemu.errors import DomainCrash
from xenemu.hv.current import Current
from xenemu.hv.dispatch import Continue, HypercallTable

Step = dict[str, Any]
MASK64 = (1 << 64) - 1
WORK, RESTART, SWITCH = "work", "restart", "switch"
STACK_BYTES = 1024  # of each vcpu, below the stack of the one before


class Ended(DomainCrash):
    """The domain ended by itself: it shut down, or waits for what never comes."""


class CountingTable(HypercallTable):
    """The real table; it counts results, and remembers the slowest call.

    With `work`, calls are preempted after so many units, so that small guests see it.
    """

    def __init__(self) -> None:
        super().__init__(list(TABLE.rows.values()))
        self.results: Counter[int] = Counter()
        self.names: Counter[str] = Counter()
        self.slowest: tuple[float, str] = (0.0, "none")
        self.work = 0

    def call(self, current: Current, number: int, registers: Sequence[int]) -> int:
        frames, started = current.domain.frames, time.thread_time()
        spared = max(0, frames.work_left - self.work) if self.work else 0
        frames.work_left -= spared
        try:
            result = super().call(current, number, registers)
            self.results[min(result, 0)] += 1
            return result
        except Continue:
            self.results[1] += 1
            raise
        finally:
            frames.work_left += spared
            row = self.rows.get(number)
            name = row.name if row else "unknown"
            self.names[name] += 1
            took = time.thread_time() - started
            if took > self.slowest[0]:
                args = ", ".join(f"{value:#x}" for value in registers)
                self.slowest = (took, f"{name}({args})")


class World(Protocol):
    """A guest in an environment, on a backend."""

    environment: str
    vcpus: int  # that run when the guest has made itself at home
    current: Current
    table: CountingTable
    arena: int  # where the guest has ordinary memory for its structures,
    arena_pages: int  # so many pages of it
    hang_s: float  # CPU time that no step may take
    audit_every: int  # steps
    growth_limit: int  # bytes that the process may grow by, once it has warmed up
    windows: dict[str, int]  # where it sees Xen's frames: "shared_info", "grants"
    code: int  # where its code is; `stack` its stack
    stack: int
    handler: int  # where its traps and events lead
    entry: int  # where a further vcpu of its begins

    def restart(self) -> None:
        """Make everything as it was at first."""

    def perform(self, step: Step) -> None:
        """Do a step. DomainCrash: it ended the domain; anything else that is raised is a bug."""

    def audit(self) -> list[str]:
        """What the hypervisor has wrong."""
