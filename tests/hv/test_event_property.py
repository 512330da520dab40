"""Whatever a guest does to its event channels, ports, bits and queues are those of a plain model.

The model knows what an event is, not how the ABIs store it: sets of ports that are pending or
masked, and a list per FIFO queue. What the guest consumes must come in the model's order.
"""

from __future__ import annotations

import copy
from array import array

from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from fakes import CONSOLE_RING, DOMID, FIRST_GUEST_FRAME, connect_to_dom0, make_domain
from xenemu.abi.event_channel import (
    EVTCHN_FIFO_LINK_MASK,
    EVTCHN_FIFO_LINKED,
    EVTCHN_FIFO_MASKED,
    EVTCHN_FIFO_PENDING,
    EVTCHNSTAT_closed,
    EVTCHNSTAT_interdomain,
    EVTCHNSTAT_ipi,
    EVTCHNSTAT_unbound,
    EVTCHNSTAT_virq,
)
from xenemu.abi.xen import Virq
from xenemu.dom0.console import Console
from xenemu.errors import XenError
from xenemu.hv import event_channel
from xenemu.hv.event_channel import FIRST_DOM0_PORT, PER_VCPU_VIRQS
from xenemu.hv.shared_info import field, vcpu_field
from xenemu.hv.state.domain import DOM0
from xenemu.hv.state.events import Channel
from xenemu.x86.paging import Maddr, Mfn

VCPUS, MAX_PORT, PRIORITIES, DEFAULT = 2, 68, 16, 7
STRANGER = 9
CONTROL = [Mfn(FIRST_GUEST_FRAME + n) for n in range(VCPUS)]
ARRAY = Mfn(FIRST_GUEST_FRAME + VCPUS)
WRONG_PORTS = [0, MAX_PORT + 1]
FEW = 6  # choices of ports that fit
choices = st.integers(0, FEW + 1)
seldom = st.integers(0, 9).map(lambda number: number == 0)
vcpus = st.sampled_from([0, 0, 1, 1, VCPUS])
virqs = st.sampled_from([Virq.TIMER, Virq.DEBUG, Virq.DOM_EXC, Virq.ARCH_0, Virq.NR_VIRQS])


