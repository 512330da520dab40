"""How boots grow with the guest's memory, and with how many run at once."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from bench import files, micro, report
from bench.files import PV_CONSOLE, XENEMU
from bench.measure import EXIT, INIT, Run, measure
from bench.rows import Figures, Group, Row

SIZES_MIB: Final = (96, 128, 256, 512, 1024, 2048, 4096, 8192)  # Linux does not start with 64
MODES: Final = ("PV", "PVH")
PARALLEL: Final = (1, 2)
CPU: Final = {mode: f"{mode}, CPU s to init" for mode in MODES}
PEAK: Final = {mode: f"{mode}, peak MiB" for mode in MODES}
WALL: Final = {mode: f"{mode}, wall s of each to its end" for mode in MODES}
CALL: Final = "PV hypercall, us"


def size_row(size_mib: int) -> str:
    """The row of a size of memory."""
    return f"{size_mib} MiB"


def _boot(folder: Path, mode: str, size_mib: int) -> Run:
    options = f"run --mode {mode.lower()} --memory {size_mib}M bzImage --initrd initrd.gz"
    words = (*XENEMU, *options.split(), "--cmdline", PV_CONSOLE)
    return measure(words, folder, files.environment())


def _by_memory(size_mib: int) -> Row:
    def run(folder: Path) -> Mapping[str, float]:
        figures = {}
        for mode in MODES:
            boot = _boot(folder, mode, size_mib)
            figures[CPU[mode]] = boot.at[INIT].cpu
            figures[PEAK[mode]] = boot.peak_mib
        words = micro.command("pv64", f"{micro.GUEST}-pv64", size_mib, micro.FACTOR)
        figures[CALL] = micro.costs("pv64", words, folder)["hypercall"] / 1000
        return figures

    return Row(size_row(size_mib), run)


def _by_number(number: int) -> Row:
    def run(folder: Path) -> Mapping[str, float]:
        figures = {}
        for mode in MODES:
            with ThreadPoolExecutor(number) as pool:
                boots = [pool.submit(_boot, folder, mode, 256) for _ in range(number)]
                walls = [boot.result().at[EXIT].wall for boot in boots]
            figures[WALL[mode]] = statistics.mean(walls)
        return figures

    return Row(f"{number} at once", run)


def _prepare(folder: Path) -> list[Row]:
    files.put_kernel(folder)
    files.put_guest(folder, micro.GUEST, "pv64")
    _boot(folder, "PV", 256)  # fills the caches
    return [*map(_by_memory, SIZES_MIB), *map(_by_number, PARALLEL)]


def _table(figures: Figures) -> str:
    columns = [(name, 2) for name in CPU.values()] + [(name, 0) for name in PEAK.values()]
    sizes = [row for row in map(size_row, SIZES_MIB) if row in figures.rows]
    numbers = [row for row in figures.rows if row not in sizes]
    walls = [(name, 2) for name in WALL.values()]
    tables = (
        ("", sizes, [*columns, (CALL, 1)]),
        ("Boots that run at the same time:\n\n", numbers, walls),
    )
    return "\n\n".join(
        f"{title}{report.plain(figures, columns, rows)}" for title, rows, columns in tables if rows
    )


GROUP: Final = Group(
    "scaling",
    "boots with 96 MiB to 8 GiB, and two at once",
    minutes=4,
    prepare=_prepare,
    table=_table,
    rounds=3,
)
