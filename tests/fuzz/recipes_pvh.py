"""Recipes for PVH guests: the physmap, the local APIC."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from fuzz.making import pages, sub_op
from fuzz.world import Step
from xenemu.abi.memory import (
    XENMAPSPACE_gmfn,
    XENMAPSPACE_grant_table,
    XENMAPSPACE_shared_info,
    XENMEM_add_to_physmap,
    XENMEM_decrease_reservation,
    XENMEM_populate_physmap,
    XENMEM_remove_from_physmap,
    xen_add_to_physmap,
    xen_memory_reservation,
    xen_remove_from_physmap,
)
from xenemu.abi.xen import DOMID_SELF, Nr
from xenemu.pvh import lapic
from xenemu.x86.msr import APIC_BASE_DEFAULT
from xenemu.x86.paging import PAGE_SHIFT

if TYPE_CHECKING:
    from fuzz.steps import Steps

HOLES = range(0x2000, 0x2006)  # guest frames where no memory is
APIC_BASE = 0x1B
SELF = 1 << 18  # ICR: to oneself
VECTORS = (0x30, 0x31, 0x3F, 0x41, 0x52, 0x53, 0xEF, 0x0F)


def physmap(steps: Steps) -> Iterator[Step]:
    """Frames that are put elsewhere, taken away, given back, and asked for again."""
    random, values = steps.random, steps.values
    some = [*random.sample(HOLES, 2), *(page >> PAGE_SHIFT for page in pages(steps, 2))]
    for _ in range(random.randrange(2, 9)):
        gfn, other = random.sample(some, 2)
        what = random.randrange(8)
        if what < 4:
            space, index = random.choice(
                ((XENMAPSPACE_gmfn, other), (XENMAPSPACE_gmfn, other), (XENMAPSPACE_shared_info, 0),
                 (XENMAPSPACE_grant_table, random.randrange(2)))
            )  # fmt: skip
            op = xen_add_to_physmap(DOMID_SELF, 0, space, index, gfn)
            yield sub_op(steps, Nr.memory_op, XENMEM_add_to_physmap, op)
        elif what < 6:
            gone = xen_remove_from_physmap(DOMID_SELF, gfn)
            yield sub_op(steps, Nr.memory_op, XENMEM_remove_from_physmap, gone)
        else:
            command = (XENMEM_decrease_reservation, XENMEM_populate_physmap)[what % 2]
            extents = xen_memory_reservation(values.words([gfn]), 1, 0, 0, DOMID_SELF)
            yield sub_op(steps, Nr.memory_op, command, extents)


def local_apic(steps: Steps) -> Iterator[Step]:
    """Interrupts to oneself, taken and ended in some order, and the timer's."""
    random = steps.random
    yield _apic(lapic.SPIV, lapic.SPIV_ENABLED | 0xFF)
    for _ in range(random.randrange(3, 16)):
        vector = random.choice(VECTORS)
        what = random.randrange(10)
        if what < 4:
            yield _apic(lapic.ICR, SELF | vector)
        elif what < 7:
            yield {"kind": "trap", "vector": 14, "error": 0}  # the CPU takes an interrupt
        elif what == 7:
            yield _apic(lapic.EOI, 0)
        elif what == 8:
            yield random.choice(
                (_apic(lapic.TASKPRI, random.choice((0, 0x30, 0x40, 0xFF))),
                 _apic(lapic.SPIV, random.choice((0x1FF, 0x1FF, 0xFF))),
                 {"kind": "msr", "number": APIC_BASE, "value": APIC_BASE_DEFAULT},
                 {"kind": "time", "ns": random.choice((1000, 10**6, 10**9))})
            )  # fmt: skip
        else:
            modes = random.choice((0, lapic.LVT_PERIODIC, lapic.LVT_MASKED))
            yield _apic(lapic.LVTT, vector | modes)
            yield _apic(lapic.TMICT, random.choice((0, 1, 1000, 100_000, 0xFFFFFFFF)))


def _apic(register: int, value: int) -> Step:
    return {"kind": "apic", "offset": register << 4, "size": 4, "value": value}
