"""Look at a guest from outside: its memory through its own tables, its code by name.

A look leaves no trace in the guest. It sets no accessed bit and checks no right. So the guest runs
on as if nobody had looked.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from functools import partial
from itertools import chain
from typing import Final

from xenemu.abi.errno import EFAULT
from xenemu.errors import NoSuchName, XenError, meant
from xenemu.hv.cpu import Reg, Seg
from xenemu.hv.current import Current, pieces
from xenemu.hv.shared_info import UPCALL_MASK, UPCALL_PENDING
from xenemu.hv.state.vcpu import RunState, Vcpu
from xenemu.hv.waking import ANY_PORT
from xenemu.image import Image
from xenemu.image.backtrace import backtrace, follows_call
from xenemu.image.kernel_modules import Module, Modules
from xenemu.image.orc import Frame, Read, Stop
from xenemu.pv.state import PvVcpu
from xenemu.pvh.paging import CR0_PG, CR4_PAE, EFER_LMA, PDPT_MASK, cpu_of
from xenemu.pvh.state import PvhVcpu
from xenemu.records import dataclass
from xenemu.x86 import segment
from xenemu.x86.flags import IF
from xenemu.x86.paging import ADDR, PAGE_MASK, PAGE_SHIFT, PAGE_SIZE, PSE, Maddr, Mfn, P, WalkStep

# The shifts of the indices, from the root on (Intel SDM volume 3, "Paging").
LONG: Final = (39, 30, 21, 12)
PAE: Final = (30, 21, 12)
TWO_LEVEL: Final = (22, 12)

MAX_READS: Final = 1 << 18  # of a guest's memory, for one report
MAX_PAGES: Final = 1 << 12  # of it that are kept

# What is left of a hypercall page's stub after the call: it may pop two words, and returns.
# Linux has stubs of its own, whose RET may be a jump to a return thunk.
POPS: Final = b"\x41\x5b\x59"
RETURNS: Final = (0xC3, 0xE9)


@dataclass(frozen=True)
class Tables:
    """What translates a vcpu's addresses while paging is on."""

    root: int  # the root table's address, as the guest has it
    shifts: tuple[int, ...]  # of each level's index
    entry_size: int

    def has(self, vaddr: int) -> bool:
        """Whether `vaddr` is an address here: canonical with four levels, else of 32 bits."""
        if len(self.shifts) == len(LONG):
            return 0 <= vaddr < 1 << 47 or (1 << 64) - (1 << 47) <= vaddr < 1 << 64
        return 0 <= vaddr < 1 << 32

    def index(self, vaddr: int, level: int) -> int:
        """Which entry of a table of this level `vaddr` leads through."""
        return vaddr >> self.shifts[-level] & PAGE_SIZE // self.entry_size - 1


def tables(current: Current) -> Tables | None:
    """The tables in use; None while paging is off."""
    if current.domain.p2m is None:  # a PV guest always has paging, and its width's format
        return Tables(current.cpu.cr3 & ADDR, LONG if current.vcpu.width == 8 else PAE, 8)
    cpu = cpu_of(current)
    if not cpu.cr0 & CR0_PG:
        return None
    if not cpu.cr4 & CR4_PAE:
        return Tables(cpu.cr3 & ADDR, TWO_LEVEL, 4)
    if cpu.efer & EFER_LMA:
        return Tables(cpu.cr3 & ADDR, LONG, 8)
    return Tables(cpu.cr3 & PDPT_MASK, PAE, 8)


def machine_frame(current: Current, paddr: int) -> Mfn | None:
    """The machine frame of a frame number in the guest's tables; None if it is no RAM."""
    domain, frame = current.domain, Mfn(paddr >> PAGE_SHIFT)
    if domain.p2m is not None:
        return domain.p2m.get(frame)
    return frame if domain.memory.contains(frame) else None


def walk(current: Current, found: Tables, vaddr: int) -> Iterator[WalkStep]:
    """Follow `vaddr` to the first entry that is not present or is a leaf, or out of memory."""
    table = found.root
    for level in range(len(found.shifts), 0, -1):
        mfn = machine_frame(current, table)
        if mfn is None:
            return
        index = found.index(vaddr, level)
        where = Maddr((mfn << PAGE_SHIFT) + (table & PAGE_MASK) + index * found.entry_size)
        entry = current.domain.memory.read_uint(where, found.entry_size)
        yield WalkStep(level, where, entry)
        if not entry & P or (entry & PSE and level > 1):
            return
        table = entry & ADDR


def peek(current: Current, vaddr: int, size: int) -> bytes:
    """Copy what the guest has at `vaddr`; EFAULT where nothing is mapped."""
    memory = current.domain.memory
    return b"".join(memory.read(locate(current, at), n) for at, n in pieces(vaddr, size))


