"""Xen's per-domain area: where each vcpu's GDT and LDT are mapped, for Xen alone.

A vcpu has 32 pages of the area. Pages 0 to 13 are the guest's GDT. Page 14 has Xen's own
descriptors. The LDT begins at page 16, and each of its pages is mapped when it is first used.

In Xen: include/asm-x86/config.h (PERDOMAIN_VIRT_START, GDT_LDT_*), arch/x86/pv/domain.c.
"""

from __future__ import annotations

from xenemu.hv.current import Current
from xenemu.pv.state import pv, pv_domain
from xenemu.x86.paging import ENTRIES, PAGE_SHIFT

# By the guest's width. DIVERGES: 64-bit Xen maps a 32-bit guest's tables above 4 GiB, too; here
# the CPU that runs it has 32-bit addresses, and they lie in the last of Xen's 4 MiB below, where
# its kernel can read them.
PERDOMAIN_VIRT_START = {8: 0xFFFF_8200_0000_0000, 4: 0xFFC0_0000}
PERDOMAIN_L2_SLOT = 510  # where 0xFFC00000 is in the last L2 of PAE tables
PERDOMAIN_L4_SLOT = 260
PAGES_PER_VCPU = 32
LDT_PAGE = 16
VCPUS_PER_L1 = ENTRIES // PAGES_PER_VCPU


def gdt_base(vcpu_id: int, width: int = 8) -> int:
    """The linear address of a vcpu's GDT, in a guest of `width`."""
    return PERDOMAIN_VIRT_START[width] + (vcpu_id * PAGES_PER_VCPU << PAGE_SHIFT)


def ldt_base(vcpu_id: int, width: int = 8) -> int:
    """The linear address where a vcpu's LDT is mapped, in a guest of `width`."""
    return gdt_base(vcpu_id, width) + (LDT_PAGE << PAGE_SHIFT)


def map_page(current: Current, page: int, entry: int) -> None:
    """Set one of the vcpu's 32 entries."""
    vcpu_id = current.vcpu.vcpu_id
    l1 = pv_domain(current).perdomain_l1[vcpu_id // VCPUS_PER_L1]
    index = vcpu_id % VCPUS_PER_L1 * PAGES_PER_VCPU + page
    current.domain.memory.table(l1)[index] = entry
    current.cpu.flush_tlb()


def drop_ldt(current: Current) -> None:
    """Unmap what is mapped of the LDT (pv_destroy_ldt)."""
    state = pv(current)
    if not state.ldt_frames:  # as with each change of a Linux's address space
        return
    for page, mfn in sorted(state.ldt_frames.items()):
        map_page(current, LDT_PAGE + page, 0)
        current.domain.frames.put_page_and_type(mfn)
    state.ldt_frames.clear()
