"""What most backends have in common.

The whole interface is `hv.backend.Backend`.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from xenemu.errors import XenError
from xenemu.hv import event_channel
from xenemu.hv.frame_table import PGT_writable_page
from xenemu.x86.paging import Mfn

if TYPE_CHECKING:
    from xenemu.hv.state.domain import Domain, Ring

NO_FRAME: Final = Mfn(0)  # before it is connected


@dataclass
class RingBackend:
    """A backend with one page, one port, and nothing but plain data: it is its own state.

    It has the page mapped. As long as it does, the page is writable memory and nothing else, and
    the frame stays the domain's.
    """

    mfn: Mfn = NO_FRAME
    port: int = 0  # dom0's; 0 before it is connected

    @property
    def name(self) -> str:
        raise NotImplementedError

    def connect_ring(self, domain: Domain, ring: Ring) -> None:
        """Map the ring's page, and bind to the port that the guest has for it.

        XenError: the page cannot be mapped writable, or the port does not wait for dom0.
        """
        domain.frames.get_page_and_type(ring.mfn, domain.domid, PGT_writable_page)
        try:
            self.port = event_channel.bind_from_dom0(domain, ring.port, self.name)
        except XenError:
            domain.frames.put_page_and_type(ring.mfn)
            raise
        self.mfn = ring.mfn

    def tell(self, domain: Domain) -> None:
        """Send the guest an event."""
        event_channel.notify_from_dom0(domain, self.port)

    def notify(self, domain: Domain, port: int) -> None:
        """The guest sent an event: there is something to do."""
        self.pump(domain)

    def pump(self, domain: Domain) -> None:
        raise NotImplementedError

    def timer(self, domain: Domain, number: int, now_ns: int) -> None:
        raise ValueError(f"{self.name} has set no timer")

    def held(self, domain: Domain) -> Iterator[tuple[int, int]]:
        if self.port:
            yield self.mfn, PGT_writable_page

    def check(self, domain: Domain) -> Iterator[str]:
        yield from ()

    def save(self) -> object:
        return copy.deepcopy(vars(self))

    def restore(self, state: object) -> None:
        assert isinstance(state, dict)
        vars(self).clear()
        vars(self).update(copy.deepcopy(state))
