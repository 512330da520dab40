"""Directories that a guest shares, as a person writes them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from xenemu.errors import UsageError
from xenemu.records import dataclass

if TYPE_CHECKING:
    from xenemu.dom0.p9 import Share

FORM: Final = "DIR[,tag=root][,ro|rw][,diod=FILE][,later]"
TAG: Final = "root"


@dataclass(frozen=True)
class ShareSpec:
    """A directory, its name in the guest, whether it may be changed, and a diod not in PATH."""

    path: Path
    tag: str = TAG
    writable: bool = False
    diod: Path | None = None
    later: bool = False  # the guest gets it when a toolstack attaches it


def parse_share(option: str, text: str) -> ShareSpec:
    """What a text such as ``/srv/debian,rw`` asks for; UsageError if it is none."""
    directory, *words = text.split(",")
    known: dict[str, str] = {}
    for word in words:
        key, equals, value = word.partition("=")
        kind = "access" if word in ("ro", "rw") else key
        if kind != "access" and word != "later" and (kind not in ("tag", "diod") or not value):
            raise UsageError(f"{option} {text}: {word or 'nothing after a comma'}: give {FORM}")
        if kind in known:
            wrong = "give one of ro and rw" if kind == "access" else "this is said twice"
            raise UsageError(f"{option} {text}: {word}: {wrong}")
        known[kind] = value if equals else word
    tag = known.get("tag", TAG)
    if not re.fullmatch(r"[\w.-]+", tag, re.ASCII):
        raise UsageError(f"{option} {text}: {tag}: a tag has letters, digits and any of ._- only")
    diod = Path(known["diod"]) if "diod" in known else None
    return ShareSpec(Path(directory), tag, known.get("access") == "rw", diod, "later" in known)


@contextmanager
def served(option: str, specs: Sequence[ShareSpec]) -> Iterator[list[Share]]:
    """Have each directory served, until the end; UsageError begins with the option."""
    if not specs:
        yield []
        return
    from xenemu.diod import serve  # noqa: PLC0415 (nobody else pays for it)
    from xenemu.dom0.p9 import Share  # noqa: PLC0415
    from xenemu.dom0.p9_messages import Export  # noqa: PLC0415

    with ExitStack() as stack:
        shares: list[Share] = []
        for devid, spec in enumerate(specs):
            if any(share.tag == spec.tag for share in shares):
                raise UsageError(f"{option} {spec.path}: another has the tag {spec.tag}: give tag=")
            if not spec.path.is_dir():
                wrong = "not a directory" if spec.path.exists() else "there is no such directory"
                raise UsageError(f"{option} {spec.path}: {wrong}")
            uid = os.getuid() or None  # whoever is root may be whom the guest wants
            export = Export(os.fsencode(spec.path.resolve()), spec.writable, uid)
            try:
                server = stack.enter_context(closing(serve(export, spec.diod)))
            except UsageError as error:
                raise UsageError(f"{option} {spec.path}: {error}") from None
            shares.append(Share(devid, spec.tag, export, server, later=spec.later))
        yield shares
