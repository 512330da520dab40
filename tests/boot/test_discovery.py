"""boot/: an entry is a file, and whoever asks for one goes by its name."""

from __future__ import annotations

from pathlib import Path

import pytest

from elfwriter import PV_NOTES, Phdr, elf, kernel, note
from xenemu import boot
from xenemu.errors import ImageError

PVH = note(18, 0x1000010, width=4)

# The PVH entry by another name, for kernels that ask for nothing.
TOY = """
from dataclasses import replace

from xenemu.boot import ENTRIES as others

ENTRIES = [replace(others["pvh"], name="toy32", mode="toy", auto=0)]
"""


def test_a_file_is_an_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, load) -> None:
    (tmp_path / "toys").mkdir()
    (tmp_path / "toys" / "toy.py").write_text(TOY)
    (tmp_path / "toys" / "no_entry.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    found = boot.discover([str(tmp_path / "toys")], "toys")
    assert list(found) == ["toy32"]
    assert found["toy32"].verdict(load(kernel([PVH]))).where == (0x1000000, 0x1002000, 0x1000010)


def test_auto_prefers_pvh_and_takes_what_there_is(load) -> None:
    for notes, name in (([*PV_NOTES, PVH], "pvh"), (PV_NOTES, "pv64"), ([PVH], "pvh")):
        assert boot.choose(load(kernel(notes))).name == name


def test_a_mode_is_one_of_its_entries_or_a_reason_for_each(load) -> None:
    assert boot.choose(load(kernel([*PV_NOTES, PVH])), "pv").name == "pv64"
    with pytest.raises(ImageError) as error:
        boot.choose(load(kernel([PVH])), "pv")
    assert str(error.value).endswith(
        "cannot boot as pv: pv64: there is no ENTRY note; pv32: the image is for x86_64, not i386;"
        " it can with --entry pvh"
    )


def test_a_linux_without_xens_notes_is_told_of_its_own_entries(load) -> None:
    vmlinux = elf([Phdr(b"\x90" * 32 + b"Linux version 6.1", paddr=0x1000000)], entry=0x1000000)
    with pytest.raises(ImageError, match=r"not i386; it can with --entry linux64$"):
        boot.choose(load(vmlinux))
