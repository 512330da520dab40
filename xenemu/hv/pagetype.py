"""Page types: they make it safe that a PV guest writes its own page tables.

A frame is used as one thing at a time: a page table of one level, a page of segment descriptors, or
ordinary memory that may be mapped writable. Each use holds a type reference. The type changes only
when there is no such reference. So a page table is never mapped writable, and every change to it
comes here to be checked.

A frame becomes a page table when the first reference of that type is taken. Such a reference is a
pin, a root pointer, or an entry of a table one level up. At that moment every present entry is
checked. Each takes a reference to what it points to. An L1 entry refers to data, with a writable
type reference if the entry is RW. A higher entry refers to a table of the level below. When the
last reference of the type goes, the frame is no longer a page table, and the references of its
entries are dropped. `xenemu.hv.validation` does both, in steps.

For example, a guest pins an L4 table. Each present L4 entry then refers to an L3 table, which is
checked for the same reason, and so on down to the data. If some L1 entry maps one of these tables
RW, the pin is refused: the table would have to be writable data, and a page table, at once.

If Xen is told to allow it, an entry of a table may also point, without RW, to a table of its own
level ("linear" page tables). That table may then have no such entries itself, and the other way
round. An entry that points to the very table it is in holds no reference.

Not here: what Xen does against L1TF. On a CPU with that bug, Xen runs a domain on shadow page
tables as soon as an entry that is not present has an address. The CPU here does not have the bug.

In Xen: arch/x86/mm.c.
"""

from __future__ import annotations

from typing import Final

from xenemu.abi.errno import EINVAL, EPERM
from xenemu.errors import XenError
from xenemu.hv.frame_table import (
    LEVELS,
    UNLIMITED,
    PGT_l1_page_table,
    PGT_l2_page_table,
    PGT_l3_page_table,
    PGT_l4_page_table,
    PGT_none,
    PGT_pinned,
    PGT_seg_desc_page,
    PGT_writable_page,
)
from xenemu.hv.paging_rules import GUEST_KERNEL, PAE_ENTRIES, PV32, PV64, PagingRules
from xenemu.hv.validation import Restart, Validation
from xenemu.x86.paging import (
    ADDR,
    ENTRIES,
    NX,
    PAGE_SHIFT,
    PAT,
    PCD,
    PSE,
    PWT,
    RW,
    US,
    A,
    D,
    Maddr,
    Mfn,
    P,
)

__all__ = [
    "GUEST_KERNEL",
    "PV32",
    "PV64",
    "Frames",
    "PGT_l1_page_table",
    "PGT_l2_page_table",
    "PGT_l3_page_table",
    "PGT_l4_page_table",
    "PGT_none",
    "PGT_seg_desc_page",
    "PGT_writable_page",
    "PagingRules",
    "Restart",
]

# A change of only other bits than these needs no new reference. RW of a higher entry matters
# because a linear page table must not have it.
L1_REFERENCE_BITS: Final = ADDR | P | RW | PWT | PCD | PAT
TABLE_REFERENCE_BITS: Final = ADDR | P | RW | PWT | PCD | PSE


