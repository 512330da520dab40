"""A record for each machine frame: its owner, what it is used as, and how often.

The records lie one after another in one buffer (`Memory.page_info`). The C shim reads them,
too: cpu/native/page_info.def is the same struct, and the engine compares both when it starts. The
model keeps a declaration of its own because it also runs without the shim, in tests.

In Xen: include/asm-x86/mm.h (struct page_info).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from mmap import mmap
from typing import Final, Literal

# Each field's format, as the struct module has it, in the order of the record.
FIELDS: Final[dict[str, Literal["B", "H", "I"]]] = {
    "count": "I",  # general references
    "type_count": "I",  # those that rely on the frame's type
    "owner": "H",  # a domid
    "type": "B",  # PGT_*
    "flags": "B",  # PGC_* and PGT_pinned
}
AT_ONCE: Final = 1 << 12  # frames
RECORD: Final = struct.Struct("<" + "".join(FIELDS.values()))


def places() -> dict[str, tuple[int, int]]:
    """The offset and size of each field of a record, in bytes."""
    found, offset = {}, 0
    for name, kind in FIELDS.items():
        size = struct.calcsize(kind)
        found[name] = (offset, size)
        offset += size
    return found


def pieces(frames: range) -> Iterator[range]:
    """Frames, so many at a time that lists of them do not make the process larger for good."""
    for start in range(frames.start, frames.stop, AT_ONCE):
        yield range(start, min(start + AT_ONCE, frames.stop))


def fill(records: mmap, frames: range, record: bytes) -> None:
    """Write the same record for all these frames."""
    for piece in pieces(frames):
        start, stop = piece.start * RECORD.size, piece.stop * RECORD.size
        records[start:stop] = record * len(piece)


def view(records: mmap, name: str) -> memoryview:
    """One field of all records, live, indexed by mfn."""
    offset, size = places()[name]
    return memoryview(records).cast("B").cast(FIELDS[name])[offset // size :: RECORD.size // size]
