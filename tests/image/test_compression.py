"""Seven ways to compress, one limit, and no way around it."""

from __future__ import annotations

import bz2
import gzip
import lzma
import sys

import lz4.block
import pytest

from elfwriter import lz4_legacy, lzo_literals, lzop
from xenemu.errors import ImageError
from xenemu.image import compression

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

DATA = bytes(range(256)) * 20 + bytes(3_000_000)


def _lz4(data):
    return lz4_legacy([lz4.block.compress(data, store_size=False)])


def _xz(data):
    filters = [{"id": lzma.FILTER_X86}, {"id": lzma.FILTER_LZMA2}]  # as kernels' are
    return lzma.compress(data, check=lzma.CHECK_CRC32, filters=filters)


PACK = {
    "gzip": lambda data: gzip.compress(data, 1),
    "bzip2": bz2.compress,
    "xz": _xz,
    "lzma": lambda data: lzma.compress(data, lzma.FORMAT_ALONE, preset=1),
    "lz4": _lz4,
    "lzo": lambda data: lzop([(data, len(data))]),
    "zstd": zstd.compress,
}


@pytest.mark.parametrize("name", PACK)
def test_each_format_is_known_and_unpacked(name):
    packed = memoryview(PACK[name](DATA))
    assert compression.detect(packed) == name
    assert compression.decompress(packed, name) == DATA
    assert compression.decompress(packed, name, len(DATA)) == DATA


@pytest.mark.parametrize("name", PACK)
def test_more_than_promised_is_refused(name):
    with pytest.raises(ImageError, match=name):
        compression.decompress(memoryview(PACK[name](DATA)), name, len(DATA) - 1)


@pytest.mark.parametrize("name", PACK)
def test_less_than_promised_is_refused(name):
    with pytest.raises(ImageError, match=f"unpacks to {len(DATA)} bytes instead of"):
        compression.decompress(memoryview(PACK[name](DATA)), name, len(DATA) + 1)


@pytest.mark.parametrize("name", PACK)
def test_a_truncated_stream_is_refused(name):
    packed = PACK[name](DATA)
    with pytest.raises(ImageError, match=name):
        compression.decompress(memoryview(packed)[: len(packed) // 2], name)


@pytest.mark.parametrize("name", PACK)
def test_rubbish_behind_the_magic_is_refused(name):
    packed = PACK[name](DATA)[:12] + b"\xa5" * 100
    with pytest.raises(ImageError, match=name):
        compression.decompress(memoryview(packed), name)


@pytest.mark.parametrize("name", PACK)
def test_a_bomb_stops_at_the_limit(name, monkeypatch):
    monkeypatch.setattr(compression, "MAX_SIZE", 1 << 20)
    with pytest.raises(ImageError, match=name):
        compression.decompress(memoryview(PACK[name](bytes(20 << 20))), name)


def test_a_size_over_the_limit_is_refused_unread():
    with pytest.raises(ImageError, match="claims 536870913 bytes"):
        compression.decompress(memoryview(b""), "xz", compression.MAX_SIZE + 1)


def test_a_huge_dictionary_is_refused():
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 0, "dict_size": 1 << 30}]
    xz = lzma.compress(b"x", filters=filters)
    alone = bytearray(lzma.compress(b"x", lzma.FORMAT_ALONE, preset=0))
    alone[1:5] = (1 << 30).to_bytes(4, "little")
    for name, packed in ("xz", xz), ("lzma", bytes(alone)):
        with pytest.raises(ImageError, match="Memory usage limit"):
            compression.decompress(memoryview(packed), name)


def test_empty_lz4_blocks_do_not_go_on_and_on():
    with pytest.raises(ImageError, match="an empty block"):
        compression.decompress(memoryview(lz4_legacy([b""])), "lz4")


def test_a_foreign_stream_is_not_detected():
    assert compression.detect(memoryview(b"PK\3\4")) is None
    assert compression.detect(memoryview(b"")) is None


def test_lz4_frames_may_follow_each_other():
    packed = _lz4(b"one") + _lz4(b"two")
    assert compression.decompress(memoryview(packed), "lz4") == b"onetwo"


def test_a_long_run_of_lzo_literals():
    packed = lzop([(lzo_literals(DATA[:5000]), 5100)])
    with pytest.raises(ImageError, match="5000 bytes instead of 5100"):
        compression.decompress(memoryview(packed), "lzo")
