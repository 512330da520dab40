"""dom0/disk: bytes of a disk, in a file and in an overlay."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xenemu.dom0.disk import (
    BLOCK_SIZE,
    BlocksInMemory,
    FileDisk,
    OverlayDisk,
    StreamDisk,
)
from xenemu.dom0.overlay_file import BlocksInFile

SIZE = 6 * BLOCK_SIZE + 1024  # the last block is not whole
CONTENT = bytes(n * 7 & 0xFF for n in range(SIZE))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "disk"
    path.write_bytes(CONTENT)
    return path


@pytest.fixture
def file_disk(path: Path) -> Iterator[FileDisk]:
    descriptor = os.open(path, os.O_RDWR)
    yield FileDisk(descriptor, SIZE)
    os.close(descriptor)


@pytest.fixture
def overlay(file_disk: FileDisk) -> OverlayDisk:
    return OverlayDisk(file_disk, BlocksInMemory())


def views(*sizes: int) -> list[memoryview]:
    return [memoryview(bytearray(size)) for size in sizes]


def read(disk: FileDisk | OverlayDisk, offset: int, *sizes: int) -> bytes:
    disk.read(offset, into := views(*sizes))
    return b"".join(into)


def test_a_file_is_read_and_written_across_views(file_disk: FileDisk, path: Path) -> None:
    assert read(file_disk, 100, 512, 1, 4096) == CONTENT[100:4709]
    file_disk.write(200, [memoryview(b"abc"), memoryview(b"defg")])
    file_disk.flush()
    assert path.read_bytes() == CONTENT[:200] + b"abcdefg" + CONTENT[207:]


def test_more_views_than_the_host_takes_at_once(file_disk: FileDisk) -> None:
    assert read(file_disk, 0, *[4] * 3000) == CONTENT[:12000]
    file_disk.write(1, [memoryview(b"xyz")] * 3000)
    assert read(file_disk, 0, 9002) == CONTENT[:1] + b"xyz" * 3000 + CONTENT[9001:9002]


def test_a_file_that_was_cut_is_an_error(file_disk: FileDisk, path: Path) -> None:
    os.truncate(path, 1000)
    with pytest.raises(OSError, match="shorter than it was"):
        read(file_disk, 900, 200)


def test_a_discard_punches_a_hole(file_disk: FileDisk, path: Path) -> None:
    file_disk.discard(BLOCK_SIZE, 2 * BLOCK_SIZE)
    file_disk.discard(0, 0)
    hole = CONTENT[:BLOCK_SIZE] + bytes(2 * BLOCK_SIZE) + CONTENT[3 * BLOCK_SIZE :]
    assert path.read_bytes() == hole


def test_an_overlay_leaves_the_file_alone(overlay: OverlayDisk, path: Path) -> None:
    overlay.write(BLOCK_SIZE - 3, [memoryview(b"abcdef")])
    overlay.flush()
    assert path.read_bytes() == CONTENT
    assert read(overlay, BLOCK_SIZE - 4, 8) == b"%cabcdef%c" % (
        CONTENT[BLOCK_SIZE - 4],
        CONTENT[BLOCK_SIZE + 3],
    )
    assert read(overlay, 5 * BLOCK_SIZE, BLOCK_SIZE) == CONTENT[5 * BLOCK_SIZE : 6 * BLOCK_SIZE]


def test_a_discard_in_an_overlay_takes_no_room(overlay: OverlayDisk) -> None:
    overlay.write(0, [memoryview(b"a" * 2 * BLOCK_SIZE)])
    overlay.discard(100, 2 * BLOCK_SIZE)  # only the second block is whole
    assert read(overlay, 0, 3 * BLOCK_SIZE) == (
        b"a" * BLOCK_SIZE + bytes(BLOCK_SIZE) + CONTENT[2 * BLOCK_SIZE : 3 * BLOCK_SIZE]
    )
    huge = OverlayDisk(FileDisk(-1, 1 << 60), overlay.blocks)
    huge.discard(0, 1 << 60)
    assert isinstance(overlay.blocks, BlocksInMemory)
    assert overlay.blocks.blocks.keys() == {0, 1}
    assert read(overlay, 0, BLOCK_SIZE) == bytes(BLOCK_SIZE)


def test_what_was_kept_comes_back(overlay: OverlayDisk) -> None:
    overlay.write(0, [memoryview(b"first")])
    kept = overlay.save()
    for _ in range(2):
        overlay.write(2, [memoryview(b"second")])
        overlay.write(3 * BLOCK_SIZE, [memoryview(b"third")])
        overlay.restore(kept)
        assert read(overlay, 0, SIZE) == b"first" + CONTENT[5:]


def test_a_stream_is_read(path: Path) -> None:
    with path.open("rb") as stream:
        disk = OverlayDisk(StreamDisk(stream, SIZE), BlocksInMemory())
        disk.write(5, [memoryview(b"new")])
        assert read(disk, 0, 100, SIZE - 100) == CONTENT[:5] + b"new" + CONTENT[8:]


@pytest.mark.parametrize("kept", ["memory", "file"])
@given(
    st.lists(
        st.tuples(st.integers(0, SIZE - 1), st.integers(1, 3 * BLOCK_SIZE), st.integers(0, 255)),
        max_size=12,
    )
)
def test_an_overlay_is_as_a_file(
    tmp_path_factory: pytest.TempPathFactory, kept: str, writes: list[tuple[int, int, int]]
) -> None:
    expected = bytearray(CONTENT)
    path = tmp_path_factory.mktemp("overlay") / "disk"
    path.write_bytes(CONTENT)
    with path.open("rb") as file, path.with_name("blocks").open("w+b") as into:
        in_file = BlocksInFile.open(into.fileno(), SIZE, 0)
        blocks = BlocksInMemory() if kept == "memory" else in_file
        disk = OverlayDisk(FileDisk(file.fileno(), SIZE), blocks)
        for offset, size, byte in writes:
            data = bytes([byte]) * min(size, SIZE - offset)
            disk.write(offset, [memoryview(data)[:100], memoryview(data)[100:]])
            expected[offset : offset + len(data)] = data
            assert read(disk, offset // 2, 300) == expected[offset // 2 : offset // 2 + 300]
        assert read(disk, 0, SIZE) == expected
        disk.flush()
        if kept == "file":
            disk.blocks = BlocksInFile.open(into.fileno(), SIZE, 0)
            assert read(disk, 0, SIZE) == expected
