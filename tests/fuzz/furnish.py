"""How the guest prepares itself, by hypercalls: handlers, windows on Xen's frames, grants.

After that, random steps hit something: there are callbacks to be entered, events and grants to be
used, and a page at the very end of the address space.
"""

from __future__ import annotations

import struct

from fakes import DOMID
from fuzz.contexts import HANDLED, fresh_context
from fuzz.world import World
from xenemu.abi.arch_x86.xen import (
    FLAT_RING1_CS,
    FLAT_RING1_SS,
    FLAT_RING3_CS64,
    FLAT_RING3_SS64,
    trap_info,
)
from xenemu.abi.grant_table import GTF_permit_access, gnttab_setup_table, grant_entry_v1
from xenemu.abi.memory import (
    XENMAPSPACE_grant_table,
    XENMAPSPACE_shared_info,
    XENMEM_add_to_physmap,
    xen_add_to_physmap,
)
from xenemu.abi.vcpu import VCPUOP_initialise, VCPUOP_up
from xenemu.abi.xen import DOMID_SELF, MMUEXT_NEW_USER_BASEPTR, Nr, mmuext_op
from xenemu.abi.xen import mmu_update as mmu_update_t
from xenemu.hv.cpu import Reg
from xenemu.pv.paging import cr3_to_mfn
from xenemu.x86.paging import PAGE_SHIFT, RW, US, Mfn, P, walk

WINDOWS = ("shared_info", "grants", "spare")
GRANTED = range(8, 24)  # references of the guest's own
TOP = 1 << 64


def hypercall(world: World, number: int, *args: int, data: bytes = b"") -> None:
    """Make a hypercall that must succeed; `data` is stored at the arena."""
    step = {"kind": "call", "number": number, "args": list(args)}
    if data:
        step["data"] = [[world.arena, data.hex()]]
    world.perform(step)
    result = world.current.cpu.regs[Reg.RAX]
    assert result < 1 << 31, (
        f"hypercall {number}{args}: {result:#x}: {world.current.domain.calls[-1]}"
    )


def frame_at(world: World, vaddr: int) -> int:
    """The machine frame at an address of the guest's."""
    return world.current.translate(world.current, vaddr, False) >> PAGE_SHIFT


def furnish_pv(world: World) -> None:
    """Make a PV guest at home."""
    width = world.current.vcpu.width
    wide = width == 8
    handler = world.handler
    cs = FLAT_RING3_CS64 if wide else FLAT_RING1_CS
    ss = FLAT_RING3_SS64 if wide else FLAT_RING1_SS
    table = b"".join(trap_info(n, 0, cs, handler).pack(width) for n in HANDLED)
    hypercall(world, Nr.set_trap_table, world.arena, data=table + bytes(16))
    if wide:
        hypercall(world, Nr.set_callbacks, handler, handler, handler)
    else:
        hypercall(world, Nr.set_callbacks, cs, handler, cs, handler)
    hypercall(world, Nr.stack_switch, ss, world.stack)
    _map_windows(world, wide)
    _find_rings(world)
    _write_grants(world, world.current.domain.grants.frames[0])
    if wide:
        root = world.current.cpu.cr3 >> PAGE_SHIFT
        op = mmuext_op(MMUEXT_NEW_USER_BASEPTR, root, 0)
        hypercall(world, Nr.mmuext_op, world.arena, 1, 0, DOMID_SELF, data=op.pack(8))
        _map_the_last_page(world)
    _start_vcpus(world)


def _start_vcpus(world: World) -> None:
    """Let as many vcpus run as the world has; one more has never been started."""
    for number in range(1, world.vcpus):
        data = fresh_context(world, number)
        hypercall(world, Nr.vcpu_op, VCPUOP_initialise, number, world.arena, data=data)
        hypercall(world, Nr.vcpu_op, VCPUOP_up, number, 0)
        assert world.current.domain.vcpus[number].online


