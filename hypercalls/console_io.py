"""The emergency console: a guest's bytes, straight to Xen.

Header: public/xen.h (CONSOLEIO_*)
In Xen: drivers/char/console.c
"""

from __future__ import annotations

from typing import Final

from xenemu.abi.errno import EPERM
from xenemu.abi.xen import CONSOLEIO_write, Nr
from xenemu.errors import XenError
from xenemu.hv.current import Current
from xenemu.hv.dispatch import ALL, INT, PTR, Continue, Hypercall
from xenemu.hv.state.domain import OUTPUT_LIMIT

PIECE: Final = 127  # bytes copied in at a time: those before one that faults are shown
PER_CALL: Final = 32 * PIECE  # bytes, then the guest issues the rest of the call again


def do_console_io(current: Current, command: int, count: int, buffer: int) -> int:
    """CONSOLEIO_write: show `count` bytes at `buffer`; EFAULT where one cannot be read.

    EPERM for CONSOLEIO_read, as the input is the hardware domain's, and for unknown commands.
    """
    if command != CONSOLEIO_write:
        raise XenError(EPERM, f"console_io command {command} is the hardware domain's")
    wrap = (1 << 8 * current.vcpu.width) - 1
    done = 0
    while done < min(count, PER_CALL):
        piece = current.read((buffer + done) & wrap, min(PIECE, count - done))
        current.domain.output += piece
        done += len(piece)
    if len(current.domain.output) >= OUTPUT_LIMIT:
        current.cpu.stop()
    if done < count:
        raise Continue(command, count - done, (buffer + done) & wrap)
    return 0


console_io = Hypercall(
    Nr.console_io,
    "console_io",
    ALL,
    (INT, INT, PTR),
    do_console_io,
    diverges="a release build of Xen refuses CONSOLEIO_write too, with -EPERM; a debug build drops"
    " control characters and logs line by line, where xenemu shows the bytes as they are",
)
