"""A recording as a file: cut anywhere, damaged, of a stranger."""

from __future__ import annotations

import os
import random
import zlib
from pathlib import Path

import msgspec
import pytest

from xenemu.errors import UsageError
from xenemu.machine import DomainConfig
from xenemu.outcome import End
from xenemu.recording.events import Answered, Any, Arrived, Changed, Checked, Ended, Waited
from xenemu.recording.file import FRAME, Header, Writer, read
from xenemu.recording.start import start_of
from xenemu.snapfile import MAGIC, RECORDING_MAGIC


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    """A file of 40 events, in flushes of 1 to 4."""
    kernel = tmp_path / "kernel"
    kernel.write_bytes(b"a kernel")
    path = tmp_path / "recording"
    with path.open("wb") as file:
        writer = Writer(file.write, Header(start=start_of(kernel, "pv", DomainConfig(64 << 20))))
        for number in range(40):
            data = random.Random(number).randbytes(number * 10)
            writer.note(Arrived(number, number * 100, number * 200, "console", data))
            if number % 4 == 0:
                writer.flush()
        writer.flush()
    return path


def test_what_was_written_is_read(recording: Path) -> None:
    found = read(recording)
    assert [event.turns for event in found.events] == list(range(40))
    assert found.events[7] == Arrived(7, 700, 1400, "console", random.Random(7).randbytes(70))
    assert found.ended is None
    assert found.header.start.config.memory == 64 << 20


def test_answers_are_apart_by_share(recording: Path) -> None:
    with recording.open("wb") as file:
        writer = Writer(file.write, Header(start=start_of(recording.parent / "kernel", "pv",
                                                          DomainConfig(1 << 20))))  # fmt: skip
        writer.note(Answered(1, 2, 3, "a", b"x"))
        writer.note(Checked(1, 2, 3, 0, 5, b"state"))
        writer.note(Answered(1, 2, 3, "b", b"y"))
        writer.flush()
    found = read(recording)
    assert [event.data for event in found.answers["b"]] == [b"y"]
    assert len(found.events) == 1


def test_a_file_cut_anywhere_is_read_up_to_the_cut(recording: Path) -> None:
    data, whole, counts = recording.read_bytes(), read(recording), set()
    begins = len(RECORDING_MAGIC) + FRAME.size
    begins += FRAME.unpack_from(data, len(RECORDING_MAGIC))[0]
    for size in range(0, len(data), 7):
        recording.write_bytes(data[:size])
        if size < begins:
            with pytest.raises(UsageError):
                read(recording)
            continue
        events = read(recording).events
        assert events == whole.events[: len(events)]
        counts.add(len(events))
    assert len(counts) > 8  # of the 11 flushes


def test_flipped_bits_are_refused_or_harmless(recording: Path) -> None:
    data, whole, chance = recording.read_bytes(), read(recording), random.Random(1)
    refused = 0
    for _ in range(1000):
        spoilt = bytearray(data)
        spoilt[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        recording.write_bytes(spoilt)
        try:
            found = read(recording)
        except UsageError as error:
            assert str(error).startswith(f"{recording}: ")
            refused += 1
        else:
            assert found.events == whole.events[: len(found.events)]
    assert refused > 500


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ([], "no recording that this xenemu can use"),
        (None, "no recording that this xenemu can use"),
        ({"version": "0.0.9"}, "made by xenemu 0.0.9"),
        ({"start": 1}, "no recording that this xenemu can use"),
        ({"start": {}}, "no recording that this xenemu can use"),
    ],
)
def test_a_strangers_header_is_refused(recording: Path, changes, words) -> None:
    data = recording.read_bytes()
    start = len(RECORDING_MAGIC)
    size, _ = FRAME.unpack_from(data, start)
    header = msgspec.msgpack.decode(data[start + FRAME.size :][:size])
    header = header | changes if isinstance(changes, dict) else changes
    encoded = msgspec.msgpack.encode(header)
    recording.write_bytes(RECORDING_MAGIC + FRAME.pack(len(encoded), zlib.crc32(encoded)) + encoded)
    with pytest.raises(UsageError, match=words):
        read(recording)


@pytest.mark.parametrize(
    "event",
    [
        Arrived(-1, 0, 0, "console", b""),
        Checked(1, -1, 0, 0, 0, b""),
        Waited(1, 0, 0, -1, True),
        Changed(1, 0, 0, (0, None), None),
        Changed(1, 0, 0, (1 << 63, None), None),
        Changed(1, 0, 0, (1, -1), None),
        Changed(1, 0, 0, None, -1),
        Ended(1, 0, 0, End.POWEROFF, "", "", 1000, 0, 0, 0, b""),
        Ended(1, 0, 0, End.POWEROFF, "", "", -5, 0, 0, 0, b""),
    ],
)
def test_an_event_that_no_run_has_is_refused(recording: Path, event) -> None:
    start = read(recording).header.start
    with recording.open("wb") as file:
        writer = Writer(file.write, Header(start=start))
        writer.note(event)
        writer.flush()
    with pytest.raises(UsageError, match="no recording that this xenemu can use"):
        read(recording)


def test_no_wait_comes_to_a_time_that_no_clock_has() -> None:
    for until_ns, fits in ((1 << 61, True), (1 << 62, False), (1 << 70, False)):
        said = msgspec.json.encode(["Waited", 1, 1, 1, until_ns, True])
        if fits:
            msgspec.json.decode(said, type=Any)
        else:
            with pytest.raises(msgspec.MsgspecError):
                msgspec.json.decode(said, type=Any)


def test_a_fifo_that_nobody_writes_to_is_no_recording(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(UsageError, match="this is no recording"):
        read(tmp_path / "fifo")


def test_a_snapshot_is_told_from_a_recording(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(MAGIC + bytes(100))
    with pytest.raises(UsageError, match="file: a snapshot, no recording: xenemu resume goes on"):
        read(tmp_path / "file")
