"""smoke/wire: what a guest's process says is taken for data, or not at all."""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
from pathlib import Path

import pytest

from xenemu.smoke import wire
from xenemu.smoke.ktap import Case, Status
from xenemu.smoke.plan import Boot, Step
from xenemu.smoke.results import Result
from xenemu.smoke.session import Phase
from xenemu.smoke.verdict import Finding, Verdict
from xenemu.smoke.wire import Inbox, Nonsense
from xenemu.smoke.worker import Progress

BOOT = Boot("name", Path("/kernel\udce9"), expect=(Step("a", "b"),), tolerate=(Verdict.BUG,))
RESULT = Result(
    BOOT,
    [Finding(Verdict.PANIC, "no root at \udce9")],
    started=1.5,
    instructions=1 << 60,
    phases=[Phase("loaded", 1, 0.5)],
    captures={"version": "6.1"},
    cases=[Case(("suite", "case"), Status.FAIL, "why")],
    raw=bytes(range(256)),
)


@pytest.fixture
def pipe():
    ours, theirs = multiprocessing.Pipe(duplex=False)
    yield ours, theirs
    ours.close()
    theirs.close()


def test_what_is_said_arrives(pipe):
    ours, theirs = pipe
    inbox = Inbox(ours, Result, Progress, str, type(None))
    for said in (RESULT, Progress("hello", 1, 2), "text", None):
        wire.send(theirs, said)
    assert inbox.take() == [RESULT, Progress("hello", 1, 2), "text", None]


def test_a_message_may_come_in_pieces(pipe):
    ours, theirs = pipe
    inbox, data = Inbox(ours, str), json.dumps(["str", "text"]).encode()
    for byte in wire.LENGTH.pack(len(data)) + data[:-1]:
        os.write(theirs.fileno(), bytes([byte]))
        assert inbox.take() == []
    os.write(theirs.fileno(), data[-1:])
    assert inbox.take() == ["text"]


def test_the_end_is_told(pipe):
    ours, theirs = pipe
    theirs.close()
    with pytest.raises(EOFError):
        Inbox(ours, str).take()


NONSENSE = {
    "a pickle": pickle.dumps("text"),
    "no JSON": b"{",
    "no kind": b"1",
    "another kind": b'["Result", {}]',
    "too few fields": b'["Progress", {"words": "a"}]',
    "another type": b'["Progress", {"words": 1, "virtual_ns": 1, "instructions": 1}]',
    "a deep one": b"[" * 100_000,
    "no characters": b'["str", "\xff"]',
}


@pytest.mark.parametrize("data", NONSENSE.values(), ids=NONSENSE)
def test_nonsense_is_told(pipe, data):
    ours, theirs = pipe
    os.set_blocking(theirs.fileno(), True)
    inbox = Inbox(ours, Progress, str)
    os.write(theirs.fileno(), (wire.LENGTH.pack(len(data)) + data)[:60_000])
    with pytest.raises(Nonsense):
        if not inbox.take():
            os.write(theirs.fileno(), data[60_000 - wire.LENGTH.size :])
            inbox.take()


def test_a_message_of_any_length_is_not_waited_for(pipe):
    ours, theirs = pipe
    os.write(theirs.fileno(), b"\xff" * 4)
    with pytest.raises(Nonsense, match="4294967295 bytes"):
        Inbox(ours, str).take()
