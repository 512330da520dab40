"""What a guest's process says to its parent: data of the kinds that the parent expects.

The guest's process is confined, and its parent is not. A guest that has taken over its process must
not get any further. So the parent unpickles nothing, and never waits for the rest of a message.

A message is its length, and JSON: the name of its kind, and its fields.
"""

from __future__ import annotations

import json
import os
import struct
from base64 import b64encode
from dataclasses import fields
from enum import Enum
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final

LENGTH: Final = struct.Struct(">I")
LONGEST: Final = 256 << 20  # bytes: a console is kept twice, and JSON escapes
CHUNK: Final = 1 << 20


class Nonsense(Exception):
    """What came is no message."""


def send(connection: Connection, message: object) -> None:
    """Send a dataclass, a string or None; OSError."""
    data = json.dumps([type(message).__name__, message], default=_plain).encode()
    left = memoryview(LENGTH.pack(len(data)) + data)
    while left:
        left = left[os.write(connection.fileno(), left) :]


def _plain(value: Any) -> object:
    """What JSON has for a value that it lacks."""
    match value:
        case Enum():
            return value.value
        case bytes():
            return b64encode(value).decode()
        case Path():
            return str(value)
    return {part.name: getattr(value, part.name) for part in fields(value)}


class Inbox:
    """The receiving end, for messages of some kinds."""

    def __init__(self, connection: Connection, *kinds: type) -> None:
        self._descriptor = connection.fileno()
        self._kinds = {kind.__name__: kind for kind in kinds}
        self._data = bytearray()

    def take(self) -> list[Any]:
        """Read what is there, once; the messages that are complete with it.

        EOFError or OSError: no more can come. Nonsense: nothing that comes can be believed.
        """
        data = os.read(self._descriptor, CHUNK)
        if not data:
            raise EOFError
        self._data += data
        found = []
        while (message := self._cut()) is not None:
            found.append(self._decode(message))
        return found

    def _cut(self) -> bytes | None:
        if len(self._data) < LENGTH.size:
            return None
        (length,) = LENGTH.unpack_from(self._data)
        if length > LONGEST:
            raise Nonsense(f"a message of {length} bytes")
        end = LENGTH.size + length
        if len(self._data) < end:
            return None
        message = bytes(self._data[LENGTH.size : end])
        del self._data[:end]
        return message

    def _decode(self, message: bytes) -> Any:
        from msgspec import MsgspecError, convert  # noqa: PLC0415 (a guest's process needs none)

        try:
            name, value = json.loads(message)
            return convert(value, self._kinds[name], dec_hook=lambda kind, text: kind(text))
        except (ValueError, TypeError, KeyError, RecursionError, MsgspecError) as error:
            raise Nonsense(f"{type(error).__name__}: {error}") from None
