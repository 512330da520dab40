"""Random values that mean something: frames, entries, addresses, ports, and what is next to them.

All of them are drawn from a `random.Random`, and from the domain as it is at the time. So a seed
always gives the same steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random
from typing import Any

from fuzz.world import MASK64, World
from xenemu.abi.xen import DOMID_IO, DOMID_SELF, DOMID_XEN
from xenemu.hv.frame_table import LEVELS
from xenemu.pv.state import PvDomain, PvVcpu
from xenemu.x86.paging import NX, PAGE_SHIFT, PAT, PCD, PSE, PWT, RW, US, A, D, G, P

SURVEY_EVERY = 32  # steps between two looks at which frames are tables
EDGES = (0, 1, 2, 3, 7, 8, 15, 16, 31, 63, 64, 127, 255, 256, 511, 512, 1023, 1024, 4095, 4096)
BITS = (16, 31, 32, 33, 47, 48, 51, 52, 62, 63, 64)
ENTRY_BITS = (
    P | RW | US, P | RW | US, P | RW | US, P | US, P | US, P | RW, P, 0, P | RW | US | A | D,
    P | US | NX, P | RW | US | PSE, P | RW | US | PCD, P | US | PWT, P | US | G, P | RW | US | PAT,
    P | RW | US | 1 << 52, P | US | 0xE00, P | RW | US | 1 << 62,
)  # fmt: skip
# Descriptors: flat code and data of rings 3, 1 and 0, LDT, TSS, gates, absent.
DESCRIPTORS = (
    0x00CFFB000000FFFF, 0x00CFF3000000FFFF, 0x00AFFB000000FFFF, 0x00CFBB000000FFFF,
    0x00CFB3000000FFFF, 0x00CF9B000000FFFF, 0x00CF93000000FFFF, 0x00008200000000FF,
    0x00008B0000000067, 0x0000EC00E0080000, 0x00CF73000000FFFF, 0,
)  # fmt: skip
NAMED: tuple[tuple[str, str], ...] = (  # part of a field's name: the method that makes its value
    ("cpumap", "pointer"), ("host_addr", "address"), ("new_addr", "address"),
    ("frame_list", "pointer"), ("pfn_list", "pointer"), ("access_list", "pointer"),
    ("bus_addr", "machine_address"), ("extent_start", "frame_list"), ("extent_order", "order"),
    ("mfn", "frame"), ("gfn", "frame"), ("pfn", "frame"), ("idx", "frame"), ("frame", "frame"),
    ("dom", "domid"), ("port", "port"), ("vcpu", "tiny"), ("virq", "tiny"), ("ref", "ref"),
    ("handle", "tiny"), ("order", "order"), ("version", "tiny"), ("flags", "bits"),
    ("offset", "offset"), ("len", "offset"), ("space", "tiny"), ("index", "index"),
    ("priority", "tiny"), ("type", "tiny"), ("op", "tiny"), ("cmd", "tiny"), ("reason", "tiny"),
    ("addr", "pointer"), ("buffer", "pointer"), ("bitmap", "pointer"), ("control", "frame"),
    ("source_u", "frame_or_ref"), ("dest_u", "frame_or_ref"), ("timeout", "when"), ("ns", "when"),
    ("nr", "count"), ("count", "count"), ("size", "count"), ("max", "count"), ("pad", "zero"),
)  # fmt: skip


class Values:
    """Draws values for a world. `data` gathers what a step is to have in memory."""

    def __init__(self, random: Random, world: World) -> None:
        self.random = random
        self.world = world
        self.wide = world.environment.endswith("64")
        self.width = 8 if self.wide else 4
        self.mask = MASK64 if self.wide else 0xFFFFFFFF
        self.data: list[list[Any]] = []
        self._room = 0
        self._age = 0
        self._survey()

    def begin(self) -> None:
        """Begin a step."""
        self.data = []
        self._room = self.random.randrange(self.world.arena_pages) << PAGE_SHIFT
        self._age += 1
        if self._age >= SURVEY_EVERY:
            self._survey()

    def _survey(self) -> None:
        """Look at which frames are interesting."""
        self._age = 0
        domain = self.world.current.domain
        frames = domain.frames
        groups: list[Sequence[int]] = [
            self._find_tables(),
            [domain.shared_info, domain.console.mfn, domain.xenstore.mfn, *domain.grants.frames],
            [self.frame_at(self.world.arena + (n << PAGE_SHIFT)) for n in range(4)],
            list(frames.heap)[-8:],
            [0, 1, frames.memory.nr_frames - 1, frames.memory.nr_frames],
        ]
        if domain.events.fifo is not None:
            groups.append(domain.events.fifo.array)
        if isinstance(domain.arch, PvDomain):
            groups.append([*domain.arch.perdomain_l1, domain.arch.xen_gdt, domain.arch.zero_page])
            state = domain.vcpus[0].arch
            assert isinstance(state, PvVcpu)
            roots = [state.kernel_root, state.user_root]
            groups += [roots, state.gdt_frames, list(state.ldt_frames.values())]
            self.tables = groups[0]
        else:
            assert domain.p2m is not None
            groups.append([*domain.p2m.elsewhere, 0xFEE00, 0xFEFFC, 0x80000])
            self.tables = [self.world.arena >> PAGE_SHIFT]
        self._groups = [group for group in groups if group]
        self._all_frames = range(frames.memory.nr_frames)

    def frame_at(self, vaddr: int) -> int:
        try:
            return self.world.current.translate(self.world.current, vaddr, False) >> PAGE_SHIFT
        except Exception:
            return 0

    def own_frame(self, vaddr: int) -> int:
        """The frame at an address, by the number that the guest has for it."""
        return self.frame_at(vaddr) if self.world.current.domain.p2m is None else vaddr >> 12

    def _find_tables(self) -> list[int]:
        """The frames that are page tables; a PVH guest's are its own affair."""
        if self.world.current.domain.p2m is not None:
            return []
        used_as = self.world.current.domain.frames.type
        return [mfn for mfn, kind in enumerate(used_as) if kind in LEVELS]

    # Numbers.

    def word(self) -> int:
        """Any number of the guest's width, mostly near an edge."""
        random = self.random
        kind = random.randrange(6)
        if kind == 0:
            value = random.choice(EDGES)
        elif kind == 1:
            value = (1 << random.choice(BITS)) - random.randrange(-2, 3)
        elif kind == 2:
            value = -random.randrange(1, 40)
        elif kind == 3:
            value = random.getrandbits(64)
        else:
            value = random.randrange(16)
        return value & self.mask

    def rarely(self) -> bool:
        return self.random.random() < 0.05

    def tiny(self) -> int:
        return self.word() if self.rarely() else self.random.randrange(12)

    def index(self) -> int:
        return self.word() if self.rarely() else self.random.randrange(40)

    def count(self) -> int:
        random = self.random
        if random.random() < 0.9:
            return random.choice((0, 1, 1, 1, 2, 3, 5))
        return self.word()

    def order(self) -> int:
        return self.word() if self.rarely() else self.random.choice((0, 0, 0, 1, 2, 9))

    def offset(self) -> int:
        random = self.random
        return self.word() if self.rarely() else random.choice((0, 8, 64, 4032, 4088, 4095, 4096))

    def bits(self) -> int:
        random = self.random
        return self.word() if self.rarely() else random.getrandbits(6) & random.getrandbits(6)

    def zero(self) -> int:
        return self.word() if self.rarely() else 0

    def when(self) -> int:
        """A time."""
        random = self.random
        now = self.world.current.cpu.now_ns
        near = now + random.choice((0, 1000, 10**6, 10**7, 10**9))
        return near if random.random() < 0.6 else self.word()

    # What a domain is made of.

    def frame(self) -> int:
        """A frame number: a machine's for a PV guest, its own for a PVH guest."""
        random = self.random
        kind = random.random()
        if kind < 0.25:
            return self.frame_at(self.random.choice((self.world.arena, self.address())))
        if kind < 0.75:
            return random.choice(random.choice(self._groups))
        if kind < 0.92:
            return random.choice(self._all_frames)
        return self.word()

    def ref(self) -> int:
        return self.word() if self.rarely() else self.random.randrange(26)

    def frame_or_ref(self) -> int:
        return self.frame() if self.random.random() < 0.5 else self.ref()

    def domid(self) -> int:
        random = self.random
        if random.random() < 0.8:
            return DOMID_SELF
        return random.choice((1, 1, 0, 2, DOMID_IO, DOMID_XEN, 0xFFFF, self.word()))

    def port(self) -> int:
        random = self.random
        if random.random() < 0.9:
            return random.randrange(12)
        return random.choice((32, 33, 63, 64, 1023, 1024, 4095, 131071, 131072, self.word()))

    def entry(self) -> int:
        """A page-table entry."""
        random = self.random
        if self.rarely():
            return random.getrandbits(64)
        return (self.frame() << PAGE_SHIFT | random.choice(ENTRY_BITS)) & MASK64

    def descriptor(self) -> int:
        random = self.random
        return random.getrandbits(64) if self.rarely() else random.choice(DESCRIPTORS)

    def machine_address(self) -> int:
        """A machine address, mostly of a page-table entry."""
        random = self.random
        mfn = random.choice(self.tables) if self.tables and random.random() < 0.6 else self.frame()
        index = random.choice((0, 1, 2, 3, 255, 256, 257, 260, 271, 272, 509, 510, 511))
        if random.random() < 0.5:
            index = random.randrange(512)
        low = random.randrange(8) if self.rarely() else 0
        return (mfn << PAGE_SHIFT | index << 3 | low) & MASK64

    def address(self) -> int:
        """A guest virtual address: of the arena, most of the time."""
        random, world = self.random, self.world
        kind = random.random()
        if kind < 0.6:
            page = random.randrange(world.arena_pages + 6)
            return world.arena + (page << PAGE_SHIFT) + random.choice((0, 0, 8, 64, 2048, 4088))
        if kind < 0.75:
            return random.choice([*world.windows.values()]) + random.choice((0, 8, 64, 4080))
        if kind < 0.85:
            return world.code + random.randrange(-0x10000, 0x400000, 8) & self.mask
        return random.choice(
            (
                0,
                0xFFFF800000000000 & self.mask,  # Xen's
                0xFFFF820000000000 & self.mask,
                0xF5800000,
                0xFFC00000,
                0xFFFFF000,
                0x0000800000000000 & self.mask,  # not canonical
                0x00007FFFFFFFF000 & self.mask,
                0xFFFF87FFFFFFFFF8 & self.mask,
                self.mask - 7,
                self.mask & ~0xFFF,
                self.word(),
            )
        )

    # Memory of the step's.

    def put(self, data: bytes) -> int:
        """Have bytes in the guest's memory; return a pointer to them, or now and then a bad one."""
        random = self.random
        if random.random() < 0.04:
            return self.address()
        at = self.world.arena + self._room
        if random.random() < 0.05:  # to the end of a page, or over it
            at += 4096 - random.randrange(len(data) + 9) if len(data) < 4096 else 0
        elif random.random() < 0.02:
            at = random.choice([*self.world.windows.values()]) + random.randrange(0, 4096, 8)
        self._room = (self._room + (len(data) + 15 & -16)) % (self.world.arena_pages << PAGE_SHIFT)
        self.data.append([at & self.mask, data.hex()])
        return at & self.mask

    def words(self, values: Sequence[int], width: int = 0) -> int:
        """A pointer to an array."""
        width = width or self.width
        keep = (1 << 8 * width) - 1
        return self.put(b"".join((value & keep).to_bytes(width, "little") for value in values))

    def pointer(self) -> int:
        """A pointer to something of no particular kind."""
        random = self.random
        kind = random.randrange(4)
        if kind == 0:
            return self.address()
        make: Callable[[], int] = random.choice((self.frame, self.port, self.word, self.tiny))
        return self.words([make() for _ in range(random.randrange(1, 6))])

    def frame_list(self) -> int:
        """A pointer to frame numbers."""
        count = self.random.choice((1, 2, 4, 8))
        return self.words([self.frame() for _ in range(count)])

    def named(self, name: str) -> int:
        """A value for a field or an argument of this name."""
        for part, method in NAMED:
            if part in name:
                value: int = getattr(self, method)()
                return value
        return self.word()
