"""Packets for tests: TCP and UDP in Ethernet frames, and whether their checksums are right."""

from __future__ import annotations

import struct
from ipaddress import ip_address

MACS = bytes.fromhex("00163e000001 00163e000002")
PAIRS = {4: ("10.0.0.1", "10.0.0.2"), 6: ("fd00::1", "fd00::2")}


def add(data: bytes) -> int:
    """RFC 1071, word by word."""
    total = 0
    for (word,) in struct.iter_unpack(">H", data + bytes(len(data) & 1)):
        total += word
        total = (total & 0xFFFF) + (total >> 16)
    return total


def frame(version: int, protocol: int, transport: bytes, ident: int = 7) -> bytes:
    """A frame with one packet, whose IP header is complete."""
    source, destination = (ip_address(one).packed for one in PAIRS[version])
    if version == 6:
        head = struct.pack(">IHBB", 6 << 28, len(transport), protocol, 64) + source + destination
        return MACS + b"\x86\xdd" + head + transport
    size = 20 + len(transport)
    head = struct.pack(">BBHHHBBH", 0x45, 0, size, ident, 0, 64, protocol, 0) + source + destination
    head = head[:10] + (0xFFFF - add(head)).to_bytes(2) + head[12:]
    return MACS + b"\x08\x00" + head + transport


def tcp(data: bytes, seq: int = 1000, flags: int = 0x18) -> bytes:
    """A TCP segment with options and no checksum."""
    return struct.pack(">HHIIBBHHH", 1, 2, seq, 5, 8 << 4, flags, 99, 0, 0) + b"\x01" * 12 + data


def udp(data: bytes) -> bytes:
    """A UDP datagram with no checksum."""
    return struct.pack(">HHHH", 1, 2, 8 + len(data), 0) + data


def is_right(packet: bytes, version: int) -> bool:
    """Whether all checksums of a frame are right."""
    if version == 4:
        size = int.from_bytes(packet[16:18])
        head, transport = packet[14:34], packet[34 : 14 + size]
        pseudo, protocol = head[12:], head[9]
        good = add(head) == 0xFFFF
    else:
        head, transport = packet[14:54], packet[54:]
        pseudo, protocol, good = head[8:], head[6], int.from_bytes(head[4:6]) == len(transport)
    total = add(pseudo + len(transport).to_bytes(4) + protocol.to_bytes(4) + transport)
    return good and total == 0xFFFF
