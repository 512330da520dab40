"""What of a run's outside a debugger cannot take back, and why its guest cannot go back then."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from xenemu.disks import DiskSpec


def one_way(disks: Sequence[DiskSpec], shares: Collection[object]) -> str:
    """A sentence for the person at gdb; empty if the guest can go back."""
    for spec in disks:
        if spec.leaves:
            return (
                "the guest cannot go back: what it writes to"
                f" {spec.overlay or spec.path} stays there; leave {spec.leaves} out of --disk"
            )
    if shares:
        return "the guest cannot go back: what it has done in a --share stays done"
    return ""
