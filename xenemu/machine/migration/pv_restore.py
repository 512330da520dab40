"""A PV domain from a stream: new frames for its pages, and those in its tables, p2m and start_info.

The new domain's frames are not those that it had. As from another host, the first pfn has the last
frame.

In Xen: tools/libs/guest/xg_sr_restore_x86_pv.c, xg_sr_restore.c
"""

from __future__ import annotations

import struct
from array import array
from typing import Final

from xenemu.abi.arch_x86.xen import (
    FIRST_RESERVED_GDT_ENTRY,
    VGCF_online,
    arch_shared_info,
    cpu_user_regs,
    cpu_user_regs32,
    vcpu_guest_context,
)
from xenemu.abi.domctl import (
    PFINFO_LPINTAB,
    PFINFO_LTABTYPE_MASK,
    xen_domctl_ext_vcpucontext,
    xen_domctl_vcpu_msr,
)
from xenemu.abi.xen import XEN_LEGACY_MAX_VCPUS, start_info
from xenemu.errors import XenError
from xenemu.hv import cpu_policy
from xenemu.hv.building import MAX_PAGES_SLACK, DomainConfig, give_rings
from xenemu.hv.clock import update_wallclock, write_time
from xenemu.hv.current import Current
from xenemu.hv.frame_table import INVALID_M2P_ENTRY
from xenemu.hv.scheduler import PERIODIC, wait
from xenemu.hv.shared_info import VCPU_INFO_SIZE, field
from xenemu.hv.state.domain import Domain, Ring
from xenemu.hv.state.vcpu import RunState, Vcpu
from xenemu.machine.migration import policy
from xenemu.machine.migration.idle import IDLE_CPU
from xenemu.machine.migration.records import StreamError
from xenemu.machine.migration.saved import LEVELS, Data, PvState, PvVcpuState, Saved, words
from xenemu.pv import builder
from xenemu.pv.context import initialise
from xenemu.pv.paging import cr3_to_mfn, mfn_to_cr3, translate
from xenemu.pv.state import Trap, pv_vcpu
from xenemu.records import dataclass
from xenemu.x86 import msr
from xenemu.x86.paging import (
    ADDR,
    ENTRIES,
    PAGE_SHIFT,
    PAGE_SIZE,
    Maddr,
    Mfn,
    P,
    Pfn,
)

CODE: Final = {8: "Q", 4: "I"}
MAX_PER_PAGE: Final = 64  # pfns for each page of the domain's
USER_CR3_VALID: Final = 1
EXTENDED_SIZES: Final = range(24, 129)
MSR_BITS: Final = {  # that a guest can set
    msr.MISC_FEATURES_ENABLES: msr.MISC_FEATURES_CPUID_FAULTING,
    msr.TSC_AUX: 0xFFFFFFFF,
}


def restore(saved: Saved, state: PvState, config: DomainConfig, now_ns: int) -> Domain:
    """A domain in a memory of its own; StreamError: it makes no domain."""
    return _Restore(saved, state, config, now_ns).run()


