"""Where a PVH domain's pieces lie."""

from __future__ import annotations

import pytest

from elfwriter import note
from xenemu.entries import ENTRIES
from xenemu.errors import ImageError
from xenemu.pvh.layout import (
    PvhLayout,
    SpecialPage,
    high_ram,
    lay_out,
    low_ram,
    memory_map,
    rsdp_address,
)

MIB = 1 << 20
GIB = 1 << 30
START = 16 * MIB
MOD_START_PFN = note(16, 1)


def reloc(*words: int) -> bytes:
    return note(19, b"".join(word.to_bytes(4, "little") for word in words))


def place(image, sizes=(), ram=range(64 * MIB), start_info=0x234):
    return lay_out(image, ENTRIES["pvh"].judge(image), sizes, start_info, ram)


@pytest.mark.parametrize(
    ("memory", "low", "high"),
    [
        (64 * MIB, range(64 * MIB), range(4 * GIB, 4 * GIB)),
        (0xFC000000, range(0xFC000000), range(4 * GIB, 4 * GIB)),
        (4 * GIB, range(0xFC000000), range(4 * GIB, 4 * GIB + 64 * MIB)),
    ],
)
def test_ram_goes_on_behind_the_hole(memory, low, high):
    assert (low_ram(memory), high_ram(memory)) == (low, high)


def test_special_pages():
    assert (SpecialPage.XENSTORE.gfn, SpecialPage.CONSOLE.gfn) == (0xFEFFC, 0xFEFFF)


def test_the_memory_map_is_libxls():
    assert memory_map(256 * MIB, 0x7000, 0xFC008000) == [
        (0, 256 * MIB, 1),
        (0xFEFF8000, 0x8000, 2),
        (0xFC008000, 64, 3),
        (0xFC000000, 0x1000, 3),
        (0xFC001000, 0x7000, 3),
    ]


def test_the_memory_map_ends_with_high_memory():
    assert memory_map(4 * GIB, 0x1000, 0xFC002000)[-1] == (4 * GIB, 64 * MIB, 1)


def test_the_memory_map_has_all_of_a_low_rsdps_page():
    assert memory_map(256 * MIB, 0x1000, 0xFFFC0)[2] == (0xFF000, 0x1000, 3)


@pytest.mark.parametrize(
    ("notes", "address"),
    [
        ((), 0xFC002000),
        ((note(6, "linux"),), 0xFFFC0),
        ((note(6, "linux"), note(17, 1 << 15)), 0xFC002000),
        ((note(6, "FreeBSD"),), 0xFC002000),
    ],
)
def test_only_an_old_linux_gets_the_rsdp_in_low_memory(kernel, notes, address):
    assert rsdp_address(ENTRIES["pvh"].judge(kernel(*notes)).low_rsdp, 0x1000) == address


def test_the_kernel_stays_and_the_modules_come_before_start_info(kernel):
    found = place(kernel(memsz=0x2001), [0x1001, 5])
    assert found == PvhLayout(0, (START + 0x3000, START + 0x5000), START + 0x6000)


def test_modules_come_last_for_a_kernel_that_takes_them_unmapped(kernel):
    found = place(kernel(MOD_START_PFN), [0x1001, 5], start_info=0x1800)
    assert found == PvhLayout(0, (START + 0x4000, START + 0x6000), START + 0x2000)


def test_everything_may_end_just_where_ram_does(kernel):
    image = kernel()
    assert place(image, [0x1000], range(START + 0x3234)).start_info == START + 0x3000
    with pytest.raises(ImageError, match="start_info would lie at 0x1003000-0x1003234"):
        place(image, [0x1000], range(START + 0x3233))


def test_a_kernel_beyond_ram_is_refused(kernel):
    with pytest.raises(
        ImageError, match=r"the kernel would lie at 0x1000000-0x1002000.*more memory"
    ):
        place(kernel(), ram=range(16 * MIB))


def test_a_module_that_does_not_fit_is_named(kernel):
    with pytest.raises(ImageError, match="module 1 would lie at 0x1003000-0x5003000"):
        place(kernel(), [1, 64 * MIB])


def test_a_relocatable_kernel_stays_if_it_can(kernel):
    assert place(kernel(reloc(2 * MIB, START, 0xFFFFFFFF))).offset == 0


def test_a_relocatable_kernel_moves_as_high_as_all_fits(kernel):
    found = place(kernel(reloc(MIB, MIB)), [MIB], range(8 * MIB))
    assert found == PvhLayout(6 * MIB - START, (6 * MIB + 0x2000,), 7 * MIB + 0x2000)


def test_a_relocatable_kernel_moves_under_its_highest_address(kernel):
    found = place(kernel(reloc(0x1000, 0, 0x7FFFFF), paddr=128 * MIB))
    assert found.offset == 8 * MIB - 0x2000 - 128 * MIB


def test_relocation_defaults_to_2_mib_anywhere(kernel):
    assert place(kernel(reloc()), ram=range(7 * MIB)).offset == 4 * MIB + 2 * MIB - START


@pytest.mark.parametrize("align", [0, 1, 3])
def test_an_alignment_under_a_page_is_a_page(kernel, align):
    assert (START + place(kernel(reloc(align)), ram=range(MIB)).offset) % 4096 == 0


def test_a_kernel_that_cannot_move_low_enough_is_refused(kernel):
    with pytest.raises(ImageError, match="the kernel would lie at 0x1000000"):
        place(kernel(reloc(2 * MIB, 12 * MIB)), ram=range(8 * MIB))


def test_low_memory_can_be_kept_free(kernel):
    with pytest.raises(ImageError, match="RAM only at 0x100000-0x4000000"):
        place(kernel(paddr=0x8000), ram=range(MIB, 64 * MIB))
