"""A machine as it was at one instant, to go back to."""

from __future__ import annotations

import copy
from dataclasses import dataclass

from xenemu.cpu.engine import EngineState
from xenemu.hv.snapshot import DomainSnapshot
from xenemu.machine.core import Core
from xenemu.sampling import Samples


@dataclass(frozen=True)
class Snapshot:
    """A machine as it was at one instant: everything that decides how its run goes on.

    If a machine is restored and runs on, it does the same as when it was not stopped, to the byte.
    What belongs to the caller is not in the snapshot: the terminal, a debugger, what observers have
    noted. It is of use only to the machine that took it.
    """

    domain: DomainSnapshot
    vcpu_id: int  # who was in the CPU,
    engine: EngineState  # and what was there
    samples: Samples
    next_audit_ns: float

    @classmethod
    def of(cls, machine: Core) -> Snapshot:
        """Keep what a machine is now."""
        return cls(
            DomainSnapshot.of(machine.domain),
            machine.current.vcpu.vcpu_id,
            machine.engine.keep(),
            copy.deepcopy(machine.samples),
            machine.next_audit_ns,
        )

    def put_back(self, machine: Core) -> None:
        """Make the machine what it was at the snapshot."""
        domain = self.domain.restore(machine.domain)
        machine.host.frames = domain.frames
        machine.current.domain = domain
        machine.current.vcpu = domain.vcpus[self.vcpu_id]
        machine.engine.put_back(self.engine)
        machine.attach_exits()
        machine.samples = copy.deepcopy(self.samples)
        machine.next_audit_ns = self.next_audit_ns
