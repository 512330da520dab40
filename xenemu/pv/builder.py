"""Build a PV domain: memory, kernel, page tables, start_info, and the vcpu's first registers.

In Xen: tools/libs/guest/xg_dom_x86.c, arch/x86/pv/domain.c (pv_domain_initialise),
arch/x86/x86_64/mm.c (the machine-to-physical table).
"""

from __future__ import annotations

import struct
from array import array
from dataclasses import dataclass, replace

from xenemu.abi.arch_x86.xen import FLAT_RING1_CS, FLAT_RING1_DS, FLAT_RING1_SS
from xenemu.abi.features import pv_features
from xenemu.abi.hvm.e820 import E820_RAM
from xenemu.abi.xen import (
    MAX_GUEST_CMDLINE,
    SIF_MOD_START_PFN,
    SIF_VIRT_P2M_4TOOLS,
    VMASST_TYPE_pae_extended_cr3,
    start_info,
)
from xenemu.errors import ImageError, UsageError
from xenemu.hv.building import (
    MAX_PAGES_SLACK,
    XEN_FRAMES,
    DomainConfig,
    give_rings,
    make_ready,
    pages,
    unpack_module,
)
from xenemu.hv.cpu import Reg, Seg, Segment
from xenemu.hv.domain import DOMID, Current, Domain, Ring
from xenemu.hv.event_channel import EventChannels
from xenemu.hv.frame_table import INVALID_M2P_ENTRY
from xenemu.hv.grant_table import GrantTable
from xenemu.hv.memory import Memory
from xenemu.hv.pagetype import PV32, PV64, Frames
from xenemu.hv.paging_rules import M2P_L4_SLOT
from xenemu.hv.scheduler import PERIODIC
from xenemu.hv.shared_info import set_upcall_mask
from xenemu.hv.vcpu import Vcpu
from xenemu.image import Image, PvParameters, pv_parameters
from xenemu.pv import descriptors, perdomain
from xenemu.pv.hypercall_page import hypercall_page
from xenemu.pv.layout import Layout, lay_out
from xenemu.pv.msr import fixup_guest_cr4
from xenemu.pv.paging import show_m2p
from xenemu.pv.state import NO_TABLE, Entry, PvDomain, PvVcpu, pv
from xenemu.pv.traps import CS64, SS64, WORD
from xenemu.x86 import flags, segment
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
KERNEL_SS = {8: SS64.selector, 4: FLAT_RING1_SS}
CODE32 = Segment(FLAT_RING1_CS, 0, 0xFFFFFFFF, segment.CODE32_RING1)
DATA32 = Segment(FLAT_RING1_DS, 0, 0xFFFFFFFF, segment.DATA_RING1)
MAGIC = {8: b"xen-3.0-x86_64", 4: b"xen-3.0-x86_32p"}


@dataclass
class _Heap:
    """Hands out Xen's own frames while the machine is being made."""

    next_frame: int = FIRST_FRAME

    def take(self, count: int = 1) -> Mfn:
        first, self.next_frame = self.next_frame, self.next_frame + count
        return Mfn(first)


def build_pv(image: Image, config: DomainConfig) -> Domain:
    """Build a PV domain of the image's width; ImageError if it or its memory will not do."""
    if config.modules:
        raise UsageError("a PV guest takes one module, its --initrd; only a PVH guest takes more")
    config = replace(config, initrd=unpack_module(config.initrd))
    width = image.elf_class // 8
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
    frames = Frames(memory, PV64 if width == 8 else PV32)
    shared_info = heap.take()
    private = PvDomain([], heap.take(), heap.take())
    m2p = _build_m2p(frames, heap, base, nr_pages)
    frames.xen_slots = (_xen_slots64 if width == 8 else _xen_slots32)(
        memory, heap, m2p, private, config.vcpus
    )
    descriptors.fill_xen_gdt(memory.table(private.xen_gdt), width)
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
        console=Ring(Mfn(base + layout.console)),
        xenstore=Ring(Mfn(base + layout.xenstore)),
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
        debug_xen=config.debug_xen,
        arch=private,
    )
    _load(domain, image, parameters, layout, config, base)
    give_rings(domain)
    root = Mfn(base + layout.page_tables)
    _write_page_tables(memory, layout, base)
    frames.pin(root, DOMID, frames.rules.root_type)
    frames.get_page_and_type(root, DOMID, frames.rules.root_type)
    if width == 8:
        show_m2p(domain, root)
    _write_start_info(domain, layout, config, base, nr_pages)
    boot = domain.vcpus[0]
    stack_top = layout.vaddr(Pfn(layout.boot_stack + 1))
    entry = Entry(parameters.virt_entry, stack_top, layout.vaddr(layout.start_info))
    boot.arch = PvVcpu(
        root, entry=entry, cr4=fixup_guest_cr4(0), kernel_ss=KERNEL_SS[width], kernel_sp=stack_top
    )
    if width == 4 and image.notes.extended_cr3:
        domain.vm_assist |= 1 << VMASST_TYPE_pae_extended_cr3
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
    for paddr, data in image.contents():
        offset = (paddr + parameters.virt_offset & WORD) - parameters.virt_base
        memory.write(Maddr(start + offset), data)
    if parameters.virt_hypercall is not None:
        offset = parameters.virt_hypercall - parameters.virt_base
        memory.write(Maddr(start + offset), hypercall_page(domain.width))
    memory.write(Maddr(start + (layout.initrd << PAGE_SHIFT)), config.initrd)
    nr_pages = domain.pages.tot_pages
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
    """Load the first registers (xg_dom_x86.c, vcpu_x86_64 and vcpu_x86_32)."""
    state, cpu = pv(current), current.cpu
    entry = state.entry
    assert entry is not None
    for register in range(16):
        cpu.regs[register] = 0
    cpu.rip, cpu.regs[Reg.RSP], cpu.regs[Reg.RSI] = entry.rip, entry.rsp, entry.rsi
    cpu.rflags = flags.IF | flags.FIXED
    wide = current.domain.width == 8
    for which in (Seg.DS, Seg.ES, Seg.FS, Seg.GS):
        cpu.set_segment(which, Segment(0) if wide else DATA32)
    cpu.set_segment(Seg.SS, SS64 if wide else DATA32)
    cpu.set_segment(Seg.CS, CS64 if wide else CODE32)
    descriptors.map_initial_gdt(current)
    descriptors.load_gdt_register(current)
    descriptors.load_ldt_register(current)
    cpu.set_debug_register(6, state.dr6)
    cpu.set_debug_register(7, state.dr7)
