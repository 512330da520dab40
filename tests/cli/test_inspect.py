"""`xenemu inspect`: the text, the JSON, and the exit codes."""

from __future__ import annotations

import json
import struct

import pytest
import typer
from typer.testing import CliRunner

from elfwriter import (
    ASTRAY,
    KERNEL,
    PT_NOTE,
    PV_NOTES,
    STRTAB,
    SYMTAB,
    Phdr,
    Shdr,
    bzimage,
    elf,
    kernel,
    note,
)
from xenemu.cli.inspect import inspect

NOTES = [
    *PV_NOTES, note(10, "!writable_page_tables"), note(13, struct.pack("<QQ", 1, 1)),
    note(18, 0x1000010, width=4), note(0x55, b"\1\2"), note(3, b"id", owner="GNU"),
]  # fmt: skip


@pytest.fixture
def run(tmp_path):
    app = typer.Typer()
    app.command()(inspect)
    path = tmp_path / "kernel"

    def run(data, *options):
        path.write_bytes(data)
        return CliRunner().invoke(app, [str(path), *options])

    return run


def test_text_names_everything(run):
    result = run(bzimage(kernel(NOTES)))
    assert result.exit_code == 0
    for words in (
        "bzImage, boot protocol 2.15",
        "gzip,",
        "6.1.0-test",
        "64-bit x86_64, EXEC, entry 0xffffffff81000000",
        "ENTRY                0xffffffff81000000",
        "L1_MFN_VALID         0x1/0x1  (ignored: only migration",
        "type 0x55            0102  (ignored: Xen does not know it)",
        "GNU type 0x3         6964",
        "features required:   writable_page_tables",
        "pv64            yes: 0xffffffff81000000 to 0xffffffff81002000, entry 0xffffffff81000000",
        "pv32            no: the image is for x86_64, not i386",
        "pvh             yes: 0x1000000 to 0x1002000, entry 0x1000010",
    ):
        assert words in result.stdout
    assert "HYPERCALL_PAGE" not in result.stdout


def test_json_has_the_same(run):
    report = json.loads(run(bzimage(kernel(NOTES)), "--json").stdout)
    assert (report["format"], report["class"], report["machine"]) == ("bzImage", 64, "x86_64")
    assert report["payload"]["protocol"] == "2.15"
    assert report["segments"] == [
        {"paddr": "0x1000000", "vaddr": "0xffffffff81000000", "filesz": 64, "memsz": 0x2000}
    ]
    assert report["notes_source"] == "PT_NOTE"
    notes = {one["name"]: one for one in report["notes"]}
    assert notes["ENTRY"]["value"] == "0xffffffff81000000" and notes["ENTRY"]["ignored"] is None
    assert notes["L1_MFN_VALID"]["value"] == [["0x1", "0x1"]]
    assert report["features"]["required"] == ["writable_page_tables"]
    assert report["modes"]["pv64"]["bootable"] is True
    assert report["modes"]["pv32"] == {
        "bootable": False,
        "reason": "the image is for x86_64, not i386",
    }


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_an_image_that_boots_in_no_mode_is_shown_and_ends_with_7(run, options):
    result = run(elf(), *options)
    assert result.exit_code == 7
    assert "there are no Xen notes" in result.stdout


def test_the_symbols_for_bsd_symtab_are_among_the_segments(run):
    notes = [*NOTES, note(11, "yes")]
    tables = [Shdr(".symtab", bytes(24), SYMTAB, link=2), Shdr(".strtab", b"\0", STRTAB)]
    result = run(kernel(notes, sections=tables))
    assert "\n  0x1002000 to 0x1002128: symbols, for BSD_SYMTAB\n" in result.stdout
    assert "BSD_SYMTAB           yes\n" in result.stdout
    assert "pvh             yes: 0x1000000 to 0x1002128" in result.stdout
    result = run(kernel(notes))
    assert "BSD_SYMTAB           yes  (ignored: the ELF has no symbol table" in result.stdout
    assert json.loads(run(kernel(notes), "--json").stdout)["bsd_symbols"] is None
    result = run(kernel([*NOTES, note(11, "no")]))
    assert "BSD_SYMTAB           no  (ignored: only 'yes' asks for symbols)" in result.stdout


def test_notes_that_xen_does_not_find_are_shown(run):
    data = kernel([*PV_NOTES, *ASTRAY, note(18, 0x1000010, width=4)])
    astray = hex(data.index(ASTRAY[2]) - 4)
    result = run(data)
    assert result.exit_code == 0  # as PV
    assert "\nNotes that Xen does not find\n  PHYS32_ENTRY         0x1000010\n" in result.stdout
    assert f"and takes what is at {astray} for a note:\n" in result.stdout
    report = json.loads(run(data, "--json").stdout)
    assert [one["name"] for one in report["lost_notes"]["notes"]] == ["PHYS32_ENTRY"]
    assert report["lost_notes"]["astray"] == astray
    assert "PHYS32_ENTRY" not in [one["name"] for one in report["notes"]]
    assert json.loads(run(kernel(NOTES), "--json").stdout)["lost_notes"] is None


def test_only_a_program_is_called_one(run):
    for interpreter, notes, is_program in (
        (b"/lib/ld.so\0", (), True),
        (b"/red/herring\0", (), False),
        (b"/red/herring\0", PV_NOTES, False),
    ):
        segments = (KERNEL, Phdr(interpreter, 3), Phdr(b"".join(notes), PT_NOTE))
        result = run(elf(segments))
        assert ("an ordinary program" in result.stdout) is is_program
        report = json.loads(run(elf(segments), "--json").stdout)
        assert report["interpreter"] == interpreter.decode().strip("\0")
        assert report["program"] is is_program


def test_what_is_no_kernel_is_one_line_on_stderr_and_ends_with_7(run):
    result = run(b"#!/bin/sh\n")
    assert (result.exit_code, result.stdout) == (7, "")
    assert result.stderr.startswith("xenemu: ")
    assert result.stderr.endswith("kernel: a script, not a kernel\n")
