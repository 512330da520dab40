"""An initramfs with modules of the kernel's: by default some of which one panics after a second."""

from __future__ import annotations

import lzma
import stat

from xenemu.smoke.initramfs import Member, entries, pack

MODULES = ("watchdog", "xen_wdt", "softdog")  # in the order in which they need each other
INIT = b"""#!/bin/sh
insmod /watchdog.ko
insmod /xen_wdt.ko
insmod /softdog.ko soft_margin=1 soft_panic=1 soft_active_on_boot=1
sleep 5
poweroff -f
"""


def module_initramfs(guest_image, kernel, init=INIT, modules=MODULES):
    """The archive for a kernel of guests/images.toml, with modules of its own package."""
    members = entries(init, guest_image("busybox").read_bytes())
    folder = guest_image(f"{kernel}-modules")
    for name in modules:
        (path,) = folder.glob(f"{name}.ko*")
        data = path.read_bytes()
        if path.suffix == ".xz":
            data = lzma.decompress(data)
        members.append(Member(f"{name}.ko", stat.S_IFREG | 0o644, data))
    return pack(members)
