"""gdb/channel: where to listen, as a person writes it."""

from __future__ import annotations

import os
import socket

import pytest

from xenemu.errors import UsageError
from xenemu.gdb import channel
from xenemu.gdb.channel import StreamChannel, StreamListener, listen

KINDS = (socket.SOCK_STREAM, socket.SOCK_SEQPACKET, socket.SOCK_DGRAM)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("spec", [":0", "0", "localhost:0", "127.0.0.1:0", "tcp::0"])
def test_a_port_is_of_the_loopback_interface(spec):
    listener = listen(spec)
    host, _, port = listener.address.rpartition(":")
    assert host == "127.0.0.1"
    assert int(port) > 0
    listener.close()


@pytest.mark.parametrize(
    "spec", ["", "nowhere", ":", ":x", ":123456", "a:b:1", ":-1", "[::1", "host:", "stdout"]
)
def test_what_is_no_place_to_listen(spec):
    with pytest.raises(UsageError, match="--gdb"):
        listen(spec)


@pytest.mark.parametrize("spec", [":99999", "99999", "localhost:65536"])
def test_a_port_that_there_is_not(spec):
    number = spec.rpartition(":")[2]
    with pytest.raises(
        UsageError, match=f"^--gdb {spec}: {number} is no port: they go up to 65535$"
    ):
        listen(spec)


def test_a_port_that_is_taken():
    first = listen(":0")
    with pytest.raises(UsageError, match="in use"):
        listen(first.address)
    first.close()


def test_a_unix_socket_that_nobody_has_is_replaced(tmp_path):
    path = tmp_path / "gdb"
    for kind in KINDS:
        with socket.socket(socket.AF_UNIX, kind) as left_behind:
            left_behind.bind(str(path))
        listener = listen(f"unix:{path}")
        assert listener.address == str(path)
        listener.close()
        assert not path.exists()


@pytest.mark.parametrize("kind", KINDS)
def test_a_unix_socket_that_somebody_has_stays(tmp_path, kind):
    """Also one that does not listen, or is no stream."""
    path = str(tmp_path / "gdb")
    with socket.socket(socket.AF_UNIX, kind) as theirs:
        theirs.bind(path)
        before = os.lstat(path)
        with pytest.raises(
            UsageError,
            match=f"^--gdb unix:{path}: a program has this socket; give a path where nothing is$",
        ):
            listen(f"unix:{path}")
        assert os.lstat(path).st_ino == before.st_ino


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_SEQPACKET])
def test_a_unix_socket_that_is_too_busy_to_answer_stays(tmp_path, kind):
    """The first caller fills the queue, and a second one would wait for ever."""
    path = str(tmp_path / "gdb")
    with socket.socket(socket.AF_UNIX, kind) as theirs, socket.socket(socket.AF_UNIX, kind) as one:
        theirs.bind(path)
        theirs.listen(0)
        one.connect(path)
        with pytest.raises(UsageError, match="a program has this socket"):
            listen(f"unix:{path}")
        assert os.path.exists(path)


def test_what_has_taken_its_place_stays(tmp_path):
    path = tmp_path / "gdb"
    listener = listen(f"unix:{path}")
    path.rename(tmp_path / "old")
    with socket.socket(socket.AF_UNIX) as theirs:
        theirs.bind(str(path))
        listener.close()
        assert path.exists()
    again = listen(f"unix:{path}")
    path.unlink()
    again.close()  # nothing is there


def test_a_link_in_the_way_stays(tmp_path):
    path = tmp_path / "link"
    with socket.socket(socket.AF_UNIX) as left_behind:
        left_behind.bind(str(tmp_path / "gdb"))
    path.symlink_to(tmp_path / "gdb")
    with pytest.raises(UsageError, match="a symbolic link is there already; give a path where"):
        listen(f"unix:{path}")
    assert path.is_symlink()


def test_whoever_called_may_have_gone_again():
    for spec in (":0", "unix:gdb"):
        listener = listen(spec)
        assert listener.accept() is None
        listener.close()


@pytest.mark.parametrize("path", ["", "x" * 200, "/nonexistent/gdb"])
def test_what_is_no_place_for_a_unix_socket(path):
    with pytest.raises(UsageError, match=r"^--gdb unix:"):
        listen(f"unix:{path}")


def test_a_file_in_the_way_stays(tmp_path):
    path = tmp_path / "file"
    path.write_text("mine")
    wanted = f"^--gdb unix:{path}: a file is there already; give a path where nothing is$"
    with pytest.raises(UsageError, match=wanted):
        listen(f"unix:{path}")
    assert path.read_text() == "mine"
    with pytest.raises(UsageError, match="a directory is there already"):
        listen(f"unix:{tmp_path}")
    assert list(tmp_path.iterdir()) == [path]


# Standard streams.


class Ends:
    """gdb at two pipes."""

    def __init__(self):
        self.reading, self.gdb_out = os.pipe()
        self.gdb_in, self.writing = os.pipe()
        self.channel = StreamChannel(self.reading, self.writing)

    def close(self):
        for descriptor in (self.reading, self.gdb_in, self.writing):
            os.close(descriptor)


@pytest.fixture
def ends():
    ends = Ends()
    yield ends
    ends.close()


def test_a_pipe_has_one_gdb_and_then_its_end(ends):
    listener = StreamListener(ends.channel)
    assert listener.fileno() == ends.reading
    assert listener.accept() is ends.channel
    assert listener.fileno() is None
    ends.channel.close()
    os.write(ends.gdb_out, b"+")
    assert listener.fileno() == ends.reading
    assert listener.accept() is None and not listener.ended
    os.close(ends.gdb_out)
    assert listener.accept() is None and listener.ended
    assert listener.fileno() is None


def test_a_gdb_that_reads_nothing_is_gone(ends, monkeypatch):
    monkeypatch.setattr(channel, "SEND_TIMEOUT_S", 0.0)
    assert ends.channel.send(b"x")
    assert not ends.channel.send(bytes(1 << 20))
    os.close(ends.gdb_out)
