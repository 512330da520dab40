"""Unpack a compressed kernel, whichever of Linux's seven ways it was compressed.

Every way goes through `decompress`. It never holds more than the limit, and never lets a decoder
take more than `DECODER_MEMORY` for its dictionary, whatever the stream says.
"""

from __future__ import annotations

import bz2
import lzma
import struct
import sys
import zlib
from collections.abc import Callable
from typing import Final, Protocol

import lz4.block

from xenemu.errors import ImageError
from xenemu.image import lzo

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

MAX_SIZE: Final = 512 << 20  # an unpacked kernel; distributions' have 30 to 80 MiB
DECODER_MEMORY: Final = 256 << 20

_PIECE = 64 << 10  # input given to a decoder at once
_CHUNK = 1 << 20  # output taken from it at once
_LZ4_BLOCK = 8 << 20
_LZ4_MAGIC = b"\x02\x21\x4c\x18"

_MAGICS = {
    "gzip": b"\x1f\x8b",
    "bzip2": b"BZh",
    "xz": b"\xfd7zXZ\0",
    "lzma": b"\x5d\0\0",
    "lz4": _LZ4_MAGIC,
    "lzo": lzo.MAGIC,
    "zstd": b"\x28\xb5\x2f\xfd",
}


def detect(view: memoryview) -> str | None:
    """Name the compression by its first bytes, or None."""
    start = bytes(view[:16])
    return next((name for name, magic in _MAGICS.items() if start.startswith(magic)), None)


def decompress(view: memoryview, name: str, size: int | None = None) -> bytearray:
    """Unpack `view`, compressed as `name`, to exactly `size` bytes if that is known.

    Raises `ImageError` for a corrupt or truncated stream, and for more than `size` or
    `MAX_SIZE` bytes.
    """
    if size is not None and size > MAX_SIZE:
        raise ImageError(f"the {name} payload claims {size} bytes; {MAX_SIZE} is the most")
    limit = MAX_SIZE if size is None else size
    try:
        out = _UNPACK[name](view, limit)
    except (zlib.error, lzma.LZMAError, zstd.ZstdError, lz4.block.LZ4BlockError) as error:
        raise ImageError(f"the {name} payload is corrupt: {error}") from None
    except (OSError, EOFError, MemoryError) as error:
        raise ImageError(f"the {name} payload is corrupt: {error}") from None
    if size is not None and len(out) != size:
        raise ImageError(f"the {name} payload unpacks to {len(out)} bytes instead of {size}")
    return out


class _Decoder(Protocol):
    """What bz2, lzma and zstd decoders have in common."""

    @property
    def eof(self) -> bool: ...

    @property
    def needs_input(self) -> bool: ...

    def decompress(self, data: bytes, max_length: int) -> bytes: ...


class _Gzip:
    """zlib's decoder with the interface of the others."""

    def __init__(self) -> None:
        self._zlib = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
        self.needs_input = True

    @property
    def eof(self) -> bool:
        return self._zlib.eof

    def decompress(self, data: bytes, max_length: int) -> bytes:
        out = self._zlib.decompress(self._zlib.unconsumed_tail + data, max_length)
        self.needs_input = len(out) < max_length
        return out


def _streamed(name: str, decoder: Callable[[], _Decoder]) -> Callable[..., bytearray]:
    def unpack(view: memoryview, limit: int) -> bytearray:
        return _pump(decoder(), name, view, limit)

    return unpack


def _pump(decoder: _Decoder, name: str, view: memoryview, limit: int) -> bytearray:
    out = bytearray()
    for start in range(0, len(view), _PIECE):
        data = bytes(view[start : start + _PIECE])
        while data or not decoder.needs_input:
            # One byte more than allowed, so that too much is seen.
            out += decoder.decompress(data, min(_CHUNK, limit - len(out) + 1))
            if len(out) > limit:
                raise ImageError(f"the {name} payload unpacks to more than {limit} bytes")
            if decoder.eof:
                return out
            data = b""
    raise ImageError(f"the {name} payload is truncated")


def _unpack_lz4(view: memoryview, limit: int) -> bytearray:
    """Unpack lz4's legacy frame: a magic, then blocks of up to 8 MiB, each with its length."""
    out = bytearray()
    offset = len(_LZ4_MAGIC)
    while offset + 4 <= len(view):
        (length,) = struct.unpack_from("<I", view, offset)
        offset += 4
        if view[offset - 4 : offset] == _LZ4_MAGIC:  # frames may follow each other
            continue
        if not 0 < length <= len(view) - offset:
            raise ImageError("the lz4 payload is truncated or has an empty block")
        room = min(_LZ4_BLOCK, limit - len(out))
        out += lz4.block.decompress(view[offset : offset + length], uncompressed_size=room)
        offset += length
    return out


_UNPACK: dict[str, Callable[[memoryview, int], bytearray]] = {
    "gzip": _streamed("gzip", _Gzip),
    "bzip2": _streamed("bzip2", bz2.BZ2Decompressor),
    "xz": _streamed("xz", lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ, DECODER_MEMORY)),
    "lzma": _streamed("lzma", lambda: lzma.LZMADecompressor(lzma.FORMAT_ALONE, DECODER_MEMORY)),
    "zstd": _streamed("zstd", zstd.ZstdDecompressor),
    "lz4": _unpack_lz4,
    "lzo": lzo.decompress_lzop,
}
