"""gdb/rsp: packets are cut out of what arrives, and nothing else is."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xenemu.gdb.rsp import PACKET_SIZE, Decoder, Packet, Signal, encode, escape, number, unescape


def decode(*pieces):
    decoder = Decoder()
    return [event for piece in pieces for event in decoder.feed(piece)]


def test_a_packet_has_its_checksum():
    assert encode(b"OK") == b"$OK#9a"


def test_what_is_special_is_escaped():
    assert escape(b"a#b$c}d*e") == b"a}\x03b}\x04c}]d}\ne"


@given(st.binary())
def test_escapes_are_undone(data):
    assert unescape(escape(data)) == data


@given(st.binary(), st.integers(0, 20))
def test_a_packet_arrives_however_it_is_cut(data, at):
    sent = encode(data)
    assert decode(sent[:at], sent[at:]) == [Packet(data)]


def test_what_comes_between_packets():
    assert decode(b"+$g#67\x03-$c#63") == [
        Signal.ACK,
        Packet(b"g"),
        Signal.INTERRUPT,
        Signal.NACK,
        Packet(b"c"),
    ]


def test_noise_between_packets_is_dropped():
    assert decode(b"\r\nxyz$g#67") == [Packet(b"g")]


@pytest.mark.parametrize("sent", [b"$g#66", b"$g#zz", b"$g#6", b"$#01"])
def test_a_wrong_checksum_is_told(sent):
    assert decode(sent, b"$g#67")[:1] == [Signal.DAMAGED]


def test_a_damaged_packet_takes_nothing_else_with_it():
    assert decode(b"$g#00$c#63") == [Signal.DAMAGED, Packet(b"c")]


def test_the_longest_packet():
    payload = b"x" * PACKET_SIZE
    assert decode(encode(payload)) == [Packet(payload)]


@pytest.mark.parametrize("piece", [1 << 20, 1000])
def test_a_packet_that_is_too_long_is_dropped_to_its_end(piece):
    sent = encode(b"x" * (PACKET_SIZE + 1)) + b"$g#67"
    pieces = [sent[at : at + piece] for at in range(0, len(sent), piece)]
    assert decode(*pieces) == [Signal.TOO_LONG, Packet(b"g")]


def test_a_packet_without_an_end_is_not_kept():
    decoder = Decoder()
    for _ in range(64):
        assert list(decoder.feed(b"$" + b"x" * PACKET_SIZE)) == []
        assert len(decoder._buffer) <= 2 * PACKET_SIZE


@pytest.mark.parametrize("text", [b"", b"-1", b"0x10", b"1_0", b" 1", b"g"])
def test_what_is_no_hex_number(text):
    with pytest.raises(ValueError, match="hex"):
        number(text)
