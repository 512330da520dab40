"""Let go of a PV domain's frames when the domain ends: what the hypervisor itself holds of them.

In Xen: arch/x86/domain.c (domain_relinquish_resources), arch/x86/mm.c (vcpu_destroy_pagetables).
"""

from __future__ import annotations

from xenemu.hv import audit as hv_audit
from xenemu.hv.frame_table import UNLIMITED, PGT_none
from xenemu.hv.state.domain import Domain
from xenemu.pv import audit as pv_audit


def references(domain: Domain) -> list[tuple[int, int]]:
    """The references that neither page tables nor the frame table show: (mfn, type)."""
    return [*hv_audit.references(domain), *pv_audit.references(domain)]


def relinquish_resources(domain: Domain) -> list[str]:
    """Let go of all frames of a domain that will not run again.

    Returns a sentence for each frame that is still in use after that: a reference was lost.
    """
    frames = domain.frames
    frames.work_left = UNLIMITED
    for mfn, used_as in references(domain):
        if used_as != PGT_none:
            frames.put_page_type(mfn)
        frames.put_page(mfn)
    return frames.relinquish(domain.domid)
