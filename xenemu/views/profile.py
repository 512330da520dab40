"""Where a guest spends its time: its stack, each time that so much virtual time has passed.

A sample is taken at an exact instruction. For that, a slice of the guest is run in pieces, as for a
debugger, and the guest does not notice. The stack is unwound then, since it is gone later. Names
are looked up in the end.

Only vcpus that run are sampled, so a guest that waits has no samples. A program's stack is one
frame, because its symbols are not known. Modules have names if they are still loaded in the end.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final, Protocol

from xenemu import kaslr
from xenemu.hv.cpu import Reg
from xenemu.hv.current import Current
from xenemu.image import Image
from xenemu.image.backtrace import frame_pointer_caller
from xenemu.image.orc import Frame, OrcEntry, Stop, caller_by
from xenemu.kaslr import as_mapped
from xenemu.peek import Code, Pages, in_kernel

EVERY_NS: Final = 10_000_000
MAX_DEPTH: Final = 64  # frames of a stack
MAX_STACK: Final = 16 << 10  # bytes, between a frame pointer and the stack pointer
PROGRAM: Final = "a program"
TOP: Final = 20  # functions, for a person

Stack = tuple[int, ...]  # an address in each function, the innermost first; a program's is empty


class Port(Protocol):
    """See `hv.debug.DebugCpu`."""

    over: bool

    def begin(self, deadline_ns: int) -> None: ...
    def run(self, instructions: int | None = None) -> object: ...


class Sampled(Protocol):
    """A `Machine`."""

    @property
    def current(self) -> Current: ...
    @property
    def debug(self) -> Port: ...


@dataclass
class Profile:
    """The samples of each vcpu, in order: of each stack its number in `stacks`."""

    every_ns: int
    stacks: dict[tuple[str, ...], int] = field(default_factory=dict)  # names, the outermost first
    of_vcpu: dict[int, list[int]] = field(default_factory=dict)

    @property
    def count(self) -> int:
        """How many samples there are."""
        return sum(map(len, self.of_vcpu.values()))

    def counted(self) -> list[tuple[tuple[str, ...], int]]:
        """Each stack with how many samples it has, sorted; of several vcpus, each is a root."""
        names = list(self.stacks)
        found: Counter[tuple[str, ...]] = Counter()
        for vcpu_id, samples in self.of_vcpu.items():
            root = (f"vcpu {vcpu_id}",) if len(self.of_vcpu) > 1 else ()
            for number, times in Counter(samples).items():
                found[root + names[number]] += times
        return sorted(found.items())

    def folded(self) -> str:
        """A line for each stack, as flamegraph.pl and its relatives read them."""
        lines = []
        for stack, times in self.counted():
            names = (name.replace(";", ":").replace("\n", " ") for name in stack)
            lines.append(f"{';'.join(names)} {times}\n")
        return "".join(lines)

    def top(self) -> str:
        """The functions with the most samples, for a person."""
        own: Counter[str] = Counter()
        total: Counter[str] = Counter()
        names = list(self.stacks)
        for samples in self.of_vcpu.values():
            for number, times in Counter(samples).items():
                own[names[number][-1]] += times
                for name in set(names[number]):
                    total[name] += times
        count = self.count
        lines = [f"{count} samples, one each {self.every_ns / 1e6:g} ms in which a vcpu ran"]
        lines += ["   self   total  function"] if count else []
        for name, times in sorted(own.items(), key=lambda item: (-item[1], item[0]))[:TOP]:
            lines.append(f"{100 * times / count:6.1f}% {100 * total[name] / count:6.1f}%  {name}")
        return "".join(f"{line}\n" for line in lines)


class Sampler:
    """Runs a machine's slices, and samples them each `every_ns` of virtual time."""

    def __init__(self, machine: Sampled, image: Image, every_ns: int = EVERY_NS) -> None:
        self._machine, self._image, self.every_ns = machine, image, every_ns
        self._current, self._port = machine.current, machine.debug
        self._due_ns = self._after(self._current.cpu.now_ns)
        self._numbers: dict[Stack, int] = {}
        self._of_vcpu: dict[int, list[int]] = {}
        self._unwinder = Unwinder(image, self._current)

    def _after(self, now_ns: int) -> int:
        return (now_ns // self.every_ns + 1) * self.every_ns

    def run(self, deadline_ns: int) -> None:
        """Run the guest to virtual time `deadline_ns`, as the engine does, with samples."""
        port, cpu = self._port, self._current.cpu
        self._due_ns = max(self._due_ns, self._after(cpu.now_ns - 1))  # what was idle has none
        port.begin(deadline_ns)
        while not port.over:
            left_ns = self._due_ns - cpu.now_ns
            if left_ns > 0:
                port.run(left_ns)
            else:
                self._take()
                self._due_ns = self._after(cpu.now_ns)

    def _take(self) -> None:
        stack = self._unwinder.stack()
        number = self._numbers.setdefault(stack, len(self._numbers))
        self._of_vcpu.setdefault(self._current.vcpu.vcpu_id, []).append(number)

    def profile(self) -> Profile:
        """What was sampled, with names."""
        current = self._current
        name = Namer(Code(as_mapped(current, self._image), current))
        profile, renumbered = Profile(self.every_ns), {}
        for stack, number in self._numbers.items():
            names = tuple(name(vaddr) for vaddr in reversed(stack)) or (PROGRAM,)
            renumbered[number] = profile.stacks.setdefault(names, len(profile.stacks))
        for vcpu_id, samples in sorted(self._of_vcpu.items()):
            profile.of_vcpu[vcpu_id] = [renumbered[number] for number in samples]
        return profile


class Namer:
    """The function at an address, with its module."""

    def __init__(self, code: Code) -> None:
        self._code = code
        self._known: dict[int, str] = {}

    def __call__(self, vaddr: int) -> str:
        name = self._known.get(vaddr)
        if name is None:
            words = self._code.format(vaddr)
            function, _, rest = words.partition("+0x")
            module = rest.partition(" ")[2]
            name = f"{function} {module}" if module else function if rest else _page(vaddr)
            self._known[vaddr] = name
        return name


def _page(vaddr: int) -> str:
    """What has no name is told by its page, or each place would be another."""
    return f"{vaddr & ~0xFFF:#x}"


class Unwinder:
    """Unwinds the kernel's stack of the vcpu that runs: only what is certain, and fast."""

    def __init__(self, image: Image, current: Current) -> None:
        self._image, self._current = image, current
        self._orc = image.orc
        low = min((part.start for part in image.symbols.parts), default=0)
        self._reach = range(low, low + kaslr.REACH)
        self._settled = current.domain.p2m is None  # Xen has put a PV kernel where it is linked
        self._known: dict[int, OrcEntry] = {}
        self._modules = Code(image, current).modules

    def stack(self) -> Stack:
        """An address in each function, the innermost first; empty in a program."""
        current = self._current
        if not in_kernel(current):
            return ()
        cpu = current.cpu
        frame = Frame(cpu.rip, cpu.regs[Reg.RSP], cpu.regs[Reg.RBP])
        return tuple(self._addresses(frame, Pages(current), current.code_width))

    def _addresses(self, frame: Frame, read: Pages, width: int) -> Iterator[int]:
        for _ in range(MAX_DEPTH):
            pc = frame.pc - frame.is_return
            yield pc
            caller = caller_by(self._known.get(pc) or self._find(pc), frame, read)
            if caller is Stop.LOST and width:
                end = min(frame.sp + MAX_STACK, 1 << 8 * width)
                caller = frame_pointer_caller(frame, end, read, width) or Stop.LOST
            if isinstance(caller, Stop):
                return
            frame = caller

    def _find(self, pc: int) -> OrcEntry | None:
        if self._orc is None:
            return None
        if not self._settled and pc in self._reach:
            self._settle()
        entry = self._orc.find(pc)
        if entry is None and self._modules is not None:
            module = self._modules.find(pc)
            entry = module.orc.find(pc) if module and module.orc else None
        if entry is not None and self._settled:
            self._known[pc] = entry
        return entry

    def _settle(self) -> None:
        """Find where the kernel has put itself, once it runs there."""
        move = kaslr.find(self._current, self._image)
        if move is None:
            return
        self._settled = True
        if move.virtual:
            moved = as_mapped(self._current, self._image)
            self._orc, self._modules = moved.orc, Code(moved, self._current).modules
