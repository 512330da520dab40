"""A 32-bit PV guest on real PAE tables, without an engine: see fakes.py."""

from __future__ import annotations

from array import array

from fakes import PERDOMAIN_L1, XEN_GDT, ZERO_FRAME, FakeCpu, make_domain
from xenemu.abi.arch_x86.xen import FLAT_RING1_DS
from xenemu.hv.cpu import Reg, Seg
from xenemu.hv.current import Current
from xenemu.hv.pagetype import PV32, PGT_l3_page_table
from xenemu.pv.descriptors import fill_xen_gdt, map_initial_gdt, set_gdt
from xenemu.pv.paging import translate32
from xenemu.pv.perdomain import PERDOMAIN_L2_SLOT
from xenemu.pv.personality import CODE32, DATA32
from xenemu.pv.state import PvDomain, PvVcpu
from xenemu.x86.paging import RW, US, Mfn, P

L3 = Mfn(16)
L2 = tuple(Mfn(n) for n in range(17, 21))  # the last one has Xen's slots
L1, GDT = Mfn(21), Mfn(22)
FRAMES = range(16, 80)  # the guest's, each at its machine address
KERNEL_STACK, STACK, CODE = 0x20000, 0x30000, 0x26000


def make_pv32_current() -> Current:
    """A current vcpu 0 of a 32-bit PV domain, in ring 1 on STACK, with an empty GDT.

    The tables and GDT's frame are mapped read-only. There is no trap handler yet.
    """
    domain = make_domain(4, len(FRAMES))
    domain.frames.rules = PV32
    domain.arch = PvDomain([PERDOMAIN_L1], XEN_GDT, ZERO_FRAME)
    domain.frames.xen_slots = [(PERDOMAIN_L2_SLOT, PERDOMAIN_L1 << 12 | P | RW)]
    fill_xen_gdt(domain.memory.table(XEN_GDT), 4)
    words = domain.memory.words
    for mfn in FRAMES:
        words[L1 << 9 | mfn] = mfn << 12 | P | US | (0 if L3 <= mfn <= GDT else RW)
    words[L2[0] << 9] = L1 << 12 | P | RW | US
    for index, mfn in enumerate(L2):
        words[L3 << 9 | index] = mfn << 12 | P
    domain.frames.get_page_and_type(L3, domain.domid, PGT_l3_page_table)
    domain.vcpus[0].arch = PvVcpu(L3, kernel_ss=FLAT_RING1_DS, kernel_sp=KERNEL_STACK)
    cpu = FakeCpu(cr3=L3 << 12, rip=CODE)
    cpu.regs[Reg.RSP] = STACK
    for which in (Seg.SS, Seg.DS, Seg.ES, Seg.FS, Seg.GS):
        cpu.set_segment(which, DATA32)
    cpu.set_segment(Seg.CS, CODE32)
    current = Current(domain, domain.vcpus[0], cpu, translate32)
    map_initial_gdt(current)
    return current


def install_gdt(current: Current, *descriptors: int) -> None:
    """Give the guest a GDT of these, after the null descriptor."""
    data = array("Q", [0, *descriptors]).tobytes()
    current.domain.memory.write(GDT << 12, data)  # type: ignore[arg-type]
    set_gdt(current, [GDT], 512)


def words_at(current: Current, address: int, count: int) -> list[int]:
    """Read 32-bit words as the kernel finds them."""
    return [current.read_uint(address + 4 * n, 4) for n in range(count)]
