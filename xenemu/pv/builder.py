"""Build a PV domain: memory, kernel, page tables, start_info, and the vcpu's first registers.

In Xen: tools/libs/guest/xg_dom_x86.c, arch/x86/pv/domain.c (pv_domain_initialise),
arch/x86/x86_64/mm.c (the machine-to-physical table).
"""

from __future__ import annotations

import struct
from array import array
from dataclasses import dataclass

from xenemu.abi.features import pv_features
from xenemu.abi.hvm.e820 import E820_RAM
from xenemu.abi.xen import (
    MAX_GUEST_CMDLINE,
    SIF_MOD_START_PFN,
    SIF_VIRT_P2M_4TOOLS,
    start_info,
)
from xenemu.errors import ImageError
from xenemu.hv.building import (
    MAX_PAGES_SLACK,
    XEN_FRAMES,
    DomainConfig,
    connect,
    make_ready,
    pages,
)
from xenemu.hv.console import Console
from xenemu.hv.cpu import Reg, Seg, Segment
from xenemu.hv.domain import DOMID, Current, Domain
from xenemu.hv.event_channel import EventChannels
from xenemu.hv.frame_table import INVALID_M2P_ENTRY
from xenemu.hv.grant_table import GrantTable
from xenemu.hv.memory import Memory
from xenemu.hv.pagetype import Frames
from xenemu.hv.scheduler import PERIODIC
from xenemu.hv.shared_info import set_upcall_mask
from xenemu.hv.vcpu import Vcpu
from xenemu.hv.xenstore import XenstoreRing
from xenemu.image import Image, PvParameters, pv_parameters
from xenemu.pv import descriptors, perdomain
from xenemu.pv.hypercall_page import hypercall_page
from xenemu.pv.layout import Layout, lay_out
from xenemu.pv.msr import fixup_guest_cr4
from xenemu.pv.paging import M2P_L4_SLOT
from xenemu.pv.state import NO_TABLE, Entry, PvDomain, PvVcpu, pv
from xenemu.pv.traps import CS64, SS64
from xenemu.x86 import flags
from xenemu.x86.paging import (
    PAGE_SHIFT,
    RW,
    US,
    A,
    D,
    Maddr,
    Mfn,
    P,
    Pfn,
)

FIRST_FRAME = 1  # frame 0 is nobody's, so that a stray zero is noticed
GUEST_ALIGNMENT = 512  # frames: the guest's memory begins at a 2 MiB boundary

TICK_NS = 10_000_000  # a new vcpu's periodic timer (pv_vcpu_initialise)
LEAF = P | RW | A
TABLE = P | RW | A | D | US
MAGIC = {8: b"xen-3.0-x86_64", 4: b"xen-3.0-x86_32p"}


@dataclass
class _Heap:
    """Hands out Xen's own frames while the machine is being made."""

    next_frame: int = FIRST_FRAME

    def take(self, count: int = 1) -> Mfn:
        first, self.next_frame = self.next_frame, self.next_frame + count
        return Mfn(first)


