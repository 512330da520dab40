"""Event channels: a domain's ports, and everything that can be done with them.

A port is in one of these states:

* ``closed``: it is free.
* ``unbound``: it waits for a peer.
* ``interdomain``: it is one end of a connection.
* ``virq`` or ``pirq``: it stands for a virtual or physical interrupt.
* ``ipi``: it stands for an event among the domain's own vcpus.

The ABI in use decides how the guest sees an event: `event_2l`, or `event_fifo` once the guest has
asked for it.

dom0 has no event channels of its own, only ends of a domain's. `bind_from_dom0` connects a
backend to a port that waits for it. If the guest closes its end, dom0's end waits for the guest to
bind to it again.

What is known of the ports is in `xenemu.hv.state.events`.

In Xen: common/event_channel.c
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol

from xenemu.abi.errno import (
    EACCES,
    EAGAIN,
    EBUSY,
    EEXIST,
    EINVAL,
    ENOENT,
    ENOSPC,
    ENOSYS,
    EOPNOTSUPP,
    EPERM,
)
from xenemu.abi.event_channel import (
    EVTCHN_FIFO_PRIORITY_DEFAULT,
    EVTCHN_FIFO_PRIORITY_MIN,
    EVTCHNSTAT_closed,
    EVTCHNSTAT_interdomain,
    EVTCHNSTAT_ipi,
    EVTCHNSTAT_pirq,
    EVTCHNSTAT_unbound,
    EVTCHNSTAT_virq,
)
from xenemu.abi.physdev import NR_PIRQS
from xenemu.abi.xen import Virq
from xenemu.errors import XenError
from xenemu.hv import event_2l, event_fifo
from xenemu.hv.state.domain import DOM0, Domain
from xenemu.hv.state.events import BELL, BELLS, BUCKET, Channel, Dom0Port, Fifo

FIRST_DOM0_PORT: Final = 32  # dom0's own ports come first
NO_BELL: Final = (0, 0)
RESET_STEP: Final = 64  # ports closed before a reset looks at events
PER_VCPU_VIRQS: Final = frozenset({Virq.TIMER, Virq.DEBUG, Virq.XENOPROF, Virq.XENPMU})


MOVABLE: Final = frozenset({EVTCHNSTAT_unbound, EVTCHNSTAT_interdomain, EVTCHNSTAT_pirq})


# Making and unmaking connections.


def alloc_unbound(domain: Domain, remote_domid: int) -> int:
    """Allocate a port that `remote_domid` may bind to; ENOSPC."""
    port = _free_port(domain)
    channel = domain.events.channels[port]
    channel.state = EVTCHNSTAT_unbound
    channel.remote_domid = remote_domid
    return port


def bind_from_dom0(domain: Domain, port: int, backend: str, delay_ns: int | None = None) -> int:
    """Connect a backend of the domain's to `port`; return dom0's new port.

    With `delay_ns`, the backend does no more upon an event than to set a timer, unless it is set,
    so much later. Then the CPU need not tell it at once: see `rung`.

    EINVAL: the port does not wait for dom0.
    """
    channel = _channel(domain, port)
    if channel.state != EVTCHNSTAT_unbound or channel.remote_domid != DOM0:
        raise XenError(EINVAL, f"port {port} does not wait for dom0")
    dom0_port = FIRST_DOM0_PORT
    while dom0_port in domain.events.dom0_ports:
        dom0_port += 1
    domain.events.dom0_ports[dom0_port] = Dom0Port(backend, port)
    _connect(domain, port, DOM0, dom0_port)
    if delay_ns is not None:
        _hang_bell(domain, port, delay_ns)
    return dom0_port


def close_from_dom0(domain: Domain, dom0_port: int) -> None:
    """Free a port of dom0's; the guest's end, if there is one, waits for dom0 again."""
    end = domain.events.dom0_ports.pop(dom0_port)
    if end.peer:
        _take_bell(domain, end.peer)
        domain.events.channels[end.peer].state = EVTCHNSTAT_unbound


def bind_interdomain(domain: Domain, remote_domid: int, remote_port: int) -> int:
    """Connect a new port to an unbound one of a domain's, perhaps this one's own, or of dom0's.

    EINVAL: the remote port does not wait for this domain; ENOSPC.
    """
    port = _free_port(domain)
    if remote_domid == DOM0:
        end = domain.events.dom0_ports.get(remote_port)
        if end is None or end.peer:
            raise XenError(EINVAL, f"dom0's port {remote_port} does not wait for a peer")
        end.peer = port
    else:
        peer = domain.peers[remote_domid]
        remote = _channel(peer, remote_port)
        if remote.state != EVTCHNSTAT_unbound or remote.remote_domid != domain.domid:
            raise XenError(EINVAL, f"port {remote_port} does not wait for this domain")
        _connect(peer, remote_port, domain.domid, port)
    _connect(domain, port, remote_domid, remote_port)
    # Events sent while the remote port was unbound are lost; look for them now.
    set_pending(domain, port)
    return port


def bind_virq(domain: Domain, virq: int, vcpu_id: int) -> int:
    """Bind a new port to a virtual interrupt.

    EINVAL: no such VIRQ, or a global one on a vcpu other than 0; ENOENT: no such vcpu;
    EEXIST: the VIRQ has a port; ENOSPC.
    """
    if virq >= Virq.NR_VIRQS:
        raise XenError(EINVAL, f"there is no VIRQ {virq}")
    if virq not in PER_VCPU_VIRQS and vcpu_id != 0:
        raise XenError(EINVAL, f"VIRQ {virq} is global: it binds on vcpu 0, not {vcpu_id}")
    _check_vcpu(domain, vcpu_id)
    if (vcpu_id, virq) in domain.events.virqs:
        taken = domain.events.virqs[vcpu_id, virq]
        raise XenError(EEXIST, f"VIRQ {virq} of vcpu {vcpu_id} is bound to port {taken}")
    port = _free_port(domain)
    channel = domain.events.channels[port]
    channel.state = EVTCHNSTAT_virq
    channel.notify_vcpu = vcpu_id
    channel.virq = virq
    domain.events.virqs[vcpu_id, virq] = port
    return port


def bind_ipi(domain: Domain, vcpu_id: int) -> int:
    """Allocate a port that notifies `vcpu_id` when this domain sends on it; ENOENT, ENOSPC."""
    _check_vcpu(domain, vcpu_id)
    port = _free_port(domain)
    channel = domain.events.channels[port]
    channel.state = EVTCHNSTAT_ipi
    channel.notify_vcpu = vcpu_id
    return port


def bind_pirq(domain: Domain, pirq: int) -> int:
    """Bind a new port to a physical interrupt, which never comes.

    EINVAL: no such pirq; EPERM: a PV guest has none, where a translated one may name any;
    EEXIST: the pirq has a port; ENOSPC.
    """
    if pirq >= NR_PIRQS:
        raise XenError(EINVAL, f"there is no pirq {pirq}")
    if domain.p2m is None:
        raise XenError(EPERM, f"pirq {pirq} is not this domain's")
    if pirq in domain.events.pirqs:
        raise XenError(EEXIST, f"pirq {pirq} is bound to port {domain.events.pirqs[pirq]}")
    port = domain.events.pirqs[pirq] = _free_port(domain)
    channel = domain.events.channels[port]
    channel.state = EVTCHNSTAT_pirq
    channel.pirq = pirq
    return port


def close(domain: Domain, port: int) -> None:
    """Free a port; its peer waits for a new one. EINVAL: it is not in use."""
    channel = _channel(domain, port)
    if channel.state == EVTCHNSTAT_closed:
        raise XenError(EINVAL, f"port {port} is closed already")
    if channel.state == EVTCHNSTAT_virq:
        virqs = domain.events.virqs
        domain.events.virqs = {key: bound for key, bound in virqs.items() if bound != port}
    if channel.state == EVTCHNSTAT_pirq:
        del domain.events.pirqs[channel.pirq]
    if channel.state == EVTCHNSTAT_interdomain and channel.remote_domid == DOM0:
        domain.events.dom0_ports[channel.remote_port].peer = 0
        _take_bell(domain, port)
    elif channel.state == EVTCHNSTAT_interdomain:
        peer = domain.peers[channel.remote_domid].events.channels[channel.remote_port]
        peer.state = EVTCHNSTAT_unbound
        peer.remote_domid = domain.domid
    _abi(domain).clear_pending(domain, port)  # or a later owner of the port would be told
    channel.state = EVTCHNSTAT_closed
    channel.notify_vcpu = 0
    channel.priority = EVTCHN_FIFO_PRIORITY_DEFAULT


def reset(domain: Domain, resuming: bool, interrupted: Callable[[], bool]) -> bool:
    """Close every port, and go back to the two-level ABI; False: `interrupted` on the way.

    After False, call it again, with `resuming`. EBUSY: a reset is under way, or there is none to be
    resumed. EAGAIN: ports were opened meanwhile.
    """
    if resuming == (not domain.events.next_reset):
        raise XenError(EBUSY, "no reset is under way" if resuming else "a reset is under way")
    domain.events.next_reset = domain.events.next_reset or 1
    left = sum(channel.state != EVTCHNSTAT_closed for channel in domain.events.channels)
    for port in range(domain.events.next_reset, len(domain.events.channels)):
        if not left:
            break
        if domain.events.channels[port].state != EVTCHNSTAT_closed:
            close(domain, port)
            left -= 1
        if port % RESET_STEP == 0 and interrupted():
            domain.events.next_reset = port
            return False
    domain.events.next_reset = 0
    if left:
        raise XenError(EAGAIN, f"{left} ports were opened during a reset")
    if domain.events.fifo is not None:
        event_fifo.destroy(domain)
        domain.events.fifo = None
    return True


# Events.


def send(domain: Domain, port: int) -> None:
    """Send an event to the other end of a port; an unbound one swallows it.

    EINVAL: no such port, or not one that this domain can send on.
    """
    channel = _channel(domain, port)
    if channel.state == EVTCHNSTAT_interdomain:
        if channel.remote_domid == DOM0:
            backend = domain.events.dom0_ports[channel.remote_port].backend
            domain.backends[backend].notify(domain, channel.remote_port)
        else:
            set_pending(domain.peers[channel.remote_domid], channel.remote_port)
    elif channel.state == EVTCHNSTAT_ipi:
        set_pending(domain, port)
    elif channel.state != EVTCHNSTAT_unbound:
        raise XenError(EINVAL, f"nothing can be sent on port {port}")


def rung(domain: Domain, bell: int, at_ns: int) -> None:
    """The guest has sent an event at that time, which the CPU did not tell at once."""
    port, _ = BELL.unpack_from(domain.events.bells, bell * BELL.size)
    domain.timers.asked_ns = at_ns
    send(domain, port)


def has_sound_bells(domain: Domain) -> bool:
    """Whether there are as many bells as the CPU knows, and each is on a port of a backend's."""
    channels, bells = domain.events.channels, domain.events.bells
    if len(bells) != BELLS * BELL.size:
        return False
    ports = [port for port, _ in BELL.iter_unpack(bells) if port]
    return all(
        port < len(channels)
        and channels[port].state == EVTCHNSTAT_interdomain
        and channels[port].remote_domid == DOM0
        for port in ports
    )


