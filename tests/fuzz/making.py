"""Steps as recipes make them: a hypercall with what its pointer leads to, stores, time."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import TYPE_CHECKING

from fuzz.world import SWITCH, Step
from xenemu.abi.layout import Struct
from xenemu.abi.xen import DOMID_SELF, Nr, mmuext_op
from xenemu.x86.paging import PAGE_SHIFT

if TYPE_CHECKING:
    from fuzz.steps import Steps


def call(steps: Steps, number: int, *args: int) -> Step:
    """A hypercall that takes what the values' data are so far."""
    taken, steps.values.data = steps.values.data, []
    return {"kind": "call", "number": int(number), "args": list(args), "data": taken}


def sub_op(steps: Steps, number: int, command: int, op: Struct) -> Step:
    """A hypercall of a family, with its struct."""
    where = steps.values.put(op.pack(steps.values.width))
    return call(steps, number, command, where)


def grant_op(steps: Steps, command: int, op: Struct) -> Step:
    """grant_table_op, with one operation."""
    where = steps.values.put(op.pack(steps.values.width))
    return call(steps, Nr.grant_table_op, command, where, 1)


def mmuext(steps: Steps, command: int, arg1: int = 0, arg2: int = 0) -> Step:
    """mmuext_op, with one operation."""
    where = steps.values.put(mmuext_op(command, arg1, arg2).pack(steps.values.width))
    return call(steps, Nr.mmuext_op, where, 1, 0, DOMID_SELF)


def map_page(steps: Steps, page: int, entry: int) -> Step:
    """update_va_mapping of a page, which the TLB then forgets."""
    split = [entry] if steps.values.wide else [entry & 0xFFFFFFFF, entry >> 32]
    return call(steps, Nr.update_va_mapping, page, *split, 2)


def store(*data: tuple[int, bytes]) -> Step:
    """The guest's own stores, at these addresses."""
    return {"kind": "time", "ns": 0, "data": [[vaddr, some.hex()] for vaddr, some in data]}


def switch(steps: Steps) -> Step:
    """Another vcpu's turn, perhaps."""
    return {"kind": SWITCH, "vcpu": steps.random.randrange(len(steps.world.current.domain.vcpus))}


def page(entries: Sequence[int]) -> bytes:
    """A page that begins with these words."""
    words = (entry & (1 << 64) - 1 for entry in entries)
    return struct.pack(f"<{len(entries)}Q", *words).ljust(4096, b"\0")


def pages(steps: Steps, count: int) -> list[int]:
    """The addresses of different pages of the arena."""
    world = steps.world
    some = steps.random.sample(range(world.arena_pages), count)
    return [world.arena + (n << PAGE_SHIFT) for n in some]
