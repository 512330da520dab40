"""pv/layout: where the pieces of a domain lie."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xenemu.errors import ImageError
from xenemu.pv.layout import PvLayout, PvParameters, lay_out

BASE = 0xFFFF_FFFF_8000_0000
KERNEL_PAGES, NR_PAGES, INITRD_PAGES = 0x1200, 0x10000, 5
P2M_PAGES = NR_PAGES * 8 // 4096
P2M_BASE = 0xFFFF_A000_0000_0000


def place(
    base: int = BASE,
    p2m_base: int | None = None,
    mod_start_pfn: bool = False,
    kernel_pages: int = KERNEL_PAGES,
    nr_pages: int = NR_PAGES,
    initrd_pages: int = INITRD_PAGES,
) -> PvLayout:
    end = base + (kernel_pages << 12) - 1
    kernel = PvParameters(
        virt_base=base,
        elf_paddr_offset=0,
        virt_offset=base,
        virt_kstart=base + 0x1000,
        virt_kend=end,
        virt_entry=base + 0x1000,
        virt_hypercall=None,
        p2m_base=p2m_base,
        mod_start_pfn=mod_start_pfn,
        supported=frozenset(),
        required=frozenset(),
    )
    return lay_out(kernel, nr_pages, initrd_pages * 4096 - 1, 8, "vmlinux")


def test_the_pieces_follow_the_kernel_in_libxenguests_order() -> None:
    layout = place()
    assert layout.initrd == KERNEL_PAGES
    assert layout.p2m == layout.initrd + INITRD_PAGES
    assert layout.start_info == layout.p2m + P2M_PAGES
    assert layout.xenstore == layout.start_info + 1
    assert layout.console == layout.start_info + 2
    assert layout.page_tables == layout.start_info + 3
    assert layout.boot_stack == layout.page_tables + layout.nr_page_tables


def test_all_of_it_is_mapped_with_room_to_a_boundary() -> None:
    layout = place()
    ((vaddr, count, first),) = layout.tables.ranges
    end = vaddr + (count << 12)
    assert (vaddr, first, end % (4 << 20)) == (BASE, 0, 0)
    assert end - layout.vaddr(layout.boot_stack) >= (512 << 10) + 4096
    assert end - layout.vaddr(layout.boot_stack) <= (512 << 10) + 4096 + (4 << 20)
    assert layout.end == count


def test_the_tables_cover_what_is_mapped_and_no_more() -> None:
    layout = place()
    ((_, count, _),) = layout.tables.ranges
    levels = [level for level, _ in layout.tables.pfns]
    assert [levels.count(n) for n in (4, 3, 2, 1)] == [1, 1, 1, count >> 9]
    assert layout.nr_page_tables == len(levels)
    first = min(layout.tables.pfns.values())
    assert sorted(layout.tables.pfns.values()) == list(range(first, first + len(levels)))


def test_an_initrd_may_stay_unmapped() -> None:
    layout = place(mod_start_pfn=True)
    ((_, mapped, _),) = layout.tables.ranges
    assert (layout.p2m, layout.initrd) == (KERNEL_PAGES, mapped)
    assert layout.end == mapped + INITRD_PAGES


def test_a_p2m_list_may_have_its_own_place() -> None:
    layout = place(p2m_base=P2M_BASE, mod_start_pfn=True)
    mapped = layout.tables.ranges[0][1]
    assert layout.start_info == KERNEL_PAGES
    assert layout.p2m == layout.initrd + INITRD_PAGES == mapped + INITRD_PAGES
    assert layout.tables.ranges[1] == (P2M_BASE, P2M_PAGES, layout.p2m)
    assert (layout.p2m_vaddr, layout.p2m_pages) == (P2M_BASE, P2M_PAGES + 3)
    assert layout.nr_page_tables + 3 == len(layout.tables.pfns)


@pytest.mark.parametrize(
    "what",
    [
        {"nr_pages": KERNEL_PAGES},
        {"initrd_pages": NR_PAGES},
        {"initrd_pages": NR_PAGES, "mod_start_pfn": True},
        {"kernel_pages": 1 << 35},
        {"nr_pages": 0},
    ],
)
def test_a_domain_that_is_too_small_is_said_to_be(what: dict[str, int]) -> None:
    with pytest.raises(ImageError, match=r"vmlinux: .* more memory$"):
        place(**what)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "base", [(1 << 64) - (16 << 20), (1 << 47) - (16 << 20), 1 << 47, 0x1234_0000_0000_0000]
)
def test_what_runs_off_the_canonical_addresses_is_refused(base: int) -> None:
    with pytest.raises(ImageError, match="which cannot be"):
        place(base)
    with pytest.raises(ImageError, match="which cannot be"):
        place(p2m_base=base + (16 << 20) - 4096)


@pytest.mark.parametrize("p2m_base", [BASE, BASE + (19 << 20), BASE - 4096])
def test_the_p2m_list_is_not_where_the_kernel_is(p2m_base: int) -> None:
    with pytest.raises(ImageError, match="INIT_P2M"):
        place(p2m_base=p2m_base)


@given(
    base=st.sampled_from([0, 4 << 20, 0x3FF000, 0xFFFF_8800_0000_0000, BASE]),
    kernel_pages=st.integers(1, 20000),
    initrd_pages=st.integers(0, 3000),
    mod_start_pfn=st.booleans(),
    p2m_base=st.sampled_from([None, P2M_BASE, 0x7FFF_FFE0_0000]),
)
def test_pieces_never_overlap_and_all_is_mapped(
    base: int, kernel_pages: int, initrd_pages: int, mod_start_pfn: bool, p2m_base: int | None
) -> None:
    layout = place(base, p2m_base, mod_start_pfn, kernel_pages, NR_PAGES, initrd_pages)
    pieces = [
        (0, kernel_pages),
        (layout.initrd, initrd_pages),
        (layout.p2m, layout.p2m_pages),
        (layout.start_info, 3),
        (layout.page_tables, layout.nr_page_tables),
        (layout.boot_stack, 1),
    ]
    ends = 0
    for first, count in sorted(piece for piece in pieces if piece[1]):
        assert first >= ends
        ends = first + count
    assert ends <= layout.end <= NR_PAGES
    for vaddr, count, _ in layout.tables.ranges:
        for page in range(vaddr >> 12, (vaddr >> 12) + count, 512):
            assert (1, (page & (1 << 36) - 1) >> 9) in layout.tables.pfns