def locate(current: Current, vaddr: int, found: Tables | None = None) -> Maddr:
    """Where `vaddr` is in the machine, by the tables in use or by others; EFAULT if nowhere."""
    found = found or tables(current)
    paddr: int | None = vaddr & 0xFFFFFFFF
    if found is not None:
        step = None
        for step in walk(current, found, vaddr):  # noqa: B007
            pass
        paddr = None
        if (
            step is not None
            and found.has(vaddr)
            and step.entry & P
            and (step.level == 1 or step.entry & PSE)
        ):
            offset = (1 << found.shifts[-step.level]) - 1
            paddr = step.entry & ADDR & ~offset | vaddr & offset
    mfn = None if paddr is None else machine_frame(current, paddr)
    if mfn is None:
        raise XenError(EFAULT, f"{vaddr:#x} is not mapped")
    return Maddr(mfn << PAGE_SHIFT | vaddr & PAGE_MASK)


def kernel_tables(current: Current, image: Image) -> Tables | None:
    """Tables that map the kernel: those in use, unless a program runs that sees less of it.

    In that case the kernel's own tables are taken. Xen knows them for a PV guest. A Linux with
    page-table isolation has them in the page before the program's tables, which map the kernel's
    code at most.

    In Linux: arch/x86/mm/pti.c
    """
    found = tables(current)
    if found is None:
        return None

    def mapped(candidate: Tables) -> int:
        count = 0
        for part in image.segments:
            with suppress(XenError):
                locate(current, part.vaddr, candidate)
                count += 1
        return count

    arch = current.vcpu.arch
    own = arch.kernel_root << PAGE_SHIFT if isinstance(arch, PvVcpu) else found.root & ~PAGE_SIZE
    return max((found, replace(found, root=own)), key=mapped)


class Pages:
    """A guest's memory while it stands still, for code that follows pointers of the guest's.

    It is called like `peek`, and also takes other tables than those in use. A page is looked up
    only once. After `reads` reads nothing is mapped any more. So code that follows a hostile
    guest's pointers comes to an end.
    """

    def __init__(
        self, current: Current, found: Tables | None = None, reads: int = MAX_READS
    ) -> None:
        self._current = current
        self._tables = found
        self._pages: dict[int, bytes] = {}
        self.reads_left = reads

    def __call__(self, vaddr: int, size: int) -> bytes:
        """Copy what the guest has at `vaddr`; EFAULT where nothing is mapped, or at the end."""
        pieces, end = [], vaddr + size
        while True:
            self.reads_left -= 1
            if self.reads_left < 0:
                raise XenError(EFAULT, "enough of the guest's memory has been read")
            offset = vaddr & PAGE_MASK
            page = self._page(vaddr - offset)
            pieces.append(page[offset : offset + end - vaddr])
            vaddr += PAGE_SIZE - offset
            if vaddr >= end:
                return b"".join(pieces)

    def _page(self, vaddr: int) -> bytes:
        page = self._pages.get(vaddr)
        if page is None:
            if len(self._pages) == MAX_PAGES:
                self._pages.clear()
            where = locate(self._current, vaddr, self._tables)
            page = self._pages[vaddr] = self._current.domain.memory.read(where, PAGE_SIZE)
        return page


def has_begun(current: Current, vcpu: Vcpu) -> bool:
    """Whether a vcpu has run since it was last brought up afresh, so that it has registers."""
    if isinstance(vcpu.arch, PvhVcpu) and vcpu.arch.start is not None:
        return False
    return vcpu is current.vcpu or vcpu.saved is not None


def doing(current: Current, vcpu: Vcpu) -> str:
    """What a vcpu does, for the person: it runs, could run, waits for something, or is down."""
    if not vcpu.online:
        if not vcpu.initialised:
            return "down, not initialised"
        return "down" if has_begun(current, vcpu) else "down, initialised"
    if not vcpu.blocked:
        return "running" if vcpu is current.vcpu else "runnable"
    if not vcpu.poll_ports:
        return "blocked"
    ports = ", ".join("any" if p == ANY_PORT else str(p) for p in sorted(vcpu.poll_ports))
    return f"polling port{'s' if len(vcpu.poll_ports) > 1 else ''} {ports}"


def interruptible(current: Current) -> str:
    """Whether the vcpu lets itself be interrupted, and what waits for that."""
    domain, vcpu, cpu = current.domain, current.vcpu, current.cpu
    flags_of = domain.memory.bytes[vcpu.info : vcpu.info + 2]
    pending, masked = bool(flags_of[UPCALL_PENDING]), bool(flags_of[UPCALL_MASK])
    if isinstance(vcpu.arch, PvhVcpu):
        words = "interrupts on" if cpu.rflags & IF else "interrupts off"
        vector = vcpu.arch.lapic.pending_vector()
        # The APIC of one in the CPU does not know of the last interrupt that the CPU has taken.
        taken = vcpu.runstate is RunState.RUNNING and cpu_of(current).apic_vector != vector
        waits = [] if vector is None or taken else [f"vector {vector:#x} waits"]
    else:
        words, waits = "upcalls masked" if masked else "upcalls on", []
    return ", ".join((words, *waits, *(["an event waits"] if pending else [])))


