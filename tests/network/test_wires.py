"""network/wires: frames over a stream, and what becomes of them when nobody reads."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from xenemu import unixsocket
from xenemu.network.wires import LONGEST, UNSENT_LIMIT, Listening, Stream


def framed(*frames: bytes) -> bytes:
    return b"".join(len(frame).to_bytes(4) + frame for frame in frames)


@pytest.fixture
def ends():
    ours, theirs = socket.socketpair()
    reasons: list[str] = []
    wire = Stream(ours, reasons.append)
    with ours, theirs:
        yield wire, theirs, reasons


def test_frames_come_whole(ends) -> None:
    wire, theirs, _ = ends
    data = framed(b"first", b"x" * 1500, b"last")
    theirs.sendall(data[:3])
    assert wire.receive(0) == []
    theirs.sendall(data[3:1200])
    assert wire.receive(0) == [b"first"]
    theirs.sendall(data[1200:])
    assert wire.receive(0) == [b"x" * 1500, b"last"]
    assert wire.receive(0) == []


def test_frames_leave_with_their_length(ends) -> None:
    wire, theirs, _ = ends
    wire.send(0, b"one")
    wire.send(0, b"two")
    assert theirs.recv(100) == framed(b"one", b"two")


@pytest.mark.parametrize("size", [0, LONGEST + 1, 0xFFFF_FFFF])
def test_who_speaks_nonsense_is_not_heard_any_more(ends, size: int) -> None:
    wire, theirs, reasons = ends
    theirs.sendall(framed(b"good") + size.to_bytes(4) + b"bad")
    assert wire.receive(0) == [b"good"]
    assert f"a frame has {size} bytes" in reasons[0]
    assert (wire.reading, wire.receive(0)) == (None, [])


def test_the_end_is_told_once(ends) -> None:
    wire, theirs, reasons = ends
    theirs.close()
    wire.send(0, b"lost")
    assert [wire.receive(0), wire.receive(0)] == [[], []]
    assert len(reasons) == 1 and wire.reading is None and wire.writing is None


def test_what_nobody_reads_waits_and_then_is_lost(ends) -> None:
    wire, theirs, _ = ends
    frame = bytes(60_000)
    for _ in range(60):
        wire.send(0, frame)
    assert wire.writing is not None and wire.lost > 0
    sent, received = 60 - wire.lost, bytearray()
    assert sent * len(frame) > UNSENT_LIMIT
    theirs.setblocking(False)
    while len(received) < sent * (4 + len(frame)):
        received += theirs.recv(1 << 20)
        wire.flush()
    assert received == framed(frame) * sent and wire.writing is None


def test_another_may_come_after_one_has_gone(tmp_path: Path) -> None:
    path, reasons = tmp_path / "wire", []
    wire = Listening(*unixsocket.listen(path), reasons.append)
    wire.send(0, b"nobody hears")
    for name in (b"a", b"b"):
        waiting = wire.reading
        with socket.socket(socket.AF_UNIX) as peer:
            peer.connect(str(path))
            peer.sendall(framed(name))
            assert wire.receive(0) == [name]
            assert wire.reading != waiting
            wire.send(0, name)
            assert peer.recv(9) == framed(name)
        assert wire.receive(0) == []
    assert len(reasons) == 2
    wire.close()
    assert not path.exists() and os.listdir(tmp_path) == []
