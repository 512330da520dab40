"""Validation: frames become page tables or pages of descriptors, and stop being that.

A tree of tables may be large, and a hypercall must end soon. So validation is done in steps. Its
work counts against `work_left`. When that is used up, `Restart` is raised, and the table at hand is
left partially validated (`partial`). The next call that wants the table goes on there. Until then
the table has its type, cannot be changed, and holds the references of its first entries. A type
reference and a general reference hold the table itself. The call that completes the table inherits
both.

A tree is dropped in steps, too. A table goes into `old_tables` when its last type reference is
gone, or when a refusal leaves it partially validated. `put_old_tables` drops what its entries hold.
Until then it is a partially validated table like any other.

An L1 table is validated at once, and any table is dropped at once, because that is a bounded piece
of work.

The old tables are a vcpu's, as in Xen: whoever switches vcpus points `old_tables` at those of the
vcpu that runs.

DIVERGES: a refusal within one call leaves memory as it was; Xen leaves its bits in the entries
before.

In Xen: arch/x86/mm.c (promote_*_table, demote_*_table, get_page_from_l?e, put_old_guest_table).
"""

from __future__ import annotations

from array import array
from collections.abc import Callable
from typing import Final

from xenemu.abi.errno import EBUSY, EINVAL, EPERM, ERANGE
from xenemu.abi.xen import VMASST_TYPE_m2p_strict, VMASST_TYPE_pae_extended_cr3
from xenemu.errors import XenError
from xenemu.hv.frame_table import (
    LEVELS,
    TYPE_NAMES,
    FrameTable,
    PGT_l1_page_table,
    PGT_pae_xen_l2,
    PGT_seg_desc_page,
    PGT_writable_page,
)
from xenemu.hv.memory import ZERO_PAGE, Memory
from xenemu.hv.paging_rules import GUEST_KERNEL, PAE_ENTRIES, PV64, PagingRules
from xenemu.hv.segdesc import check_descriptor, descriptor_refusal
from xenemu.x86.paging import (
    ADDR,
    ENTRIES,
    PAGE_SHIFT,
    PAGE_SIZE,
    RW,
    US,
    G,
    Maddr,
    Mfn,
    P,
    describe_entry,
)

INVALID_MFN_IN_ENTRY: Final = ADDR >> PAGE_SHIFT
FRAMES_BELOW_4G: Final = 1 << 32 - PAGE_SHIFT

MAX_LINEAR: Final = 0x7FFF  # as Xen counts in 16 bits, and one more below 0

# In units of `work_left`, beside one for a present entry of a higher table.
L1_WORK: Final = 64  # an L1 table, or a page of descriptors, validated or dropped
TABLE_WORK: Final = 8  # a higher table, for its entries that are not present

Write = tuple[int, bytes]  # a frame, and what it shall contain


class Restart(Exception):
    """There is more to validate than one call may do: the guest is to issue the call again.

    In Xen: -ERESTART.
    """


