"""Event channels: commands, their arguments, and the FIFO ABI's event words.

Header: public/event_channel.h
"""

from __future__ import annotations

from typing import Annotated, Final

from xenemu.abi.layout import U8, U16, U32, U64, Struct, blob

EVTCHNOP_bind_interdomain: Final = 0
EVTCHNOP_bind_virq: Final = 1
EVTCHNOP_bind_pirq: Final = 2
EVTCHNOP_close: Final = 3
EVTCHNOP_send: Final = 4
EVTCHNOP_status: Final = 5
EVTCHNOP_alloc_unbound: Final = 6
EVTCHNOP_bind_ipi: Final = 7
EVTCHNOP_bind_vcpu: Final = 8
EVTCHNOP_unmask: Final = 9
EVTCHNOP_reset: Final = 10
EVTCHNOP_init_control: Final = 11
EVTCHNOP_expand_array: Final = 12
EVTCHNOP_set_priority: Final = 13
EVTCHNOP_reset_cont: Final = 14

EVTCHNSTAT_closed: Final = 0
EVTCHNSTAT_unbound: Final = 1
EVTCHNSTAT_interdomain: Final = 2
EVTCHNSTAT_pirq: Final = 3
EVTCHNSTAT_virq: Final = 4
EVTCHNSTAT_ipi: Final = 5

EVTCHN_FIFO_PRIORITY_MAX: Final = 0
EVTCHN_FIFO_PRIORITY_DEFAULT: Final = 7
EVTCHN_FIFO_PRIORITY_MIN: Final = 15
EVTCHN_FIFO_MAX_QUEUES: Final = EVTCHN_FIFO_PRIORITY_MIN + 1

EVTCHN_FIFO_PENDING: Final = 31  # bit numbers in an event word
EVTCHN_FIFO_MASKED: Final = 30
EVTCHN_FIFO_LINKED: Final = 29
EVTCHN_FIFO_BUSY: Final = 28
EVTCHN_FIFO_LINK_BITS: Final = 17
EVTCHN_FIFO_LINK_MASK: Final = (1 << EVTCHN_FIFO_LINK_BITS) - 1
EVTCHN_FIFO_NR_CHANNELS: Final = 1 << EVTCHN_FIFO_LINK_BITS


def evtchn_2l_nr_channels(width: int) -> int:
    """``EVTCHN_2L_NR_CHANNELS``: one selector bit for each word of the bitmap."""
    return (8 * width) ** 2


class evtchn_alloc_unbound(Struct, size=(8, 8)):
    """Allocate a port in `dom` for `remote_dom` to bind to; `port` is OUT."""

    dom: U16
    remote_dom: U16
    port: U32


class evtchn_bind_interdomain(Struct, size=(12, 12)):
    """Connect to an unbound port of another domain; `local_port` is OUT."""

    remote_dom: U16
    remote_port: U32
    local_port: U32


class evtchn_bind_virq(Struct, size=(12, 12)):
    """Bind a port to a virtual interrupt; `port` is OUT."""

    virq: U32
    vcpu: U32
    port: U32


class evtchn_bind_pirq(Struct, size=(12, 12)):
    """Bind a port to a physical interrupt; `port` is OUT."""

    pirq: U32
    flags: U32
    port: U32


class evtchn_bind_ipi(Struct, size=(8, 8)):
    """Bind a port that this domain's own vcpus send to; `port` is OUT."""

    vcpu: U32
    port: U32


class evtchn_close(Struct, size=(4, 4)):
    """Close a port."""

    port: U32


class evtchn_send(Struct, size=(4, 4)):
    """Send an event to the other end of a port."""

    port: U32


class evtchn_status(Struct, size=(24, 24)):
    """What a port is; everything after `port` is OUT."""

    dom: U16
    port: U32
    status: U32
    vcpu: U32
    u: Annotated[bytes, blob(8, 4)]  # by status: dom; dom and (at 4) port; pirq; virq


class evtchn_bind_vcpu(Struct, size=(8, 8)):
    """Choose the vcpu that a port notifies."""

    port: U32
    vcpu: U32


class evtchn_unmask(Struct, size=(4, 4)):
    """Unmask a port, and deliver what is pending."""

    port: U32


class evtchn_reset(Struct, size=(2, 2)):
    """Close all ports of a domain."""

    dom: U16


class evtchn_init_control(Struct, size=(24, 24)):
    """Give a vcpu its FIFO control block; `link_bits` is OUT."""

    control_gfn: U64
    offset: U32
    vcpu: U32
    link_bits: U8
    pad: Annotated[bytes, blob(7)]


class evtchn_expand_array(Struct, size=(8, 8)):
    """Add a page of event words."""

    array_gfn: U64


class evtchn_set_priority(Struct, size=(8, 8)):
    """Choose the FIFO queue of a port, 0 being the most urgent."""

    port: U32
    priority: U32


class evtchn_fifo_control_block(Struct, size=(72, 72)):
    """A vcpu's FIFO queues: a ready bit and a head for each priority."""

    ready: U32
    rsvd: U32
    head: Annotated[bytes, blob(4 * EVTCHN_FIFO_MAX_QUEUES, 4)]
