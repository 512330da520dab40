"""--wallclock: what the guest's wall clock shows at first."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

import elfwriter
from xenemu.cli.clock_options import parse_wallclock
from xenemu.errors import UsageError
from xenemu.image import load
from xenemu.image.built import built
from xenemu.machine import DomainConfig

NOWHERE = Path("none")


@pytest.fixture
def banner(tmp_path):
    """A function from a banner to the path of a kernel that has it."""

    def banner(text: str) -> Path:
        path = tmp_path / "kernel"
        notes = elfwriter.Phdr(b"".join(elfwriter.PV_NOTES), elfwriter.PT_NOTE, paddr=0, vaddr=0)
        code = elfwriter.Phdr(b"\0Linux version %d\0" + text.encode() + b"\n\0", memsz=0x2000)
        path.write_bytes(elfwriter.elf([code, notes]))
        return path

    return banner


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("2026-11-29", 1_795_910_400),
        ("2026-11-29T18:35:00Z", 1_795_977_300),
        ("2026-11-29T18:35", 1_795_977_300),
        ("2026-11-29T19:35:00+01:00", 1_795_977_300),
        ("2400-01-01", 13_569_465_600),
    ],
)
def test_a_time(text, seconds):
    assert parse_wallclock("--wallclock", text, NOWHERE) == seconds * 10**9


def test_without_it_and_now():
    assert parse_wallclock("--wallclock", None, NOWHERE) == DomainConfig.wallclock_ns
    before = time.time_ns()
    assert before <= parse_wallclock("--wallclock", "now", NOWHERE) <= time.time_ns()
    micro = parse_wallclock("--wallclock", "2026-11-29T18:35:00.123456Z", NOWHERE)
    assert micro == 1_795_977_300_123_456_000


@pytest.mark.parametrize("text", ["", "never", "12:00", "1970-01-01", "2501-01-01", "9999-12-31"])
def test_what_is_no_time(text):
    with pytest.raises(UsageError, match=r"--wallclock .*: give a time such as 2026-"):
        parse_wallclock("--wallclock", text, NOWHERE)


@pytest.mark.parametrize(
    ("date", "wanted"),
    [
        ("#1 SMP Tue Feb 13 10:20:30 UTC 2024", "2024-02-13 10:20:30"),
        ("#1 SMP Tue Feb 13 10:20:30 CET 2024", "2024-02-13 22:20:30"),  # of any zone
        ("#2 Sat Nov  8 03:04:05 2025", "2025-11-08 15:04:05"),
        ("#2 Wed Jan 15 02:03:04 PM UTC 2025", "2025-01-15 14:03:04"),
        ("Debian 6.1.192-2 (2026-11-16)", "2026-11-17 00:00:00"),
        ("Debian 6.1.192-2 (2026-02-31)", None),
        ("#1 SMP", None),
    ],
)
def test_when_a_kernel_was_built(banner, date, wanted):
    found = built(load(banner(f"Linux version 6.1 (me@there) {date}")))
    assert (found and f"{found:%Y-%m-%d %H:%M:%S}") == wanted


def test_image_is_when_the_kernel_was_built(banner):
    kernel = banner("Linux version 6.1 (me) #1 Sun Nov 29 18:35:00 UTC 2026")
    assert parse_wallclock("--wallclock", "image", kernel) == 1_795_977_300 * 10**9
    with pytest.raises(UsageError, match=r"nothing in .*kernel says when it was built"):
        parse_wallclock("--wallclock", "image", banner("Linux version 6.1 #1"))
