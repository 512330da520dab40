"""A PVH domain as a stream has it: memory by guest frame, Xen's own state, HVM parameters.

Frames of Xen's own that the guest has in its physmap (shared_info, grant tables) are no memory of
the guest's, and are not saved.

In Xen: tools/libs/guest/xg_sr_save_x86_hvm.c; common/hvm/save.c
"""

from __future__ import annotations

from typing import Final

from xenemu.abi.arch_x86.hvm import save as abi
from xenemu.abi.hvm import params
from xenemu.hv.state.domain import Domain
from xenemu.machine import registers
from xenemu.machine.core import Core
from xenemu.machine.migration import hvm_context
from xenemu.machine.migration.records import StreamError
from xenemu.machine.migration.saved import HvmState, Pages
from xenemu.pvh.state import PvhDomain, pvh_vcpu
from xenemu.x86 import msr
from xenemu.x86.paging import PAGE_SHIFT, PAGE_SIZE

PARAMS: Final = (
    params.HVM_PARAM_STORE_PFN,
    params.HVM_PARAM_IOREQ_PFN,
    params.HVM_PARAM_BUFIOREQ_PFN,
    params.HVM_PARAM_PAGING_RING_PFN,
    params.HVM_PARAM_MONITOR_RING_PFN,
    params.HVM_PARAM_SHARING_RING_PFN,
    params.HVM_PARAM_VM86_TSS_SIZED,
    params.HVM_PARAM_CONSOLE_PFN,
    params.HVM_PARAM_ACPI_IOPORTS_LOCATION,
    params.HVM_PARAM_VIRIDIAN,
    params.HVM_PARAM_IDENT_PT,
    params.HVM_PARAM_PAE_ENABLED,
    params.HVM_PARAM_VM_GENERATION_ID_ADDR,
    params.HVM_PARAM_IOREQ_SERVER_PFN,
    params.HVM_PARAM_NR_IOREQ_SERVER_PAGES,
    params.HVM_PARAM_X87_FIP_WIDTH,
    params.HVM_PARAM_MCA_CAP,
)


def save(machine: Core) -> tuple[HvmState, Pages]:
    """All of a PVH machine's domain but its policies and its time. StreamError says why not."""
    domain = machine.domain
    state = domain.arch
    assert isinstance(state, PvhDomain)
    if domain.p2m is not None and domain.p2m.granted:
        raise StreamError("it maps grants")
    known = {index: state.params[index] for index in PARAMS if state.params.get(index)}
    return HvmState(_context(machine), known), _pages(domain)


def _pages(domain: Domain) -> Pages:
    assert domain.p2m is not None
    frames, ram, pages = domain.frames, domain.memory.bytes, Pages()
    for gfn, mfn in domain.p2m.places():
        if not frames.is_xen_heap(mfn):
            pages.data[gfn] = ram[mfn << PAGE_SHIFT : (mfn << PAGE_SHIFT) + PAGE_SIZE]
    return pages


def _context(machine: Core) -> bytes:
    machine.personality.leave(machine.current)  # its local APIC hears what its CPU has taken
    vcpus = machine.domain.vcpus
    now_ns = machine.engine.now_ns
    found = [hvm_context.header()]
    kinds: dict[int, list[bytes]] = {}

    def add(code: int, number: int, data: bytes) -> None:
        kinds.setdefault(code, []).append(hvm_context.record(code, number, data))

    for vcpu in vcpus:
        state, number = pvh_vcpu(vcpu), vcpu.vcpu_id
        registered = registers.read(machine, vcpu)
        if vcpu.online:  # one that is down is left down if nothing is there for it
            add(abi.HVM_SAVE_CPU, number, hvm_context.cpu(registered, now_ns).pack(8))
        hidden, page = hvm_context.lapic(state.lapic)
        add(abi.HVM_SAVE_LAPIC, number, hidden)
        add(abi.HVM_SAVE_LAPIC_REGS, number, page)
        pat = registered.msrs[msr.IA32_CR_PAT]
        add(abi.HVM_SAVE_MTRR, number, hvm_context.mtrr(state.mtrrs, pat).pack(8))
        add(abi.HVM_SAVE_VMCE_VCPU, number, abi.hvm_vmce_vcpu(0, 0, 0, 0).pack(8))
        add(abi.HVM_SAVE_TSC_ADJUST, number, abi.hvm_tsc_adjust(0).pack(8))
        if kept := hvm_context.kept_msrs(vcpu.msrs):
            add(abi.CPU_MSR_CODE, number, kept)
    for code in sorted(kinds):
        found += kinds[code]
    return b"".join(found) + hvm_context.record(abi.HVM_SAVE_END, 0, b"")
