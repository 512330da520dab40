"""`xenemu image`: what is written, and what is refused."""

from __future__ import annotations

import pytest

from xenemu.cli import main
from xenemu.image.freebsd_module import freebsd_module


def test_a_module_for_freebsd(tmp_path):
    disk, out = tmp_path / "root.ufs", tmp_path / "module"
    disk.write_bytes(b"disk" * 1000)
    options = ["--set", "boot_single=YES", "--set", "a=b=c", "--memory-disk", str(disk)]
    assert main(["image", "freebsd-module", str(out), *options]) == 0
    wanted = freebsd_module({"boot_single": "YES", "a": "b=c"}, disk.read_bytes())
    assert out.read_bytes() == wanted


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--set", "quiet"], "--set quiet: say NAME=VALUE"),
        (["--memory-disk", "/nonexistent"], "--memory-disk /nonexistent: No such file"),
        (["--memory-disk", "/"], "--memory-disk /: "),
    ],
)
def test_bad_input_gets_one_line_and_leaves_no_file(tmp_path, capsys, options, words):
    out = tmp_path / "module"
    assert main(["image", "freebsd-module", str(out), *options]) == 7
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line
    assert not out.exists()


def test_a_file_that_is_somebodys_stays(tmp_path, capsys):
    out = tmp_path / "module"
    out.write_text("mine")
    assert main(["image", "freebsd-module", str(out)]) == 7
    assert "exists" in capsys.readouterr().err
    assert out.read_text() == "mine"


def test_what_is_missing_is_told_in_one_line(capsys):
    assert main(["image"]) == 7
    wanted = "missing argument 'KIND'. Choose from: freebsd-module; see xenemu image --help"
    assert capsys.readouterr().err == f"xenemu: {wanted}\n"
