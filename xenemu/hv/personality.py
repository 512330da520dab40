"""What differs between kinds of guest, as functions: PV and PVH each assemble one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from xenemu.hv.cpu import ExitHandler
from xenemu.hv.domain import Current, Translate


class Exits(ExitHandler, Protocol):
    """An `ExitHandler` that can also be asked to deliver events to the current vcpu."""

    def deliver_events(self) -> None:
        """Enter the guest's event callback if events are pending and not masked."""


@dataclass(frozen=True)
class Personality:
    """A kind of guest.

    `environment` is its name in the hypercall table; `start` loads a fresh vcpu's registers
    into the CPU; `address_space` is the root of the tables that the vcpu runs on.
    """

    environment: str
    translate: Translate
    start: Callable[[Current], None]
    exits: Callable[[Current], Exits]
    address_space: Callable[[Current], int]
