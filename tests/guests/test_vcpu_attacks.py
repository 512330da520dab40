"""Two vcpus change page tables under each other's hypercalls, in several orders: audited.

A call that Xen preempts goes on later. What another vcpu has changed by then is refused, or right.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from guests.build import ENVIRONMENTS, build, guests
from unattended import Unattended
from xenemu.hv.calls import CallRecord
from xenemu.hv.current import Current, Observer
from xenemu.hv.dispatch import Hypercall
from xenemu.hv.observe import Watch
from xenemu.image import load
from xenemu.machine import DomainConfig, Machine
from xenemu.outcome import End

ATTACK = guests()["attack-vcpus"]
SEEDS = (None, 1)
SLICE_NS = 20_000
AUDIT_NS = 1_000_000


@dataclass
class Journal(Observer):
    """Which calls another vcpu's calls came in between, before they were done."""

    preempted: str = ""  # the call of vcpu 0 that is to be continued
    disturbed: set[str] = field(default_factory=set)

    def call_ends(self, current: Current, row: Hypercall | None, record: CallRecord) -> None:
        if record.vcpu_id:
            self.disturbed |= {self.preempted} - {""}
            return
        self.preempted = record.name if record.result is None else ""


@pytest.mark.parametrize("environment", ATTACK.environments)
def test_tables_change_under_a_preempted_call(environment, tmp_path):
    kernel = load(build(ATTACK, ENVIRONMENTS[environment], tmp_path / "attack"))
    disturbed = set()
    for seed in SEEDS:
        config = DomainConfig(64 << 20, vcpus=ATTACK.vcpus, slice_ns=SLICE_NS, schedule_seed=seed)
        machine, terminal, journal = Machine(kernel, config, "pv"), Unattended(), Journal()
        Watch.of(machine.current).add(journal)
        outcome = machine.run(terminal, audit_ns=AUDIT_NS)
        assert outcome.end is End.POWEROFF, f"seed {seed}: {outcome.reason}"
        assert terminal.shown.decode() == ATTACK.expected(environment), f"seed {seed}"
        disturbed |= journal.disturbed
    assert disturbed >= {"mmuext_op", "mmu_update", "multicall"}
