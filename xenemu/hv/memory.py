"""Machine memory: one private mapping that the guest, the engine and the hypervisor share."""

from __future__ import annotations

from collections.abc import Iterable
from mmap import mmap
from typing import Final

from xenemu.hv.page_info import RECORD
from xenemu.mapping import anonymous
from xenemu.x86.paging import ENTRIES, PAGE_SHIFT, PAGE_SIZE, Maddr, Mfn

ZERO_PAGE: Final = bytes(PAGE_SIZE)


class Memory:
    """RAM of `nr_frames` frames from machine address 0.

    `bytes`, `dwords` and `words` are live views of it (8, 32 and 64 bits an item). `page_info` has
    a record for each frame, all zeroes until there is a `FrameTable`. `code` has a byte for each
    frame, which is not zero once an instruction was fetched from the frame. If the hypervisor
    writes to such a frame, the frame goes into `stale_code`. The engine drops its translations
    before the guest runs again.
    """

    def __init__(self, nr_frames: int, mapping: mmap | None = None) -> None:
        """`mapping` is what holds it, of just its size; without one, it is all zeroes."""
        self.nr_frames = nr_frames
        self.mapping = anonymous(nr_frames << PAGE_SHIFT) if mapping is None else mapping
        self.bytes = memoryview(self.mapping)
        self.dwords = self.bytes.cast("I")
        self.words = self.bytes.cast("Q")
        self.page_info = anonymous(nr_frames * RECORD.size)
        self.code = bytearray(nr_frames)
        self.stale_code: set[int] = set()

    def contains(self, mfn: int) -> bool:
        """Whether `mfn` names RAM."""
        return 0 <= mfn < self.nr_frames

    def read(self, maddr: Maddr, size: int) -> bytes:
        """Copy `size` bytes; the range must lie in RAM (an IndexError is our bug)."""
        if not 0 <= maddr <= maddr + size <= len(self.bytes):
            raise IndexError(f"machine range {maddr:#x}+{size:#x} is outside memory")
        return bytes(self.bytes[maddr : maddr + size])

    def write(self, maddr: Maddr, data: bytes | bytearray | memoryview) -> None:
        """Store `data`; the range must lie in RAM (an IndexError is our bug)."""
        end = maddr + len(data)
        if not 0 <= maddr <= end <= len(self.bytes):
            raise IndexError(f"machine range {maddr:#x}+{len(data):#x} is outside memory")
        self.bytes[maddr:end] = data
        if maddr >> PAGE_SHIFT == end - 1 >> PAGE_SHIFT:
            if self.code[maddr >> PAGE_SHIFT]:
                self.stale_code.add(maddr >> PAGE_SHIFT)
        else:
            self.wrote(maddr, len(data))

    def wrote(self, maddr: Maddr, size: int) -> None:
        """Somebody has stored `size` bytes through `bytes`, in RAM."""
        self.wrote_in(range(maddr >> PAGE_SHIFT, (maddr + size + PAGE_SIZE - 1) >> PAGE_SHIFT))

    def wrote_in(self, mfns: Iterable[int]) -> None:
        """Somebody has stored something in these frames, through `bytes`."""
        for mfn in mfns:
            if self.code[mfn]:
                self.stale_code.add(mfn)

    def read_uint(self, maddr: Maddr, size: int) -> int:
        """Read a little-endian unsigned integer of `size` bytes."""
        if size == 4 and not maddr & 3 and maddr >= 0:
            return self.dwords[maddr >> 2]
        return int.from_bytes(self.read(maddr, size), "little")

    def write_uint(self, maddr: Maddr, size: int, value: int) -> None:
        """Write a little-endian unsigned integer of `size` bytes, reduced modulo its width."""
        if size == 4 and not maddr & 3 and maddr >= 0:
            self.dwords[maddr >> 2] = value & 0xFFFF_FFFF
            if self.code[maddr >> PAGE_SHIFT]:
                self.stale_code.add(maddr >> PAGE_SHIFT)
            return
        self.write(maddr, (value & ((1 << 8 * size) - 1)).to_bytes(size, "little"))

    def table(self, mfn: Mfn) -> memoryview:
        """A live view of a frame as 512 page-table entries (or descriptors)."""
        return self.words[mfn * ENTRIES : (mfn + 1) * ENTRIES]

    def clear_frame(self, mfn: Mfn) -> None:
        """Fill a frame with zeroes."""
        self.write(Maddr(mfn << PAGE_SHIFT), ZERO_PAGE)

    def copy_frame(self, dst: Mfn, src: Mfn) -> None:
        """Copy one frame over another."""
        start = src << PAGE_SHIFT
        self.write(Maddr(dst << PAGE_SHIFT), self.bytes[start : start + PAGE_SIZE])
