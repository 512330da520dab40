"""A recording as a file, which grows with the run.

The file has a header, which says what the run began with, and then the events, compressed. What
has happened is in the file by the next turn of the guest. So the recording of a run that was killed
can be repeated up to where it was killed, and one that was cut, up to the cut.

No code is in a file, and none runs when it is read.
"""

from __future__ import annotations

import sys
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import field
from pathlib import Path
from struct import Struct
from typing import Final

import msgspec

from xenemu import __version__
from xenemu.errors import UsageError
from xenemu.machine import UNICORN_VERSION
from xenemu.recording import events
from xenemu.recording.events import Answered, Ended
from xenemu.recording.start import Start
from xenemu.records import dataclass
from xenemu.snapfile import MAGIC as SNAPSHOT_MAGIC
from xenemu.snapfile import RECORDING_MAGIC, open_now

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

FORMAT: Final = 1
LEVEL: Final = 3  # of compression
LARGEST_HEADER: Final = 1 << 20
LARGEST: Final = 4 << 30  # bytes of events
CHUNK: Final = 1 << 20
FRAME: Final = Struct("<II")  # size and checksum of what follows


class Header(msgspec.Struct, kw_only=True):
    """What a file says of itself."""

    format: int = FORMAT
    version: str = __version__
    engine: str = UNICORN_VERSION
    start: Start


@dataclass
class Writer:
    """Gives a recording's bytes to `put`."""

    put: Callable[[bytes], object]
    header: Header
    _waiting: bytearray = field(default_factory=bytearray)

    def __post_init__(self) -> None:
        self._compressor = zstd.ZstdCompressor(LEVEL)
        encoded = msgspec.msgpack.encode(self.header)
        self.put(RECORDING_MAGIC + _frame(encoded))

    def note(self, event: events.Any) -> None:
        """Have an event written at the next `flush`."""
        self._waiting += _frame(msgspec.msgpack.encode(event))

    def flush(self) -> None:
        """Write what waits, so that it can be read."""
        if self._waiting:
            data = self._compressor.compress(
                bytes(self._waiting), mode=zstd.ZstdCompressor.FLUSH_BLOCK
            )
            self._waiting.clear()
            self.put(data)


def _frame(data: bytes) -> bytes:
    return FRAME.pack(len(data), zlib.crc32(data)) + data


def renamed(data: bytes, paths: Mapping[str, str]) -> bytes:
    """The bytes of a file with other paths in its header, for a run on another machine."""
    at = len(RECORDING_MAGIC)
    size, _ = FRAME.unpack_from(data, at)
    end = at + FRAME.size + size
    header = _renamed(msgspec.msgpack.decode(data[at + FRAME.size : end]), paths)
    return RECORDING_MAGIC + _frame(msgspec.msgpack.encode(header)) + data[end:]


def _renamed(value: object, paths: Mapping[str, str]) -> object:
    match value:
        case dict():
            return {key: _renamed(each, paths) for key, each in value.items()}
        case list():
            return [_renamed(each, paths) for each in value]
        case str():
            return paths.get(value, value)
    return value


@dataclass
class Recording:
    """What was read. `answers` are those of each share, in their order."""

    path: Path
    header: Header
    events: list[events.Any] = field(default_factory=list)
    answers: dict[str, list[Answered]] = field(default_factory=dict)

    @property
    def ended(self) -> Ended | None:
        """How the run ended; None if the recording ends before."""
        last = self.events[-1] if self.events else None
        return last if isinstance(last, Ended) else None


def read(path: Path) -> Recording:
    """Read a file, as far as there is something in it; UsageError says why it cannot be used."""
    try:
        with open_now(path) as file:
            magic = file.read(len(RECORDING_MAGIC))
            if magic.startswith(SNAPSHOT_MAGIC):
                raise UsageError(f"{path}: a snapshot, no recording: xenemu resume goes on from it")
            if magic != RECORDING_MAGIC:  # it may be a device, and have no end
                raise UsageError(f"{path}: this is no recording of xenemu's")
            data = memoryview(file.read())
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from None
    try:
        header, size = _header(path, data)
        recording = Recording(path, header)
        decoder = msgspec.msgpack.Decoder(events.Any)
        for frame in _frames(path, _unpacked(path, data[size:])):
            event = decoder.decode(frame)
            if isinstance(event, Answered):
                recording.answers.setdefault(event.share, []).append(event)
            else:
                if recording.ended:  # of a run that went on
                    recording.events.pop()
                recording.events.append(event)
    except MemoryError:
        raise UsageError(f"{path}: this host has not the memory that it takes") from None
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise UsageError(f"{path}: no recording that this xenemu can use: {error}") from None
    return recording


def _header(path: Path, data: memoryview) -> tuple[Header, int]:
    size, checksum = FRAME.unpack_from(data) if len(data) >= FRAME.size else (0, 0)
    end = FRAME.size + size
    encoded = data[FRAME.size : end]
    if not 0 < size <= min(LARGEST_HEADER, len(data) - FRAME.size):
        raise UsageError(f"{path}: it ends before it says what was recorded")
    if zlib.crc32(encoded) != checksum:
        raise UsageError(f"{path}: damaged: its checksum differs")
    made_by = msgspec.msgpack.decode(encoded, type=dict[str, object])
    versions = [made_by.get(key) for key in ("format", "version", "engine")]
    if versions != [FORMAT, __version__, UNICORN_VERSION]:
        raise UsageError(
            f"{path}: made by xenemu {versions[1]} (format {versions[0]}, engine {versions[2]});"
            f" this is {__version__} (format {FORMAT}, engine {UNICORN_VERSION})"
        )
    return msgspec.msgpack.decode(encoded, type=Header), end


def _unpacked(path: Path, data: memoryview) -> Iterator[bytes]:
    stream = zstd.ZstdDecompressor()
    fed, total = 0, 0
    while fed < len(data) or not stream.needs_input:
        more = data[fed : fed + CHUNK] if stream.needs_input else b""
        fed += len(more)
        try:
            piece = stream.decompress(more, CHUNK)
        except (zstd.ZstdError, EOFError):
            raise UsageError(f"{path}: damaged: it cannot be unpacked") from None
        total += len(piece)
        if total > LARGEST:
            raise UsageError(f"{path}: it has more events than xenemu can repeat")
        yield piece


def _frames(path: Path, pieces: Iterator[bytes]) -> Iterator[bytes]:
    """What is whole; UsageError at what is damaged."""
    data = bytearray()
    for piece in pieces:
        data += piece
        at = 0
        while len(data) - at >= FRAME.size:
            size, checksum = FRAME.unpack_from(data, at)
            end = at + FRAME.size + size
            if end > len(data):
                break
            frame = bytes(data[at + FRAME.size : end])
            if zlib.crc32(frame) != checksum:
                raise UsageError(f"{path}: damaged: a checksum differs")
            yield frame
            at = end
        del data[:at]
