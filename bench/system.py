"""A whole Debian with systemd, from a disk to its login: the same files here and in QEMU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from bench import files, qemu, report
from bench.files import XENEMU
from bench.measure import measure
from bench.rows import Figures, Group, Row

IMAGE: Final = "debian-12-system"
MEMORY: Final = "512M"
LOGIN: Final = "login"
MILESTONES: Final = {LOGIN: b"debian login: "}
TIMEOUT: Final = 1800.0
CMDLINE: Final = "console={console} root=/dev/{disk} ro quiet"
CPU: Final = "CPU s to the login"
OURS: Final = {"pvh": "xenemu, PVH", "pv": "xenemu, PV"}
PEERS: Final = tuple(f"{name}, virtio-blk" for name in (qemu.INSTALLED, qemu.NEWEST))


def xenemu(mode: str) -> tuple[str, ...]:
    """Boot it here."""
    options = f"run vmlinuz --initrd initrd.img --memory {MEMORY} --disk root.ext4"
    cmdline = CMDLINE.format(console="hvc0", disk="xvda")
    return (*XENEMU, *options.split(), "--entry", mode, "--cmdline", cmdline)


def in_qemu(machine: qemu.Qemu) -> tuple[str, ...]:
    """Boot it in QEMU, from a disk of virtio's."""
    options = f"-cpu qemu64 -m {MEMORY} -kernel vmlinuz -initrd initrd.img"
    drive = "-device virtio-blk-pci,drive=d"
    drive += " -drive file=root.ext4,if=none,id=d,format=raw,snapshot=on"
    cmdline = CMDLINE.format(console="ttyS0", disk="vda")
    return (*machine.machine, *options.split(), *drive.split(), "-append", cmdline)


def _row(name: str, command: Sequence[str]) -> Row:
    def run(folder: Path) -> Mapping[str, float]:
        done = measure(command, folder, files.environment(), MILESTONES, TIMEOUT, LOGIN)
        end = done.at[LOGIN]
        return {CPU: end.cpu, "wall s": end.wall, "peak MiB": done.peak_mib}

    return Row(name, run)


def _prepare(folder: Path) -> list[Row]:
    image = files.image(IMAGE)
    for name in ("vmlinuz", "initrd.img", "root.ext4"):
        (folder / name).symlink_to(image.path / name)
    rows = [_row(name, xenemu(mode)) for mode, name in OURS.items()]
    machines = qemu.all_of_them()
    return rows + [_row(f"{each.name}, virtio-blk", in_qemu(each)) for each in machines]


def _table(figures: Figures) -> str:
    return report.plain(figures, ((CPU, 1), ("wall s", 1), ("peak MiB", 0)))


GROUP: Final = Group(
    "system",
    "Debian 12 with systemd from a disk to its login",
    minutes=9,
    prepare=_prepare,
    table=_table,
)
