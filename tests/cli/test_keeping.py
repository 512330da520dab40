"""Snapshots that somebody asks for while the guest runs."""

from __future__ import annotations

import json

import pytest

from tinyguest import POWEROFF, kernel, say, shutdown, wait_until
from unattended import Unattended
from xenemu import image
from xenemu.cli.expect import Expectations
from xenemu.cli.keeping import Keeping
from xenemu.errors import UsageError
from xenemu.hv.building import DomainConfig
from xenemu.machine import Machine, snapshot_file
from xenemu.outcome import End, Outcome
from xenemu.outputs import Outputs

GUEST = say(b"one\n") + wait_until(1_000_000_000) + say(b"two\n") + shutdown(POWEROFF)


def header():
    return snapshot_file.Header(kernel="/k", kernel_digest="", entry="", memory=64 << 20)


@pytest.fixture
def machine(tmp_path):
    (tmp_path / "kernel").write_bytes(kernel(GUEST))
    return Machine(image.load(tmp_path / "kernel"), DomainConfig(64 << 20))


def ended(machine):
    terminal = Unattended()
    outcome = machine.run(terminal)
    return outcome.end, bytes(terminal.shown), machine.engine.instructions, machine.engine.now_ns


def test_a_verb_takes_one_into_each_file(machine, tmp_path):
    class Asks(Unattended):
        def check(self):
            if b"one" in self.shown:
                for _ in range(3):
                    machine.control.feed(machine.domain, b'5 {"id": 1, "do": "snapshot"}')
                return Outcome(End.STOPPED, "asked")
            return None

    with Outputs() as outputs:
        paths = [tmp_path / "a", tmp_path / "b"]
        given = (outputs, paths, None, header(), Expectations([]))
        keeping = Keeping.parse(*given, is_asked=True)
        machine.control.verbs = {"snapshot": keeping.verb(machine)}
        machine.run(Asks())
        answers = [json.loads(line.partition(b" ")[2]) for _, line in machine.control.take_sent()]
        straight = ended(machine)
    assert [answer.get("file") for answer in answers] == [str(paths[0]), str(paths[1]), None]
    assert "one more --snapshot FILE" in answers[2]["error"]
    assert keeping.look(machine) is None
    for path in paths:
        revived = Machine.revive(snapshot_file.read(path).snapshot)
        assert revived.engine.now_ns == answers[0]["now_ns"]
        assert ended(revived) == straight


def test_somebody_must_say_when(tmp_path):
    with Outputs() as outputs:
        for paths, at in (([tmp_path / "a"], None), ([tmp_path / "a", tmp_path / "b"], "1s")):
            with pytest.raises(UsageError, match="say when"):
                Keeping.parse(outputs, paths, at, header(), Expectations([]), is_asked=False)
        with pytest.raises(UsageError, match="which file"):
            Keeping.parse(outputs, [], "1s", header(), Expectations([]), is_asked=True)
    assert list(tmp_path.iterdir()) == []


def test_what_is_nearly_a_time_is_no_expression(tmp_path):
    with Outputs() as outputs:
        for at in ("1.5x", "1.5", "1.5 s", "3,5s", "10ms", "7.", "2 s"):
            with pytest.raises(UsageError, match=r"--snapshot-at '.*': give a time in seconds"):
                Keeping.parse(
                    outputs, [tmp_path / "a"], at, header(), Expectations([]), is_asked=False
                )
        for at in ("[1].5", "5", "login: ", "1 of 3", "CPU1"):
            keeping = Keeping.parse(
                *(outputs, [tmp_path / f"{at} file"], at, header(), Expectations([])),
                is_asked=False,
            )
            assert (keeping.at, keeping.at_ns) == (at, None)
