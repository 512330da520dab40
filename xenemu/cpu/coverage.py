"""What the guest ran, block by block, from what the engine translates (native/coverage.c)."""

from __future__ import annotations

import ctypes
import struct
from typing import NamedTuple

from xenemu.cpu.engine import Engine

ROOM = 1 << 15  # blocks that the shim notes before they are taken over
CHUNKS = 8  # of so many, before those that were translated again are dropped
MOST = 1 << 20  # different blocks, in about 400 MB; a boot of Debian has 70 000
FORM = struct.Struct("=QQHHHH")  # struct block


class Block(NamedTuple):
    """Code that runs from its first byte to its last unless it faults.

    `pc` is linear, or physical if not `paged`. `at` is how many instructions had run before. A
    block may lie within another, or overlap with it. `vcpu` is the number of the vcpu that ran it,
    or 0 if the log does not tell them apart.
    """

    pc: int
    at: int
    size: int
    instructions: int
    paged: bool
    vcpu: int = 0


class BlockLog:
    """The blocks that an engine runs from now on.

    A guest that makes new code all the time does not get all the host's memory. Once there are
    `MOST` blocks, no more are noted. `ended` says how many instructions had run then; before, it
    is None.

    With `vcpu`, that vcpu is in the CPU now, and the blocks of each vcpu are noted apart. Then code
    that several vcpus run is translated for each of them.
    """

    def __init__(self, engine: Engine, vcpu: int | None = None) -> None:
        self.by_vcpu = vcpu is not None
        self.ended: int | None = None
        self._fail = engine.fail
        self._shared = shared = engine._shim.coverage
        assert ctypes.sizeof(engine._shim.block) == FORM.size
        self._noted = (ctypes.c_uint8 * (FORM.size * ROOM))()
        self._chunks: list[bytes] = []
        self._first: dict[tuple[int, int, int, int], tuple[int, int]] = {}
        self._full = ctypes.PYFUNCTYPE(None)(self._on_full)
        self._shim = engine._shim
        self._shim.forget_blocks()
        shared.vcpu = 0
        self.turn_to(vcpu or 0)
        engine.block_log = self
        shared.blocks, shared.noted = ctypes.addressof(self._noted), 0
        shared.full = ctypes.cast(self._full, ctypes.c_void_p).value
        shared.room = ROOM

    def turn_to(self, vcpu: int) -> None:
        """Say which vcpu has the CPU from now on."""
        if self.by_vcpu:
            self._shim.turn_to_blocks_of(vcpu)

    def _on_full(self) -> None:
        try:
            self._take()
        except BaseException as error:
            self._fail(error)

    def _take(self) -> None:
        self._chunks.append(bytes(memoryview(self._noted)[: self._shared.noted * FORM.size]))
        self._shared.noted = 0
        if len(self._chunks) == CHUNKS:
            self._drop_repeated()

    def _drop_repeated(self) -> None:
        for chunk in self._chunks:
            for pc, at, size, instructions, paged, vcpu in FORM.iter_unpack(chunk):
                self._first.setdefault((pc, size, paged, vcpu), (at, instructions))
        self._chunks.clear()
        if len(self._first) >= MOST and self.ended is None:
            self.ended = max(at for at, _ in self._first.values())
            self._shared.room = 0

    def blocks(self) -> list[Block]:
        """Each block once, in the order in which they first ran."""
        self._take()
        self._drop_repeated()
        return [
            Block(pc, at, size, instructions, bool(paged), vcpu)
            for (pc, size, paged, vcpu), (at, instructions) in self._first.items()
        ]

    def close(self) -> None:
        """Note no more."""
        self._take()
        self._shared.room = 0
