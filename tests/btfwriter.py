"""Write the type information of a kernel, `.BTF`, sound or broken on purpose."""

from __future__ import annotations

import struct

INT, PTR, ARRAY, STRUCT, UNION, ENUM, FWD, TYPEDEF = range(1, 9)
CONST, VAR, DATASEC = 10, 14, 15
HEADER = 24


class Types:
    """Types by number: what adds one gives its number."""

    def __init__(self) -> None:
        self.strings = bytearray(b"\0")
        self.types = bytearray()
        self.count = 0

    def string(self, text: str) -> int:
        if not text:
            return 0
        at = len(self.strings)
        self.strings += text.encode() + b"\0"
        return at

    def add(self, kind: int, name: str, size: int, rest: bytes = b"", count: int = 0) -> int:
        """Add a type of any kind; `size` may be a type's number."""
        info = kind << 24 | count & 0xFFFF | (count >> 16) << 31
        self.types += struct.pack("<III", self.string(name), info, size) + rest
        self.count += 1
        return self.count

    def number(self, size: int) -> int:
        return self.add(INT, f"u{size * 8}", size, struct.pack("<I", size * 8))

    def pointer(self) -> int:
        return self.add(PTR, "", 0)

    def array(self, element: int, count: int) -> int:
        return self.add(ARRAY, "", 0, struct.pack("<III", element, 0, count))

    def alias(self, target: int, name: str = "", kind: int = TYPEDEF) -> int:
        return self.add(kind, name, target)

    def struct(
        self,
        name: str,
        size: int,
        *members: tuple[str, int, int],
        kind: int = STRUCT,
        bits: int = 0,
    ) -> int:
        """Add a struct of members (name, type, byte offset); with `bits`, of bit fields' kind."""
        rest = b"".join(
            struct.pack("<III", self.string(member), number, bits << 24 | offset * 8)
            for member, number, offset in members
        )
        return self.add(kind, name, size, rest, len(members) | (1 << 16 if bits else 0))

    def build(self, magic: int = 0xEB9F) -> bytes:
        sizes = (0, len(self.types), len(self.types), len(self.strings))
        head = struct.pack("<HBBIIIII", magic, 1, 0, HEADER, *sizes)
        return head + bytes(self.types) + bytes(self.strings)


def module_types(layout: str = "mem") -> Types:
    """The types that say where a module's things are; `layout` is that before or since 6.4."""
    types = Types()
    word, half, letters = types.pointer(), types.number(4), types.array(types.number(1), 56)
    head = types.struct("list_head", 16, ("next", word, 0), ("prev", word, 8))
    arch = types.struct(
        "mod_arch_specific", 24,
        ("num_orcs", half, 0), ("orc_unwind_ip", word, 8), ("orc_unwind", word, 16),
    )  # fmt: skip
    if layout == "mem":
        part = types.struct("module_memory", 16, ("base", word, 0), ("size", half, 8))
        members = [("mem", types.array(part, 2), 96)]
    else:
        part = types.struct(
            "module_layout", 16, ("base", word, 0), ("size", half, 8), ("text_size", half, 12)
        )
        members = [("core_layout", part, 96), ("init_layout", part, 112)]
    inner = types.struct("", 24, ("arch", arch, 0))
    types.struct(
        "module", 192,
        ("state", half, 0), ("list", head, 8), ("name", letters, 24), *members,
        ("kallsyms", word, 128), ("", inner, 136),
    )  # fmt: skip
    types.struct(
        "mod_kallsyms",
        32,
        ("symtab", word, 0),
        ("num_symtab", half, 8),
        ("strtab", word, 16),
        ("typetab", word, 24),
    )
    comm = types.array(types.number(1), 16)
    types.struct("task_struct", 64, ("pid", half, 8), ("comm", comm, 16))
    return types
