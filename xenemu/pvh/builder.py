"""Build a PVH domain: memory, ACPI tables, HVM parameters, and what a boot entry puts there.

In Xen: tools/libs/guest/xg_dom_x86.c, tools/libs/light/libxl_dom.c, libxl_x86_acpi.c,
arch/x86/hvm/hvm.c (hvm_domain_initialise)
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Final

from xenemu.abi.features import pvh_features
from xenemu.abi.hvm import params
from xenemu.abi.sched import SHUTDOWN_reboot
from xenemu.errors import UsageError
from xenemu.hv.building import (
    MAX_PAGES_SLACK,
    XEN_FRAMES,
    Data,
    DomainConfig,
    give_rings,
    make_ready,
    pages,
    vcpu_info_at,
)
from xenemu.hv.memory import Memory
from xenemu.hv.p2m import P2m
from xenemu.hv.pagetype import Frames
from xenemu.hv.state.domain import Domain, Ring
from xenemu.hv.state.events import EventChannels
from xenemu.hv.state.grants import GrantTable
from xenemu.hv.state.vcpu import Vcpu
from xenemu.pvh import acpi
from xenemu.pvh.acpi import AcpiTables
from xenemu.pvh.lapic import Lapic
from xenemu.pvh.layout import (
    ACPI_INFO_PHYSICAL_ADDRESS,
    BIOS_END,
    E820,
    FIRST_SPECIAL_PAGE,
    X86_HVM_NR_SPECIAL_PAGES,
    Kernel,
    SpecialPage,
    high_ram,
    low_ram,
    memory_map,
    rsdp_address,
)
from xenemu.pvh.state import Firmware, PvhDomain, PvhVcpu, StartState, pvh_vcpu
from xenemu.records import dataclass
from xenemu.x86.paging import PAGE_MASK, PAGE_SHIFT, PAGE_SIZE, PSE, RW, US, A, D, Maddr, Mfn, P

HVM_MAX_VCPUS: Final = 128
SPECIAL_FRAMES: Final = 16  # at most that lie in the hole of a new domain
TIMER_MODE: Final = 1  # libxl's default, no_delay_for_missed_ticks


@dataclass(frozen=True)
class Room:
    """The guest-physical memory of a PVH machine, before an entry puts a kernel into it."""

    memory: int  # bytes of RAM
    tables: AcpiTables
    rsdp: int
    e820: E820

    @property
    def ram(self) -> range:
        """Where there is room, in one piece: an RSDP in low memory keeps everything else out."""
        return low_ram(self.memory)[BIOS_END if self.rsdp < BIOS_END else 0 :]


@dataclass(frozen=True)
class Placed:
    """What a boot entry puts into a PVH domain's RAM, by address, and how vcpu 0 begins."""

    pieces: Sequence[tuple[int, Data]]
    entry: StartState
    firmware: Firmware | None = None


def make_room(config: DomainConfig, kernel: Kernel) -> Room:
    """Settle where a domain has RAM, and what is not RAM."""
    if config.all_vcpus > HVM_MAX_VCPUS:
        raise UsageError(f"a PVH domain has at most {HVM_MAX_VCPUS} vcpus, not {config.all_vcpus}")
    memory = config.most_memory & -PAGE_SIZE
    tables = acpi.build(ACPI_INFO_PHYSICAL_ADDRESS, config.all_vcpus, config.vcpus)
    rsdp = rsdp_address(kernel.low_rsdp, len(tables.tables))
    return Room(memory, tables, rsdp, memory_map(memory, len(tables.tables), rsdp))


def build(config: DomainConfig, room: Room, placed: Placed) -> Domain:
    """Build a PVH domain, with what an entry puts into it.

    Guest frame n of RAM is machine frame n. After the last are two of Xen's own, the special
    pages and the ACPI tables, and what Xen and the guest may still be given.
    """
    end = (high_ram(room.memory) or low_ram(room.memory)).stop >> PAGE_SHIFT
    special = _special_gfns(room.tables, room.rsdp)
    memory = Memory(end + len(special) + XEN_FRAMES + MAX_PAGES_SLACK)
    frames = Frames(memory)
    frames.add_to_heap(range(end + 2 + len(special), memory.nr_frames))
    frames.share_with_guest(Mfn(end), config.domid, writable=True)
    p2m = _populate(frames, config.domid, room.memory, special, end + 2)
    _fill(memory, p2m, room)
    for paddr, data in placed.pieces:
        memory.write(Maddr(paddr), data)
    domain = _make_domain(config, frames, p2m, room, Mfn(end))
    pvh_vcpu(domain.vcpus[0]).entry = placed.entry
    give_rings(domain)
    domain.arch = PvhDomain(hvm_params(domain), firmware=placed.firmware)
    make_ready(domain)
    return domain


