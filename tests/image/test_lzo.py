"""Each instruction of LZO1X, and what a hostile stream may not do."""

from __future__ import annotations

import pytest

from elfwriter import lzo_literals, lzop
from xenemu.errors import ImageError
from xenemu.image.lzo import decompress_block, decompress_lzop

END = b"\x11\0\0"


@pytest.mark.parametrize(
    ("stream", "data"),
    [
        (b"\x15abcd" + END, b"abcd"),
        (b"\0\x01" + b"x" * 19 + END, b"x" * 19),
        (b"\0\0\x01" + b"x" * 274 + END, b"x" * 274),
        (b"\x15abcd" + b"\x4c\x00" + END, b"abcdabc"),  # 3 bytes from 4 back
        (b"\x15abcd" + b"\xed\x00z" + END, b"abcdabcdabcdz"),  # 8 from 4, 1 literal
        (b"\x15abcd" + b"\x22\x0c\x00" + END, b"abcdabcd"),  # 4 from 4
        (b"\x13ab" + b"\x20\x01\x00\x00" + END, b"ab" + b"b" * 34),  # a length that goes on
        (b"\x13ab" + b"\x04\x00" + END, b"abab"),  # 2 from 2 after 2 literals
        (b"\x15abcd" + b"\x4d\x00Z" + b"\x00\x00" + END, b"abcdabcZZZ"),  # 2 from 1
    ],
)
def test_instructions(stream, data):
    assert decompress_block(stream, len(data)) == data


def test_distances_beyond_2048_and_16384():
    head = bytes(range(256)) * 70
    far = head[-2049:-2046]
    assert (
        decompress_block(lzo_literals(head)[:-3] + b"\x00\x00" + END, len(head) + 3) == head + far
    )
    stream = lzo_literals(head)[:-3] + b"\x13\x04\x00" + END  # 5 from 16385 back
    assert decompress_block(stream, len(head) + 5) == head + head[-16385:-16380]


@pytest.mark.parametrize(
    ("stream", "sentence"),
    [
        (b"", "truncated"),
        (b"\x15ab", "truncated"),
        (b"\0" * 20, "truncated"),
        (b"\x15abcd\xfc\xff", "before its start"),
        (b"\x16abcde" + END, "overruns its size"),
        (b"\x13ab" + b"\x20" + b"\0" * 30 + b"\x01\x00\x00" + END, "overruns its size"),
        (b"\x13ab" + END, "2 bytes instead of 4"),
    ],
)
def test_a_broken_stream_is_named(stream, sentence):
    with pytest.raises(ImageError, match=sentence):
        decompress_block(stream, 4)


def test_blocks_follow_each_other_and_may_be_stored():
    packed = lzop([(b"\x12x\x3f\0\0" + END, 34), (b"plain", 5)])
    assert decompress_lzop(memoryview(packed), 39) == b"x" * 34 + b"plain"


@pytest.mark.parametrize(
    ("packed", "sentence"),
    [
        (lzop([(b"plain", 5)])[:20], "truncated"),
        (lzop([(b"plain", 5)])[:-4], "truncated"),
        (lzop([(b"plain", 5), (b"x", 40)]), "more than 42 bytes"),
        (lzop([(b"too long", 5)]), "longer than the file"),
        (lzop([])[:15] + b"\x09" + lzop([])[16:], "method 9"),
    ],
)
def test_a_broken_file_is_named(packed, sentence):
    with pytest.raises(ImageError, match=sentence):
        decompress_lzop(memoryview(packed), 42)
