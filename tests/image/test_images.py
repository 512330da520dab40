"""The loader is right on real kernels."""

from __future__ import annotations

from pathlib import Path

import pytest

from xenemu import entries, image

EFI = {"efi", "efi32", "efi-handover", "efi-handover32"}
LINUX32 = {"pvh", "linux32", "efi", "efi-handover32"}
LINUX64 = {"pv64", "pvh", "linux32", "linux64"} | EFI
REAL = {
    "debian-amd64": ("bzImage", "xz", "x86_64", "PT_NOTE", LINUX64),
    "debian-cloud-amd64": ("bzImage", "lz4", "x86_64", "PT_NOTE", LINUX64),
    "debian-686-pae": (
        "bzImage",
        "xz",
        "i386",
        "PT_NOTE",
        LINUX32,
    ),
    "grub-x86_64-xen": ("ELF", None, "x86_64", "PT_NOTE", {"pv64"}),
    "grub-i386-xen": ("ELF", None, "i386", "PT_NOTE", {"pv32"}),
    "grub-i386-xen_pvh": ("ELF", None, "i386", "PT_NOTE", {"pvh"}),
    "xen-shim": ("ELF", None, "i386", "PT_NOTE", {"pvh"}),
}


@pytest.mark.parametrize("name", REAL)
def test_real_images(guest_image, name):
    found = image.load(guest_image(name))
    compression = found.payload.compression if found.payload else None
    bootable = {mode for mode, verdict in entries.verdicts(found).items() if verdict.bootable}
    got = (found.format, compression, found.machine, found.notes.source, bootable)
    assert got == REAL[name]


def test_debian_chooses_its_p2m_and_has_no_hypercall_page(guest_image):
    found = entries.ENTRIES["pv64"].judge(image.load(guest_image("debian-amd64")))
    assert (found.virt_hypercall, found.p2m_base, found.mod_start_pfn) == (None, 1 << 39, True)
    assert (found.virt_base, found.virt_kstart) == (0xFFFFFFFF80000000, 0xFFFFFFFF81000000)


def test_mach_has_virtual_addresses_in_paddr_and_a_hypercall_page_by_number(guest_image):
    found = image.load(guest_image("gnumach-xen-486"))
    # Debian builds it for both machines, linked at different places.
    mode, base = {"i386": ("pv32", 0xC0000000), "x86_64": ("pv64", 0x40000000)}[found.machine]
    assert (found.payload.compression, found.notes.source) == ("gzip", "__xen_guest")
    assert [one for one, verdict in entries.verdicts(found).items() if verdict.bootable] == [mode]
    pv = entries.ENTRIES[mode].judge(found)
    assert (pv.virt_offset, pv.virt_kstart) == (0, base)
    assert (pv.virt_entry, pv.virt_hypercall) == (base, base + 0x2000)


def test_ls_is_an_ordinary_program():
    verdicts = entries.verdicts(image.load(Path("/bin/ls")))
    assert not any(verdict.bootable for verdict in verdicts.values())
    assert "ordinary program" in verdicts["pvh"].reason
