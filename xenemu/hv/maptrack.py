"""The handles of a domain's grant mappings, and what each stands for.

Handles come in frames of 256, for as long as there are frames. Each vcpu has its own list of free
handles. It takes them from the front, gives them back to the end, and never takes the last.

In Xen: common/grant_table.c (get_maptrack_handle, put_maptrack_handle)
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import field
from typing import Final

from xenemu.records import dataclass

MAX_FRAMES: Final = 1024  # xl.cfg's max_maptrack_frames
HANDLES_PER_FRAME: Final = 256  # a struct grant_mapping has 16 bytes


@dataclass(frozen=True)
class Mapping:
    """A mapping: whose grant and which, and the kinds of the mapping (GNTMAP_*) that are left."""

    domid: int
    ref: int
    flags: int


@dataclass
class Maptrack:
    """`mappings` are by handle; `home` has the vcpu to whose list each handle goes back."""

    max_frames: int = MAX_FRAMES
    mappings: dict[int, Mapping] = field(default_factory=dict)
    home: list[int] = field(default_factory=list)
    free: dict[int, deque[int]] = field(default_factory=dict)  # by vcpu

    def get(self, vcpu_id: int) -> int | None:
        """Take a handle for a mapping that a vcpu makes; None if there is none left."""
        free = self.free.setdefault(vcpu_id, deque())
        if len(free) > 1:
            return free.popleft()
        if len(self.home) < self.max_frames * HANDLES_PER_FRAME:
            return self._add_frame(vcpu_id)
        if not free:
            free.extend(self._steal(vcpu_id))
        return next(iter(self._steal(vcpu_id)), None)

    def put(self, handle: int) -> None:
        """Give a handle back; it stands for nothing from then on."""
        self.mappings.pop(handle, None)
        self.free[self.home[handle]].append(handle)

    def _add_frame(self, vcpu_id: int) -> int:
        first = len(self.home)
        self.home += [vcpu_id] * HANDLES_PER_FRAME
        self.free[vcpu_id].extendleft(range(len(self.home) - 1, first, -1))
        return first

    def _steal(self, vcpu_id: int) -> Iterable[int]:
        """Take another vcpu's handle, if one can spare it. Xen begins with a vcpu at random."""
        for victim in sorted(self.free):
            if victim != vcpu_id and len(self.free[victim]) > 1:
                handle = self.free[victim].popleft()
                self.home[handle] = vcpu_id
                return (handle,)
        return ()
