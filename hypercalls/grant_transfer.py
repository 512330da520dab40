"""GNTTABOP_transfer: giving a page away to a domain that accepts one.

dom0 accepts none. A domain may accept its own: then the page stays, and gets another pfn.

In Xen: common/grant_table.c (gnttab_transfer), arch/x86/mm.c (steal_page)
"""

from __future__ import annotations

from xenemu.abi.grant_table import (
    GNTST_bad_page,
    GNTST_general_error,
    GTF_accept_transfer,
    GTF_transfer_committed,
    GTF_transfer_completed,
    gnttab_transfer,
)
from xenemu.hv import grant_table
from xenemu.hv.frame_table import PGC_allocated
from xenemu.hv.grant_table import GrantError, find_domain
from xenemu.hv.state.domain import Domain
from xenemu.x86.paging import Mfn


def transfer(domain: Domain, op: gnttab_transfer) -> None:
    """Give away the page `op.mfn`; the page is gone, even if nobody takes it.

    GNTST_bad_page, and it stays: not one of the domain's pages, or in any use. GNTST_bad_domain: no
    such domain. GNTST_general_error: that domain has no grant `op.ref` that accepts one, or has all
    the pages that it may have.
    """
    frames, mfn = domain.frames, Mfn(op.mfn)
    if not (
        domain.memory.contains(mfn)
        and frames.owner[mfn] == domain.domid
        and (frames.count[mfn], frames.flags[mfn]) == (1, PGC_allocated)
    ):
        raise GrantError(GNTST_bad_page, f"{frames.describe(mfn)} is not a page to give away")
    try:
        _accept(domain, op)
    except GrantError:
        frames.release(mfn)
        raise


def _accept(giver: Domain, op: gnttab_transfer) -> None:
    """Let the domain `op.domid` take the page, if it says so."""
    taker = find_domain(giver, op.domid)
    if taker is None:
        raise GrantError(GNTST_general_error, f"dom0's grant {op.ref} accepts no page")
    if op.ref >= grant_table.nr_entries(taker):
        raise GrantError(GNTST_general_error, f"there is no grant {op.ref} to accept a page")
    entry = grant_table.read_entry(taker, op.ref)
    if (entry.flags, entry.domid) != (GTF_accept_transfer, giver.domid):
        raise GrantError(
            GNTST_general_error,
            f"grant {op.ref} (flags {entry.flags:#x}, for d{entry.domid}) accepts no page of "
            f"d{giver.domid}'s",
        )
    entry.flags |= GTF_transfer_committed
    grant_table.write_entry(taker, op.ref, entry)
    if taker is not giver:
        if taker.pages.tot_pages >= taker.pages.max_pages:
            raise GrantError(GNTST_general_error, f"d{taker.domid} has all pages that it may have")
        giver.frames.give(Mfn(op.mfn), taker.domid)
    taker.frames.set_m2p(op.mfn, entry.frame)
    entry.frame = op.mfn
    entry.flags |= GTF_transfer_completed
    grant_table.write_entry(taker, op.ref, entry)
