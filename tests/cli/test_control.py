"""`xenemu control`, at a guest that runs in a process of its own, confined."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import tinyguest
from xenemu.cli import main
from xenemu.options import parse_request


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("control")
    (place / "kernel").write_bytes(tinyguest.kernel(tinyguest.say(b"up\n") + tinyguest.SPIN))
    (place / "disk").write_bytes(bytes(1 << 20))
    return place


@pytest.fixture
def run(place: Path) -> Iterator[subprocess.Popen]:
    options = ["--control", "sock", "--disk", "disk,name=xvdb,later", "--timeout", "60"]
    command = [sys.executable, "-m", "xenemu", "run", "kernel", "--confine", "must", *options]
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, cwd=place, **pipes) as process:
        yield process
        process.kill()


@pytest.fixture
def ask(place: Path, capsys: pytest.CaptureFixture[str]):
    """`xenemu control` with words: its exit code, standard output and standard error."""

    def ask(*words: str) -> tuple[int, str, str]:
        code = main(["control", "--wait", "30", str(place / "sock"), *words])
        return code, *capsys.readouterr()

    return ask


def test_a_guest_is_asked_and_destroyed(run: subprocess.Popen, ask, place: Path) -> None:
    assert "shutdown [poweroff|reboot|halt|suspend]\n" in ask()[1]
    assert ask("pause") == (0, "done\n", "")
    assert ask("pause") == (3, "", "xenemu: the guest is paused already\n")
    answer = json.loads(ask("status", "--json")[1])
    assert (answer["state"], answer["devices"][0]["attached"]) == ("paused", False)
    assert ask("unpause")[0] == 0
    assert ask("attach", "xvdb", "within=0") == (0, "asked: yes\n", "")
    assert ask("xenstore", "read", "device/vbd/51728/state") == (0, "1\n", "")
    assert ask("shutdown", "within=0.01")[0] == 3
    assert ask("xenstore", "ls", "control")[1].startswith('/local/domain/1/control = ""\n')
    code, _, told = ask("fly")
    assert code == 7 and told.startswith("xenemu: there is no verb 'fly'; there are attach, ")
    assert ask("memory") == (3, "", "xenemu: target is missing: memory TARGET\n")
    lacking = "snapshot: the guest was started without --snapshot FILE to write to"
    assert ask("snapshot") == (3, "", f"xenemu: {lacking}\n")
    code, _, told = ask("pause", "now")
    assert (code, told) == (7, "xenemu: 'now' is one word too many: pause\n")
    assert ask("destroy") == (0, "done\n", "")
    shown, told = run.communicate(timeout=60)
    assert run.returncode == 0 and shown == b"up\n"
    assert b"stopped, exit 0: destroyed by the toolstack" in told
    assert not (place / "sock").exists()


def test_events_come_until_the_guest_ends(run: subprocess.Popen, ask, place: Path) -> None:
    assert ask("status")[0] == 0
    with socket.socket(socket.AF_UNIX) as other:
        other.connect(str(place / "sock"))
        lines = other.makefile("rwb")
        lines.write(b'{"do": "events"}\n{"do": "xenstore", "op": "watch", "path": "data"}\n')
        lines.flush()
        first = [json.loads(lines.readline()) for _ in range(3)]
        assert [line.get("ok") for line in first] == [True, True, None]
        ask("xenstore", "write", "data/x", "1")
        assert json.loads(lines.readline())["path"] == "/local/domain/1/data/x"
        ask("pause")
        assert json.loads(lines.readline()) == {"event": "pause"}
        os.kill(run.pid, signal.SIGTERM)
        assert lines.readline() == b""


def test_nobody_is_there(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["control", str(place / "nowhere"), "status"]) == 7
    assert "no guest is controlled there: No such file or directory" in capsys.readouterr().err


def test_words_are_fields_in_their_order_or_by_name() -> None:
    verbs = {"xenstore": {"usage": "", "fields": ["op", "path", "value", "within"]}}
    for words, fields in (
        (("write", "a", "b"), {"op": "write", "path": "a", "value": "b"}),
        (("write", "path=a", "b"), {"op": "write", "path": "a", "value": "b"}),
        (("write", "a", "c=d"), {"op": "write", "path": "a", "value": "c=d"}),
        (("within=5", "read"), {"within": "5", "op": "read"}),
    ):
        assert parse_request(verbs, ("xenstore", *words)) == {"do": "xenstore", **fields}