def notify_from_dom0(domain: Domain, dom0_port: int) -> None:
    """Send an event from a port of dom0's; it is lost while the guest has no end of it."""
    end = domain.events.dom0_ports.get(dom0_port)
    if end is not None and end.peer:
        set_pending(domain, end.peer)


def set_pending(domain: Domain, port: int) -> None:
    """Raise an event on a port of this domain, unless it is closed, and wake who waits."""
    channel = domain.events.channels[port]
    if channel.state == EVTCHNSTAT_closed:
        return
    watch = domain.watch
    was_pending = watch is not None and is_pending(domain, port)
    if domain.events.fifo is None:
        event_2l.set_pending(domain, port, channel)
    else:
        event_fifo.set_pending(domain, port, channel)
    if watch is not None:
        watch.raised(port, was_pending)


def send_virq(domain: Domain, virq: int, vcpu_id: int = 0) -> None:
    """Raise a virtual interrupt; it is lost if the guest has not bound it."""
    port = domain.events.virqs.get((vcpu_id, virq))
    if port is not None:
        set_pending(domain, port)


def is_pending(domain: Domain, port: int) -> bool:
    """Whether an event waits on a port; EINVAL: no such port."""
    open_ = _channel(domain, port).state != EVTCHNSTAT_closed
    return open_ and _abi(domain).is_pending(domain, port)


