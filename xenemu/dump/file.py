"""A core in a file: with holes for zeroes, or compressed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from backports import zstd

from xenemu.dump.core import Core, write
from xenemu.errors import OutputError
from xenemu.hv.current import Current
from xenemu.image import Image
from xenemu.outputs import Output

LEVEL: Final = 1  # of zstd; a higher one takes several times as long for a tenth less


class Packed:
    """A sink that compresses into another, as one frame of zstd."""

    def __init__(self, write: Callable[[bytes], None]) -> None:
        self._write = write
        self._packer = zstd.ZstdCompressor(LEVEL)

    def write(self, data: bytes) -> None:
        self._write(self._packer.compress(data))

    def skip(self, size: int) -> None:
        self.write(bytes(size))

    def close(self) -> None:
        self._write(self._packer.flush())


def save(current: Current, image: Image, output: Output, packed: bool) -> Core:
    """Write a guest's core to a file; if that fails, the file is emptied again: OutputError."""
    try:
        if not packed:
            return write(current, image, output)
        packer = Packed(output.write)
        core = write(current, image, packer)
        packer.close()
        return core
    except OutputError:
        output.empty()
        raise


def packed(current: Current, image: Image, most: int) -> bytes:
    """A guest's core, compressed; nothing if it would have more than so many bytes."""
    kept = bytearray()

    def keep(data: bytes) -> None:
        kept.extend(data)
        if len(kept) > most:
            raise OutputError("the core is too large")

    packer = Packed(keep)
    try:
        write(current, image, packer)
        packer.close()
    except OutputError:
        return b""
    return bytes(kept)
