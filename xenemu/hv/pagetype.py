"""Page types: what makes it safe that a PV guest writes its own page tables.

A frame is used as one thing at a time: a page table of one level, a page of segment descriptors,
or ordinary memory that may be mapped writable. Each use holds a type reference; the type changes
only when there is none. So a page table is never mapped writable, and every change to it comes
here to be checked.

A frame becomes a page table (`promote`) when its first reference of that type is taken: a pin, a
root pointer, or an entry of a table one level up. Every present entry is checked then, and holds
a reference to what it points to: an L1 entry to data (with a writable type reference if it is
RW), a higher one to a table of the level below. With the last reference of the type it stops
being one (`demote`), and its entries' references are dropped.

An entry of a table may also point, without RW, to a table of its own level ("linear" page
tables). The table it points to may then have no such entries itself, and the other way round. An
entry that points to the very table it is in holds no reference.

Where Xen validates in steps and can be preempted, this validates a whole tree at once: a frame
is validated exactly while its type count is not 0 (there is no PGT_validated or PGT_partial), and
a refusal leaves everything as it was.

In Xen: arch/x86/mm.c.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from typing import Final

from xenemu.abi.arch_x86.xen import HYPERVISOR_COMPAT_VIRT_START
from xenemu.abi.errno import EBUSY, EINVAL, EPERM
from xenemu.errors import XenError
from xenemu.hv.frame_table import (
    LEVELS,
    TYPE_NAMES,
    FrameTable,
    PGT_l1_page_table,
    PGT_l2_page_table,
    PGT_l3_page_table,
    PGT_l4_page_table,
    PGT_none,
    PGT_pae_xen_l2,
    PGT_pinned,
    PGT_seg_desc_page,
    PGT_writable_page,
)
from xenemu.hv.memory import ZERO_PAGE, Memory
from xenemu.hv.segdesc import check_descriptor, descriptor_refusal
from xenemu.x86.paging import (
    ADDR,
    ENTRIES,
    NX,
    PAGE_SHIFT,
    PAGE_SIZE,
    PAT,
    PCD,
    PSE,
    PWT,
    RW,
    US,
    A,
    D,
    G,
    Maddr,
    Mfn,
    P,
    describe_entry,
)

__all__ = [
    "GUEST_KERNEL",
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
]

GUEST_KERNEL: Final = 1 << 52  # _PAGE_GUEST_KERNEL: the guest wrote the L1 entry without US
INVALID_MFN_IN_ENTRY: Final = ADDR >> PAGE_SHIFT

# A change of only other bits than these needs no new reference. RW of a higher entry matters
# because a linear page table must not have it.
L1_REFERENCE_BITS: Final = ADDR | P | RW | PWT | PCD | PAT
TABLE_REFERENCE_BITS: Final = ADDR | P | RW | PWT | PCD | PSE

Write = tuple[int, bytes]  # a frame, and what it shall contain


@dataclass(frozen=True)
class PagingRules:
    """What page tables a kind of PV guest may have.

    `root_type` is the top level; `xen_type` is the type whose entries `xen_slots` Xen fills in.
    A domain without devices may not choose a cache attribute, and only an L1 entry may be global
    or have the bits that mean a large page higher up.
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
    root_disallow: int = 0  # what only an entry of the root may not have

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


NO_SLOTS: Final = range(0)
PAE_ENTRIES: Final = 4  # of an L3 table

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
    root_disallow=0xFFF << 52,  # NX, and what the PDPTEs of a CPU in PAE mode have reserved
)


