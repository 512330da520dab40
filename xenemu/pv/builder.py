"""Build a PV domain, Xen's own tables and the domain's frames; a boot entry fills these.

In Xen: arch/x86/pv/domain.c (pv_domain_initialise),
arch/x86/x86_64/mm.c (the machine-to-physical table).
"""

from __future__ import annotations

from array import array
from collections.abc import Callable

from xenemu.abi.arch_x86.xen import FLAT_RING1_SS
from xenemu.abi.features import pv_features
from xenemu.abi.hvm.e820 import E820_RAM
from xenemu.abi.xen import XEN_LEGACY_MAX_VCPUS
from xenemu.errors import UsageError
from xenemu.hv.building import (
    MAX_PAGES_SLACK,
    XEN_FRAMES,
    DomainConfig,
    give_rings,
    make_ready,
    pages,
    vcpu_info_at,
)
from xenemu.hv.frame_table import INVALID_M2P_ENTRY
from xenemu.hv.memory import Memory
from xenemu.hv.pagetype import PV32, PV64, Frames
from xenemu.hv.paging_rules import M2P_L4_SLOT
from xenemu.hv.scheduler import PERIODIC
from xenemu.hv.shared_info import set_upcall_mask
from xenemu.hv.state.domain import Domain, Ring
from xenemu.hv.state.events import EventChannels
from xenemu.hv.state.grants import GrantTable
from xenemu.hv.state.vcpu import Vcpu
from xenemu.pv import descriptors, perdomain
from xenemu.pv.msr import fixup_guest_cr4
from xenemu.pv.paging import show_m2p
from xenemu.pv.state import NO_TABLE, PvDomain, PvVcpu, StartState
from xenemu.pv.traps import SS64
from xenemu.records import dataclass
from xenemu.x86.paging import ENTRIES, PAGE_SHIFT, RW, US, A, D, Maddr, Mfn, P, Pfn

FIRST_FRAME = 1  # frame 0 is nobody's, so that a stray zero is noticed
GUEST_ALIGNMENT = 512  # frames: the guest's memory begins at a 2 MiB boundary

# DIVERGES: Xen has no such limit. What is mapped for each vcpu lies below 4 GiB here (perdomain).
MAX_VCPUS32 = (ENTRIES - perdomain.PERDOMAIN_L2_SLOT) * perdomain.VCPUS_PER_L1

TICK_NS = 10_000_000  # a new vcpu's periodic timer (pv_vcpu_initialise)
TABLE = P | RW | A | D | US
KERNEL_SS = {8: SS64.selector, 4: FLAT_RING1_SS}


@dataclass
class _Heap:
    """Hands out Xen's own frames while the machine is being made."""

    next_frame: int = FIRST_FRAME

    def take(self, count: int = 1) -> Mfn:
        first, self.next_frame = self.next_frame, self.next_frame + count
        return Mfn(first)


@dataclass(frozen=True)
class Placed:
    """What a boot entry puts into a PV domain, by pfn, and how vcpu 0 begins.

    `write` puts it there: it is given the domain, which has its rings, and its first frame.
    """

    console: Pfn
    xenstore: Pfn
    root: Pfn  # the top page table
    entry: StartState
    vm_assist: int  # what is on from the start
    write: Callable[[Domain, int], None]


def make_room(config: DomainConfig, kernel: object) -> int:
    """How many pages a PV domain has for what an entry puts into it."""
    return config.memory >> PAGE_SHIFT


def build(width: int, config: DomainConfig, nr_pages: int, placed: Placed) -> Domain:
    """Build a PV domain of a width in bytes, with what an entry puts into it."""
    domain, base = make_domain(width, config, nr_pages, placed.console, placed.xenstore)
    frames = domain.frames
    give_rings(domain)
    placed.write(domain, base)
    root = Mfn(base + placed.root)
    frames.pin(root, config.domid, frames.rules.root_type)
    frames.get_page_and_type(root, config.domid, frames.rules.root_type)
    if width == 8:
        show_m2p(domain, root)
    boot = domain.vcpus[0]
    boot.arch = PvVcpu(
        root,
        entry=placed.entry,
        cr4=fixup_guest_cr4(0),
        kernel_ss=KERNEL_SS[width],
        kernel_sp=placed.entry.rsp,
    )
    domain.vm_assist |= placed.vm_assist
    for vcpu in domain.vcpus:
        set_upcall_mask(domain, vcpu, True)
    make_ready(domain)
    domain.timers.set((PERIODIC, boot.vcpu_id), TICK_NS)
    return domain


