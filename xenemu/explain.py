"""Why the hypervisor refused something: the rule, the frames it is about, and who came to it.

A refusal's sentence names the rule, the level, the entry and what the frame is. `facts` adds what
is looked for only when somebody asks: who made the frame what it is, and where it is mapped
writable. An `Explainer` prints refusals as they happen.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from typing import Final

from xenemu.decode import Call, format_args
from xenemu.hv.dispatch import Hypercall, format_result
from xenemu.hv.domain import CallRecord, Current
from xenemu.hv.frame_table import (
    DESCRIBED,
    LEVELS,
    TYPE_NAMES,
    PGT_l1_page_table,
    PGT_seg_desc_page,
    PGT_writable_page,
)
from xenemu.hv.observe import Observer
from xenemu.peek import Code, caller, peek, tables, walk
from xenemu.x86.paging import ADDR, PAGE_SHIFT, RW, Mfn, P, describe_entry

FRAMES: Final = 4  # of one sentence, to be looked at
MAPPINGS: Final = 4  # of one frame, to be listed
REFUSALS: Final = 64  # different ones to be printed
NUMBER: Final = re.compile(r"0x[0-9a-f]+|\d+")
FAULTED: Final = re.compile(r"(0x[0-9a-f]+) is (?:not mapped|read-only)")  # EFAULT's sentences
MAPS_RW: Final = P | RW


def facts(current: Current, sentence: str, code: Code) -> list[str]:
    """What else is to be said of the frames and addresses of a refusal's sentence, a line each."""
    frames = current.domain.frames
    lines = [_walk_to(current, int(found, 16)) for found in FAULTED.findall(sentence)]
    mfns = dict.fromkeys(int(found, 16) for found in DESCRIBED.findall(sentence))
    for mfn in list(mfns)[:FRAMES]:
        if not frames.memory.contains(mfn) or not frames.type_count[mfn]:
            continue
        used_as = frames.type[mfn]
        if used_as in LEVELS or used_as == PGT_seg_desc_page:
            by = _typed_by(current, mfn, code)
            lines.append(f"mfn {mfn:#x} was made {TYPE_NAMES[used_as]} by {by}")
        elif used_as == PGT_writable_page:
            lines += _writable(current, mfn)
    return lines


def _walk_to(current: Current, vaddr: int) -> str:
    """Where the walk to an address ends."""
    found = tables(current)
    steps = list(walk(current, found, vaddr)) if found is not None else []
    if found is None or not steps:
        return f"there is no page table for {vaddr:#x}"
    level, entry = steps[-1].level, describe_entry(steps[-1].entry)
    return f"the walk to {vaddr:#x} ends at L{level}[{found.index(vaddr, level):#x}] = {entry}"


def _typed_by(current: Current, mfn: int, code: Code) -> str:
    frames = current.domain.frames
    if mfn not in frames.typed_by:
        return "the domain builder"
    call = frames.typed_by[mfn]
    if call is None:
        return "an emulated instruction or a fault"
    place = code.format(call.caller or call.rip)
    return f"{call.name} at {call.at_ns / 1e9:.6f} s, from {place}"


def _writable(current: Current, mfn: int) -> list[str]:
    """Which L1 entries map a frame RW: each that does holds one of its type references."""
    found = list(_entries_to(current, mfn, MAPS_RW, PGT_l1_page_table))
    held = current.domain.frames.type_count[mfn] - len(found)
    lines = [
        f"mfn {mfn:#x} is mapped RW by entry {index:#x} of the L1 in mfn {table:#x}"
        f"{_at_address(current, table, index)}"
        for table, index in found[:MAPPINGS]
    ]
    if len(found) > MAPPINGS:
        lines.append(f"mfn {mfn:#x} is mapped RW by {len(found) - MAPPINGS} more entries")
    if held > 0:
        lines.append(f"mfn {mfn:#x} is held writable by Xen itself, x{held}")
    return lines


