"""What xenemu uses of a host's programs and libraries, and which package has it.

Names and packages are Debian's, and Ubuntu's, too.
"""

from __future__ import annotations

import os
import shutil
from typing import Final

from xenemu.records import dataclass

SYSTEM_PATH: Final = "/usr/sbin:/sbin"  # of programs that a user's PATH does not show


@dataclass(frozen=True)
class Need:
    """A program, or a library; `package` has it."""

    name: str
    package: str

    def find(self) -> str | None:
        """Where the program is; None if it is nowhere."""
        return shutil.which(self.name, path=f"{os.environ.get('PATH', os.defpath)}:{SYSTEM_PATH}")

    @property
    def install(self) -> str:
        """The command that installs it."""
        return f"apt-get install {self.package}"


@dataclass(frozen=True)
class Extra:
    """A Python module that xenemu can do without, until it is asked for what that does."""

    module: str
    requirement: str

    @property
    def install(self) -> str:
        """The command that installs it."""
        return f"pip install '{self.requirement}'"


BUSYBOX: Final = Need("busybox", "busybox-static")
DIOD: Final = Need("diod", "diod")
PASST: Final = Need("passt", "passt")
SECCOMP: Final = Need("libseccomp.so.2", "libseccomp2")
GDB: Final = Need("gdb", "gdb")
GCC: Final = Need("gcc", "gcc")
MMDEBSTRAP: Final = Need("mmdebstrap", "mmdebstrap")
MKFS: Final = Need("mkfs.ext4", "e2fsprogs")
QEMU: Final = Need("qemu-system-x86_64", "qemu-system-x86")

QCOW2: Final = Extra("dissect.hypervisor", "xenemu[qcow2]")
DASK: Final = Extra("distributed", "xenemu[dask]")
DRGN: Final = Extra("drgn", "drgn")
