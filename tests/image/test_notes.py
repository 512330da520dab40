"""Notes are looked for where Xen looks, in its order, and read as it reads them."""

from __future__ import annotations

import struct

import pytest

from elfwriter import ASTRAY, KERNEL, NOTE, PT_NOTE, Phdr, Shdr, elf, kernel, note
from xenemu.errors import ImageError
from xenemu.image import Feature
from xenemu.image.elf import parse
from xenemu.image.notes import ignored, read_notes


def notes_of(data):
    return read_notes(parse(memoryview(data)))


def noted(*notes):
    return notes_of(kernel(notes))


def legacy(string, **more):
    return notes_of(elf([KERNEL], [Shdr("__xen_guest", string + b"\0", **more)]))


def test_pt_note_comes_first():
    segment, section = note(6, "segment"), note(6, "section")
    found = notes_of(elf([KERNEL, Phdr(segment, PT_NOTE)], [Shdr(".n", section, NOTE)]))
    assert (found.source, found.guest_os) == ("PT_NOTE", "segment")


def test_sections_are_read_if_segments_have_no_xen_note():
    segment, section = note(3, b"id", owner="GNU"), note(6, "section")
    found = notes_of(elf([KERNEL, Phdr(segment, PT_NOTE)], [Shdr(".n", section, NOTE)]))
    assert (found.source, found.guest_os) == ("SHT_NOTE", "section")
    assert [one.owner for one in found.raw] == ["GNU", "Xen"]


def test_the_guest_section_comes_last():
    sections = [
        Shdr(".n", note(6, "x", owner="name"), NOTE),
        Shdr("__xen_guest", b"GUEST_OS=old\0"),
    ]
    assert notes_of(elf([KERNEL], sections)).source == "__xen_guest"
    sections[0] = Shdr(".n", note(6, "new"), NOTE)
    assert notes_of(elf([KERNEL], sections)).guest_os == "new"


def test_without_notes_there_is_no_source():
    assert notes_of(elf()).source is None


def test_a_note_segment_at_file_offset_0_says_nothing():
    assert notes_of(elf([KERNEL, Phdr(note(6, "x"), PT_NOTE, offset=0)])).source is None


@pytest.mark.parametrize("width", [1, 2, 4, 8])
def test_numbers_have_their_own_width(width):
    assert noted(note(1, 0x7F, width=width)).entry == 0x7F


def test_every_known_note_has_its_field():
    found = noted(
        note(1, 1), note(2, 2), note(3, 3), note(4, 4), note(5, "v"), note(6, "os"),
        note(7, "7"), note(8, "l"), note(9, "bimodal"), note(11, "yes"), note(12, 12),
        note(13, struct.pack("<QQQQ", 1, 1, 5, 4)), note(14, 1), note(15, 15), note(16, 1),
        note(18, 18, width=4), note(19, struct.pack("<III", 0x1000, 0, 9)),
    )  # fmt: skip
    assert (found.entry, found.hypercall_page, found.virt_base, found.paddr_offset) == (1, 2, 3, 4)
    assert (found.xen_version, found.guest_os, found.guest_version) == ("v", "os", "7")
    assert (found.loader, found.pae_mode, found.pae) == ("l", "bimodal", True)
    assert (found.bsd_symtab, found.hv_start_low, found.suspend_cancel) == (True, 12, 1)
    assert found.l1_mfn_valid == ((1, 1), (5, 4))
    assert (found.init_p2m, found.mod_start_pfn, found.phys32_entry) == (15, True, 18)
    assert found.phys32_reloc == (0x1000, 0, 9)


def test_l1_mfn_valid_is_32_bits_wide_without_pae():
    assert noted(note(13, struct.pack("<II", 1, 1))).l1_mfn_valid == ((1, 1),)


def test_the_last_of_equal_notes_counts():
    assert noted(note(1, 1), note(1, 2)).entry == 2


def test_features_add_up():
    found = noted(note(10, "!writable_page_tables|pae_pgdir_above_4gb"), note(17, 0x8800, width=4))
    assert found.required == {Feature.writable_page_tables}
    assert found.supported == {
        Feature.writable_page_tables,
        Feature.pae_pgdir_above_4gb,
        Feature.dom0,
        Feature.linux_rsdp_unrestricted,
    }


def test_an_unknown_feature_matters_only_if_required():
    found = noted(note(10, "sparkles|!hvm_pirqs|!"))
    assert found.supported == found.required == frozenset()
    assert found.unknown_required == ("hvm_pirqs", "")


@pytest.mark.parametrize(
    ("mode", "pae"), [("yes", True), ("yes,bimodal", True), ("no", False), ("yes[x]", False)]
)
def test_pae_mode(mode, pae):
    assert noted(note(9, mode)).pae is pae


def test_an_unknown_type_is_kept_as_bytes():
    (one,) = noted(note(0x77, b"\1\2\3\4")).raw
    assert (one.name, one.value, ignored(one, "i386")) == (
        "type 0x77",
        b"\1\2\3\4",
        "Xen does not know it",
    )


def test_what_is_ignored_says_why():
    entry, os_version, pae = noted(note(1, 1), note(7, "2.6"), note(9, "yes")).raw
    assert ignored(entry, "x86_64") is None
    assert ignored(os_version, "x86_64") == "Xen only prints it"
    assert ignored(pae, "i386") is None
    assert ignored(pae, "x86_64") == "only i386 kernels have the choice"


def test_a_string_may_end_before_its_size_and_its_size_after_the_file():
    # GRUB's i386 image ends like this.
    cut = note(9, b"yes\0nothing\0")[:-8]
    assert noted(note(1, 1), cut).pae_mode == "yes"


