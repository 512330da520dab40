"""What kernels unpack to is kept between runs."""

from __future__ import annotations

import os
import zlib

import pytest

from xenemu.errors import ImageError
from xenemu.image import unpacked
from xenemu.image.unpacked import KEPT, WORTH_KEEPING

PAYLOAD = memoryview(bytes(WORTH_KEEPING))
CONTENT = b"kernel" * 1000


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "xenemu" / "unpacked"


def never():
    raise AssertionError("unpacked again")


def test_the_second_time_comes_from_the_cache(cache):
    assert bytes(unpacked.unpacked(PAYLOAD, lambda: CONTENT)) == CONTENT
    assert bytes(unpacked.unpacked(PAYLOAD, never, len(CONTENT))) == CONTENT
    assert [file.read_bytes() for file in cache.iterdir()] == [CONTENT]


def test_another_payload_has_another_file(cache):
    unpacked.unpacked(PAYLOAD, lambda: CONTENT)
    other = memoryview(bytes(WORTH_KEEPING - 1) + b"x")
    assert bytes(unpacked.unpacked(other, lambda: b"other")) == b"other"
    assert len(list(cache.iterdir())) == 2


def test_small_payloads_are_not_kept(cache):
    assert bytes(unpacked.unpacked(PAYLOAD[1:], lambda: CONTENT)) == CONTENT
    assert not cache.exists()


@pytest.mark.parametrize("rest", [b"", b"short"])
def test_a_file_of_another_size_is_replaced(cache, rest):
    unpacked.unpacked(PAYLOAD, lambda: CONTENT)
    (file,) = cache.iterdir()
    file.write_bytes(rest)
    assert bytes(unpacked.unpacked(PAYLOAD, lambda: CONTENT, len(CONTENT))) == CONTENT
    assert file.read_bytes() == CONTENT


def test_only_the_files_used_last_are_kept(cache):
    payloads = [memoryview(bytes(WORTH_KEEPING) + n.to_bytes(1, "little")) for n in range(KEPT + 1)]
    for payload in payloads[:-1]:
        unpacked.unpacked(payload, lambda: CONTENT)
    for age, file in enumerate(sorted(cache.iterdir())):
        os.utime(file, ns=(age, age))
    oldest = sorted(cache.iterdir())[0]
    unpacked.unpacked(payloads[-1], lambda: CONTENT)
    assert len(list(cache.iterdir())) == KEPT
    assert not oldest.exists()


def test_a_payload_that_does_not_unpack_leaves_nothing(cache):
    def corrupt():
        raise ImageError("corrupt")

    with pytest.raises(ImageError):
        unpacked.unpacked(PAYLOAD, corrupt)
    assert not cache.exists()


def test_without_a_cache_it_is_unpacked_each_time(tmp_path, monkeypatch):
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    for content in (CONTENT, b"other"):
        assert bytes(unpacked.unpacked(PAYLOAD, lambda content=content: content)) == content


def test_what_was_forgotten_can_be_read_again(cache):
    view = unpacked.unpacked(PAYLOAD, lambda: CONTENT)
    unpacked.forget(view)
    assert zlib.crc32(view) == zlib.crc32(CONTENT)
    unpacked.forget(memoryview(b"no file"))  # nothing happens
