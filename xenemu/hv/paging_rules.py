"""What page tables a kind of PV guest may have: levels, Xen's own entries, bits.

In Xen: arch/x86/mm.c (*_DISALLOW_MASK, adjust_guest_*, is_guest_*_slot).
"""

from __future__ import annotations

from typing import Final

from xenemu.abi.arch_x86.xen import HYPERVISOR_COMPAT_VIRT_START
from xenemu.hv.frame_table import PGT_l3_page_table, PGT_l4_page_table, PGT_pae_xen_l2
from xenemu.records import dataclass
from xenemu.x86.paging import PAT, PCD, PSE, PWT, RW, US, A, G

GUEST_KERNEL: Final = 1 << 52  # _PAGE_GUEST_KERNEL: the guest wrote the L1 entry without US
M2P_L4_SLOT: Final = 256  # RO_MPT_VIRT_START's
PAE_ENTRIES: Final = 4  # of an L3 table
NO_SLOTS: Final = range(0)


@dataclass(frozen=True)
class PagingRules:
    """What page tables a kind of PV guest may have.

    `root_type` is the top level. `xen_type` is the type of tables in which Xen fills in the entries
    `xen_slots`. A domain without devices may not choose a cache attribute. Only an L1 entry may be
    global, or have the bits that mean a large page higher up.
    """

    width: int  # bytes of the guest's unsigned long
    root_type: int
    xen_type: int
    xen_slots: range
    l1_disallow: int
    table_disallow: int
    l1_kernel_bits: int  # what Xen sets in a present L1 entry without US,
    l1_user_bits: int  # in one with US that the guest did not mark as its kernel's,
    table_bits: dict[int, int]  # and in a present higher entry, by its level
    m2p_slot: int | None = None  # Xen's entry that a root gets when it is the kernel's
    root_disallow: int = 0  # what only an entry of the root may not have,
    root_unadjust: int = 0  # and what Xen clears in one when its table ceases to be one

    def is_pae_root(self, level: int) -> bool:
        """Whether tables of this level are the roots of PAE, of four entries."""
        return level == self.root_type == PGT_l3_page_table

    def slots_of(self, used_as: int) -> range:
        """The entries of a table of this type that are Xen's."""
        return self.xen_slots if used_as == self.xen_type else NO_SLOTS

    def disallowed(self, level: int) -> int:
        """The bits that a present entry of a higher table may not have."""
        return self.table_disallow | (self.root_disallow if level == self.root_type else 0)

    def child_type(self, level: int, index: int) -> int:
        """What an entry of a higher table leads to."""
        if self.xen_type == PGT_pae_xen_l2 and level == PGT_l3_page_table and index == 3:
            return PGT_pae_xen_l2
        return level - 1


PV64: Final = PagingRules(
    width=8,
    root_type=PGT_l4_page_table,
    xen_type=PGT_l4_page_table,
    xen_slots=range(256, 272),
    l1_disallow=PWT | PCD | PAT,
    table_disallow=PWT | PCD | PSE | G,
    l1_kernel_bits=US | GUEST_KERNEL,
    l1_user_bits=G,
    table_bits=dict.fromkeys((2, 3, 4), US),
    m2p_slot=M2P_L4_SLOT,
)

# A 32-bit guest's PAE tables, as 64-bit Xen has them: they are walked below a fourth level.
PV32: Final = PagingRules(
    width=4,
    root_type=PGT_l3_page_table,
    xen_type=PGT_pae_xen_l2,
    xen_slots=range(HYPERVISOR_COMPAT_VIRT_START >> 21 & 511, 512),
    l1_disallow=PWT | PCD | PAT,
    table_disallow=PWT | PCD | PSE | G,
    l1_kernel_bits=0,
    l1_user_bits=0,
    table_bits={2: 0, 3: US | RW},
    root_disallow=0xFFF << 52,  # NX, and what the PDPTEs of a CPU in PAE mode have reserved,
    root_unadjust=US | RW | A,  # as also these are
)
