"""Sizes and files as a person writes them."""

from __future__ import annotations

import itertools
import os

import pytest

from xenemu.errors import UsageError
from xenemu.options import (
    format_size,
    parse_maxvcpus,
    parse_memory,
    parse_seconds,
    parse_seed,
    parse_slice,
    parse_vcpus,
    read_tree,
    seconds_in,
)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("64M", 64 << 20),
        ("1G", 1 << 30),
        ("262144K", 256 << 20),
        ("1g", 1 << 30),
        ("4GiB", 4 << 30),
    ],
)
def test_sizes(text, size):
    assert parse_memory("--memory", text) == size


@pytest.mark.parametrize(
    "text", ["", "256", "M", "-1M", "1.5G", "0M", "1K", "63K", "1P", "65G", "9" * 99 + "K", "٣M"]
)
def test_no_sizes(text):
    with pytest.raises(UsageError, match=r"^--memory "):
        parse_memory("--memory", text)


@pytest.mark.parametrize(
    ("size", "text"), [(3 << 30, "3 GiB"), (1536 << 20, "1536 MiB"), (4 << 10, "4 KiB")]
)
def test_a_size_is_written_in_its_largest_whole_unit(size, text):
    assert format_size(size) == text


def test_vcpus():
    assert [parse_vcpus("--vcpus", text) for text in ("1", "007", "128")] == [1, 7, 128]
    for text in ("", "0", "-1", "129", "2.0", "two", "9" * 10, "\u0663"):
        with pytest.raises(UsageError, match=r"^--vcpus .*: give a number of vcpus, from 1 to 128"):
            parse_vcpus("--vcpus", text)


def test_vcpus_that_are_offline_at_first():
    assert [parse_maxvcpus("--maxvcpus", text, 4) for text in ("4", "128")] == [4, 128]
    with pytest.raises(UsageError, match=r"^--maxvcpus 3: fewer than the 4 vcpus that are online"):
        parse_maxvcpus("--maxvcpus", "3", 4)
    with pytest.raises(UsageError, match=r"^--maxvcpus 129: give a number of vcpus, from 1 to 128"):
        parse_maxvcpus("--maxvcpus", "129", 4)


def test_slices():
    for text, ns in (("1", 1), ("500ns", 500), ("20us", 20_000), ("10ms", 10_000_000)):
        assert parse_slice("--slice", text) == ns
    for text in ("", "0", "-1", "1s", "1.5us", "20 us", "us", "11ms", "10000001", "9" * 99, "٣us"):
        with pytest.raises(UsageError, match=r"^--slice .*: give a time from 1ns to 10ms, as in"):
            parse_slice("--slice", text)


def test_seconds_are_the_same_with_and_without_their_unit():
    for text, seconds in (("5", 5), ("5s", 5), ("1.5s", 1.5), (".5", 0.5), ("0s", 0)):
        assert seconds_in(text) == seconds
        if seconds:
            assert parse_seconds("--timeout", text) == seconds
    for text in ("", "s", "5ss", "5 m", "-1s", "nan", "infs", "1000001"):
        assert seconds_in(text) is None
    for text in ("0", "0s", "soon"):
        with pytest.raises(UsageError, match=f"^--timeout {text}: give seconds, above 0 and up"):
            parse_seconds("--timeout", text)


def test_seeds():
    for text, seed in (("0", 0), ("007", 7), ("0xFf", 255), (str(2**64 - 1), 2**64 - 1)):
        assert parse_seed("--rng-seed", text) == seed
    for text in ("", "-1", "1.0", "0x", "0xg", "1_0", str(2**64), "9" * 21, "\u0663"):
        with pytest.raises(UsageError, match=r"^--rng-seed "):
            parse_seed("--rng-seed", text)


def test_a_directory_is_read_with_all_below_it(tmp_path):
    (tmp_path / "EFI/BOOT").mkdir(parents=True)
    (tmp_path / "EFI/BOOT/x.efi").write_bytes(b"x")
    (tmp_path / "link").symlink_to(tmp_path / "EFI/BOOT/x.efi")
    assert read_tree("--efi-root", tmp_path) == {
        "EFI/": b"", "EFI/BOOT/": b"", "EFI/BOOT/x.efi": b"x", "link": b"x"
    }  # fmt: skip


def test_what_no_directory_for_efi_may_have(tmp_path, monkeypatch):
    def refused(sentence, root=tmp_path):
        with pytest.raises(UsageError, match=sentence) as caught:
            read_tree("--efi-root", root)
        assert "\n" not in str(caught.value)

    refused("--efi-root .*/gone: No such file", tmp_path / "gone")
    (tmp_path / "file").write_bytes(b"12345")
    refused("--efi-root .*/file: Not a directory", tmp_path / "file")
    for make, sentence in (
        (lambda path: path.symlink_to("gone"), "x: neither a file nor a directory"),
        (lambda path: path.symlink_to(tmp_path), "x: neither a file nor a directory"),
        (os.mkfifo, "x: neither a file nor a directory"),
    ):
        make(tmp_path / "x")
        refused(sentence)
        (tmp_path / "x").unlink()
    (tmp_path / "FILE").write_bytes(b"")
    refused("/file: EFI cannot tell this from FILE: they differ in case only")
    (tmp_path / "FILE").unlink()
    (tmp_path / "a\\b").write_bytes(b"")
    refused("EFI can have no file of this name")
    (tmp_path / "a\\b").unlink()
    monkeypatch.setattr("xenemu.options.MAX_TREE", 4 << 10)
    (tmp_path / "file").write_bytes(bytes(4097))
    refused("larger than EFI can have: 16384 files, 4 KiB")
    endless = itertools.repeat(tmp_path / "file")
    monkeypatch.setattr("xenemu.options.MAX_TREE", 1 << 30)
    monkeypatch.setattr("xenemu.options.MAX_FILES", 0)
    monkeypatch.setattr("xenemu.options._below", lambda root: endless)
    refused("larger than EFI can have: 0 files, 1 GiB")
