"""What xl does for a domain that has been built, before it runs.

In Xen: tools/libs/light/libxl_create.c
"""

from __future__ import annotations

from collections.abc import Iterable

from xenemu.dom0.bus import BusBackend
from xenemu.dom0.control import Control
from xenemu.dom0.xenstore import XenstoreRing
from xenemu.dom0.xenstore_nodes import populate
from xenemu.dom0.xenstore_tree import Store
from xenemu.hv.backend import attach
from xenemu.hv.building import DomainConfig
from xenemu.hv.state.domain import Backend, Domain


def create(domain: Domain, config: DomainConfig, store: Store, backends: Iterable[Backend]) -> None:
    """Make the domain's and its devices' nodes in the store, and connect it to dom0's backends."""
    backends = list(backends)
    populate(
        store,
        domain.domid,
        config.name,
        domain.uuid,
        config.most_memory >> 10,
        config.all_vcpus,
        domain.mfn_to_gfn(domain.console.mfn),
        domain.console.port,
        domain.mfn_to_gfn(domain.xenstore.mfn),
        domain.xenstore.port,
        config.vcpus,
        config.memory >> 10,
    )
    for backend in backends:
        if isinstance(backend, BusBackend):
            backend.plug(store, domain)
        elif isinstance(backend, Control):
            backend.join(store)
    attach(domain, backends)


def rejoin(store: Store, backends: Iterable[Backend]) -> None:
    """Give backends, which a snapshot was read into, the store and their sessions in it."""
    for backend in backends:
        if isinstance(backend, BusBackend | Control | XenstoreRing):
            backend.store, backend.connection = store, store.session(backend.name)
