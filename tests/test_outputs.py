"""outputs: what may be written, and that a file with something in it is kept."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from xenemu.errors import OutputError, UsageError
from xenemu.outputs import Outputs


def written(path, data=b"new"):
    with Outputs() as outputs:
        outputs.open("--log", path).write(data)


def test_a_new_file_and_an_empty_one_are_written(tmp_path):
    empty = tmp_path / "empty"
    empty.touch()
    for path in (tmp_path / "new", empty):
        written(path)
        assert path.read_bytes() == b"new"


def test_what_has_something_in_it_stays(tmp_path):
    path = tmp_path / "mine"
    path.write_bytes(b"mine")
    link = tmp_path / "link"
    link.symlink_to(path)
    for name in (path, link):
        with pytest.raises(UsageError, match=f"^--log {name}: the file exists; remove it, or"):
            written(name)
    assert path.read_bytes() == b"mine"


def test_a_link_to_nothing_makes_the_file(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "file")
    written(tmp_path / "link")
    assert (tmp_path / "file").read_bytes() == b"new"


def test_a_link_to_nothing_leads_to_nothing_again_if_the_command_fails(tmp_path):
    os.symlink("next", tmp_path / "link")
    os.symlink(tmp_path / "file", tmp_path / "next")
    with pytest.raises(ZeroDivisionError), Outputs() as outputs:
        outputs.open("--log", tmp_path / "link")
        assert (tmp_path / "file").exists()
        raise ZeroDivisionError
    assert sorted(os.listdir(tmp_path)) == ["link", "next"]


def test_a_link_that_leads_nowhere_is_refused(tmp_path):
    for link, target in (("round", "round"), ("far", "no/folder")):
        os.symlink(target, tmp_path / link)
        with pytest.raises(UsageError, match=f"^--log {tmp_path / link}: "):
            written(tmp_path / link)
    assert sorted(os.listdir(tmp_path)) == ["far", "round"]


@pytest.mark.parametrize("other", ["same", "link", "./same"])
def test_two_outputs_are_never_one_file(tmp_path, monkeypatch, other):
    monkeypatch.chdir(tmp_path)
    os.symlink("same", "link")
    words = f"^--json {Path(other)}: the same file as --junit same$"
    with pytest.raises(UsageError, match=words), Outputs() as outputs:
        outputs.open("--junit", Path("same"))
        outputs.open("--json", Path(other))
    assert os.listdir() == ["link"]


def test_two_outputs_are_never_one_pipe(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    with Outputs() as outputs:
        outputs.open("--junit", tmp_path / "pipe")
        with pytest.raises(UsageError, match="the same file as"):
            outputs.open("--json", tmp_path / "pipe")
    os.close(reader)


def test_devices_may_be_shared():
    with Outputs() as outputs:
        for option in ("--junit", "--json"):
            outputs.open(option, Path("/dev/null")).write(b"x")


def test_a_disk_is_no_output(monkeypatch):
    """Whoever may, must not do it by mistake."""
    disk = os.stat_result((stat.S_IFBLK, 0, 0, 1, 0, 0, 0, 0, 0, 0))
    monkeypatch.setattr(os, "fstat", lambda descriptor: disk)
    with pytest.raises(UsageError, match=r"^--log /dev/null: a block device"):
        written(Path("/dev/null"))


def test_a_standard_stream_is_an_output_too(tmp_path, capfd):
    """Under capfd, standard output and standard error are files."""
    with pytest.raises(UsageError, match="the same file as standard error"), Outputs() as outputs:
        outputs.open("--log", Path("/dev/stderr"))


def test_two_processes_never_write_one_file(tmp_path):
    path = tmp_path / "same"
    with Outputs() as outputs:
        outputs.open("--log", path)
        with pytest.raises(UsageError, match="another xenemu writes it now"):
            written(path)
        assert path.exists()


@pytest.mark.parametrize("kept", [b"", b"something"])
def test_a_command_that_comes_to_nothing_leaves_nothing_empty(tmp_path, kept):
    new, old = tmp_path / "new", tmp_path / "old"
    old.touch()
    with pytest.raises(KeyboardInterrupt), Outputs() as outputs:
        outputs.open("--log", new).write(kept)
        outputs.open("--trace-file", old)
        raise KeyboardInterrupt
    assert (new.exists(), old.exists()) == (bool(kept), True)


def test_what_cannot_be_opened(tmp_path):
    for path, words in ((tmp_path, "Is a directory"), (tmp_path / "none" / "file", "No such file")):
        with pytest.raises(UsageError, match=f"^--log {path}: {words}"):
            written(path)


def test_a_full_disk_is_an_error_that_names_the_file():
    with pytest.raises(OutputError, match=r"^--log /dev/full: No space left on device$"):
        written(Path("/dev/full"))


def test_what_is_lost_at_the_end_is_an_error(tmp_path, monkeypatch):
    def close(descriptor):
        before(descriptor)
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    before = os.close
    with pytest.raises(OutputError, match="Disk quota exceeded"), Outputs() as outputs:
        outputs.open("--log", tmp_path / "log")
        monkeypatch.setattr(os, "close", close)


# Folders.


def test_a_folder_is_made(tmp_path):
    folder = Outputs().folder("--log-dir", tmp_path / "a" / "b", ["x.log"])
    folder.write("x.log", "ä\udcff")
    assert (tmp_path / "a" / "b" / "x.log").read_bytes() == b"\xc3\xa4\\udcff"


def test_only_the_names_that_are_wanted_must_be_free(tmp_path):
    (tmp_path / "x.log").write_text("mine")
    Outputs().folder("--log-dir", tmp_path, ["y.log"])
    with pytest.raises(UsageError, match=r"^--log-dir .*/x\.log: the file exists"):
        Outputs().folder("--log-dir", tmp_path, ["y.log", "x.log"])
    assert [path.name for path in tmp_path.iterdir()] == ["x.log"]


def test_a_file_of_a_folder_is_no_other_output(tmp_path):
    with Outputs() as outputs:
        outputs.open("--junit", tmp_path / "x.log")
        with pytest.raises(UsageError, match=r"x\.log: the same file as --junit "):
            outputs.folder("--log-dir", tmp_path, ["x.log"])


def test_what_appeared_meanwhile_stays(tmp_path):
    folder = Outputs().folder("--log-dir", tmp_path, ["x.log"])
    (tmp_path / "x.log").write_text("mine")
    with pytest.raises(OutputError, match="the file exists"):
        folder.write("x.log", "ours")
    assert (tmp_path / "x.log").read_text() == "mine"


def test_what_is_no_folder(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=r"^--log-dir .*/file: File exists"):
        Outputs().folder("--log-dir", tmp_path / "file", [])


def test_a_file_without_an_end_is_refused():
    with Outputs() as outputs:
        output = outputs.open("--core", Path("/proc/self/mem"))
        assert not output.is_written
        with pytest.raises(OutputError, match="--core /proc/self/mem: Inv"):
            output.skip(4096)


def test_a_hyphen_is_no_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with Outputs() as outputs:
        for open_ in (outputs.open, lambda option, path: outputs.folder(option, path, ())):
            with pytest.raises(UsageError, match=r"^--log -: this does not go to standard output;"):
                open_("--log", Path("-"))
    assert not list(tmp_path.iterdir())
