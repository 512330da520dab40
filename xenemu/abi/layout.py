"""Declare C structs of Xen's ABI once, for 64- and 32-bit guests.

::

    class evtchn_alloc_unbound(Struct, size=(8, 8)):
        dom: U16
        remote_dom: U16
        port: U32

A struct becomes a dataclass when it is first made, and is laid out when a layout is first asked
for: most runs use few of the structs, and all of them would take a third of the start-up. `size` is
the struct's `sizeof`, for 64-bit and for 32-bit guests. A wrong size raises an exception when the
struct is laid out, and in a test of all structs.

In the 32-bit ABI a ``uint64_t`` is aligned to 4 bytes, as in i386's psABI. `U64A` is Xen's
``uint64_aligned_t``, which is aligned to 8 in both. Declare a union as `blob(size, align)`. The
code that knows which member of the union is in use takes it apart.
"""

from __future__ import annotations

import struct
import typing
from typing import Annotated, Any, ClassVar, Self, dataclass_transform

from xenemu.records import dataclass


@dataclass(frozen=True)
class Scalar:
    """A C integer: `struct` codes and alignments for widths of 8 and 4 bytes."""

    code64: str
    code32: str
    align64: int
    align32: int

    def codes(self, width: int) -> tuple[str, int]:
        return (self.code64, self.align64) if width == 8 else (self.code32, self.align32)


@dataclass(frozen=True)
class Blob:
    """Raw bytes of a fixed size: a char array, or a union (`size` per width)."""

    size64: int
    size32: int
    align64: int
    align32: int

    def codes(self, width: int) -> tuple[str, int]:
        size, align = (self.size64, self.align64) if width == 8 else (self.size32, self.align32)
        return f"{size}s", align


def _scalar(code: str) -> Scalar:
    size = struct.calcsize("=" + code)
    return Scalar(code, code, size, min(size, 4))


U8 = Annotated[int, _scalar("B")]
S8 = Annotated[int, _scalar("b")]
U16 = Annotated[int, _scalar("H")]
S16 = Annotated[int, _scalar("h")]
U32 = Annotated[int, _scalar("I")]
S32 = Annotated[int, _scalar("i")]
U64 = Annotated[int, _scalar("Q")]
S64 = Annotated[int, _scalar("q")]
U64A = Annotated[int, Scalar("Q", "Q", 8, 8)]
ULONG = Annotated[int, Scalar("Q", "I", 8, 4)]
SLONG = Annotated[int, Scalar("q", "i", 8, 4)]
HANDLE = ULONG  # XEN_GUEST_HANDLE(t): a guest virtual address
HANDLE64 = U64A  # XEN_GUEST_HANDLE_64(t), as the tools interfaces have it


def blob(size: int, align: int = 1, size32: int | None = None, align32: int | None = None) -> Blob:
    """Describe raw bytes; use as ``Annotated[bytes, blob(16, 8)]``."""
    return Blob(
        size,
        size if size32 is None else size32,
        align,
        min(align, 4) if align32 is None else align32,
    )


@dataclass(frozen=True)
class StructLayout:
    """Where the fields of a struct lie for one guest width."""

    packer: struct.Struct
    offsets: dict[str, int]
    size: int


class _Layouts(dict[int, StructLayout]):
    """A struct's layouts by width, made when first asked for; TypeError: of another size."""

    def __init__(self, cls: type[Struct], size: tuple[int, int]) -> None:
        super().__init__()
        self._cls, self._sizes = cls, dict(zip((8, 4), size, strict=True))

    def __missing__(self, width: int) -> StructLayout:
        hints = {
            name: hint
            for name, hint in typing.get_type_hints(self._cls, include_extras=True).items()
            if typing.get_origin(hint) is not ClassVar
        }
        layout = _lay_out(self._cls.__name__, hints, width, self._sizes[width])
        return self.setdefault(width, layout)


@dataclass_transform()
class Struct:
    """Base of ABI structs, which are dataclasses without the decorator: see the module's example.

    The functions of `dataclasses` know a class only after its first instance was made.
    `layout(width).offsets` has its fields at any time.
    """

    _layouts: ClassVar[_Layouts]

    def __init_subclass__(cls, size: tuple[int, int]) -> None:
        cls._layouts = _Layouts(cls, size)

    def __init__(self, *values: Any, **named: Any) -> None:
        """Make the first instance of the class; later ones are made by the dataclass's own."""
        cls: Any = dataclass(type(self))
        cls.__init__(self, *values, **named)

    @classmethod
    def layout(cls, width: int) -> StructLayout:
        """The field offsets and size for a guest whose ``unsigned long`` has `width` bytes."""
        return cls._layouts[width]

    @classmethod
    def sizeof(cls, width: int) -> int:
        return cls._layouts[width].size

    @classmethod
    def offsetof(cls, field: str, width: int) -> int:
        return cls._layouts[width].offsets[field]

    @classmethod
    def unpack(cls, width: int, data: bytes | bytearray | memoryview) -> Self:
        """Decode `sizeof(width)` bytes."""
        return cls(*cls._layouts[width].packer.unpack(data))

    def pack(self, width: int) -> bytes:
        """Encode; integers are reduced modulo their field's size as C assignment does."""
        layout = self._layouts[width]
        values = tuple([getattr(self, name) for name in layout.offsets])
        try:
            return layout.packer.pack(*values)
        except struct.error:
            return layout.packer.pack(*_wrapped(type(self), width, values))


def _wrapped(cls: type[Struct], width: int, values: tuple[Any, ...]) -> tuple[Any, ...]:
    """Reduce integers that do not fit their fields."""
    hints = typing.get_type_hints(cls, include_extras=True)
    codes = [hints[name].__metadata__[0].codes(width)[0] for name in cls.layout(width).offsets]
    return tuple(
        _reduce(value, code) if isinstance(value, int) else value
        for value, code in zip(values, codes, strict=True)
    )


def _reduce(value: int, code: str) -> int:
    bits = 8 * struct.calcsize("=" + code)
    value &= (1 << bits) - 1
    return value - (1 << bits) if code.islower() and value >> (bits - 1) else value


def _lay_out(name: str, hints: dict[str, Any], width: int, want: int) -> StructLayout:
    fmt, offset, biggest, offsets = "<", 0, 1, {}
    for field, hint in hints.items():
        code, align = hint.__metadata__[0].codes(width)
        padding = -offset % align
        if padding:
            fmt += f"{padding}x"
        offset += padding
        offsets[field] = offset
        fmt += code
        offset += struct.calcsize("=" + code)
        biggest = max(biggest, align)
    padding = -offset % biggest
    if padding:
        fmt += f"{padding}x"
    offset += padding
    if offset != want:
        raise TypeError(f"struct {name} has {offset} bytes at width {width}, not {want}")
    return StructLayout(struct.Struct(fmt), offsets, offset)