def in_kernel(current: Current) -> bool:
    """Whether the vcpu runs the guest's kernel."""
    arch = current.vcpu.arch
    if isinstance(arch, PvVcpu):  # whose kernel is at CPL 3 too
        return arch.kernel_mode
    return segment.dpl(current.cpu.segment(Seg.SS).attributes) == 0


def caller(current: Current) -> int:
    """The address that called the hypercall: where its stub returns to, or RIP if it has no stub.

    In Xen: arch/x86/pv/hypercall.c has the stubs of the hypercall page.
    """
    return _stub(current)[0]


def returned(current: Current) -> tuple[int, list[int]]:
    """RIP and the general registers; of a vcpu in a stub that pops words, those after its return.

    No unwinder knows of the words that such a stub has pushed.
    """
    rip, popped = _stub(current)
    general = list(current.cpu.regs[: len(Reg)])
    if not popped:
        return current.cpu.rip, general
    general[Reg.R11], general[Reg.RCX] = (
        int.from_bytes(popped[i : i + 8], "little") for i in (0, 8)
    )
    general[Reg.RSP] += len(popped) + current.code_width
    return rip, general


def _stub(current: Current) -> tuple[int, bytes]:
    """Where the stub that RIP is in returns to, or RIP if it is in none; and what it pops."""
    cpu, width = current.cpu, current.code_width
    try:
        code = peek(current, cpu.rip, 4)
        size = 16 if code.startswith(POPS) else 0
        stack = peek(current, cpu.regs[Reg.RSP], size + width)
    except XenError:
        return cpu.rip, b""
    found = int.from_bytes(stack[size:], "little")
    is_stub = code[3 if size else 0] in RETURNS and follows_call(found, partial(peek, current))
    return (found, stack[:size]) if is_stub else (cpu.rip, b"")


class Code:
    """A kernel's code by name; its tables are read when the first question comes.

    With `current`, the code of the kernel's loaded modules is named, too, if the kernel's memory
    tells where the modules are.
    """

    def __init__(self, image: Image, current: Current | None = None) -> None:
        self.symbols = image.symbols
        self._orc = image.orc
        self.modules: Modules | None = None
        if current is not None:
            self.modules = Modules(image, lambda: Pages(current, kernel_tables(current, image)))

    def format(self, vaddr: int, is_return: bool = False) -> str:
        """Write an address as Linux does, ``name+0x1a/0x400``, and a module's name after it.

        With `is_return` it follows a call; see `Symbols.format`.
        """
        module = self._module(vaddr - is_return)
        return (module or self.symbols).format(vaddr, is_return)

    def address(self, name: str) -> int | None:
        """The address of a name of the kernel's, or of the newest module's that has it."""
        found = self.symbols.address(name)
        if found is None and self.modules is not None:
            addresses = (module.symbols.address(name) for module in self.modules.loaded())
            found = next((address for address in addresses if address is not None), None)
        return found

    def find(self, name: str) -> int:
        """The address of a name: NoSuchName, with those that are like it."""
        found = self.address(name)
        if found is None:
            modules = self.modules.loaded() if self.modules is not None else ()
            known = chain(self.symbols, *(module.symbols for module in modules))
            raise NoSuchName(f"the image has no symbol {name}{meant(name, known)}")
        return found

    def _module(self, vaddr: int) -> Module | None:
        if self.modules is None or self.symbols.lookup(vaddr) is not None:
            return None
        return self.modules.find(vaddr)

    def unwind(self, frame: Frame, read: Read) -> Frame | Stop:
        """Find a frame's caller by the tables of the kernel, or of the module it is in."""
        module = self._module(frame.pc - frame.is_return)
        orc = module.orc if module else self._orc
        return orc.unwind(frame, read) if orc else Stop.LOST

    def backtrace(self, current: Current, read: Read | None = None) -> list[str]:
        """How the kernel came to where it is, a line per frame; `read` is of its memory."""
        if not in_kernel(current):
            return ["none: it ran a program, whose symbols are not known"]
        cpu = current.cpu
        lines = backtrace(
            self,
            self,
            cpu.rip,
            cpu.regs[Reg.RSP],
            cpu.regs[Reg.RBP],
            read or Pages(current),
            width=current.code_width,
        )
        return [str(line) for line in lines]
