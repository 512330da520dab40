"""The domain: everything that a guest owns, as plain data.

Two things in it belong to others: dom0's backends, and the watchers. The domain knows of them only
what it can ask them.

In Xen: common/domain.c (struct domain)
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import InitVar, dataclass, field
from typing import TYPE_CHECKING, Any, Final, Protocol

from xenemu.hv.calls import CallLog
from xenemu.hv.memory import Memory
from xenemu.hv.state.events import EventChannels
from xenemu.hv.state.schedule import Schedule
from xenemu.hv.state.timers import Timers
from xenemu.hv.state.vcpu import Vcpu
from xenemu.x86.paging import PAGE_SIZE, Maddr, Mfn

if TYPE_CHECKING:
    from xenemu.hv.frame_table import PageCounts
    from xenemu.hv.p2m import P2m
    from xenemu.hv.pagetype import Frames
    from xenemu.hv.state.grants import GrantTable

DOM0: Final = 0  # dom0's id
OUTPUT_LIMIT: Final = 1 << 20  # bytes of console output not yet shown; libxl's console/limit


@dataclass
class Ring:
    """A page that a domain is built with to talk to dom0, and the domain's port for it."""

    mfn: Mfn
    port: int = 0


class Backend(Protocol):
    """A service for one domain."""

    @property
    def name(self) -> str:
        """What it is called: in its domain's list, and in the keys of its timers."""

    def connect(self, domain: Domain) -> None:
        """The domain is built, and about to run."""

    def disconnect(self, domain: Domain) -> None:
        """Give back all that it has of the domain's, and be as before `connect`."""

    def notify(self, domain: Domain, port: int) -> None:
        """The guest sent an event to a port of dom0's that is bound to this backend."""

    def pump(self, domain: Domain) -> None:
        """Do what can be done now; called between slices of the guest."""

    def timer(self, domain: Domain, number: int, now_ns: int) -> None:
        """The timer `(name, number)` is due."""

    def held(self, domain: Domain) -> Iterable[int]:
        """The grants that it has mapped, for the audit: their handles."""

    def check(self, domain: Domain) -> Iterable[str]:
        """A sentence for each thing that is not as it should be, for the audit."""

    def save(self) -> object:
        """All that it knows, apart from itself."""

    def restore(self, state: object) -> None:
        """Know what `save` returned, and nothing else; the same state may come again."""


class Watchers(Protocol):
    """The observers of a domain, which are told everything that an observer could want to know."""

    @property
    def shuts_lane(self) -> bool:
        """Whether the CPU must leave all of the guest's work to the model."""

    def __iter__(self) -> Iterator[Any]:
        """Each is a `hv.current.Observer`."""

    def raised(self, port: int, was_pending: bool) -> None:
        """An event was raised on a port."""


@dataclass
class Domain:
    """A guest. Plain data: no closures, no engine handles.

    Each of the `backends` saves and restores what it knows. `watch` has the watchers, or is None if
    there are none. If a snapshot replaces the domain, the watchers stay.
    """

    width: int  # bytes of a PV guest's unsigned long, 8 or 4; a PVH guest's vcpus have their own
    memory: Memory
    frames: Frames
    events: EventChannels
    grants: GrantTable
    console: Ring
    xenstore: Ring
    shared_info: Mfn
    max_pages: InitVar[int]
    vcpus: list[Vcpu]
    domid: int
    pages: PageCounts = field(init=False)
    name: str = "guest"
    uuid: bytes = bytes(range(16))
    features: int = 0  # XENFEAT_* bits of submap 0 that this guest sees
    debug_xen: bool = False  # hypercalls spoil their arguments, as in a debug build of Xen
    e820: list[tuple[int, int, int]] = field(default_factory=list)  # base, size, type
    arch: object = None  # the personality's own, opaque to `hv`
    p2m: P2m | None = None  # of guests whose frame numbers Xen translates (PVH)
    shared_info_width: int = 0  # the width that shared_info is laid out for
    wallclock_ns: int = 0  # the wall clock at virtual time 0, since 1970
    incarnation: int = 1  # one more after each restore
    shutdown_code: int | None = None  # None while it runs
    shutdown_why: str = ""  # why it was shut down, unless the guest asked for it
    paused: bool = False  # by the toolstack: no vcpu runs
    chosen_shutdown_code: int | None = None  # what will count then, whatever the reason
    backends: dict[str, Backend] = field(default_factory=dict)  # by name, in the order of attaching
    timers: Timers = field(default_factory=Timers)
    schedule: Schedule = field(default_factory=Schedule)
    reschedule: bool = False  # since the current vcpu got the CPU, another has become runnable
    output: bytearray = field(default_factory=bytearray)  # console bytes not yet shown
    calls: CallLog = field(default_factory=CallLog)
    refusals: deque[str] = field(default_factory=lambda: deque(maxlen=16))
    watch: Watchers | None = field(default=None, compare=False, repr=False)
    # The domains of its host by their ids; it is one of them.
    peers: dict[int, Domain] = field(default_factory=dict, compare=False, repr=False)

    def __post_init__(self, max_pages: int) -> None:
        self.pages = self.frames.pages[self.domid]
        self.pages.max_pages = max_pages
        self.shared_info_width = self.shared_info_width or self.width
        self.frames.calls = self.calls
        self.peers[self.domid] = self

    @property
    def vm_assist(self) -> int:
        """The VMASST_TYPE_* bits that the guest has on; page tables depend on some of them."""
        return self.frames.vm_assist

    @vm_assist.setter
    def vm_assist(self, assists: int) -> None:
        self.frames.vm_assist = assists

    def gfn_to_mfn(self, gfn: int) -> Mfn:
        """The machine frame that a guest frame number means; EINVAL if there is none."""
        return Mfn(gfn) if self.p2m is None else self.p2m.lookup(gfn)

    def mfn_to_gfn(self, mfn: Mfn) -> int:
        """The guest's own number for a machine frame that it has."""
        gfn = mfn if self.p2m is None else self.p2m.find(mfn)
        assert gfn is not None
        return gfn

    @property
    def shared_info_maddr(self) -> Maddr:
        return Maddr(self.shared_info * PAGE_SIZE)
