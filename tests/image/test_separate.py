"""image/separate: a vmlinux beside a kernel, and whether the two are of one build."""

from __future__ import annotations

import re
import shutil

import pytest

import elfwriter
from elfwriter import ENTRY, Phdr, Shdr, note
from xenemu.errors import ImageError
from xenemu.image import build_id, load, with_symbols
from xenemu.image.elf import parse

ID, OTHER_ID = bytes(range(20)), b"\xaa" * 20
NAMES = {"start_kernel": ENTRY + 16}


def id_note(value):
    return note(3, value, "GNU")


def write_kernel(path, value=ID, bits=64):
    notes = elfwriter.PV_NOTES if bits == 64 else elfwriter.PV32_NOTES
    more = (id_note(value),) if value else ()
    path.write_bytes(elfwriter.kernel((*notes, *more), bits))
    return path


def write_vmlinux(path, value=ID, names=NAMES):
    sections = elfwriter.symbol_table(names) if names else []
    if value:
        sections.append(Shdr(".note.gnu.build-id", id_note(value), elfwriter.NOTE))
    path.write_bytes(elfwriter.elf(sections=sections))
    return path


@pytest.fixture
def paths(tmp_path):
    return tmp_path / "vmlinuz", tmp_path / "vmlinux"


def test_the_names_are_those_of_the_file_beside_the_kernel(paths):
    kernel = load(write_kernel(paths[0]))
    found = with_symbols(kernel, write_vmlinux(paths[1]))
    assert found.unchecked == ""
    assert found.image.symbols.address("start_kernel") == ENTRY + 16
    assert found.image.symbol_file.path == str(paths[1])
    assert found.image.elf is kernel.elf  # which is what boots
    assert kernel.symbols.address("start_kernel") is None


def test_a_file_of_another_build_is_refused_with_both_ids(paths):
    kernel = load(write_kernel(paths[0]))
    write_vmlinux(paths[1], OTHER_ID)
    with pytest.raises(ImageError) as refused:
        with_symbols(kernel, paths[1])
    assert str(refused.value) == (
        f"{paths[1]}: is of another build: its build id is {OTHER_ID.hex()}, and that of the"
        f" kernel {paths[0]} is {ID.hex()}; give the vmlinux of the same build"
    )
    assert kernel.separate is None


@pytest.mark.parametrize(
    ("kernel_id", "file_id", "reason"),
    [
        (None, ID, "the kernel has no build id"),
        (ID, None, "it has no build id"),
        (None, None, "neither it nor the kernel has a build id"),
    ],
)
def test_what_cannot_be_checked_is_taken_and_that_is_told(paths, kernel_id, file_id, reason):
    kernel = load(write_kernel(paths[0], kernel_id))
    found = with_symbols(kernel, write_vmlinux(paths[1], file_id))
    assert found.unchecked == reason
    assert found.image.symbols.address("start_kernel") == ENTRY + 16


def test_what_is_no_file_of_symbols_is_refused(paths):
    kernel = load(write_kernel(paths[0]))
    stripped = write_vmlinux(paths[1].with_name("stripped"), names=None)
    packed = paths[1].with_name("packed")
    packed.write_bytes(elfwriter.bzimage(elfwriter.kernel()))
    i386 = write_kernel(paths[1].with_name("i386"), bits=32)
    empty = paths[1].with_name("empty")
    empty.touch()
    for path, reason in (
        (stripped, "has no symbols; give a vmlinux that was not stripped"),
        (packed, "not an ELF; give the vmlinux from which the kernel was made"),
        (i386, "has no symbols"),
        (empty, "the file is empty"),
        (paths[0].parent, ""),
        (paths[0].with_name("nowhere"), "No such file or directory"),
    ):
        with pytest.raises(ImageError, match=f"^{re.escape(f'{path}: {reason}')}"):
            with_symbols(kernel, path)


def test_a_file_for_another_machine_is_refused(paths):
    kernel = load(write_kernel(paths[0], bits=32))
    with pytest.raises(ImageError, match=f"is for x86_64, and the kernel {paths[0]} for i386$"):
        with_symbols(kernel, write_vmlinux(paths[1]))


def test_the_build_id_is_found_in_sections_and_segments_and_after_notes_that_lead_astray():
    in_segment = elfwriter.kernel((note(6, "linux"), id_note(ID)))
    in_section = elfwriter.elf(sections=[Shdr(".notes", id_note(ID), elfwriter.NOTE)])
    astray = (note(5, bytes(17) + b"\0\0\0", "GNU"), bytes(4), id_note(ID))
    after = elfwriter.elf([Phdr(b"".join(astray), elfwriter.PT_NOTE)])
    for elf in (in_segment, in_section, after):
        assert build_id(parse(memoryview(elf))) == ID.hex()
    cut = elfwriter.elf([Phdr(id_note(ID), elfwriter.PT_NOTE, offset=1 << 40, filesz=64)])
    for elf in (elfwriter.kernel(), cut):
        assert build_id(parse(memoryview(elf))) is None


def test_debians_kernels_have_one(guest_image, tmp_path):
    kernel = load(guest_image("debian-cloud-amd64"))
    found = build_id(parse(kernel.elf))
    assert found and len(found) == 40
    shutil.copy(write_vmlinux(tmp_path / "x", bytes.fromhex(found)), tmp_path / "vmlinux")
    assert with_symbols(kernel, tmp_path / "vmlinux").unchecked == ""
