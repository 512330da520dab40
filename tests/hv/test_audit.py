"""hv/audit: a sentence for each thing that the hypervisor has wrong, and none otherwise."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from fakes import make_current, make_pvh_current
from xenemu.abi.event_channel import EVTCHNSTAT_closed
from xenemu.abi.grant_table import GNTMAP_device_map, GTF_permit_access, grant_entry_v1
from xenemu.abi.xen import Virq
from xenemu.dom0.console import Console
from xenemu.hv import event_channel, grant_table
from xenemu.hv.audit import audit
from xenemu.hv.backend import attach
from xenemu.hv.building import give_rings
from xenemu.hv.frame_table import DOMID_NONE, PGT_writable_page
from xenemu.hv.grant_table import pin_increment
from xenemu.hv.maptrack import Mapping
from xenemu.hv.state.domain import DOM0, Domain
from xenemu.hv.state.grants import Active
from xenemu.hv.waking import POLL
from xenemu.x86.paging import Maddr, Mfn

GRANTED = Mfn(30)


def busy_domain() -> Domain:
    """A domain with one of each: a connection, a VIRQ, FIFO pages, a mapped grant, a backend."""
    domain = make_current().domain
    domain.frames.add_to_heap([7, 8])
    grants = domain.grants
    port = event_channel.alloc_unbound(domain, domain.domid)
    event_channel.bind_interdomain(domain, domain.domid, port)
    event_channel.bind_virq(domain, Virq.TIMER, 0)
    event_channel.init_control(domain, 0, 20, 0)
    event_channel.expand_array(domain, 21)
    grant_table.grow(domain, 1)
    entry = grant_entry_v1(GTF_permit_access, domain.domid, GRANTED)
    domain.memory.write(Maddr((grants.frames[0] << 12) + 8 * 9), entry.pack(8))
    incr = pin_increment(GNTMAP_device_map)
    mfn = grant_table.acquire(domain, domain.domid, 9, incr, mapping=True).mfn
    domain.frames.get_page_and_type(mfn, domain.domid, PGT_writable_page)
    handle = grants.maptrack.get(0)
    assert handle is not None
    grants.maptrack.mappings[handle] = Mapping(domain.domid, 9, GNTMAP_device_map)
    domain.console.mfn = Mfn(31)
    give_rings(domain)
    attach(domain, [Console()])
    return domain


def test_a_busy_domain_is_in_order() -> None:
    assert audit(busy_domain()) == []


def lose_a_reference(domain: Domain) -> None:
    domain.frames.count[GRANTED] -= 1


def free_a_frame_twice(domain: Domain) -> None:
    domain.frames.heap.put(8)


def free_a_frame_in_use(domain: Domain) -> None:
    domain.frames.heap.put(GRANTED)


def miscount_the_pages(domain: Domain) -> None:
    domain.pages.tot_pages += 1


def cut_a_connection(domain: Domain) -> None:
    domain.events.channels[1].state = EVTCHNSTAT_closed


def forget_a_virq(domain: Domain) -> None:
    domain.events.virqs.clear()


def keep_a_virq(domain: Domain) -> None:
    domain.events.channels[3].state = EVTCHNSTAT_closed


def notify_nobody(domain: Domain) -> None:
    domain.events.channels[5].notify_vcpu = 1


def use_port_0(domain: Domain) -> None:
    domain.events.channels[0].state = EVTCHNSTAT_closed + 1


def connect_a_port_to_itself(domain: Domain) -> None:
    domain.events.channels[1].remote_port = 1


def poll_awake(domain: Domain) -> None:
    domain.vcpus[0].poll_ports = frozenset({1})


def end_nobodys_poll(domain: Domain) -> None:
    domain.timers.set((POLL, 0), 1)


def miscount_a_grant(domain: Domain) -> None:
    domain.grants.active[9].pin += 1


def pin_for_another(domain: Domain) -> None:
    domain.grants.active[9].domid = DOM0


def map_for_nobody(domain: Domain) -> None:
    domain.backends.clear()


def lose_a_handle(domain: Domain) -> None:
    domain.grants.maptrack.free[0].popleft()


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lose_a_reference, "is counted"),
        (free_a_frame_twice, "the heap is counted 2 frames, and has 1"),
        (free_a_frame_in_use, "is in the heap"),
        (miscount_the_pages, "d1 is counted 65 pages, and has 64"),
        (cut_a_connection, "port 2 is connected to 1"),
        (forget_a_virq, "VIRQ 0 does not know its port 3"),
        (keep_a_virq, "VIRQ 0 of vcpu 0 has port 3"),
        (notify_nobody, "port 5 notifies vcpu 1"),
        (use_port_0, "port 0 is in use"),
        (connect_a_port_to_itself, "port 1 is connected to itself"),
        (poll_awake, "vcpu 0 polls, and is not blocked"),
        (end_nobodys_poll, "a timer ends the poll of vcpu 0"),
        (miscount_a_grant, "grant 9 has the pins 0x00010001, its mappings 0x00010000"),
        (pin_for_another, "grant 9 has the pins 0x00010000, its mappings 0x00000000, for d0"),
        (map_for_nobody, "dom0 has the mappings [0], its backends []"),
        (lose_a_handle, "a handle of a mapping"),
    ],
)
def test_what_is_wrong_is_said(damage: Callable[[Domain], None], words: str) -> None:
    domain = busy_domain()
    damage(domain)
    assert any(words in fault for fault in audit(domain)), audit(domain)


def test_a_physmap_shows_only_the_domains_frames_and_each_once() -> None:
    domain = make_pvh_current().domain
    assert audit(domain) == []
    assert domain.p2m is not None
    domain.p2m.set(0x1000, GRANTED)
    assert "in the physmap 2 times" in audit(domain)[0]
    domain.p2m.granted.add(0x1000)
    assert "guest frame 0x1000 is said to map a grant" in audit(domain)[0]
    domain.grants.active[9] = Active(GRANTED, domain.domid)
    assert [fault for fault in audit(domain) if "physmap" in fault or "said" in fault] == []
    domain.p2m.remove(0x1000)
    domain.p2m.set(0x1000, Mfn(5))
    domain.frames.owner[5] = DOMID_NONE
    assert "is in the domain's physmap" in audit(domain)[0]
