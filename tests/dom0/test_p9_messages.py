"""dom0/p9_messages: what a server gets of a guest's requests, and a guest of its answers."""

from __future__ import annotations

import struct

import pytest

from xenemu.abi.errno import EINVAL, EROFS
from xenemu.dom0.p9_messages import (
    HARMLESS,
    HEADER,
    NOBODY,
    O_EXCL,
    O_NONBLOCK,
    Export,
    Refused,
    T,
    amend,
    amend_answer,
    error,
)

READ_ONLY = Export(b"/srv/tree")
WRITABLE = Export(b"/srv/tree", writable=True)
O_RDONLY, O_WRONLY, O_RDWR, O_APPEND = 0, 1, 2, 0o2000


def message(kind: int, body: bytes = b"", tag: int = 7) -> bytes:
    return HEADER.pack(HEADER.size + len(body), kind, tag) + body


def string(text: bytes) -> bytes:
    return struct.pack("<H", len(text)) + text


def attach(user: bytes, directory: bytes, uid: int) -> bytes:
    fids = struct.pack("<II", 1, NOBODY)
    return message(T.ATTACH, fids + string(user) + string(directory) + struct.pack("<I", uid))


def lopen(flags: int) -> bytes:
    return message(T.LOPEN, struct.pack("<II", 3, flags))


def refused(request: bytes, export: Export) -> int:
    with pytest.raises(Refused) as caught:
        amend(request, export)
    return caught.value.errno


@pytest.mark.parametrize("directory", [b"", b"/etc", b"/srv/tree"])
def test_an_attach_is_to_the_shared_directory(directory: bytes) -> None:
    assert amend(attach(b"me", directory, 5), WRITABLE) == attach(b"me", b"/srv/tree", 5)


def test_an_attach_without_a_uid_is_roots() -> None:
    assert amend(attach(b"nobody", b"", NOBODY), READ_ONLY) == attach(b"nobody", b"/srv/tree", 0)


def test_whoever_attaches_is_the_one_user_that_may() -> None:
    export = Export(b"/srv/tree", uid=1000)
    for uid in (0, 5, NOBODY):
        assert amend(attach(b"", b"", uid), export) == attach(b"", b"/srv/tree", 1000)


def test_an_attach_that_is_cut_off_is_refused() -> None:
    whole = attach(b"nobody", b"/", 0)
    for end in range(HEADER.size, len(whole)):
        assert refused(whole[:end], WRITABLE) == EINVAL


def test_a_fifo_is_opened_without_waiting() -> None:
    assert amend(lopen(O_RDONLY), READ_ONLY) == lopen(O_NONBLOCK)
    assert amend(lopen(O_RDWR), WRITABLE) == lopen(O_RDWR | O_NONBLOCK)

    def create(flags: int) -> bytes:
        numbers = struct.pack("<III", flags, 0o644, 0)
        return message(T.LCREATE, struct.pack("<I", 3) + string(b"name") + numbers)

    assert amend(create(O_RDWR), WRITABLE) == create(O_RDWR | O_EXCL | O_NONBLOCK)


def test_who_may_only_read_opens_only_for_reading() -> None:
    for flags in (O_WRONLY, O_RDWR, 3, 0o1000, 0o100):
        assert refused(lopen(flags), READ_ONLY) == EROFS
    assert amend(lopen(O_APPEND), READ_ONLY) == lopen(O_APPEND | O_NONBLOCK)


def test_who_may_only_read_asks_for_nothing_but_what_is_harmless() -> None:
    body = bytes(40)
    for kind in range(256):
        request = message(kind, body)
        if kind in HARMLESS - {T.ATTACH, T.LOPEN}:
            assert amend(request, READ_ONLY) == request
        elif kind not in (T.ATTACH, T.LOPEN, T.REMOVE):
            assert refused(request, READ_ONLY) == EROFS
        if kind not in (T.ATTACH, T.LOPEN, T.LCREATE):
            assert amend(request, WRITABLE) == request


def test_removing_nothing_still_gives_the_fid_back() -> None:
    request = message(T.REMOVE, struct.pack("<I", 3))
    assert amend(request, READ_ONLY) == message(T.CLUNK, struct.pack("<I", 3))
    assert amend_answer(request, message(T.CLUNK + 1), READ_ONLY) == error(request, EROFS)
    assert amend_answer(request, message(T.REMOVE + 1), WRITABLE) == message(T.REMOVE + 1)


def test_a_refusal_has_the_requests_tag() -> None:
    assert error(message(T.REMOVE, bytes(4), tag=99), EROFS) == message(7, b"\x1e\0\0\0", tag=99)


def test_the_time_of_access_is_that_of_the_change() -> None:
    request = message(T.GETATTR, bytes(12))
    attributes = bytes(range(73)) + b"a" * 16 + b"m" * 16 + bytes(48)
    shown = bytes(range(73)) + b"m" * 16 + b"m" * 16 + bytes(48)
    answer = message(T.GETATTR + 1, attributes)
    assert amend_answer(request, answer, WRITABLE) == message(T.GETATTR + 1, shown)
    assert amend_answer(request, answer[:50], WRITABLE) == answer[:50]
