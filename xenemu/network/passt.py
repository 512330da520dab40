"""passt: the user's network, without privileges, by a program of its own.

It has one end of a pair of sockets, and ends when the other end is closed. Its guest gets QEMU's
well-known addresses by DHCP: 10.0.2.15, and 10.0.2.2 for the gateway, which is this host.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Final

from xenemu.confine import end_with_parent
from xenemu.needs import PASST
from xenemu.network.asked import Forward
from xenemu.network.wires import Stream

ADDRESSES: Final = ("--address", "10.0.2.15", "--netmask", "24", "--gateway", "10.0.2.2")
PORTS: Final = {"tcp": "--tcp-ports", "udp": "--udp-ports"}
STARTING_S: Final = 10.0
ENDING_S: Final = 2.0
FAILED: Final = ("fail", "invalid", "unable", "could", "cannot", "not ", "no ", "error")


class Passt(Stream):
    """The wire to it; `process` ends when the wire is closed."""

    process: subprocess.Popen[bytes]

    def close(self) -> None:
        """Hang up, and wait until it has ended, so that its ports are free again."""
        super().close()
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(ENDING_S)


def start(forwards: Iterable[Forward], gone: Callable[[str], None]) -> Passt:
    """Start it, with ports, and wait until it is ready; OSError says why it cannot be."""
    program = PASST.find()
    if program is None:
        raise OSError(
            errno.ENOENT,
            f"there is no {PASST.name} on this host; Debian and Ubuntu have it in the package"
            f" {PASST.package}",
        )
    ours, theirs = socket.socketpair()
    ready, telling = os.pipe()
    os.fchmod(telling, 0o666)  # a passt that root starts opens it as nobody
    wire = Passt(ours, gone)
    with theirs, open(ready, "rb") as readiness, tempfile.TemporaryFile() as errors:
        to = ["--fd", str(theirs.fileno()), "--pid", f"/dev/fd/{telling}"]
        try:
            wire.process = subprocess.Popen(
                [program, "--foreground", *to, *ADDRESSES, *_ports(forwards)],
                pass_fds=[theirs.fileno(), telling],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                start_new_session=True,  # Ctrl-C is not for it
                preexec_fn=end_with_parent,  # noqa: PLW1509 (one thread)
            )
        except OSError:
            ours.close()
            raise
        finally:
            os.close(telling)
        if not select.select([readiness], [], [], STARTING_S)[0]:
            wire.process.kill()
            wire.close()
            raise OSError(errno.ETIMEDOUT, f"{PASST.name} was not ready in {STARTING_S:.0f} s")
        if not readiness.read(1):
            wire.process.kill()
            wire.close()
            errors.seek(0)
            problem = _problem(errors.read().decode(errors="replace"))
            raise OSError(errno.EIO, f"{PASST.name}: {problem}")
    return wire


def _ports(forwards: Iterable[Forward]) -> list[str]:
    options: list[str] = []
    for forward in forwards:
        address = f"{forward.address}/" if forward.address else ""
        options += [PORTS[forward.protocol], f"{address}{forward.host}:{forward.guest}"]
    return options


def _problem(stderr: str) -> str:
    """The line that says what is wrong, of all that it says."""
    lines = [line.strip() for line in stderr.splitlines() if "syslog" not in line and line.strip()]
    telling = [line for line in lines if any(word in line.lower() for word in FAILED)]
    return next(iter([*telling, *lines[-1:]]), "it ended, and said nothing")
