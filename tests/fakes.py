"""Stand-ins for the engine, so that the hypervisor is tested without one."""

from __future__ import annotations

from collections.abc import MutableSequence
from dataclasses import dataclass, field

from xenemu.abi.errno import EFAULT
from xenemu.abi.features import pvh_features
from xenemu.cpu.context import Context, Interrupts
from xenemu.dom0.console import Console
from xenemu.dom0.toolstack import create
from xenemu.dom0.xenstore import XenstoreRing
from xenemu.dom0.xenstore_tree import Store
from xenemu.errors import XenError
from xenemu.hv import event_channel
from xenemu.hv.building import DomainConfig
from xenemu.hv.cpu import Delivered, Event, Lane, Seg, Segment, Undefined
from xenemu.hv.current import Current
from xenemu.hv.memory import Memory
from xenemu.hv.observe import mod_entry
from xenemu.hv.p2m import P2m
from xenemu.hv.pagetype import Frames, PGT_l4_page_table
from xenemu.hv.state.domain import DOM0, Domain, Ring
from xenemu.hv.state.events import EventChannels
from xenemu.hv.state.grants import GrantTable
from xenemu.hv.state.vcpu import Vcpu
from xenemu.pv.descriptors import fill_xen_gdt, map_initial_gdt
from xenemu.pv.paging import translate
from xenemu.pv.state import PvDomain, PvVcpu
from xenemu.pv.traps import CS64, SS64
from xenemu.pvh.acpi import apic_id
from xenemu.pvh.lapic import Lapic
from xenemu.pvh.paging import EFER_LMA
from xenemu.pvh.paging import translate as guest_tables
from xenemu.pvh.personality import CODE32, DATA32
from xenemu.pvh.state import PvhDomain, PvhVcpu
from xenemu.x86.flags import VM
from xenemu.x86.msr import KERNEL_GS_BASE
from xenemu.x86.paging import RW, US, Maddr, Mfn, P
from xenemu.x86.segment import L, dpl

DOMID = 1  # of the domains that are made here
SHARED_INFO = Mfn(1)
CONSOLE_RING = Mfn(2)
XENSTORE_RING = Mfn(3)
FIRST_GUEST_FRAME = 16


@dataclass
class FakeCpu:
    """A CPU of plain attributes that remembers what it was asked."""

    regs: MutableSequence[int] = field(default_factory=lambda: [0] * 16)
    rip: int = 0x1000
    rflags: int = 0x202
    cr0: int = 0x80050033
    cr2: int = 0
    cr3: int = 0
    now_ns: int = 0
    segments: dict[Seg, Segment] = field(default_factory=dict)
    task_switched: bool = False
    tsc_disabled: bool = False
    fsgsbase: bool = False
    tsc_aux: int = 0
    last_undefined: Undefined | None = None
    debug_registers: list[int] = field(default_factory=lambda: [0] * 8)
    flushes: int = 0
    page_flushes: list[int] = field(default_factory=list)
    left_by_iret: bool = False
    fpu: bytes = b""
    stopped: bool = False
    limit_ns: int | None = None
    spent_ns: int = 0
    pauses: int = 0
    lane: Lane | None = None
    lane_open: bool = False

    def came_from(self) -> int:
        return 0

    def segment(self, which: Seg) -> Segment:
        return self.segments.get(which, Segment(0))

    def selector(self, which: Seg) -> int:
        return self.segment(which).selector

    @property
    def code64(self) -> bool:
        return bool(self.segment(Seg.CS).attributes & L)

    def set_segment(self, which: Seg, value: Segment) -> None:
        self.segments[which] = value

    def set_task_switched(self, value: bool) -> None:
        self.task_switched = value

    def set_tsc_disabled(self, value: bool) -> None:
        self.tsc_disabled = value

    def set_fsgsbase(self, value: bool) -> None:
        self.fsgsbase = value

    def undefined(self) -> Undefined | None:
        return self.last_undefined

    def set_tsc_aux(self, value: int) -> None:
        self.tsc_aux = value

    def set_fpu(self, area: bytes) -> None:
        self.fpu = area

    def debug_register(self, index: int) -> int:
        return self.debug_registers[index]

    def set_debug_register(self, index: int, value: int) -> None:
        self.debug_registers[index] = value

    def leave_by_iret(self) -> None:
        self.left_by_iret = True

    def translate(self, vaddr: int, writing: bool) -> int | None:
        return None

    def flush_tlb(self) -> None:
        self.flushes += 1

    def flush_tlb_page(self, vaddr: int) -> None:
        self.page_flushes.append(vaddr)

    def spend(self, ns: int) -> None:
        self.spent_ns += ns

    def limit(self, deadline_ns: int) -> None:
        self.limit_ns = deadline_ns

    def leave_after_pauses(self, count: int) -> None:
        self.pauses = count

    def stop(self) -> None:
        self.stopped = True

    def join_lane(self, lane: Lane) -> None:
        self.lane = lane

    def open_lane(self, value: bool) -> None:
        self.lane_open = value

    def take_l1(self, mfn: int) -> bytes | None:
        return None

    def drop_l1(self, mfn: int) -> bool:
        return False

    def store(self) -> Context:
        """As `cpu.registers.Registers.store`."""
        return Context(
            general=tuple(self.regs),
            rip=self.rip,
            rflags=self.rflags,
            segments=tuple(self.segment(which) for which in Seg),
            cpl=dpl(self.segment(Seg.SS).attributes),
            cr0=self.cr0,
            cr2=self.cr2,
            cr3=self.cr3,
            cr4=getattr(self, "cr4", 0),
            efer=getattr(self, "efer", EFER_LMA if self.code64 else 0),
            debug=tuple(self.debug_registers),
            msrs={KERNEL_GS_BASE: 0},
            fpu=self.fpu.ljust(512, b"\0"),
            interrupts=Interrupts(),
        )

    def load(self, context: Context) -> None:
        """As `cpu.registers.Registers.load`, of what a debugger changes."""
        self.regs[:] = context.general
        self.rip, self.rflags, self.fpu = context.rip, context.rflags, context.fpu
        self.segments = dict(zip(Seg, context.segments, strict=True))


