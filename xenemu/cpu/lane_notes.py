"""What the lane did of a guest's work, for somebody who watches and leaves it open.

The shim notes it (native/notes.c): hypercalls, page faults, system calls and iret.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable, Iterable
from typing import Final

from xenemu.cpu.engine import Engine

ROOM: Final = 1 << 12  # notes that the shim has room for before they are taken
FORM: Final = struct.Struct("=QQ4Qq4I")  # struct note


# When it was done and, of a call, until when; four arguments; a call's result; a constant of
# `LaneNotes`; a call's number; the vcpu; whether a program was interrupted, or goes on. The
# arguments of a call are those that the C prototype has. Those of a page fault are CR2 and the
# error code.
Note = tuple[int, ...]


class LaneNotes:
    """Notes what the lane of an engine does from now on, in order.

    `take` is given what was noted, now and then; `drain` gives it what there is.
    """

    def __init__(self, engine: Engine, take: Callable[[Iterable[Note]], None]) -> None:
        shim = engine._shim
        assert ctypes.sizeof(shim.note) == FORM.size
        at = shim.constants
        self.CALL, self.PAGE_FAULT = at.NOTED_CALL, at.NOTED_PAGE_FAULT
        self.SYSCALL, self.INT80, self.IRET = at.NOTED_SYSCALL, at.NOTED_INT80, at.NOTED_IRET
        self._take, self._fail, self._shared = take, engine.fail, shim.notes
        self._noted = (ctypes.c_uint8 * (FORM.size * ROOM))()
        self._full = ctypes.PYFUNCTYPE(None)(self._on_full)
        shared = self._shared
        shared.notes, shared.noted = ctypes.addressof(self._noted), 0
        shared.full = ctypes.cast(self._full, ctypes.c_void_p).value
        shared.room = ROOM
        engine.lane_notes = self

    def _on_full(self) -> None:
        try:
            self.drain()
        except BaseException as error:
            self._fail(error)

    def drain(self) -> None:
        """Give away what has been noted since the last time."""
        count = self._shared.noted
        if not count:
            return
        data = bytes(memoryview(self._noted)[: count * FORM.size])
        self._shared.noted = 0
        self._take(FORM.iter_unpack(data))

    def close(self) -> None:
        """Note no more."""
        self.drain()
        self._shared.room = 0
