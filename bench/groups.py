"""All groups. A new one is a module with a `GROUP`, and its line here."""

from __future__ import annotations

from typing import Final

from bench import (
    boots,
    disks,
    matrix,
    micro,
    reverse,
    scaling,
    shim,
    snapshots,
    start,
    system,
    vcpus,
)
from bench.rows import Group

GROUPS: Final[dict[str, Group]] = {
    module.GROUP.name: module.GROUP
    for module in (
        start,
        boots,
        micro,
        shim,
        system,
        vcpus,
        disks,
        snapshots,
        matrix,
        scaling,
        reverse,
    )
}
