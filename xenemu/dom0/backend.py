"""What most backends have in common.

The whole interface is `hv.backend.Backend`.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Final

from xenemu.dom0 import grants
from xenemu.errors import XenError
from xenemu.hv import event_channel
from xenemu.hv.state.domain import Domain
from xenemu.records import dataclass
from xenemu.x86.paging import Mfn

NO_FRAME: Final = Mfn(0)  # before it is connected


@dataclass
class RingBackend:
    """A backend with one page, one port, and nothing but plain data: it is its own state.

    The guest has granted the page, and the backend has it mapped. As long as it does, the page is
    writable memory and nothing else, and the frame stays the domain's.
    """

    mfn: Mfn = NO_FRAME
    port: int = 0  # dom0's; 0 before it is connected
    handle: int | None = None  # of the mapping

    @property
    def name(self) -> str:
        raise NotImplementedError

    def connect_ring(self, domain: Domain, ref: int, port: int) -> None:
        """Map the page that is granted as `ref`, and bind to the port that the guest has for it.

        GrantError: the page cannot be mapped; XenError: the port does not wait for dom0. Nothing
        is mapped then.
        """
        handle, mfn = grants.map_grant(domain, ref)
        try:
            self.port = event_channel.bind_from_dom0(domain, port, self.name)
        except XenError:
            grants.unmap_grant(domain, handle)
            raise
        self.mfn, self.handle = mfn, handle

    def disconnect(self, domain: Domain) -> None:
        """Unmap the page, and free the port."""
        assert self.handle is not None
        grants.unmap_grant(domain, self.handle)
        event_channel.close_from_dom0(domain, self.port)
        self.mfn, self.port, self.handle = NO_FRAME, 0, None

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

    def held(self, domain: Domain) -> Iterator[int]:
        if self.handle is not None:
            yield self.handle

    def check(self, domain: Domain) -> Iterator[str]:
        yield from ()

    def save(self) -> object:
        return copy.deepcopy(vars(self))

    def restore(self, state: object) -> None:
        assert isinstance(state, dict)
        vars(self).clear()
        vars(self).update(copy.deepcopy(state))