class EventChannels(RuleBasedStateMachine):
    width = 8

    def __init__(self) -> None:
        super().__init__()
        self.domain = make_domain(self.width, pages=4, vcpus=VCPUS)
        self.events = self.domain.events
        self.events.max_port = MAX_PORT
        # The model: where each port notifies, and of each ABI which ports are pending or masked.
        self.fifo = False
        self.vcpu: dict[int, int] = {}
        self.priority: dict[int, int] = {}
        self.pending: set[int] = set()  # two-level
        self.masked: set[int] = set()
        self.selected: list[set[int]] = [set() for _ in range(VCPUS)]
        self.upcall = [False] * VCPUS
        self.raised: set[int] = set()  # FIFO
        self.hidden: set[int] = set()
        self.early: set[int] = set()  # raised before there were words
        self.queues: dict[tuple[int, int], list[int]] = {}
        self.controlled: set[int] = set()
        self.has_array = False
        # The guest's own copy of what it has read.
        self.ready = [0] * VCPUS
        self.heads: dict[tuple[int, int], int] = {}
        self.domain.backends["console"] = Console(CONSOLE_RING)
        self.opened(connect_to_dom0(self.domain, "console"))

    # ---- the model ----

    def linked(self) -> set[int]:
        return {port for queue in self.queues.values() for port in queue}

    def notify(self, port: int) -> None:
        """An event on a port that is open, or was when it came too early."""
        vcpu = self.vcpu.get(port, 0)
        if not self.fifo:
            if port not in self.pending:
                self.pending.add(port)
                if port not in self.masked:
                    self.select(port, vcpu)
        elif not self.has_array:
            self.early.add(port)
        elif vcpu in self.controlled:
            self.raised.add(port)
            if port not in self.hidden:
                self.link(port, vcpu)

    def select(self, port: int, vcpu: int) -> None:
        word = port // (8 * self.width)
        if word not in self.selected[vcpu]:
            self.selected[vcpu].add(word)
            self.upcall[vcpu] = True

    def link(self, port: int, vcpu: int) -> None:
        if port in self.linked():
            return
        queue = self.queues.setdefault((vcpu, self.priority.get(port, DEFAULT)), [])
        if not queue:
            self.upcall[vcpu] = True
        queue.append(port)

    def opened(self, port: int, vcpu: int = 0) -> None:
        assert port not in self.vcpu and 0 < port <= MAX_PORT
        assert port not in self.linked()
        self.vcpu[port] = vcpu
        self.priority[port] = DEFAULT

    def closed(self, port: int) -> None:
        del self.vcpu[port]
        (self.raised if self.fifo else self.pending).discard(port)

    def snapshot(self) -> object:
        """All but ports that nobody has used: as in Xen, even a refusal may bring them."""
        events = dict(vars(self.events))
        events["channels"] = [
            (port, one) for port, one in enumerate(self.events.channels) if one != Channel()
        ]
        return repr(events), bytes(self.domain.memory.bytes)

    def pick(self, choice: int, *states: int) -> int:
        """A port that is open (in one of some states), or, seldom, one that cannot be.

        Of unbound ones alone, those that wait for this domain.
        """
        channels = self.events.channels
        fit = [p for p in sorted(self.vcpu) if not states or channels[p].state in states]
        if states == (EVTCHNSTAT_unbound,):
            fit = [p for p in fit if channels[p].remote_domid == DOMID]
        wrong = choice - FEW
        return fit[choice % len(fit)] if fit and wrong < 0 else WRONG_PORTS[max(0, wrong)]

    def attempt(self, operation: object, *args: object) -> object:
        """Call; None if it is refused, and then nothing has changed."""
        before = self.snapshot()
        try:
            result = operation(*args)  # type: ignore[operator]
        except XenError:
            assert self.snapshot() == before
            return None
        return True if result is None else result

    # ---- hypercalls ----

    @rule(remote=st.sampled_from([DOMID, DOMID, DOM0, STRANGER]))
    def alloc_unbound(self, remote: int) -> None:
        port = self.attempt(event_channel.alloc_unbound, self.domain, remote)
        if port is not None:
            self.opened(port)

    @rule(remote=st.sampled_from([DOMID, DOMID, DOMID, DOM0]), choice=choices)
    def bind_interdomain(self, remote: int, choice: int) -> None:
        remote_port = self.pick(choice, EVTCHNSTAT_unbound) if remote == DOMID else FIRST_DOM0_PORT
        port = self.attempt(event_channel.bind_interdomain, self.domain, remote, remote_port)
        if port is not None:
            self.opened(port)
            self.notify(port)

    @rule(virq=virqs, vcpu=vcpus)
    def bind_virq(self, virq: int, vcpu: int) -> None:
        port = self.attempt(event_channel.bind_virq, self.domain, virq, vcpu)
        if port is not None:
            assert virq in PER_VCPU_VIRQS or vcpu == 0
            self.opened(port, vcpu)

    @rule(choice=choices)
    def close_one_end(self, choice: int) -> None:
        port = self.pick(choice, EVTCHNSTAT_interdomain)
        if self.attempt(event_channel.close, self.domain, port):
            self.closed(port)

    @rule(choice=choices)
    def send_to_a_masked_port(self, choice: int) -> None:
        port = self.pick(choice, EVTCHNSTAT_ipi)
        if port in self.vcpu:
            self.mask_port(port)
            self.send_on(port)

    @rule(vcpu=vcpus)
    def bind_ipi(self, vcpu: int) -> None:
        port = self.attempt(event_channel.bind_ipi, self.domain, vcpu)
        if port is not None:
            self.opened(port, vcpu)

    @rule(vcpu=st.integers(0, VCPUS - 1), count=st.integers(60, 70), really=seldom)
    def bind_many(self, vcpu: int, count: int, really: bool) -> None:
        for _ in range(count if really else 1):
            self.bind_ipi(vcpu)

    @rule(choice=choices)
    def close(self, choice: int) -> None:
        port = self.pick(choice)
        if self.attempt(event_channel.close, self.domain, port):
            self.closed(port)

    @rule(choice=choices)
    def send(self, choice: int) -> None:
        self.send_on(self.pick(choice))

    def send_on(self, port: int) -> None:
        channel = (
            copy.copy(self.events.channels[port]) if port < len(self.events.channels) else None
        )
        if self.attempt(event_channel.send, self.domain, port):
            assert channel is not None
            if channel.state == EVTCHNSTAT_ipi:
                self.notify(port)
            elif channel.state == EVTCHNSTAT_interdomain:
                if channel.remote_domid == DOMID:
                    self.notify(channel.remote_port)
            else:
                assert channel.state == EVTCHNSTAT_unbound

    @rule(virq=st.sampled_from([Virq.TIMER, Virq.DEBUG]), vcpu=st.integers(0, VCPUS - 1))
    def a_virq_comes(self, virq: int, vcpu: int) -> None:
        port = self.events.virqs.get((vcpu, virq))
        event_channel.send_virq(self.domain, virq, vcpu)
        if port is not None:
            self.notify(port)

    @rule(choice=choices)
    def unmask(self, choice: int) -> None:
        port = self.pick(choice)
        if not self.attempt(event_channel.unmask, self.domain, port) or port not in self.vcpu:
            return
        vcpu = self.vcpu[port]
        if not self.fifo:
            if port in self.masked and port in self.pending:
                self.select(port, vcpu)
            self.masked.discard(port)
        elif self.has_array:
            self.hidden.discard(port)
            if port in self.raised and vcpu in self.controlled:
                self.link(port, vcpu)

    @rule(choice=choices, vcpu=vcpus)
    def bind_vcpu(self, choice: int, vcpu: int) -> None:
        port = self.pick(choice, EVTCHNSTAT_unbound, EVTCHNSTAT_interdomain, EVTCHNSTAT_virq)
        if self.attempt(event_channel.bind_vcpu, self.domain, port, vcpu):
            self.vcpu[port] = vcpu

    @rule(choice=choices, priority=st.integers(0, PRIORITIES))
    def set_priority(self, choice: int, priority: int) -> None:
        port = self.pick(choice)
        if self.attempt(event_channel.set_priority, self.domain, port, priority):
            self.priority[port] = priority

    @rule(vcpu=st.integers(0, VCPUS - 1))
    def init_control(self, vcpu: int) -> None:
        mfn = CONTROL[vcpu]
        if vcpu not in self.controlled:
            self.domain.memory.write(Maddr(mfn << 12), bytes(4096))
        if self.attempt(event_channel.init_control, self.domain, vcpu, mfn, 0):
            if not self.fifo:
                self.early |= {p for p in self.pending if p < len(self.events.channels)}
                self.priority = dict.fromkeys(self.priority, DEFAULT)
            self.fifo = True
            self.controlled.add(vcpu)

    @precondition(lambda self: self.fifo and not self.has_array)
    @rule()
    def expand_array(self) -> None:
        self.domain.memory.write(Maddr(ARRAY << 12), bytes(4096))
        if self.attempt(event_channel.expand_array, self.domain, ARRAY):
            self.has_array = True
            for port in sorted(self.early):
                self.notify(port)

    @rule(really=seldom)
    def reset(self, really: bool) -> None:
        if not really:
            return
        assert self.attempt(event_channel.reset, self.domain, False, lambda: False)
        for port in list(self.vcpu):
            self.closed(port)
        self.fifo = self.has_array = False
        self.raised, self.hidden, self.queues, self.controlled = set(), set(), {}, set()
        self.ready, self.heads = [0] * VCPUS, {}

    # ---- what the guest does to the shared pages ----

    def word(self, port: int) -> Maddr:
        return Maddr((ARRAY << 12) + 4 * port)

    @rule(choice=choices)
    def mask(self, choice: int) -> None:
        self.mask_port(min(self.pick(choice), MAX_PORT))

    def mask_port(self, port: int) -> None:
        memory = self.domain.memory
        if not self.fifo:
            byte = Maddr(field(self.domain, "evtchn_mask") + port // 8)
            memory.write_uint(byte, 1, memory.bytes[byte] | 1 << port % 8)
            self.masked.add(port)
        elif self.has_array:
            word = memory.read_uint(self.word(port), 4)
            memory.write_uint(self.word(port), 4, word | 1 << EVTCHN_FIFO_MASKED)
            self.hidden.add(port)

    @precondition(lambda self: not self.fifo)
    @rule(vcpu=st.integers(0, VCPUS - 1))
    def scan(self, vcpu: int) -> None:
        """Handle what the selector names."""
        memory, state = self.domain.memory, self.domain.vcpus[vcpu]
        selector = vcpu_field(self.domain, state, "evtchn_pending_sel")
        words = memory.read_uint(selector, self.width)
        memory.write_uint(selector, self.width, 0)
        memory.write_uint(state.info, 1, 0)
        bits = 8 * self.width
        for index in (n for n in range(bits) if words >> n & 1):
            for port in range(index * bits, (index + 1) * bits):
                if port in self.pending and port not in self.masked:
                    byte = Maddr(field(self.domain, "evtchn_pending") + port // 8)
                    memory.write_uint(byte, 1, memory.bytes[byte] & ~(1 << port % 8))
                    self.pending.discard(port)
        assert {n for n in range(bits) if words >> n & 1} == self.selected[vcpu]
        self.selected[vcpu], self.upcall[vcpu] = set(), False

    @precondition(lambda self: self.fifo)
    @rule(vcpu=st.integers(0, VCPUS - 1), count=st.integers(1, 5))
    def consume(self, vcpu: int, count: int) -> None:
        """Take events off the queues, the most urgent first, as a kernel does."""
        if vcpu not in self.controlled:
            return
        memory, block = self.domain.memory, CONTROL[vcpu] << 12
        memory.write_uint(self.domain.vcpus[vcpu].info, 1, 0)
        self.upcall[vcpu] = False
        for _ in range(count):
            self.ready[vcpu] |= memory.read_uint(Maddr(block), 4)
            memory.write_uint(Maddr(block), 4, 0)
            full = [prio for prio in range(PRIORITIES) if self.queues.get((vcpu, prio))]
            assert self.ready[vcpu] == sum(1 << prio for prio in full)
            if not full:
                return
            queue = (vcpu, full[0])
            port = self.heads.get(queue) or memory.read_uint(Maddr(block + 8 + 4 * full[0]), 4)
            assert port == self.queues[queue].pop(0)
            word = memory.read_uint(self.word(port), 4)
            self.heads[queue] = word & EVTCHN_FIFO_LINK_MASK
            word &= ~(1 << EVTCHN_FIFO_LINKED | EVTCHN_FIFO_LINK_MASK)
            if not word >> EVTCHN_FIFO_MASKED & 1:
                word &= ~(1 << EVTCHN_FIFO_PENDING)
                self.raised.discard(port)
            memory.write_uint(self.word(port), 4, word)
            if not self.heads[queue]:
                self.ready[vcpu] &= ~(1 << full[0])

    # ---- what always holds ----

    @invariant()
    def ports_are_the_models(self) -> None:
        channels = self.events.channels
        open_ = {p for p, one in enumerate(channels) if one.state != EVTCHNSTAT_closed}
        assert open_ == set(self.vcpu)
        assert len(channels) <= MAX_PORT + 64
        assert {p: channels[p].notify_vcpu for p in open_} == self.vcpu

    @invariant()
    def connections_have_two_ends(self) -> None:
        channels = self.events.channels
        for port, one in enumerate(channels):
            if one.state == EVTCHNSTAT_interdomain and one.remote_domid == DOMID:
                peer = channels[one.remote_port]
                assert (peer.state, peer.remote_domid) == (EVTCHNSTAT_interdomain, DOMID)
                assert peer.remote_port == port

    @invariant()
    def virqs_are_those_of_the_ports(self) -> None:
        # A global one stays in the map as vcpu 0's, whomever it notifies.
        found = {
            (one.notify_vcpu if one.virq in PER_VCPU_VIRQS else 0, one.virq): port
            for port, one in enumerate(self.events.channels)
            if one.state == EVTCHNSTAT_virq
        }
        assert self.events.virqs == found

    @invariant()
    def bits_are_the_models(self) -> None:
        memory = self.domain.memory
        for name, expected in (("evtchn_pending", self.pending), ("evtchn_mask", self.masked)):
            base = field(self.domain, name)
            bitmap = memory.read_uint(base, 2 * MAX_PORT // 8)
            assert {p for p in range(2 * MAX_PORT) if bitmap >> p & 1} == expected
        assert [memory.bytes[vcpu.info] for vcpu in self.domain.vcpus] == self.upcall

    @invariant()
    def words_are_the_models(self) -> None:
        assert (self.events.fifo is not None) == self.fifo
        if not self.has_array:
            return
        words = array("I", self.domain.memory.read(Maddr(ARRAY << 12), 4 * 2 * MAX_PORT))
        for bit, expected in (
            (EVTCHN_FIFO_PENDING, self.raised),
            (EVTCHN_FIFO_MASKED, self.hidden),
            (EVTCHN_FIFO_LINKED, self.linked()),
        ):
            assert {p for p, word in enumerate(words) if word >> bit & 1} == expected


# To shrink a failure takes minutes: let Hypothesis do it when there is one.
EventChannels.TestCase.settings = settings(
    max_examples=150,
    stateful_step_count=40,
    phases=[Phase.generate],
)
TestEventChannels = EventChannels.TestCase


class EventChannels32(EventChannels):
    """Those of a 32-bit guest."""

    width = 4


EventChannels32.TestCase.settings = EventChannels.TestCase.settings
TestEventChannels32 = EventChannels32.TestCase
