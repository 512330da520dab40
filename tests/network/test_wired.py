"""network/wired: the interfaces that are asked for, and a file of what passes."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest

from programs import need
from xenemu.errors import UsageError
from xenemu.network import networked
from xenemu.network.pcap import INBOUND, OUTBOUND, Capture
from xenemu.network.wired import Wired
from xenemu.network.wires import Listening, Stream

FRAME = bytes.fromhex("ffffffffffff 00163e000001 88b5") + b"hello" + bytes(41)


@contextmanager
def connected(name: str, *texts: str) -> Iterator[Wired]:
    with networked("--net", texts, name) as wired:
        assert wired is not None
        yield wired


def test_addresses_are_the_same_in_every_run_and_differ(tmp_path: Path) -> None:
    wire = f"socket:{tmp_path}/wire"
    macs = []
    for _ in range(2):
        with (
            connected("a", "none-but-pcap", "none-but-pcap", wire) as one,
            connected("a", "none-but-pcap", wire) as two,
        ):
            macs.append([vif.mac for wired in (one, two) for vif in wired.vifs])
    assert macs[0] == macs[1] and all(mac.startswith("00:16:3e:") for mac in macs[0])
    *_, listens, _, calls = macs[0]
    assert listens != calls and len({*macs[0][:3]}) == 3
    with connected("a", "none-but-pcap,mac=02:00:00:00:00:01") as wired:
        assert wired.vifs[0].mac == "02:00:00:00:00:01"


def test_the_first_one_at_a_socket_listens(tmp_path: Path) -> None:
    path = tmp_path / "wire"
    with connected("a", f"socket:{path}") as first:
        with connected("b", f"socket:{path}") as second:
            assert isinstance(first.wires[0], Listening) and first.takes_callers
            assert isinstance(second.wires[0], Stream) and not second.takes_callers
            second.wires[0].send(0, FRAME)
            assert first.wires[0].receive(0) == [FRAME]
        assert path.exists()
    assert not path.exists()


def test_of_two_that_come_at_once_one_listens_and_the_other_calls(tmp_path: Path) -> None:
    """Also where a socket was left behind: neither takes away the other's."""
    for turn in range(40):
        path, at_once = tmp_path / f"wire{turn}", Barrier(2)
        if turn % 2:
            with socket.socket(socket.AF_UNIX) as left:
                left.bind(str(path))

        def come(stack: ExitStack, path: Path = path, at_once: Barrier = at_once) -> type:
            at_once.wait()
            return type(stack.enter_context(connected("a", f"socket:{path}")).wires[0])

        with ExitStack() as one, ExitStack() as two, ThreadPoolExecutor(2) as pool:
            kinds = list(pool.map(come, (one, two)))
        assert sorted(kind.__name__ for kind in kinds) == ["Listening", "Stream"]
        assert list(tmp_path.iterdir()) == []


def test_a_socket_that_was_left_behind_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "wire"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    with connected("a", f"socket:{path}") as wired:
        assert isinstance(wired.wires[0], Listening)


def test_what_is_in_the_way_stays(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("mine")
    with (
        pytest.raises(UsageError, match=r"file: .*refused"),
        connected("a", f"socket:{path}"),
    ):
        pass
    assert path.read_text() == "mine"


def test_a_lack_of_passt_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with (
        pytest.raises(UsageError, match="there is no passt on this host"),
        connected("a", "user"),
    ):
        pass


def put_program(folder: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    (folder / "passt").write_text(f"#!{sys.executable}\nimport time\n{text}\n")
    (folder / "passt").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


def test_a_passt_that_is_never_ready_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_program(tmp_path, monkeypatch, "time.sleep(1000)")
    started: list[subprocess.Popen[bytes]] = []

    def start(*words: Any, **options: Any) -> subprocess.Popen[bytes]:
        started.append(popen(*words, **options))
        return started[0]

    popen = subprocess.Popen
    monkeypatch.setattr("subprocess.Popen", start)
    monkeypatch.setattr("xenemu.network.passt.STARTING_S", 0.0)
    with pytest.raises(UsageError, match="passt was not ready in 0 s"), connected("a", "user"):
        pass
    assert started[0].returncode == -signal.SIGKILL


def test_a_passt_that_is_not_ready_ends_with_its_parent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.mkfifo(tmp_path / "fifo")
    text = f"""
with open("{tmp_path}/fifo", "w") as fifo:
    print("up", file=fifo, flush=True)
    time.sleep(5)
    print("still up", file=fifo)
"""
    put_program(tmp_path, monkeypatch, text)
    command = [sys.executable, "-m", "xenemu", "run", "/dev/null", "--net", "user"]
    with subprocess.Popen(command) as run, (tmp_path / "fifo").open() as fifo:
        assert fifo.readline() == "up\n"
        run.kill()
        assert fifo.read() == ""


def test_a_port_that_is_taken_is_told() -> None:
    need("passt")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        text = f"user,hostfwd=tcp:127.0.0.1:{port}:22"
        with pytest.raises(UsageError, match=r"passt: .*"), connected("a", text):
            pass


def test_passt_ends_with_the_run() -> None:
    need("passt")
    for _ in range(2):  # the second one finds its port free
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        with connected("a", f"user,hostfwd=tcp:127.0.0.1:{port}:22"):
            socket.create_connection(("127.0.0.1", port)).close()
        with socket.socket() as again:
            again.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            again.bind(("127.0.0.1", port))


def test_a_capture_is_what_tshark_reads(tmp_path: Path) -> None:
    need("tshark")
    path = tmp_path / "x.pcapng"
    with path.open("wb") as file:
        capture = Capture(file.write, ["vif-0", "vif-1"])
        capture.packet(0, 1_500_000_001, OUTBOUND, FRAME)
        capture.packet(1, 5 << 32, INBOUND, FRAME + b"x")
    fields = ("frame.time_epoch", "frame.interface_name", "frame.packet_flags_direction")
    options = [word for field in (*fields, "frame.len") for word in ("-e", field)]
    command = ["tshark", "-r", path, "-T", "fields", *options]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    first, second = (line.split("\t") for line in shown.splitlines())
    assert first == ["1.500000001", "vif-0", "0x00000002", str(len(FRAME))]
    assert second == ["21.474836480", "vif-1", "0x00000001", str(len(FRAME) + 1)]
