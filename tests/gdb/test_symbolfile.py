"""gdb/symbolfile, gdb/callframes, gdb/features: files and documents that others can read."""

from __future__ import annotations

import io
import struct
from itertools import islice, pairwise
from xml.etree import ElementTree

import pytest
from elftools.dwarf.callframe import CIE, FDE, CallFrameInfo
from elftools.dwarf.structs import DWARFStructs
from elftools.elf.constants import SH_FLAGS
from elftools.elf.elffile import ELFFile

import elfwriter
from xenemu import image
from xenemu.gdb.features import DESCRIPTION32, DESCRIPTION64, describe
from xenemu.gdb.symbolfile import module_file, symbol_file
from xenemu.image.elf import EI_OSABI, ELFOSABI_STANDALONE
from xenemu.image.kernel_modules import Module
from xenemu.image.orc import Orc, Type
from xenemu.image.symbols import Symbols, load_symbols

RBP, RSP, RETURN_ADDRESS = 6, 7, 16


@pytest.fixture(scope="module")
def kernel(guest_image):
    return image.load(guest_image("debian-cloud-amd64"))


@pytest.fixture(scope="module")
def written(kernel):
    return ELFFile(io.BytesIO(symbol_file(kernel)))


def symbols_of(elf):
    return {s.name: s["st_value"] for s in elf.get_section_by_name(".symtab").iter_symbols()}


def test_a_stripped_kernel_has_its_names_back(kernel, written):
    symbols, found = load_symbols(kernel.elf, kernel.segments), symbols_of(written)
    for name in ("start_kernel", "linux_banner", "startup_xen"):
        assert found[name] == symbols.address(name), name


@pytest.mark.parametrize("physical", [False, True])
def test_gdb_learns_of_each_name_whether_it_is_code(kernel, physical):
    elf = ELFFile(io.BytesIO(symbol_file(kernel, physical)))
    names = {s.name: s for s in elf.get_section_by_name(".symtab").iter_symbols()}
    functions = {"start_kernel", "startup_xen", "panic", "_einittext"}
    for name in functions | {"system_state", "jiffies", "linux_banner", "__per_cpu_offset"}:
        section = elf.get_section(names[name]["st_shndx"])
        offset = names[name]["st_value"] - section["sh_addr"]
        assert bool(section["sh_flags"] & SH_FLAGS.SHF_EXECINSTR) == (name in functions), name
        assert 0 <= offset < offset + names[name]["st_size"] <= section["sh_size"], name


def test_sections_lie_beside_each_other_and_fill_the_segments(kernel, written):
    sections = [s for s in written.iter_sections() if s["sh_flags"] & SH_FLAGS.SHF_ALLOC]
    for segment in kernel.segments:
        start, end = segment.vaddr, segment.vaddr + segment.memsz
        inside = [s for s in sections if start <= s["sh_addr"] < end]
        for section in inside:
            assert section["sh_addr"] == start and section["sh_size"]
            start += section["sh_size"]
        assert start == end


def test_in_32_bit_code_names_are_where_the_kernel_was_loaded(kernel):
    elf = ELFFile(io.BytesIO(symbol_file(kernel, physical=True)))
    assert elf.elfclass == 32
    assert symbols_of(elf)["pvh_start_xen"] == kernel.notes.phys32_entry


def test_a_kernel_without_any_names_is_given_as_it_is(guest_image):
    grub = image.load(guest_image("grub-i386-xen_pvh"))
    assert symbol_file(grub) is grub.elf


@pytest.mark.parametrize("mark", [2, 9, 12])
def test_a_bsd_kernels_file_is_given_without_its_mark(tmp_path, mark):
    path = tmp_path / "kernel"
    sections = [elfwriter.Shdr(".symtab", bytes(24), elfwriter.SYMTAB)]
    content = bytearray(elfwriter.kernel(sections=sections))
    path.write_bytes(content)
    assert symbol_file(image.load(path)) == content
    content[EI_OSABI] = mark
    path.write_bytes(content)
    content[EI_OSABI] = ELFOSABI_STANDALONE
    assert symbol_file(image.load(path)) == content


