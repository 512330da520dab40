"""What xenemu wants to be: each goal beside what was measured last."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from bench import boots, matrix, micro, report, shim, start, system
from bench.results import Record
from bench.rows import Figures


@dataclass(frozen=True)
class Goal:
    """At most so much of what `value` finds in a group's figures."""

    text: str
    most: float
    group: str
    value: Callable[[Figures], float | None]
    unit: str = ""  # a ratio's is none

    def now(self, records: Mapping[str, Record]) -> float | None:
        """What was measured; None if it was not."""
        record = records.get(self.group)
        return self.value(record.figures) if record else None


def _boot(boot: str, most: float) -> Goal:
    peer = "Xen on QEMU" if boot.startswith("PV,") else "the faster QEMU"
    return Goal(f"{boot}, to init / {peer}", most, boots.GROUP.name,
                lambda found: found.ratio(boots.ours(boot), boots.peers(boot), boots.TO_INIT),
    )  # fmt: skip


def _in_shim(kernel: str) -> Goal:
    return Goal(f"{kernel} / the same in xen-shim", 0.4, shim.GROUP.name,
                lambda found: shim.ratio(found, kernel))  # fmt: skip


def _address_space(kind: str) -> Goal:
    return Goal(f"{kind}, page tables of an address space / the same in xen-shim", 0.4,
                micro.GROUP.name,
                lambda found: found.ratio(kind, [micro.shim(kind)], "address space"),
    )  # fmt: skip


def _operation(kind: str, operation: str, most_us: float) -> Goal:
    def value(found: Figures) -> float | None:
        ns = found.median(kind, operation)
        return None if ns is None else ns / 1000

    return Goal(f"{operation}, {kind}", most_us, micro.GROUP.name, value, "us")


def _boots_by_smoke(kernel: str) -> Goal:
    row = matrix.many(kernel)
    return Goal(f"{row} by smoke, 2 jobs / single runs", 0.85, matrix.GROUP.name,
                lambda found: matrix.ratio(found, row))  # fmt: skip


def _goals() -> Iterator[Goal]:
    yield _boot("PV, bzImage", 0.33)
    yield _boot("PV, vmlinux", 0.45)
    yield _boot("PVH, vmlinux", 0.80)
    yield _boot("PVH, bzImage", 0.32)
    yield from map(_in_shim, (shim.LINUX, shim.GRUB32))
    yield from map(_address_space, ("pv64", "pv32"))
    yield Goal("systemd to its login from a disk, PVH / the faster QEMU", 0.9, system.GROUP.name,
               lambda found: found.ratio(system.OURS["pvh"], system.PEERS, system.CPU),
    )  # fmt: skip
    for kind in ("pv64", "pv32"):
        for operation, most_us in (("hypercall", 1), ("page fault", 5), ("mmu_update of 128", 60)):
            yield _operation(kind, operation, most_us)
    yield Goal("hello, from the start of the process to its end", 0.25, start.GROUP.name,
               lambda found: found.median(start.hello("pv64"), start.CPU), "s",
    )  # fmt: skip
    yield from map(_boots_by_smoke, matrix.OPTIONS)


GOALS: Final = tuple(_goals())


def table(records: Mapping[str, Record]) -> str:
    """A line for each goal."""
    lines = [["CPU time", "goal: at most", "now", "met"]]
    for goal in GOALS:
        now = goal.now(records)
        met = "not measured" if now is None else "yes" if now <= goal.most else "no"
        lines.append([goal.text, _shown(goal.most, goal), _shown(now, goal), met])
    return report.markdown(lines, names=1)


def _shown(value: float | None, goal: Goal) -> str:
    if value is None:
        return ""
    return f"{report.cell(value, 1 if goal.unit == 'us' else 2)} {goal.unit}".strip()
