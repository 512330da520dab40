"""What differs between kinds of guest, as functions: PV and PVH each assemble one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import field
from typing import Protocol

from xenemu.hv.current import Current, Translate
from xenemu.hv.state.domain import Domain
from xenemu.hv.state.vcpu import Vcpu
from xenemu.hv.timers import Owners
from xenemu.records import dataclass


class Exits(Protocol):
    """A handler of the engine's exits, which the run loop can also ask."""

    def deliver_events(self) -> None:
        """Call the current vcpu for its events, if any are pending and it lets itself be."""

    def stopped(self) -> None:
        """The engine returned from the guest."""


@dataclass(frozen=True)
class Personality:
    """A kind of guest.

    * `start` loads a fresh vcpu's registers into the CPU.
    * `leave` takes from the CPU what it knows of the current vcpu besides its registers, before
      another vcpu comes.
    * `enter` tells the CPU the same of the vcpu that has come. Others may have changed it
      meanwhile.
    * `address_space` is the root of the tables that the vcpu runs on.
    * `send_nmi` lets a vcpu take an NMI; it wakes the vcpu if that is blocked.
    * `audit` returns what is wrong in the hypervisor's books (`hv.audit`).
    * `timers` are its own kinds of timers.
    * `soft_reset` lets go of what a domain has asked the hypervisor for, once dom0 has let go of
      the domain; None: Xen cannot do that to such a guest.
    """

    translate: Translate
    start: Callable[[Current], None]
    leave: Callable[[Current], None]
    enter: Callable[[Current], None]
    exits: Callable[[Current], Exits]
    address_space: Callable[[Current], int]
    send_nmi: Callable[[Current, Vcpu], None]
    audit: Callable[[Domain], list[str]]
    timers: Owners = field(default_factory=dict)
    soft_reset: Callable[[Current], None] | None = None
