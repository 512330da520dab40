"""Why the hypervisor refused something: the rule, the frames it is about, and who came to it.

A refusal's sentence names the rule, the level, the entry and what the frame is. `facts` adds what
is looked for only when somebody asks: who gave the frame its type, and where it is mapped writable.
An `Explainer` prints refusals as they happen.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Final

from xenemu.decode import Call, format_args
from xenemu.hv.calls import CallRecord
from xenemu.hv.current import Current, Observer
from xenemu.hv.dispatch import STANDING, Hypercall, format_result
from xenemu.hv.frame_table import (
    DESCRIBED,
    LEVELS,
    TYPE_NAMES,
    PGT_l1_page_table,
    PGT_seg_desc_page,
    PGT_writable_page,
)
from xenemu.peek import Code, caller, tables, walk
from xenemu.x86.paging import ADDR, PAGE_SHIFT, RW, Mfn, P, describe_entry

FRAMES: Final = 8  # to be looked at, at most
MAPPINGS: Final = 4  # of one frame, to be listed
MAX_TABLES: Final = 1 << 15  # page tables that are searched for them
REFUSALS: Final = 64  # different ones to be printed
NUMBER: Final = re.compile(r"0x[0-9a-f]+|\d+")
FAULTED: Final = re.compile(r"(0x[0-9a-f]+) is (?:not mapped|read-only)")  # EFAULT's sentences
MAPS_RW: Final = P | RW


def facts(current: Current, text: str, code: Code) -> list[str]:
    """More on the frames and addresses in the sentences of refusals, a line for each.

    If one of the frames is mapped writable, each of the guest's page tables is looked at once.
    """
    frames = current.domain.frames
    lines = [_walk_to(current, int(found, 16)) for found in FAULTED.findall(text)]
    described = dict.fromkeys(int(found, 16) for found in DESCRIBED.findall(text))
    mfns = [mfn for mfn in described if frames.memory.contains(mfn) and frames.type_count[mfn]]
    writable = []
    for mfn in mfns[:FRAMES]:
        used_as = frames.type[mfn]
        if used_as in LEVELS or used_as == PGT_seg_desc_page:
            by = _typed_by(current, mfn, code)
            lines.append(f"mfn {mfn:#x} was made {TYPE_NAMES[used_as]} by {by}")
        elif used_as == PGT_writable_page:
            writable.append(mfn)
    return [*dict.fromkeys(lines), *(_writable(current, writable) if writable else [])]


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


def _writable(current: Current, mfns: list[int]) -> Iterator[str]:
    """Which L1 entries map frames RW: each that does holds one of their type references."""
    frames = current.domain.frames
    found: dict[int, list[tuple[int, int]]] = {mfn: [] for mfn in mfns}
    counts = Counter[int]()
    l1_tables = (
        table
        for table, used_as in enumerate(frames.type)
        if used_as == PGT_l1_page_table and frames.type_count[table]
    )
    for table in islice(l1_tables, MAX_TABLES):
        for index, entry in enumerate(frames.memory.table(Mfn(table)).tolist()):
            if entry & MAPS_RW == MAPS_RW and (mfn := (entry & ADDR) >> PAGE_SHIFT) in found:
                counts[mfn] += 1
                if counts[mfn] <= MAPPINGS:
                    found[mfn].append((table, index))
    searched_all = next(l1_tables, None) is None
    addresses = _addresses(current)
    for mfn, places in found.items():
        for table, index in places:
            vaddr = addresses.get(table)
            where = "which is not in the tables in use"
            if vaddr is not None:
                where = f"at {_canonical(current, vaddr | index << PAGE_SHIFT):#x}"
            place = f"entry {index:#x} of the L1 in mfn {table:#x}"
            yield f"mfn {mfn:#x} is mapped RW by {place}, {where}"
        if counts[mfn] > MAPPINGS:
            yield f"mfn {mfn:#x} is mapped RW by {counts[mfn] - MAPPINGS} more entries"
        if not searched_all:
            yield f"others may map mfn {mfn:#x} RW: only {MAX_TABLES} L1 tables were searched"
        elif frames.type_count[mfn] > counts[mfn]:
            held = frames.type_count[mfn] - counts[mfn]
            yield f"mfn {mfn:#x} is held writable by Xen itself, x{held}"


def _addresses(current: Current) -> dict[int, int]:
    """The L1 tables that the tables in use lead to, with the first address that each maps."""
    frames, found = current.domain.frames, tables(current)
    if found is None or current.domain.p2m is not None:  # a native guest's are its own
        return {}
    reached = {found.root >> PAGE_SHIFT: 0}
    for level in range(len(found.shifts), 1, -1):
        below: dict[int, int] = {}
        for table, vaddr in islice(reached.items(), MAX_TABLES):
            for index, entry in enumerate(frames.memory.table(Mfn(table)).tolist()):
                child = (entry & ADDR) >> PAGE_SHIFT
                is_table = entry & P and frames.memory.contains(child)
                if is_table and LEVELS.get(frames.type[child]) == level - 1:
                    below.setdefault(child, vaddr | index << found.shifts[-level])
        reached = below
    return reached


def _canonical(current: Current, vaddr: int) -> int:
    return vaddr | 0xFFFF << 48 if current.vcpu.width == 8 and vaddr >> 47 else vaddr


class Explainer(Observer):
    """Prints each refusal once per place and rule; `close` says how many there were of each.

    A standing answer of Xen's is printed as one line. Every kernel gets some of these, as it tries
    what there is. Any other refusal is printed with `facts` and the backtrace.
    """

    def __init__(self, code: Code, write: Callable[[str], None]) -> None:
        self._code = code
        self._write = write
        self._seen: Counter[tuple[int, str]] = Counter()
        self._unseen = 0

    def call_begins(self, current: Current, row: Hypercall | None, record: CallRecord) -> None:
        """Note the caller, which also goes with the frames that the call gives a type."""
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
                f"{_when(current)}, {what}, {STANDING}{record.reason}"
                f" (from {self._code.format(record.caller)})\n"
            )
        else:
            self._explain(current, f"{what}, refused: {record.reason}")

    def logged(self, current: Current, sentence: str) -> None:
        """Explain what else was refused."""
        if self._is_new(current.cpu.rip, sentence):
            self._explain(current, sentence)

    def close(self) -> None:
        """Say what was not printed, because it had been printed before or there was too much."""
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
        backtrace = self._code.backtrace(current)
        lines += ["  called from:", *(f"  {line}" for line in backtrace)]
        self._write("".join(f"{line}\n" for line in lines))


def _when(current: Current) -> str:
    return f"xenemu: at {current.cpu.now_ns / 1e9:.6f} s on vcpu {current.vcpu.vcpu_id}"
