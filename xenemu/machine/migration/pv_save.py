"""A PV domain as a stream has it: memory by pfn, and page tables with pfns in their entries.

The guest has told where its list of frames is (its p2m), in shared_info: as a tree of three levels,
or as an address in its own address space. Xen's tools read it from there, and so do we.

In Xen: tools/libs/guest/xg_sr_save_x86_pv.c, xg_sr_common_x86_pv.c;
arch/x86/domctl.c (arch_get_info_guest)
"""

from __future__ import annotations

import struct
from typing import Final

from xenemu.abi.arch_x86.xen import (
    TI_IF,
    VGCF_failsafe_disables_events,
    VGCF_i387_valid,
    VGCF_in_kernel,
    VGCF_online,
    VGCF_syscall_disables_events,
    arch_shared_info,
    cpu_user_regs,
    cpu_user_regs32,
    trap_info,
    vcpu_guest_context,
)
from xenemu.abi.domctl import PFINFO_LPINTAB, xen_domctl_ext_vcpucontext, xen_domctl_vcpu_msr
from xenemu.cpu.context import Context
from xenemu.hv.cpu import Reg, Seg
from xenemu.hv.frame_table import LEVELS, PGT_pinned
from xenemu.hv.shared_info import field
from xenemu.hv.state.domain import Domain
from xenemu.hv.state.vcpu import Vcpu
from xenemu.machine import registers
from xenemu.machine.core import Core
from xenemu.machine.migration.records import StreamError
from xenemu.machine.migration.saved import Pages, PvState, PvVcpuState, words
from xenemu.pv.paging import cr3_to_mfn, mfn_to_cr3
from xenemu.pv.state import PvVcpu, Trap, pv_vcpu
from xenemu.x86 import flags, msr
from xenemu.x86.paging import ADDR, ENTRIES, PAGE_MASK, PAGE_SHIFT, PAGE_SIZE, Mfn, P

CR0_TS: Final = 1 << 3
CR0: Final = 0x80050033  # of which a guest reads TS as it set it
MOST_PER_FRAME: Final = 64  # entries of a p2m for each frame of the machine's
TRAPS: Final = 256
MSRS: Final = (msr.MISC_FEATURES_ENABLES, msr.TSC_AUX)
USER_CR3_VALID: Final = 1


def save(machine: Core) -> tuple[PvState, Pages]:
    """All of a PV machine's domain but its policies and its time. StreamError says why not."""
    domain = machine.domain
    p2m = PhysicalToMachine.of(domain)
    shared_info = domain.memory.read(domain.shared_info_maddr, PAGE_SIZE)
    vcpus = {vcpu.vcpu_id: _vcpu(machine, vcpu, p2m) for vcpu in domain.vcpus if vcpu.online}
    if 0 not in vcpus:
        raise StreamError("its vcpu 0 is offline")
    frames = [p2m.pfn(mfn, "a frame of its p2m") for mfn in p2m.leaves]
    return PvState(domain.width, frames, p2m.max_pfn, shared_info, vcpus), _pages(domain, p2m)


# The guest's list of its frames.


