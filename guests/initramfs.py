"""Build an initramfs: ``python guests/initramfs.py OUT.cpio.gz --busybox PATH [--init FILE]``.

The archive holds busybox with links for its commands, and the `init` script.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from xenemu.smoke.initramfs import build

DEFAULT_INIT = Path(__file__).with_name("linux-init") / "init"


def main() -> None:
    """Write the archive that the command line describes."""
    parser = argparse.ArgumentParser(prog="guests/initramfs.py", description="Build an initramfs.")
    parser.add_argument("out", type=Path, metavar="OUT.cpio.gz")
    parser.add_argument("--busybox", type=Path, required=True, help="a static busybox")
    parser.add_argument("--init", type=Path, default=DEFAULT_INIT, help="the /init script")
    arguments = parser.parse_args()
    try:
        archive = build(arguments.busybox.read_bytes(), arguments.init.read_bytes())
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_bytes(archive)
    except OSError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
