"""pvh/renewal: after a soft reset, a domain is as if nobody had used it, except for its memory."""

from __future__ import annotations

import pytest

from fakes import FakeNativeCpu
from hypercalls.physmap import add
from hypercalls.vcpu_op import register_vcpu_info
from xenemu.abi.event_channel import EVTCHNSTAT_closed, EVTCHNSTAT_interdomain
from xenemu.abi.hvm import params
from xenemu.abi.memory import XENMAPSPACE_shared_info
from xenemu.abi.sched import SHUTDOWN_soft_reset
from xenemu.abi.vcpu import vcpu_register_vcpu_info
from xenemu.abi.xen import Virq
from xenemu.dom0 import renewal, toolstack
from xenemu.dom0.console import Console
from xenemu.dom0.xenstore import XenstoreRing
from xenemu.dom0.xenstore_tree import Store
from xenemu.entries import ENTRIES
from xenemu.hv import event_channel, scheduler
from xenemu.hv.audit import audit
from xenemu.hv.building import DomainConfig
from xenemu.hv.current import Current
from xenemu.pvh.paging import translate
from xenemu.pvh.renewal import soft_reset

SHARED_INFO_GFN, VCPU_INFO_GFN, KEPT_GFN = 0x10, 0x11, 0x12


@pytest.fixture
def machine(kernel) -> tuple[Current, Store]:
    """A domain that has used what Xen and dom0 offer, and its store."""
    config, store = DomainConfig(8 << 20, vcpus=2), Store()
    domain = ENTRIES["pvh"].build(kernel(paddr=0x10_0000), config)
    toolstack.create(domain, config, store, [XenstoreRing(store=store), Console()])
    current = Current(domain, domain.vcpus[0], FakeNativeCpu(), translate)
    add(current, XENMAPSPACE_shared_info, 0, SHARED_INFO_GFN)
    register_vcpu_info(current, domain.vcpus[0], vcpu_register_vcpu_info(VCPU_INFO_GFN, 64, 0))
    event_channel.bind_virq(domain, Virq.TIMER, 0)
    domain.memory.write(KEPT_GFN << 12, b"kept")
    scheduler.shutdown(domain, SHUTDOWN_soft_reset)
    assert audit(domain) == []
    return current, store


def reset(current: Current, store: Store) -> None:
    known = renewal.release(current.domain, store)
    soft_reset(current)
    renewal.connect(current.domain, known, store)


def test_only_the_two_rings_have_ports(machine):
    reset(*machine)
    domain = machine[0].domain
    states = [channel.state for channel in domain.events.channels]
    assert states.count(EVTCHNSTAT_interdomain) == 2
    assert states.count(EVTCHNSTAT_closed) == len(states) - 2
    assert domain.arch.params[params.HVM_PARAM_STORE_EVTCHN] == domain.xenstore.port
    assert domain.arch.params[params.HVM_PARAM_CONSOLE_EVTCHN] == domain.console.port
    assert domain.events.virqs == {}
    assert audit(domain) == []


def test_shared_info_and_vcpu_info_are_xens_again(machine):
    domain = machine[0].domain
    shared_info = domain.shared_info
    reset(*machine)
    assert domain.p2m.find(shared_info) is None
    assert domain.gfn_to_mfn(SHARED_INFO_GFN) != shared_info
    assert domain.vcpus[0].info == domain.shared_info_maddr
    assert not domain.vcpus[0].info_registered
    assert machine[0].cpu.upcall[0] == domain.vcpus[0].info
    add(machine[0], XENMAPSPACE_shared_info, 0, SHARED_INFO_GFN)  # what the other kernel does
    register_vcpu_info(machine[0], domain.vcpus[0], vcpu_register_vcpu_info(VCPU_INFO_GFN, 0, 0))
    assert audit(domain) == []


def test_memory_stays_and_the_domain_runs(machine):
    reset(*machine)
    domain = machine[0].domain
    assert domain.memory.read(KEPT_GFN << 12, 4) == b"kept"
    assert domain.shutdown_code is None and domain.chosen_shutdown_code is None
