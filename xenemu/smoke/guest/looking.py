"""In a guest's process: what is asked of the guest's memory, its symbols and its kernel."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from typing import Any, Final

from xenemu.dump import frames
from xenemu.errors import Unmapped
from xenemu.hv.current import Current
from xenemu.image.values import Value
from xenemu.kaslr import as_mapped
from xenemu.kernel import Kernel
from xenemu.machine import memory
from xenemu.machine.memory import Locate
from xenemu.peek import Code
from xenemu.smoke.guest.messages import (
    Data,
    Log,
    Members,
    Modules,
    Moment,
    Number,
    Tasks,
    Thing,
)
from xenemu.smoke.session import Session
from xenemu.x86.paging import PAGE_MASK, PAGE_SHIFT, Maddr

PHYSICAL: Final = "physical"


class Looking:
    """Looks at the guest of a session, while it stands still."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._places: Places | None = None
        self._seen = (0, 0)  # when those were found

    def answer(self, what: str, *arguments: Any) -> object:
        """Answer a request of LOOKS."""
        return LOOKS[what](self, *arguments)

    @property
    def _current(self) -> Current:
        return self._session.machine.current

    # Memory and symbols.

    def read(self, space: str, address: int, size: int) -> Data:
        return Data(memory.read(self._session.machine, self._locate(space), address, size))

    def write(self, space: str, address: int, data: bytes) -> None:
        memory.write(self._session.machine, self._locate(space), address, data)

    def _locate(self, space: str) -> Locate:
        if space != PHYSICAL:
            return memory.virtual(self._current, self._session.image)
        machine = self._session.machine
        now = (machine.engine.instructions, machine.engine.now_ns)
        if self._places is None or self._seen != now:
            self._places, self._seen = Places(self._current), now
        return self._places

    @property
    def _code(self) -> Code:
        return Code(as_mapped(self._current, self._session.image), self._current)

    def address(self, name: str) -> Number:
        return Number(self._code.find(name))

    def name(self, address: int) -> str:
        return self._code.format(address)

    # The kernel.

    @property
    def _kernel(self) -> Kernel:
        return Kernel(self._current, self._session.image)

    def find(self, path: str, vcpu: int | None) -> Thing:
        return _thing(self._kernel.evaluate(path, vcpu=vcpu))

    def step(self, type_: int, address: int, step: str | int) -> Thing:
        value = self._kernel.again(type_, address)
        return _thing(value.member(step) if isinstance(step, str) else value.element(step))

    def members(self, type_: int, address: int) -> Members:
        return Members(self._kernel.again(type_, address).names())

    def show(self, type_: int, address: int) -> str:
        kernel = self._kernel
        value = kernel.again(type_, address)
        return f"({value.spelling}) " + "\n".join(value.lines(kernel.named))

    def tasks(self) -> Tasks:
        listing = self._kernel.tasks()
        return Tasks(listing.found, listing.trouble)

    def modules(self) -> Modules:
        listing = self._kernel.modules()
        return Modules(listing.found, listing.trouble)

    def log(self) -> Log:
        return Log(self._kernel.log())

    # The run.

    def moment(self) -> Moment:
        engine = self._session.machine.engine
        return Moment(engine.now_ns, engine.instructions)

    def report(self) -> str:
        return self._session.report()


class Places:
    """Where the guest has its memory, by the addresses that its kernel knows."""

    def __init__(self, current: Current) -> None:
        known = [(run.pfn, run) for run in frames.runs(current) if run.pfn is not None]
        self._runs = sorted(known, key=lambda pair: pair[0])
        self._starts = [pfn for pfn, _ in self._runs]

    def __call__(self, paddr: int) -> Maddr:
        """Where an address is in the machine: Unmapped."""
        pfn = paddr >> PAGE_SHIFT
        at = bisect_right(self._starts, pfn) - 1
        into = pfn - self._starts[at] if at >= 0 else 0
        if at < 0 or into >= self._runs[at][1].pages:
            raise Unmapped(f"the guest has no memory at {paddr:#x}")
        return Maddr(self._runs[at][1].mfn + into << PAGE_SHIFT | paddr & PAGE_MASK)


def _thing(value: Value) -> Thing:
    plain = value.plain()
    is_pointer = plain is None and value.is_pointer
    return Thing(
        value.number,
        value.spelling,
        value.at,
        value.size,
        plain,
        value.enumerator,
        int(value) if is_pointer else None,
        value.length,
    )


LOOKS: Final[dict[str, Callable[..., object]]] = {
    "read": Looking.read,
    "write": Looking.write,
    "address": Looking.address,
    "name": Looking.name,
    "find": Looking.find,
    "step": Looking.step,
    "members": Looking.members,
    "show": Looking.show,
    "tasks": Looking.tasks,
    "modules": Looking.modules,
    "log": Looking.log,
    "moment": Looking.moment,
    "report": Looking.report,
}
