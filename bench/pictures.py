"""The pictures of docs/pictures.md: a chart for each group that is better seen than read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from bench import boots, goals, matrix, micro, report, scaling, shim, svg, system, vcpus
from bench.results import Record
from bench.rows import Figures
from bench.svg import Bar

Groups = list[tuple[str, list[Bar]]]
KINDS: Final = ("ours", "peer", "peer2")
FARTHEST: Final = 3.0  # from a goal, in multiples of it; a bar that stands for more is as long
# What a reader wants to compare; blocks and stores are the engine's, and near to nothing.
OPERATIONS: Final = (
    *("hypercall", "page fault", "baseptr", "mmu_update of 1", "mmu_update of 128"),
    *("update_va_mapping", "stored entry", "pinned L1", "address space"),
)


def draw(records: Mapping[str, Record]) -> dict[str, str]:
    """All pictures for which there are figures, by name."""
    found = dict(_of_goals(records))
    for name, chart in CHARTS.items():
        group = name.partition("-")[0]
        if group in records:
            picture = chart(records[group].figures)
            if picture:
                found[name] = picture
    return found


def _of_goals(records: Mapping[str, Record]) -> Iterator[tuple[str, str]]:
    groups: Groups = []
    for goal in goals.GOALS:
        now = goal.now(records)
        if now is not None:
            kind = "ours" if now <= goal.most else "late"
            part = now / goal.most
            groups.append((goal.text, [Bar(kind, min(part, FARTHEST), f"{part:.2f}")]))
    if groups:
        legend = {"ours": "reached", "late": "not yet; the line is the goal"}
        yield "goals", svg.bars("What was measured, as a part of the goal", legend, groups, mark=1)


def _bars(figures: Figures, rows: Mapping[str, str], figure: str, digits: int) -> list[Bar]:
    """A bar for each row that was measured; `rows` gives its kind."""
    found = []
    for row, kind in rows.items():
        value = figures.median(row, figure)
        if value is not None:
            found.append(Bar(kind, value, report.cell(value, digits)))
    return found


def _chart(title: str, legend: Mapping[str, str], groups: Groups, logarithmic: bool = False) -> str:
    there = [(label, bars) for label, bars in groups if bars]
    return svg.bars(title, legend, there, logarithmic=logarithmic) if there else ""


def _boots(figures: Figures) -> str:
    groups = []
    for boot in boots.BOOTS:
        rows = dict(zip((boots.ours(boot), *boots.peers(boot)), KINDS, strict=True))
        groups.append((boot, _bars(figures, rows, boots.TO_INIT, 2)))
    legend = {"ours": "xenemu", "peer": "Xen on QEMU, or QEMU", "peer2": "on the newest QEMU"}
    return _chart("Debian's Linux 6.1 to its init, seconds of CPU time", legend, groups)


def _system(figures: Figures) -> str:
    kinds = {**dict.fromkeys(system.OURS.values(), "ours"), **dict.fromkeys(system.PEERS, "peer")}
    groups = [(row, _bars(figures, {row: kind}, system.CPU, 1)) for row, kind in kinds.items()]
    legend = {"ours": "xenemu", "peer": "QEMU"}
    return _chart("Debian 12 with systemd to its login, seconds of CPU time", legend, groups)


def _micro(kind: str) -> str:
    return f"{kind}: one operation, ns of CPU time, on a logarithmic scale"


def _operations(figures: Figures, kind: str) -> str:
    rows = {kind: "ours", micro.shim(kind): "peer"}
    groups = [(name, _bars(figures, rows, name, 0)) for name in OPERATIONS]
    legend = {"ours": "xenemu", "peer": "a real Xen as a guest of xenemu"}
    return _chart(_micro(kind), legend, groups, logarithmic=True)


def _shim(figures: Figures) -> str:
    groups = []
    for kernel in (shim.LINUX, *shim.GRUBS):
        rows = {f"{kernel}: {shim.HERE}": "ours", f"{kernel}: {shim.THERE}": "peer"}
        groups.append((kernel, _bars(figures, rows, shim.CPU, 2)))
    legend = {"ours": "xenemu", "peer": "a real Xen as a guest of xenemu"}
    return _chart("PV kernels, seconds of CPU time", legend, groups)


def _vcpus(figures: Figures) -> str:
    kinds = dict(zip(vcpus.VCPUS, ("peer", "ours"), strict=True))
    groups = [
        (row, [bar for vcpus_, kind in kinds.items()
               for bar in _bars(figures, {row: kind}, f"CPU s with {vcpus_}", 2)])
        for row in figures.rows
    ]  # fmt: skip
    legend = {kind: f"{number} vcpu{'s' * (number > 1)}" for number, kind in kinds.items()}
    return _chart("A boot with more vcpus, seconds of CPU time", legend, groups)


def _matrix(figures: Figures) -> str:
    kinds = {matrix.ONE: "peer", matrix.SMOKE: "ours"}
    groups = [
        (row, [bar for name, kind in kinds.items()
               for bar in _bars(figures, {row: kind}, name, 1)])
        for row in map(matrix.many, matrix.OPTIONS)
    ]  # fmt: skip
    return _chart("Many boots, seconds of CPU time", {v: k for k, v in kinds.items()}, groups)


def _scaling(figures: Figures) -> str:
    kinds = dict(zip(scaling.MODES, ("ours", "ours2"), strict=True))
    sizes = [size for size in scaling.SIZES_MIB if scaling.size_row(size) in figures.rows]
    curves = {}
    for mode, kind in kinds.items():
        values = (figures.median(scaling.size_row(size), scaling.CPU[mode]) for size in sizes)
        curves[kind] = [value for value in values if value is not None]
    if len(sizes) < 2:
        return ""
    ticks = [f"{size} MiB" if size < 1024 else f"{size // 1024} GiB" for size in sizes]
    title = "Seconds of CPU time to init, by the guest's memory"
    return svg.lines(title, {kind: mode for mode, kind in kinds.items()}, ticks, curves)


CHARTS: Final = {
    "boots": _boots,
    "system": _system,
    "shim": _shim,
    "micro-pv64": lambda figures: _operations(figures, "pv64"),
    "micro-pv32": lambda figures: _operations(figures, "pv32"),
    "vcpus": _vcpus,
    "matrix": _matrix,
    "scaling": _scaling,
}
