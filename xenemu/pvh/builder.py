"""Build a PVH domain: memory, kernel, modules, ACPI tables, start_info, HVM parameters.

In Xen: tools/libs/guest/xg_dom_x86.c, tools/libs/light/libxl_dom.c, libxl_x86_acpi.c,
arch/x86/hvm/hvm.c (hvm_domain_initialise)
"""

from __future__ import annotations

import struct
from typing import Final

from xenemu.abi.features import pvh_features
from xenemu.abi.hvm import params
from xenemu.abi.sched import SHUTDOWN_reboot
from xenemu.abi.xen import XEN_LEGACY_MAX_VCPUS
from xenemu.errors import UsageError
from xenemu.hv.building import (
    MAX_PAGES_SLACK,
    XEN_FRAMES,
    DomainConfig,
    Module,
    give_rings,
    make_ready,
    pages,
    unpack_module,
)
from xenemu.hv.domain import DOMID, Domain, Ring
from xenemu.hv.event_channel import EventChannels
from xenemu.hv.grant_table import GrantTable
from xenemu.hv.memory import Memory
from xenemu.hv.p2m import P2m
from xenemu.hv.pagetype import Frames
from xenemu.hv.shared_info import VCPU_INFO_SIZE
from xenemu.hv.vcpu import Vcpu
from xenemu.image import Image, pvh_parameters
from xenemu.pvh import acpi, start_info
from xenemu.pvh.acpi import AcpiTables
from xenemu.pvh.lapic import Lapic
from xenemu.pvh.layout import (
    ACPI_INFO_PHYSICAL_ADDRESS,
    BIOS_END,
    FIRST_SPECIAL_PAGE,
    X86_HVM_NR_SPECIAL_PAGES,
    Layout,
    SpecialPage,
    high_ram,
    lay_out,
    low_ram,
    memory_map,
    rsdp_address,
)
from xenemu.pvh.start_info import LoadedModule
from xenemu.pvh.state import Entry, PvhDomain, PvhVcpu
from xenemu.x86.paging import PAGE_MASK, PAGE_SHIFT, PAGE_SIZE, PSE, RW, US, A, D, Maddr, Mfn, P

HVM_MAX_VCPUS: Final = 128
TIMER_MODE: Final = 1  # libxl's default, no_delay_for_missed_ticks


def build_pvh(image: Image, config: DomainConfig) -> Domain:
    """Build a PVH domain; ImageError if the image will not do, FitError if its memory will not.

    Guest frame n of RAM is machine frame n. After the last are two of Xen's own, the special
    pages and the ACPI tables, and what Xen and the guest may still be given.
    """
    kernel = pvh_parameters(image)
    if config.vcpus > HVM_MAX_VCPUS:
        raise UsageError(f"a PVH domain has at most {HVM_MAX_VCPUS} vcpus, not {config.vcpus}")
    modules = _modules(config)
    memory_size = config.memory & -PAGE_SIZE
    tables = acpi.build(ACPI_INFO_PHYSICAL_ADDRESS, config.vcpus)
    rsdp = rsdp_address(image, len(tables.tables))
    e820 = memory_map(memory_size, len(tables.tables), rsdp)
    layout = lay_out(
        image,
        kernel,
        [len(module.data) for module in modules],
        len(_start_info(Layout(0, (0,) * len(modules), 0), config, modules, rsdp, e820)),
        # An RSDP in low memory keeps everything else out.
        low_ram(memory_size)[BIOS_END if rsdp < BIOS_END else 0 :],
    )

    end = (high_ram(memory_size) or low_ram(memory_size)).stop >> PAGE_SHIFT
    special = _special_gfns(tables, rsdp)
    memory = Memory(end + len(special) + XEN_FRAMES + MAX_PAGES_SLACK)
    frames = Frames(memory)
    shared_info, dummy_vcpu_info = Mfn(end), Mfn(end + 1)
    frames.add_to_heap(range(end + 2 + len(special), memory.nr_frames))
    frames.share_with_guest(shared_info, DOMID, writable=True)
    p2m = _populate(frames, memory_size, special, end + 2)
    _write(memory, p2m, ACPI_INFO_PHYSICAL_ADDRESS, tables.info + tables.tables)
    _write(memory, p2m, rsdp, tables.rsdp)
    private = PvhDomain(_params())
    entry = Entry(kernel.phys_entry + layout.offset, layout.start_info)
    domain = Domain(
        width=8,
        memory=memory,
        frames=frames,
        events=EventChannels(),
        grants=GrantTable(),
        console=Ring(p2m.lookup(SpecialPage.CONSOLE.gfn)),
        xenstore=Ring(p2m.lookup(SpecialPage.XENSTORE.gfn)),
        shared_info=shared_info,
        max_pages=pages(memory_size) + MAX_PAGES_SLACK,
        vcpus=[
            Vcpu(
                n,
                _vcpu_info(n, shared_info, dummy_vcpu_info),
                PvhVcpu(Lapic(acpi.apic_id(n)), None if n else entry),
            )
            for n in range(config.vcpus)
        ],
        name=config.name,
        features=pvh_features(),
        e820=e820,
        arch=private,
        p2m=p2m,
        wallclock_ns=config.wallclock_ns,
        debug_xen=config.debug_xen,
    )
    for paddr, data in image.contents():
        memory.write(Maddr(paddr + layout.offset), data)
    for module, paddr in zip(modules, layout.modules, strict=True):
        memory.write(Maddr(paddr), module.data)
    info = _start_info(layout, config, modules, rsdp, e820)
    memory.write(Maddr(layout.start_info), info)
    _write(memory, p2m, SpecialPage.IDENT_PT.gfn << PAGE_SHIFT, _identity_map())
    give_rings(domain)
    private.params[params.HVM_PARAM_STORE_EVTCHN] = domain.xenstore.port
    private.params[params.HVM_PARAM_CONSOLE_EVTCHN] = domain.console.port
    make_ready(domain)
    return domain


