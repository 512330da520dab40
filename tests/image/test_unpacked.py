"""What kernels unpack to is kept between runs, and trusted by its content alone."""

from __future__ import annotations

import os
import zlib

import pytest

from xenemu.errors import ImageError
from xenemu.image import unpacked
from xenemu.image.unpacked import KEPT, WORTH_KEEPING

PAYLOAD = memoryview(bytes(WORTH_KEEPING))
OTHER = memoryview(bytes(WORTH_KEEPING - 1) + b"x")
CONTENT = b"kernel" * 1000


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "xenemu" / "unpacked"


@pytest.fixture
def file(cache):
    """What is kept of `PAYLOAD`."""
    unpacked.unpacked(PAYLOAD, lambda: CONTENT)
    (file,) = cache.iterdir()
    return file


def never():
    raise AssertionError("unpacked again")


def is_unpacked_again(size=None):
    """Whether a payload is unpacked although a file is there; its content must be right."""
    again = []
    view = unpacked.unpacked(PAYLOAD, lambda: again.append(1) or CONTENT, size)
    assert view == CONTENT
    return bool(again)


def test_the_second_time_comes_from_the_cache(file):
    assert unpacked.unpacked(PAYLOAD, never, len(CONTENT)) == CONTENT
    assert file.read_bytes().startswith(CONTENT)


def test_another_payload_has_another_file(file, cache):
    assert unpacked.unpacked(OTHER, lambda: b"other") == b"other"
    assert len(list(cache.iterdir())) == 2


def test_small_payloads_are_not_kept(cache):
    assert unpacked.unpacked(PAYLOAD[1:], lambda: CONTENT) == CONTENT
    assert not cache.exists()


# Trust.


@pytest.mark.parametrize("size", [None, len(CONTENT)])
def test_a_damaged_file_is_replaced(file, size):
    whole = file.read_bytes()
    flipped = [bytes([*whole[:at], whole[at] ^ 1, *whole[at + 1 :]]) for at in (0, 999, -40, -32)]
    for bad in (b"", b"short", whole[:-1], whole + b"x", whole[32:], *flipped):
        file.write_bytes(bad)
        assert is_unpacked_again(size=size)
        assert file.read_bytes() == whole


def test_a_file_that_was_put_in_anothers_place_is_replaced(file, cache):
    unpacked.unpacked(OTHER, lambda: b"6" * len(CONTENT))
    (other,) = set(cache.iterdir()) - {file}
    before = file.read_bytes()
    os.replace(other, file)
    assert is_unpacked_again()
    assert file.read_bytes() == before


def test_what_others_can_write_is_not_trusted(file, cache):
    for path, modes in ((file, (0o620, 0o602)), (cache, (0o770, 0o707))):
        for mode in modes:
            path.chmod(mode)
            assert is_unpacked_again()
            assert not is_unpacked_again()
    assert cache.stat().st_mode & 0o777 == 0o700


def test_the_directory_is_its_owners_alone(cache):
    before = os.umask(0)
    try:
        unpacked.unpacked(PAYLOAD, lambda: CONTENT)
    finally:
        os.umask(before)
    assert cache.stat().st_mode & 0o777 == 0o700
    assert {file.stat().st_mode & 0o777 for file in cache.iterdir()} == {0o600}


def test_what_another_user_has_is_neither_used_nor_changed(file, cache, monkeypatch):
    before = file.stat()
    monkeypatch.setattr(os, "geteuid", lambda: before.st_uid + 1)
    cache.chmod(0o755)
    assert is_unpacked_again()
    assert (file.stat(), cache.stat().st_mode & 0o777) == (before, 0o755)
    assert list(cache.iterdir()) == [file]


def test_a_link_is_not_followed(file, cache):
    elsewhere = cache.parent / "elsewhere"
    file.rename(elsewhere)
    file.symlink_to(elsewhere)
    assert is_unpacked_again()
    assert not file.is_symlink() and elsewhere.exists()


def test_a_link_in_the_directorys_place_is_not_followed(file, cache, tmp_path):
    """Nothing is kept, and what it leads to stays as it is."""
    elsewhere = tmp_path / "elsewhere"
    cache.rename(elsewhere)
    for target in (elsewhere, tmp_path / "nothing"):
        cache.unlink(missing_ok=True)
        cache.symlink_to(target)
        elsewhere.chmod(0o755)
        assert is_unpacked_again()
        assert is_unpacked_again()
        assert elsewhere.stat().st_mode & 0o777 == 0o755
        assert os.listdir(elsewhere) == [file.name]
        assert sorted(os.listdir(tmp_path)) == ["elsewhere", "xenemu"]


# How much is kept.


def fill(count):
    payloads = [memoryview(bytes(WORTH_KEEPING) + bytes([n])) for n in range(count)]
    for payload in payloads:
        unpacked.unpacked(payload, lambda: CONTENT)


def test_only_the_files_used_last_are_kept(cache):
    fill(KEPT)
    for age, file in enumerate(sorted(cache.iterdir())):
        os.utime(file, ns=(age, age))
    oldest = sorted(cache.iterdir())[0]
    unpacked.unpacked(PAYLOAD, lambda: CONTENT)
    assert len(list(cache.iterdir())) == KEPT
    assert not oldest.exists()


def test_what_a_killed_run_left_goes_too(file, cache):
    left = cache / f"{file.name}.new-a1b2c3_4"
    left.write_bytes(CONTENT)
    os.utime(left, ns=(1, 1))
    fill(KEPT)
    assert not left.exists()


def test_only_what_it_made_is_ever_deleted(cache):
    cache.mkdir(parents=True)
    mine = [cache / name for name in ("notes", "0" * 39, "0" * 41, "0" * 40 + ".orig", "new-a")]
    for path in mine:
        path.write_bytes(b"mine")
        os.utime(path, ns=(1, 1))
    (cache / "folder").mkdir()
    fill(KEPT + 1)
    assert [path.read_bytes() for path in mine] == [b"mine"] * len(mine)
    assert len(list(cache.iterdir())) == KEPT + len(mine) + 1


def test_a_payload_that_does_not_unpack_leaves_nothing(cache):
    def corrupt():
        raise ImageError("corrupt")

    with pytest.raises(ImageError):
        unpacked.unpacked(PAYLOAD, corrupt)
    assert not cache.exists()


def test_without_a_cache_it_is_unpacked_each_time(tmp_path, monkeypatch):
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    for content in (CONTENT, b"other"):
        assert unpacked.unpacked(PAYLOAD, lambda content=content: content) == content


def test_what_was_forgotten_can_be_read_again(cache):
    view = unpacked.unpacked(PAYLOAD, lambda: CONTENT)
    unpacked.forget(view)
    assert zlib.crc32(view) == zlib.crc32(CONTENT)
    unpacked.forget(memoryview(b"no file"))  # nothing happens