@dataclass
class _Restore:
    saved: Saved
    state: PvState
    config: DomainConfig
    now_ns: int

    def run(self) -> Domain:
        """Make the domain, in the order of Xen's tools."""
        self._check()
        self._make_domain()
        self._fill()
        self._update_start_info()
        self._load_shared_info()
        for number in sorted(self.state.vcpus):
            self._load_vcpu(number, self.state.vcpus[number])
        self._pin()
        self._update_p2m()
        domain = self.domain
        for vcpu in domain.vcpus:
            write_time(domain, vcpu, self.now_ns)
        update_wallclock(domain)
        return domain

    @property
    def width(self) -> int:
        return self.state.width

    @property
    def kinds(self) -> dict[int, int]:
        return self.saved.pages.kinds

    def _check(self) -> None:
        nr_pages = self.config.most_memory >> PAGE_SHIFT
        pages, state = self.saved.pages.data, self.state
        if len(pages) > nr_pages:
            raise StreamError(f"it has {len(pages)} pages, and the memory asked for {nr_pages}")
        if state.max_pfn >= MAX_PER_PAGE * max(len(pages), 1):
            raise StreamError(f"it has {state.max_pfn + 1} pfns for {len(pages)} pages")
        beyond = max(pages, default=0)
        if beyond > state.max_pfn:
            raise StreamError(
                f"it has a page of pfn {beyond:#x}, beyond its last, {state.max_pfn:#x}"
            )
        vcpus = range(self.config.all_vcpus)
        for number in state.vcpus:
            if number not in vcpus:
                raise StreamError(f"it has a vcpu {number}, and {len(vcpus)} were asked for")
        policy.check(self.saved.cpuid_policy, cpu_policy.PV[self.width])
        size = vcpu_guest_context.sizeof(self.width)
        self.contexts: dict[int, vcpu_guest_context] = {}
        for number, vcpu in state.vcpus.items():
            if len(vcpu.basic) != size:
                raise StreamError(f"the registers of vcpu {number} have {len(vcpu.basic)} bytes")
            self.contexts[number] = vcpu_guest_context.unpack(self.width, bytes(vcpu.basic))

    # Memory.

    def _make_domain(self) -> None:
        nr_pages, pages = self.config.most_memory >> PAGE_SHIFT, self.saved.pages.data
        domain, base = builder.make_domain(self.width, self.config, nr_pages, Pfn(0), Pfn(0))
        self.domain, frames = domain, domain.frames
        domain.pages.max_pages = (self.config.memory >> PAGE_SHIFT) + MAX_PAGES_SLACK
        for mfn in range(base, base + nr_pages - len(pages)):
            frames.release(Mfn(mfn))
        places = range(base + nr_pages - 1, -1, -1)
        self.mfns = {pfn: Mfn(mfn) for pfn, mfn in zip(sorted(pages), places, strict=False)}
        for pfn, mfn in self.mfns.items():
            frames.set_m2p(mfn, pfn)

    def mfn(self, pfn: int, what: str, kind: int = 0) -> Mfn:
        """The frame of a page that is to be a table of level `kind`, or none; StreamError."""
        if pfn not in self.mfns:
            raise StreamError(f"{what} is pfn {pfn:#x}, which it has no page of")
        if self.kinds.get(pfn, 0) & PFINFO_LTABTYPE_MASK != kind:
            raise StreamError(f"{what} is pfn {pfn:#x}, which has type {self.kinds.get(pfn, 0):#x}")
        return self.mfns[pfn]

    def _fill(self) -> None:
        memory = self.domain.memory
        for pfn, page in self.saved.pages.data.items():
            start = self.mfns[pfn] << PAGE_SHIFT
            content = self._localised(page) if pfn in self.kinds else page
            memory.bytes[start : start + PAGE_SIZE] = content

    def _localised(self, page: Data) -> bytes:
        """A page table with mfns for pfns."""
        table, mfns = list(struct.unpack(f"<{ENTRIES}Q", page)), self.mfns
        for index, entry in enumerate(table):
            if entry & P:
                pfn = (entry & ADDR) >> PAGE_SHIFT
                if pfn not in mfns:
                    raise StreamError(f"a page table maps pfn {pfn:#x}, which it has no page of")
                table[index] = entry & ~ADDR | mfns[pfn] << PAGE_SHIFT
        return struct.pack(f"<{ENTRIES}Q", *table)

    def _pin(self) -> None:
        domain = self.domain
        for pfn, kind in self.kinds.items():
            if kind & PFINFO_LPINTAB:
                try:
                    domain.frames.pin(self.mfns[pfn], domain.domid, kind & PFINFO_LTABTYPE_MASK)
                except XenError as error:
                    raise StreamError(f"pfn {pfn:#x} cannot be pinned: {error.reason}") from None

    def _update_p2m(self) -> None:
        """Tell the guest its new frames, in its own list."""
        code, domain = CODE[self.width], self.domain
        nothing = INVALID_M2P_ENTRY & (1 << 8 * self.width) - 1
        entries = array(code, [nothing]) * (self.state.max_pfn + 1)
        for pfn, mfn in self.mfns.items():
            entries[pfn] = mfn
        data = memoryview(entries).cast("B")
        for n, pfn in enumerate(self.state.p2m_frames):
            mfn = self.mfn(pfn, f"frame {n} of its p2m")
            piece = data[n * PAGE_SIZE : (n + 1) * PAGE_SIZE]
            domain.memory.write(Maddr(mfn << PAGE_SHIFT), piece)

    # What the guest is told.

    def _user_regs(self) -> cpu_user_regs | cpu_user_regs32:
        layout = cpu_user_regs if self.width == 8 else cpu_user_regs32
        return layout.unpack(8, self.contexts[0].user_regs)

    def _update_start_info(self) -> None:
        regs, width, domain = self._user_regs(), self.width, self.domain
        pfn = regs.rdx if isinstance(regs, cpu_user_regs) else regs.edx
        where = self.mfn(pfn, "its start_info")
        size = start_info.sizeof(width)
        at = Maddr(where << PAGE_SHIFT)
        told = start_info.unpack(width, domain.memory.read(at, size))
        console_pfn, _ = struct.unpack("<QQ" if width == 8 else "<II", told.console)
        domain.xenstore = Ring(self.mfn(told.store_mfn, "its xenstore's ring"))
        domain.console = Ring(self.mfn(console_pfn, "its console's ring"))
        give_rings(domain)
        told.nr_pages = self.state.max_pfn + 1
        told.shared_info = domain.shared_info_maddr
        told.flags = 0
        told.store_mfn, told.store_evtchn = domain.xenstore.mfn, domain.xenstore.port
        console = (domain.console.mfn, domain.console.port)
        told.console = struct.pack("<QI4x" if width == 8 else "<II", *console)
        domain.memory.write(at, told.pack(width))
        if isinstance(regs, cpu_user_regs):
            regs.rdx = where
        else:
            regs.edx = where
        self.contexts[0].user_regs = regs.pack(8)

    def _load_shared_info(self) -> None:
        """Take over each vcpu's vcpu_info and x86's part. All events are masked, and none waits."""
        domain, old = self.domain, bytes(self.state.shared_info)
        memory, base = domain.memory, domain.shared_info_maddr
        size = VCPU_INFO_SIZE * XEN_LEGACY_MAX_VCPUS
        memory.write(base, old[:size])
        for n in range(XEN_LEGACY_MAX_VCPUS):
            selector = Maddr(base + n * VCPU_INFO_SIZE + self.width)
            memory.write_uint(selector, self.width, 0)
        at = field(domain, "arch")
        arch = arch_shared_info.unpack(
            self.width, old[at - base :][: arch_shared_info.sizeof(self.width)]
        )
        arch.pfn_to_mfn_frame_list_list = 0
        memory.write(at, arch.pack(self.width))
        bitmap = 64 * self.width
        memory.write(field(domain, "evtchn_mask"), b"\xff" * bitmap)

    # Vcpus.

    def _load_vcpu(self, number: int, saved: PvVcpuState) -> None:
        domain = self.domain
        vcpu = domain.vcpus[number]
        context = self._localised_context(number)
        if number == 0:
            domain.vm_assist = context.vm_assist
        current = Current(domain, domain.vcpus[0], IDLE_CPU, translate)
        try:
            initialise(current, vcpu, context)
        except XenError as error:
            raise StreamError(
                f"Xen refuses the registers of vcpu {number}: {error.reason}"
            ) from None
        vcpu.initialised = vcpu.online = True
        wait(domain, vcpu, self.now_ns)
        vcpu.periodic_from_ns = self.now_ns
        if number == 0:
            vcpu.runstate = RunState.RUNNING
            domain.timers.set((PERIODIC, 0), self.now_ns + vcpu.periodic_ns)
        state = pv_vcpu(vcpu)
        state.cr2 = self._words(context.ctrlreg)[2]
        if saved.extended:
            self._load_extended(vcpu, saved.extended)
        self._load_msrs(vcpu, saved.msrs)

    def _words(self, data: bytes) -> list[int]:
        return words(data, self.width).tolist()

    def _localised_context(self, number: int) -> vcpu_guest_context:
        context, width, root_level = self.contexts[number], self.width, LEVELS[self.width]
        context.flags |= VGCF_online
        if context.gdt_ents > FIRST_RESERVED_GDT_ENTRY:
            raise StreamError(f"vcpu {number} has a GDT of {context.gdt_ents} entries")
        gdt = self._words(context.gdt_frames)
        for n in range(-(-context.gdt_ents // ENTRIES)):
            gdt[n] = self.mfn(gdt[n], f"frame {n} of vcpu {number}'s GDT")
        control = self._words(context.ctrlreg)
        root = cr3_to_mfn(control[3], width)
        control[3] = mfn_to_cr3(self.mfn(root, f"CR3 of vcpu {number}", root_level), width)
        if width == 8 and control[1] & USER_CR3_VALID:
            user = self.mfn(control[1] >> PAGE_SHIFT, f"user's CR3 of vcpu {number}", root_level)
            control[1] = user << PAGE_SHIFT
        code = CODE[width]
        context.gdt_frames = array(code, gdt).tobytes()
        context.ctrlreg = array(code, control).tobytes()
        return context

    def _load_extended(self, vcpu: Vcpu, data: Data) -> None:
        if len(data) not in EXTENDED_SIZES:
            raise StreamError(f"the callbacks of vcpu {vcpu.vcpu_id} have {len(data)} bytes")
        size, state = xen_domctl_ext_vcpucontext.sizeof(8), pv_vcpu(vcpu)
        extended = xen_domctl_ext_vcpucontext.unpack(8, bytes(data[:size]).ljust(size, b"\0"))
        state.syscall32_callback = Trap(
            extended.syscall32_callback_cs,
            extended.syscall32_callback_eip,
            mask_events=bool(extended.syscall32_disables_events),
        )
        state.sysenter_callback = Trap(
            extended.sysenter_callback_cs,
            extended.sysenter_callback_eip,
            mask_events=bool(extended.sysenter_disables_events),
        )

    def _load_msrs(self, vcpu: Vcpu, data: Data) -> None:
        size = xen_domctl_vcpu_msr.sizeof(8)
        if len(data) % size:
            raise StreamError(f"the MSRs of vcpu {vcpu.vcpu_id} are no list")
        for at in range(0, len(data), size):
            entry = xen_domctl_vcpu_msr.unpack(8, bytes(data[at : at + size]))
            if entry.value & ~MSR_BITS.get(entry.index, 0):
                raise StreamError(
                    f"MSR {entry.index:#x} of vcpu {vcpu.vcpu_id} cannot be {entry.value:#x}"
                )
            vcpu.msrs[entry.index] = entry.value
