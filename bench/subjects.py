"""What is measured: a row for each way to boot the kernel. A new row needs nothing else.

Commands run in a directory with the files `bzImage`, `vmlinux`, `initrd.gz` and `xen`: QEMU
splits ``-initrd`` at commas and spaces, so the names in it must have none.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

OURS = "xenemu"
QEMU = "qemu-system-x86_64"
MEMORY = "256M"  # of the guest, whoever runs it
XEN_MEMORY = "512M"  # of Xen's machine: the guest's, and what Xen takes for itself

# With an early console the kernel's first line is seen when it is printed, not when it is
# replayed; with one on both sides of a comparison the guest does the same work.
PV_CONSOLE = "console=hvc0 earlyprintk=xen"
SERIAL_CONSOLE = "console=ttyS0 earlyprintk=ttyS0"

# As quick as these machines get: no video, network or disk controller to look for.
MACHINE = (QEMU, *"-accel tcg -nodefaults -display none -serial stdio -no-reboot".split())


@dataclass(frozen=True)
class Subject:
    """A row; those of one `boot` stand together, and `OURS` is compared with the others."""

    boot: str
    name: str
    command: tuple[str, ...]


def xenemu(mode: str, kernel: str) -> Subject:
    """Boot `kernel` in xenemu."""
    command = (sys.executable, *"-m xenemu run --memory".split(), MEMORY, "--mode", mode, kernel)
    arguments = ("--initrd", "initrd.gz", "--cmdline", PV_CONSOLE)
    return Subject(f"{mode.upper()}, {kernel}", OURS, command + arguments)


def xen_in_qemu(kernel: str) -> Subject:
    """Boot `kernel` as Xen's PV dom0: Xen is a multiboot kernel, what it boots are modules."""
    options = ("-cpu", "qemu64", "-m", XEN_MEMORY, "-kernel", "xen")
    modules = ("-initrd", f"{kernel} {PV_CONSOLE},initrd.gz")
    cmdline = ("-append", f"console=com1 com1=115200,8n1 dom0_mem={MEMORY}")
    return Subject(f"PV, {kernel}", "Xen in QEMU", MACHINE + options + modules + cmdline)


def qemu(kernel: str) -> Subject:
    """Boot `kernel` in bare QEMU: an ELF with a PVH note the PVH way, a bzImage Linux's own."""
    options = ("-cpu", "qemu64", "-m", MEMORY, "-kernel", kernel)
    arguments = ("-initrd", "initrd.gz", "-append", SERIAL_CONSOLE)
    return Subject(f"PVH, {kernel}", "QEMU", MACHINE + options + arguments)


SUBJECTS = (
    xenemu("pv", "bzImage"),
    xen_in_qemu("bzImage"),
    xenemu("pv", "vmlinux"),
    xen_in_qemu("vmlinux"),
    xenemu("pvh", "bzImage"),
    qemu("bzImage"),
    xenemu("pvh", "vmlinux"),
    qemu("vmlinux"),
)
