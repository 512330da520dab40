"""The domain: everything that a guest owns, as plain data, and `Current`, the gate to it.

In Xen: common/domain.c (struct domain), include/asm-x86/guest_access.h.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import InitVar, dataclass, field
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar

from xenemu.abi.layout import Struct
from xenemu.hv.cpu import Cpu
from xenemu.hv.memory import Memory
from xenemu.hv.state.events import EventChannels
from xenemu.hv.state.timers import Timers
from xenemu.hv.vcpu import Vcpu
from xenemu.x86.paging import PAGE_MASK, PAGE_SIZE, Maddr, Mfn

if TYPE_CHECKING:
    from xenemu.hv.backend import Backend
    from xenemu.hv.dispatch import HypercallTable
    from xenemu.hv.frame_table import PageCounts
    from xenemu.hv.grant_table import GrantTable
    from xenemu.hv.observe import Observer
    from xenemu.hv.p2m import P2m
    from xenemu.hv.pagetype import Frames

S = TypeVar("S", bound=Struct)

DOM0: Final = 0  # dom0's id
DOMID = 1  # what the first domU is called; dom0 serves its console and xenstore
OUTPUT_LIMIT: Final = 1 << 20  # bytes of console output not yet shown; libxl's console/limit


@dataclass(slots=True, eq=False)
class CallRecord:
    """One hypercall: for the log that a crash prints, and for what came of it.

    The record is in the log from the beginning of the call. `result` is None until the call ends.
    `rip` is after the instruction that made the call, mostly in a stub. `caller` is where that stub
    was called from, if an observer looked. With `standing`, the refusal is Xen's declared answer,
    whatever the arguments.
    """

    at_ns: int
    vcpu_id: int
    rip: int
    name: str
    args: tuple[int, ...] = ()
    result: int | None = None
    reason: str = ""
    standing: bool = False
    caller: int = 0


@dataclass
class Ring:
    """A page that a domain is built with to talk to dom0, and the domain's port for it."""

    mfn: Mfn
    port: int = 0


class Watchers(Protocol):
    """The observers of a domain, which are told everything that an observer could want to know."""

    def __iter__(self) -> Iterator[Any]:
        """Each is a `hv.observe.Observer`."""

    def raised(self, port: int, was_pending: bool) -> None:
        """An event was raised on a port."""


@dataclass
class Domain:
    """A guest. Plain data: no closures, no engine handles.

    Each of the `backends` saves and restores what it knows. `watch` has the watchers, or is None if
    there are none. If a snapshot replaces the domain, the watchers stay.
    """

    width: int  # bytes of unsigned long, 8 or 4; a native guest's may change call by call
    memory: Memory
    frames: Frames
    events: EventChannels
    grants: GrantTable
    console: Ring
    xenstore: Ring
    shared_info: Mfn
    max_pages: InitVar[int]
    vcpus: list[Vcpu]
    domid: int = DOMID
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
    shutdown_code: int | None = None  # None while it runs
    shutdown_why: str = ""  # how it came to that, where the guest did not ask for it
    chosen_shutdown_code: int | None = None  # what will count then, whatever the reason
    backends: dict[str, Backend] = field(default_factory=dict)  # by name, in the order of attaching
    timers: Timers = field(default_factory=Timers)
    output: bytearray = field(default_factory=bytearray)  # console bytes not yet shown
    calls: deque[CallRecord] = field(default_factory=lambda: deque(maxlen=64))
    refusals: deque[str] = field(default_factory=lambda: deque(maxlen=16))
    watch: Watchers | None = field(default=None, compare=False, repr=False)

    def __post_init__(self, max_pages: int) -> None:
        self.pages = self.frames.pages[self.domid]
        self.pages.max_pages = max_pages
        self.shared_info_width = self.shared_info_width or self.width
        self.frames.calls = self.calls

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


Translate = Callable[["Current", int, bool], Maddr]  # vaddr, for writing; raises XenError(EFAULT)


@dataclass
class Current:
    """The vcpu that runs, its domain and the CPU it runs on: Xen's ``current``, passed along.

    Also the gate to guest memory: every pointer from the guest goes through `read` and `write`.
    """

    domain: Domain
    vcpu: Vcpu
    cpu: Cpu
    translate: Translate
    environment: str = "pv64"  # who it is to the hypercall table: pv64, pv32, pvh64, pvh32
    table: HypercallTable | None = None  # what multicall calls into

    @property
    def watch(self) -> Iterable[Observer] | None:
        """Who is told what happens to the domain, if anybody is."""
        return self.domain.watch

    def log(self, sentence: str) -> None:
        """Note, for the person, why something outside a hypercall was refused."""
        self.domain.refusals.append(sentence)
        for observer in self.watch or ():
            observer.logged(self, sentence)

    @property
    def code_width(self) -> int:
        """The bytes of an `unsigned long`, and of a pointer, to the code that runs."""
        return 8 if self.cpu.code64 else 4

    def read(self, vaddr: int, size: int) -> bytes:
        """Copy from the guest's address space; EFAULT where it could not read."""
        if 0 < size <= PAGE_SIZE - (vaddr & PAGE_MASK):
            return self.domain.memory.read(self.translate(self, vaddr, False), size)
        pieces = [
            self.domain.memory.read(self.translate(self, va, False), n)
            for va, n in _pieces(vaddr, size)
        ]
        return b"".join(pieces)

    def write(self, vaddr: int, data: bytes | bytearray | memoryview) -> None:
        """Copy to the guest's address space; EFAULT, and nothing written, where it could not."""
        if 0 < len(data) <= PAGE_SIZE - (vaddr & PAGE_MASK):
            self.domain.memory.write(self.translate(self, vaddr, True), data)
            return
        places = [(self.translate(self, va, True), n) for va, n in _pieces(vaddr, len(data))]
        start = 0
        for maddr, n in places:
            self.domain.memory.write(maddr, data[start : start + n])
            start += n

    def read_struct(self, cls: type[S], vaddr: int) -> S:
        """Copy in a struct in the guest's width."""
        width = self.domain.width
        return cls.unpack(width, self.read(vaddr, cls.sizeof(width)))

    def write_struct(self, vaddr: int, value: Struct) -> None:
        """Copy out a struct in the guest's width."""
        self.write(vaddr, value.pack(self.domain.width))

    def read_uint(self, vaddr: int, size: int) -> int:
        return int.from_bytes(self.read(vaddr, size), "little")

    def write_uint(self, vaddr: int, size: int, value: int) -> None:
        self.write(vaddr, (value & ((1 << 8 * size) - 1)).to_bytes(size, "little"))

    def read_ulong(self, vaddr: int) -> int:
        """Read an ``unsigned long`` of the guest's width."""
        return self.read_uint(vaddr, self.domain.width)

    def write_ulong(self, vaddr: int, value: int) -> None:
        self.write_uint(vaddr, self.domain.width, value)


def _pieces(vaddr: int, size: int) -> Iterator[tuple[int, int]]:
    """Cut a virtual range at page boundaries: (vaddr, bytes) of each piece."""
    while size:
        n = min(size, PAGE_SIZE - (vaddr & PAGE_MASK))
        yield vaddr, n
        vaddr += n
        size -= n
