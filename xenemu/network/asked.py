"""``--net``: what a person asks for, in words that are near to QEMU's."""

from __future__ import annotations

import re
from ipaddress import ip_address
from pathlib import Path
from typing import Final

from xenemu.errors import UsageError
from xenemu.records import dataclass

NOBODY: Final = "none-but-pcap"
FORMS: Final = f"user, socket:PATH or {NOBODY}"
MAX_PORT: Final = 65535
FORWARD: Final = re.compile(
    r"(?P<protocol>tcp|udp):(?:(?P<address>\[[^]]*\]|[^:,\[\]]*):)?"
    r"(?P<host>\d{1,5})(?:-:?|:)(?P<guest>\d{1,5})",
    re.ASCII,
)
MAC: Final = re.compile(r"[0-9a-f]{2}(?::[0-9a-f]{2}){5}", re.IGNORECASE | re.ASCII)


@dataclass(frozen=True)
class Forward:
    """A port of this host's that leads to one of the guest's."""

    protocol: str
    address: str  # of this host; empty for all of them
    host: int
    guest: int


@dataclass(frozen=True)
class Asked:
    """One network interface: whom its wire leads to, and its address if that is asked for.

    `path` is that of a socket. Without a path, it is the user's network, or nobody's.
    """

    text: str
    is_user: bool = False
    path: Path | None = None
    mac: str | None = None
    forwards: tuple[Forward, ...] = ()
    later: bool = False  # the guest gets it when a toolstack attaches it


def parse_net(option: str, text: str, folder: Path | None = None) -> Asked:
    """Read ``user[,hostfwd=...]``, ``socket:PATH`` or ``none-but-pcap``.

    Each may have ``,mac=`` and ``,later``. A path is relative to `folder`. UsageError says what is
    wrong.
    """
    said = f"{option} {text}"
    kind, *settings = text.split(",")
    path = kind.removeprefix("socket:") if kind.startswith("socket:") else None
    if path and folder is not None:
        path = str(folder / path)
        text = ",".join([f"socket:{path}", *settings])
    if kind not in ("user", NOBODY) and not path:
        raise UsageError(f"{said}: give {FORMS}")
    mac, forwards, later = None, [], False
    for setting in settings:
        key, _, value = setting.partition("=")
        if setting == "later":
            later = True
        elif key == "mac":
            mac = _mac(said, value)
        elif key == "hostfwd" and kind == "user":
            forwards.append(_forward(said, value))
        else:
            known = "hostfwd=, mac= and later" if kind == "user" else "mac= and later"
            raise UsageError(f"{said}: {setting!r} is unknown; there are {known}")
    return Asked(text, kind == "user", Path(path) if path else None, mac, tuple(forwards), later)


def reaches_nobody(text: str) -> bool:
    """Whether what `parse_net` takes is a wire with nobody at its other end."""
    return text.partition(",")[0] == NOBODY


def _mac(said: str, text: str) -> str:
    if not MAC.fullmatch(text):
        raise UsageError(f"{said}: mac= wants an address such as 00:16:3e:12:34:56")
    if int(text[:2], 16) & 1:
        raise UsageError(f"{said}: {text} is an address of many; the first byte must be even")
    return text.lower()


def _forward(said: str, text: str) -> Forward:
    found = FORWARD.fullmatch(text)
    if not found or not all(0 < int(found[end]) <= MAX_PORT for end in ("host", "guest")):
        raise UsageError(
            f"{said}: hostfwd= wants tcp or udp, this host's port and the guest's: tcp:2222:22, or"
            " tcp:127.0.0.1:2222-:22 as in QEMU"
        )
    address = (found["address"] or "").strip("[]")
    try:
        address = str(ip_address(address)) if address else ""
    except ValueError:
        raise UsageError(f"{said}: {address} is no IP address") from None
    return Forward(found["protocol"], address, int(found["host"]), int(found["guest"]))