# What make_pv_current has: the tables, and where the guest's frames are mapped.
ROOT, L3, L2, L1, USER_ROOT = (Mfn(n) for n in range(16, 21))
PERDOMAIN_L1, XEN_GDT, ZERO_FRAME = Mfn(4), Mfn(5), Mfn(6)
KERNEL_ONLY = 1 << 39  # the same frames again, but not in the user's address space
KERNEL_STACK = 0x20000  # top of frame 31
CODE = 0x21000
CODE64 = 0x00A09B00  # ring 0

READ_ONLY: set[int] = {0x5000}  # virtual page addresses that refuse a write


def identity(current: Current, vaddr: int, writing: bool) -> Maddr:
    """Guest virtual addresses are machine addresses; outside RAM, or read-only: EFAULT."""
    outside = not 0 <= vaddr < len(current.domain.memory.bytes)
    if outside or (writing and vaddr & ~0xFFF in READ_ONLY):
        raise XenError(EFAULT, f"{vaddr:#x} is not mapped")
    return Maddr(vaddr)


def make_domain(width: int = 8, pages: int = 64, vcpus: int = 1) -> Domain:
    """A domain of `pages` frames from `FIRST_GUEST_FRAME`; 4 vcpu_infos lie in its shared_info."""
    memory = Memory(FIRST_GUEST_FRAME + pages)
    frames = Frames(memory)
    domain = Domain(
        width=width,
        memory=memory,
        frames=frames,
        events=EventChannels(),
        grants=GrantTable(),
        console=Ring(CONSOLE_RING, port=2),
        xenstore=Ring(XENSTORE_RING, port=1),
        shared_info=SHARED_INFO,
        max_pages=pages,
        domid=DOMID,
        vcpus=[
            Vcpu(i, Maddr((SHARED_INFO << 12) + 64 * i), width, f"pv{8 * width}", online=i == 0)
            for i in range(vcpus)
        ],
    )
    frames.share_with_guest(SHARED_INFO, domain.domid, writable=True)
    for mfn in range(FIRST_GUEST_FRAME, FIRST_GUEST_FRAME + pages):
        frames.assign(Mfn(mfn), domain.domid)
    return domain


def connect_to_dom0(domain: Domain, name: str) -> int:
    """A port of the domain's that is connected to dom0's backend `name`."""
    port = event_channel.alloc_unbound(domain, DOM0)
    event_channel.bind_from_dom0(domain, port, name)
    return port


def connect_backends(domain: Domain, config: DomainConfig) -> None:
    """Give a domain that was built a console and a store, as the machine does."""
    store = Store()
    create(domain, config, store, [XenstoreRing(store=store), Console()])


def make_current(width: int = 8, pages: int = 64, vcpus: int = 1) -> Current:
    """A current vcpu 0 of a fresh domain on a `FakeCpu`, with identity translation."""
    domain = make_domain(width, pages, vcpus)
    return Current(domain, domain.vcpus[0], FakeCpu(), identity)


def make_pv_current(pages: int = 64, vcpus: int = 1) -> Current:
    """A current vcpu 0 of a 64-bit PV domain, in kernel mode, on real page tables.

    ROOT maps each of the guest's frames twice: at its machine address, and at KERNEL_ONLY plus that
    address. The tables are mapped read-only. USER_ROOT maps the frames only at their machine
    addresses. There is no trap handler yet.
    """
    domain = make_domain(8, pages, vcpus)
    domain.arch = PvDomain([PERDOMAIN_L1], XEN_GDT, ZERO_FRAME)
    fill_xen_gdt(domain.memory.table(XEN_GDT), 8)
    words, link = domain.memory.words, P | RW | US
    for mfn in range(FIRST_GUEST_FRAME, FIRST_GUEST_FRAME + pages):
        words[(L1 << 9) + mfn] = mfn << 12 | P | US | (0 if ROOT <= mfn <= USER_ROOT else RW)
    words[L2 << 9], words[L3 << 9] = L1 << 12 | link, L2 << 12 | link
    words[ROOT << 9] = words[(ROOT << 9) + 1] = words[USER_ROOT << 9] = L3 << 12 | link
    for root in (ROOT, USER_ROOT):
        domain.frames.get_page_and_type(root, domain.domid, PGT_l4_page_table)
    for vcpu in domain.vcpus:
        vcpu.arch = PvVcpu(ROOT, USER_ROOT, kernel_sp=KERNEL_STACK)
    cpu = FakeCpu(cr3=ROOT << 12, rip=CODE)
    cpu.set_segment(Seg.CS, CS64)
    cpu.set_segment(Seg.SS, SS64)
    current = Current(domain, domain.vcpus[0], cpu, translate)
    map_initial_gdt(current)
    return current


