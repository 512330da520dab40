"""What it costs to boot a whole Debian to its login: ``python -m bench.system``.

The same kernel, initramfs and disk boot here and in QEMU. Prints a table in Markdown, for
docs/performance.md.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from pathlib import Path
from typing import Final

from bench import report
from bench.__main__ import _environment, _require_qemu
from bench.measure import BenchError, Run, measure
from bench.subjects import MACHINE
from guests import fetch

IMAGE: Final = "debian-12-system"
MEMORY: Final = "512M"
ROUNDS: Final = 3
LOGIN: Final = "login"
MILESTONES: Final = {LOGIN: b"debian login: "}
TIMEOUT: Final = 1800.0
CMDLINE: Final = "console={console} root=/dev/{disk} ro quiet"


def xenemu(mode: str) -> tuple[str, ...]:
    """Boot it here."""
    options = f"-m xenemu run vmlinuz --initrd initrd.img --memory {MEMORY} --disk root.ext4"
    cmdline = CMDLINE.format(console="hvc0", disk="xvda")
    return (sys.executable, *options.split(), "--entry", mode, "--cmdline", cmdline)


def qemu(device: str, disk: str) -> tuple[str, ...]:
    """Boot it in QEMU, with the disk behind one of QEMU's controllers."""
    options = f"-cpu qemu64 -m {MEMORY} -kernel vmlinuz -initrd initrd.img"
    drive = f"-device {device},drive=d -drive file=root.ext4,if=none,id=d,format=raw,snapshot=on"
    cmdline = CMDLINE.format(console="ttyS0", disk=disk)
    return (*MACHINE, *options.split(), *drive.split(), "-append", cmdline)


SUBJECTS: Final = {
    "xenemu, PVH": xenemu("pvh"),
    "xenemu, PV": xenemu("pv"),
    "QEMU, virtio-blk": qemu("virtio-blk-pci", "vda"),
    "QEMU, NVMe": qemu("nvme,serial=1", "nvme0n1"),
}


def main() -> int:
    """Measure, and print what was found; `--quick` does one round."""
    rounds = 1 if "--quick" in sys.argv[1:] else ROUNDS
    try:
        _require_qemu(install=False)
        image = fetch.cached(IMAGE) or fetch.make_system(fetch.declared()[IMAGE])
        lines = [["", "CPU s to the login", "wall s", "peak MiB"]]
        with tempfile.TemporaryDirectory(prefix="xenemu-system-") as folder:
            for name in ("vmlinuz", "initrd.img", "root.ext4"):
                (Path(folder) / name).symlink_to(image.path / name)
            for name, command in SUBJECTS.items():
                runs = [
                    measure(command, Path(folder), _environment(), MILESTONES, TIMEOUT, LOGIN)
                    for _ in range(rounds)
                ]
                lines.append([name, *_figures(runs)])
                print(*lines[-1], file=sys.stderr, flush=True)
    except (BenchError, *fetch.FAILURES) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    print(report.markdown(lines, names=1))
    return 0


def _figures(runs: list[Run]) -> list[str]:
    """The medians."""
    costs = [run.at[LOGIN] for run in runs]
    cpu_s = statistics.median(cost.cpu for cost in costs)
    wall_s = statistics.median(cost.wall for cost in costs)
    peak = statistics.median(run.peak_bytes for run in runs)
    return [f"{cpu_s:.1f}", f"{wall_s:.1f}", f"{peak / (1 << 20):.0f}"]


if __name__ == "__main__":
    sys.exit(main())
