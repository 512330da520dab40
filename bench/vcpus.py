"""What more vcpus cost, here and in QEMU.

The same kernel boots with the same initramfs to its power-off, with 1 vcpu and with 4. QEMU's
software CPU runs 4 vcpus on one thread in turn, as xenemu does, or each on a thread of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from bench import files, qemu, report
from bench.files import MEMORY, PV_CONSOLE, SERIAL_CONSOLE, XENEMU
from bench.measure import EXIT, measure
from bench.rows import Figures, Group, Row

VCPUS: Final = (1, 4)
Command = Callable[[int], tuple[str, ...]]


def xenemu(mode: str, vcpus: int) -> tuple[str, ...]:
    """Boot in xenemu."""
    options = f"run vmlinux --initrd initrd.gz --memory {MEMORY} --mode {mode} --vcpus {vcpus}"
    return (*XENEMU, *options.split(), "--cmdline", PV_CONSOLE)


def in_qemu(thread: str, vcpus: int) -> tuple[str, ...]:
    """Boot in QEMU by the PVH note, its vcpus on a `single` thread or on `multi`."""
    machine = qemu.installed().machine
    words = [f"tcg,thread={thread}" if part == "tcg" else part for part in machine]
    options = f"-cpu qemu64 -m {MEMORY} -smp {vcpus} -kernel vmlinux -initrd initrd.gz"
    # On a busy host, Linux else finds that its timer interrupt comes late, and panics.
    return (*words, *options.split(), "-append", f"{SERIAL_CONSOLE} no_timer_check")


SUBJECTS: Final[dict[str, Command]] = {
    "xenemu, PV": lambda vcpus: xenemu("pv", vcpus),
    "xenemu, PVH": lambda vcpus: xenemu("pvh", vcpus),
    "QEMU, single-threaded": lambda vcpus: in_qemu("single", vcpus),
    "QEMU, multi-threaded": lambda vcpus: in_qemu("multi", vcpus),
}


def _row(name: str, command: Command) -> Row:
    def run(folder: Path) -> Mapping[str, float]:
        figures: dict[str, float] = {}
        for vcpus in VCPUS:
            end = measure(command(vcpus), folder, files.environment()).at[EXIT]
            figures |= {f"CPU s with {vcpus}": end.cpu, f"wall s with {vcpus}": end.wall}
        return figures

    return Row(name, run)


def _prepare(folder: Path) -> list[Row]:
    files.put_kernel(folder, files.CLOUD)
    return [_row(name, command) for name, command in SUBJECTS.items()]


def _table(figures: Figures) -> str:
    """A line for each way to boot: medians with each number of vcpus, and what more cost."""
    one, four = (f"CPU s with {vcpus}" for vcpus in VCPUS)
    wall = f"wall s with {VCPUS[-1]}"
    lines = [["", one, four, "ratio", wall]]
    for row in figures.rows:
        few, many = figures.median(row, one), figures.median(row, four)
        ratio = many / few if many and few else None
        cells = (few, many, ratio, figures.median(row, wall))
        lines.append([row, *(report.cell(value, 2) for value in cells)])
    return report.markdown(lines, names=1)


GROUP: Final = Group(
    "vcpus",
    "a boot with 1 vcpu and with 4, here and in QEMU",
    minutes=2,
    prepare=_prepare,
    table=_table,
)
