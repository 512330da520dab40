"""What more vcpus cost, here and in QEMU: ``python -m bench.vcpus [--rounds N]``.

The same kernel boots with the same initramfs to its power-off, with 1 vcpu and with 4. QEMU's
software CPU runs 4 vcpus on one thread in turn, as xenemu does, or each on a thread of its own. The
subjects take turns. Prints a table in Markdown, for docs/performance.md.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from bench import report
from bench.__main__ import BUSYBOX, _environment, _image, _require_qemu, _unpack
from bench.measure import EXIT, BenchError, Run, measure
from bench.subjects import MACHINE, MEMORY, PV_CONSOLE, SERIAL_CONSOLE
from guests.initramfs import DEFAULT_INIT
from xenemu.smoke import initramfs

KERNEL = "debian-cloud-amd64"
VCPUS = (1, 4)
ROUNDS = 5


@dataclass(frozen=True)
class Subject:
    """A way to boot the kernel, and the number of vcpus."""

    name: str
    vcpus: int
    command: tuple[str, ...]


def xenemu(mode: str, vcpus: int) -> Subject:
    """Boot in xenemu."""
    command = (sys.executable, *"-m xenemu run vmlinux --initrd initrd.gz --memory".split(), MEMORY)
    options = ("--mode", mode, "--vcpus", str(vcpus), "--cmdline", PV_CONSOLE)
    return Subject(f"xenemu, {mode.upper()}", vcpus, command + options)


def qemu(thread: str, vcpus: int) -> Subject:
    """Boot in QEMU by the PVH note, its vcpus on a `single` thread or on `multi`."""
    machine = [f"tcg,thread={thread}" if part == "tcg" else part for part in MACHINE]
    options = ("-cpu", "qemu64", "-m", MEMORY, "-smp", str(vcpus), "-kernel", "vmlinux")
    # On a busy host, Linux else finds that its timer interrupt comes late, and panics.
    arguments = ("-initrd", "initrd.gz", "-append", f"{SERIAL_CONSOLE} no_timer_check")
    return Subject(f"QEMU, {thread}-threaded", vcpus, (*machine, *options, *arguments))


SUBJECTS = (
    *(xenemu("pv", vcpus) for vcpus in VCPUS),
    *(xenemu("pvh", vcpus) for vcpus in VCPUS),
    *(qemu("single", vcpus) for vcpus in VCPUS),
    *(qemu("multi", vcpus) for vcpus in VCPUS),
)


def main() -> int:
    """Measure, and print what was found."""
    parser = argparse.ArgumentParser(prog="python -m bench.vcpus")
    parser.add_argument("--rounds", type=int, default=ROUNDS, metavar="N", help="default: 5")
    rounds = parser.parse_args().rounds
    try:
        _require_qemu(install=False)
        with tempfile.TemporaryDirectory(prefix="xenemu-vcpus-") as folder:
            results = _rounds(Path(folder), rounds)
    except BenchError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    print(table(results))
    return 0


def _rounds(scratch: Path, rounds: int) -> dict[Subject, list[Run]]:
    _unpack(_image(KERNEL).path, scratch / "vmlinux")
    archive = initramfs.build(_image(BUSYBOX).path.read_bytes(), DEFAULT_INIT.read_bytes())
    (scratch / "initrd.gz").write_bytes(archive)
    results: dict[Subject, list[Run]] = {subject: [] for subject in SUBJECTS}
    for _ in range(rounds):
        for subject, runs in results.items():
            run = measure(subject.command, scratch, _environment())
            runs.append(run)
            what = f"{subject.name}, {subject.vcpus}: CPU s {run.at[EXIT].cpu:.2f}"
            print(what, file=sys.stderr, flush=True)
    return results


def table(results: dict[Subject, list[Run]]) -> str:
    """A line for each way to boot: medians with each number of vcpus, and what more cost."""
    found = {
        (subject.name, subject.vcpus): (
            statistics.median(run.at[EXIT].cpu for run in runs),
            statistics.median(run.at[EXIT].wall for run in runs),
        )
        for subject, runs in results.items()
    }
    lines = [["", *(f"CPU s with {n}" for n in VCPUS), "ratio", f"wall s with {VCPUS[-1]}"]]
    for name in dict.fromkeys(subject.name for subject in results):
        cpu = [found[name, vcpus][0] for vcpus in VCPUS]
        ratio, wall = cpu[-1] / cpu[0], found[name, VCPUS[-1]][1]
        lines.append([name, *(f"{s:.2f}" for s in cpu), f"{ratio:.2f}", f"{wall:.2f}"])
    return report.markdown(lines, names=1)


if __name__ == "__main__":
    sys.exit(main())
