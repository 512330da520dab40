"""What a guest leaves to its network card: checksums, and cutting a large TCP packet into segments.

A wire carries whole packets only. So what a guest left out is filled in before a packet goes there,
as Linux does in software for a card that cannot.

In Linux: xenvif_set_skb_gso and skb_checksum_setup, net/core/gso.c, net/ipv4/tcp_offload.c
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from xenemu.records import dataclass

ETH_HLEN: Final = 14
VLANS: Final = (0x8100, 0x88A8)
IPV4, IPV6 = 0x0800, 0x86DD
TCP, UDP = 6, 17
CHECKSUM_AT: Final = {TCP: 16, UDP: 6}  # in their headers
MAX_SEGMENTS: Final = 1024  # TCP's smallest data, 88 bytes, makes 745 of a packet
SMALLEST: Final = {TCP: 20, UDP: 8}
EXTENSIONS: Final = (0, 43, 60)  # of IPv6 before the transport: options and routing
FIN, PSH, CWR = 0x01, 0x08, 0x80


class OffloadError(ValueError):
    """A packet asks for what cannot be done: `str()` says why."""


@dataclass(frozen=True)
class Headers:
    """Where the headers of a frame begin, and which protocol the last of them is of."""

    version: int  # 4 or 6
    network: int
    transport: int
    protocol: int


def fill_checksum(frame: bytes) -> bytes:
    """Compute the checksum of the TCP or UDP packet in a frame; OffloadError if there is none."""
    packet = bytearray(frame)
    _fill_transport(packet, _parse(packet))
    return bytes(packet)


def segment(frame: bytes, size: int, version: int) -> Iterator[bytes]:
    """Cut a TCP packet so that no part has more than `size` bytes of data; with all checksums.

    OffloadError: it is no TCP packet of that IP version. DIVERGES: or the parts are more than
    MAX_SEGMENTS, which would take long.
    """
    headers = _parse(frame)
    if headers.protocol != TCP or headers.version != version:
        raise OffloadError(f"not a TCP packet over IPv{version}, which it says that it is")
    start = headers.transport + (frame[headers.transport + 12] >> 4) * 4
    if start < headers.transport + SMALLEST[TCP] or start > len(frame):
        raise OffloadError("the TCP header ends outside of the packet")
    if len(frame) - start > size * MAX_SEGMENTS:
        raise OffloadError(f"{size} bytes in a segment are too few for {len(frame) - start}")
    number = int.from_bytes(frame[headers.transport + 4 :][:4])
    flags = frame[headers.transport + 13]
    for index, at in enumerate(range(start, max(len(frame), start + 1), size)):
        part = bytearray(frame[:start] + frame[at : at + size])
        is_last = at + size >= len(frame)
        _put(part, headers.transport + 4, 4, number + at - start)
        part[headers.transport + 13] = (
            flags & ~(0 if is_last else FIN | PSH) & ~(CWR if index else 0)
        )
        _fill_network(part, headers, index)
        _fill_transport(part, headers)
        yield bytes(part)


def checksum(data: bytes | bytearray) -> int:
    """The Internet checksum: RFC 1071's sum of 16-bit words, which is a remainder of 65535."""
    padded = bytes(data) + bytes(len(data) & 1)
    return 0xFFFF - (int.from_bytes(padded) % 0xFFFF or (0xFFFF if any(padded) else 0))


def _parse(frame: bytes | bytearray) -> Headers:
    at = ETH_HLEN
    kind = int.from_bytes(frame[at - 2 : at])
    while kind in VLANS:
        at += 4
        kind = int.from_bytes(frame[at - 2 : at])
    if kind == IPV4:
        length = (frame[at] & 0x0F) * 4 if at < len(frame) else 0
        found = Headers(4, at, at + length, frame[at + 9] if at + 20 <= len(frame) else 0)
        good = length >= 20
    elif kind == IPV6:
        protocol, transport = _skip_extensions(frame, at)
        found, good = Headers(6, at, transport, protocol), True
    else:
        raise OffloadError(f"protocol {kind:#06x} has no checksum that could be left out")
    if not good or found.protocol not in SMALLEST:
        raise OffloadError("neither TCP nor UDP over IP")
    if found.transport + SMALLEST[found.protocol] > len(frame):
        raise OffloadError("its headers end outside of the packet")
    return found


def _skip_extensions(frame: bytes | bytearray, at: int) -> tuple[int, int]:
    """The protocol after IPv6's headers, and where its header begins."""
    protocol, transport = frame[at + 6] if at + 40 <= len(frame) else -1, at + 40
    while protocol in EXTENSIONS and transport + 8 <= len(frame):
        protocol, transport = frame[transport], transport + (frame[transport + 1] + 1) * 8
    return protocol, transport


def _fill_network(packet: bytearray, headers: Headers, index: int) -> None:
    """Make the IP header that of segment `index`."""
    at = headers.network
    if headers.version == 6:
        _put(packet, at + 4, 2, len(packet) - at - 40)
        return
    _put(packet, at + 2, 2, len(packet) - at)
    _put(packet, at + 4, 2, int.from_bytes(packet[at + 4 : at + 6]) + index)
    _put(packet, at + 10, 2, 0)
    _put(packet, at + 10, 2, checksum(packet[at : headers.transport]))


def _fill_transport(packet: bytearray, headers: Headers) -> None:
    at, transport, protocol = headers.network, headers.transport, headers.protocol
    first, size = (at + 12, 8) if headers.version == 4 else (at + 8, 32)
    end = len(packet)
    if headers.version == 4:  # what comes after the IP packet is padding
        end = min(end, max(at + int.from_bytes(packet[at + 2 : at + 4]), transport))
    pseudo = packet[first : first + size] + (end - transport).to_bytes(4) + protocol.to_bytes(4)
    where = transport + CHECKSUM_AT[protocol]
    _put(packet, where, 2, 0)
    found = checksum(pseudo + packet[transport:end])
    _put(packet, where, 2, found or (0xFFFF if protocol == UDP else 0))


def _put(packet: bytearray, at: int, size: int, value: int) -> None:
    packet[at : at + size] = (value & ((1 << 8 * size) - 1)).to_bytes(size)
