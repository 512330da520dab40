"""How fast a guest reads a disk, here and in QEMU.

The same kernel reads the same file, past its cache: 256 MiB in sequence, and 4,000 times 4 KiB at
random, one after the other. The figures are of the CPU time that xenemu or QEMU takes. The kernel
does not isolate its page tables (nopti): it would do so in xenemu only, whose CPU is one of
Intel's.
"""

from __future__ import annotations

import lzma
import random
import stat
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from bench import files, qemu, report
from bench.files import CLOUD, MEMORY, XENEMU
from bench.measure import measure
from bench.rows import Figures, Group, Row
from xenemu.smoke.initramfs import Member, entries, pack

DISK_MIB, RANDOM_READS = 256, 4000
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
    command = (*XENEMU, *"run vmlinuz --disk disk --memory".split(), MEMORY)
    more = ("--initrd", subject.initrd, "--entry", mode, "--cmdline", "console=hvc0 quiet nopti")
    return replace(subject, command=command + more)


def in_qemu(name: str, device: str, disk: str, modules: tuple[str, ...] = ()) -> Subject:
    options = ("-cpu", "qemu64", "-m", MEMORY, "-kernel", "vmlinuz", "-device", f"{device},drive=d")
    drive = ("-drive", "file=disk,if=none,id=d,format=raw,snapshot=on")
    initrd = f"{disk.rpartition('/')[2]}.gz"
    append = ("-initrd", initrd, "-append", "console=ttyS0 quiet nopti")
    command = (*qemu.installed().machine, *options, *drive, *append)
    return Subject(f"QEMU, {name}", command, disk, modules)


SEQUENCE_MB_S, RANDOM_READS_S = "in sequence, MB/s", "4 KiB at random, reads/s"


def subjects() -> tuple[Subject, ...]:
    """All of them."""
    return (
        xenemu("pvh"),
        xenemu("pv"),
        xenemu("pvh", LARGE_REQUESTS, ", max_indirect_segments=256"),
        xenemu("pv", LARGE_REQUESTS, ", max_indirect_segments=256"),
        in_qemu("virtio-blk", "virtio-blk-pci", "/dev/vda", VIRTIO),
        in_qemu("NVMe", "nvme,serial=1", "/dev/nvme0n1"),
    )


def _row(subject: Subject) -> Row:
    def run(folder: Path) -> Mapping[str, float]:
        at = measure(subject.command, folder, files.environment(), MILESTONES).at
        sequence_s = at[SEQUENCE].cpu - at[BEGINS].cpu
        random_s = at[RANDOM].cpu - at[SEQUENCE].cpu
        mb = DISK_MIB * (1 << 20) / 1e6
        return {SEQUENCE_MB_S: mb / sequence_s, RANDOM_READS_S: RANDOM_READS / random_s}

    return Row(subject.name, run)


def _parted(module: str) -> tuple[str, str, str]:
    return module.partition(" ")


def _prepare(scratch: Path) -> list[Row]:
    """Write the files that subjects name."""
    (scratch / "vmlinuz").symlink_to(files.image(CLOUD).path)
    draw = random.Random(1)
    (scratch / "disk").write_bytes(b"".join(draw.randbytes(1 << 20) for _ in range(DISK_MIB)))
    source = Path(__file__).with_name("reader.c")
    build = ["gcc", "-O2", "-static", "-o", str(scratch / "reader"), str(source)]
    subprocess.run(build, check=True)
    folder, busybox = files.image(f"{CLOUD}-modules").path, files.image("busybox").path.read_bytes()
    for subject in subjects():
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
    return [_row(subject) for subject in subjects()]


def _table(figures: Figures) -> str:
    return report.plain(figures, ((SEQUENCE_MB_S, 0), (RANDOM_READS_S, 0)))


GROUP: Final = Group(
    "disks",
    "reads from a disk, in sequence and at random, here and in QEMU",
    minutes=2,
    prepare=_prepare,
    table=_table,
    rounds=3,
)
