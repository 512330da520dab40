"""What the hypervisor holds of a PV domain's frames, and how it lets go when the domain ends.

In Xen: arch/x86/domain.c (domain_relinquish_resources), arch/x86/mm.c (vcpu_destroy_pagetables).
"""

from __future__ import annotations

from xenemu.hv.domain import Domain
from xenemu.hv.event_fifo import Fifo
from xenemu.hv.frame_table import (
    UNLIMITED,
    PGT_none,
    PGT_seg_desc_page,
    PGT_writable_page,
)
from xenemu.pv.state import PvVcpu
from xenemu.x86.paging import PAGE_SHIFT


def references(domain: Domain) -> list[tuple[int, int]]:
    """The references that neither page tables nor the frame table show: (mfn, type).

    PGT_none stands for a general reference alone. For `xenemu.hv.pagecheck.recount`.
    """
    root_type = domain.frames.rules.root_type
    held: list[tuple[int, int]] = []
    for vcpu in domain.vcpus:
        state = vcpu.arch
        assert isinstance(state, PvVcpu)
        held += [(mfn, root_type) for mfn in (state.kernel_root, state.user_root) if mfn]
        held += [(mfn, PGT_seg_desc_page) for mfn in state.gdt_frames]
        held += [(mfn, PGT_seg_desc_page) for mfn in state.ldt_frames.values()]
        if vcpu.info_registered:
            held.append((vcpu.info >> PAGE_SHIFT, PGT_writable_page))
    events = domain.events
    if isinstance(events.abi, Fifo):
        pages = [
            *events.abi.array,
            *(at >> PAGE_SHIFT for at in events.abi.control_blocks.values()),
        ]
        held += [(mfn, PGT_writable_page) for mfn in pages]
    if events.pirq_eoi_page is not None:
        held.append((events.pirq_eoi_page, PGT_writable_page))
    return held + domain.grants.held(translated=False)


def relinquish_resources(domain: Domain) -> list[str]:
    """Let go of all frames of a domain that will not run again.

    Returns a sentence for each frame that is in use even then: a reference was lost.
    """
    frames = domain.frames
    frames.work_left = UNLIMITED
    for mfn, used_as in references(domain):
        if used_as != PGT_none:
            frames.put_page_type(mfn)
        frames.put_page(mfn)
    return frames.relinquish(domain.domid)
