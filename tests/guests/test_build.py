"""The guests' own machinery: what the linker makes of a guest is what a Xen loader expects."""

from __future__ import annotations

import struct

import pytest
from elftools.elf.elffile import ELFFile

from guests.build import ENVIRONMENTS, BuildError, Guest, build, guests

ENTRY, HYPERCALL_PAGE, XEN_VERSION, PHYS32_ENTRY = 1, 2, 5, 18


@pytest.fixture(scope="module")
def hello(tmp_path_factory):
    out = tmp_path_factory.mktemp("hello") / "hello"
    return ELFFile.load_from_path(build(guests()["hello"], ENVIRONMENTS["pv64"], out))


def xen_notes(elf):
    """Decode the PT_NOTE segment by hand: type -> descriptor."""
    (segment,) = [s for s in elf.iter_segments() if s["p_type"] == "PT_NOTE"]
    data, notes = segment.data(), {}
    while data:
        name_size, size, kind = struct.unpack_from("<3I", data)
        assert data[12 : 12 + name_size] == b"Xen\0"
        notes[kind] = data[16 : 16 + size]
        data = data[16 + -(-size // 4) * 4 :]
    return notes


def test_notes_lead_to_the_entry_and_the_hypercall_page(hello):
    notes = xen_notes(hello)
    symbols = hello.get_section_by_name(".symtab")
    page = symbols.get_symbol_by_name("hypercall_page")[0]["st_value"]
    assert notes[ENTRY] == struct.pack("<Q", hello["e_entry"])
    assert notes[HYPERCALL_PAGE] == struct.pack("<Q", page)
    assert notes[XEN_VERSION] == b"xen-3.0\0"


@pytest.mark.parametrize("environment", ["pvh64", "pvh32"])
def test_a_pvh_guest_is_entered_by_its_note_alone(environment, tmp_path):
    out = build(guests()["hello"], ENVIRONMENTS[environment], tmp_path / "hello")
    elf = ELFFile.load_from_path(out)
    notes = xen_notes(elf)
    assert notes[PHYS32_ENTRY] == struct.pack("<I", elf["e_entry"])
    assert not notes.keys() & {ENTRY, HYPERCALL_PAGE, XEN_VERSION}


def test_expected_output_names_the_environment(tmp_path):
    (tmp_path / "expected.txt").write_text("in {environment}\n")
    (tmp_path / "expected-pv64.txt").write_text("{environment} as it is\n")
    guest = Guest(tmp_path, ("pv64", "pvh64"), "64M", "", 0, 1)
    assert guest.expected("pvh64") == "in pvh64\n"
    assert guest.expected("pv64") == "{environment} as it is\n"


def test_hypercall_page_is_page_aligned(hello):
    page = hello.get_section_by_name(".symtab").get_symbol_by_name("hypercall_page")[0]
    assert page["st_value"] % 4096 == 0
    assert page["st_size"] == 4096


def test_virtual_and_physical_addresses_are_one(hello):
    loads = [s for s in hello.iter_segments() if s["p_type"] == "PT_LOAD"]
    assert [s["p_vaddr"] for s in loads] == [s["p_paddr"] for s in loads]


def test_a_guest_that_does_not_compile_is_refused(tmp_path):
    (tmp_path / "main.c").write_text("this is not C\n")
    guest = Guest(tmp_path, ("pv64",), "64M", "", 0, 1)
    with pytest.raises(BuildError, match=r"main\.c"):
        build(guest, ENVIRONMENTS["pv64"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_refusals_may_be_one_environments(tmp_path):
    guest = Guest(tmp_path, ("pv64", "pv32"), "64M", "", 0, 1)
    assert not guest.attacks
    (tmp_path / "refusals.txt").write_text("both\n[pv32] of 32 bits [or so]\n[pv64] no\n")
    assert guest.attacks
    assert guest.refusals("pv32") == ["both", "of 32 bits [or so]"]
