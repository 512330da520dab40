"""PV kernels here, and in a real Xen that is itself a guest of xenemu: Debian's xen-shim.

Debian has no 32-bit PV Linux. GRUB is one kernel of that kind; what a larger one would do with its
page tables is the operation "address space" of `micro.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from bench import files, report
from bench.files import PV_CONSOLE, XENEMU
from bench.measure import DONE, measure
from bench.micro import SHIM_CMDLINE
from bench.rows import Figures, Group, Row

CPU: Final = "CPU s"
PEAK: Final = "peak MiB"
PROMPT: Final = "prompt"
LINUX, GRUB64, GRUB32 = "PV64, Debian's Linux", "PV64, GRUB", "PV32, GRUB"
GRUBS: Final = {GRUB64: "grub-x86_64-xen", GRUB32: "grub-i386-xen"}
HERE, THERE = "xenemu", "xen-shim on xenemu"


def _row(name: str, words: Sequence[str], last: str, shown: bytes) -> Row:
    def run(folder: Path) -> Mapping[str, float]:
        done = measure(words, folder, files.environment(), {last: shown}, last=last)
        return {CPU: done.at[last].cpu, PEAK: done.peak_mib}

    return Row(name, run)


def _prepare(folder: Path) -> list[Row]:
    files.put_kernel(folder, files.CLOUD)
    xen = files.image("xen-shim").path
    run = (*XENEMU, "run", "--memory", "256M", "--mode")
    in_xen = (*run, "pvh", str(xen), "--cmdline", SHIM_CMDLINE)
    linux = (*run, "pv", "vmlinux", "--initrd", "initrd.gz", "--cmdline", PV_CONSOLE)
    modules = ("--module", f"vmlinux={PV_CONSOLE}", "--module", "initrd.gz")
    end = (DONE, b"INIT-DONE")
    rows = [
        _row(f"{LINUX}: {HERE}", linux, *end),
        _row(f"{LINUX}: {THERE}", (*in_xen, *modules), *end),
    ]
    for name, image in GRUBS.items():
        grub = str(files.image(image).path)
        rows.append(_row(f"{name}: {HERE}", (*run, "pv", grub), PROMPT, b"grub>"))
        rows.append(_row(f"{name}: {THERE}", (*in_xen, "--module", grub), PROMPT, b"grub>"))
    return rows


def ratio(figures: Figures, kernel: str) -> float | None:
    """Ours to that of the same kernel in xen-shim."""
    return figures.ratio(f"{kernel}: {HERE}", [f"{kernel}: {THERE}"], CPU)


def _table(figures: Figures) -> str:
    lines = [["CPU s", HERE, THERE, "ratio"]]
    for name in (LINUX, *GRUBS):
        both = (figures.median(f"{name}: {where}", CPU) for where in (HERE, THERE))
        cells = [report.cell(value, 2) for value in (*both, ratio(figures, name))]
        lines.append([name, *cells])
    return report.markdown(lines, names=1)


GROUP: Final = Group(
    "shim",
    "PV kernels: xenemu, and a real Xen as a guest of xenemu",
    minutes=1,
    prepare=_prepare,
    table=_table,
)
