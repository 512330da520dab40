"""Event channels: a domain's ports, and everything that can be done with them.

A port is in one of these states:

* ``closed``: it is free.
* ``unbound``: it waits for a peer.
* ``interdomain``: it is one end of a connection.
* ``virq`` or ``pirq``: it stands for a virtual or physical interrupt.
* ``ipi``: it stands for an event among the domain's own vcpus.

The ABI in use decides how the guest sees an event: `TwoLevel`, or `Fifo` once the guest has asked
for it.

dom0 has no event channels of its own, only ends of this domain's. `bind_from_dom0` connects a
backend to a port that waits for it. If the guest closes its end, dom0's end waits for the guest to
bind to it again.

In Xen: common/event_channel.c
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

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
from xenemu.hv.event_2l import TwoLevel
from xenemu.hv.event_fifo import Fifo
from xenemu.x86.paging import Mfn

if TYPE_CHECKING:
    from xenemu.hv.domain import Domain

DOM0: Final = 0
FIRST_DOM0_PORT: Final = 32  # dom0's own ports come first
BUCKET: Final = 64  # Xen's ports come into being in groups of this size
RESET_STEP: Final = 64  # ports closed before a reset looks at events
MAX_EVENT_CHANNELS: Final = 1023  # xl.cfg's max_event_channels: the highest port
PER_VCPU_VIRQS: Final = frozenset({Virq.TIMER, Virq.DEBUG, Virq.XENOPROF, Virq.XENPMU})


MOVABLE: Final = frozenset({EVTCHNSTAT_unbound, EVTCHNSTAT_interdomain, EVTCHNSTAT_pirq})


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
class EventChannels:
    """A domain's event channels. Port 0 is reserved and stays closed."""

    channels: list[Channel] = field(default_factory=lambda: [Channel() for _ in range(BUCKET)])
    max_port: int = MAX_EVENT_CHANNELS
    abi: TwoLevel | Fifo = field(default_factory=TwoLevel)
    virqs: dict[tuple[int, int], int] = field(default_factory=dict)  # (vcpu id, virq): port
    pirqs: dict[int, int] = field(default_factory=dict)  # pirq: port
    dom0_ports: dict[int, Dom0Port] = field(default_factory=dict)
    free_pirqs_given: set[int] = field(default_factory=set)  # PHYSDEVOP_get_free_pirq
    next_reset: int = 0  # the port at which a reset that was interrupted goes on
    pirq_eoi_page: Mfn | None = None  # PHYSDEVOP_pirq_eoi_gmfn: held, and never written

    # Making and unmaking connections.

    def alloc_unbound(self, domain: Domain, remote_domid: int) -> int:
        """Allocate a port that `remote_domid` may bind to; ENOSPC."""
        port = self._free_port(domain)
        channel = self.channels[port]
        channel.state = EVTCHNSTAT_unbound
        channel.remote_domid = remote_domid
        return port

    def bind_from_dom0(self, domain: Domain, port: int, backend: str) -> int:
        """Connect a backend of the domain's to `port`; return dom0's new port.

        EINVAL: the port does not wait for dom0.
        """
        channel = self._channel(port)
        if channel.state != EVTCHNSTAT_unbound or channel.remote_domid != DOM0:
            raise XenError(EINVAL, f"port {port} does not wait for dom0")
        dom0_port = FIRST_DOM0_PORT + len(self.dom0_ports)
        self.dom0_ports[dom0_port] = Dom0Port(backend, port)
        self._connect(port, DOM0, dom0_port)
        return dom0_port

    def bind_interdomain(self, domain: Domain, remote_domid: int, remote_port: int) -> int:
        """Connect a new port to an unbound one of this domain's own, or of dom0's.

        EINVAL: the remote port does not wait for this domain; ENOSPC.
        """
        port = self._free_port(domain)
        if remote_domid == DOM0:
            end = self.dom0_ports.get(remote_port)
            if end is None or end.peer:
                raise XenError(EINVAL, f"dom0's port {remote_port} does not wait for a peer")
            end.peer = port
        else:
            remote = self._channel(remote_port)
            if remote.state != EVTCHNSTAT_unbound or remote.remote_domid != domain.domid:
                raise XenError(EINVAL, f"port {remote_port} does not wait for this domain")
            self._connect(remote_port, domain.domid, port)
        self._connect(port, remote_domid, remote_port)
        # Events sent while the remote port was unbound are lost; look for them now.
        self.set_pending(domain, port)
        return port

    def bind_virq(self, domain: Domain, virq: int, vcpu_id: int) -> int:
        """Bind a new port to a virtual interrupt.

        EINVAL: no such VIRQ, or a global one on a vcpu other than 0; ENOENT: no such vcpu;
        EEXIST: the VIRQ has a port; ENOSPC.
        """
        if virq >= Virq.NR_VIRQS:
            raise XenError(EINVAL, f"there is no VIRQ {virq}")
        if virq not in PER_VCPU_VIRQS and vcpu_id != 0:
            raise XenError(EINVAL, f"VIRQ {virq} is global: it binds on vcpu 0, not {vcpu_id}")
        _check_vcpu(domain, vcpu_id)
        if (vcpu_id, virq) in self.virqs:
            taken = self.virqs[vcpu_id, virq]
            raise XenError(EEXIST, f"VIRQ {virq} of vcpu {vcpu_id} is bound to port {taken}")
        port = self._free_port(domain)
        channel = self.channels[port]
        channel.state = EVTCHNSTAT_virq
        channel.notify_vcpu = vcpu_id
        channel.virq = virq
        self.virqs[vcpu_id, virq] = port
        return port

    def bind_ipi(self, domain: Domain, vcpu_id: int) -> int:
        """Allocate a port that notifies `vcpu_id` when this domain sends on it; ENOENT, ENOSPC."""
        _check_vcpu(domain, vcpu_id)
        port = self._free_port(domain)
        channel = self.channels[port]
        channel.state = EVTCHNSTAT_ipi
        channel.notify_vcpu = vcpu_id
        return port

    def bind_pirq(self, domain: Domain, pirq: int) -> int:
        """Bind a new port to a physical interrupt, which never comes.

        EINVAL: no such pirq; EPERM: a PV guest has none, where a translated one may name any;
        EEXIST: the pirq has a port; ENOSPC.
        """
        if pirq >= NR_PIRQS:
            raise XenError(EINVAL, f"there is no pirq {pirq}")
        if domain.p2m is None:
            raise XenError(EPERM, f"pirq {pirq} is not this domain's")
        if pirq in self.pirqs:
            raise XenError(EEXIST, f"pirq {pirq} is bound to port {self.pirqs[pirq]}")
        port = self.pirqs[pirq] = self._free_port(domain)
        channel = self.channels[port]
        channel.state = EVTCHNSTAT_pirq
        channel.pirq = pirq
        return port

    def close(self, domain: Domain, port: int) -> None:
        """Free a port; its peer waits for a new one. EINVAL: it is not in use."""
        channel = self._channel(port)
        if channel.state == EVTCHNSTAT_closed:
            raise XenError(EINVAL, f"port {port} is closed already")
        if channel.state == EVTCHNSTAT_virq:
            self.virqs = {key: bound for key, bound in self.virqs.items() if bound != port}
        if channel.state == EVTCHNSTAT_pirq:
            del self.pirqs[channel.pirq]
        if channel.state == EVTCHNSTAT_interdomain and channel.remote_domid == DOM0:
            self.dom0_ports[channel.remote_port].peer = 0
        elif channel.state == EVTCHNSTAT_interdomain:
            peer = self.channels[channel.remote_port]
            peer.state = EVTCHNSTAT_unbound
            peer.remote_domid = domain.domid
        self.abi.clear_pending(domain, port)  # or a later owner of the port would be told
        channel.state = EVTCHNSTAT_closed
        channel.notify_vcpu = 0
        channel.priority = EVTCHN_FIFO_PRIORITY_DEFAULT

    def reset(self, domain: Domain, resuming: bool, interrupted: Callable[[], bool]) -> bool:
        """Close every port, and go back to the two-level ABI; False: `interrupted` on the way.

        After False, call it again, with `resuming`. EBUSY: a reset is under way, or there is none
        to be resumed. EAGAIN: ports were opened meanwhile.
        """
        if resuming == (not self.next_reset):
            raise XenError(EBUSY, "no reset is under way" if resuming else "a reset is under way")
        self.next_reset = self.next_reset or 1
        left = sum(channel.state != EVTCHNSTAT_closed for channel in self.channels)
        for port in range(self.next_reset, len(self.channels)):
            if not left:
                break
            if self.channels[port].state != EVTCHNSTAT_closed:
                self.close(domain, port)
                left -= 1
            if port % RESET_STEP == 0 and interrupted():
                self.next_reset = port
                return False
        self.next_reset = 0
        if left:
            raise XenError(EAGAIN, f"{left} ports were opened during a reset")
        if isinstance(self.abi, Fifo):
            self.abi.destroy(domain)
            self.abi = TwoLevel()
        return True

    # Events.

    def send(self, domain: Domain, port: int) -> None:
        """Send an event to the other end of a port; an unbound one swallows it.

        EINVAL: no such port, or not one that this domain can send on.
        """
        channel = self._channel(port)
        if channel.state == EVTCHNSTAT_interdomain:
            if channel.remote_domid == DOM0:
                backend = self.dom0_ports[channel.remote_port].backend
                domain.backends[backend].notify(domain, channel.remote_port)
            else:
                self.set_pending(domain, channel.remote_port)
        elif channel.state == EVTCHNSTAT_ipi:
            self.set_pending(domain, port)
        elif channel.state != EVTCHNSTAT_unbound:
            raise XenError(EINVAL, f"nothing can be sent on port {port}")

    def notify_from_dom0(self, domain: Domain, dom0_port: int) -> None:
        """Send an event from a port of dom0's; it is lost while the guest has no end of it."""
        end = self.dom0_ports.get(dom0_port)
        if end is not None and end.peer:
            self.set_pending(domain, end.peer)

    def set_pending(self, domain: Domain, port: int) -> None:
        """Raise an event on a port of this domain, unless it is closed, and wake who waits."""
        channel = self.channels[port]
        if channel.state != EVTCHNSTAT_closed:
            self.abi.set_pending(domain, port, channel)

    def send_virq(self, domain: Domain, virq: int, vcpu_id: int = 0) -> None:
        """Raise a virtual interrupt; it is lost if the guest has not bound it."""
        port = self.virqs.get((vcpu_id, virq))
        if port is not None:
            self.set_pending(domain, port)

    def is_pending(self, domain: Domain, port: int) -> bool:
        """Whether an event waits on a port; EINVAL: no such port."""
        open_ = self._channel(port).state != EVTCHNSTAT_closed
        return open_ and self.abi.is_pending(domain, port)

    def unmask(self, domain: Domain, port: int) -> None:
        """Unmask a port, and deliver what is pending on it; EINVAL: no such port."""
        channel = self._channel(port)
        if channel.state != EVTCHNSTAT_closed:
            self.abi.unmask(domain, port, channel)

    # What a port is, and where it is delivered.

    def status(self, port: int) -> Channel:
        """Look at a port; EINVAL: no such port."""
        return self._channel(port)

    def bind_vcpu(self, domain: Domain, port: int, vcpu_id: int) -> None:
        """Choose the vcpu that a port notifies.

        ENOENT: no such vcpu; EINVAL: no such port, or one whose vcpu is part of what it is.
        """
        _check_vcpu(domain, vcpu_id)
        channel = self._channel(port)
        movable = channel.state in MOVABLE or (
            channel.state == EVTCHNSTAT_virq and channel.virq not in PER_VCPU_VIRQS
        )
        if not movable:
            raise XenError(EINVAL, f"port {port} cannot move to another vcpu")
        channel.notify_vcpu = vcpu_id

    # The FIFO ABI.

    def init_control(self, domain: Domain, vcpu_id: int, gfn: int, offset: int) -> None:
        """Give a vcpu its control block; the first one switches the domain to the FIFO ABI.

        `vcpu_id` and `offset` are checked by the caller. EINVAL: the vcpu has a control block,
        or the page is not the guest's, or not writable.
        """
        if isinstance(self.abi, Fifo):
            self.abi.map_control_block(domain, vcpu_id, gfn, offset)
            return
        fifo = Fifo()
        fifo.map_control_block(domain, vcpu_id, gfn, offset)
        # What is pending now is raised again when the event words come.
        for port, channel in enumerate(self.channels[: self.abi.nr_channels(domain)]):
            channel.pending |= self.abi.is_pending(domain, port)
            channel.priority = EVTCHN_FIFO_PRIORITY_DEFAULT
        self.abi = fifo

    def expand_array(self, domain: Domain, gfn: int) -> None:
        """Add a page of event words; EOPNOTSUPP: not the FIFO ABI; ENOSPC, EINVAL."""
        if not isinstance(self.abi, Fifo):
            raise XenError(EOPNOTSUPP, "the two-level ABI has no event array")
        self.abi.expand_array(domain, gfn, self.channels)

    def set_priority(self, port: int, priority: int) -> None:
        """Choose a port's queue for its next event.

        EINVAL: no such port or priority; ENOSYS: not the FIFO ABI; EACCES: the port is closed.
        """
        channel = self._channel(port)
        if not isinstance(self.abi, Fifo):
            raise XenError(ENOSYS, "the two-level ABI has no priorities")
        if channel.state == EVTCHNSTAT_closed:
            raise XenError(EACCES, f"port {port} is closed")
        if priority > EVTCHN_FIFO_PRIORITY_MIN:
            raise XenError(EINVAL, f"{priority} is no priority: the least urgent is 15")
        channel.priority = priority

    # Inside.

    def _channel(self, port: int) -> Channel:
        if port >= len(self.channels):
            raise XenError(EINVAL, f"there is no port {port}")
        return self.channels[port]

    def _free_port(self, domain: Domain) -> int:
        """Find the lowest free port, making a bucket of new ones where there is none; ENOSPC."""
        limit = min(self.max_port + 1, self.abi.nr_channels(domain))
        for port in range(1, min(limit, len(self.channels))):
            free = self.channels[port].state == EVTCHNSTAT_closed
            if free and not self.abi.is_busy(domain, port):
                return port
        if len(self.channels) >= limit:
            raise XenError(ENOSPC, f"all {limit - 1} ports are in use")
        self.channels += [Channel() for _ in range(BUCKET)]
        return len(self.channels) - BUCKET

    def _connect(self, port: int, remote_domid: int, remote_port: int) -> None:
        channel = self.channels[port]
        channel.state = EVTCHNSTAT_interdomain
        channel.remote_domid = remote_domid
        channel.remote_port = remote_port


def _check_vcpu(domain: Domain, vcpu_id: int) -> None:
    if vcpu_id >= len(domain.vcpus):
        raise XenError(ENOENT, f"there is no vcpu {vcpu_id}")
