"""A domain's event channels: the ports and what is known of each. Plain data.

The rules are in `xenemu.hv.event_channel`.

In Xen: include/xen/sched.h (struct evtchn)
"""

from __future__ import annotations

import struct
from dataclasses import field
from typing import Final

from xenemu.abi.event_channel import EVTCHN_FIFO_PRIORITY_DEFAULT, EVTCHNSTAT_closed
from xenemu.records import dataclass
from xenemu.x86.paging import Maddr, Mfn

BUCKET: Final = 64  # Xen's ports come into being in groups of this size
MAX_EVENT_CHANNELS: Final = 1023  # xl.cfg's max_event_channels: the highest port

BELLS: Final = 8
BELL: Final = struct.Struct("<II")  # the guest's port, or 0, and how many ns the backend waits


@dataclass
class Channel:
    """One port. `pending`, `last_vcpu` and `last_priority` serve the FIFO ABI alone."""

    state: int = EVTCHNSTAT_closed
    notify_vcpu: int = 0
    remote_domid: int = 0  # unbound, interdomain
    remote_port: int = 0  # interdomain
    virq: int = 0
    pirq: int = 0
    priority: int = EVTCHN_FIFO_PRIORITY_DEFAULT
    pending: bool = False  # raised before its event word existed; never forgotten, as in Xen
    last_vcpu: int = 0  # the queue it was last linked to
    last_priority: int = 0


@dataclass
class Dom0Port:
    """dom0's end of a connection: which backend it belongs to, and the guest's port, or 0."""

    backend: str
    peer: int


@dataclass
class Fifo:
    """A domain's FIFO state. The pages are the guest's own, held by a writable type reference."""

    array: list[Mfn] = field(default_factory=list)  # a page of event words each
    control_blocks: dict[int, Maddr] = field(default_factory=dict)  # by vcpu id
    tails: dict[tuple[int, int], int] = field(default_factory=dict)  # (vcpu id, priority): port


@dataclass
class EventChannels:
    """A domain's event channels. Port 0 is reserved and stays closed.

    Without `fifo`, the domain uses the two-level ABI, all of whose state lies in shared_info.
    """

    channels: list[Channel] = field(default_factory=lambda: [Channel() for _ in range(BUCKET)])
    max_port: int = MAX_EVENT_CHANNELS
    fifo: Fifo | None = None
    virqs: dict[tuple[int, int], int] = field(default_factory=dict)  # (vcpu id, virq): port
    pirqs: dict[int, int] = field(default_factory=dict)  # pirq: port
    dom0_ports: dict[int, Dom0Port] = field(default_factory=dict)
    free_pirqs_given: set[int] = field(default_factory=set)  # PHYSDEVOP_get_free_pirq
    next_reset: int = 0  # the port at which a reset that was interrupted goes on
    # For events that wait until a backend looks; the CPU reads it (cpu/native/bells.c).
    bells: bytearray = field(default_factory=lambda: bytearray(BELLS * BELL.size))
    pirq_eoi_page: Mfn | None = None  # PHYSDEVOP_pirq_eoi_gmfn: held, and never written