def build_pv64(image: Image, config: DomainConfig) -> Domain:
    """Build a 64-bit PV domain; ImageError if the image or its memory will not do."""
    width = 8
    parameters = pv_parameters(image)
    nr_pages = config.memory >> PAGE_SHIFT
    if len(config.cmdline) >= MAX_GUEST_CMDLINE:
        raise ImageError(
            f"the command line has {len(config.cmdline)} bytes; a PV guest takes at most"
            f" {MAX_GUEST_CMDLINE - 1}"
        )
    layout = lay_out(parameters, nr_pages, len(config.initrd), width, image.path)

    heap = _Heap()
    base, nr_frames = _machine_size(nr_pages, width)
    memory = Memory(nr_frames)
    frames = Frames(memory)
    shared_info = heap.take()
    private = PvDomain([], heap.take(), heap.take())
    frames.xen_slots = [
        (M2P_L4_SLOT, _build_m2p(memory, frames, heap, base, nr_pages)),
        (perdomain.PERDOMAIN_L4_SLOT, _build_perdomain(memory, heap, private, config.vcpus)),
    ]
    descriptors.fill_xen_gdt(memory.table(private.xen_gdt))
    frames.assign(Mfn(base), DOMID, nr_pages)
    frames.share_with_guest(shared_info, DOMID, writable=True)
    frames.add_to_heap(range(heap.next_frame, base))
    frames.add_to_heap(range(base + nr_pages, nr_frames))

    domain = Domain(
        width=width,
        memory=memory,
        frames=frames,
        events=EventChannels(),
        grants=GrantTable(),
        console=Console(Mfn(base + layout.console), port=0),
        xenstore=XenstoreRing(Mfn(base + layout.xenstore), port=0),
        shared_info=shared_info,
        max_pages=nr_pages + MAX_PAGES_SLACK,
        vcpus=[
            Vcpu(
                n,
                Maddr((shared_info << PAGE_SHIFT) + 64 * n),
                arch=PvVcpu(NO_TABLE),
                periodic_ns=TICK_NS,
            )
            for n in range(config.vcpus)
        ],
        name=config.name,
        features=pv_features(),
        # libxl gives a PV domain this map (XEN_DOMCTL set_memmap_limit): all of it RAM.
        e820=[(0, config.memory, E820_RAM)],
        wallclock_ns=config.wallclock_ns,
        arch=private,
    )
    _load(domain, image, parameters, layout, config, base)
    connect(domain, config)
    root = Mfn(base + layout.page_tables)
    _write_page_tables(memory, layout, base)
    frames.pin(root, DOMID, 4)
    frames.get_page_and_type(root, DOMID, 4)
    _write_start_info(domain, layout, config, base, nr_pages)
    boot = domain.vcpus[0]
    stack_top = layout.vaddr(Pfn(layout.boot_stack + 1))
    entry = Entry(parameters.virt_entry, stack_top, layout.vaddr(layout.start_info))
    boot.arch = PvVcpu(
        root, entry=entry, cr4=fixup_guest_cr4(0), kernel_ss=SS64.selector, kernel_sp=stack_top
    )
    for vcpu in domain.vcpus:
        set_upcall_mask(domain, vcpu, True)
    make_ready(domain)
    domain.timers.set((PERIODIC, boot.vcpu_id), TICK_NS)
    return domain


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


def _build_m2p(memory: Memory, frames: Frames, heap: _Heap, base: int, nr_pages: int) -> int:
    """Make the machine-to-physical table and the tables that show it; the L4 entry for them."""
    size = memory.nr_frames * 8
    m2p = heap.take(pages(size))
    frames.m2p_base = Maddr(m2p << PAGE_SHIFT)
    start = frames.m2p_base >> 3
    words = memory.words
    unused = array("Q", [INVALID_M2P_ENTRY]) * memory.nr_frames
    words[start : start + memory.nr_frames] = memoryview(unused)
    words[start + base : start + base + nr_pages] = memoryview(array("Q", range(nr_pages)))
    l3, l2 = heap.take(), heap.take()
    memory.table(l3)[0] = l2 << PAGE_SHIFT | TABLE
    for n in range(pages(size)):
        slot, index = divmod(n, 512)
        if not index:
            l1 = heap.take()
            memory.table(l2)[slot] = l1 << PAGE_SHIFT | TABLE
        memory.table(l1)[index] = m2p + n << PAGE_SHIFT | P | US | A  # read-only to the guest
    return l3 << PAGE_SHIFT | TABLE