class Frames(Validation):
    """The frame table with the rules of page types.

    Methods that take a type reference may do a part, and raise `Restart`. Methods that drop one may
    leave `old_tables`, which `put_old_tables` goes on with.
    """

    # Type references.

    def get_page_type(self, mfn: int, wanted: int) -> None:
        """Take a type reference to a frame to which a general one is held.

        EINVAL if the frame is in use as another type, or is not fit to become the one wanted. If
        one of its entries is refused, the errno is that entry's.
        """
        if self.type[mfn] == wanted and mfn not in self.partial:
            self.type_count[mfn] += 1
        else:
            self._validate(self._take_type, mfn, wanted)

    def put_page_type(self, mfn: int) -> None:
        """Drop a type reference; with the last one, whatever type it was ends."""
        self._drop_type(mfn)
        if self.old_tables:
            self.put_old_tables()

    def get_page_and_type(self, mfn: int, domid: int, wanted: int) -> None:
        """Take a general and a type reference; EINVAL as both have it, and nothing is taken."""
        self.get_page(mfn, domid)
        try:
            self.get_page_type(mfn, wanted)
        except (XenError, Restart):
            self.put_page(mfn)
            raise

    def put_page_and_type(self, mfn: int) -> None:
        """Drop both references."""
        self.put_page_type(mfn)
        self.put_page(mfn)

    def pin(self, mfn: int, domid: int, level: int) -> None:
        """Keep a table validated while nothing points to it.

        EINVAL if the table is pinned already, or is not fit to be a table of this level.
        """
        self.get_page_and_type(mfn, domid, level)
        if self.flags[mfn] & PGT_pinned:
            self.put_page_and_type(mfn)
            raise XenError(EINVAL, f"{self.describe(mfn)} is pinned already")
        self.flags[mfn] |= PGT_pinned

    def unpin(self, mfn: int, domid: int) -> None:
        """Undo `pin`; EINVAL if the frame is not pinned."""
        self.get_page(mfn, domid)
        if not self.flags[mfn] & PGT_pinned:
            self.put_page(mfn)
            raise XenError(EINVAL, f"{self.describe(mfn)} is not pinned")
        self.flags[mfn] &= ~PGT_pinned
        self.put_page_and_type(mfn)
        self.put_page(mfn)

    def relinquish(self, domid: int) -> list[str]:
        """Take all frames from a domain that is gone; return a sentence for each that is in use.

        What its vcpus and devices held must have been dropped. In Xen: relinquish_memory.
        """
        self.work_left = UNLIMITED
        owned = [mfn for mfn, owner in enumerate(self.owner) if owner == domid]
        for mfn in owned:
            if self.flags[mfn] & PGT_pinned:
                self.flags[mfn] &= ~PGT_pinned
                self.put_page_and_type(mfn)
        for mfn in list(self.partial):
            self._abandon(mfn)
        self.put_old_tables()
        for mfn in owned:
            self.release(Mfn(mfn))
        return [self.describe(mfn) for mfn in owned if self.count[mfn]]

    # Changing an entry.

    def mod_entry(self, maddr: int, entry: int, pg_owner: int, preserve_ad: bool = False) -> bool:
        """Set the entry at `maddr`, in a frame that is a page table; whether to flush the TLB.

        An L1 entry may map the frames of `pg_owner`. `preserve_ad` keeps the old entry's A and D
        bits.

        The errnos are those of `_l1e_refusal` and `_get_page_from_entry`. EINVAL (in an L2, EPERM)
        for Xen's own entries. EINVAL also for another owner's frame in a higher entry, and for a
        table that is not validated as a whole.
        """
        mfn = maddr >> PAGE_SHIFT
        used_as = self.type[mfn]
        if used_as == PGT_l1_page_table:
            return self.mod_l1_entry(maddr, entry, pg_owner, preserve_ad)
        index, level = (maddr >> 3) % ENTRIES, LEVELS[used_as]
        if mfn in self.partial:
            raise XenError(EINVAL, f"{self.describe(mfn)} is not validated wholly")
        if index in self.rules.slots_of(used_as):
            errno = EPERM if level == PGT_l2_page_table else EINVAL
            raise XenError(errno, f"L{level} entry {index} of mfn {mfn:#x} is Xen's")
        if self.rules.is_pae_root(level) and index >= PAE_ENTRIES - 1:
            raise XenError(EINVAL, f"L3 entry {index} of mfn {mfn:#x} is not the guest's to change")
        if pg_owner != self.owner[mfn]:
            raise XenError(EINVAL, f"an L{level} entry cannot point to a frame of d{pg_owner}")
        old = self.memory.words[maddr >> 3]
        held = old & P
        if entry & P:
            entry |= self.rules.table_bits[level]
            if (old ^ entry) & (TABLE_REFERENCE_BITS | self.rules.disallowed(level)):
                self._validate(self._get_page_from_entry, mfn, index, entry, level)
            else:
                held = 0
        if preserve_ad:
            entry |= old & (A | D)
        self.memory.write_uint(Maddr(maddr), 8, entry)
        if held:
            self._put_page_from_entry(mfn, old, level)
            self.put_old_tables()
        return needs_flush(old, entry)

    def mod_l1_entry(
        self, maddr: int, entry: int, pg_owner: int, preserve_ad: bool = False
    ) -> bool:
        """`mod_entry` in a frame that is an L1 table: the commonest of all updates."""
        memory, rules = self.memory, self.rules
        mfn = maddr >> PAGE_SHIFT
        old = memory.words[maddr >> 3]
        held = old & P
        if entry & P:
            if not entry & US:
                entry |= rules.l1_kernel_bits
            elif not entry & GUEST_KERNEL:
                entry |= rules.l1_user_bits
            if (old ^ entry) & L1_REFERENCE_BITS:
                target = (entry & ADDR) >> PAGE_SHIFT
                if (
                    entry & rules.l1_disallow
                    or target >= memory.nr_frames
                    or self.owner[target] != pg_owner
                    or (entry & RW and self.type[target] != PGT_writable_page)
                ):
                    raise self._l1e_refusal(mfn, (maddr >> 3) % ENTRIES, entry, pg_owner)
                if entry & RW:
                    self.type_count[target] += 1
                self.count[target] += 1
            else:
                held = 0
        if preserve_ad:
            entry |= old & (A | D)
        memory.words[maddr >> 3] = entry
        if memory.code[mfn]:
            memory.stale_code.add(mfn)
        if held:
            target = (old & ADDR) >> PAGE_SHIFT
            if old & RW:
                self.type_count[target] -= 1
            if self.count[target] > 1:
                self.count[target] -= 1
            else:
                self.put_page(target)
        return bool(old & P) and needs_flush(old, entry)


def needs_flush(old: int, new: int) -> bool:
    """Whether a TLB that cached `old` would go wrong with `new`.

    It would not if `new` takes nothing away: a CPU walks the tables again before it faults.
    """
    if not old & P:
        return False
    return bool(old & ~new & (P | RW | US | A | D) | (old ^ new) & ADDR | new & ~old & NX)
