"""gdb/channel: where to listen, as a person writes it."""

from __future__ import annotations

import socket

import pytest

from xenemu.errors import UsageError
from xenemu.gdb.channel import listen


@pytest.mark.parametrize("spec", [":0", "0", "localhost:0", "127.0.0.1:0", "tcp::0"])
def test_a_port_is_of_the_loopback_interface(spec):
    listener = listen(spec)
    host, _, port = listener.address.rpartition(":")
    assert host == "127.0.0.1"
    assert int(port) > 0
    listener.close()


@pytest.mark.parametrize(
    "spec", ["", "nowhere", ":", ":x", ":99999", "a:b:1", ":-1", "[::1", "host:", "stdout"]
)
def test_what_is_no_place_to_listen(spec):
    with pytest.raises(UsageError, match="--gdb"):
        listen(spec)


def test_a_port_that_is_taken():
    first = listen(":0")
    with pytest.raises(UsageError, match="in use"):
        listen(first.address)
    first.close()


def test_a_unix_socket_that_nobody_answers_is_replaced(tmp_path):
    path = tmp_path / "gdb"
    with socket.socket(socket.AF_UNIX) as left_behind:
        left_behind.bind(str(path))
    listener = listen(f"unix:{path}")
    assert listener.address == str(path)
    listener.close()
    assert not path.exists()


def test_a_unix_socket_that_somebody_answers_stays(tmp_path):
    first = listen(f"unix:{tmp_path / 'gdb'}")
    with pytest.raises(UsageError, match="in use"):
        listen(f"unix:{tmp_path / 'gdb'}")
    first.close()


def test_a_file_in_the_way_stays(tmp_path):
    path = tmp_path / "file"
    path.write_text("mine")
    with pytest.raises(UsageError):
        listen(f"unix:{path}")
    assert path.read_text() == "mine"