@pytest.mark.parametrize(
    ("broken", "sentence"),
    [
        (note(1, b"abc"), "ENTRY has 3 bytes"),
        (note(1, 1)[:-4], "ENTRY runs out of the file"),
        (note(9, b"yes!" * 3)[:-8], "PAE_MODE is a string without end"),
        (note(6, "x" * 5000), "GUEST_OS is a string without end"),
        (note(13, b"12345678abcd"), "no pairs"),
        (note(19, b"123456"), "4-byte words"),
    ],
)
def test_a_lying_size_is_named(broken, sentence):
    with pytest.raises(ImageError, match=sentence):
        noted(broken)


@pytest.mark.parametrize(
    "wild",
    [
        struct.pack("<III", 0xFFFFFFF0, 4, 1),
        struct.pack("<III", 4, 0xFFFFFFFF, 1) + b"GNU\0",
        struct.pack("<III", 0xFFFFFFF1, 0xFFFFFFF3, 1),  # to itself, with 32 bits
        b"\xff" * 12,
        b"\xff",
    ],
)
def test_wild_sizes_end_the_notes_and_nothing_else(wild):
    found = noted(note(1, 1), wild)
    assert (found.source, found.entry, found.lost) == ("PT_NOTE", 1, None)


def test_a_segment_that_goes_on_outside_the_file_ends_with_it():
    found = notes_of(elf([KERNEL, Phdr(note(1, 1), PT_NOTE, filesz=1 << 40)]))
    assert found.entry == 1
    assert notes_of(elf([KERNEL, Phdr(b"", PT_NOTE, filesz=8, offset=1 << 62)])).source is None


# Notes that Xen does not find.


def names(notes):
    return [one.name for one in notes]


def test_padding_leads_xen_astray():
    found = noted(note(1, 1), *ASTRAY, note(2, 2), note(6, "os"))
    assert (found.entry, found.hypercall_page, found.guest_os) == (1, None, None)
    assert names(found.lost.notes) == ["HYPERCALL_PAGE", "GUEST_OS"]
    data = kernel([note(1, 1), *ASTRAY, note(2, 2), note(6, "os")])
    assert found.lost.astray == data.index(ASTRAY[2]) - 4


def test_what_a_segment_loses_its_section_may_have():
    """Xen asks the sections if a segment had none of its notes, and begins anew in each."""
    notes = [*ASTRAY, note(6, "os")]
    segment = Phdr(b"".join(notes), PT_NOTE)
    alone = elf([KERNEL, segment], [Shdr(".n", size=0)])
    assert notes_of(alone).source is None
    assert names(notes_of(alone).lost.notes) == ["GUEST_OS"]
    section = Shdr(".note.Xen", b"", NOTE, offset=alone.index(notes[-1]), size=len(notes[-1]))
    found = notes_of(elf([KERNEL, segment], [section]))
    assert (found.source, found.guest_os, found.lost) == ("SHT_NOTE", "os", None)


def test_a_section_loses_them_as_a_segment_does():
    found = notes_of(elf([KERNEL], [Shdr(".notes", b"".join([*ASTRAY, note(6, "os")]), NOTE)]))
    assert found.source is None
    assert names(found.lost.notes) == ["GUEST_OS"]


def test_what_steps_by_8_and_is_aligned_to_it_loses_nothing():
    property_note = note(5, bytes(16), "GNU")
    found = noted(property_note, note(6, "12345678901"), property_note, note(1, 1))
    assert (found.guest_os, found.entry, found.lost) == ("12345678901", 1, None)


def test_a_size_that_skips_notes_is_no_way_astray():
    skipping = struct.pack("<III4s", 4, 20, 1, b"GNU")
    found = noted(note(6, "os"), skipping, note(1, 1))
    assert (found.entry, names(found.lost.notes), found.lost.astray) == (None, ["ENTRY"], None)


def test_a_lost_note_may_lie():
    found = noted(*ASTRAY, note(1, b"abc"))
    assert [(one.name, one.value) for one in found.lost.notes] == [("ENTRY", b"abc")]


def test_notes_have_a_limit():
    with pytest.raises(ImageError, match="more than 1024 notes"):
        noted(*[note(1, 1)] * 1025)


def test_the_guest_section_is_read_by_its_own_names():
    found = legacy(
        b"GUEST_OS=Mach,GUEST_VER=1,XEN_VER=xen-3.0,LOADER=generic,VIRT_BASE=0xC0000000,"
        b"VIRT_ENTRY=0xC0000010,ELF_PADDR_OFFSET=12,HYPERCALL_PAGE=0x2,PAE=yes[extended-cr3],"
        b"BSD_SYMTAB,FEATURES=!pae_pgdir_above_4gb,COLOUR=red"
    )
    assert (found.guest_os, found.guest_version, found.xen_version) == ("Mach", "1", "xen-3.0")
    assert (found.virt_base, found.entry, found.paddr_offset) == (0xC0000000, 0xC0000010, 12)
    assert found.hypercall_page == 0xC0002000  # the second page from the base
    assert found.pae and found.bsd_symtab
    assert found.required == {Feature.pae_pgdir_above_4gb}
    assert ignored(found.raw[-1], "i386") == "Xen does not know it"


@pytest.mark.parametrize("number", [b"", b"0x", b"-1", b"1_0", b"0x1" + b"0" * 17])
def test_the_guest_section_needs_numbers(number):
    with pytest.raises(ImageError, match="which is no number"):
        legacy(b"VIRT_BASE=" + number)


def test_the_guest_section_must_lie_in_the_file():
    with pytest.raises(ImageError, match="__xen_guest lies outside"):
        legacy(b"", size=1 << 30)
