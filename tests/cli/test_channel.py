"""cli/channel: who connects to a control channel, and what they may do to it."""

from __future__ import annotations

import json
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from xenemu.cli.channel import MAX_CLIENTS, MAX_LINE, MAX_UNREAD, Channel, listen
from xenemu.errors import UsageError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "guest.sock"


@pytest.fixture
def channel(path: Path) -> Iterator[Channel]:
    channel = listen("--control", path)
    yield channel
    channel.close()
    assert not path.exists()


def connect(path: Path, channel: Channel) -> socket.socket:
    caller = socket.socket(socket.AF_UNIX)
    caller.connect(str(path))
    assert channel.receive(0) == []
    return caller


def test_only_the_user_may_connect(path: Path, channel: Channel) -> None:
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_what_is_there_stays(path: Path) -> None:
    path.write_text("mine")
    with pytest.raises(UsageError, match=r"--control .*: a file is there already"):
        listen("--control", path)
    assert path.read_text() == "mine"


def test_each_line_comes_after_its_senders_number(path: Path, channel: Channel) -> None:
    with connect(path, channel) as one, connect(path, channel) as two:
        one.sendall(b'{"do": 1}\n\n{"do"')
        assert channel.receive(0) == [b'1 {"do": 1}']
        two.sendall(b"second\n")
        one.sendall(b": 2}\n")
        assert channel.receive(0) == [b'1 {"do": 2}', b"2 second"]
        channel.send(0, b"2 for two")
        channel.send(0, b"1 for one")
        channel.send(0, b"7 for nobody")
        assert (one.recv(100), two.recv(100)) == (b"for one\n", b"for two\n")
    assert sorted(channel.receive(0)) == [b"1", b"2"]
    assert channel.receive(0) == []


def test_there_are_only_so_many(path: Path, channel: Channel) -> None:
    callers = [connect(path, channel) for _ in range(MAX_CLIENTS + 1)]
    refusal = json.loads(callers[-1].recv(1000))
    assert refusal == {"ok": False, "error": "8 are connected already"}
    assert callers[-1].recv(1) == b""
    for caller in callers:
        caller.close()
    assert len(channel.receive(0)) == MAX_CLIENTS
    connect(path, channel).close()


def test_a_line_has_a_longest_size(path: Path, channel: Channel) -> None:
    with connect(path, channel) as caller:
        caller.setblocking(False)
        came: list[bytes] = []
        for _ in range(2):
            caller.send(bytes(MAX_LINE // 2 + 1).replace(b"\0", b"x"))
            came += channel.receive(0)
        assert came == [b"1"]
        caller.setblocking(True)
        assert json.loads(caller.makefile().readline())["error"].startswith("a line of more")


def test_whoever_reads_nothing_is_let_go(path: Path, channel: Channel) -> None:
    with connect(path, channel) as caller:
        line = b"1 " + b"x" * 100_000
        for _ in range(MAX_UNREAD // 100_000 + 20):
            channel.send(0, line)
        caller.sendall(b"still here\n")
        assert channel.receive(0) == [b"1"]


def test_what_is_unread_is_sent_when_there_is_room(path: Path, channel: Channel) -> None:
    with connect(path, channel) as caller:
        sent = b"x" * 900_000
        channel.send(0, b"1 " + sent)
        got = b""
        while len(got) < len(sent) + 1:
            got += caller.recv(1 << 20)
            channel.receive(0)
        assert got == sent + b"\n"