def _modules(config: DomainConfig) -> list[Module]:
    """The initrd, if there is one, and the modules after it, unpacked."""
    initrd = [Module(config.initrd)] if config.initrd else []
    return [
        Module(unpack_module(module.data), module.cmdline) for module in [*initrd, *config.modules]
    ]


def _start_info(
    layout: Layout,
    config: DomainConfig,
    modules: list[Module],
    rsdp: int,
    e820: list[tuple[int, int, int]],
) -> bytes:
    loaded = [
        # As in Xen, a module is told to have whole pages.
        LoadedModule(paddr, pages(len(module.data)) << PAGE_SHIFT, module.cmdline)
        for paddr, module in zip(layout.modules, modules, strict=True)
    ]
    return start_info.encode(layout.start_info, config.cmdline, loaded, rsdp, e820)


def _special_gfns(tables: AcpiTables, rsdp: int) -> list[int]:
    """The guest frames in the hole that have memory."""
    acpi_gfn = ACPI_INFO_PHYSICAL_ADDRESS >> PAGE_SHIFT
    gfns = {*range(acpi_gfn, acpi_gfn + pages(len(tables.info) + len(tables.tables)))}
    gfns |= {*range(FIRST_SPECIAL_PAGE, FIRST_SPECIAL_PAGE + X86_HVM_NR_SPECIAL_PAGES)}
    return sorted(gfns if rsdp < BIOS_END else gfns | {rsdp >> PAGE_SHIFT})


def _populate(frames: Frames, memory_size: int, special: list[int], first: int) -> P2m:
    """Give the domain its RAM, and machine frames from `first` on for the `special` ones."""
    ranges = [low_ram(memory_size), high_ram(memory_size)]
    ram = [range(at.start >> PAGE_SHIFT, at.stop >> PAGE_SHIFT) for at in ranges if at]
    for mfns in ram:
        frames.assign(Mfn(mfns.start), DOMID, len(mfns))
    p2m = P2m(*ram)
    frames.assign(Mfn(first), DOMID, len(special))
    for mfn, gfn in enumerate(special, first):
        p2m.set(gfn, Mfn(mfn))
    return p2m


def _write(memory: Memory, p2m: P2m, paddr: int, data: bytes) -> None:
    """Write into guest frames that follow each other, and so do their machine frames."""
    mfn = p2m.lookup(paddr >> PAGE_SHIFT)
    memory.write(Maddr((mfn << PAGE_SHIFT) + (paddr & PAGE_MASK)), data)


def _params() -> dict[int, int]:
    """The HVM parameters that Xen and libxenguest give a domain, but for its event channels."""
    return {
        params.HVM_PARAM_STORE_PFN: SpecialPage.XENSTORE.gfn,
        params.HVM_PARAM_CONSOLE_PFN: SpecialPage.CONSOLE.gfn,
        params.HVM_PARAM_IOREQ_PFN: SpecialPage.IOREQ.gfn,
        params.HVM_PARAM_BUFIOREQ_PFN: SpecialPage.BUFIOREQ.gfn,
        params.HVM_PARAM_PAGING_RING_PFN: SpecialPage.PAGING.gfn,
        params.HVM_PARAM_MONITOR_RING_PFN: SpecialPage.ACCESS.gfn,
        params.HVM_PARAM_SHARING_RING_PFN: SpecialPage.SHARING.gfn,
        params.HVM_PARAM_IDENT_PT: SpecialPage.IDENT_PT.gfn << PAGE_SHIFT,
        params.HVM_PARAM_TIMER_MODE: TIMER_MODE,
        params.HVM_PARAM_HPET_ENABLED: 1,
        params.HVM_PARAM_TRIPLE_FAULT_REASON: SHUTDOWN_reboot,
    }


def _vcpu_info(vcpu_id: int, shared_info: Mfn, dummy: Mfn) -> Maddr:
    """Where a vcpu's vcpu_info is at first; vcpus without room in shared_info have a dummy."""
    if vcpu_id < XEN_LEGACY_MAX_VCPUS:
        return Maddr((shared_info << PAGE_SHIFT) + VCPU_INFO_SIZE * vcpu_id)
    return Maddr(dummy << PAGE_SHIFT)


def _identity_map() -> bytes:
    """A page that maps all 4 GiB to themselves, for CPUs that cannot run unpaged guests."""
    return struct.pack("<1024I", *(n << 22 | PSE | D | A | US | RW | P for n in range(1024)))