def is_masked(domain: Domain, port: int) -> bool:
    """Whether the guest masks a port."""
    return _abi(domain).is_masked(domain, port)


def unmask(domain: Domain, port: int) -> None:
    """Unmask a port, and deliver what is pending on it; EINVAL: no such port."""
    channel = _channel(domain, port)
    if channel.state != EVTCHNSTAT_closed:
        _abi(domain).unmask(domain, port, channel)


# What a port is, and where it is delivered.


def status(domain: Domain, port: int) -> Channel:
    """Look at a port; EINVAL: no such port."""
    return _channel(domain, port)


def bind_vcpu(domain: Domain, port: int, vcpu_id: int) -> None:
    """Choose the vcpu that a port notifies.

    ENOENT: no such vcpu; EINVAL: no such port, or the port's kind fixes its vcpu.
    """
    _check_vcpu(domain, vcpu_id)
    channel = _channel(domain, port)
    movable = channel.state in MOVABLE or (
        channel.state == EVTCHNSTAT_virq and channel.virq not in PER_VCPU_VIRQS
    )
    if not movable:
        raise XenError(EINVAL, f"port {port} cannot move to another vcpu")
    channel.notify_vcpu = vcpu_id


# The FIFO ABI.


def init_control(domain: Domain, vcpu_id: int, gfn: int, offset: int) -> None:
    """Give a vcpu its control block; the first one switches the domain to the FIFO ABI.

    `vcpu_id` and `offset` are checked by the caller. EINVAL: the vcpu has a control block,
    or the page is not the guest's, or not writable.
    """
    if domain.events.fifo is not None:
        event_fifo.map_control_block(domain, domain.events.fifo, vcpu_id, gfn, offset)
        return
    fifo = Fifo()
    event_fifo.map_control_block(domain, fifo, vcpu_id, gfn, offset)
    # What is pending now is raised again when the event words come.
    for port, channel in enumerate(domain.events.channels[: event_2l.nr_channels(domain)]):
        channel.pending |= event_2l.is_pending(domain, port)
        channel.priority = EVTCHN_FIFO_PRIORITY_DEFAULT
    domain.events.fifo = fifo


