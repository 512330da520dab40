"""Debian's kernel to its init and its power-off, here, in Xen on QEMU, and in QEMU alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from bench import files, qemu, report
from bench.files import MEMORY, PV_CONSOLE, SERIAL_CONSOLE, XENEMU
from bench.measure import BANNER, EXIT, INIT, Run, measure
from bench.report import Column
from bench.rows import Figures, Group, Row

XEN_MEMORY: Final = "512M"  # of Xen's machine: the guest's, and what Xen takes for itself
TO_BANNER, TO_INIT, TO_EXIT = "CPU s to `Linux version`", "CPU s to init", "CPU s to exit"
COLUMNS: Final[tuple[Column, ...]] = (
    *((name, 2) for name in (TO_BANNER, TO_INIT, TO_EXIT, "wall s to exit")),
    ("peak MiB", 0),
)
BOOTS: Final = ("PV, bzImage", "PV, vmlinux", "PVH, bzImage", "PVH, vmlinux")


def ours(boot: str) -> str:
    """The row of xenemu."""
    return f"{boot}: xenemu"


def peers(boot: str) -> tuple[str, ...]:
    """The rows of its peers."""
    under = "Xen in " if boot.startswith("PV,") else ""
    return tuple(f"{boot}: {under}{name}" for name in (qemu.INSTALLED, qemu.NEWEST))


def xenemu(boot: str, kernel: str) -> Row:
    """Boot `kernel` in xenemu."""
    mode = boot.partition(",")[0].lower()
    command = (*XENEMU, *f"run --memory {MEMORY} --mode {mode} {kernel}".split())
    return _row(ours(boot), (*command, "--initrd", "initrd.gz", "--cmdline", PV_CONSOLE))


def xen_in_qemu(boot: str, kernel: str, machine: qemu.Qemu) -> Row:
    """Boot `kernel` as Xen's PV dom0: Xen is a multiboot kernel, what it boots are modules.

    QEMU splits ``-initrd`` at commas and spaces, so the names in it have none.
    """
    options = ("-cpu", "qemu64", "-m", XEN_MEMORY, "-kernel", "xen")
    modules = ("-initrd", f"{kernel} {PV_CONSOLE},initrd.gz")
    cmdline = ("-append", f"console=com1 com1=115200,8n1 dom0_mem={MEMORY}")
    return _row(f"{boot}: Xen in {machine.name}", machine.machine + options + modules + cmdline)


def bare_qemu(boot: str, kernel: str, machine: qemu.Qemu) -> Row:
    """Boot `kernel` in bare QEMU: an ELF with a PVH note the PVH way, a bzImage Linux's own."""
    options = ("-cpu", "qemu64", "-m", MEMORY, "-kernel", kernel)
    arguments = ("-initrd", "initrd.gz", "-append", SERIAL_CONSOLE)
    return _row(f"{boot}: {machine.name}", machine.machine + options + arguments)


def _row(name: str, command: Sequence[str]) -> Row:
    def run(folder: Path) -> Mapping[str, float]:
        return _figures(measure(command, folder, files.environment()))

    return Row(name, run)


def _figures(run: Run) -> dict[str, float]:
    """What a boot cost."""
    to = ((TO_BANNER, BANNER), (TO_INIT, INIT), (TO_EXIT, EXIT))
    cpu = {name: run.at[milestone].cpu for name, milestone in to}
    return cpu | {"wall s to exit": run.at[EXIT].wall, "peak MiB": run.peak_mib}


def _prepare(folder: Path) -> list[Row]:
    files.put_kernel(folder)
    files.put_xen(folder)
    rows = list(_rows())
    for row in rows:
        if row.name in map(ours, BOOTS):  # fills the caches
            row.figures(folder)
    return rows


def _rows() -> Iterator[Row]:
    for boot in BOOTS:
        kernel = boot.partition(", ")[2]
        peer = xen_in_qemu if boot.startswith("PV,") else bare_qemu
        yield xenemu(boot, kernel)
        yield from (peer(boot, kernel, machine) for machine in qemu.all_of_them())


def _table(figures: Figures) -> str:
    """A line for each row, and one for each ratio of ours to the faster peer's."""
    lines = [["boot", "by", *(name for name, _ in COLUMNS)]]
    for boot in (boot for boot in BOOTS if ours(boot) in figures.rows):
        for row in (ours(boot), *peers(boot)):
            if row in figures.rows:
                medians = (report.cell(figures.median(row, name), n) for name, n in COLUMNS)
                lines.append([boot, row.partition(": ")[2], *medians])
        ratios = (figures.ratio(ours(boot), peers(boot), name) for name, _ in COLUMNS)
        lines.append([boot, "xenemu / the faster", *(report.cell(ratio, 2) for ratio in ratios)])
    return report.markdown(lines, names=2)


GROUP: Final = Group(
    "boots",
    "Debian's kernel to init and power-off: xenemu, Xen on QEMU, QEMU",
    minutes=5,
    prepare=_prepare,
    table=_table,
)
