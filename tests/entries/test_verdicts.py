"""Which modes an image can boot in, where it goes, and the sentence if it cannot."""

from __future__ import annotations

import pytest

from elfwriter import (
    ASTRAY,
    KERNEL,
    NOTE,
    PV32_NOTES,
    PV_NOTES,
    VIRT_BASE,
    Phdr,
    Shdr,
    bzimage,
    elf,
    kernel,
    note,
)  # fmt: skip
from xenemu import entries
from xenemu.entries import ENTRIES
from xenemu.errors import ImageError
from xenemu.hv.building import DomainConfig

PVH = note(18, 0x1000010, width=4)


def pv(found):
    return ENTRIES["pv64" if found.machine == "x86_64" else "pv32"].judge(found)


def pvh(found):
    return ENTRIES["pvh"].judge(found)


def verdicts(load, *args, **more):
    return {
        mode: verdict.reason
        for mode, verdict in entries.verdicts(load(kernel(*args, **more))).items()
    }


def bootable(load, *args, **more):
    return {mode for mode, reason in verdicts(load, *args, **more).items() if not reason}


def replaced(notes, *new):
    """Replace notes by those of the same type in `new`."""
    kinds = {one[8:12] for one in new}
    return [*(one for one in notes if one[8:12] not in kinds), *new]


def without(notes, kind):
    return [one for one in notes if one[8] != kind]


def test_each_mode_by_its_notes(load):
    assert bootable(load) == {"pv64"}
    assert bootable(load, PV32_NOTES, bits=32) == {"pv32"}
    assert bootable(load, [PVH]) == bootable(load, [PVH], bits=32) == {"pvh"}
    assert bootable(load, [*PV_NOTES, PVH]) == {"pv64", "pvh"}


def test_pv_addresses(load):
    found = pv(load(kernel([*PV_NOTES, note(15, 1 << 39), note(16, 1)])))
    assert (found.virt_base, found.elf_paddr_offset, found.virt_offset) == (VIRT_BASE, 0, VIRT_BASE)
    assert (found.virt_kstart, found.virt_kend) == (VIRT_BASE + 0x1000000, VIRT_BASE + 0x1002000)
    assert (found.virt_entry, found.virt_hypercall) == (VIRT_BASE + 0x1000000, None)
    assert (found.p2m_base, found.mod_start_pfn) == (1 << 39, True)


def test_pvh_addresses(load):
    found = pvh(load(kernel([PVH])))
    assert found.where == (0x1000000, 0x1002000, 0x1000010)


def test_without_entry_the_elfs_own_is_used_if_there_is_a_hypercall_page(load):
    notes = without(PV_NOTES, 1)
    assert verdicts(load, notes)["pv64"] == "there is no ENTRY note"
    data = kernel([*notes, note(2, VIRT_BASE + 0x1001000)], entry=VIRT_BASE + 0x1000123)
    found = pv(load(data))
    assert (found.virt_entry, found.virt_hypercall) == (
        VIRT_BASE + 0x1000123,
        VIRT_BASE + 0x1001000,
    )


def test_virt_base_defaults_to_0(load):
    notes = [note(5, "xen-3.0"), note(8, "generic"), note(1, 0x1000000)]
    found = pv(load(kernel(notes)))
    assert (found.virt_base, found.virt_offset, found.virt_kstart) == (0, 0, 0x1000000)


def test_init_p2m_is_for_x86_64_only(load):
    data = kernel([*PV32_NOTES, note(15, 0x1000, width=4)], bits=32)
    assert pv(load(data)).p2m_base is None


@pytest.mark.parametrize(
    ("more", "offset"),
    [(b"", 0xC0000000), (b",ELF_PADDR_OFFSET=0xBFFFF000", 0xBFFFF000)],
)
def test_the_guest_section_takes_paddr_for_virtual(load, more, offset):
    string = b"XEN_VER=xen-3.0,LOADER=generic,PAE=yes,VIRT_BASE=0xC0000000,HYPERCALL_PAGE=1" + more
    segment = Phdr(b"code", paddr=0xC0000000, vaddr=0xC0000000, memsz=0x2000)
    data = elf([segment], [Shdr("__xen_guest", string + b"\0")], 32, entry=0xC0001000)
    found = pv(load(data))
    assert (found.virt_base, found.elf_paddr_offset) == (0xC0000000, offset)
    assert found.virt_kstart == 0xC0000000 + 0xC0000000 - offset
    assert not entries.verdicts(load(data))["pvh"].bootable


