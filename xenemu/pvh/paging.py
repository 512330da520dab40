"""The gate to a native guest's memory: its own page tables, in the mode that it is in.

Intel SDM volume 3, "Paging". In Xen: arch/x86/mm/hap/guest_walk.c
"""

from __future__ import annotations

from xenemu.abi.errno import EFAULT
from xenemu.errors import XenError
from xenemu.hv.cpu import NativeCpu
from xenemu.hv.current import Current
from xenemu.x86.paging import (
    ADDR,
    PAGE_MASK,
    PAGE_SHIFT,
    PSE,
    RW,
    A,
    D,
    Maddr,
    P,
    is_canonical,
)

CR0_WP, CR0_PG = 1 << 16, 1 << 31
CR4_PSE, CR4_PAE = 1 << 4, 1 << 5
EFER_LMA = 1 << 10
ADDR32 = 0xFFFFF000
PDPT_MASK = 0xFFFFFFE0
LARGE_PAGE_BITS = {2: 21, 3: 30}  # by level, in the formats with 8-byte entries


def cpu_of(current: Current) -> NativeCpu:
    """The current CPU, which runs its guest natively."""
    native: NativeCpu = current.cpu  # type: ignore[assignment]
    return native


def translate(current: Current, vaddr: int, writing: bool) -> Maddr:
    """Find the machine address of `vaddr` by the guest's tables.

    EFAULT: not mapped, not writable, not canonical, or mapped to no memory.
    """
    maddr = cpu_of(current).translate(vaddr, writing)
    if maddr is not None:
        return Maddr(maddr)
    paddr = guest_physical(current, vaddr, writing)
    p2m = current.domain.p2m
    assert p2m is not None
    mfn = p2m.get(paddr >> PAGE_SHIFT)
    if mfn is None:
        raise XenError(EFAULT, f"{vaddr:#x} leads to no memory: guest address {paddr:#x}")
    return Maddr(mfn << PAGE_SHIFT | paddr & PAGE_MASK)


def guest_physical(current: Current, vaddr: int, writing: bool = False) -> int:
    """Walk the guest's page tables, and mark its entries accessed and dirty.

    EFAULT as for `translate`. Only kernels make hypercalls, so without CR0.WP they may write to
    read-only pages.
    """
    cpu = cpu_of(current)
    if not cpu.cr0 & CR0_PG:
        return vaddr & 0xFFFFFFFF
    if not cpu.cr4 & CR4_PAE:
        return _walk32(current, vaddr & 0xFFFFFFFF, writing)
    if cpu.efer & EFER_LMA:
        if not is_canonical(vaddr):
            raise _fault(vaddr, "is not canonical")
        return _walk64(current, vaddr, writing, 4, cpu.cr3 & ADDR)
    return _walk64(current, vaddr & 0xFFFFFFFF, writing, 3, cpu.cr3 & PDPT_MASK)


def _walk64(current: Current, vaddr: int, writing: bool, levels: int, table: int) -> int:
    """Walk 4-level or PAE tables: each struct that a hypercall points to needs that."""
    memory, p2m = current.domain.memory, current.domain.p2m
    assert p2m is not None
    walked = []
    for level in range(levels, 0, -1):
        paddr = table + (vaddr >> PAGE_SHIFT + 9 * (level - 1) & 511) * 8
        mfn = p2m.get(paddr >> PAGE_SHIFT)
        if mfn is None:
            raise _no_table(paddr)
        maddr = Maddr(mfn << PAGE_SHIFT | paddr & PAGE_MASK)
        entry = memory.words[maddr >> 3]
        pae_root = levels == level == 3
        if not entry & P or (writing and not entry & RW and not pae_root):
            _check(current, vaddr, entry, writing)
        if not pae_root:
            walked.append((maddr, entry))
        if level == 1 or (entry & PSE and level in LARGE_PAGE_BITS and not pae_root):
            _mark(current, walked, 8, writing)
            offset = (1 << (PAGE_SHIFT if level == 1 else LARGE_PAGE_BITS[level])) - 1
            return entry & ADDR & ~offset | vaddr & offset
        table = entry & ADDR
    raise AssertionError("level 1 returns")


def _walk32(current: Current, vaddr: int, writing: bool) -> int:
    """Walk 32-bit tables, with 4 MiB pages if CR4.PSE."""
    cpu, memory = cpu_of(current), current.domain.memory
    maddr = _entry_maddr(current, (cpu.cr3 & ADDR32) + (vaddr >> 22) * 4)
    entry = memory.read_uint(maddr, 4)
    _check(current, vaddr, entry, writing)
    walked = [(maddr, entry)]
    large = entry & PSE and cpu.cr4 & CR4_PSE
    if not large:
        maddr = _entry_maddr(current, (entry & ADDR32) + (vaddr >> 12 & 1023) * 4)
        entry = memory.read_uint(maddr, 4)
        _check(current, vaddr, entry, writing)
        walked.append((maddr, entry))
    _mark(current, walked, 4, writing)
    if large:  # bits 20:13 are bits 39:32 of the address (PSE-36)
        return entry & 0xFFC00000 | (entry & 0x1FE000) << 19 | vaddr & 0x3FFFFF
    return entry & ADDR32 | vaddr & PAGE_MASK


def _check(current: Current, vaddr: int, entry: int, writing: bool) -> None:
    """EFAULT for an entry that does not let the access through."""
    if not entry & P:
        raise _fault(vaddr, "is not mapped")
    if writing and not entry & RW and cpu_of(current).cr0 & CR0_WP:
        raise _fault(vaddr, "is read-only")


def _mark(current: Current, walked: list[tuple[Maddr, int]], size: int, writing: bool) -> None:
    """Set the accessed bits of the entries of a walk, and the last one's dirty bit on a write."""
    last, _ = walked[-1]
    for maddr, entry in walked:
        marked = entry | A | (D if writing and maddr == last else 0)
        if marked != entry:
            current.domain.memory.write_uint(maddr, size, marked)


def _entry_maddr(current: Current, paddr: int) -> Maddr:
    p2m = current.domain.p2m
    assert p2m is not None
    mfn = p2m.get(paddr >> PAGE_SHIFT)
    if mfn is None:
        raise _no_table(paddr)
    return Maddr(mfn << PAGE_SHIFT | paddr & PAGE_MASK)


def _no_table(paddr: int) -> XenError:
    return _fault(paddr, "holds a page table, but is no memory")


def _fault(vaddr: int, what: str) -> XenError:
    return XenError(EFAULT, f"{vaddr:#x} {what}")
