"""`Current`: the vcpu that runs, and the gate to its guest's memory; and who observes it.

In Xen: include/asm-x86/current.h, include/asm-x86/guest_access.h.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Protocol, TypeVar

from xenemu.abi.layout import Struct
from xenemu.hv.calls import CallRecord
from xenemu.hv.cpu import Cpu
from xenemu.hv.prices import Exit
from xenemu.hv.state.domain import Domain
from xenemu.hv.state.vcpu import Vcpu
from xenemu.records import dataclass
from xenemu.x86.paging import PAGE_MASK, PAGE_SIZE, Maddr

S = TypeVar("S", bound=Struct)
Details = Mapping[str, int]
Translate = Callable[["Current", int, bool], Maddr]  # vaddr, for writing; raises XenError(EFAULT)


class Calls(Protocol):
    """The hypercalls that a guest can make: a `hv.dispatch.HypercallTable`."""

    @property
    def rows(self) -> Mapping[int, Any]:
        """Each `hv.dispatch.Hypercall`, by its number."""

    def call(self, current: Current, number: int, registers: Sequence[int]) -> int:
        """Call a hypercall with the raw argument registers; return the guest's result."""


@dataclass
class Current:
    """The vcpu that runs, its domain and the CPU it runs on: Xen's ``current``, passed along.

    Also the gate to guest memory: every pointer from the guest goes through `read` and `write`.
    """

    domain: Domain
    vcpu: Vcpu
    cpu: Cpu
    translate: Translate
    table: Calls | None = None  # what multicall calls into

    @property
    def watch(self) -> Iterable[Observer] | None:
        """Who is told what happens to the domain, if anybody is."""
        return self.domain.watch

    def log(self, sentence: str) -> None:
        """Note, for the person, why something outside a hypercall was refused."""
        self.domain.refusals.append(sentence)
        for observer in self.watch or ():
            observer.logged(self, sentence)

    def changed(self, vcpu: Vcpu, what: str, **details: int) -> None:
        """Tell the watchers of a vcpu's life; see `Observer.vcpu_changed`."""
        for observer in self.watch or ():
            observer.vcpu_changed(self, vcpu, what, details)

    def asked(self, what: Exit, number: int, index: int = 0) -> None:
        """Tell the watchers what the guest asks of its platform; see `Observer.asked`."""
        for observer in self.watch or ():
            observer.asked(self, what, number, index)

    @property
    def code_width(self) -> int:
        """The bytes of an `unsigned long`, and of a pointer, to the code that runs."""
        return 8 if self.cpu.code64 else 4

    def read(self, vaddr: int, size: int) -> bytes:
        """Copy from the guest's address space; EFAULT where it could not read."""
        if 0 < size <= PAGE_SIZE - (vaddr & PAGE_MASK):
            return self.domain.memory.read(self.translate(self, vaddr, False), size)
        parts = [
            self.domain.memory.read(self.translate(self, va, False), n)
            for va, n in pieces(vaddr, size)
        ]
        return b"".join(parts)

    def write(self, vaddr: int, data: bytes | bytearray | memoryview) -> None:
        """Copy to the guest's address space; EFAULT, and nothing written, where it could not."""
        if 0 < len(data) <= PAGE_SIZE - (vaddr & PAGE_MASK):
            self.domain.memory.write(self.translate(self, vaddr, True), data)
            return
        places = [(self.translate(self, va, True), n) for va, n in pieces(vaddr, len(data))]
        start = 0
        for maddr, n in places:
            self.domain.memory.write(maddr, data[start : start + n])
            start += n

    def read_struct(self, cls: type[S], vaddr: int) -> S:
        """Copy in a struct in the guest's width."""
        width = self.vcpu.width
        return cls.unpack(width, self.read(vaddr, cls.sizeof(width)))

    def write_struct(self, vaddr: int, value: Struct) -> None:
        """Copy out a struct in the guest's width."""
        self.write(vaddr, value.pack(self.vcpu.width))

    def read_uint(self, vaddr: int, size: int) -> int:
        return int.from_bytes(self.read(vaddr, size), "little")

    def write_uint(self, vaddr: int, size: int, value: int) -> None:
        self.write(vaddr, (value & ((1 << 8 * size) - 1)).to_bytes(size, "little"))

    def read_ulong(self, vaddr: int) -> int:
        """Read an ``unsigned long`` of the guest's width."""
        return self.read_uint(vaddr, self.vcpu.width)

    def write_ulong(self, vaddr: int, value: int) -> None:
        self.write_uint(vaddr, self.vcpu.width, value)