@pytest.mark.parametrize(
    ("notes", "reason"),
    [
        ([note(8, "x"), note(6, "BSD")], "neither LOADER is generic nor GUEST_OS linux"),
        ([note(5, "xen-2.0")], "XEN_VERSION is 'xen-2.0'"),
        ([note(10, "!dom0")], "FEATURES requires dom0"),
        ([note(10, "!auto_translated_physmap")], "requires auto_translated_physmap"),
        ([note(10, "!supervisor_mode_kernel")], "requires supervisor_mode_kernel"),
        ([note(10, "!warp_drive")], "requires 'warp_drive', which Xen does not know"),
        ([note(1, VIRT_BASE)], "ENTRY, 0xffffffff80000000, lies outside"),
        ([note(1, VIRT_BASE + 0x1002001)], "lies outside"),
        ([note(2, VIRT_BASE + 0x1002000)], "HYPERCALL_PAGE, 0xffffffff81002000, lies outside"),
        ([note(2, 0)], "HYPERCALL_PAGE, 0x0, lies outside"),
        ([note(3, VIRT_BASE + 1)], "not aligned to a page"),
        ([note(4, 0x2000000)], "starts below VIRT_BASE"),
        ([note(3, (1 << 64) - 0x1001000)], "wraps around"),
        ([note(15, VIRT_BASE + 0x1000000)], "INIT_P2M, 0xffffffff81000000, lies inside"),
        ([note(3, 0xFFFF800000000000)], "which no kernel can have"),
        ([note(3, 0x7FFFFF000000)], "which no kernel can have"),
        ([note(15, 0xFFFF800000000000)], "INIT_P2M, 0xffff800000000000, is where no kernel"),
        ([note(15, 0x8000000001)], "INIT_P2M, 0x8000000001, is not aligned"),
    ],
)
def test_what_forbids_pv(load, notes, reason):
    notes = replaced(PV_NOTES, *notes)
    assert reason in verdicts(load, notes)["pv64"]
    with pytest.raises(ImageError, match="cannot boot as pv64"):
        ENTRIES["pv64"].build(load(kernel(notes)), DomainConfig(32 << 20))


def test_ring_0_is_for_pvh_alone(load):
    wanted = note(10, "!supervisor_mode_kernel")
    reason = (
        "FEATURES requires supervisor_mode_kernel, which a PV domain does not have: its kernel runs"
        " in ring 3, or ring 1 if it has 32 bits"
    )
    for notes, bits, pv_name in ((PV_NOTES, 64, "pv64"), (PV32_NOTES, 32, "pv32")):
        found = verdicts(load, [*notes, PVH, wanted], bits=bits)
        assert (found[pv_name], found["pvh"]) == (reason, "")
        image = load(kernel([*notes, PVH, wanted], bits=bits))
        assert entries.choose(image).name == "pvh"
        with pytest.raises(ImageError, match=f"cannot boot as {pv_name}: {reason}"):
            ENTRIES[pv_name].build(image, DomainConfig(32 << 20))
        offered = [*notes, note(10, "supervisor_mode_kernel")]  # it can do without
        assert not verdicts(load, offered, bits=bits)[pv_name]


@pytest.mark.parametrize(
    ("absent", "reason"),
    [(5, "there is no XEN_VERSION note"), (3, "PADDR_OFFSET is given, but VIRT_BASE is not")],
)
def test_notes_that_pv_needs(load, absent, reason):
    assert verdicts(load, without(PV_NOTES, absent))["pv64"] == reason


