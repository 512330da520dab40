"""What single operations cost: ``guests/micro-costs``, timed from outside, line by line.

The same guest runs here, and in Debian's xen-shim, which is a real Xen and itself a PVH guest of
xenemu.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from bench import files, report
from bench.files import XENEMU
from bench.measure import Run, measure
from bench.rows import Figures, Group, Row

GUEST: Final = "micro-costs"
FACTOR: Final = 2000  # of the guest's counts: some tenths of a second for each operation
MEMORY_MIB: Final = 64
WAITS: Final = "w"  # after the factor: the guest waits for a key after each line
SHIM_CMDLINE: Final = "pv-shim console=pv"

# How often each operation is done, times the factor; in the guest's order.
COUNTS: Final = {
    "block": 20_000,
    "store": 20_000,
    "hypercall": 200,
    "page fault": 100,
    "mmu_update of 128": 10,
    "baseptr": 100,
    "mmu_update of 1": 100,
    "update_va_mapping": 100,
    "stored entry": 10,
    "pinned L1": 1,
    "address space": 1,
    "event upcall": 20,
}
PV: Final = tuple(name for name in COUNTS if name != "event upcall")
OPERATIONS: Final = {
    "pv64": PV,
    "pv32": PV,
    "pvh64": ("block", "store", "hypercall", "page fault", "event upcall"),
}
START: Final = "start"


def shim(kind: str) -> str:
    """The row of a kind of guest in xen-shim."""
    return f"{kind}, xen-shim"


def command(kind: str, guest: str, memory_mib: int, factor: int) -> tuple[str, ...]:
    """Run it here."""
    mode = "pvh" if kind.startswith("pvh") else "pv"
    options = f"run --mode {mode} {guest} --memory {memory_mib}M --cmdline {factor}{WAITS}"
    return (*XENEMU, *options.split())


def shim_command(guest: str, factor: int, xen: Path) -> tuple[str, ...]:
    """Run it in a Xen, which takes the first module for its domain's kernel.

    It does not wait for keys: Xen's own timers take CPU time meanwhile.
    """
    words = (*XENEMU, "run", str(xen), *"--mode pvh --memory 256M --cmdline".split(), SHIM_CMDLINE)
    return (*words, "--module", f"{guest}={factor}")


def costs(
    kind: str, words: Sequence[str], folder: Path, factor: int = FACTOR
) -> Mapping[str, float]:
    """Nanoseconds of CPU time of each operation, in one run."""
    milestones = {START: START.encode()}
    milestones |= {operation: f"{operation}: ".encode() for operation in OPERATIONS[kind]}
    key = b"\n" if words[-1].endswith(WAITS) else b""
    return _costs(kind, measure(words, folder, files.environment(), milestones, key=key), factor)


def _costs(kind: str, run: Run, factor: int) -> dict[str, float]:
    names = OPERATIONS[kind]
    return {
        name: (run.at[name].cpu - run.at[before].cpu) * 1e9 / (COUNTS[name] * factor)
        for before, name in zip((START, *names), names, strict=False)
    }


def _prepare(folder: Path) -> list[Row]:
    rows = [_row(kind, kind, command(kind, _guest(folder, kind), MEMORY_MIB, FACTOR))
            for kind in OPERATIONS]  # fmt: skip
    xen = files.image("xen-shim").path
    for kind in ("pv64", "pv32"):
        rows.append(_row(shim(kind), kind, shim_command(_guest(folder, kind), FACTOR, xen)))
    return rows


def _guest(folder: Path, kind: str) -> str:
    return files.put_guest(folder, GUEST, kind)


def _row(name: str, kind: str, words: Sequence[str]) -> Row:
    return Row(name, lambda folder: costs(kind, words, folder))


def _table(figures: Figures) -> str:
    """A line for each operation, a column for each kind of guest."""
    lines = [["ns of CPU time for a", *figures.rows]]
    for operation in COUNTS:
        medians = (figures.median(kind, operation) for kind in figures.rows)
        lines.append([operation, *("" if ns is None else _number(ns) for ns in medians)])
    return report.markdown(lines, names=1)


def _number(ns: float) -> str:
    return f"{ns:.1f}" if ns < 100 else f"{ns:.0f}"


GROUP: Final = Group(
    "micro",
    "single operations: blocks, hypercalls, faults, page tables; also in xen-shim",
    minutes=3,
    prepare=_prepare,
    table=_table,
)
