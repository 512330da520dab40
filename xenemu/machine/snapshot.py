"""A machine as it was at one instant, to go back to."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import replace

from xenemu import entries
from xenemu.cpu.context import Context, by_name, pack
from xenemu.cpu.engine import EngineState
from xenemu.dom0 import toolstack
from xenemu.dom0.console import Console
from xenemu.dom0.control import Control
from xenemu.dom0.xenstore import XenstoreRing
from xenemu.dom0.xenstore_tree import Store
from xenemu.encoding import DecodeError
from xenemu.hv import event_channel
from xenemu.hv.calls import CallLog
from xenemu.hv.shared_info import VCPU_INFO_SIZE
from xenemu.hv.snapshot import DomainSnapshot
from xenemu.hv.state.domain import Backend, Domain
from xenemu.machine.core import Core
from xenemu.machine.host import Host
from xenemu.machine.past import Past
from xenemu.records import dataclass
from xenemu.sampling import Samples
from xenemu.x86.paging import PAGE_SHIFT


@dataclass(frozen=True)
class Snapshot:
    """A machine as it was at one instant: everything that decides how its run goes on.

    If a machine is restored and runs on, it does the same as when it was not stopped, to the byte.
    What belongs to the caller is not in the snapshot: the terminal, a debugger, what observers have
    noted.
    """

    mode: str  # the mode and the name
    entry: str  # of the entry by which the domain was booted
    domain: DomainSnapshot
    vcpu_id: int  # who was in the CPU,
    engine: EngineState  # and what was there
    untouched: Context  # how a vcpu that has not begun finds the CPU
    samples: Samples
    next_audit_ns: float
    past: Past
    slice_ends_ns: int | None  # if a debugger held the machine within a slice

    @classmethod
    def of(cls, machine: Core, bare: bool = False) -> Snapshot:
        """Keep what a machine is now; if `bare`, without its memory's content."""
        for vcpu in machine.domain.vcpus:  # the shim's struct is for this version alone
            if vcpu.saved is not None:
                vcpu.saved = by_name(vcpu.saved)
        return cls(
            machine.entry.mode,
            machine.entry.name,
            DomainSnapshot.of(machine.domain, bare),
            machine.current.vcpu.vcpu_id,
            machine.engine.keep(),
            machine.untouched,
            copy.deepcopy(machine.samples),
            machine.next_audit_ns,
            replace(machine.past),
            machine.engine.deadline_ns if machine.slice_ends_ns is not None else None,
        )

    def put_back(self, machine: Core) -> None:
        """Make the machine what it was at the snapshot."""
        self._go_on(machine, self.domain.restore(machine.domain))

    def revive(self, machine: Core, backends: Iterable[Backend]) -> None:
        """Make a machine, of which there is nothing yet, what another was at the snapshot.

        `backends` are those that dom0 had in addition to a console and the store. DecodeError: the
        snapshot is damaged, or of another version.
        """
        entry = entries.of_mode(self.mode).get(self.entry)
        if entry is None:
            raise DecodeError(f"there is no entry {self.entry} of {self.mode}")
        console, control = Console(), Control()
        assert self.domain.content is not None
        store, memory = Store(), self.domain.content.make(self.domain.nr_frames)
        every: list[Backend] = [XenstoreRing(store=store), console, control, *backends]
        parts = {backend.name: backend for backend in every}
        try:
            domain = self.domain.revive(memory, parts)
            toolstack.rejoin(store, every)
            self._check(domain)
        except (KeyError, AssertionError) as error:
            raise DecodeError(f"its backends are others: {error}") from None
        host = Host(memory, domain.frames, store)
        host.admit(domain)
        machine.put_together(entry, console, control, host)
        machine.untouched = self.untouched
        self._go_on(machine, domain)

    def _check(self, domain: Domain) -> None:
        """DecodeError if the shim would follow a stranger's snapshot out of the guest's memory."""
        size = domain.memory.nr_frames << PAGE_SHIFT
        kept = [vcpu.saved for vcpu in domain.vcpus if vcpu.saved is not None]
        for registers in (*kept, self.engine.registers, self.untouched):
            if not isinstance(registers, Context):
                raise DecodeError("a vcpu has no registers by name")
            pack(registers)  # or a field has another size than the CPU's
            if not 0 <= (registers.interrupts.upcall or 0) < size:
                raise DecodeError("a vcpu's upcall byte lies outside memory")
        for vcpu in domain.vcpus:
            if not 0 <= vcpu.info <= size - VCPU_INFO_SIZE:
                raise DecodeError(f"vcpu {vcpu.vcpu_id}'s vcpu_info lies outside memory")
        if len(domain.calls.by_cpu) != CallLog.SIZE:
            raise DecodeError("the log of calls has another size")
        if not event_channel.has_sound_bells(domain):
            raise DecodeError("there are other bells than a backend's")
        list(domain.calls)  # a ValueError if there is a call in it that the shim does not do

    def _go_on(self, machine: Core, domain: Domain) -> None:
        machine.host.frames = domain.frames
        machine.current.domain = domain
        machine.current.vcpu = domain.vcpus[self.vcpu_id]
        machine.engine.put_back(self.engine)
        machine.attach_exits()
        machine.samples = copy.deepcopy(self.samples)
        machine.next_audit_ns = self.next_audit_ns
        machine.slice_ends_ns = self.slice_ends_ns
        machine.past = replace(self.past)
