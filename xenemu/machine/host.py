"""The host: what its domains share, and what dom0 keeps for them.

The builders make memory of the size that one domain needs, so there is one domain.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import field

from xenemu.dom0 import toolstack
from xenemu.dom0.xenstore import XenstoreRing
from xenemu.dom0.xenstore_tree import Store
from xenemu.entries import Entry
from xenemu.hv.building import DomainConfig
from xenemu.hv.memory import Memory
from xenemu.hv.pagetype import Frames
from xenemu.hv.state.domain import Backend, Domain
from xenemu.hv.state.schedule import Schedule
from xenemu.image import Image
from xenemu.records import dataclass


@dataclass
class Host:
    """Memory, the table of its frames with the heap, the xenstore, and the domains by their ids."""

    memory: Memory
    frames: Frames
    store: Store = field(default_factory=Store)
    domains: dict[int, Domain] = field(default_factory=dict)

    def admit(self, domain: Domain) -> None:
        """Have a domain, which lives in this memory; ValueError: another has its id."""
        if domain.domid in self.domains:
            raise ValueError(f"there is a domain {domain.domid}")
        self.domains[domain.domid] = domain
        domain.peers = self.domains


def build(entry: Entry, image: Image, config: DomainConfig, backends: Iterable[Backend]) -> Host:
    """Build a host with a domain, which an entry makes from an image, as xl does.

    dom0 has `backends` for the domain, in addition to the xenstore. Errors are those of
    `Entry.build`.
    """
    domain = entry.build(image, config)
    domain.schedule = Schedule(config.slice_ns, config.schedule_seed)
    image.forget_pages()
    host = Host(domain.memory, domain.frames)
    host.admit(domain)
    toolstack.create(domain, config, host.store, [XenstoreRing(store=host.store), *backends])
    return host
