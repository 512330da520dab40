"""Have the guest give memory back, or take it: `xl mem-set`.

The toolstack writes ``memory/target`` in KiB, and lets the domain have so much and 1 MiB more. The
guest's balloon driver does the rest. No guest gets more than ``memory/static-max``.

In Xen: tools/libs/light/libxl_mem.c (libxl_set_memory_target)
"""

from __future__ import annotations

import re
from typing import Final

from xenemu.dom0.control import Answer, Ask, Control, Refused, Verb
from xenemu.hv.building import MAX_PAGES_SLACK
from xenemu.x86.paging import PAGE_SHIFT

SIZE: Final = re.compile(r"([0-9]{1,12})([KMG]?)")
KIB: Final = {"": 1, "K": 1, "M": 1 << 10, "G": 1 << 20}
KIB_PAGES: Final = PAGE_SHIFT - 10
NEAR_KIB: Final = 256  # what a balloon driver may leave undone


def set_target(control: Control, ask: Ask) -> None:
    """Set the target; Refused if the guest cannot have so much."""
    target = _target(ask)
    most = _kib(control, "memory/static-max")
    if target > most:
        raise Refused(f"the guest may have {most} KiB at most, and not {target}")
    control.domain.pages.max_pages = (target >> KIB_PAGES) + MAX_PAGES_SLACK
    control.write("memory/target", target - _kib(control, "memory/videoram"))


def reached(control: Control, ask: Ask) -> Answer | None:
    """The guest has about as much as it should."""
    has = control.domain.pages.tot_pages << KIB_PAGES
    if abs(has - _target(ask)) > NEAR_KIB:
        return None
    return {"target_kib": _target(ask), "has_kib": has}


def lacking(control: Control, ask: Ask) -> str:
    """How much the guest has instead."""
    has = control.domain.pages.tot_pages << KIB_PAGES
    return f"the guest has {has} KiB, and has not come to {_target(ask)} KiB"


def _target(ask: Ask) -> int:
    """The target in KiB."""
    said = ask.text("target")
    match = SIZE.fullmatch(said)
    if match is None:
        raise Refused(f"target is {said[:40]!r}, and not a number of KiB, or of M or G")
    target = int(match[1]) * KIB[match[2]]
    if not target:
        raise Refused("a guest needs memory")
    return target


def _kib(control: Control, path: str) -> int:
    said = control.read(path) or ""
    return int(said) if said.isascii() and said.isdecimal() else 0


VERB: Final = Verb(
    "memory",
    "TARGET",
    "Set the guest's memory to TARGET, KiB or a number with M or G, which its balloon driver does.",
    set_target,
    reached,
    lacking,
    within_s=30,
    fields=("target",),
    check=_target,
)
