"""How boots grow with memory, and with how many run at once: ``python -m bench.scaling``.

Prints Markdown: tables, and a plot in Mermaid's language, for docs/performance.md.
"""

from __future__ import annotations

import os
import shutil
import statistics
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from bench import micro, report
from bench.__main__ import BUSYBOX, KERNEL, _environment, _image
from bench.measure import EXIT, INIT, Run, measure
from bench.subjects import PV_CONSOLE
from guests.initramfs import DEFAULT_INIT
from xenemu.smoke import initramfs

MIB = 1 << 20
SIZES_MIB = (96, 128, 256, 512, 1024, 2048, 4096, 8192)  # Debian's kernel does not start with 64
MODES = ("pv", "pvh")
ROUNDS = 3
PARALLEL = (1, 2)


def main() -> int:
    """Measure, and print what was found."""
    with tempfile.TemporaryDirectory(prefix="xenemu-scaling-") as folder:
        scratch = Path(folder)
        shutil.copyfile(_image(KERNEL).path, scratch / "bzImage")
        busybox, init = _image(BUSYBOX).path.read_bytes(), DEFAULT_INIT.read_bytes()
        (scratch / "initrd.gz").write_bytes(initramfs.build(busybox, init))
        _boot(scratch, "pv", 256)  # fills the caches
        print(_by_memory(scratch), _by_number(scratch), sep="\n\n")
    return 0


def _boot(scratch: Path, mode: str, size_mib: int) -> Run:
    command = (sys.executable, *f"-m xenemu run --mode {mode} --memory {size_mib}M".split())
    command += ("bzImage", "--initrd", "initrd.gz", "--cmdline", PV_CONSOLE)
    return measure(command, scratch, _environment())


def _by_memory(scratch: Path) -> str:
    lines = [["memory, MiB"]]
    lines[0] += [f"{mode.upper()}, CPU s to init" for mode in MODES]
    lines[0] += [f"{mode.upper()}, peak MiB" for mode in MODES] + ["PV hypercall, us"]
    for size in SIZES_MIB:
        runs = {mode: [_boot(scratch, mode, size) for _ in range(ROUNDS)] for mode in MODES}
        seconds = [_median([run.at[INIT].cpu for run in runs[mode]]) for mode in MODES]
        peaks = [_median([run.peak_bytes / MIB for run in runs[mode]]) for mode in MODES]
        call_us = micro.measure_one("pv64", "hypercall", size, scratch, _environment()) / 1000
        lines.append(
            [
                str(size),
                *(f"{value:.2f}" for value in seconds),
                *(f"{value:.0f}" for value in peaks),
                f"{call_us:.1f}",
            ]
        )
    return f"{report.markdown(lines, names=0)}\n\n{_plot(lines)}"


def _plot(lines: Sequence[Sequence[str]]) -> str:
    sizes = ", ".join(line[0] for line in lines[1:])
    curves = [", ".join(line[column] for line in lines[1:]) for column in (1, 2)]
    return "\n".join(
        [
            "```mermaid",
            "xychart-beta",
            '    title "CPU seconds to init, by the guest\'s memory (PV above, PVH below)"',
            f'    x-axis "MiB" [{sizes}]',
            '    y-axis "s" 0 --> 7',
            *(f"    line [{curve}]" for curve in curves),
            "```",
        ]
    )


def _by_number(scratch: Path) -> str:
    lines = [["boots at once", *(f"{mode.upper()}, wall s of each to its end" for mode in MODES)]]
    for number in PARALLEL:
        cells = []
        for mode in MODES:
            with ThreadPoolExecutor(number) as pool:
                boots = [pool.submit(_boot, scratch, mode, 256) for _ in range(number * ROUNDS)]
                cells.append(_median([boot.result().at[EXIT].wall for boot in boots]))
        lines.append([str(number), *(f"{value:.2f}" for value in cells)])
    return f"On {os.cpu_count()} CPUs:\n\n{report.markdown(lines, names=0)}"


def _median(values: Sequence[float]) -> float:
    return statistics.median(values)


if __name__ == "__main__":
    sys.exit(main())