def protect(current: Current, *mfns: int) -> None:
    """Map frames of make_pv_current's read-only, so that they can become tables."""
    domain = current.domain
    for mfn in mfns:
        entry = domain.memory.words[(L1 << 9) + mfn] & ~RW
        mod_entry(current, (L1 << 12) + 8 * mfn, entry, domain.domid)


PAGE_FAULT = Delivered(Event.EXCEPTION, 14)


@dataclass
class FakeNativeCpu(FakeCpu):
    """A CPU for a PVH guest, as it starts: flat, without paging."""

    cr0: int = 0x11
    cr4: int = 0
    efer: int = 0
    rflags: int = 0x2
    halted: bool = False
    triple_fault: bool = False
    delivered: Delivered = PAGE_FAULT
    apic_vector: int | None = None
    accepted: int | None = None
    ended: bool = False
    endable: bool = False
    nmi_pending: bool = False
    interrupt_requests: int = 0
    upcall: tuple[int, int | None] | None = None

    def selector(self, which: Seg) -> int:
        return self.segment(which).selector

    @property
    def code64(self) -> bool:
        return bool(self.efer & EFER_LMA) and super().code64

    @property
    def cpl(self) -> int:
        if not self.cr0 & 1:
            return 0
        return 3 if self.rflags & VM else dpl(self.segment(Seg.SS).attributes)

    def begin(self, cr0: int, cr3: int, cr4: int, efer: int) -> None:
        self.regs[:] = [0] * 16
        self.cr0, self.cr2, self.cr3, self.cr4, self.efer = cr0, 0, cr3, cr4, efer
        self.halted = self.nmi_pending = False
        self.apic_vector = self.accepted = None

    def enter_long_mode(self, cr3: int, sse: bool = False) -> None:
        self.cr0, self.cr3, self.cr4, self.efer = 0x80000011, cr3, 0x20, 0x500

    def request_interrupt(self) -> None:
        self.interrupt_requests += 1

    def request_nmi(self) -> None:
        self.nmi_pending = True

    def take_accepted(self) -> int | None:
        accepted, self.accepted = self.accepted, None
        return accepted

    def may_end(self) -> None:
        self.endable = True

    def join_native_lane(self, vcpu_id: int, log: bytearray, bells: bytearray) -> None:
        self.lane_open = False

    def set_upcall(self, info_maddr: int, vector: int | None) -> None:
        self.upcall = (info_maddr, vector)

    def take_interrupt(self) -> int | None:
        """Take the local APIC's interrupt."""
        self.accepted, self.apic_vector = self.apic_vector, None
        return self.accepted


def make_pvh_current(pages: int = 64, vcpus: int = 1) -> Current:
    """A current vcpu 0 of a PVH domain on a `FakeNativeCpu`, in flat 32-bit code.

    Each of its frames is at its own number; Xen's, shared_info among them, are nowhere.
    """
    domain = make_domain(4, pages, vcpus)
    domain.features, domain.shared_info_width = pvh_features(), 8
    domain.p2m = P2m(range(FIRST_GUEST_FRAME, FIRST_GUEST_FRAME + pages))
    domain.arch = PvhDomain()
    for vcpu in domain.vcpus:
        vcpu.environment = "pvh32"
        vcpu.arch = PvhVcpu(Lapic(apic_id(vcpu.vcpu_id)))
        vcpu.initialised = vcpu.online
    cpu = FakeNativeCpu()
    cpu.set_segment(Seg.CS, Segment(0, 0, 0xFFFFFFFF, CODE32))
    cpu.set_segment(Seg.SS, Segment(0, 0, 0xFFFFFFFF, DATA32))
    return Current(domain, domain.vcpus[0], cpu, guest_tables)


def enter_long_mode(current: Current, root: int) -> None:
    """Run 64-bit code on the 4-level tables at `root`."""
    cpu = current.cpu
    assert isinstance(cpu, FakeNativeCpu)
    cpu.cr0, cpu.cr3, cpu.cr4, cpu.efer = 0x80010011, root, 0x20, 0x500
    cpu.set_segment(Seg.CS, Segment(8, 0, 0xFFFFFFFF, CODE64))
    current.vcpu.width, current.vcpu.environment = 8, "pvh64"