def _entries_to(current: Current, mfn: int, bits: int, *types: int) -> Iterator[tuple[int, int]]:
    """The entries with `bits` that lead to a frame, in tables of these types: (table, index)."""
    frames = current.domain.frames
    mask, wanted = ADDR | bits, mfn << PAGE_SHIFT | bits
    for table, used_as in enumerate(frames.type):
        if used_as in types and frames.type_count[table]:
            for index, entry in enumerate(frames.memory.table(Mfn(table)).tolist()):
                if entry & mask == wanted:
                    yield table, index


def _at_address(current: Current, table: int, index: int) -> str:
    """Where an L1 entry maps in the tables in use, by the first way up that reaches the root."""
    found = tables(current)
    assert found is not None
    vaddr = _way_up(current, found.root >> PAGE_SHIFT, len(found.shifts), table, 1)
    if vaddr is None:
        return ", which is not in the tables in use"
    vaddr |= index << PAGE_SHIFT
    if len(found.shifts) == 4 and vaddr >> 47:
        vaddr |= 0xFFFF << 48
    return f", at {vaddr:#x}"


def _way_up(current: Current, root: int, levels: int, table: int, level: int) -> int | None:
    """The first address whose walk leads through a table of this level; None if none does."""
    if level == levels:
        return 0 if table == root else None
    parents = [used_as for used_as, of in LEVELS.items() if of == level + 1]
    for parent, index in _entries_to(current, table, P, *parents):
        above = _way_up(current, root, levels, parent, level + 1)
        if above is not None:
            return above | index << PAGE_SHIFT + 9 * level
    return None


class Explainer(Observer):
    """Prints each refusal once per place and rule; `close` says how many there were of each.

    Xen's standing answers, which every kernel asks for as it looks at what there is, are a line;
    what else is refused comes with `facts` and the backtrace.
    """

    def __init__(self, code: Code, write: Callable[[str], None]) -> None:
        self._code = code
        self._write = write
        self._seen: Counter[tuple[int, str]] = Counter()
        self._unseen = 0

    def call_begins(self, current: Current, row: Hypercall | None, record: CallRecord) -> None:
        """Note who calls, also for the frames that the call gives a type."""
        record.caller = caller(current)

    def call_ends(self, current: Current, row: Hypercall | None, record: CallRecord) -> None:
        """Explain a hypercall that was refused."""
        if not record.reason:
            return
        result = format_result(record.result)
        if not self._is_new(record.caller, f"{record.name} = {result}: {record.reason}"):
            return
        args = format_args(Call(current, row, record).args, {})
        what = f"{record.name}({args}) = {result}"
        if record.standing:
            self._write(
                f"{_when(current)}, {what}, as ever: {record.reason}"
                f" (from {self._code.format(record.caller)})\n"
            )
        else:
            self._explain(current, f"{what}, refused: {record.reason}")

    def logged(self, current: Current, sentence: str) -> None:
        """Explain what else was refused."""
        if self._is_new(current.cpu.rip, sentence):
            self._explain(current, sentence)

    def close(self) -> None:
        """Say what was not printed because it had been before, or because there was too much."""
        for (rip, rule), count in self._seen.items():
            if count > 1:
                again = f"{count - 1} times more" if count > 2 else "once more"
                self._write(f"xenemu: {again} at {self._code.format(rip)}: {rule}\n")
        if self._unseen:
            self._write(f"xenemu: {self._unseen} more that were not told, after {REFUSALS} kinds\n")

    def _is_new(self, rip: int, sentence: str) -> bool:
        """Whether to print this one: its place and its rule are new, and not too many were."""
        key = rip, NUMBER.sub("#", sentence)
        if key not in self._seen and len(self._seen) == REFUSALS:
            self._unseen += 1
            return False
        self._seen[key] += 1
        return self._seen[key] == 1

    def _explain(self, current: Current, sentence: str) -> None:
        lines = [f"{_when(current)}, {sentence}"]
        lines += [f"  {fact}" for fact in facts(current, sentence, self._code)]
        backtrace = self._code.backtrace(current, partial(peek, current))
        lines += ["  called from:", *(f"  {line}" for line in backtrace)]
        self._write("".join(f"{line}\n" for line in lines))


def _when(current: Current) -> str:
    return f"xenemu: at {current.cpu.now_ns / 1e9:.6f} s on vcpu {current.vcpu.vcpu_id}"