def _build_perdomain(memory: Memory, heap: _Heap, private: PvDomain, vcpus: int) -> int:
    """Make the area for each vcpu's descriptor tables; the L4 entry for it."""
    l3, l2 = heap.take(), heap.take()
    table = TABLE & ~US  # for Xen, and the CPU's own descriptor reads
    memory.table(l3)[0] = l2 << PAGE_SHIFT | table
    for n in range(-(-vcpus // perdomain.VCPUS_PER_L1)):
        l1 = heap.take()
        private.perdomain_l1.append(l1)
        memory.table(l2)[n] = l1 << PAGE_SHIFT | table
    return l3 << PAGE_SHIFT | table


def _load(
    domain: Domain,
    image: Image,
    parameters: PvParameters,
    layout: Layout,
    config: DomainConfig,
    base: int,
) -> None:
    """Copy the kernel, its hypercall page, the initrd and the p2m list into the domain."""
    memory, start = domain.memory, base << PAGE_SHIFT
    for segment in image.segments:
        offset = segment.paddr - parameters.elf_paddr_offset
        memory.write(Maddr(start + offset), segment.data)
    if parameters.virt_hypercall is not None:
        offset = parameters.virt_hypercall - parameters.virt_base
        memory.write(Maddr(start + offset), hypercall_page(domain.width))
    memory.write(Maddr(start + (layout.initrd << PAGE_SHIFT)), config.initrd)
    nr_pages = domain.frames.tot_pages[DOMID]
    p2m = array({8: "Q", 4: "I"}[domain.width], range(base, base + nr_pages))
    memory.write(Maddr(start + (layout.p2m << PAGE_SHIFT)), memoryview(p2m).cast("B"))


def _write_page_tables(memory: Memory, layout: Layout, base: int) -> None:
    """Write the initial tables; pages that are tables are mapped read-only."""
    tables = layout.tables
    for (level, covered), pfn in tables.pfns.items():
        if level < tables.root_level:
            parent = tables.pfns[level + 1, covered >> 9 if level + 1 < tables.root_level else 0]
            memory.table(Mfn(base + parent))[covered & 511] = base + pfn << PAGE_SHIFT | TABLE
    table_pfns = set(tables.pfns.values())
    for vaddr, count, first in tables.ranges:
        for n in range(count):
            page, target = (vaddr >> PAGE_SHIFT) + n, first + n
            covered = (page & (1 << 36) - 1) >> 9
            leaf = LEAF & ~RW if target in table_pfns else LEAF
            l1 = tables.pfns[1, covered]
            memory.words[base + l1 << 9 | page & 511] = base + target << PAGE_SHIFT | leaf


def _write_start_info(
    domain: Domain, layout: Layout, config: DomainConfig, base: int, nr_pages: int
) -> None:
    initrd_pages = pages(len(config.initrd))
    flags_ = SIF_VIRT_P2M_4TOOLS
    mod_start: int = 0
    if initrd_pages and layout.initrd_mapped:
        mod_start = layout.vaddr(layout.initrd)
    elif initrd_pages:
        flags_ |= SIF_MOD_START_PFN
        mod_start = layout.initrd
    apart = layout.p2m_vaddr != layout.vaddr(layout.p2m)
    info = start_info(
        magic=MAGIC[domain.width],
        nr_pages=nr_pages,
        shared_info=domain.shared_info_maddr,
        flags=flags_,
        store_mfn=domain.xenstore.mfn,
        store_evtchn=domain.xenstore.port,
        console=struct.pack(
            {8: "<QI4x", 4: "<II"}[domain.width], domain.console.mfn, domain.console.port
        ),
        pt_base=layout.vaddr(layout.page_tables),
        nr_pt_frames=layout.nr_page_tables,
        mfn_list=layout.p2m_vaddr,
        mod_start=mod_start,
        mod_len=initrd_pages << PAGE_SHIFT,
        cmd_line=config.cmdline,
        first_p2m_pfn=layout.p2m if apart else 0,
        nr_p2m_frames=layout.p2m_pages if apart else 0,
    )
    where = Maddr(base + layout.start_info << PAGE_SHIFT)
    domain.memory.write(where, info.pack(domain.width))


def start_vcpu(current: Current) -> None:
    """Load the first registers of a 64-bit guest (xg_dom_x86.c, vcpu_x86_64)."""
    state, cpu = pv(current), current.cpu
    entry = state.entry
    assert entry is not None
    for register in range(16):
        cpu.regs[register] = 0
    cpu.rip, cpu.regs[Reg.RSP], cpu.regs[Reg.RSI] = entry.rip, entry.rsp, entry.rsi
    cpu.rflags = flags.IF | flags.FIXED
    for which in (Seg.DS, Seg.ES, Seg.FS, Seg.GS):
        cpu.set_segment(which, Segment(0))
    cpu.set_segment(Seg.SS, SS64)
    cpu.set_segment(Seg.CS, CS64)
    descriptors.map_initial_gdt(current)
    descriptors.load_gdt_register(current)
    descriptors.load_ldt_register(current)
    cpu.set_debug_register(6, state.dr6)
    cpu.set_debug_register(7, state.dr7)
