"""How fast a guest reads a disk, here and in QEMU: ``python -m bench.disks``.

The same kernel reads the same file, past its cache: 256 MiB in sequence, and 4,000 times 4 KiB at
random, one after the other. The figures are of the CPU time that xenemu or QEMU takes. Prints a
table in Markdown, for docs/performance.md. The kernel does not isolate its page tables (nopti): it
would do so in xenemu only, whose CPU is one of Intel's.
"""

from __future__ import annotations

import lzma
import random
import stat
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

from bench import report
from bench.__main__ import _environment, _image, _require_qemu
from bench.measure import Run, measure
from bench.subjects import MACHINE, MEMORY
from xenemu.smoke.initramfs import Member, entries, pack

KERNEL, BUSYBOX = "debian-cloud-amd64", "busybox"
DISK_MIB, RANDOM_READS = 256, 4000
ROUNDS = 3
BEGINS, SEQUENCE, RANDOM = "READER-BEGINS", "READER-SEQUENCE", "READER-RANDOM"
MILESTONES = {name: name.encode() for name in (BEGINS, SEQUENCE, RANDOM)}
XEN = ("xen-blkfront",)
# Linux's xen-blkfront asks for 128 KiB at a time, unless this is on its command line.
LARGE_REQUESTS = ("xen-blkfront max_indirect_segments=256",)
VIRTIO = (
    *("virtio_ring", "virtio", "virtio_pci_modern_dev", "virtio_pci_legacy_dev", "virtio_pci"),
    "virtio_blk",
)
INIT = """#!/bin/sh
mount -t devtmpfs dev /dev
{loading}
until [ -b {disk} ]; do sleep 0.01; done
/reader {disk}
poweroff -f
"""


@dataclass(frozen=True)
class Subject:
    """A way to read the disk: who runs the guest, the guest's name of the disk, its modules.

    A module may have parameters after its name.
    """

    name: str
    command: tuple[str, ...]
    disk: str
    modules: tuple[str, ...] = ()

    @property
    def initrd(self) -> str:
        return f"{self.disk.rpartition('/')[2]}{'-large' * (self.modules == LARGE_REQUESTS)}.gz"


def xenemu(mode: str, modules: tuple[str, ...] = XEN, note: str = "") -> Subject:
    subject = Subject(f"xenemu, {mode.upper()}{note}", (), "/dev/xvda", modules)
    command = (sys.executable, *"-m xenemu run vmlinuz --disk disk --memory".split(), MEMORY)
    more = ("--initrd", subject.initrd, "--entry", mode, "--cmdline", "console=hvc0 quiet nopti")
    return replace(subject, command=command + more)


def qemu(name: str, device: str, disk: str, modules: tuple[str, ...] = ()) -> Subject:
    options = ("-cpu", "qemu64", "-m", MEMORY, "-kernel", "vmlinuz", "-device", f"{device},drive=d")
    drive = ("-drive", "file=disk,if=none,id=d,format=raw,snapshot=on")
    initrd = f"{disk.rpartition('/')[2]}.gz"
    append = ("-initrd", initrd, "-append", "console=ttyS0 quiet nopti")
    return Subject(f"QEMU, {name}", (*MACHINE, *options, *drive, *append), disk, modules)


SUBJECTS = (
    xenemu("pvh"),
    xenemu("pv"),
    xenemu("pvh", LARGE_REQUESTS, ", max_indirect_segments=256"),
    xenemu("pv", LARGE_REQUESTS, ", max_indirect_segments=256"),
    qemu("virtio-blk", "virtio-blk-pci", "/dev/vda", VIRTIO),
    qemu("NVMe", "nvme,serial=1", "/dev/nvme0n1"),
)


def main() -> int:
    """Measure, and print what was found."""
    _require_qemu(install=False)
    with tempfile.TemporaryDirectory(prefix="xenemu-disks-") as folder:
        scratch = Path(folder)
        _prepare(scratch)
        runs: dict[Subject, list[Run]] = {subject: [] for subject in SUBJECTS}
        for _ in range(ROUNDS):
            for subject, done in runs.items():
                done.append(measure(subject.command, scratch, _environment(), MILESTONES))
                cpu = ", ".join(f"{name} {done[-1].at[name].cpu:.2f}" for name in MILESTONES)
                print(f"{subject.name}: CPU s to {cpu}", file=sys.stderr, flush=True)
    lines = [["", "in sequence, MB/s", "4 KiB at random, reads/s"]]
    for subject, done in runs.items():
        mb_s = DISK_MIB * (1 << 20) / 1e6 / _between(done, BEGINS, SEQUENCE)
        reads_s = RANDOM_READS / _between(done, SEQUENCE, RANDOM)
        lines.append([subject.name, f"{mb_s:.0f}", f"{reads_s:.0f}"])
    print(report.markdown(lines, names=1))
    return 0


def _between(runs: list[Run], first: str, last: str) -> float:
    """CPU seconds from one milestone to the next."""
    return statistics.median(run.at[last].cpu - run.at[first].cpu for run in runs)


def _parted(module: str) -> tuple[str, str, str]:
    return module.partition(" ")


def _prepare(scratch: Path) -> None:
    """Write the files that subjects name."""
    (scratch / "vmlinuz").write_bytes(_image(KERNEL).path.read_bytes())
    draw = random.Random(1)
    (scratch / "disk").write_bytes(b"".join(draw.randbytes(1 << 20) for _ in range(DISK_MIB)))
    source = Path(__file__).with_name("reader.c")
    build = ["gcc", "-O2", "-static", "-o", scratch / "reader", source]
    subprocess.run(build, check=True)
    folder, busybox = _image(f"{KERNEL}-modules").path, _image(BUSYBOX).path.read_bytes()
    for subject in SUBJECTS:
        loads = [f"insmod /{name}.ko {more}" for name, _, more in map(_parted, subject.modules)]
        script = INIT.format(loading="\n".join(loads), disk=subject.disk)
        members = entries(script.encode(), busybox)
        reader = (scratch / "reader").read_bytes()
        members.append(Member("reader", stat.S_IFREG | 0o755, reader))
        for name, _, _ in map(_parted, subject.modules):
            (path,) = folder.glob(f"{name}.ko*")
            data = path.read_bytes()
            data = lzma.decompress(data) if path.suffix == ".xz" else data
            members.append(Member(f"{name}.ko", stat.S_IFREG | 0o644, data))
        (scratch / subject.initrd).write_bytes(pack(members))


if __name__ == "__main__":
    sys.exit(main())
