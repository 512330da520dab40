"""A disk as xl's configuration describes it, in any of xl's three syntaxes.

* by position: ``/x.img,raw,xvda,rw``: target, format, vdev, access, each of which may be empty;
* by name: ``format=raw, vdev=xvda, access=rw, target=/x.img``, where the target is all
  that is left;
* xend's: ``phy:/dev/x,xvda,w`` and ``file:/x.iso,hdc:cdrom,r``, which begin with a prefix.

In Xen: xl-disk-configuration(5), tools/libs/util/libxlu_disk_l.l
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any, Final

from xenemu.records import dataclass

FORMATS: Final = ("raw", "qcow", "qcow2", "vhd", "qed")
ACCESS: Final = {"ro": False, "r": False, "rw": True, "w": True}
POSITIONS: Final = ("target", "format", "vdev", "access")
TEXTS: Final = ("target", "vdev", "script", "backend")
# Words that change nothing here: who serves the disk, and how.
FLAGS: Final = ("discard", "no-discard", "direct-io-safe", "trusted", "untrusted", "colo")
IGNORED: Final = ("backendtype", "specification", "colo-host", "colo-port", "colo-export",
                  "active-disk", "hidden-disk")  # fmt: skip
OLD_FORMATS: Final = ("raw", "qcow2", "vhd")
OLD_PREFIXES: Final = ("tapdisk", "tap2", "tap", "aio", "ioemu", "file", "phy")
OLD_SCRIPTS: Final = ("iscsi", "nbd", "enbd", "drbd")
ORDER: Final = f"parts without a name are {', '.join(POSITIONS)}"
OLD: Final = re.compile(rf"({'|'.join((*OLD_FORMATS, *OLD_PREFIXES, *OLD_SCRIPTS))}):")


@dataclass(frozen=True)
class Disk:
    """What one text says; the target is empty for a drive without a medium."""

    target: str = ""
    format: str = "raw"
    vdev: str = ""
    writable: bool = True
    cdrom: bool = False
    script: str = ""
    backend: str = ""  # a domain's name; empty: dom0


def parse_disk(text: str) -> Disk:
    """The disk that `text` describes; ValueError says what is wrong."""
    disk = _parse_old(text) if OLD.match(text) or _is_bare_cdrom(text) else _parse_new(text)
    if not disk.vdev:
        raise ValueError("it has no vdev, such as xvda")
    if not disk.target and not disk.cdrom:
        raise ValueError("it has no target: which file or device is it?")
    return disk


def _is_bare_cdrom(text: str) -> bool:
    """Xend's drive without a medium, ``,hdc:cdrom,r``."""
    return re.match(r",[a-z0-9]+:cdrom,", text) is not None


def _parse_old(text: str) -> Disk:
    disk = Disk()
    while found := OLD.match(text):
        text = text[found.end() :]
        if found[1] in OLD_FORMATS:
            disk = replace(disk, format=found[1])
        elif found[1] in OLD_SCRIPTS:
            disk = replace(disk, script=f"block-{found[1]}")
    target, _, rest = text.partition(",")
    vdev, _, access = rest.partition(",")
    vdev, _, devtype = vdev.removeprefix("ioemu:").partition(":")
    disk = replace(disk, target=target, vdev=vdev)
    for name, value in (("devtype", devtype), ("access", access)):
        disk = _named(disk, name, value) if value else disk
    return _with_access(disk, access)


def _parse_new(text: str) -> Disk:
    disk, said = Disk(), dict[str, str]()
    positions = iter(POSITIONS)
    while text:
        text = text.lstrip(" \t")
        if text.startswith("target="):
            name, value, text = "target", text.removeprefix("target="), ""
        else:
            part, _, text = text.partition(",")
            name, equals, value = part.partition("=")
            if part in FLAGS:
                continue
            if part == "cdrom":
                name, value = "devtype", part
            elif not equals:
                name, value = next(positions, ""), part
                if not name:
                    raise ValueError(f"{part!r}: a fifth part wants a name; {ORDER}")
        if not value:
            continue
        if name != "access" and said.setdefault(name, value) != value:
            raise ValueError(f"{name} is there twice: {said[name]} and {value}")
        said[name] = value
        disk = _named(disk, name, value)
    return _with_access(disk, said.get("access", ""))


def _with_access(disk: Disk, access: str) -> Disk:
    """Without a word on it, a disk is writable and a medium is not."""
    return disk if access else replace(disk, writable=not disk.cdrom)


def _named(disk: Disk, name: str, value: str) -> Disk:
    if name in TEXTS:
        text: dict[str, Any] = {name: value}
        return replace(disk, **text)
    if name == "format":
        return replace(disk, format=_one_of(FORMATS, value))
    if name == "access":
        return replace(disk, writable=ACCESS[_one_of(tuple(ACCESS), value)])
    if name == "devtype":
        return replace(disk, cdrom=_one_of(("disk", "cdrom"), value) == "cdrom")
    if name in IGNORED:
        return disk
    raise ValueError(f"{name}: xl knows no such part")


def _one_of(known: tuple[str, ...], value: str) -> str:
    if value not in known:
        raise ValueError(f"{value}: give one of {', '.join(known)}; {ORDER}")
    return value
