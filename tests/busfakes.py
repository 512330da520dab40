"""A guest that has a frontend: what tests of dom0's devices share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from fakes import FIRST_GUEST_FRAME, FakeCpu, make_current
from grantfakes import HEAP, grant
from xenemu.abi.io.ring import REQ_EVENT, REQ_PROD, RSP_EVENT, RSP_PROD, SLOTS
from xenemu.abi.io.xenbus import XenbusState
from xenemu.dom0 import toolstack
from xenemu.dom0.bus import BusBackend
from xenemu.dom0.xenstore import XenstoreRing
from xenemu.dom0.xenstore_model import Connection
from xenemu.dom0.xenstore_tree import Store
from xenemu.hv import backend as hv_backend
from xenemu.hv import event_2l, event_channel, grant_table
from xenemu.hv.building import DomainConfig
from xenemu.hv.current import Current
from xenemu.hv.state.domain import DOM0, Domain, Ring
from xenemu.hv.timers import fire_due
from xenemu.x86.paging import PAGE_SIZE, Maddr, Mfn

DEVICE_FRAMES = 24  # the guest's first frame for a device
FIRST_REF = 16


@dataclass
class Bus:
    """A domain with a store and devices, and the guest's hands in them.

    The guest's frames from DEVICE_FRAMES on can be granted: `share` takes the next.
    """

    devices: Sequence[BusBackend]
    pages: int = 256
    width: int = 8
    current: Current = field(init=False)
    store: Store = field(default_factory=Store)
    session: Connection = field(init=False)  # the guest's
    shared: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self.current = make_current(self.width, self.pages)
        domain = self.domain
        domain.frames.add_to_heap(HEAP)
        grant_table.grow(domain, 1)
        domain.console = Ring(Mfn(FIRST_GUEST_FRAME), event_channel.alloc_unbound(domain, DOM0))
        domain.xenstore = Ring(
            Mfn(FIRST_GUEST_FRAME + 1), event_channel.alloc_unbound(domain, DOM0)
        )
        grant(domain, 1, domain.xenstore.mfn, to=DOM0)
        self.ring = XenstoreRing(store=self.store)
        toolstack.create(domain, DomainConfig(1 << 20), self.store, [self.ring, *self.devices])
        self.session = self.ring.connection

    @property
    def domain(self) -> Domain:
        return self.current.domain

    @property
    def cpu(self) -> FakeCpu:
        assert isinstance(self.current.cpu, FakeCpu)
        return self.current.cpu

    def settle(self, ns: int = 0) -> None:
        """Let virtual time pass, and all be done that is due by then, each at its time."""
        end_ns = self.cpu.now_ns + ns
        while (next_ns := self.domain.timers.next_ns()) is not None and next_ns <= end_ns:
            self.cpu.now_ns = max(self.cpu.now_ns, next_ns)
            fire_due(self.current, hv_backend.timers(self.domain))
        self.cpu.now_ns = self.domain.timers.asked_ns = end_ns

    def put(self, device: BusBackend, nodes: dict[str, str | int]) -> None:
        """Write nodes in the frontend's directory, as the guest, and let dom0 see them."""
        for name, value in nodes.items():
            self.store.write(self.session, f"{device.frontend}/{name}", str(value).encode())
        self.store.wake(self.domain)
        self.settle()

    def switch(self, device: BusBackend, state: XenbusState) -> None:
        """Change the frontend's state."""
        self.put(device, {"state": state.value})

    def seen(self, device: BusBackend, name: str) -> str:
        """A node in the backend's directory, as the guest."""
        return self.store.read(self.session, f"{device.backend}/{name}").decode()

    def share(self, flags: int = 1, to: int = DOM0) -> tuple[int, Mfn]:
        """Grant the guest's next frame; its reference, and the frame."""
        ref, mfn = FIRST_REF + self.shared, Mfn(DEVICE_FRAMES + self.shared)
        self.shared += 1
        grant(self.domain, ref, mfn, flags, to)
        return ref, mfn

    def port(self) -> int:
        """A port of the guest's that waits for dom0."""
        return event_channel.alloc_unbound(self.domain, DOM0)

    def take_event(self, port: int) -> bool:
        """Whether an event waits on a port of the guest's, which it does no longer."""
        was_pending = event_channel.is_pending(self.domain, port)
        event_2l.clear_pending(self.domain, port)
        return was_pending


@dataclass
class Toy(BusBackend):
    """A device of two ports and a ring of one page; it remembers what it was asked."""

    kind = "vtoy"
    events: list[int] = field(default_factory=list)

    def backend_nodes(self) -> Mapping[str, str | int]:
        return {"colour": "red"}

    def probe(self, domain: Domain) -> None:
        self.write("feature-play", 1)

    def open(self, domain: Domain) -> None:
        self.map_pages(domain, [self.read_number("ring-ref")])
        for name in ("tx", "rx"):
            self.bind(domain, self.read_number(f"event-channel-{name}"))
        self.write("size", 7)

    def event(self, domain: Domain, port: int) -> None:
        self.events.append(port)

    def shut(self, domain: Domain) -> None:
        self.events.clear()


def connect(bus: Bus, toy: Toy) -> tuple[int, int]:
    """Do all that a frontend does; the guest's two ports."""
    ref, _ = bus.share()
    tx, rx = bus.port(), bus.port()
    bus.put(toy, {"ring-ref": ref, "event-channel-tx": tx, "event-channel-rx": rx})
    bus.switch(toy, XenbusState.INITIALISED)
    return tx, rx


@dataclass
class FrontRing:
    """The frontend's end of a ring in one or several frames."""

    domain: Domain
    mfns: Sequence[Mfn]
    slot_size: int
    req_prod: int = 0
    rsp_cons: int = 0

    def __post_init__(self) -> None:
        self.set(REQ_EVENT, 1)
        self.set(RSP_EVENT, 1)

    @property
    def slots(self) -> int:
        room = (len(self.mfns) * PAGE_SIZE - SLOTS) // self.slot_size
        return 1 << room.bit_length() - 1

    def get(self, offset: int) -> int:
        return self.domain.memory.read_uint(Maddr(self.mfns[0] * PAGE_SIZE + offset), 4)

    def set(self, offset: int, value: int) -> None:
        self.domain.memory.write_uint(Maddr(self.mfns[0] * PAGE_SIZE + offset), 4, value)

    def _bytes(self, index: int) -> Iterable[Maddr]:
        start = SLOTS + index % self.slots * self.slot_size
        for offset in range(start, start + self.slot_size):
            yield Maddr(self.mfns[offset // PAGE_SIZE] * PAGE_SIZE + offset % PAGE_SIZE)

    def put(self, request: bytes) -> None:
        """Put a request, and show it."""
        for maddr, byte in zip(self._bytes(self.req_prod), request, strict=False):
            self.domain.memory.write_uint(maddr, 1, byte)
        self.req_prod = (self.req_prod + 1) & 0xFFFF_FFFF
        self.set(REQ_PROD, self.req_prod)

    def take(self, size: int) -> bytes | None:
        """Take the next response, of so many bytes, and want an event at the one after it."""
        if self.rsp_cons == self.get(RSP_PROD):
            return None
        places = list(self._bytes(self.rsp_cons))[:size]
        self.rsp_cons = (self.rsp_cons + 1) & 0xFFFF_FFFF
        self.set(RSP_EVENT, (self.rsp_cons + 1) & 0xFFFF_FFFF)
        return bytes(self.domain.memory.read(maddr, 1)[0] for maddr in places)
