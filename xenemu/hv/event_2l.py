"""The two-level event channel ABI: a pending and a mask bitmap, and a selector word per vcpu.

In Xen: common/event_2l.c
"""

from __future__ import annotations

from xenemu.abi.event_channel import evtchn_2l_nr_channels
from xenemu.hv import waking
from xenemu.hv.shared_info import (
    field,
    mark_events_pending,
    test_and_clear_bit,
    test_and_set_bit,
    test_bit,
    vcpu_field,
)
from xenemu.hv.state.domain import Domain
from xenemu.hv.state.events import Channel


def nr_channels(domain: Domain) -> int:
    return evtchn_2l_nr_channels(domain.shared_info_width)


def set_pending(domain: Domain, port: int, channel: Channel) -> None:
    """Raise an event. The order is the ABI's: pending, mask, selector, upcall byte."""
    if test_and_set_bit(domain.memory, field(domain, "evtchn_pending"), port):
        return
    if not test_bit(domain.memory, field(domain, "evtchn_mask"), port):
        _select(domain, port, channel)
    waking.check_pollers(domain, port)


def unmask(domain: Domain, port: int, channel: Channel) -> None:
    """Clear the mask bit; deliver the event if it was masked and is pending."""
    if test_and_clear_bit(domain.memory, field(domain, "evtchn_mask"), port) and is_pending(
        domain, port
    ):
        _select(domain, port, channel)


def clear_pending(domain: Domain, port: int) -> None:
    test_and_clear_bit(domain.memory, field(domain, "evtchn_pending"), port)


def is_pending(domain: Domain, port: int) -> bool:
    return test_bit(domain.memory, field(domain, "evtchn_pending"), port)


def is_masked(domain: Domain, port: int) -> bool:
    return test_bit(domain.memory, field(domain, "evtchn_mask"), port)


def is_busy(domain: Domain, port: int) -> bool:
    """Whether a closed port may not be reused yet: never in this ABI."""
    return False


def _select(domain: Domain, port: int, channel: Channel) -> None:
    vcpu = domain.vcpus[channel.notify_vcpu]
    selector = vcpu_field(domain, vcpu, "evtchn_pending_sel")
    word = port // (8 * domain.shared_info_width)
    if not test_and_set_bit(domain.memory, selector, word) and mark_events_pending(domain, vcpu):
        waking.wake(domain, vcpu)
