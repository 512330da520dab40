"""Measure: ``python -m bench [--rounds N | --quick] [--update FILE] [--history FILE] ...``."""

from __future__ import annotations

import argparse
import gzip
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from bench import history, micro, report
from bench.measure import BANNER, EXIT, INIT, BenchError, Run, measure
from bench.subjects import MEMORY, OURS, QEMU, SUBJECTS, Subject
from guests import fetch
from guests.initramfs import DEFAULT_INIT
from xenemu import __version__, image
from xenemu.errors import XenemuError
from xenemu.smoke import initramfs

ROOT = Path(__file__).parents[1]
KERNEL, BUSYBOX, XEN = "debian-amd64", "busybox", "xen-hypervisor"
APT_INSTALL = ("apt-get", "install", "-y", "--no-install-recommends", "qemu-system-x86")


def main() -> int:
    """Measure every subject, print the table, and write it to a file if one is given."""
    arguments = _parse()
    try:
        if arguments.compare:
            print(history.compare(arguments.compare))
            return 0
        if arguments.update:  # not after the minutes that measuring takes
            _update(arguments.update, None)
        _require_qemu(arguments.install)
        images = {name: _image(name) for name in (KERNEL, BUSYBOX, XEN)}
        with tempfile.TemporaryDirectory(prefix="xenemu-bench-") as scratch:
            _prepare(Path(scratch), images)
            results = _rounds(arguments.rounds, Path(scratch))
            startup_s = _startup(arguments.rounds, Path(scratch))
            costs = micro.measure_all(arguments.rounds, Path(scratch), _environment())
        text = "\n\n".join(
            (
                _conditions(images, results),
                report.table(results),
                f"`xenemu --help` takes {startup_s:.2f} s of CPU time.",
                report.markdown(micro.table(costs), names=1),
            )
        )
        print(text)
        figures = report.figures(results, startup_s, costs)
        if arguments.json:
            arguments.json.write_text(json.dumps(figures, indent=2) + "\n")
        if arguments.history:
            history.append(arguments.history, figures)
        if arguments.update:
            _update(arguments.update, text)
    except (BenchError, XenemuError, fetch.FetchError, OSError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description="Boot Debian's kernel in xenemu and in its peers; compare what it costs.",
    )
    rounds = parser.add_mutually_exclusive_group()
    rounds.add_argument("--rounds", type=int, default=5, metavar="N", help="default: 5")
    rounds.add_argument("--quick", dest="rounds", action="store_const", const=1, help="one round")
    parser.add_argument(
        "--update", type=Path, metavar="FILE", help=f"rewrite what is after {report.BEGIN} in FILE"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to FILE")
    parser.add_argument("--history", type=Path, metavar="FILE", help="add them to FILE, as a line")
    parser.add_argument(
        "--compare", type=Path, metavar="FILE", help="only say how the last line of FILE differs"
    )
    parser.add_argument("--install", action="store_true", help="install QEMU if it is missing")
    arguments = parser.parse_args()
    if arguments.rounds < 1:
        parser.error("--rounds: at least 1")
    return arguments


def _update(file: Path, block: str | None) -> None:
    """Rewrite the block in `file`; without one, only check that there is a place for it."""
    try:
        text = report.replace_block(file.read_text(), block or "")
    except (BenchError, UnicodeDecodeError) as error:
        raise BenchError(f"{file}: {error}") from None
    if block:
        file.write_text(text)


def _require_qemu(install: bool) -> None:
    if shutil.which(QEMU):
        return
    if not install:
        raise BenchError(f"no {QEMU}: apt-get install qemu-system-x86, or as root: --install")
    if subprocess.run(APT_INSTALL, stdout=sys.stderr, check=False).returncode:
        raise BenchError(f"{' '.join(APT_INSTALL)} failed")


def _image(name: str) -> fetch.Cached:
    entry = fetch.cached(name)
    if not entry:
        declared = fetch.declared()[name]
        apt = fetch.Apt(fetch.cache_dir() / "apt", declared.architecture)
        done, failed = fetch.fetch([declared], apt)
        if failed:
            raise BenchError(f"{name}: {failed[name]}")
        (entry,) = done
    return entry


def _prepare(scratch: Path, images: dict[str, fetch.Cached]) -> None:
    """Write the files that subjects name."""
    shutil.copyfile(images[KERNEL].path, scratch / "bzImage")
    init = DEFAULT_INIT.read_bytes()
    archive = initramfs.build(images[BUSYBOX].path.read_bytes(), init)
    (scratch / "initrd.gz").write_bytes(archive)
    with gzip.open(images[XEN].path) as packed:  # QEMU wants the ELF itself
        (scratch / "xen").write_bytes(packed.read())
    # Elsewhere, because a process's peak starts from that of the one that started it.
    with ProcessPoolExecutor(1) as pool:
        pool.submit(_unpack, scratch / "bzImage", scratch / "vmlinux").result()


def _unpack(kernel: Path, vmlinux: Path) -> None:
    vmlinux.write_bytes(image.load(kernel).elf)


def _rounds(count: int, scratch: Path) -> dict[Subject, list[Run]]:
    """Run every subject once a round, in turns, after a first run that fills the caches."""
    environment = _environment()
    for subject in SUBJECTS:
        if subject.name == OURS:
            measure(subject.command, scratch, environment)
    results: dict[Subject, list[Run]] = {subject: [] for subject in SUBJECTS}
    for number in range(1, count + 1):
        for subject, runs in results.items():
            label = f"round {number} of {count}, {subject.boot}, {subject.name}"
            try:
                run = measure(subject.command, scratch, environment)
            except BenchError as error:
                raise BenchError(f"{label}: {error}") from None
            runs.append(run)
            cpu = ", ".join(f"{name} {run.at[name].cpu:.2f}" for name in (BANNER, INIT, EXIT))
            wall = run.at[EXIT].wall
            print(f"{label}: CPU s to {cpu}; wall {wall:.2f}", file=sys.stderr, flush=True)
    return results


def _environment() -> dict[str, str]:
    """This xenemu, not an installed one, but with its bytecode kept, as an installed one's is."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return kept | {"PYTHONPATH": str(ROOT)}


def _startup(rounds: int, scratch: Path) -> float:
    """CPU seconds of a command that does nothing but start."""
    command = (sys.executable, "-m", "xenemu", "--help")
    runs = [measure(command, scratch, _environment(), {}) for _ in range(rounds)]
    return statistics.median(run.at[EXIT].cpu for run in runs)


def _conditions(images: dict[str, fetch.Cached], results: report.Results) -> str:
    """Say what was measured, on what, and how steady it was."""
    qemu = subprocess.run([QEMU, "--version"], capture_output=True, text=True, check=True)
    rounds = len(next(iter(results.values())))
    differ = f"; CPU seconds of a row differ by up to {report.spread(results):.0%}"
    return (
        f"xenemu {__version__}, Python {platform.python_version()}; QEMU"
        f" {qemu.stdout.split()[3]} (TCG), Xen {images[XEN].version}; Debian's Linux"
        f" {images[KERNEL].version} with {MEMORY} and one CPU; on {os.cpu_count()} CPUs of"
        f" {_processor()}. {f'Medians of {rounds} by turns{differ}' if rounds > 1 else 'One run'}."
        " xenemu's bytecode and unpacked kernel are in their caches."
        " Under Xen the kernel is dom0, which sets up and powers off a PC; in xenemu it is a domU."
    )


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            return value.strip()
    return "an unnamed processor"


if __name__ == "__main__":
    sys.exit(main())
