"""pv/audit: tables that a guest could write, and Xen's own entries that are not Xen's."""

from __future__ import annotations

from fakes import L1, PERDOMAIN_L1, ROOT, XEN_GDT, make_pv_current, protect
from fakes import L2 as L2_64
from fakes32 import L2, install_gdt, make_pv32_current
from xenemu.hv.current import Current
from xenemu.hv.frame_table import DOMID_NONE
from xenemu.hv.shared_info import mark_events_pending, set_upcall_mask
from xenemu.pv.audit import audit
from xenemu.pv.descriptors import map_ldt_page, set_gdt, set_ldt
from xenemu.x86.paging import PCD, RW, Maddr, Mfn, P

GDT_FRAME, LDT_FRAME, ANY = 40, 41, 42


def with_descriptor_tables() -> Current:
    current = make_pv_current()
    current.domain.frames.xen_slots = [(260, PERDOMAIN_L1 << 12 | P)]
    current.domain.memory.table(ROOT)[260] = PERDOMAIN_L1 << 12 | P
    current.domain.memory.table(Mfn(20))[260] = PERDOMAIN_L1 << 12 | P
    protect(current, GDT_FRAME, LDT_FRAME)
    set_gdt(current, [GDT_FRAME], 512)
    set_ldt(current, LDT_FRAME << 12, 8)
    map_ldt_page(current, 0)
    return current


def test_a_domain_with_a_gdt_and_an_ldt_is_in_order() -> None:
    assert audit(with_descriptor_tables().domain) == []
    current = make_pv32_current()
    install_gdt(current)
    assert audit(current.domain) == []


def test_no_table_is_mapped_writable() -> None:
    for mfn in (L1, ROOT, GDT_FRAME, LDT_FRAME):
        domain = with_descriptor_tables().domain
        domain.memory.table(L1)[mfn] |= RW
        assert any("uses as writable_page" in fault for fault in audit(domain)), mfn


def test_a_root_that_is_no_table_is_noticed() -> None:
    current = with_descriptor_tables()
    current.vcpu.arch.kernel_root = Mfn(ANY)  # type: ignore[attr-defined]
    assert any("the hypervisor uses as l4_page_table" in fault for fault in audit(current.domain))


def test_xens_entries_of_a_root_are_xens() -> None:
    domain = with_descriptor_tables().domain
    domain.memory.table(ROOT)[260] = ANY << 12 | P
    assert f"entry 260 of mfn {ROOT:#x}" in audit(domain)[0]
    domain = make_pv32_current().domain
    domain.memory.table(L2[3])[511] = ANY << 12 | P
    assert "entry 511" in audit(domain)[0]


def test_the_machine_to_physical_table_may_be_hidden_from_a_root() -> None:
    domain = with_descriptor_tables().domain
    domain.frames.xen_slots.append((256, XEN_GDT << 12 | P))
    assert audit(domain) == []
    domain.memory.table(ROOT)[256] = XEN_GDT << 12 | P
    assert audit(domain) == []


def test_the_area_of_descriptor_tables_has_just_the_guests_frames() -> None:
    for page in (0, 5, 14, 16, 17):
        domain = with_descriptor_tables().domain
        domain.memory.table(PERDOMAIN_L1)[page] = ANY << 12 | P
        assert f"page {page} of vcpu 0's descriptor tables" in audit(domain)[0]


def test_a_free_frame_has_no_pfn() -> None:
    domain = make_pv_current().domain
    frames = domain.frames
    frames.m2p_base = Maddr(8 << 12)
    for mfn in range(frames.memory.nr_frames):
        frames.set_m2p(mfn, (1 << 64) - 1)
    assert audit(domain) == []
    frames.set_m2p(9, 5)
    assert "has pfn 0x5 for mfn 0x9" in audit(domain)[0]


def test_a_page_of_an_ldt_that_is_shorter_is_noticed() -> None:
    current = with_descriptor_tables()
    current.vcpu.arch.ldt_entries = 0  # type: ignore[attr-defined]
    assert audit(current.domain) == ["page 0 of vcpu 0's LDT is beyond its end"]


def test_a_vcpu_that_sleeps_through_an_event_is_noticed() -> None:
    current = with_descriptor_tables()
    current.vcpu.blocked = True
    assert audit(current.domain) == []
    mark_events_pending(current.domain, current.vcpu)
    assert audit(current.domain) == ["vcpu 0 is blocked while it has events pending"]
    set_upcall_mask(current.domain, current.vcpu, True)
    assert audit(current.domain) == []


def test_an_event_that_another_vcpu_may_have_written_wakes_nobody() -> None:
    domain = make_pv_current(vcpus=2).domain
    sleeper, other = domain.vcpus
    domain.memory.bytes[sleeper.info] = 1
    sleeper.blocked = True
    assert any("is blocked while it has events pending" in fault for fault in audit(domain))
    other.initialised = True
    assert not any("is blocked while it has events pending" in fault for fault in audit(domain))


def test_an_entry_with_bits_that_it_may_not_have_is_noticed() -> None:
    for table in (L1, L2_64, ROOT):
        domain = with_descriptor_tables().domain
        entries = domain.memory.table(table)
        entries[next(n for n in range(512) if entries[n] & P)] |= PCD
        assert "has the bits 0x10, which it may not" in audit(domain)[0], table


def test_an_entry_that_leads_to_anothers_frame_is_noticed() -> None:
    domain = with_descriptor_tables().domain
    mapped = domain.memory.table(L1)[ANY] >> 12
    domain.frames.owner[mapped] = DOMID_NONE
    assert any(f"leads to mfn {mapped:#x} (nobody's" in fault for fault in audit(domain))
