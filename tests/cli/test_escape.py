"""cli/escape: what a person types for xenemu."""

from __future__ import annotations

import json

import pytest

from xenemu.cli.escape import HINT, REQUESTS, Asking, Escape, listed


class Person:
    """Somebody at the console, with what is told to them."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.escape = Escape(self.told.append)

    def asks(self, typed: bytes) -> list[dict]:
        assert self.escape.take(typed) == b""
        lines = self.escape.requests()
        assert all(line.startswith(b"0 ") for line in lines)
        return [json.loads(line[2:]) for line in lines]


@pytest.fixture
def person() -> Person:
    return Person()


def test_twice_leaves(person: Person) -> None:
    assert person.escape.take(b"ab\x1d") == b"ab"
    assert not person.escape.left
    assert person.told == [HINT]
    assert person.escape.take(b"\x1dlost") == b""
    assert person.escape.left


def test_what_may_follow_is_told_once(person: Person) -> None:
    for _ in range(3):
        assert person.escape.take(b"\x1d]") == b"\x1d"
    assert person.told == [HINT]


def test_each_key_is_a_request(person: Person) -> None:
    for key, (_, request) in REQUESTS.items():
        assert person.asks(b"\x1d" + key.encode()) == [request]
    assert person.escape.requests() == []


def test_sysrq_takes_a_second_key(person: Person) -> None:
    assert person.asks(b"\x1dy") == []
    assert person.asks(b"h") == [{"do": "sysrq", "key": "h"}]


def test_other_keys_list_them_all(person: Person) -> None:
    for key in (b"?", b"!", b"\xff", b"\0"):
        assert person.asks(b"\x1d" + key) == []
        assert person.told.pop() == listed()


def test_ctrl_bracket_itself_can_be_typed(person: Person) -> None:
    assert person.escape.take(b"a\x1d]b") == b"a\x1db"


def test_answers_are_told(person: Person) -> None:
    asking = Asking(person.escape, None)
    asking.send(0, b'0 {"id": null, "ok": true, "acknowledged": true}')
    asking.send(0, b'0 {"id": null, "ok": false, "error": "no"}')
    asking.send(0, b'5 {"id": null, "ok": true}')
    assert person.told == ["acknowledged: yes", "no"]
