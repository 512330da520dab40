"""A guest's network outside of it: what is asked for, and the wires that carry packets.

A wire implements `xenemu.machine.Source`. It carries whole Ethernet frames.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from xenemu.network.wired import Wired


@contextmanager
def networked(option: str, texts: Sequence[str], name: str) -> Iterator[Wired | None]:
    """Connect what is asked for, for a guest of that name; None if that is nothing.

    UsageError begins with `option`, and says what is wrong, or which wire cannot be connected.
    """
    if not texts:
        yield None
        return
    from xenemu.network.wired import connected  # noqa: PLC0415 (nobody else pays for it)

    with connected(option, texts, name) as wired:
        yield wired