class PhysicalToMachine:
    """A guest's p2m: `leaves` are its frames, `mfns` what it says of each pfn.

    Only those entries count that are true: the frame is the guest's, and Xen's table has the same
    pfn for it. `pfns` are the way back.
    """

    def __init__(self, domain: Domain, leaves: list[Mfn], nr_entries: int) -> None:
        memory, frames, width = domain.memory, domain.frames, domain.width
        self.leaves = leaves
        self.max_pfn = nr_entries - 1
        entries: list[int] = []
        for mfn in leaves:
            entries += words(memory.bytes[mfn << PAGE_SHIFT : mfn + 1 << PAGE_SHIFT], width)
        assert frames.m2p_base is not None
        end = frames.m2p_base + memory.nr_frames * width
        m2p = words(memory.bytes[frames.m2p_base : end], width)
        owner, domid, nr_frames = frames.owner, domain.domid, memory.nr_frames
        self.mfns = {
            pfn: mfn
            for pfn, mfn in enumerate(entries[:nr_entries])
            if mfn < nr_frames and owner[mfn] == domid and m2p[mfn] == pfn
        }
        self.pfns = {mfn: pfn for pfn, mfn in self.mfns.items()}

    @classmethod
    def of(cls, domain: Domain) -> PhysicalToMachine:
        """Find the guest's p2m; StreamError."""
        size = arch_shared_info.sizeof(domain.width)
        told = arch_shared_info.unpack(
            domain.width, domain.memory.read(field(domain, "arch"), size)
        )
        if not 0 < told.max_pfn <= MOST_PER_FRAME * domain.memory.nr_frames:
            raise StreamError(f"it says that it has {told.max_pfn} pfns (shared_info.arch.max_pfn)")
        count = -(-told.max_pfn * domain.width // PAGE_SIZE)
        if told.p2m_cr3 and told.p2m_vaddr:
            leaves = _mapped(domain, told.p2m_cr3, told.p2m_vaddr, count)
        else:
            leaves = _from_tree(domain, told.pfn_to_mfn_frame_list_list, count)
        return cls(domain, leaves, told.max_pfn)

    def pfn(self, mfn: int, what: str) -> int:
        """The pfn of a frame; StreamError: the p2m does not have it."""
        found = self.pfns.get(mfn)
        if found is None:
            raise StreamError(f"{what} is mfn {mfn:#x}, which is not in its p2m")
        return found


def _own(domain: Domain, mfn: int, what: str) -> Mfn:
    frames = domain.frames
    if not (domain.memory.contains(mfn) and frames.owner[mfn] == domain.domid):
        raise StreamError(f"{what} is {frames.describe(mfn)}")
    return Mfn(mfn)


def _from_tree(domain: Domain, top: int, count: int) -> list[Mfn]:
    """The frames of a p2m that is told as a list of lists."""
    per_frame = PAGE_SIZE // domain.width

    def entries(mfn: int, what: str) -> memoryview[int]:
        start = _own(domain, mfn, what) << PAGE_SHIFT
        return words(domain.memory.bytes[start : start + PAGE_SIZE], domain.width)

    nr_lists = -(-count // per_frame)
    if nr_lists > per_frame:
        raise StreamError(f"its p2m has {count} frames, more than its lists reach")
    lists = entries(top, "its pfn_to_mfn_frame_list_list")[:nr_lists]
    found: list[int] = []
    for mfn in lists:
        found += entries(mfn, "a list of its p2m's frames")
    return [_own(domain, mfn, "a frame of its p2m") for mfn in found[:count]]


def _mapped(domain: Domain, cr3: int, vaddr: int, count: int) -> list[Mfn]:
    """The frames of a p2m that is mapped in tables of the guest's."""
    root = cr3_to_mfn(cr3, domain.width)
    levels = 4 if domain.width == 8 else 3
    found = []
    for address in range(vaddr & ~PAGE_MASK, (vaddr & ~PAGE_MASK) + count * PAGE_SIZE, PAGE_SIZE):
        mfn = root
        for level in range(levels, 0, -1):
            table = domain.memory.table(_own(domain, mfn, "a table that maps its p2m"))
            entry = table[address >> PAGE_SHIFT + 9 * (level - 1) & ENTRIES - 1]
            if not entry & P:
                raise StreamError(f"its p2m is not mapped at {address:#x}")
            mfn = (entry & ADDR) >> PAGE_SHIFT
        found.append(_own(domain, mfn, "a frame of its p2m"))
    return found


# Memory.


def _pages(domain: Domain, p2m: PhysicalToMachine) -> Pages:
    memory, frames, pages = domain.memory, domain.frames, Pages()
    for pfn, mfn in p2m.mfns.items():
        start = mfn << PAGE_SHIFT
        page: bytes | memoryview = memory.bytes[start : start + PAGE_SIZE]
        level = LEVELS.get(frames.type[mfn], 0) if frames.type_count[mfn] else 0
        if level:
            pages.kinds[pfn] = level | (PFINFO_LPINTAB if frames.flags[mfn] & PGT_pinned else 0)
            page = _canonical(domain, p2m, Mfn(mfn), level)
        pages.data[pfn] = page
    return pages


def _canonical(domain: Domain, p2m: PhysicalToMachine, mfn: Mfn, level: int) -> bytes:
    """A page table with pfns for mfns, and without Xen's entries."""
    frames, pfns = domain.frames, p2m.pfns
    table = domain.memory.table(mfn).tolist()
    xens = frames.rules.slots_of(frames.type[mfn])
    for index, entry in enumerate(table):
        if not entry & P:
            continue
        pfn = pfns.get((entry & ADDR) >> PAGE_SHIFT)
        if index in xens:
            table[index] = 0
        elif pfn is None:
            target = frames.describe((entry & ADDR) >> PAGE_SHIFT)
            raise StreamError(f"entry {index} of an L{level} table of its maps {target}")
        else:
            table[index] = entry & ~ADDR | pfn << PAGE_SHIFT
    return struct.pack(f"<{ENTRIES}Q", *table)


# Registers.


def _vcpu(machine: Core, vcpu: Vcpu, p2m: PhysicalToMachine) -> PvVcpuState:
    width = machine.domain.width
    found, state = registers.read(machine, vcpu), pv_vcpu(vcpu)
    return PvVcpuState(
        _guest_context(machine.domain, vcpu, found, p2m).pack(width),
        _extended(vcpu.vcpu_id, state),
        _msrs(vcpu.msrs),
    )


def _msrs(values: dict[int, int]) -> bytes:
    return b"".join(
        xen_domctl_vcpu_msr(number, 0, values[number]).pack(8)
        for number in MSRS
        if values.get(number)
    )


def _guest_context(
    domain: Domain, vcpu: Vcpu, found: Context, p2m: PhysicalToMachine
) -> vcpu_guest_context:
    """What XEN_DOMCTL_getvcpucontext gives, with pfns for mfns."""
    width, state = domain.width, pv_vcpu(vcpu)
    in_kernel = state.kernel_mode if width == 8 else found.cpl == 1
    gdt = [p2m.pfn(mfn, "a frame of a GDT") for mfn in state.gdt_frames]
    root = mfn_to_cr3(p2m.pfn(state.kernel_root, "a root of its page tables"), width)
    user = 0
    if state.user_root:
        user = p2m.pfn(state.user_root, "a user's root") << PAGE_SHIFT | USER_CR3_VALID
    cr0 = CR0 | (CR0_TS if state.task_switched else 0)
    control = (cr0, user, state.cr2, root, state.cr4, 0, 0, 0)
    debug = (*found.debug[:4], 0, 0, state.dr6, state.dr7 | state.dr7_emul)
    active, inactive = found.segments[Seg.GS].base, state.inactive_gs
    kernel_gs, user_gs = (active, inactive) if state.kernel_mode else (inactive, active)
    wide = width == 8
    return vcpu_guest_context(
        fpu_ctxt=found.fpu,
        flags=_flags(state, in_kernel),
        user_regs=_user_regs(vcpu, found, state, p2m, width),
        trap_ctxt=_traps(state, width),
        ldt_base=state.ldt_base,
        ldt_ents=state.ldt_entries,
        gdt_frames=_words(gdt, 16, width),
        gdt_ents=state.gdt_entries,
        kernel_ss=state.kernel_ss,
        kernel_sp=state.kernel_sp,
        ctrlreg=_words(control, 8, width),
        debugreg=_words(debug, 8, width),
        event_callback_cs=_cs(state.event_callback, wide),
        event_callback_eip=state.event_callback.address,
        failsafe_callback_cs=_cs(state.failsafe_callback, wide),
        failsafe_callback_eip=state.failsafe_callback.address,
        syscall_callback_eip=_words([state.syscall_callback.address], 1, width) if wide else b"",
        vm_assist=domain.vm_assist,
        fs_base=_words([found.segments[Seg.FS].base], 1, width) if wide else b"",
        gs_base_kernel=_words([kernel_gs], 1, width) if wide else b"",
        gs_base_user=_words([user_gs], 1, width) if wide else b"",
    )


def _flags(state: PvVcpu, in_kernel: bool) -> int:
    bits = {
        VGCF_i387_valid: True,
        VGCF_online: True,
        VGCF_in_kernel: in_kernel,
        VGCF_failsafe_disables_events: state.failsafe_callback.mask_events,
        VGCF_syscall_disables_events: state.syscall_callback.mask_events,
    }
    return sum(bit for bit, is_set in bits.items() if is_set)


def _user_regs(
    vcpu: Vcpu, found: Context, state: PvVcpu, p2m: PhysicalToMachine, width: int
) -> bytes:
    values = {f"r{n}": found.general[n] for n in range(8, 16)}
    values |= {register.name.lower(): found.general[register] for register in list(Reg)[:8]}
    values |= {which.name.lower(): found.segments[which].selector for which in list(Seg)[:6]}
    values["rip"] = found.rip
    values["rflags"] = found.rflags & ~flags.IOPL | state.iopl << flags.IOPL_SHIFT
    if vcpu.vcpu_id == 0:  # the third argument of its hypercall
        values["rdx"] = p2m.pfn(values["rdx"], "the start_info that it gave the hypercall")
    layout = cpu_user_regs if width == 8 else cpu_user_regs32
    fields = {}
    for name, blank in vars(layout.unpack(8, bytes(layout.sizeof(8)))).items():
        known = f"r{name[1:]}" if name.startswith("e") and name != "es" else name
        fields[name] = values.get(known, blank)
    return layout(**fields).pack(8)


def _traps(state: PvVcpu, width: int) -> bytes:
    entries = []
    for vector in range(TRAPS):
        trap = state.traps.get(vector)
        entry = trap_info(vector, 0, 0, 0)
        if trap is not None:
            bits = trap.dpl | (TI_IF if trap.mask_events else 0)
            entry = trap_info(vector, bits, trap.cs, trap.address)
        entries.append(entry.pack(width))
    return b"".join(entries)


def _cs(trap: Trap, wide: bool) -> bytes:
    return b"" if wide else _words([trap.cs], 1, 4)


def _words(values: tuple[int, ...] | list[int], count: int, width: int) -> bytes:
    padded = (*values, *[0] * (count - len(values)))
    mask = (1 << 8 * width) - 1
    return struct.pack(f"<{count}{'Q' if width == 8 else 'I'}", *(value & mask for value in padded))


def _extended(number: int, state: PvVcpu) -> bytes:
    syscall, sysenter = state.syscall32_callback, state.sysenter_callback
    return xen_domctl_ext_vcpucontext(
        vcpu=number,
        size=xen_domctl_ext_vcpucontext.sizeof(8),
        syscall32_callback_eip=syscall.address,
        sysenter_callback_eip=sysenter.address,
        syscall32_callback_cs=syscall.cs,
        sysenter_callback_cs=sysenter.cs,
        syscall32_disables_events=int(syscall.mask_events),
        sysenter_disables_events=int(sysenter.mask_events),
        pad0=0,
        vmce=bytes(32),
    ).pack(8)