def test_i386_needs_pae(load):
    reasons = verdicts(load, without(PV32_NOTES, 9), bits=32)
    assert reasons["pv32"] == "PAE_MODE is missing, and Xen runs only i386 kernels with PAE"
    reasons = verdicts(load, replaced(PV32_NOTES, note(9, "no")), bits=32)
    assert "PAE_MODE is 'no'" in reasons["pv32"]


def test_i386_ends_where_xen_begins(load):
    notes = replaced(PV32_NOTES, note(3, 0xF4800000, width=4), note(1, 0xF5800000, width=4))
    assert "0xf5800000-0xf5802000) reaches into" in verdicts(load, notes, bits=32)["pv32"]


def test_the_other_machine_is_named(load):
    assert verdicts(load)["pv32"] == "the image is for x86_64, not i386"
    assert verdicts(load, PV32_NOTES, bits=32)["pv64"] == "the image is for i386, not x86_64"


@pytest.mark.parametrize(
    ("notes", "reason"),
    [
        (PV_NOTES, "there is no PHYS32_ENTRY note"),
        ([note(18, 0xFFFFFF, width=4)], "PHYS32_ENTRY, 0xffffff, lies outside the kernel"),
        ([PVH, note(10, "!dom0")], "FEATURES requires dom0"),
        ([PVH, note(10, "!warp_drive")], "requires 'warp_drive'"),
    ],
)
def test_what_forbids_pvh(load, notes, reason):
    assert reason in verdicts(load, notes)["pvh"]
    with pytest.raises(ImageError, match="cannot boot as pvh"):
        ENTRIES["pvh"].build(load(kernel(notes)), DomainConfig(32 << 20))


def test_a_pvh_entry_has_32_bits(load):
    high = Phdr(b"code", paddr=1 << 32)
    data = elf([high, Phdr(note(18, 1 << 32), 4)])
    assert "lies outside" in entries.verdicts(load(data))["pvh"].reason


def test_a_kernel_without_notes(load):
    assert verdicts(load, [])["pv64"] == "there are no Xen notes"
    reason = entries.verdicts(load(bzimage(elf())))["pvh"].reason
    assert reason == "there are no Xen notes (Linux has them with CONFIG_XEN_PV or CONFIG_PVH)"


def test_an_ordinary_program_is_called_one(load):
    program = elf([KERNEL, Phdr(b"/lib/ld.so\0", 3)], [Shdr(".n", note(1, 1, "GNU"), NOTE)], type=3)
    reason = entries.verdicts(load(program))["pvh"].reason
    assert load(program).is_program
    assert reason.startswith("this is an ordinary program (DYN, run by /lib/ld.so), not a kernel")


def test_a_bsd_kernel_is_none_though_it_has_an_interpreter(load):
    interpreter = Phdr(b"/red/herring\0", 3)
    without_notes = load(elf([KERNEL, interpreter]))
    assert not without_notes.is_program
    assert entries.verdicts(without_notes)["pvh"].reason == "there are no Xen notes"
    other = load(elf([KERNEL, Phdr(b"/lib/ld.so\0", 3), Phdr(PVH, 4, paddr=0)]))
    assert not other.is_program  # it has notes
    assert entries.verdicts(other)["pvh"].bootable


def test_the_elfs_own_entry_is_not_called_a_note(load):
    notes = [*without(PV_NOTES, 1), note(2, VIRT_BASE + 0x1001000)]
    reason = entries.verdicts(load(kernel(notes, entry=0x1234)))["pv64"].reason
    assert reason.startswith("the ELF's e_entry, without an ENTRY note, 0x1234, lies outside")


def test_that_xen_misses_notes_is_part_of_the_reason(load):
    for notes, reason in (
        ((*PV_NOTES, *ASTRAY, PVH), "there is no PHYS32_ENTRY note"),
        ((*ASTRAY, PVH), "there are no Xen notes"),
    ):
        verdict = entries.verdicts(load(kernel(notes)))["pvh"]
        assert verdict.reason == f"{reason}; Xen does not find all notes: see `xenemu inspect`"
    other = entries.verdicts(load(kernel((*PV_NOTES, *ASTRAY, PVH))))["pv32"].reason
    assert other == "the image is for x86_64, not i386"
