"""A host, a CPU, the hypercalls and a personality, put together."""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING

from hypercalls import TABLE
from xenemu import entries
from xenemu.cpu.coverage import BlockLog
from xenemu.cpu.debug_port import DebugPort
from xenemu.cpu.engine import Engine
from xenemu.dom0.console import Console
from xenemu.dom0.control import Control
from xenemu.entries import Entry
from xenemu.hv import backend, scheduler, timers
from xenemu.hv.building import DomainConfig
from xenemu.hv.current import Current
from xenemu.hv.memory import Memory
from xenemu.hv.personality import Personality
from xenemu.hv.prices import PRICES_NS
from xenemu.hv.scheduler import SLICE_NS
from xenemu.hv.state.domain import Backend, Domain
from xenemu.hv.state.vcpu import RunState, Vcpu
from xenemu.image import Image
from xenemu.machine import host
from xenemu.machine.host import Host
from xenemu.machine.past import Past
from xenemu.pvh.exits import PORTS
from xenemu.sampling import Samples

if TYPE_CHECKING:
    from xenemu.cpu.lane_notes import LaneNotes, Note


def check_engine() -> None:
    """Make an engine for nobody; EngineError, OSError or ImportError: this host cannot."""
    Engine(Memory(1))


class Core:
    """A host with a domain, on an engine."""

    _blocks: BlockLog | None = None
    current: Current
    past: Past
    printed: int  # bytes, on the console
    disturbed: int  # how often something came that no repetition of the run would bring

    slice_ns = SLICE_NS
    sampler: Callable[[int], None] | None = None  # runs a slice in the place of `Engine.run`

    def __init__(
        self,
        image: Image,
        config: DomainConfig,
        mode: str = entries.AUTO,
        backends: Iterable[Backend] = (),
    ) -> None:
        """Build the domain by an entry of `mode`; without one, by the entry that auto takes.

        `backends` are what dom0 has for the domain in addition to a console, the store and what
        does a toolstack's verbs.
        """
        self.origin = image, config, mode
        self._build(Console(), Control(), backends)

    def _build(self, console: Console, control: Control, backends: Iterable[Backend]) -> None:
        image, config, mode = self.origin
        entry = entries.choose(image, mode)
        built = host.build(entry, image, config, [console, control, *backends])
        self.put_together(entry, console, control, built)
        self.reset_cpu(config.rng_seed)
        entry.start(self.current)
        self.personality.enter(self.current)

    def start_again(self) -> None:
        """Have a new domain of the same configuration in the place of the present one, as xl does.

        It has the next id, and the backends of the present one. Time goes on. For a machine that
        was built, not revived from a snapshot; not while it runs, nor with a debugger.
        """
        image, config, mode = self.origin
        known, gone = self.current, self.domain
        so_far = self.engine.now_ns, self.engine.instructions
        kept = self.printed, self.disturbed, self.past
        for served in gone.backends.values():
            served.disconnect(gone)
        devices = list(gone.backends.values())[3:]  # after the store, the console and the verbs
        self.origin = image, replace(config, domid=gone.domid + 1), mode
        self._build(self.console, self.control, devices)
        self.printed, self.disturbed, self.past = kept
        self.engine.begin_at(*so_far)
        self.domain.watch = gone.watch
        vars(known).update(vars(self.current))
        self.current = self.control.current = known  # others know it
        self.attach_exits()
        gc.collect()  # the memory of the domain that is gone

    fast = True  # whether C may do ordinary work by itself (pv/lane.py, pvh/exits.py)

    def leave_to_model(self) -> None:
        """Let the model do all of the hypervisor's work: slower, to see whether that differs."""
        self.fast = self.engine.fast = False
        self.engine.open_lane(False)

    def put_together(self, entry: Entry, console: Console, control: Control, host: Host) -> None:
        """An engine for a host, whose domain's first vcpu is to have the CPU."""
        self.entry, self.console, self.control, self.host = entry, console, control, host
        self.personality: Personality = entry.platform.personality
        (domain,) = host.domains.values()
        self.engine = Engine(host.memory, domain.p2m, PORTS)
        self.engine.fast = self.fast
        self.current = Current(
            domain,
            domain.vcpus[0],
            self.engine,
            self.personality.translate,
            TABLE,
        )
        control.current, control.personality = self.current, self.personality
        self.engine.set_prices(PRICES_NS)
        self.samples = Samples()
        self.timers = timers.join(scheduler.TIMERS, self.personality.timers, backend.timers(domain))
        self.next_audit_ns = math.inf
        self.past, self.printed, self.disturbed = Past(), 0, 0
        self.slice_ends_ns: int | None = None  # of the slice that is under way
        self.let_run: frozenset[int] | None = None  # the vcpus that a debugger does not hold
        self.attach_exits()

    def reset_cpu(self, rng_seed: int) -> None:
        """Make the CPU as each vcpu of the domain is to find it."""
        self.engine.seed_random(rng_seed)
        if self.entry.platform.paged:
            root = self.personality.address_space(self.current)
            self.engine.turn_paging_on(root << 12, long_mode=self.domain.width == 8)
        self.engine.set_task_switched(False)
        self.untouched = self.engine.store()

    def go_on(self, domain: Domain) -> None:
        """Let a domain that was restored have the CPU: its vcpu 0 goes on from what is saved."""
        current, vcpu = self.current, domain.vcpus[0]
        current.domain, current.vcpu = domain, vcpu
        self.attach_exits()
        self.engine.load(vcpu.saved or self.untouched)
        self.engine.flush_tlb()
        if self._blocks:
            self._blocks.turn_to(vcpu.vcpu_id)
        if vcpu.saved is None:
            self.personality.start(current)
        vcpu.saved = None
        self.personality.enter(current)

    @property
    def domain(self) -> Domain:
        """The domain whose vcpu is in the CPU."""
        return self.current.domain

    def attach_exits(self) -> None:
        """Let the personality answer the CPU's exits, for the domain that there is now."""
        self.exits = self.personality.exits(self.current)
        self.engine.attach(self.exits)

    @cached_property
    def debug(self) -> DebugPort:
        """The CPU's verbs for a debugger."""
        return DebugPort(self.engine)

    def record_blocks(self, by_vcpu: bool = False) -> BlockLog:
        """Note which code the guest runs from now on, and if asked, which vcpu runs it."""
        self._blocks = BlockLog(self.engine, self.current.vcpu.vcpu_id if by_vcpu else None)
        return self._blocks

    def note_lane(self, take: Callable[[Iterable[Note]], None]) -> LaneNotes:
        """Give `take` what the lane does from now on; see `cpu.lane_notes`."""
        from xenemu.cpu.lane_notes import LaneNotes  # noqa: PLC0415 (few runs want it)

        return LaneNotes(self.engine, take)

    def show_ports(self) -> None:
        """Let observers hear of all ports that the guest tries."""
        self.engine.show_ports()

    def next_wake_ns(self) -> int | None:
        """When the next timer is due; if a debugger holds vcpus, of those that it lets run.

        The deadlines of vcpus that are held do not make time pass.
        """
        timers, let_run = self.domain.timers, self.let_run
        if let_run is None:
            return timers.next_ns()
        deadlines = timers.deadlines_ns.items()
        return min((ns for (_kind, number), ns in deadlines if number in let_run), default=None)

    def switch_to(self, vcpu: Vcpu) -> None:
        """Put a vcpu into the CPU, as running; the vcpu that was there keeps its registers."""
        current, engine = self.current, self.engine
        current.domain.reschedule = False
        if vcpu is not current.vcpu:
            scheduler.leave(current)
            self.personality.leave(current)
            leaving, current.vcpu = current.vcpu, vcpu
            leaving.saved = engine.save()
            engine.switch(leaving.vcpu_id, vcpu.vcpu_id, vcpu.saved or self.untouched)
            if self._blocks:
                self._blocks.turn_to(vcpu.vcpu_id)
            if vcpu.saved is None:
                engine.load(self.untouched)
                self.personality.start(current)
            vcpu.saved = None
            self.personality.enter(current)
        if vcpu.runstate is not RunState.RUNNING:
            scheduler.enter(current)