def make_domain(
    width: int, config: DomainConfig, nr_pages: int, console: Pfn, xenstore: Pfn
) -> tuple[Domain, int]:
    """Make the machine, with a domain whose frames are still empty; its first frame."""
    heap = _Heap()
    base, nr_frames = _machine_size(max(nr_pages, config.most_memory >> PAGE_SHIFT), width)
    memory = Memory(nr_frames)
    frames = Frames(memory, PV64 if width == 8 else PV32)
    if width == 4 and config.all_vcpus > MAX_VCPUS32:
        raise UsageError(
            f"a 32-bit PV domain has at most {MAX_VCPUS32} vcpus, not {config.all_vcpus}"
        )
    shared_info = heap.take()
    private = PvDomain([], heap.take(), heap.take())
    dummy_vcpu_info = heap.take() if config.all_vcpus > XEN_LEGACY_MAX_VCPUS else NO_TABLE
    m2p = _build_m2p(frames, heap, base, nr_pages)
    frames.xen_slots = (_xen_slots64 if width == 8 else _xen_slots32)(
        memory, heap, m2p, private, config.all_vcpus
    )
    descriptors.fill_xen_gdt(memory.table(private.xen_gdt), width)
    frames.assign(Mfn(base), config.domid, nr_pages)
    frames.share_with_guest(shared_info, config.domid, writable=True)
    frames.add_to_heap(range(heap.next_frame, base))
    frames.add_to_heap(range(base + nr_pages, nr_frames))

    domain = Domain(
        width=width,
        memory=memory,
        frames=frames,
        events=EventChannels(),
        grants=GrantTable(),
        console=Ring(Mfn(base + console)),
        xenstore=Ring(Mfn(base + xenstore)),
        shared_info=shared_info,
        max_pages=nr_pages + MAX_PAGES_SLACK,
        vcpus=[
            Vcpu(
                n,
                vcpu_info_at(n, shared_info, dummy_vcpu_info),
                width,
                f"pv{8 * width}",
                arch=PvVcpu(NO_TABLE),
                periodic_ns=TICK_NS,
            )
            for n in range(config.all_vcpus)
        ],
        domid=config.domid,
        name=config.name,
        uuid=config.uuid,
        features=pv_features(),
        # libxl gives a PV domain this map (XEN_DOMCTL set_memmap_limit): all of it RAM.
        e820=[(0, config.most_memory, E820_RAM)],
        wallclock_ns=config.wallclock_ns,
        debug_xen=config.debug_xen,
        arch=private,
    )
    return domain, base


def _machine_size(nr_pages: int, width: int) -> tuple[int, int]:
    """The guest's first frame, and how many frames the machine has."""
    nr_frames = nr_pages
    base = 0
    while True:  # the tables that describe all frames are among them
        m2p = pages(nr_frames * width)
        xen = FIRST_FRAME + XEN_FRAMES + m2p + pages(m2p * width) + 2
        new_base = -(-xen // GUEST_ALIGNMENT) * GUEST_ALIGNMENT
        if new_base == base:
            return base, nr_frames
        base, nr_frames = new_base, new_base + nr_pages + MAX_PAGES_SLACK


def _build_m2p(frames: Frames, heap: _Heap, base: int, nr_pages: int) -> list[Mfn]:
    """Make the machine-to-physical table; the L1 tables that show it, for 2 MiB each."""
    memory, width = frames.memory, frames.rules.width
    m2p = heap.take(pages(memory.nr_frames * width))
    frames.m2p_base, frames.m2p_width = Maddr(m2p << PAGE_SHIFT), width
    code = {8: "Q", 4: "I"}[width]
    table = array(code, [INVALID_M2P_ENTRY & (1 << 8 * width) - 1]) * memory.nr_frames
    table[base : base + nr_pages] = array(code, range(nr_pages))
    memory.write(frames.m2p_base, memoryview(table).cast("B"))
    tables = []
    for n in range(pages(memory.nr_frames * width)):
        if not n % 512:
            tables.append(heap.take())
        entry = m2p + n << PAGE_SHIFT | P | US | A  # read-only to the guest
        memory.table(tables[-1])[n % 512] = entry
    return tables


def _perdomain_tables(heap: _Heap, private: PvDomain, vcpus: int) -> list[Mfn]:
    """Take the L1 tables of the area for each vcpu's descriptor tables."""
    private.perdomain_l1 += [heap.take() for _ in range(-(-vcpus // perdomain.VCPUS_PER_L1))]
    return private.perdomain_l1


def _xen_slots64(
    memory: Memory, heap: _Heap, m2p: list[Mfn], private: PvDomain, vcpus: int
) -> list[tuple[int, int]]:
    """The entries of every L4 table that are Xen's, with what is below them."""

    def chain(tables: list[Mfn], bits: int) -> int:
        l3, l2 = heap.take(), heap.take()
        memory.table(l3)[0] = l2 << PAGE_SHIFT | bits
        for n, l1 in enumerate(tables):
            memory.table(l2)[n] = l1 << PAGE_SHIFT | bits
        return l3 << PAGE_SHIFT | bits

    descriptor_tables = _perdomain_tables(heap, private, vcpus)
    return [
        (M2P_L4_SLOT, chain(m2p, TABLE)),
        # For Xen, and the CPU's own descriptor reads.
        (perdomain.PERDOMAIN_L4_SLOT, chain(descriptor_tables, TABLE & ~US)),
    ]


def _xen_slots32(
    memory: Memory, heap: _Heap, m2p: list[Mfn], private: PvDomain, vcpus: int
) -> list[tuple[int, int]]:
    """The entries of every last L2 table that are Xen's."""
    places = list(zip(PV32.xen_slots, m2p, strict=False))
    descriptor_tables = _perdomain_tables(heap, private, vcpus)
    places += list(enumerate(descriptor_tables, perdomain.PERDOMAIN_L2_SLOT))
    return [(slot, l1 << PAGE_SHIFT | TABLE & ~US) for slot, l1 in places]
