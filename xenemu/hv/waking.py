"""Waking vcpus that are blocked, and those that poll for events.

In Xen: common/sched/core.c (vcpu_unblock), common/event_channel.c (evtchn_check_pollers)
"""

from __future__ import annotations

from typing import Final

from xenemu.hv.state.domain import Domain
from xenemu.hv.state.vcpu import Vcpu

NO_POLL: Final[frozenset[int]] = frozenset()
ANY_PORT: Final = -1  # in Vcpu.poll_ports: an event on any port ends the wait
POLL: Final = "poll"  # the kind of the timer that ends a poll; its number is the vcpu


def wake(domain: Domain, vcpu: Vcpu) -> None:
    """Make a blocked vcpu runnable; its poll, if any, is over. The vcpu that runs gives way."""
    if not vcpu.blocked:
        return
    vcpu.blocked = False
    domain.reschedule = True
    vcpu.poll_ports = NO_POLL
    domain.timers.cancel((POLL, vcpu.vcpu_id))


def check_pollers(domain: Domain, port: int) -> None:
    """Wake the vcpus that poll for an event on `port`, masked or not."""
    for vcpu in domain.vcpus:
        if vcpu.poll_ports and (port in vcpu.poll_ports or ANY_PORT in vcpu.poll_ports):
            wake(domain, vcpu)