class Validation(FrameTable):
    """The frame table, with what it takes to become a page table and to cease to be one."""

    def __init__(self, memory: Memory, rules: PagingRules = PV64) -> None:
        super().__init__(memory)
        self.rules = rules
        self.vm_assist = 0  # the domain's VMASST_TYPE_* bits
        self.xen_slots: list[tuple[int, int]] = []  # (index, entry) that every root table gets
        # By mfn: how many linear entries point to a table (> 0), or a table has (< 0).
        self.linear_pt_count: dict[int, int] = {}
        # Of the vcpu that runs: to be dropped, the last first; a reference to each.
        self.old_tables: list[int] = []

    # Becoming a table.

    def _validate(self, take: Callable[..., None], *args: int) -> None:
        """Call what may validate tables, and write the tables whose entries Xen adjusts.

        Nothing is written before the whole tree has been accepted, or a part of it is left for
        later.
        """
        writes: list[Write] = []
        try:
            take(*args, writes)
        except XenError:
            if not self.put_old_tables():
                self._write_tables(writes)
            raise
        except Restart:
            self._write_tables(writes)
            raise
        self._write_tables(writes)

    def _write_tables(self, writes: list[Write]) -> None:
        for mfn, entries in writes:
            self.memory.write(Maddr(mfn << PAGE_SHIFT), entries)

    def _take_type(self, mfn: int, wanted: int, writes: list[Write]) -> None:
        if not self.type_count[mfn]:
            self._promote(mfn, wanted, writes)
        elif self.type[mfn] != wanted:
            raise XenError(
                EINVAL, f"{self.describe(mfn)} is wanted as {TYPE_NAMES[wanted]}: other type in use"
            )
        else:
            self._promote_table(mfn, wanted, writes)

    def _promote(self, mfn: int, wanted: int, writes: list[Write]) -> None:
        """Make an unused frame a `wanted`, with one type reference."""
        self.type[mfn] = wanted
        self.type_count[mfn] = 1
        self.note_typed(mfn)
        if LEVELS.get(wanted, 0) > 1:
            self._promote_table(mfn, wanted, writes)
            return
        try:
            if wanted == PGT_l1_page_table:
                self._promote_l1(mfn, writes)
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
        self.work_left -= L1_WORK
        if self.by_cpu is not None and (taken := self.by_cpu.take_l1(mfn)) is not None:
            if taken:
                writes.append((mfn, taken))
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
        """Validate the entries of a higher table, from where an earlier call stopped.

        If the table is refused or the call preempted, the table is partially validated. If it is
        refused, it is also dropped.
        """
        entries = self.memory.table(Mfn(mfn)).tolist()
        level, slots = LEVELS[wanted], self.rules.slots_of(wanted)
        table_bits = self.rules.table_bits[level]
        pae_root = self.rules.is_pae_root(level)
        if pae_root:
            entries[PAE_ENTRIES:] = [0] * (ENTRIES - PAE_ENTRIES)
        index = first = self.partial.get(mfn, 0)
        self.work_left -= TABLE_WORK
        try:
            if pae_root and mfn >= FRAMES_BELOW_4G and not self._has(VMASST_TYPE_pae_extended_cr3):
                raise XenError(ERANGE, f"L3 mfn {mfn:#x} is above 4 GiB, without pae_extended_cr3")
            for index, entry in enumerate(entries[first:], first):
                if not entry & P or index in slots:
                    if pae_root and index == PAE_ENTRIES - 1:
                        raise XenError(EINVAL, f"L3 mfn {mfn:#x} has no fourth entry, where Xen is")
                    continue
                if self.work_left <= 0 and index > first:
                    raise Restart
                self.work_left -= 1
                self._get_page_from_entry(mfn, index, entry, level, writes)
                entries[index] = entry | table_bits
        except (XenError, Restart) as stop:
            self._leave_partial(mfn, index)
            writes.append((mfn, array("Q", entries).tobytes()))
            if isinstance(stop, XenError):
                self._abandon(mfn)
            raise
        if mfn in self.partial:
            del self.partial[mfn]
            self.put_page(mfn)
        for index in slots:
            entries[index] = 0
        if slots:
            for index, entry in self.xen_slots:
                if index != self.rules.m2p_slot or self._has(VMASST_TYPE_m2p_strict):
                    entries[index] = entry
        writes.append((mfn, array("Q", entries).tobytes()))

    def _has(self, assist: int) -> bool:
        return bool(self.vm_assist >> assist & 1)

    def _promote_seg_desc(self, mfn: int, writes: list[Write]) -> None:
        self.work_left -= L1_WORK
        entries = array("Q", self.memory.table(Mfn(mfn)))
        for index, descriptor in enumerate(entries):
            checked = check_descriptor(descriptor, self.rules.width)
            if checked is None:
                why = descriptor_refusal(descriptor, self.rules.width)
                raise XenError(EINVAL, f"at {index} of mfn {mfn:#x}, {why}")
            entries[index] = checked
        writes.append((mfn, entries.tobytes()))

    # Ceasing to be one.

    def _leave_partial(self, mfn: int, validated: int) -> None:
        """Leave a table with only its first entries holding references."""
        if mfn not in self.partial:
            self.count[mfn] += 1
        self.partial[mfn] = validated

    def _abandon(self, mfn: int) -> None:
        """Have a partially validated table dropped."""
        self.count[mfn] += 1
        self.old_tables.append(mfn)

    def _drop_type(self, mfn: int) -> None:
        """Drop a type reference; with the last one, the frame's type ends, or is to end."""
        if self.type_count[mfn] > 1:
            self.type_count[mfn] -= 1
            return
        used_as = self.type[mfn]
        if LEVELS.get(used_as, 0) > 1:
            self._leave_partial(mfn, ENTRIES)
            self._abandon(mfn)
            return
        self.type_count[mfn] = 0
        self.type[mfn] = PGT_writable_page
        if used_as == PGT_l1_page_table:
            start = mfn << PAGE_SHIFT
            if self.memory.mapping[start : start + PAGE_SIZE] != ZERO_PAGE:
                self.work_left -= L1_WORK
                if self.by_cpu is None or not self.by_cpu.drop_l1(mfn):
                    self._put_pages_from_l1(self.memory.table(Mfn(mfn)).tolist())

    def put_old_tables(self) -> bool:
        """Drop the tables that wait for it, as far as `work_left` allows; whether all are."""
        while self.old_tables:
            if self.work_left <= 0:
                return False
            mfn = self.old_tables.pop()
            if mfn in self.partial:  # else somebody has completed it again
                self._demote_table(mfn)
            self.put_page(mfn)
        return True

    def _demote_table(self, mfn: int) -> None:
        """Drop what the entries of a partially validated table hold; it becomes ordinary memory."""
        used_as, table = self.type[mfn], self.memory.table(Mfn(mfn))
        level, slots = LEVELS[used_as], self.rules.slots_of(used_as)
        unadjust = self.rules.root_unadjust if level == self.rules.root_type else 0
        self.work_left -= TABLE_WORK
        for index, entry in enumerate(table[: self.partial.pop(mfn)].tolist()):
            if entry & P and index not in slots:
                self.work_left -= 1
                self._put_page_from_entry(mfn, entry, level)
                if entry & unadjust:
                    table[index] = entry & ~unadjust
        self.type[mfn] = PGT_writable_page
        self.type_count[mfn] = 0
        self.put_page(mfn)

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
        if not self.type_count[child]:
            self._promote(child, wanted, writes)
        elif self.type[child] == wanted:
            if child in self.partial:
                self._promote_table(child, wanted, writes)
            elif wanted == PGT_pae_xen_l2:
                raise self._entry_refusal(mfn, index, entry, level)
            else:
                self.type_count[child] += 1
        elif not self._may_be_linear(mfn, child, entry, level):
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
            return XenError(EINVAL, where + self._linear_refusal(entry, level))
        wanted = TYPE_NAMES[self.rules.child_type(level, index)]
        return XenError(EINVAL, f"{where}, needs a {wanted}, not {self.describe(child)}")

    def _linear_refusal(self, entry: int, level: int) -> str:
        if self.rules.is_pae_root(level):
            return "an L3 of a 32-bit guest cannot be"
        if entry & RW:
            return "it may not have RW"
        return "a table has such entries or is the target of some, not both"

    def _put_page_from_entry(self, mfn: int, entry: int, level: int) -> None:
        child = (entry & ADDR) >> PAGE_SHIFT
        if child == mfn:
            return
        if LEVELS.get(self.type[child]) == level:
            self._count_linear(mfn, child, -1)
        self._drop_type(child)
        self.put_page(child)

    def _may_be_linear(self, mfn: int, child: int, entry: int, level: int) -> bool:
        if entry & RW or LEVELS.get(self.type[child]) != level:
            return False
        if child == mfn:
            return not self.rules.is_pae_root(level)
        if child in self.partial or self.rules.is_pae_root(level):
            return False
        entries, uses = -self.linear_pt_count.get(mfn, 0), self.linear_pt_count.get(child, 0)
        return 0 <= entries < MAX_LINEAR and 0 <= uses <= MAX_LINEAR

    def _count_linear(self, mfn: int, child: int, step: int) -> None:
        for frame, change in ((mfn, -step), (child, step)):
            count = self.linear_pt_count.pop(frame, 0) + change
            if count:
                self.linear_pt_count[frame] = count