def test_a_section_marks_a_kernel_too(tmp_path):
    path = tmp_path / "kernel"
    sections = [elfwriter.Shdr(name) for name in (".symtab", ".note.netbsd.ident")]
    path.write_bytes(elfwriter.kernel(sections=sections))
    assert symbol_file(image.load(path))[EI_OSABI] == ELFOSABI_STANDALONE


def test_modules_have_names_where_they_are_and_frames_of_their_own(kernel):
    """Modules lie between each other's parts, which must not describe what is another's."""
    orc = Orc(kernel.elf)
    rows = [vaddr for vaddr, _ in islice(orc.rows(), 4000)]
    one = (range(rows[5], rows[100]), range(rows[2000], rows[2100]))
    two = (range(rows[1000], rows[1050]),)

    def module(name, parts):
        names = [(parts[0].start, f"{name}_start", True)]
        return Module(name, parts, Symbols(lambda: names), lambda: orc)

    modules = [module("one", one), module("two", two)]
    elf = ELFFile(io.BytesIO(module_file(64, modules)))
    assert symbols_of(elf)["one_start"] == rows[5]
    placed = {s.name: s["sh_addr"] for s in elf.iter_sections() if s["sh_type"] == "SHT_NOBITS"}
    assert placed == {".text1": rows[5], ".text2": rows[2000], ".text3": rows[1000]}
    parts = {
        entry["initial_location"]: entry
        for entry in elf.get_dwarf_info().CFI_entries()[1:]
        if isinstance(entry, FDE)
    }
    for part in (*one, *two):
        assert any(
            part.start <= at < at + entry["address_range"] <= part.stop
            for at, entry in parts.items()
        )
    ends = sorted((at, at + entry["address_range"]) for at, entry in parts.items())
    assert all(end <= start for (_, end), (start, _) in pairwise(ends))


def descriptions(data, step):
    """Every so many of a .debug_frame's descriptions: reading all takes the reader 10 s."""
    ends = [0]
    while ends[-1] < len(data):
        (size,) = struct.unpack_from("<I", data, ends[-1])
        ends.append(ends[-1] + 4 + size)
    assert ends[-1] == len(data)
    cie, *entries = (data[start:end] for start, end in pairwise(ends))
    some = cie + b"".join(entries[::step])
    structs = DWARFStructs(little_endian=True, dwarf_format=32, address_size=8)
    first, *read = CallFrameInfo(io.BytesIO(some), len(some), 0, structs).get_entries()
    assert isinstance(first, CIE)
    return read


def test_call_frames_say_what_orc_says(kernel, written):
    """Each description's first row against the ORC entry of its first instruction."""
    orc, compared = Orc(kernel.elf), 0
    for entry in descriptions(written.get_section_by_name(".debug_frame").data(), 40):
        assert isinstance(entry, FDE)
        row = entry.get_decoded().table[0]
        wanted = orc.find(entry["initial_location"])
        if wanted.type is not Type.CALL or wanted.sp_reg.value not in ("SP", "BP"):
            continue
        base = {"SP": RSP, "BP": RBP}[wanted.sp_reg.value]
        factor = -8  # which the reader leaves to us
        assert (row["cfa"].reg, row["cfa"].offset * factor) == (base, wanted.sp_offset)
        assert row[RETURN_ADDRESS].arg == -8
        compared += 1
    assert compared > 20


@pytest.mark.parametrize("description", [DESCRIPTION64, DESCRIPTION32])
def test_the_description_names_each_register_once(description):
    root = ElementTree.fromstring(describe(description))
    names = [register.get("name") for register in root.iter("reg")]
    assert names == [register.name for register in description.registers]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("description", [DESCRIPTION64, DESCRIPTION32])
def test_the_description_declares_the_types_that_it_uses(description):
    root = ElementTree.fromstring(describe(description))
    known = {"int", "int32", "int64", "code_ptr", "data_ptr", "i387_ext"}
    known |= {element.get("id") for element in root.iter() if element.get("id")}
    assert {register.get("type") for register in root.iter("reg")} <= known
