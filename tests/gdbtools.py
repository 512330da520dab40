"""A xenemu that waits for gdb, a client of three lines for its packets, and gdb itself."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

from xenemu.gdb.rsp import Decoder, Packet, encode

RIP = 16  # its number
TIMEOUT_S = 120  # for something that hangs
WAITING = re.compile(r"waiting for gdb: target remote (\S+)")


@contextmanager
def waiting(*arguments, gdb=":0", stdin=subprocess.DEVNULL):
    """`xenemu run ARGUMENTS --gdb :0`; gives the process, and the address to connect to."""
    command = [sys.executable, "-m", "xenemu", "run", *map(str, arguments), "--gdb", gdb]
    process = subprocess.Popen(command, stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        line = process.stderr.readline().decode()
        found = WAITING.search(line)
        assert found, line
        yield SimpleNamespace(process=process, address=found[1], finish=process.communicate)
    finally:
        process.kill()
        process.communicate()


class Client:
    """One connection. `ask` sends a payload and returns the answer's."""

    def __init__(self, address, quiet=True):
        if address.startswith("/"):
            self.socket = socket.socket(socket.AF_UNIX)
            self.socket.connect(address)
        else:
            host, _, port = address.rpartition(":")
            self.socket = socket.create_connection((host.strip("[]"), int(port)))
        self.socket.settimeout(TIMEOUT_S)
        self._decoder, self._events, self.heard = Decoder(), [], b""
        if quiet:
            assert self.ask(b"QStartNoAckMode") == b"OK"
            self.send(b"+")

    def send(self, data):
        self.socket.sendall(data)

    def next(self):
        """The next payload, or None at the end of the connection."""
        while not any(isinstance(event, Packet) for event in self._events):
            data = self.socket.recv(1 << 16)
            self.heard += data
            if not data:
                return None
            self._events += self._decoder.feed(data)
        while not isinstance(event := self._events.pop(0), Packet):
            pass
        return event.payload

    def ask(self, payload):
        self.send(encode(payload))
        return self.next()

    def close(self):
        self.socket.close()


def addresses(path):
    listed = subprocess.run(["nm", path], capture_output=True, check=True, text=True).stdout
    return {line.split()[2]: int(line.split()[0], 16) for line in listed.splitlines()}


def place(client, answer):
    """The thread of a stop, and where it is."""
    thread = int(re.search(rb";thread:([0-9a-f]+);", answer)[1], 16)
    return thread, client.ask(b"p%x" % RIP)


def after_console(answer, client):
    while answer[:1] == b"O":
        answer = client.next()
    return answer


def to(client, vaddr):
    client.ask(b"Z0,%x,1" % vaddr)
    answer = after_console(client.ask(b"vCont;c"), client)
    client.ask(b"z0,%x,1" % vaddr)
    return answer


def need_gdb():
    """Skip the test where there is no gdb; with the environment variable CI, fail."""
    if shutil.which("gdb") is None:
        if os.environ.get("CI"):
            pytest.fail("there is no gdb")
        pytest.skip("there is no gdb: apt-get install gdb")


def gdb_command(*commands):
    """The command line that has gdb run the commands."""
    need_gdb()
    settings = ("set width 0", "set pagination off")
    each = [word for command in (*settings, *commands) for word in ("-ex", command)]
    return ["gdb", "-nx", "-q", "-batch", *each]


def run_gdb(*commands):
    """The lines that gdb prints for the commands."""
    result = subprocess.run(
        gdb_command(*commands),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=TIMEOUT_S,
        check=False,
    )
    return result.stdout.decode(errors="replace").splitlines()


def write_script(path: Path, text: str) -> str:
    """A file of gdb's commands, for loops; the command that runs it."""
    path.write_text(text)
    return f"source {path}"
