"""Audit a domain: is everything true that the hypervisor has written down about it?

The books are recomputed from what they describe: reference counts from memory, ports from their
peers, grants from their mappings. A difference is a bug of xenemu's, and never the guest's fault.
An audit costs a pass over all page tables. So it runs only when asked for: in tests, and between
slices of a run.

In Xen: arch/x86/audit.c, as long as it had one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

from xenemu.abi.event_channel import (
    EVTCHNSTAT_closed,
    EVTCHNSTAT_interdomain,
    EVTCHNSTAT_virq,
)
from xenemu.hv.frame_table import DOMID_NONE, PGT_writable_page
from xenemu.hv.grant_map import granted, mappings_of
from xenemu.hv.grant_map import held as held_by_mappings
from xenemu.hv.grant_table import pin_increment
from xenemu.hv.pagecheck import recount
from xenemu.hv.state.domain import DOM0, Domain
from xenemu.hv.waking import POLL
from xenemu.x86.paging import PAGE_SHIFT

Held = Iterable[tuple[int, int]]  # (mfn, type): references that memory does not show


def audit(domain: Domain, held: Held = ()) -> list[str]:
    """A sentence for each thing that is not as it should be; none if all is well.

    `held` are the references that the personality itself holds.
    """
    on_host = [reference for one in domain.peers.values() for reference in references(one)]
    return [
        *recount(domain.frames, [*on_host, *held], granted(domain.peers.values())),
        *_frames(domain),
        *_events(domain),
        *_grants(domain),
        *_physmap(domain),
        *_waiting(domain),
        *(fault for backend in domain.backends.values() for fault in backend.check(domain)),
    ]


def references(domain: Domain) -> Iterator[tuple[int, int]]:
    """What is held for vcpus, event channels and mapped grants: (mfn, type).

    PGT_none stands for a general reference alone.
    """
    for vcpu in domain.vcpus:
        if vcpu.info_registered:
            yield vcpu.info >> PAGE_SHIFT, PGT_writable_page
    events = domain.events
    if events.pirq_eoi_page is not None:
        yield events.pirq_eoi_page, PGT_writable_page
    if events.fifo is not None:
        for mfn in events.fifo.array:
            yield mfn, PGT_writable_page
        for maddr in events.fifo.control_blocks.values():
            yield maddr >> PAGE_SHIFT, PGT_writable_page
    yield from held_by_mappings(domain)


def _frames(domain: Domain) -> Iterator[str]:
    """Each frame has an owner or is free, and each domain as many as it is counted."""
    frames = domain.frames
    free = list(frames.heap)
    if len(free) != len(frames.heap):
        yield f"the heap is counted {len(frames.heap)} frames, and has {len(free)}"
    for mfn in free:
        if frames.owner[mfn] != DOMID_NONE or frames.count[mfn]:
            yield f"{frames.describe(mfn)} is in the heap"
    owned = Counter(
        owner
        for mfn, owner in enumerate(frames.owner)
        if owner != DOMID_NONE and not frames.is_xen_heap(mfn)  # type: ignore[arg-type]
    )
    for domid, pages in frames.pages.items():
        if owned[domid] != pages.tot_pages:
            yield f"d{domid} is counted {pages.tot_pages} pages, and has {owned[domid]}"


def _events(domain: Domain) -> Iterator[str]:
    """Both ends of a connection know of each other, and a VIRQ knows its port."""
    events = domain.events
    for port, channel in enumerate(events.channels):
        if not 0 <= channel.notify_vcpu < len(domain.vcpus):
            yield f"port {port} notifies vcpu {channel.notify_vcpu}, which does not exist"
        if channel.state == EVTCHNSTAT_interdomain and channel.remote_domid != DOM0:
            if (channel.remote_domid, channel.remote_port) == (domain.domid, port):
                yield f"port {port} is connected to itself"
            peer = domain.peers[channel.remote_domid].events.channels[channel.remote_port]
            ends = (peer.state, peer.remote_domid, peer.remote_port)
            if ends != (EVTCHNSTAT_interdomain, domain.domid, port):
                yield f"port {port} is connected to {channel.remote_port}, which is not to it"
        if channel.state == EVTCHNSTAT_virq:
            key = (channel.notify_vcpu, channel.virq)
            if port not in (events.virqs.get(key), events.virqs.get((0, channel.virq))):
                yield f"VIRQ {channel.virq} does not know its port {port}"
    for (vcpu_id, virq), port in events.virqs.items():
        channel = events.channels[port]
        if (channel.state, channel.virq) != (EVTCHNSTAT_virq, virq):
            yield f"VIRQ {virq} of vcpu {vcpu_id} has port {port}, which is not its own"
    for dom0_port, end in events.dom0_ports.items():
        channel = events.channels[end.peer]
        ends = (channel.state, channel.remote_domid, channel.remote_port)
        if end.peer and ends != (EVTCHNSTAT_interdomain, DOM0, dom0_port):
            yield f"dom0's port {dom0_port} is connected to {end.peer}, which is not to it"
    if events.channels[0].state != EVTCHNSTAT_closed:
        yield "port 0 is in use"


def _grants(domain: Domain) -> Iterator[str]:
    """A grant is pinned as its mappings say. A handle is free, or stands for one mapping."""
    grants = domain.grants
    pins = {(ref, active.domid): active.pin for ref, active in grants.active.items()}
    mapped: Counter[tuple[int, int]] = Counter()
    for grantee, mapping in mappings_of(domain):
        mapped[mapping.ref, grantee] += pin_increment(mapping.flags)
    for ref, grantee in sorted(pins.keys() | mapped.keys()):
        pin, wanted = pins.get((ref, grantee), 0), mapped[ref, grantee]
        if pin != wanted:
            yield (
                f"grant {ref} has the pins {pin:#010x}, its mappings {wanted:#010x}, for d{grantee}"
            )
    for maptrack in (grants.maptrack, grants.dom0):
        free = [handle for handles in maptrack.free.values() for handle in handles]
        if sorted([*free, *maptrack.mappings]) != list(range(len(maptrack.home))):
            yield "a handle of a mapping is lost, or free and in use"
    held = [handle for backend in domain.backends.values() for handle in backend.held(domain)]
    if sorted(held) != sorted(grants.dom0.mappings):
        yield f"dom0 has the mappings {sorted(grants.dom0.mappings)}, its backends {sorted(held)}"


def _physmap(domain: Domain) -> Iterator[str]:
    """What a translated guest finds at its frame numbers is its own, and once there.

    Its grants may be mapped more often, and are in use.
    """
    if domain.p2m is None:
        return
    frames, p2m = domain.frames, domain.p2m
    places = dict(p2m.places())
    seen = Counter(mfn for gfn, mfn in places.items() if gfn not in p2m.granted)
    for mfn in seen:
        if frames.owner[mfn] != domain.domid:
            yield f"{frames.describe(mfn)} is in the domain's physmap"
        if seen[mfn] > 1:
            yield f"{frames.describe(mfn)} is in the physmap {seen[mfn]} times"
    in_use = granted(domain.peers.values())
    for gfn in sorted(p2m.granted):
        if (domain.domid, places.get(gfn)) not in in_use:
            yield f"guest frame {gfn:#x} is said to map a grant, and does not"


def _waiting(domain: Domain) -> Iterator[str]:
    """Only a vcpu that waits for ports polls, or has a timer that ends a poll."""
    for vcpu in domain.vcpus:
        if vcpu.poll_ports and not vcpu.blocked:
            yield f"vcpu {vcpu.vcpu_id} polls, and is not blocked"
        if (POLL, vcpu.vcpu_id) in domain.timers.deadlines_ns and not vcpu.poll_ports:
            yield f"a timer ends the poll of vcpu {vcpu.vcpu_id}, which does not poll"