class Observer:
    """What can be seen; each method does nothing, for a subclass to override.

    With `shuts_lane`, the model does all of a guest's work meanwhile, or some would not be seen.
    """

    shuts_lane: ClassVar[bool] = True

    def call_begins(self, current: Current, row: Any, record: CallRecord) -> None:
        """A hypercall begins; the calls of a multicall begin and end before the multicall ends.

        `row` is its `hv.dispatch.Hypercall`, or None if there is no such hypercall.
        """

    def call_ends(self, current: Current, row: Any, record: CallRecord) -> None:
        """The call ended. Without a result, it is to be continued, or it ended the guest."""

    def entry_set(self, current: Current, maddr: int, old: int, new: int) -> None:
        """An entry of a page table was changed, as a hypercall or a store asked."""

    def pinned(self, current: Current, mfn: int, level: int) -> None:
        """A page table was pinned; level 0: unpinned."""

    def root_set(self, current: Current, mfn: int, user: bool) -> None:
        """A table became the root of the kernel's or the user's address space."""

    def raised(self, current: Current, port: int, was_pending: bool) -> None:
        """An event was raised on a port."""

    def upcall(self, current: Current, how: str) -> None:
        """The guest is called for its events."""

    def entered(self, current: Current, what: str, error_code: int | None) -> None:
        """The guest's kernel is entered, for an exception, an interrupt or a system call."""

    def left(self, current: Current, rip: int) -> None:
        """The guest's kernel returned by HYPERVISOR_iret, called at `rip`, to where the CPU is."""

    def vcpu_changed(self, current: Current, vcpu: Vcpu, what: str, details: Details) -> None:
        """A vcpu goes ``up`` or ``down``, or gets an ``INIT`` or a ``STARTUP``, by the current one.

        `details` has ``at``, the address where a STARTUP has it begin, and ``ignored`` if it is.
        """

    def asked(self, current: Current, what: Exit, number: int, index: int) -> None:
        """The guest asks the platform: CPUID for a leaf and a subleaf, RDMSR, WRMSR, IN or OUT.

        Ports that nothing answers are told only after `Machine.show_ports`.
        """

    def timer_fired(self, current: Current, kind: str, number: int) -> None:
        """A timer is due; `hv.state.timers.Key` says of what kind, and of whom."""

    def runstate_changed(self, vcpu: Vcpu, now_ns: int) -> None:
        """A vcpu enters another state, `vcpu.runstate`, at that instant."""

    def served(
        self, device: str, what: str, since_ns: int | None = None, until_ns: int | None = None
    ) -> None:
        """A device of dom0's serves a request: now, or from when it came until that instant."""

    def printed(self, current: Current, data: bytes) -> None:
        """The console has shown what the guest printed."""

    def logged(self, current: Current, sentence: str) -> None:
        """Something was refused outside of a hypercall's result."""


def pieces(vaddr: int, size: int) -> Iterator[tuple[int, int]]:
    """Cut a virtual range at page boundaries: (vaddr, bytes) of each piece."""
    while size > 0:
        n = min(size, PAGE_SIZE - (vaddr & PAGE_MASK))
        yield vaddr, n
        vaddr += n
        size -= n