def _map_windows(world: World, wide: bool) -> None:
    domain = world.current.domain
    setup = gnttab_setup_table(DOMID_SELF, 1, 0, world.arena + 64)
    hypercall(world, Nr.grant_table_op, 2, world.arena, 1, data=setup.pack(domain.width))
    frames = (domain.shared_info, domain.grants.frames[0])
    for name, mfn in zip(WINDOWS, frames, strict=False):
        vaddr = world.arena + (world.arena_pages + WINDOWS.index(name) << PAGE_SHIFT)
        world.windows[name] = vaddr
        _map(world, vaddr, mfn << PAGE_SHIFT | P | RW | US, wide)


def _find_rings(world: World) -> None:
    """Where the builder mapped the rings: each page of the guest's lies at its pfn."""
    domain, base = world.current.domain, world.code & -0x400000
    for name, mfn in (("console", domain.console.mfn), ("xenstore", domain.xenstore.mfn)):
        world.windows[name] = base + (domain.frames.get_m2p(mfn) << PAGE_SHIFT)


def _map(world: World, vaddr: int, entry: int, wide: bool) -> None:
    if wide:
        hypercall(world, Nr.update_va_mapping, vaddr, entry, 2)
    else:
        hypercall(world, Nr.update_va_mapping, vaddr, entry & 0xFFFFFFFF, entry >> 32, 2)


def _write_grants(world: World, _table: int) -> None:
    """Let the guest grant pages of its arena to itself."""
    for n, ref in enumerate(GRANTED):
        at = world.arena + (n << PAGE_SHIFT)
        frame = at >> PAGE_SHIFT if world.current.domain.p2m else frame_at(world, at)
        entry = grant_entry_v1(GTF_permit_access, DOMID, frame)
        data = entry.pack(8).hex()
        step = {"kind": "time", "ns": 0, "data": [[world.windows["grants"] + 8 * ref, data]]}
        world.perform(step)


def _map_the_last_page(world: World) -> None:
    """Map the page below 2^64, through tables made of three pages of the arena's end."""
    first = world.arena + (world.arena_pages + len(WINDOWS) << PAGE_SHIFT)
    l2, l1, page = (frame_at(world, first + (n << PAGE_SHIFT)) for n in range(3))
    link = P | RW | US
    for at, entry in ((1, page << PAGE_SHIFT | link), (0, l1 << PAGE_SHIFT | link)):
        vaddr = first + (at << PAGE_SHIFT)
        last = vaddr + 8 * 511
        data = [[vaddr, bytes(4096).hex()], [last, struct.pack("<Q", entry).hex()]]
        world.perform({"kind": "time", "ns": 0, "data": data})
        own = frame_at(world, vaddr) << PAGE_SHIFT | P | US
        _map(world, vaddr, own, wide=True)
    steps = walk(
        world.current.domain.memory.words,
        Mfn(cr3_to_mfn(world.current.cpu.cr3, 8)),
        TOP - 4096 & (1 << 48) - 1,
    )
    request = mmu_update_t(steps[-1].entry_maddr, l2 << PAGE_SHIFT | link).pack(8)
    hypercall(world, Nr.mmu_update, world.arena, 1, 0, DOMID_SELF, data=request)
    world.windows["last"] = TOP - 4096


def furnish_pvh(world: World) -> None:
    """Make a PVH guest at home."""
    width = 8 if world.environment == "pvh64" else 4
    for ring in ("console", "xenstore"):  # all of memory is where it is
        world.windows[ring] = getattr(world.current.domain, ring).mfn << PAGE_SHIFT
    for name, space in (
        ("shared_info", XENMAPSPACE_shared_info),
        ("grants", XENMAPSPACE_grant_table),
    ):
        vaddr = world.arena + (world.arena_pages + WINDOWS.index(name) << PAGE_SHIFT)
        world.windows[name] = vaddr
        op = xen_add_to_physmap(DOMID_SELF, 0, space, 0, vaddr >> PAGE_SHIFT)
        args = (XENMEM_add_to_physmap, world.arena)
        hypercall(world, Nr.memory_op, *args, data=op.pack(width))
    _write_grants(world, 0)
    _start_vcpus(world)
