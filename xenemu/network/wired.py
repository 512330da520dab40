"""The network interfaces of a guest, each with its wire: made before the guest, closed after it."""

from __future__ import annotations

import errno
import hashlib
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import field
from functools import partial
from pathlib import Path
from typing import Final

from xenemu import unixsocket
from xenemu.dom0.net import Vif
from xenemu.errors import UsageError
from xenemu.network import passt
from xenemu.network.asked import Asked, parse_net
from xenemu.network.pcap import Capture, Tapped
from xenemu.network.wires import Listening, Nobody, Stream
from xenemu.records import dataclass

XENS_OUI: Final = "00:16:3e"
NOBODY: Final = (errno.ENOENT, errno.ECONNREFUSED)  # what a connect says where nobody listens
Wire = Stream | Listening | Nobody


@dataclass
class Wired:
    """Interfaces and their wires, in the same order.

    `tell` takes what the person should know while the guest runs.
    """

    vifs: list[Vif] = field(default_factory=list)
    wires: list[Wire] = field(default_factory=list)
    tell: Callable[[str], None] = lambda sentence: None

    @property
    def takes_callers(self) -> bool:
        """Whether somebody may connect while the guest runs."""
        return any(isinstance(wire, Listening) for wire in self.wires)

    def sources(
        self, capture: Callable[[bytes], None] | None = None
    ) -> Sequence[tuple[Vif, Wire | Tapped]]:
        """What brings packets, for `Machine.run`; `capture` writes a capture file's bytes."""
        if capture is None:
            return list(zip(self.vifs, self.wires, strict=True))
        file = Capture(capture, [vif.name for vif in self.vifs])
        tapped = [Tapped(wire, number, file) for number, wire in enumerate(self.wires)]
        return list(zip(self.vifs, tapped, strict=True))

    def summary(self) -> str:
        """What has passed, and what was lost, in words."""
        return "; ".join(map(_describe, self.vifs, self.wires))


@contextmanager
def connected(option: str, texts: Sequence[str], name: str) -> Iterator[Wired]:
    """Connect wires; see `xenemu.network.networked`."""
    asked = [parse_net(option, text) for text in texts]
    wired = Wired()
    try:
        for index, one in enumerate(asked):
            try:
                wire = _wire(one, wired)
            except OSError as error:
                raise UsageError(f"{option} {one.text}: {error.strerror or error}") from None
            wired.wires.append(wire)
            wired.vifs.append(Vif(index, one.mac or _mac(name, index, wire), later=one.later))
        yield wired
    finally:
        for wire in wired.wires:
            wire.close()


def _wire(asked: Asked, wired: Wired) -> Wire:
    """Connect one wire; OSError."""
    gone = partial(_tell_gone, wired, asked.text)
    if asked.is_user:
        return passt.start(asked.forwards, gone)
    if asked.path is None:
        return Nobody()
    for is_last in (False, True):
        try:
            connection = _connect(asked.path)
            if connection is not None:
                return Stream(connection, gone)
            return Listening(*unixsocket.listen(asked.path), gone)
        except OSError as error:  # the other end may have come at the same time
            if is_last or error.errno not in (*NOBODY, errno.EADDRINUSE):
                raise
    raise AssertionError("the last one returns or raises")


def _tell_gone(wired: Wired, who: str, reason: str) -> None:
    wired.tell(f"network {who}: the other end is gone: {reason}")


def _connect(path: Path) -> socket.socket | None:
    """Call whoever listens at a path; None if nobody does."""
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.connect(str(path))
    except OSError as error:
        connection.close()
        if error.errno in NOBODY and (not path.exists() or unixsocket.is_left_behind(path)):
            return None
        raise
    return connection


def _mac(name: str, index: int, wire: Wire) -> str:
    """An address of Xen's that is the same in every run.

    The two ends of a socket may have the same name, so the one that listens has another.
    """
    end = " listens" if isinstance(wire, Listening) else ""
    own = hashlib.sha256(f"{name} {index}{end}".encode()).digest()[:3]
    return ":".join([XENS_OUI, *(f"{byte:02x}" for byte in own)])


def _describe(vif: Vif, wire: Wire) -> str:
    counts = vif.counts
    lost = {
        "bad": counts.bad,
        "dropped on the way in": counts.dropped,
        "lost on the wire": wire.lost if not isinstance(wire, Nobody) else 0,
    }
    words = [f"{count} {what}" for what, count in lost.items() if count]
    passed = [f"{counts.sent} packets sent", f"{counts.received} received", *words]
    return f"{vif.name}: {', '.join(passed)}"
