"""A guest's memory and its kernel's symbols, as a program has them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, overload

from xenemu.errors import NoSuchName, Unmapped, UsageError
from xenemu.smoke.guest.checking import checked
from xenemu.smoke.guest.messages import Data, Number

PIECE: Final = 16 << 20  # bytes in one message
LARGEST: Final = 1 << 30  # bytes in one read
Ask = Callable[..., Any]  # (request, *arguments) -> what the guest's process answers


class Memory:
    """Bytes by their addresses: ``memory[start:end]``, ``memory[start:end] = data``, a byte.

    Unmapped where nothing is; then nothing was stored. A PV guest's page tables and descriptor
    tables cannot be stored to (UsageError): Xen has checked what is in there.
    """

    def __init__(self, ask: Ask, space: str) -> None:
        self._ask, self._space = ask, space

    @checked
    def read(self, address: int, size: int) -> bytes:
        """Exactly `size` bytes."""
        _address(address)
        if not 0 <= size <= LARGEST:
            raise UsageError(f"{size} bytes: read from 0 to {LARGEST} at once")
        pieces, at = [], address
        while at < address + size:
            wanted = min(PIECE, address + size - at)
            found: Data = self._ask("read", self._space, at, wanted)
            pieces.append(found.data[:wanted])
            at += len(pieces[-1])
            if len(pieces[-1]) < wanted:
                raise Unmapped(f"{at:#x} is not mapped")
        return b"".join(pieces)

    @checked
    def write(self, address: int, data: bytes | bytearray | memoryview) -> None:
        """Store all of `data`, or nothing."""
        self._ask("write", self._space, _address(address), bytes(data))

    def word(self, address: int, size: int = 8) -> int:
        """A number of `size` bytes, without a sign."""
        return int.from_bytes(self.read(address, size), "little")

    @overload
    def __getitem__(self, where: int) -> int: ...
    @overload
    def __getitem__(self, where: slice) -> bytes: ...

    def __getitem__(self, where: int | slice) -> int | bytes:
        """A byte as a number, or the bytes of a slice."""
        if isinstance(where, slice):
            start, size = _extent(where)
            return self.read(start, size)
        return self.read(where, 1)[0]

    def __setitem__(self, where: int | slice, data: int | bytes) -> None:
        """Store a byte, or as many bytes as the slice has."""
        if isinstance(where, slice):
            start, size = _extent(where)
            if not isinstance(data, bytes | bytearray | memoryview) or len(data) != size:
                raise UsageError(f"give {size} bytes for a slice of as many")
            self.write(start, bytes(data))
        elif isinstance(data, int) and 0 <= data < 256:
            self.write(where, bytes([data]))
        else:
            raise UsageError(f"{data!r}: give a byte, from 0 to 255")


def _extent(where: slice) -> tuple[int, int]:
    if where.step not in (None, 1) or where.start is None or where.stop is None:
        raise UsageError("give a slice a start and an end, and no step")
    return where.start, max(0, where.stop - where.start)


def _address(number: int) -> int:
    if not isinstance(number, int) or number < 0:
        raise UsageError(f"{number!r} is no address")
    return number


class Symbols:
    """The names of the kernel's addresses, with those of its modules that are loaded.

    ``symbols["init_task"]`` is an address: NoSuchName, a KeyError, if there is none.
    """

    def __init__(self, ask: Ask) -> None:
        self._ask = ask

    def __getitem__(self, name: str) -> int:
        """The address of a name."""
        found: Number = self._ask("address", str(name))
        return found.number

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self.get(name) is not None

    def get(self, name: str, default: int | None = None) -> int | None:
        """The address of a name, or something else."""
        try:
            return self[name]
        except NoSuchName:
            return default

    def name(self, address: int) -> str:
        """An address as Linux writes it, ``start_kernel+0x1a/0x400``; in hex without a name."""
        return str(self._ask("name", _address(address)))
