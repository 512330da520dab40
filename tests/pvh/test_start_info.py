"""hvm_start_info is read back as a guest reads it: by addresses."""

from __future__ import annotations

import struct

from xenemu.pvh.start_info import LoadedModule, encode

AT = 0x20_0000
E820 = [(0, 0x1000, 1), (0x1_0000_0000, 1 << 40, 2)]


def head(data: bytes) -> tuple[int, ...]:
    return struct.unpack_from("<4I4QII", data)


def string(data: bytes, paddr: int) -> bytes:
    return data[paddr - AT :].partition(b"\0")[0]


def test_head():
    data = encode(AT, b"", [], 0xFC001000, E820)
    magic, version, flags, _, _, _, rsdp, _, _, reserved = head(data)
    assert (magic, version, flags, rsdp, reserved) == (0x336EC578, 1, 0, 0xFC001000, 0)


def test_command_line():
    data = encode(AT, b"console=hvc0", [], 0, E820)
    assert string(data, head(data)[5]) == b"console=hvc0"


def test_memory_map():
    data = encode(AT, b"x", [], 0, E820)
    _, _, _, _, _, _, _, paddr, count, _ = head(data)
    at = paddr - AT
    assert list(struct.iter_unpack("<QQII", data[at : at + 24 * count])) == [
        (*one, 0) for one in E820
    ]


def test_no_modules():
    assert head(encode(AT, b"", [], 0, E820))[3:5] == (0, 0)


def test_modules_in_order_with_their_command_lines():
    modules = [LoadedModule(0x5000, 0x1000, None), LoadedModule(0x7000, 0x3000, b"dom0 one")]
    data = encode(AT, b"odd", modules, 0, E820)
    _, _, _, count, paddr, *_ = head(data)
    at = paddr - AT
    first, second = struct.iter_unpack("<QQQQ", data[at : at + 32 * count])
    assert first == (0x5000, 0x1000, 0, 0)
    assert (second[:2], string(data, second[2])) == ((0x7000, 0x3000), b"dom0 one")


def test_everything_is_aligned():
    modules = [LoadedModule(0, 1, b"a"), LoadedModule(0, 1, b"ab")]
    _, _, _, _, modlist, cmdline, _, memmap, _, _ = head(encode(AT, b"12", modules, 0, E820))
    assert [one % 8 for one in (modlist, cmdline, memmap)] == [0, 0, 0]


def test_the_size_does_not_depend_on_addresses():
    near = encode(0, b"x", [LoadedModule(0, 0, b"y")], 0, E820)
    far = encode(AT, b"x", [LoadedModule(1 << 40, 1 << 50, b"y")], 1 << 60, E820)
    assert len(near) == len(far)