class Frames(FrameTable):
    """The frame table with the rules of page types."""

    def __init__(self, memory: Memory, rules: PagingRules = PV64) -> None:
        super().__init__(memory)
        self.rules = rules
        self.xen_slots: list[tuple[int, int]] = []  # (index, entry) that every root table gets
        # By mfn: how many linear entries point to a table (> 0), or a table has (< 0).
        self.linear_pt_count: dict[int, int] = {}

    # Type references.

    def get_page_type(self, mfn: int, wanted: int) -> None:
        """Take a type reference to a frame to which a general one is held.

        EINVAL if the frame is in use as another type, or is not fit to become the one wanted;
        what one of its entries is refused for gives its own errno.
        """
        if self.type[mfn] == wanted:
            self.type_count[mfn] += 1
        elif self.type_count[mfn]:
            raise XenError(
                EINVAL, f"{self.describe(mfn)} is wanted as {TYPE_NAMES[wanted]}: other type in use"
            )
        else:
            writes: list[Write] = []
            self._promote(mfn, wanted, writes)
            self._write_tables(writes)

    def put_page_type(self, mfn: int) -> None:
        """Drop a type reference; with the last one, whatever type it was ends."""
        self.type_count[mfn] -= 1
        if not self.type_count[mfn]:
            self._demote(mfn)

    def get_page_and_type(self, mfn: int, domid: int, wanted: int) -> None:
        """Take a general and a type reference; EINVAL as both have it, and nothing is taken."""
        self.get_page(mfn, domid)
        try:
            self.get_page_type(mfn, wanted)
        except XenError:
            self.put_page(mfn)
            raise

    def put_page_and_type(self, mfn: int) -> None:
        """Drop both references."""
        self.put_page_type(mfn)
        self.put_page(mfn)

    def pin(self, mfn: int, domid: int, level: int) -> None:
        """Keep a table validated while nothing points to it.

        EINVAL if it is pinned already, or not fit for a table of that level.
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

    # Becoming another type, and ceasing to be it.

    def _promote(self, mfn: int, wanted: int, writes: list[Write]) -> None:
        """Make an unused frame a `wanted`, with one type reference.

        `writes` gathers the tables whose entries Xen adjusts: nothing is written until all of a
        tree has been accepted.
        """
        self.type[mfn] = wanted
        self.type_count[mfn] = 1
        self.note_typed(mfn)
        try:
            if wanted == PGT_l1_page_table:
                self._promote_l1(mfn, writes)
            elif wanted in LEVELS:
                self._promote_table(mfn, wanted, writes)
            elif wanted == PGT_seg_desc_page:
                self._promote_seg_desc(mfn, writes)
        except XenError:
            self.type[mfn] = PGT_writable_page
            self.type_count[mfn] = 0
            raise

    def _promote_l1(self, mfn: int, writes: list[Write]) -> None:
        start = mfn << PAGE_SHIFT
        if self.memory.mapping[start : start + PAGE_SIZE] == ZERO_PAGE:
            return
        owners, counts, types, type_counts = self.owner, self.count, self.type, self.type_count
        nr_frames = len(owners)
        domid = owners[mfn]
        disallow = self.rules.l1_disallow
        kernel_bits, user_bits = self.rules.l1_kernel_bits, self.rules.l1_user_bits
        entries = self.memory.table(Mfn(mfn)).tolist()
        adjusted = False
        for index, entry in enumerate(entries):
            if entry & P:
                target = (entry & ADDR) >> PAGE_SHIFT
                if entry & disallow or target >= nr_frames or owners[target] != domid:
                    break
                if entry & RW:
                    if types[target] != PGT_writable_page:
                        break
                    type_counts[target] += 1
                counts[target] += 1
                if not entry & US:
                    entries[index] = entry | kernel_bits
                    adjusted = True
                elif not entry & (GUEST_KERNEL | G):
                    entries[index] = entry | user_bits
                    adjusted = True
        else:
            if adjusted:
                writes.append((mfn, array("Q", entries).tobytes()))
            return
        self._put_pages_from_l1(entries[:index])
        raise self._l1e_refusal(mfn, index, entry, domid)

    def _promote_table(self, mfn: int, wanted: int, writes: list[Write]) -> None:
        entries = self.memory.table(Mfn(mfn)).tolist()
        level, slots = LEVELS[wanted], self.rules.slots_of(wanted)
        table_bits = self.rules.table_bits[level]
        adjusted = bool(slots)
        if self._is_pae_root(level):
            adjusted |= any(entries[PAE_ENTRIES:])
            entries[PAE_ENTRIES:] = [0] * (ENTRIES - PAE_ENTRIES)
            if not entries[PAE_ENTRIES - 1] & P:
                raise XenError(EINVAL, f"L3 mfn {mfn:#x} has no fourth entry, where Xen is")
        for index, entry in enumerate(entries):
            if not entry & P or index in slots:
                continue
            try:
                self._get_page_from_entry(mfn, index, entry, level, writes)
            except XenError:
                self._put_pages_from_table(mfn, wanted, entries[:index])
                raise
            entries[index] = entry | table_bits
            adjusted = True
        if slots:
            for index in slots:
                entries[index] = 0
            for index, entry in self.xen_slots:
                entries[index] = entry
        if adjusted:
            writes.append((mfn, array("Q", entries).tobytes()))

    def _is_pae_root(self, level: int) -> bool:
        return level == self.rules.root_type == PGT_l3_page_table

    def _promote_seg_desc(self, mfn: int, writes: list[Write]) -> None:
        entries = array("Q", self.memory.table(Mfn(mfn)))
        for index, descriptor in enumerate(entries):
            checked = check_descriptor(descriptor, self.rules.width)
            if checked is None:
                why = descriptor_refusal(descriptor, self.rules.width)
                raise XenError(EINVAL, f"at {index} of mfn {mfn:#x}, {why}")
            entries[index] = checked
        writes.append((mfn, entries.tobytes()))

    def _demote(self, mfn: int) -> None:
        """Drop what the entries of a frame hold, now that its last type reference is gone."""
        used_as = self.type[mfn]
        self.type[mfn] = PGT_writable_page
        if used_as == PGT_l1_page_table:
            start = mfn << PAGE_SHIFT
            if self.memory.mapping[start : start + PAGE_SIZE] != ZERO_PAGE:
                self._put_pages_from_l1(self.memory.table(Mfn(mfn)).tolist())
        elif used_as in LEVELS:
            self._put_pages_from_table(mfn, used_as, self.memory.table(Mfn(mfn)).tolist())

    # What an entry refers to.

    def _put_pages_from_l1(self, entries: list[int]) -> None:
        counts, type_counts = self.count, self.type_count
        for entry in entries:
            if entry & P:
                target = (entry & ADDR) >> PAGE_SHIFT
                if entry & RW:
                    type_counts[target] -= 1
                if counts[target] > 1:
                    counts[target] -= 1
                else:
                    self.put_page(target)

    def _put_pages_from_table(self, mfn: int, used_as: int, entries: list[int]) -> None:
        slots = self.rules.slots_of(used_as)
        for index, entry in enumerate(entries):
            if entry & P and index not in slots:
                self._put_page_from_entry(mfn, entry, LEVELS[used_as])

    def _l1e_refusal(self, mfn: int, index: int, entry: int, domid: int) -> XenError:
        """Why an L1 entry cannot be had for a frame of `domid`.

        EINVAL: bits that the guest may not set. EPERM: not RAM. EBUSY: another's frame, or
        mapped RW while in use as something else.
        """
        target = (entry & ADDR) >> PAGE_SHIFT
        where = f"L1 entry {index} of mfn {mfn:#x}, {describe_entry(entry)}"
        if entry & self.rules.l1_disallow:
            return XenError(EINVAL, f"{where}, has PWT, PCD or PAT, which need a device")
        if target == INVALID_MFN_IN_ENTRY:
            return XenError(EINVAL, f"{where}, points to the invalid mfn")
        if not self.memory.contains(target):
            return XenError(EPERM, f"{where}, points to I/O memory that d{domid} may not map")
        if self.owner[target] != domid:
            return XenError(EBUSY, f"{where}, maps {self.describe(target)} for d{domid}")
        return XenError(EBUSY, f"{where}, maps RW {self.describe(target)}")

    def _get_page_from_entry(
        self, mfn: int, index: int, entry: int, level: int, writes: list[Write]
    ) -> None:
        """Take what a present entry of an L2, L3 or L4 table holds.

        EINVAL if the bits or the frame are not fit; what an entry further down is refused for
        gives its own errno.
        """
        child = (entry & ADDR) >> PAGE_SHIFT
        usable = (
            not entry & self.rules.disallowed(level)
            and child < len(self.owner)
            and self.owner[child] == self.owner[mfn]
        )
        if not usable:
            raise self._entry_refusal(mfn, index, entry, level)
        wanted = self.rules.child_type(level, index)
        if self.type[child] == wanted and (wanted != PGT_pae_xen_l2 or not self.type_count[child]):
            self.type_count[child] += 1
        elif not self.type_count[child]:
            self._promote(child, wanted, writes)
        elif entry & RW or not self._may_be_linear(mfn, child, level):
            raise self._entry_refusal(mfn, index, entry, level)
        elif child == mfn:
            return
        else:
            self._count_linear(mfn, child, 1)
            self.type_count[child] += 1
        self.count[child] += 1

    def _entry_refusal(self, mfn: int, index: int, entry: int, level: int) -> XenError:
        """Why an entry of a higher table cannot be had."""
        child = (entry & ADDR) >> PAGE_SHIFT
        where = f"L{level} entry {index} of mfn {mfn:#x}, {describe_entry(entry)}"
        if entry & self.rules.root_disallow & self.rules.disallowed(level):
            return XenError(EINVAL, f"{where}, has NX or a bit above 51, which PAE's L3 has not")
        if entry & self.rules.table_disallow:
            return XenError(EINVAL, f"{where}, has PWT, PCD, PSE or G, which it may not")
        if self.memory.contains(child) and LEVELS.get(self.type[child]) == level:
            where += f", is linear: it leads to {self.describe(child)}; "
            if self._is_pae_root(level):
                return XenError(EINVAL, f"{where}an L3 of a 32-bit guest cannot be")
            if entry & RW:
                return XenError(EINVAL, f"{where}it may not have RW")
            return XenError(
                EINVAL, f"{where}a table has such entries or is the target of some, not both"
            )
        wanted = TYPE_NAMES[self.rules.child_type(level, index)]
        return XenError(EINVAL, f"{where}, needs a {wanted}, not {self.describe(child)}")

    def _put_page_from_entry(self, mfn: int, entry: int, level: int) -> None:
        child = (entry & ADDR) >> PAGE_SHIFT
        if child == mfn:
            return
        if LEVELS.get(self.type[child]) == level:
            self._count_linear(mfn, child, -1)
        self.put_page_and_type(child)

    def _may_be_linear(self, mfn: int, child: int, level: int) -> bool:
        if LEVELS.get(self.type[child]) != level or self._is_pae_root(level):
            return False
        if child == mfn:
            return True
        return self.linear_pt_count.get(mfn, 0) <= 0 <= self.linear_pt_count.get(child, 0)

    def _count_linear(self, mfn: int, child: int, step: int) -> None:
        for frame, change in ((mfn, -step), (child, step)):
            count = self.linear_pt_count.pop(frame, 0) + change
            if count:
                self.linear_pt_count[frame] = count

    # Changing an entry.

    def mod_entry(self, maddr: int, entry: int, pg_owner: int, preserve_ad: bool = False) -> bool:
        """Set the entry at `maddr`, in a frame that is a page table; whether to flush the TLB.

        `pg_owner` is whose frame an L1 entry may map; `preserve_ad` keeps the old entry's A and
        D bits. Errnos as `_l1e_refusal` and `_get_page_from_entry` have them; EINVAL for Xen's
        own entries of a root table, EPERM for those of an L2; EINVAL for another owner's frame in
        a higher entry.
        """
        mfn = maddr >> PAGE_SHIFT
        used_as = self.type[mfn]
        if used_as == PGT_l1_page_table:
            return self._mod_l1_entry(maddr, entry, pg_owner, preserve_ad)
        index, level = (maddr >> 3) % ENTRIES, LEVELS[used_as]
        if index in self.rules.slots_of(used_as):
            errno = EINVAL if level == self.rules.root_type else EPERM
            raise XenError(errno, f"L{level} entry {index} of mfn {mfn:#x} is Xen's")
        if self._is_pae_root(level) and index >= PAE_ENTRIES - 1:
            raise XenError(EINVAL, f"L3 entry {index} of mfn {mfn:#x} is not the guest's to change")
        if pg_owner != self.owner[mfn]:
            raise XenError(EINVAL, f"an L{level} entry cannot point to a frame of d{pg_owner}")
        old = self.memory.words[maddr >> 3]
        held = old & P
        if entry & P:
            entry |= self.rules.table_bits[level]
            if (old ^ entry) & (TABLE_REFERENCE_BITS | self.rules.disallowed(level)):
                writes: list[Write] = []
                self._get_page_from_entry(mfn, index, entry, level, writes)
                self._write_tables(writes)
            else:
                held = 0
        if preserve_ad:
            entry |= old & (A | D)
        self.memory.write_uint(Maddr(maddr), 8, entry)
        if held:
            self._put_page_from_entry(mfn, old, level)
        return needs_flush(old, entry)

    def _mod_l1_entry(self, maddr: int, entry: int, pg_owner: int, preserve_ad: bool) -> bool:
        """Set an L1 entry: the commonest of all updates."""
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
            self._put_pages_from_l1([old])
        return needs_flush(old, entry)

    def _write_tables(self, writes: list[Write]) -> None:
        for mfn, entries in writes:
            self.memory.write(Maddr(mfn << PAGE_SHIFT), entries)


def needs_flush(old: int, new: int) -> bool:
    """Whether a TLB that cached `old` would go wrong with `new`.

    It would not if nothing was taken away: a CPU walks the tables again before it faults.
    """
    if not old & P:
        return False
    return bool(old & ~new & (P | RW | US | A | D) | (old ^ new) & ADDR | new & ~old & NX)
