"""Steps that belong together: to get a page table, a connection, an exchange, an answer.

Single random steps hardly ever make a page fit to be a table: the page must have the right
contents, and no writable mapping. A recipe does that, and then uses the page as a table. The steps
after it are random again, and meet the table. Each step of a recipe is made when the one before is
done, and may look at the result of that one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from fuzz import recipes_any, recipes_pv, recipes_pvh, recipes_vcpus
from fuzz.world import Step

if TYPE_CHECKING:
    from fuzz.steps import Steps

Recipe = Callable[["Steps"], Iterator[Step]]

ANY: dict[Recipe, int] = {  # with how often
    recipes_any.store_request: 2, recipes_any.store_tree: 1, recipes_any.fifo: 2,
    recipes_any.grants: 3, recipes_any.ports: 2, recipes_any.waiting: 2,
}  # fmt: skip
PV = ANY | {
    recipes_pv.table: 8, recipes_pv.tree: 3, recipes_pv.descriptors: 3, recipes_pv.exchange: 2,
}  # fmt: skip
VCPUS: dict[Recipe, int] = {
    recipes_vcpus.initialise: 2, recipes_vcpus.operations: 4, recipes_vcpus.events: 3,
    recipes_vcpus.areas: 2,
}  # fmt: skip
PVH = ANY | {recipes_pvh.physmap: 3, recipes_pvh.local_apic: 3}


def recipe(steps: Steps) -> Iterator[Step]:
    """Some steps that belong together."""
    makers = PV if steps.pv else PVH
    if steps.world.vcpus > 1:
        more = recipes_vcpus.flushes if steps.pv else recipes_vcpus.interrupts
        makers = makers | VCPUS | {more: 3}
    (made,) = steps.random.choices(list(makers), list(makers.values()))
    return made(steps)
