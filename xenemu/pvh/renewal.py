"""A soft reset: what the hypervisor drops of a PVH domain, whose memory and registers stay.

A kernel that is about to start another one (kexec, kdump) asks for it by SCHEDOP_shutdown. The
other kernel then finds a domain that nobody has used yet, except for its memory.

In Xen: common/domain.c (domain_soft_reset), arch/x86/domain.c (arch_domain_soft_reset)
"""

from __future__ import annotations

from xenemu.abi.hvm import params
from xenemu.hv import event_channel, scheduler
from xenemu.hv.building import give_rings, vcpu_info_at
from xenemu.hv.current import Current
from xenemu.hv.state.domain import Domain
from xenemu.hv.state.vcpu import Vcpu
from xenemu.pvh.callbacks import update_upcall
from xenemu.pvh.state import pvh_domain
from xenemu.x86.paging import PAGE_SHIFT, Mfn


def soft_reset(current: Current) -> None:
    """Let go of all that a domain has asked the hypervisor for, and let it run again.

    dom0's backends must have let go of theirs. Its two rings have ports and grants again after it.
    """
    domain = current.domain
    event_channel.reset(domain, bool(domain.events.next_reset), lambda: False)
    for vcpu in domain.vcpus:
        vcpu.runstate_area = 0
        unmap_vcpu_info(domain, vcpu)
    _replace_shared_info(domain)
    give_rings(domain)
    ports = {
        params.HVM_PARAM_STORE_EVTCHN: domain.xenstore.port,
        params.HVM_PARAM_CONSOLE_EVTCHN: domain.console.port,
    }
    pvh_domain(current).params.update(ports)
    update_upcall(current)
    scheduler.resume(domain)


def unmap_vcpu_info(domain: Domain, vcpu: Vcpu) -> None:
    """Move a vcpu's vcpu_info back to where it was at first, without what it has."""
    if not vcpu.info_registered:
        return
    domain.frames.put_page_and_type(vcpu.info >> PAGE_SHIFT)
    vcpu.info_registered = False
    # The builder has the dummy for vcpus without room after shared_info.
    vcpu.info = vcpu_info_at(vcpu.vcpu_id, domain.shared_info, Mfn(domain.shared_info + 1))


def _replace_shared_info(domain: Domain) -> None:
    """Put RAM where the guest has shared_info, or another kernel would find a hole there."""
    assert domain.p2m is not None
    gfn = domain.p2m.find(domain.shared_info)
    if gfn is None:
        return
    (fresh,) = domain.frames.alloc_frames(domain.domid)
    domain.p2m.remove(gfn)
    domain.p2m.set(gfn, fresh)
