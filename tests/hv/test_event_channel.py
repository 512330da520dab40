"""xenemu/hv/event_channel.py and the two-level ABI, xenemu/hv/event_2l.py"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import pytest

from fakes import DOMID, connect_to_dom0, make_domain
from xenemu.abi.errno import EAGAIN, EBUSY, EEXIST, EINVAL, ENOENT, ENOSPC, ENOSYS, EOPNOTSUPP
from xenemu.abi.event_channel import (
    EVTCHNSTAT_closed,
    EVTCHNSTAT_interdomain,
    EVTCHNSTAT_ipi,
    EVTCHNSTAT_unbound,
)
from xenemu.abi.xen import Virq
from xenemu.errors import XenError
from xenemu.hv import event_channel
from xenemu.hv.p2m import P2m
from xenemu.hv.shared_info import event_pending, field, vcpu_field
from xenemu.hv.state.domain import Domain
from xenemu.hv.state.events import BELL, BELLS, Channel
from xenemu.hv.waking import ANY_PORT

DOM0 = 0
STRANGER = 7


@dataclass
class Backend:
    """Counts what dom0 is told."""

    told: int = 0

    def notify(self, domain: Domain, port: int) -> None:
        self.told += 1


@pytest.fixture
def domain() -> Domain:
    return make_domain(vcpus=2)


def refused(domain: Domain, errno: int, action: Callable[[], object]) -> None:
    """The action gives this errno, and changes neither the ports nor the shared page."""
    before = copy.deepcopy(domain.events)
    page = domain.memory.read(domain.shared_info_maddr, 4096)
    with pytest.raises(XenError) as error:
        action()
    assert error.value.errno == errno
    assert domain.events == before
    assert domain.memory.read(domain.shared_info_maddr, 4096) == page


def word(domain: Domain, name: str) -> int:
    return domain.memory.read_uint(field(domain, name), 8)


def selector(domain: Domain, vcpu_id: int = 0) -> int:
    maddr = vcpu_field(domain, domain.vcpus[vcpu_id], "evtchn_pending_sel")
    return domain.memory.read_uint(maddr, domain.width)


def loopback(domain: Domain) -> tuple[int, int]:
    """Two ports of one domain, connected, with nothing pending."""
    unbound = event_channel.alloc_unbound(domain, DOMID)
    bound = event_channel.bind_interdomain(domain, DOMID, unbound)
    domain.memory.write(domain.shared_info_maddr, bytes(4096))
    return unbound, bound


def reset(domain: Domain, resuming: bool = False, interrupted: bool = False) -> bool:
    return event_channel.reset(domain, resuming, lambda: interrupted)


# Ports.


def test_the_lowest_free_port_is_taken_and_never_port_0(domain: Domain) -> None:
    assert [event_channel.bind_ipi(domain, 0) for _ in range(3)] == [1, 2, 3]
    event_channel.close(domain, 2)
    assert event_channel.alloc_unbound(domain, STRANGER) == 2


def test_the_last_port_is_the_domains_limit(domain: Domain) -> None:
    ports = [event_channel.bind_ipi(domain, 0) for _ in range(domain.events.max_port)]
    assert ports[-1] == 1023
    refused(domain, ENOSPC, lambda: event_channel.bind_ipi(domain, 0))


@pytest.mark.parametrize(("width", "channels"), [(8, 4096), (4, 1024)])
def test_the_two_level_abi_has_a_limit_of_its_own(width: int, channels: int) -> None:
    domain = make_domain(width)
    domain.events.max_port = 1 << 20
    domain.events.channels = [Channel(EVTCHNSTAT_ipi) for _ in range(channels)]
    refused(domain, ENOSPC, lambda: event_channel.alloc_unbound(domain, STRANGER))


def test_ports_come_into_being_in_groups(domain: Domain) -> None:
    assert event_channel.status(domain, 63).state == EVTCHNSTAT_closed
    refused(domain, EINVAL, lambda: event_channel.status(domain, 64))


# Virtual interrupts.


def test_a_virq_is_raised_on_the_vcpu_that_bound_it(domain: Domain) -> None:
    port = event_channel.bind_virq(domain, Virq.TIMER, 1)
    event_channel.send_virq(domain, Virq.TIMER, 1)
    assert word(domain, "evtchn_pending") == 1 << port
    assert event_pending(domain, domain.vcpus[1]) and not event_pending(domain, domain.vcpus[0])


def test_an_unbound_virq_is_lost(domain: Domain) -> None:
    event_channel.send_virq(domain, Virq.TIMER, 0)
    assert not event_pending(domain, domain.vcpus[0])


@pytest.mark.parametrize(
    ("virq", "vcpu_id", "errno"),
    [
        (24, 0, EINVAL),
        (Virq.CONSOLE, 1, EINVAL),
        (Virq.TIMER, 2, ENOENT),
        (Virq.DEBUG, 0, EEXIST),
    ],
)
def test_a_virq_that_cannot_be_bound(domain: Domain, virq: int, vcpu_id: int, errno: int) -> None:
    event_channel.bind_virq(domain, Virq.DEBUG, 0)
    refused(domain, errno, lambda: event_channel.bind_virq(domain, virq, vcpu_id))


def test_closing_a_virq_frees_it_to_be_bound_again(domain: Domain) -> None:
    event_channel.close(domain, event_channel.bind_virq(domain, Virq.TIMER, 0))
    assert event_channel.bind_virq(domain, Virq.TIMER, 0) == 1


def test_an_ipi_needs_its_vcpu(domain: Domain) -> None:
    refused(domain, ENOENT, lambda: event_channel.bind_ipi(domain, 2))


# Connections.


def test_a_domain_can_connect_to_itself(domain: Domain) -> None:
    unbound, bound = loopback(domain)
    event_channel.send(domain, bound)
    assert word(domain, "evtchn_pending") == 1 << unbound
    event_channel.send(domain, unbound)
    assert word(domain, "evtchn_pending") == 1 << unbound | 1 << bound


def test_binding_raises_what_may_have_been_lost(domain: Domain) -> None:
    unbound = event_channel.alloc_unbound(domain, DOMID)
    bound = event_channel.bind_interdomain(domain, DOMID, unbound)
    assert word(domain, "evtchn_pending") == 1 << bound


def test_only_a_port_that_waits_for_the_domain_can_be_bound(domain: Domain) -> None:
    for_another = event_channel.alloc_unbound(domain, STRANGER)
    for port in (0, for_another, 63, 64):
        refused(domain, EINVAL, partial(event_channel.bind_interdomain, domain, DOMID, port))


def test_closing_one_end_leaves_the_other_waiting(domain: Domain) -> None:
    unbound, bound = loopback(domain)
    event_channel.close(domain, bound)
    assert event_channel.status(domain, unbound).state == EVTCHNSTAT_unbound
    assert event_channel.bind_interdomain(domain, DOMID, unbound) == bound


def test_closing_forgets_what_was_pending(domain: Domain) -> None:
    unbound, bound = loopback(domain)
    event_channel.send(domain, bound)
    event_channel.close(domain, unbound)
    assert word(domain, "evtchn_pending") == 0


@pytest.mark.parametrize("port", [0, 5, 64])
def test_a_port_not_in_use_cannot_be_closed(domain: Domain, port: int) -> None:
    refused(domain, EINVAL, lambda: event_channel.close(domain, port))


def test_reset_closes_every_port(domain: Domain) -> None:
    loopback(domain)
    event_channel.bind_virq(domain, Virq.TIMER, 0)
    assert reset(domain)
    assert all(channel.state == EVTCHNSTAT_closed for channel in domain.events.channels)
    assert not domain.events.virqs


def test_a_reset_is_interrupted_by_events_and_resumed(domain: Domain) -> None:
    ports = [event_channel.bind_ipi(domain, 0) for _ in range(100)]
    assert not reset(domain, interrupted=True)
    assert [event_channel.status(domain, port).state for port in ports[62:66]] == [
        *[EVTCHNSTAT_closed] * 2,
        *[EVTCHNSTAT_ipi] * 2,
    ]
    refused(domain, EBUSY, lambda: reset(domain))
    assert reset(domain, resuming=True)
    assert all(channel.state == EVTCHNSTAT_closed for channel in domain.events.channels)


def test_only_an_interrupted_reset_is_resumed(domain: Domain) -> None:
    event_channel.bind_ipi(domain, 0)
    refused(domain, EBUSY, lambda: reset(domain, resuming=True))


def test_a_port_that_is_opened_during_a_reset_stays(domain: Domain) -> None:
    for _ in range(100):
        event_channel.bind_ipi(domain, 0)
    reset(domain, interrupted=True)
    assert event_channel.bind_ipi(domain, 0) == 1
    with pytest.raises(XenError) as error:
        reset(domain, resuming=True)
    assert error.value.errno == EAGAIN
    assert event_channel.status(domain, 1).state == EVTCHNSTAT_ipi
    assert reset(domain)


# dom0's ends.


def test_an_event_to_dom0_reaches_its_backend(domain: Domain) -> None:
    backend = Backend()
    domain.backends["console"] = backend  # type: ignore[assignment]
    port = connect_to_dom0(domain, "console")
    event_channel.send(domain, port)
    assert backend.told == 1
    assert event_channel.status(domain, port).remote_domid == DOM0


def test_a_closed_backend_port_can_be_bound_again(domain: Domain) -> None:
    backend = Backend()
    domain.backends["xenstore"] = backend  # type: ignore[assignment]
    port = connect_to_dom0(domain, "xenstore")
    dom0_port = event_channel.status(domain, port).remote_port
    refused(domain, EINVAL, lambda: event_channel.bind_interdomain(domain, DOM0, dom0_port))
    event_channel.close(domain, port)
    port = event_channel.bind_interdomain(domain, DOM0, dom0_port)
    event_channel.send(domain, port)
    assert backend.told == 1


def bells(domain: Domain) -> list[tuple[int, ...]]:
    return [bell for bell in BELL.iter_unpack(domain.events.bells) if bell != (0, 0)]


def test_a_backend_may_have_a_bell_on_its_port(domain: Domain) -> None:
    backend = Backend()
    domain.backends["vbd"] = backend  # type: ignore[assignment]
    port = connect_to_dom0(domain, "console")
    ports = [event_channel.alloc_unbound(domain, DOM0) for _ in range(BELLS + 2)]
    ends = [event_channel.bind_from_dom0(domain, port, "vbd", 70) for port in ports]
    assert bells(domain) == [(port, 70) for port in ports[:BELLS]]  # there are no more
    event_channel.rung(domain, 3, 1234)
    assert (backend.told, domain.timers.asked_ns) == (1, 1234)
    event_channel.send(domain, ports[3])  # which does the same, at once
    event_channel.send(domain, ports[BELLS])
    assert backend.told == 3
    event_channel.close(domain, port)
    event_channel.close(domain, ports[0])
    event_channel.close_from_dom0(domain, ends[1])
    assert bells(domain) == [(port, 70) for port in ports[2:BELLS]]
    assert event_channel.reset(domain, resuming=False, interrupted=lambda: False)
    assert bells(domain) == []


def test_dom0_has_no_other_port_to_bind(domain: Domain) -> None:
    refused(domain, EINVAL, lambda: event_channel.bind_interdomain(domain, DOM0, 32))


def test_dom0_binds_only_to_a_port_that_waits_for_it(domain: Domain) -> None:
    for port in (event_channel.alloc_unbound(domain, STRANGER), event_channel.bind_ipi(domain, 0)):
        refused(domain, EINVAL, lambda port=port: event_channel.bind_from_dom0(domain, port, "x"))
    assert not domain.events.dom0_ports


def test_dom0_tells_whatever_port_the_guest_has_bound_to_its_own(domain: Domain) -> None:
    port = connect_to_dom0(domain, "console")
    dom0_port = event_channel.status(domain, port).remote_port
    event_channel.close(domain, port)
    assert event_channel.bind_ipi(domain, 0) == port
    event_channel.notify_from_dom0(domain, dom0_port)  # lost: nobody is there
    assert word(domain, "evtchn_pending") == 0
    other = event_channel.bind_interdomain(domain, DOM0, dom0_port)
    event_channel.unmask(domain, other)
    assert not event_channel.is_pending(domain, port)
    event_channel.notify_from_dom0(domain, dom0_port)
    assert event_channel.is_pending(domain, other) and not event_channel.is_pending(domain, port)


# Sending.


def test_an_unbound_port_swallows_events(domain: Domain) -> None:
    event_channel.send(domain, event_channel.alloc_unbound(domain, STRANGER))
    assert word(domain, "evtchn_pending") == 0


def test_nothing_can_be_sent_on_a_virq_or_a_closed_port(domain: Domain) -> None:
    virq = event_channel.bind_virq(domain, Virq.TIMER, 0)
    for port in (virq, 0, 63, 1000):
        refused(domain, EINVAL, partial(event_channel.send, domain, port))


def test_an_event_on_a_closed_port_is_ignored(domain: Domain) -> None:
    event_channel.set_pending(domain, 5)
    assert word(domain, "evtchn_pending") == 0


# The two-level ABI.


@pytest.mark.parametrize("width", [8, 4])
def test_an_event_sets_pending_selector_and_upcall(width: int) -> None:
    domain = make_domain(width)
    ports = [event_channel.bind_ipi(domain, 0) for _ in range(70)]
    event_channel.send(domain, ports[-1])
    assert selector(domain) == 1 << 70 // (8 * width)
    assert event_pending(domain, domain.vcpus[0])


def test_a_masked_event_is_pending_without_an_upcall(domain: Domain) -> None:
    port = event_channel.bind_ipi(domain, 0)
    domain.memory.write_uint(field(domain, "evtchn_mask"), 8, 1 << port)
    event_channel.send(domain, port)
    assert word(domain, "evtchn_pending") == 1 << port
    assert selector(domain) == 0 and not event_pending(domain, domain.vcpus[0])


def test_an_event_already_pending_is_not_raised_again(domain: Domain) -> None:
    port = event_channel.bind_ipi(domain, 0)
    domain.memory.write_uint(field(domain, "evtchn_pending"), 8, 1 << port)
    event_channel.send(domain, port)
    assert selector(domain) == 0


def test_unmasking_delivers_what_is_pending(domain: Domain) -> None:
    port = event_channel.bind_ipi(domain, 0)
    domain.memory.write_uint(field(domain, "evtchn_mask"), 8, 1 << port)
    event_channel.send(domain, port)
    event_channel.unmask(domain, port)
    assert word(domain, "evtchn_mask") == 0
    assert event_pending(domain, domain.vcpus[0])


def test_unmasking_what_is_not_masked_delivers_nothing(domain: Domain) -> None:
    port = event_channel.bind_ipi(domain, 0)
    domain.memory.write_uint(field(domain, "evtchn_pending"), 8, 1 << port)
    event_channel.unmask(domain, port)
    assert not event_pending(domain, domain.vcpus[0])


def test_a_port_that_does_not_exist_cannot_be_unmasked(domain: Domain) -> None:
    refused(domain, EINVAL, lambda: event_channel.unmask(domain, 64))


# Waking.


def test_an_event_wakes_the_vcpu_that_it_notifies(domain: Domain) -> None:
    for vcpu in domain.vcpus:
        vcpu.blocked = True
    event_channel.send(domain, event_channel.bind_ipi(domain, 1))
    assert [vcpu.blocked for vcpu in domain.vcpus] == [True, False]


@pytest.mark.parametrize(("polled", "woken"), [({1}, True), ({2}, False), ({ANY_PORT}, True)])
def test_a_masked_event_wakes_who_polls_for_it(
    domain: Domain, polled: set[int], woken: bool
) -> None:
    port = event_channel.bind_ipi(domain, 0)
    domain.memory.write_uint(field(domain, "evtchn_mask"), 8, 1 << port)
    vcpu = domain.vcpus[0]
    vcpu.blocked, vcpu.poll_ports = True, frozenset(polled)
    event_channel.send(domain, port)
    assert vcpu.blocked is not woken


# Where a port is delivered.


def test_an_interdomain_port_moves_to_another_vcpu(domain: Domain) -> None:
    unbound, bound = loopback(domain)
    event_channel.bind_vcpu(domain, unbound, 1)
    event_channel.send(domain, bound)
    assert event_pending(domain, domain.vcpus[1]) and not event_pending(domain, domain.vcpus[0])


def test_closing_a_port_takes_it_back_to_vcpu_0(domain: Domain) -> None:
    port = event_channel.alloc_unbound(domain, STRANGER)
    event_channel.bind_vcpu(domain, port, 1)
    event_channel.close(domain, port)
    assert event_channel.status(domain, port).notify_vcpu == 0


def test_each_kind_that_moves(domain: Domain) -> None:
    unbound, bound = loopback(domain)
    ports = [unbound, bound, event_channel.alloc_unbound(domain, STRANGER)]
    domain.p2m = P2m()  # only a translated guest has pirqs
    ports.append(event_channel.bind_pirq(domain, 3))
    ports.append(event_channel.bind_virq(domain, Virq.ARGO, 0))
    for port in ports:
        event_channel.bind_vcpu(domain, port, 1)
        event_channel.bind_vcpu(domain, port, 1)
        assert event_channel.status(domain, port).notify_vcpu == 1


def test_what_is_pending_stays_where_it_was_when_a_port_moves(domain: Domain) -> None:
    unbound, bound = loopback(domain)
    event_channel.send(domain, bound)
    event_channel.bind_vcpu(domain, unbound, 1)
    event_channel.send(domain, bound)
    assert event_pending(domain, domain.vcpus[0]) and not event_pending(domain, domain.vcpus[1])


def test_a_port_that_cannot_move(domain: Domain) -> None:
    timer = event_channel.bind_virq(domain, Virq.TIMER, 0)
    ipi = event_channel.bind_ipi(domain, 0)
    for port, vcpu_id, errno in (
        (timer, 1, EINVAL),
        (ipi, 1, EINVAL),
        (9, 1, EINVAL),
        (timer, 2, ENOENT),
    ):
        refused(domain, errno, partial(event_channel.bind_vcpu, domain, port, vcpu_id))


def test_a_global_virq_moves(domain: Domain) -> None:
    port = event_channel.bind_virq(domain, Virq.DOM_EXC, 0)
    event_channel.bind_vcpu(domain, port, 1)
    event_channel.send_virq(domain, Virq.DOM_EXC)
    assert event_pending(domain, domain.vcpus[1])


# What only the FIFO ABI has.


def test_the_two_level_abi_has_neither_array_nor_priorities(domain: Domain) -> None:
    port = event_channel.bind_ipi(domain, 0)
    refused(domain, EOPNOTSUPP, lambda: event_channel.expand_array(domain, 20))
    refused(domain, ENOSYS, lambda: event_channel.set_priority(domain, port, 0))
    assert event_channel.status(domain, port).state != EVTCHNSTAT_interdomain
