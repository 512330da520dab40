"""dom0/offload: what a guest leaves out is filled in, as a card would do it."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from packets import add, frame, is_right, tcp, udp
from xenemu.dom0.offload import (
    MAX_SEGMENTS,
    OffloadError,
    checksum,
    fill_checksum,
    segment,
)

FIN, PSH, CWR = 0x01, 0x08, 0x80


@given(st.binary(max_size=70))
def test_the_checksum_is_that_of_the_rfc(data: bytes) -> None:
    assert checksum(data) == 0xFFFF - add(data)


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize(("protocol", "make"), [(6, tcp), (17, udp)])
def test_a_checksum_is_filled_in(version: int, protocol: int, make) -> None:
    for size in (0, 1, 2, 701):
        packet = frame(version, protocol, make(b"\xa5" * size))
        assert not is_right(packet, version)
        filled = fill_checksum(packet)
        assert is_right(filled, version) and len(filled) == len(packet)


def test_a_udp_checksum_is_never_zero() -> None:
    packet = frame(4, 17, udp(b"\0\0"))
    missing = (0xFFFF - int.from_bytes(fill_checksum(packet)[40:42])) & 0xFFFF
    packet = frame(4, 17, udp((0xFFFF - missing).to_bytes(2)))
    assert fill_checksum(packet)[40:42] == b"\xff\xff"


def test_padding_after_the_packet_is_not_in_its_checksum() -> None:
    packet = frame(4, 17, udp(b"abc"))
    assert fill_checksum(packet + b"\xff" * 9)[: len(packet)] == fill_checksum(packet)


def test_a_vlan_and_extension_headers_are_skipped() -> None:
    plain = fill_checksum(frame(4, 6, tcp(b"data")))
    tagged = plain[:12] + b"\x81\x00\x00\x05" + plain[12:]
    assert fill_checksum(tagged) == tagged
    inner = tcp(b"data")
    options = bytes([6, 0]) + bytes(6)
    filled = fill_checksum(frame(6, 0, options + inner))
    assert filled[54 + 8 :] == fill_checksum(frame(6, 6, inner))[54:]


@pytest.mark.parametrize("version", [4, 6])
def test_a_large_packet_is_cut(version: int) -> None:
    data = bytes(range(256)) * 40
    packet = frame(version, 6, tcp(data, seq=0xFFFF_FF00, flags=CWR | PSH | FIN))
    parts = list(segment(packet, 1000, version))
    head = len(packet) - len(data)
    assert b"".join(part[head:] for part in parts) == data
    assert [len(part) - head for part in parts] == [1000] * 10 + [240]
    assert all(is_right(part, version) for part in parts)
    at = head - 32
    numbers = [int.from_bytes(part[at + 4 : at + 8]) for part in parts]
    assert numbers == [(0xFFFF_FF00 + 1000 * index) % (1 << 32) for index in range(11)]
    flags = [part[at + 13] for part in parts]
    assert (flags[0], {*flags[1:-1]}, flags[-1]) == (CWR, {0}, PSH | FIN)
    if version == 4:
        assert [int.from_bytes(part[18:20]) for part in parts] == [7 + i for i in range(11)]


@pytest.mark.parametrize(
    ("packet", "size", "version", "words"),
    [
        (frame(4, 17, udp(bytes(99))), 50, 4, "not a TCP packet"),
        (frame(6, 6, tcp(bytes(99))), 50, 4, "not a TCP packet over IPv4"),
        (frame(4, 6, tcp(bytes(MAX_SEGMENTS + 1))), 1, 4, "too few"),
        (frame(4, 6, tcp(b""))[:50], 50, 4, "end outside"),
        (frame(4, 6, tcp(b"")[:12] + b"\xf0" + tcp(b"")[13:]), 50, 4, "ends outside"),
        (frame(4, 6, tcp(b"")[:12] + b"\x10" + tcp(b"")[13:]), 50, 4, "ends outside"),
        (b"\0" * 60, 50, 4, "protocol 0x0000"),
    ],
)
def test_what_cannot_be_cut_is_refused(packet, size, version, words) -> None:
    with pytest.raises(OffloadError, match=words):
        list(segment(packet, size, version))


@given(st.binary(max_size=90), st.sampled_from([b"\x08\x00", b"\x86\xdd", b"\x81\x00\0\0\x08\x00"]))
def test_nonsense_is_refused_or_harmless(data: bytes, kind: bytes) -> None:
    packet = bytes(12) + kind + data
    for work in (fill_checksum, lambda p: list(segment(p, 7, 4)), lambda p: list(segment(p, 7, 6))):
        with contextlib.suppress(OffloadError):
            work(packet)
