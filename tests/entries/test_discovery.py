"""entries/: an entry is a file, which is imported when its mode is asked for."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path

import pytest

from elfwriter import PV_NOTES, Phdr, elf, kernel, note
from xenemu import entries
from xenemu.entries.modes import FILES
from xenemu.errors import ImageError

PVH = note(18, 0x1000010, width=4)

# The PVH entry by another name, for kernels that ask for nothing.
TOY = """
from dataclasses import replace

from xenemu.entries.pvh import ENTRIES as others

ENTRIES = [replace(others[0], name="toy32", mode="toy")]
"""


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The name of a file in entries/ with an entry."""
    (tmp_path / "toy.py").write_text(TOY)
    monkeypatch.setattr(entries, "__path__", [*entries.__path__, str(tmp_path)])
    monkeypatch.setitem(FILES, "toy", "toy")
    yield "xenemu.entries.toy"
    sys.modules.pop("xenemu.entries.toy", None)


def test_a_file_and_its_mode_are_an_entry(toy: str, load) -> None:
    found = entries.choose(load(kernel([PVH])), "toy")
    assert found.name == "toy32"
    assert found.verdict(load(kernel([PVH]))).where == (0x1000000, 0x1002000, 0x1000010)


def test_a_file_is_imported_when_its_mode_is_asked_for(toy: str, load) -> None:
    both = load(kernel([*PV_NOTES, PVH]))
    entries.choose(both)
    entries.choose(both, "pv")
    assert toy not in sys.modules
    entries.choose(both, "toy")
    assert toy in sys.modules


def test_each_files_modes_are_known() -> None:
    declared = {}
    for path in Path(*entries.__path__).iterdir():
        name = path.stem
        if name != "__init__" and not name.startswith("__"):
            module = import_module(f"xenemu.entries.{name}")
            declared |= {entry.mode: name for entry in getattr(module, "ENTRIES", ())}
    assert declared == FILES


def test_auto_prefers_pvh_and_takes_what_there_is(load) -> None:
    for notes, name in (([*PV_NOTES, PVH], "pvh"), (PV_NOTES, "pv64"), ([PVH], "pvh")):
        assert entries.choose(load(kernel(notes))).name == name


def test_a_mode_is_one_of_its_entries_or_a_reason_for_each(load) -> None:
    assert entries.choose(load(kernel([*PV_NOTES, PVH])), "pv").name == "pv64"
    with pytest.raises(ImageError) as error:
        entries.choose(load(kernel([PVH])), "pv")
    assert str(error.value).endswith(
        "cannot boot as pv: pv64: there is no ENTRY note; pv32: the image is for x86_64, not i386;"
        " it can with --entry pvh"
    )


def test_a_linux_without_xens_notes_is_told_of_its_own_entries(load) -> None:
    vmlinux = elf([Phdr(b"\x90" * 32 + b"Linux version 6.1", paddr=0x1000000)], entry=0x1000000)
    with pytest.raises(ImageError, match=r"not i386; it can with --entry linux64$"):
        entries.choose(load(vmlinux))
