"""A backend: a service of dom0's, as the hypervisor and the run loop see it.

A domain has a list of backends (`attach`). Each is a file of `dom0`, and nothing else knows its
name.

A backend's life begins with `connect`, which finds the pages and ports that the guest shares with
it. When the guest sends an event on such a port, `notify` is called at once. Between slices of the
guest, `pump` is called. Work that takes a while is a timer:
`domain.timers.set((name, number), ...)` arms it, and `timer` is called when it is due. The backend
tells the guest with `event_channel.notify_from_dom0`. If the domain is renewed (`dom0.renewal`),
`disconnect` ends the backend's life, and `connect` begins another.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

from xenemu.hv.current import Current
from xenemu.hv.state.domain import Backend, Domain
from xenemu.hv.timers import Owners


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
