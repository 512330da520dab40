"""Copies of this process: each keeps the machine as it was when the copy was made.

To copy a process takes milliseconds, because the copy shares all memory until somebody writes to
it. So a copy is the cheapest snapshot that there is, while nobody wants to go back to it. The copy
does nothing but wait. If it is asked, it takes the snapshot and sends it.

A copy ends when its end of a socket does: when nobody wants it any more, and when this process is
killed. It keeps no other descriptor open.
"""

from __future__ import annotations

import gc
import mmap
import os
import signal
import socket
import struct
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Final, Self

from xenemu.confine import TERMINAL_SIGNALS
from xenemu.encoding import decode, encode
from xenemu.hv.snapshot import Piece, Pieces, pieces
from xenemu.machine import Machine
from xenemu.machine.snapshot import Snapshot

DESCRIPTORS: Final = 1 << 9  # more than this process ever has open
NUMBER: Final = struct.Struct("<Q")  # of bytes of plain data, which follow; then come pieces
PIECE: Final = struct.Struct("<QQ?")  # where, how many bytes, and whether they follow; the last: 0


class Lost(Exception):
    """A copy is gone: the host had no memory for it, or somebody killed it."""


class Copy:
    """A process that has the machine as it is now."""

    def __init__(self, process: int, line: socket.socket) -> None:
        self._process, self._line = process, line

    @classmethod
    def of(cls, machine: Machine) -> Self:
        """Make one, between two slices of the guest. OSError: the host refuses."""
        ours, theirs = socket.socketpair()
        try:
            process = os.fork()
        except OSError:
            ours.close()
            theirs.close()
            raise
        if process == 0:
            _wait_to_be_asked(machine, theirs)
        theirs.close()
        return cls(process, ours)

    def fetch(self) -> Snapshot:
        """The machine as it was. `Lost` if there is nobody to ask."""
        taken: list[Piece] = []
        try:
            self._line.sendall(b"?")
            (size,) = NUMBER.unpack(self._take(NUMBER.size))
            bare = decode(self._take(size), {}, Snapshot)
            while True:
                at, size, is_there = PIECE.unpack(self._take(PIECE.size))
                if not size:
                    break
                taken.append((at, size, self._take(size) if is_there else None))
        except OSError:
            raise Lost from None
        return replace(bare, domain=replace(bare.domain, content=Pieces(taken)))

    def end(self) -> None:
        """Have it end."""
        self._line.close()

    def has_ended(self) -> bool:
        """Whether it is gone; its number is then forgotten."""
        return os.waitpid(self._process, os.WNOHANG)[0] != 0

    def wait(self) -> None:
        """Wait until it is gone."""
        os.waitpid(self._process, 0)

    def _take(self, size: int) -> bytes:
        taken = self._line.recv(size, socket.MSG_WAITALL)
        while len(taken) < size:  # a signal came, or it is gone
            more = self._line.recv(size - len(taken), socket.MSG_WAITALL)
            if not more:
                raise BrokenPipeError
            taken += more
        return taken


def would(test: Callable[[], bool]) -> bool:
    """What a test finds, made in a copy of this process: here nothing changes.

    False also if the host refuses a copy, or an exception is raised.
    """
    try:
        process = os.fork()
    except OSError:
        return False
    if process == 0:
        found = False
        try:
            found = test()
        finally:
            os._exit(0 if found else 1)
    return os.waitpid(process, 0)[1] == 0


def _wait_to_be_asked(machine: Machine, line: socket.socket) -> None:
    """What a copy does, until it ends. Nothing that this process has open is to stay open by it."""
    try:
        gc.disable()
        for signum in TERMINAL_SIGNALS:
            signal.signal(signum, signal.SIG_IGN)
        os.closerange(0, line.fileno())
        os.closerange(line.fileno() + 1, DESCRIPTORS)
        while line.recv(1):
            _answer(machine, line)
    finally:
        os._exit(0)


def _answer(machine: Machine, line: socket.socket) -> None:
    with suppress(OSError):  # a host without huge pages does not know of them
        machine.domain.memory.mapping.madvise(mmap.MADV_HUGEPAGE)  # zeroes are read faster
    plain = encode(Snapshot.of(machine, bare=True), {})
    line.sendall(NUMBER.pack(len(plain)))
    line.sendall(plain)
    for at, size, data in pieces(machine.domain):
        line.sendall(PIECE.pack(at, size, data is not None))
        if data is not None:
            line.sendall(data)
    line.sendall(PIECE.pack(0, 0, False))
