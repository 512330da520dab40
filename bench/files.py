"""The files that rows boot, and the environment of their processes."""

from __future__ import annotations

import gzip
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Final

from bench.measure import BenchError
from guests import build, fetch
from guests.initramfs import DEFAULT_INIT
from xenemu import image as kernel_image
from xenemu.smoke import initramfs

ROOT: Final = Path(__file__).parents[1]
KERNEL: Final = "debian-amd64"
CLOUD: Final = "debian-cloud-amd64"
MEMORY: Final = "256M"  # of the guest, whoever runs it
XENEMU: Final = (sys.executable, "-m", "xenemu")

# With an early console the kernel's first line is seen when it is printed, not when it is
# replayed; with one on both sides of a comparison the guest does the same work.
PV_CONSOLE: Final = "console=hvc0 earlyprintk=xen"
SERIAL_CONSOLE: Final = "console=ttyS0 earlyprintk=ttyS0"


def environment() -> dict[str, str]:
    """This xenemu, not an installed one, but with its bytecode kept, as an installed one's is."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return kept | {"PYTHONPATH": str(ROOT)}


def image(name: str) -> fetch.Cached:
    """An image of guests/images.toml, fetched if it is not in the cache; BenchError: it is not."""
    entry = fetch.cached(name)
    if entry:
        return entry
    declared = fetch.declared()[name]
    if declared.system:
        return fetch.make_system(declared)
    done, failed = fetch.fetch(
        [declared], fetch.Apt(fetch.cache_dir() / "apt", declared.architecture)
    )
    if failed:
        raise BenchError(f"{name}: {failed[name]}")
    return done[0]


def put_kernel(folder: Path, name: str = KERNEL) -> None:
    """Write `bzImage`, `vmlinux` and `initrd.gz`, of Debian's kernel and a script that ends it."""
    path = image(name).path
    (folder / "bzImage").symlink_to(path)
    # Elsewhere, because a process's peak starts from that of the one that started it.
    with ProcessPoolExecutor(1) as pool:
        pool.submit(_unpack, path, folder / "vmlinux").result()
    put_initrd(folder, DEFAULT_INIT.read_bytes())


def _unpack(kernel: Path, vmlinux: Path) -> None:
    vmlinux.write_bytes(kernel_image.load(kernel).elf)


def put_initrd(folder: Path, script: bytes, name: str = "initrd.gz") -> None:
    """Write an initramfs of busybox, whose init is a script."""
    archive = initramfs.build(image("busybox").path.read_bytes(), script)
    (folder / name).write_bytes(archive)


def put_xen(folder: Path) -> None:
    """Write `xen`: QEMU wants the ELF itself."""
    with gzip.open(image("xen-hypervisor").path) as packed:
        (folder / "xen").write_bytes(packed.read())


def put_guest(folder: Path, name: str, kind: str) -> str:
    """Build a small kernel for an environment, if it is not there; its name in the folder."""
    path = folder / f"{name}-{kind}"
    if not path.exists():
        build.build(build.guests()[name], build.ENVIRONMENTS[kind], path)
    return path.name