def expand_array(domain: Domain, gfn: int) -> None:
    """Add a page of event words; EOPNOTSUPP: not the FIFO ABI; ENOSPC, EINVAL."""
    if domain.events.fifo is None:
        raise XenError(EOPNOTSUPP, "the two-level ABI has no event array")
    event_fifo.expand_array(domain, gfn)


def set_priority(domain: Domain, port: int, priority: int) -> None:
    """Choose a port's queue for its next event.

    EINVAL: no such port or priority; ENOSYS: not the FIFO ABI; EACCES: the port is closed.
    """
    channel = _channel(domain, port)
    if domain.events.fifo is None:
        raise XenError(ENOSYS, "the two-level ABI has no priorities")
    if channel.state == EVTCHNSTAT_closed:
        raise XenError(EACCES, f"port {port} is closed")
    if priority > EVTCHN_FIFO_PRIORITY_MIN:
        raise XenError(EINVAL, f"{priority} is no priority: the least urgent is 15")
    channel.priority = priority


# Inside.


class Abi(Protocol):
    """How an event is shown to the guest: what the modules `event_2l` and `event_fifo` have."""

    def nr_channels(self, domain: Domain) -> int: ...
    def unmask(self, domain: Domain, port: int, channel: Channel) -> None: ...
    def clear_pending(self, domain: Domain, port: int) -> None: ...
    def is_pending(self, domain: Domain, port: int) -> bool: ...
    def is_masked(self, domain: Domain, port: int) -> bool: ...
    def is_busy(self, domain: Domain, port: int) -> bool: ...


def _abi(domain: Domain) -> Abi:
    if domain.events.fifo is None:
        return event_2l
    return event_fifo


def _channel(domain: Domain, port: int) -> Channel:
    if port >= len(domain.events.channels):
        raise XenError(EINVAL, f"there is no port {port}")
    return domain.events.channels[port]


def _free_port(domain: Domain) -> int:
    """Find the lowest free port, making a bucket of new ones where there is none; ENOSPC."""
    limit = min(domain.events.max_port + 1, _abi(domain).nr_channels(domain))
    for port in range(1, min(limit, len(domain.events.channels))):
        free = domain.events.channels[port].state == EVTCHNSTAT_closed
        if free and not _abi(domain).is_busy(domain, port):
            return port
    if len(domain.events.channels) >= limit:
        raise XenError(ENOSPC, f"all {limit - 1} ports are in use")
    domain.events.channels += [Channel() for _ in range(BUCKET)]
    return len(domain.events.channels) - BUCKET


def _hang_bell(domain: Domain, port: int, delay_ns: int) -> None:
    """Let the CPU keep events on a port back, if there is a bell left."""
    bells = domain.events.bells
    for place in range(0, len(bells), BELL.size):
        if BELL.unpack_from(bells, place) == NO_BELL:
            BELL.pack_into(bells, place, port, delay_ns)
            return


def _take_bell(domain: Domain, port: int) -> None:
    bells = domain.events.bells
    for place in range(0, len(bells), BELL.size):
        if BELL.unpack_from(bells, place)[0] == port:
            BELL.pack_into(bells, place, *NO_BELL)


def _connect(domain: Domain, port: int, remote_domid: int, remote_port: int) -> None:
    channel = domain.events.channels[port]
    channel.state = EVTCHNSTAT_interdomain
    channel.remote_domid = remote_domid
    channel.remote_port = remote_port


def _check_vcpu(domain: Domain, vcpu_id: int) -> None:
    if vcpu_id >= len(domain.vcpus):
        raise XenError(ENOENT, f"there is no vcpu {vcpu_id}")
