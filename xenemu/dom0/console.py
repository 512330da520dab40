"""The PV console: the backend that xenconsoled is on a real host.

What the guest writes to the out ring goes to `Domain.output`. What the person types waits in a
bounded queue until the in ring has room. If a guest's indices are nonsense, the guest is ignored.

In Xen: tools/console/daemon/io.c
"""

from __future__ import annotations

from dataclasses import field
from typing import Final

from xenemu.abi.grant_table import GNTTAB_RESERVED_CONSOLE
from xenemu.abi.io.console import xencons_interface
from xenemu.dom0.backend import RingBackend
from xenemu.dom0.byte_ring import ByteRing
from xenemu.hv.state.domain import OUTPUT_LIMIT, Domain
from xenemu.records import dataclass

INPUT_LIMIT: Final = 64 << 10  # bytes typed that the guest has not made room for

_at = xencons_interface.layout(8).offsets  # the same in both widths
IN: Final = ByteRing(_at["in_"], 1024, _at["in_cons"], _at["in_prod"])
OUT: Final = ByteRing(_at["out"], 2048, _at["out_cons"], _at["out_prod"])


@dataclass
class Console(RingBackend):
    """A domain's console, and the input not yet delivered."""

    input: bytearray = field(default_factory=bytearray)

    @property
    def name(self) -> str:
        return "console"

    def connect(self, domain: Domain) -> None:
        self.connect_ring(domain, GNTTAB_RESERVED_CONSOLE, domain.console.port)

    @property
    def input_room(self) -> int:
        """How many bytes `feed` would accept."""
        return INPUT_LIMIT - len(self.input)

    def feed(self, domain: Domain, data: bytes) -> int:
        """Queue input and deliver what the ring has room for; return the bytes accepted."""
        accepted = min(len(data), self.input_room)
        self.input += data[:accepted]
        self.pump(domain)
        return accepted

    def pump(self, domain: Domain) -> None:
        """Move bytes both ways, and tell the guest if any moved.

        Output stays in the ring while `OUTPUT_LIMIT` bytes of it wait to be shown.
        """
        if not (self.input or OUT.used(domain.memory, self.mfn)):
            return
        shown = OUT.take(domain.memory, self.mfn, max(0, OUTPUT_LIMIT - len(domain.output)))
        domain.output += shown
        typed = IN.put(domain.memory, self.mfn, self.input)
        del self.input[:typed]
        if shown or typed:
            self.tell(domain)