def make_empty(config: DomainConfig, gfns: Sequence[int], nr_frames: int | None = None) -> Domain:
    """A PVH domain with memory at just these guest frames, all zeroes: what a restore begins with.

    Of the frames of RAM, each that the guest has is the machine frame of its number. `nr_frames`
    is the size of the machine, if not what the domain needs. As in Xen, it has no memory map: the
    guest was told of it in its first life. ENOMEM: there are more pages than frames.
    """
    memory_size = config.most_memory & -PAGE_SIZE
    ranges = [low_ram(memory_size), high_ram(memory_size)]
    ram = [range(at.start >> PAGE_SHIFT, at.stop >> PAGE_SHIFT) for at in ranges if at]
    end = ram[-1].stop
    least = end + 2 + SPECIAL_FRAMES + XEN_FRAMES + MAX_PAGES_SLACK
    frames = Frames(Memory(nr_frames or least))
    frames.add_to_heap(range(end + 2, frames.memory.nr_frames))
    frames.share_with_guest(Mfn(end), config.domid, writable=True)
    for mfns in ram:
        frames.assign(Mfn(mfns.start), config.domid, len(mfns))
    p2m, there = P2m(*ram), set(gfns)
    for gfn in (gfn for mfns in ram for gfn in mfns if gfn not in there):
        p2m.remove(gfn)
        frames.release(Mfn(gfn))
    for gfn in gfns:
        if p2m.get(gfn) is None:
            p2m.set(gfn, frames.alloc_frames(config.domid)[0])
    first = gfns[0] if gfns else 0
    ring = p2m.get(first) or Mfn(0)  # until the stream says where the rings are
    return _new_domain(config, frames, p2m, [], Mfn(end), (Ring(ring), Ring(ring)))


def _make_domain(
    config: DomainConfig, frames: Frames, p2m: P2m, room: Room, shared_info: Mfn
) -> Domain:
    """Make the domain's record."""
    rings = (
        Ring(p2m.lookup(SpecialPage.CONSOLE.gfn)),
        Ring(p2m.lookup(SpecialPage.XENSTORE.gfn)),
    )
    return _new_domain(config, frames, p2m, room.e820, shared_info, rings)


def _new_domain(
    config: DomainConfig,
    frames: Frames,
    p2m: P2m,
    e820: E820,
    shared_info: Mfn,
    rings: tuple[Ring, Ring],
) -> Domain:
    """Make the record; after `shared_info` is a frame for vcpu_infos without room there."""
    console, xenstore = rings
    dummy_vcpu_info = Mfn(shared_info + 1)
    return Domain(
        width=8,
        memory=frames.memory,
        frames=frames,
        events=EventChannels(),
        grants=GrantTable(),
        console=console,
        xenstore=xenstore,
        shared_info=shared_info,
        max_pages=pages(config.memory & -PAGE_SIZE) + MAX_PAGES_SLACK,
        vcpus=[
            Vcpu(
                n,
                vcpu_info_at(n, shared_info, dummy_vcpu_info),
                width=4,
                environment="pvh32",
                arch=PvhVcpu(Lapic(acpi.apic_id(n))),
            )
            for n in range(config.all_vcpus)
        ],
        domid=config.domid,
        name=config.name,
        uuid=config.uuid,
        features=pvh_features(),
        e820=e820,
        p2m=p2m,
        wallclock_ns=config.wallclock_ns,
        debug_xen=config.debug_xen,
    )


def _fill(memory: Memory, p2m: P2m, room: Room) -> None:
    """Write what the machine brings along: the ACPI tables and the identity map."""
    _write(memory, p2m, ACPI_INFO_PHYSICAL_ADDRESS, room.tables.info + room.tables.tables)
    _write(memory, p2m, room.rsdp, room.tables.rsdp)
    _write(memory, p2m, SpecialPage.IDENT_PT.gfn << PAGE_SHIFT, _identity_map())


def _special_gfns(tables: AcpiTables, rsdp: int) -> list[int]:
    """The guest frames in the hole that have memory."""
    acpi_gfn = ACPI_INFO_PHYSICAL_ADDRESS >> PAGE_SHIFT
    gfns = {*range(acpi_gfn, acpi_gfn + pages(len(tables.info) + len(tables.tables)))}
    gfns |= {*range(FIRST_SPECIAL_PAGE, FIRST_SPECIAL_PAGE + X86_HVM_NR_SPECIAL_PAGES)}
    return sorted(gfns if rsdp < BIOS_END else gfns | {rsdp >> PAGE_SHIFT})


def _populate(frames: Frames, domid: int, memory_size: int, special: list[int], first: int) -> P2m:
    """Give the domain its RAM, and machine frames from `first` on for the `special` ones."""
    ranges = [low_ram(memory_size), high_ram(memory_size)]
    ram = [range(at.start >> PAGE_SHIFT, at.stop >> PAGE_SHIFT) for at in ranges if at]
    for mfns in ram:
        frames.assign(Mfn(mfns.start), domid, len(mfns))
    p2m = P2m(*ram)
    frames.assign(Mfn(first), domid, len(special))
    for mfn, gfn in enumerate(special, first):
        p2m.set(gfn, Mfn(mfn))
    return p2m


def _write(memory: Memory, p2m: P2m, paddr: int, data: bytes) -> None:
    """Write into guest frames that follow each other, and so do their machine frames."""
    mfn = p2m.lookup(paddr >> PAGE_SHIFT)
    memory.write(Maddr((mfn << PAGE_SHIFT) + (paddr & PAGE_MASK)), data)


def hvm_params(domain: Domain) -> dict[int, int]:
    """The HVM parameters that Xen and libxenguest give a domain, whose rings have ports."""
    return {
        params.HVM_PARAM_STORE_EVTCHN: domain.xenstore.port,
        params.HVM_PARAM_CONSOLE_EVTCHN: domain.console.port,
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


def _identity_map() -> bytes:
    """A page that maps all 4 GiB to themselves, for CPUs that cannot run unpaged guests."""
    return struct.pack("<1024I", *(n << 22 | PSE | D | A | US | RW | P for n in range(1024)))
