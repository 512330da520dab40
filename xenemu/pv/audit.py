"""Audit a PV domain: no page table, GDT or LDT is mapped writable, and Xen's entries are Xen's.

It follows from the counts that a table is writable nowhere: every writable mapping in a page table
needs a frame that is used as writable memory alone. The counts do not look at what is Xen's own in
the address space. So that is compared with the domain's state.
"""

from __future__ import annotations

from collections.abc import Iterator

from xenemu.abi.arch_x86.xen import FIRST_RESERVED_GDT_PAGE
from xenemu.hv.audit import audit as audit_domain
from xenemu.hv.frame_table import DOMID_NONE, INVALID_M2P_ENTRY, PGT_none, PGT_seg_desc_page
from xenemu.hv.paging_rules import M2P_L4_SLOT
from xenemu.hv.shared_info import event_pending
from xenemu.hv.state.domain import Domain
from xenemu.pv.perdomain import LDT_PAGE, PAGES_PER_VCPU, VCPUS_PER_L1
from xenemu.pv.state import PvDomain, PvVcpu
from xenemu.x86.paging import ADDR, PAGE_SHIFT, Mfn, P

DESCRIPTOR_SIZE = 8


def audit(domain: Domain) -> list[str]:
    """A sentence for each thing that is not as it should be; none if all is well."""
    return [
        *audit_domain(domain, references(domain)),
        *_xen_slots(domain),
        *_descriptor_tables(domain),
        *_machine_to_physical(domain),
        *_sleepers(domain),
    ]


def _vcpus(domain: Domain) -> Iterator[tuple[int, PvVcpu]]:
    for vcpu in domain.vcpus:
        assert isinstance(vcpu.arch, PvVcpu)
        yield vcpu.vcpu_id, vcpu.arch


def references(domain: Domain) -> Iterator[tuple[int, int]]:
    """The references of the vcpus' root pointers, descriptor tables and old tables.

    The old tables of the vcpu that runs are the frame table's own to count.
    """
    for _, state in _vcpus(domain):
        if state.old_tables is not domain.frames.old_tables:
            for mfn in state.old_tables:
                yield mfn, PGT_none
        for root in (state.kernel_root, state.user_root):
            if root:
                yield root, domain.frames.rules.root_type
        for mfn in (*state.gdt_frames, *state.ldt_frames.values()):
            yield mfn, PGT_seg_desc_page


def _xen_slots(domain: Domain) -> Iterator[str]:
    """Xen's entries of the tables that have them; a user's root may lack the M2P."""
    frames = domain.frames
    rules, wanted = frames.rules, dict(frames.xen_slots)
    for mfn, used_as in enumerate(frames.type):
        if used_as != rules.xen_type or not frames.type_count[mfn] or mfn in frames.partial:
            continue
        table = frames.memory.table(Mfn(mfn))
        for index in rules.xen_slots:
            entry = table[index]
            hidden = rules.width == 8 and index == M2P_L4_SLOT and not entry
            if entry & ADDR | entry & P != wanted.get(index, 0) & (ADDR | P) and not hidden:
                yield f"entry {index} of mfn {mfn:#x} is {entry:#x}, and not Xen's"


def _descriptor_tables(domain: Domain) -> Iterator[str]:
    """The area where Xen maps each vcpu's GDT and LDT maps just their frames."""
    private = domain.arch
    assert isinstance(private, PvDomain)
    for vcpu_id, state in _vcpus(domain):
        if not state.kernel_root:
            continue  # never started
        wanted = [private.zero_page] * FIRST_RESERVED_GDT_PAGE + [private.xen_gdt]
        wanted[: len(state.gdt_frames)] = state.gdt_frames
        pages = dict(enumerate(wanted))
        pages |= {LDT_PAGE + page: mfn for page, mfn in state.ldt_frames.items()}
        l1 = domain.memory.table(private.perdomain_l1[vcpu_id // VCPUS_PER_L1])
        first = vcpu_id % VCPUS_PER_L1 * PAGES_PER_VCPU
        for page in sorted(state.ldt_frames):
            if page << PAGE_SHIFT >= state.ldt_entries * DESCRIPTOR_SIZE:
                yield f"page {page} of vcpu {vcpu_id}'s LDT is beyond its end"
        for page in range(PAGES_PER_VCPU):
            entry = l1[first + page]
            is_ = (entry & ADDR) >> PAGE_SHIFT if entry & P else None
            if is_ != pages.get(page):
                yield f"page {page} of vcpu {vcpu_id}'s descriptor tables is {entry:#x}"


def _machine_to_physical(domain: Domain) -> Iterator[str]:
    """A frame that nobody owns has no pfn."""
    frames = domain.frames
    if frames.m2p_base is None:
        return
    invalid = INVALID_M2P_ENTRY & (1 << 8 * frames.m2p_width) - 1
    size = frames.memory.nr_frames * frames.m2p_width
    base = frames.m2p_base
    m2p = frames.memory.bytes[base : base + size].cast("Q" if frames.m2p_width == 8 else "I")
    for mfn, (owner, pfn) in enumerate(zip(frames.owner, m2p, strict=True)):
        if owner == DOMID_NONE and pfn != invalid:
            yield f"the machine-to-physical table has pfn {pfn:#x} for {frames.describe(mfn)}"


def _sleepers(domain: Domain) -> Iterator[str]:
    """No vcpu sleeps while it has an event that it does not mask.

    That holds while it is the only one that was ever started. Another one may write the bytes of
    the sleeper's vcpu_info itself, which wakes nobody.
    """
    started = [vcpu for vcpu in domain.vcpus if vcpu.online or vcpu.initialised]
    for vcpu in started if len(started) == 1 else ():
        if vcpu.blocked and event_pending(domain, vcpu):
            yield f"vcpu {vcpu.vcpu_id} is blocked while it has events pending"
