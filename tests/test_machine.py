"""machine: a run that is audited ends where the hypervisor's books are wrong."""

from __future__ import annotations

import pytest

import elfwriter
from unattended import Unattended
from xenemu.hv.cpu import Reg
from xenemu.image.loader import load
from xenemu.machine import DomainConfig, Machine
from xenemu.outcome import End, Outcome

# mov $29, %eax; mov $SCHEDOP_shutdown, %edi; push $0; mov %rsp, %rsi; syscall
POWER_OFF = bytes.fromhex("b81d000000 bf02000000 6a00 4889e6 0f05")
SPIN = b"\xeb\xfe"


@pytest.fixture
def machine(tmp_path):
    def machine(code, **config):
        notes = elfwriter.Phdr(b"".join(elfwriter.PV_NOTES), elfwriter.PT_NOTE, paddr=0, vaddr=0)
        path = tmp_path / "kernel"
        path.write_bytes(elfwriter.elf([elfwriter.Phdr(code, memsz=0x2000), notes]))
        return Machine(load(path), DomainConfig(64 << 20, **config), "pv")

    return machine


def test_an_audit_on_the_way_ends_the_run(machine):
    spinning = machine(SPIN)
    spinning.domain.frames.count[-1] += 1
    outcome = spinning.run(Unattended(), audit_ns=20_000_000)
    assert (outcome.end, outcome.exit_code) == (End.INCONSISTENT, 70)
    assert outcome.reason.startswith("bug in xenemu: the audit at 0.020 s: mfn ")


def test_an_audit_in_the_end_overrides_how_it_ended(machine):
    ending = machine(POWER_OFF)
    assert ending.run(Unattended(), audit_ns=10**12).end is End.POWEROFF
    ending = machine(POWER_OFF)
    ending.domain.pages.tot_pages += 1
    ending.domain.frames.count[-1] += 1
    outcome = ending.run(Unattended(), audit_ns=10**12)
    assert outcome.end is End.INCONSISTENT
    assert outcome.reason.endswith("; and 2 more faults")


def test_nobody_who_does_not_ask_pays_for_audits(machine):
    ending = machine(POWER_OFF)
    ending.domain.frames.count[-1] += 1
    assert ending.run(Unattended()).end is End.POWEROFF


class Deadline(Unattended):
    """Ends a run at a time of the guest's."""

    def __init__(self, machine: Machine, end_ns: int) -> None:
        super().__init__()
        self.machine, self.end_ns = machine, end_ns

    def check(self) -> Outcome | None:
        over = self.machine.engine.now_ns >= self.end_ns
        return Outcome(End.STOPPED, "it is time") if over else None


def test_a_run_that_asks_for_no_audit_gets_none_of_the_last_runs(machine):
    spinning = machine(SPIN)
    assert spinning.run(Deadline(spinning, 5_000_000), audit_ns=30_000_000).end is End.STOPPED
    spinning.domain.frames.count[-1] += 1
    assert spinning.run(Deadline(spinning, 60_000_000)).end is End.STOPPED


def test_where_a_guest_was_is_the_same_in_each_run(machine):
    looks = []
    for slice_ns in (10_000_000, 10_000_000, 100_000):
        looping = machine(bytes.fromhex("ffc0 ffc3 ffc1 ebf8"))  # 1: inc %eax; ... jmp 1b
        looping.slice_ns = slice_ns
        looping.run(Deadline(looping, 60_000_000))
        looks.append(looping.samples)
    assert looks[0] == looks[1]
    assert [len(look.of_vcpu[0]) for look in looks] == [6, 6, 6]


def test_the_seed_decides_what_the_guest_draws(machine):
    rdrand_rbx = b"\x48\x0f\xc7\xf3"
    drawn = []
    for config in ({}, {"rng_seed": 0}, {"rng_seed": (1 << 64) - 1}):
        ending = machine(rdrand_rbx + POWER_OFF, **config)
        assert ending.run(Unattended()).end is End.POWEROFF
        drawn.append(ending.engine.regs[Reg.RBX])
    assert drawn[0] == drawn[1] != drawn[2]


def test_a_host_has_its_domain_and_frames_after_a_restore(machine):
    ending = machine(POWER_OFF)
    snapshot = ending.snapshot()
    assert ending.run(Unattended()).end is End.POWEROFF
    host, store = ending.host, ending.host.store
    ending.restore(snapshot)
    assert ending.host is host
    assert host.domains == {1: ending.domain}
    assert host.domains[1] is ending.domain
    assert ending.domain.peers is host.domains
    assert host.frames is ending.domain.frames
    assert host.store is store
    assert ending.domain.backends["xenstore"].store is store


def test_the_timers_of_vcpus_that_a_debugger_holds_do_not_make_time_pass(machine):
    spinning = machine(SPIN)
    timers = spinning.domain.timers
    timers.set(("singleshot", 0), 1 << 50)
    timers.set(("singleshot", 1), 1 << 51)
    assert spinning.next_wake_ns() == timers.next_ns() <= 1 << 50
    spinning.let_run = frozenset((1,))
    assert spinning.next_wake_ns() == 1 << 51
    spinning.let_run = frozenset((2,))
    assert spinning.next_wake_ns() is None
