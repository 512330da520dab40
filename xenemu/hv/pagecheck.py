"""Check the frame table against what memory says: the invariants of page types.

In Xen: arch/x86/audit.c, as long as it had one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterable, Iterator

from xenemu.hv.frame_table import (
    LEVELS,
    TYPE_NAMES,
    PGC_allocated,
    PGC_xen_heap,
    PGT_none,
    PGT_pinned,
    PGT_seg_desc_page,
    PGT_writable_page,
)
from xenemu.hv.pagetype import Frames
from xenemu.x86.paging import ADDR, ENTRIES, PAGE_SHIFT, RW, US, Mfn, P, describe_entry


def recount(
    frames: Frames,
    held: Iterable[tuple[int, int]] = (),
    granted: Container[tuple[int, int]] = (),
) -> list[str]:
    """Compute all counts from memory; return a sentence for each that the table has otherwise.

    `held` are the references that neither memory nor the table's flags show: (mfn, type) of root
    pointers, GDT frames and the like. PGT_none stands for a general reference alone. `granted` has
    (domain, mfn) where a domain's L1 entries may map that frame of another's.
    """
    nr_frames = frames.memory.nr_frames
    count, type_count = [0] * nr_frames, [0] * nr_frames
    linear: Counter[int] = Counter()
    faults = []

    def refer(mfn: int, wanted: int, by: str) -> None:
        if mfn >= nr_frames:
            faults.append(f"{by} refers to mfn {mfn:#x}, which is not RAM")
            return
        count[mfn] += 1
        if wanted != PGT_none:
            type_count[mfn] += 1
            if frames.type[mfn] != wanted:
                faults.append(f"{by} uses as {TYPE_NAMES[wanted]} {frames.describe(mfn)}")

    for mfn, wanted in held:
        refer(mfn, wanted, "the hypervisor")
    for mfn in frames.partial:
        refer(mfn, frames.type[mfn], "its partial validation")
    for mfn in frames.old_tables:
        refer(mfn, PGT_none, "its being to be dropped")
    for mfn in range(nr_frames):
        flags, used_as = frames.flags[mfn], frames.type[mfn]
        if flags & PGC_xen_heap:
            type_count[mfn] += 1
        if flags & PGC_allocated:
            refer(mfn, PGT_none, "its owner")
        if flags & PGT_pinned:
            refer(mfn, used_as, "its pin")
        if used_as in LEVELS:
            faults += _unfit_entries(frames, mfn, granted)
            for target, wanted in _references(frames, mfn):
                refer(target, wanted, f"mfn {mfn:#x}, a {TYPE_NAMES[used_as]},")
                if LEVELS.get(wanted) == LEVELS[used_as]:
                    linear.update({mfn: -1, target: 1})
    if linear != Counter(frames.linear_pt_count):
        faults.append(f"linear page tables are counted {frames.linear_pt_count}, not {linear}")
    for mfn in range(nr_frames):
        if (count[mfn], type_count[mfn]) != (frames.count[mfn], frames.type_count[mfn]):
            faults.append(
                f"{frames.describe(mfn)} is counted {count[mfn]}, {type_count[mfn]} as its type"
            )
        unused_type = PGT_writable_page if count[mfn] else PGT_none
        if not type_count[mfn] and frames.type[mfn] != unused_type:
            faults.append(f"{frames.describe(mfn)} has a type without a reference")
    return faults


def _entries(frames: Frames, mfn: int) -> Iterator[tuple[int, int]]:
    """The present entries of a table that are validated, and not Xen's, by their indices."""
    slots = frames.rules.slots_of(frames.type[mfn])
    validated = frames.memory.table(Mfn(mfn))[: frames.partial.get(mfn, ENTRIES)]
    return (
        (index, entry)
        for index, entry in enumerate(validated.tolist())
        if entry & P and index not in slots
    )


def _unfit_entries(frames: Frames, mfn: int, granted: Container[tuple[int, int]]) -> Iterator[str]:
    """A table's entries with bits that none may have, or that lead to another's frame."""
    level, rules = LEVELS[frames.type[mfn]], frames.rules
    disallowed = rules.l1_disallow if level == 1 else rules.disallowed(level)
    for index, entry in _entries(frames, mfn):
        where = f"L{level} entry {index} of mfn {mfn:#x}, {describe_entry(entry)},"
        target = (entry & ADDR) >> PAGE_SHIFT
        if entry & disallowed:
            yield f"{where} has the bits {entry & disallowed:#x}, which it may not"
        own = target >= len(frames.owner) or frames.owner[target] == frames.owner[mfn]
        if not own and (level > 1 or (frames.owner[mfn], target) not in granted):
            yield f"{where} leads to {frames.describe(target)}"


def _references(frames: Frames, mfn: int) -> list[tuple[int, int]]:
    """What the validated entries of a table refer to, as what."""
    level, result = LEVELS[frames.type[mfn]], []
    for index, entry in _entries(frames, mfn):
        target = (entry & ADDR) >> PAGE_SHIFT
        if level == 1:
            result.append((target, PGT_writable_page if entry & RW else PGT_none))
        elif target != mfn or entry & RW:
            is_now = frames.type[target] if target < len(frames.type) else PGT_none
            linear = not entry & RW and LEVELS.get(is_now) == level
            result.append((target, is_now if linear else frames.rules.child_type(level, index)))
    return result


def writable_tables(frames: Frames, roots: Iterable[int]) -> list[str]:
    """Walk the tables from `roots` as the CPU does, whatever the frame table says of them.

    Returns a sentence for each page table or page of descriptors that the guest could write. A
    64-bit guest runs in ring 3. A 32-bit guest's kernel has the rights of a supervisor, and PAE's
    roots have no RW.
    """
    rules, faults, seen = frames.rules, [], set()
    needs = P | RW | US if rules.width == 8 else P | RW
    todo = [(root, rules.root_type) for root in roots]
    while todo:
        table, level = todo.pop()
        if (table, level) in seen or table >= frames.memory.nr_frames:
            continue
        seen.add((table, level))
        wanted = P if rules.is_pae_root(level) else needs
        for entry in frames.memory.table(Mfn(table)).tolist():
            if entry & wanted != wanted:
                continue
            target = (entry & ADDR) >> PAGE_SHIFT
            if level > 1:
                todo.append((target, level - 1))
            elif target < frames.memory.nr_frames and frames.type_count[target]:
                used_as = frames.type[target]
                if used_as in LEVELS or used_as == PGT_seg_desc_page:
                    faults.append(f"{frames.describe(target)} can be written by mfn {table:#x}")
    return faults
