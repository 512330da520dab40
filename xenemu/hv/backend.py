"""A backend: a service of dom0's, as the hypervisor and the run loop see it.

A domain has a list of backends (`attach`). Each is a file of `dom0`, and nothing else knows its
name.

A backend's life begins with `connect`, which finds the pages and ports that the guest shares with
it. When the guest sends an event on such a port, `notify` is called at once. Between slices of the
guest, `pump` is called. Work that takes a while is a timer:
`domain.timers.set((name, number), ...)` arms it, and `timer` is called when it is due. The backend
tells the guest with `EventChannels.notify_from_dom0`.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from xenemu.hv.domain import Current, Domain
    from xenemu.hv.timers import Owners


class Backend(Protocol):
    """A service for one domain."""

    @property
    def name(self) -> str:
        """What it is called: in its domain's list, and in the keys of its timers."""

    def connect(self, domain: Domain) -> None:
        """The domain is built, and about to run."""

    def notify(self, domain: Domain, port: int) -> None:
        """The guest sent an event to a port of dom0's that is bound to this backend."""

    def pump(self, domain: Domain) -> None:
        """Do what can be done now; called between slices of the guest."""

    def timer(self, domain: Domain, number: int, now_ns: int) -> None:
        """The timer `(name, number)` is due."""

    def held(self, domain: Domain) -> Iterable[tuple[int, int]]:
        """The references to frames that it has, for the audit: (mfn, type)."""

    def check(self, domain: Domain) -> Iterable[str]:
        """A sentence for each thing that is not as it should be, for the audit."""

    def save(self) -> object:
        """All that it knows, apart from itself."""

    def restore(self, state: object) -> None:
        """Know what `save` returned, and nothing else; the same state may come again."""


def attach(domain: Domain, backends: Iterable[Backend]) -> None:
    """Give a new domain its backends, and connect them; ValueError if two have one name."""
    for backend in backends:
        if backend.name in domain.backends:
            raise ValueError(f"two backends are called {backend.name}")
        backend.connect(domain)
        domain.backends[backend.name] = backend


def timers(domain: Domain) -> Owners:
    """What happens when a timer of a backend's is due."""
    return {name: partial(_fire, name) for name in domain.backends}


def _fire(name: str, current: Current, number: int) -> None:
    domain = current.domain
    domain.backends[name].timer(domain, number, current.cpu.now_ns)
