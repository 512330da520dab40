"""A domain's life with dom0 ends, and another one begins: as at a restore, or at a soft reset.

The toolstack takes everything away that dom0 has for the domain, makes its nodes anew, as for a new
domain, and plugs its devices in again. The devices are the same: a disk keeps its bytes, a network
its wire. Each begins its xenbus from Initialising.

In Xen: tools/libs/light/libxl_create.c (domain_soft_reset), libxl_domain.c (libxl__domain_destroy)
"""

from __future__ import annotations

from contextlib import suppress
from uuid import UUID

from xenemu.dom0 import toolstack
from xenemu.dom0.xenstore_model import Connection
from xenemu.dom0.xenstore_tree import Store
from xenemu.errors import DomainCrash, XenError
from xenemu.hv.building import DomainConfig
from xenemu.hv.grant_table import GrantError
from xenemu.hv.state.domain import Backend, Domain
from xenemu.records import dataclass


@dataclass(frozen=True)
class Known:
    """What the toolstack knows of a domain, and tells the next one that takes its place."""

    config: DomainConfig  # its memory, vcpus and names; not what it was booted from
    backends: tuple[Backend, ...]

    @property
    def names(self) -> frozenset[str]:
        """What the backends are called."""
        return frozenset(backend.name for backend in self.backends)


def release(domain: Domain, store: Store) -> Known:
    """Take away what dom0 has for a domain: its backends, and all of its nodes."""
    known = describe(domain, store)
    for backend in known.backends:
        backend.disconnect(domain)
    domain.backends = {}
    admin = Connection(0)
    kinds = store.directory(admin, "/local/domain/0/backend") if _has_devices(store) else ()
    gone = [f"/local/domain/{domain.domid}", f"/vm/{UUID(bytes=domain.uuid)}"]
    gone += [f"/local/domain/0/backend/{kind}/{domain.domid}" for kind in kinds]
    for path in gone:
        with suppress(XenError):  # a device of another kind has no such parent
            store.rm(admin, path)
    return known


def connect(domain: Domain, known: Known, store: Store) -> None:
    """Give a domain, whose rings have ports and grants, its nodes and its backends.

    DomainCrash: the guest itself uses the grant of a ring for something else.
    """
    try:
        toolstack.create(domain, known.config, store, known.backends)
    except GrantError as error:
        raise DomainCrash(f"dom0 cannot map its ring: {error.reason}") from None


def describe(domain: Domain, store: Store) -> Known:
    """What the toolstack knows of a domain."""
    admin, home = Connection(0), f"/local/domain/{domain.domid}"

    def read(path: str) -> bytes:
        return store.read(admin, f"{home}/{path}")

    vcpus = range(len(domain.vcpus))
    online = [n for n in vcpus if read(f"cpu/{n}/availability") == b"online"]
    config = DomainConfig(
        memory=int(read("memory/target")) << 10,
        maxmem=int(read("memory/static-max")) << 10,
        name=domain.name,
        uuid=domain.uuid,
        domid=domain.domid,
        vcpus=len(online),
        maxvcpus=len(vcpus),
        wallclock_ns=domain.wallclock_ns,
        debug_xen=domain.debug_xen,
    )
    return Known(config, tuple(domain.backends.values()))


def _has_devices(store: Store) -> bool:
    return "/local/domain/0/backend" in store.nodes
