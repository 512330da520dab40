"""The set-up header: where the payload is, and what it may not claim."""

from __future__ import annotations

import struct

import pytest

from elfwriter import bzimage, kernel
from xenemu.errors import ImageError
from xenemu.image.bzimage import is_bzimage, parse


def test_the_header_is_read():
    found = parse(memoryview(bzimage(kernel())))
    assert (found.protocol, found.kernel_version) == ((2, 15), "6.1.0-test")
    assert (found.compression, found.size) == ("gzip", len(kernel()))
    assert found.unpack() == kernel()


def test_the_size_behind_the_payload_is_no_part_of_it():
    found = parse(memoryview(bzimage(b"", payload=b"BZh9data", size=7)))
    assert (bytes(found.compressed), found.size) == (b"BZh9data", 7)


def test_the_version_string_may_be_absent_or_outside():
    data = bytearray(bzimage(kernel()))
    for offset in (0, 0xFFFF):
        struct.pack_into("<H", data, 0x20E, offset)
        assert parse(memoryview(data)).kernel_version is None


def test_both_magics_make_a_bzimage():
    data = bzimage(kernel())
    assert is_bzimage(memoryview(data))
    for at in (0x1FE, 0x202):
        assert not is_bzimage(memoryview(data[:at] + b"\0" + data[at + 1 :]))
    assert not is_bzimage(memoryview(data[:0x203]))


@pytest.mark.parametrize(
    ("broken", "sentence"),
    [
        (bzimage(kernel(), version=0x207), "boot protocol 2.07; 2.08 is the oldest"),
        (bzimage(kernel())[:0x210], "truncated in its header"),
        (bzimage(kernel())[:-1], "truncated: its payload is at 0x400"),
        (bzimage(kernel(), payload_offset=0xFFFFFFFF), "truncated: its payload"),
        (bzimage(kernel(), payload_length=0xFFFFFFFF), "truncated: its payload"),
        (bzimage(kernel(), payload_length=4), "payload has 4 bytes, which are no ELF"),
        (bzimage(kernel(), payload_length=0), "has no payload: there is no ELF in it"),
        (bzimage(kernel(), payload=b"PK\3\4"), r"unknown \(starts 50 4b 03 04\)"),
    ],
)
def test_a_lying_header_is_named(broken, sentence):
    with pytest.raises(ImageError, match=sentence):
        parse(memoryview(broken))
