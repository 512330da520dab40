"""Recipes for PV guests: page tables, descriptors, exchanged pages."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import TYPE_CHECKING

from fuzz.making import call, map_page, mmuext, page, pages, store
from fuzz.world import WORK, Step
from xenemu.abi.memory import XENMEM_exchange, xen_memory_exchange, xen_memory_reservation
from xenemu.abi.xen import (
    DOMID_SELF,
    MMUEXT_NEW_BASEPTR,
    MMUEXT_NEW_USER_BASEPTR,
    MMUEXT_SET_LDT,
    MMUEXT_UNPIN_TABLE,
    Nr,
    mmu_update,
)
from xenemu.hv.frame_table import LEVELS
from xenemu.x86.paging import PAGE_SHIFT, RW, US, P

if TYPE_CHECKING:
    from fuzz.steps import Steps

PINS = {1: 0, 2: 1, 3: 2, 4: 3}  # MMUEXT_PIN_Ln_TABLE
BITS = (1, 2, 3, 4, 5, 6, 7, 8, 9, *range(52, 64))  # of an entry, but for P and the frame
WORK_UNITS = (1, 20, 66, 80, 140, 150, 210)  # not enough to validate a tree at once


def table(steps: Steps) -> Iterator[Step]:
    """Make a page of the arena a table, and use it."""
    values, random = steps.values, steps.random
    (at,) = pages(steps, 1)
    mfn = values.frame_at(at)
    level = random.choice((1, 1, 2, 3, _levels(steps)))
    yield store((at, _entries(steps, level, mfn)))
    yield map_page(steps, at, mfn << PAGE_SHIFT | P | US)
    yield _use_table(steps, mfn, level)


def descriptors(steps: Steps) -> Iterator[Step]:
    """Make a page of the arena a GDT or an LDT, and use it; perhaps, replace it by another."""
    values, random = steps.values, steps.random
    for at in pages(steps, random.choice((1, 2))):
        mfn = values.frame_at(at)
        some = [0] + [values.descriptor() for _ in range(random.randrange(1, 9))]
        yield store((at, page(some)))
        yield map_page(steps, at, mfn << PAGE_SHIFT | P | US)
        if random.random() < 0.5:
            yield call(steps, Nr.set_gdt, values.words([mfn]), 512)
            continue
        yield mmuext(steps, MMUEXT_SET_LDT, at, random.choice((0, 8, 512, 520)))
        yield {"kind": "insn", "how": "gp", "code": "cf", "regs": []}
        base = (0xFFFF820000000000 if values.wide else 0xFFC00000) + 0x10000
        yield {"kind": "trap", "vector": 14, "error": 0, "cr2": base}


def tree(steps: Steps) -> Iterator[Step]:
    """A tree of tables, one entry perhaps not fit, that takes several calls to validate."""
    values, random = steps.values, steps.random
    levels = _levels(steps)
    shape = {level: random.choice((1, 2)) for level in range(1, levels)} | {levels: 1}
    if not values.wide:
        shape[2] += 1  # the last is for Xen's entries
    places = iter(pages(steps, sum(shape.values())))
    at = {level: [next(places) for _ in range(count)] for level, count in shape.items()}
    frames = {level: [values.frame_at(one) for one in at[level]] for level in at}
    used = {mfn for some in frames.values() for mfn in some}
    data = [mfn for mfn in map(values.frame_at, pages(steps, 6)) if mfn not in used]
    contents = {one: _branch(steps, level, frames | {0: data}) for level in at for one in at[level]}
    if not values.wide:
        contents[at[2][-1]] = [0] * 512
    if random.random() < 0.5:
        spoilt = random.choice(list(contents.values()))
        present = [index for index, entry in enumerate(spoilt) if entry]
        if present:
            spoilt[random.choice(present)] ^= 1 << random.choice(BITS)
    yield store(*((one, page(entries)) for one, entries in contents.items()))
    for one in contents:
        yield map_page(steps, one, values.frame_at(one) << PAGE_SHIFT | P | US)
    yield from _validate(steps, frames[levels][0], [mfn for mfn in used], levels)


def _branch(steps: Steps, level: int, frames: dict[int, list[int]]) -> list[int]:
    """Some entries of a table in a tree, to the level below."""
    random, values = steps.random, steps.values
    pae_root = level == 3 and not values.wide
    entries = [0] * 512
    below = frames[level - 1]
    if pae_root:
        entries[3] = below[-1] << PAGE_SHIFT | P
        below = below[:-1]
    for _ in range(random.choice((1, 2, 5))):
        index = random.randrange(3 if pae_root else 512)
        if below:
            bits = P if pae_root else P | RW | US
            entries[index] = random.choice(below) << PAGE_SHIFT | bits
    return entries


def _validate(steps: Steps, root: int, tables: list[int], levels: int) -> Iterator[Step]:
    """Pin a tree, with little work to a call; use what is then a table, or one in part."""
    random = steps.random
    if random.random() < 0.7:
        yield {"kind": WORK, "units": random.choice(WORK_UNITS)}
    yield mmuext(steps, PINS[levels], root)
    for _ in range(random.randrange(6)):
        mfn = random.choice((root, root, *tables))
        level = LEVELS.get(steps.world.current.domain.frames.type[mfn], levels)
        what = random.randrange(6)
        if what == 0:
            yield mmuext(steps, MMUEXT_UNPIN_TABLE, mfn)
        elif what == 1:
            yield mmuext(steps, random.choice((MMUEXT_NEW_BASEPTR, MMUEXT_NEW_USER_BASEPTR)), mfn)
        elif what == 2:
            yield _set_entry(steps, mfn, steps.values.entry())
        elif what == 3:
            yield {"kind": WORK, "units": random.choice((0, *WORK_UNITS))}
        else:
            yield mmuext(steps, PINS[level], mfn)


def exchange(steps: Steps) -> Iterator[Step]:
    """Give pages that nothing maps for others."""
    values, random = steps.values, steps.random
    n = random.choice((1, 2, 4))
    given = pages(steps, n)
    frames = [values.frame_at(one) for one in given]
    for one in given:
        yield map_page(steps, one, 0)
    order = random.choice((0, 0, 1)) if n > 1 else 0
    if random.random() < 0.1:
        frames = frames[:1] * n
    halves = []
    for extents, extent_order in ((n, 0), (n >> order, order)):
        where = values.words(frames)
        half = xen_memory_reservation(where, extents, extent_order, 0, DOMID_SELF)
        halves.append(half.pack(values.width))
    where = values.put(xen_memory_exchange(halves[0], halves[1], 0).pack(values.width))
    yield call(steps, Nr.memory_op, XENMEM_exchange, where)
    if random.random() < 0.5:
        yield map_page(steps, given[0], frames[0] << PAGE_SHIFT | P | RW | US)


def _levels(steps: Steps) -> int:
    return 4 if steps.values.wide else 3


def _use_table(steps: Steps, mfn: int, level: int) -> Step:
    values, random = steps.values, steps.random
    use = random.random()
    if use < 0.5:
        return mmuext(steps, PINS[level], mfn)
    if use < 0.65:
        return mmuext(steps, random.choice((MMUEXT_NEW_BASEPTR, MMUEXT_NEW_USER_BASEPTR)), mfn)
    parents = _tables(steps, level + 1) or [mfn]
    bits = P | RW | US if values.wide or level < 2 else P
    if random.random() < 0.2:
        bits ^= 1 << random.choice(BITS)
    return _set_entry(steps, random.choice(parents), mfn << PAGE_SHIFT | bits)


def _set_entry(steps: Steps, table: int, entry: int) -> Step:
    """mmu_update of an entry of a table."""
    index = steps.random.choice((0, 3, 5, 255, 300, 510))
    where = steps.values.put(mmu_update(table << PAGE_SHIFT | index << 3, entry).pack(8))
    return call(steps, Nr.mmu_update, where, 1, 0, DOMID_SELF)


def _tables(steps: Steps, level: int) -> list[int]:
    frames = steps.world.current.domain.frames
    return [mfn for mfn in steps.values.tables if LEVELS.get(frames.type[mfn]) == level]


def _entries(steps: Steps, level: int, mfn: int) -> bytes:
    """A page of entries that may well be valid."""
    random, values = steps.random, steps.values
    entries = [0] * 512
    below = _tables(steps, level - 1)
    same = _tables(steps, level)
    for _ in range(random.choice((0, 1, 3, 10))):
        index = random.choice((0, 1, 2, 3, 255, 256, 300, 511, random.randrange(512)))
        if level == 1:
            data = values.frame_at(values.world.arena + (random.randrange(24) << PAGE_SHIFT))
            target = random.choice((data, data, data, values.frame()))
            entries[index] = target << PAGE_SHIFT | random.choice((P | RW | US, P | US, P | RW))
        else:
            group = random.choice((below, below, below, same, [mfn])) or [mfn]
            bits = random.choice((P | RW | US, P | US)) if values.wide else P
            entries[index] = random.choice(group) << PAGE_SHIFT | bits
        if values.rarely():
            entries[index] = values.entry()
    return struct.pack("<512Q", *(entry & (1 << 64) - 1 for entry in entries))
