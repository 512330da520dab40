"""Debian's netfront on a network: by passt to this host, and two guests on one wire."""

from __future__ import annotations

import hashlib
import http.server
import os
import random
import socket
import stat
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path

import pytest

from programs import need
from xenemu.smoke.initramfs import Member, entries, pack

KERNEL = "debian-cloud-amd64"
LEASE = b'#!/bin/sh\n[ "$1" = bound ] && ip addr add $ip/24 dev $interface\n'
FETCH = b"""#!/bin/sh
insmod /xen-netfront.ko
ip link set eth0 up
udhcpc -i eth0 -n -q -s /lease
nc -l -p 7 -e cat &
wget -q -O - http://10.0.2.2:$PORT/file | sha256sum
poweroff -f
"""
# The first one answers with what it is sent, and stays until it is told to go: what it has yet to
# send would go with it. The second one sends.
TALK = b"""#!/bin/sh
mount -t devtmpfs none /dev
mount -t proc none /proc
insmod /xen-netfront.ko
ip link set eth0 up
if [ $ME = 1 ]; then
    nc -l -p 5000 -e cat &
    until grep -q :1388 /proc/net/tcp*; do :; done
fi
ip addr add 10.1.1.$ME/24 dev eth0
if [ $ME = 1 ]; then
    read line
else
    while ! ping -c 1 -W 1 10.1.1.1 >/dev/null; do :; done
    head -c 500000 /dev/urandom > /out
    nc 10.1.1.1 5000 < /out | head -c 500000 | sha256sum
    sha256sum < /out
fi
poweroff -f
"""


def initramfs(guest_image, init: bytes) -> bytes:
    members = entries(init, guest_image("busybox").read_bytes())
    module = guest_image(f"{KERNEL}-modules") / "xen-netfront.ko"
    if not module.exists():
        pytest.fail("the cached modules are older than this test: guests/fetch.py --refresh")
    members.append(Member("xen-netfront.ko", stat.S_IFREG | 0o644, module.read_bytes()))
    members.append(Member("lease", stat.S_IFREG | 0o755, LEASE))
    return pack(members)


def start(kernel: Path, initrd: Path, mode: str, variables: str, *options: object):
    command = ["run", kernel, "--mode", mode, "--initrd", initrd, "--timeout", "300"]
    command += ["--cmdline", f"console=hvc0 quiet {variables}", "-v", *options]
    arguments = [sys.executable, "-m", "xenemu", *map(str, command)]
    return subprocess.Popen(
        arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def repeat(place: Path, console: bytes, told: bytes, *options: object) -> None:
    """Repeat a recorded run where no program can be found, and no network reached."""
    command = [sys.executable, "-m", "xenemu", "replay", place / "recording", *options]
    nothing = os.environ | {"PATH": str(place)}
    again = subprocess.run([*map(str, command)], capture_output=True, check=False, env=nothing)
    assert again.returncode == 0, again.stderr.decode()
    assert again.stdout == console
    assert how_it_ended(again.stderr) == how_it_ended(told)


def how_it_ended(told: bytes) -> str:
    """The line of the end, without what the host's clock says."""
    return next(line for line in told.decode().splitlines() if ", exit " in line).rpartition(",")[0]


@pytest.fixture
def free_port() -> int:
    """A port of this host's that nobody uses."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.fixture
def served(free_port: int):
    """A file on a server of this host's loopback interface: its digest, and the port.

    The answer begins when the guest has echoed what came by the port that is forwarded.
    """
    data = random.Random(18).randbytes(1 << 20)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            with socket.create_connection(("127.0.0.1", free_port)) as echo:
                echo.sendall(b"ping")
                echo.shutdown(socket.SHUT_WR)
                echoed = b"".join(iter(partial(echo.recv, 9), b""))
            self.send_response(200 if echoed == b"ping" else 500)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None: ...

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=partial(server.serve_forever, 0.01))
        thread.start()
        yield hashlib.sha256(data).hexdigest(), server.server_port
        server.shutdown()
        thread.join()


def test_debian_fetches_a_file_from_this_host_and_is_called_by_it(
    guest_image, served, free_port: int, tmp_path: Path
) -> None:
    need("passt")
    digest, port = served
    initrd, capture = tmp_path / "initrd", tmp_path / "all.pcapng"
    initrd.write_bytes(initramfs(guest_image, FETCH))
    net = f"user,hostfwd=tcp:127.0.0.1:{free_port}-:7"
    options = ("--net", net, "--pcap", capture, "--record", tmp_path / "recording")
    guest = start(guest_image(KERNEL), initrd, "pv", f"PORT={port}", *options)
    console, told = guest.communicate()
    assert guest.returncode == 0, told.decode()
    assert digest in console.decode()
    repeat(tmp_path, console, told, "--pcap", tmp_path / "again.pcapng")
    assert (tmp_path / "again.pcapng").read_bytes() == capture.read_bytes()
    need("tshark")
    count = ["tshark", "-r", capture, "-Y", "http.response.code == 200 or dhcp.option.dhcp == 5"]
    found = subprocess.run(count, capture_output=True, text=True, check=True).stdout
    assert "DHCP ACK" in found and "HTTP/1.0 200" in found


def test_two_guests_on_one_wire(guest_image, tmp_path: Path) -> None:
    initrd, wire = tmp_path / "initrd", f"socket:{tmp_path}/wire"
    initrd.write_bytes(initramfs(guest_image, TALK))
    kernel = guest_image(KERNEL)
    first = start(kernel, initrd, "pvh", "ME=1", "--net", wire)
    second = start(kernel, initrd, "pv", "ME=2", "--net", wire)
    console, told = second.communicate()
    first.communicate(b"go\n")
    assert (first.returncode, second.returncode) == (0, 0), told.decode()
    sent, received = (line.split()[0] for line in console.decode().splitlines() if "  -" in line)
    assert sent == received
    assert not (tmp_path / "wire").exists()
