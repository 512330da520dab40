"""xenemu/hv/event_fifo.py"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest

from fakes import FIRST_GUEST_FRAME, make_domain
from xenemu.abi.errno import EACCES, EINVAL, ENOSPC
from xenemu.abi.event_channel import (
    EVTCHN_FIFO_LINK_MASK,
    EVTCHN_FIFO_LINKED,
    EVTCHN_FIFO_MASKED,
    EVTCHN_FIFO_PENDING,
)
from xenemu.abi.xen import Virq
from xenemu.errors import XenError
from xenemu.hv import event_channel
from xenemu.hv.event_fifo import WORDS_PER_PAGE
from xenemu.hv.frame_table import PGT_l1_page_table
from xenemu.hv.shared_info import event_pending, field
from xenemu.hv.state.domain import Domain
from xenemu.x86.paging import Maddr, Mfn

CONTROL = Mfn(FIRST_GUEST_FRAME)
ARRAY = Mfn(FIRST_GUEST_FRAME + 1)
CONTROL_1 = Mfn(FIRST_GUEST_FRAME + 2)  # vcpu 1's, in the tests that give it one
OFFSET = 0x100
PENDING, MASKED, LINKED = 1 << EVTCHN_FIFO_PENDING, 1 << EVTCHN_FIFO_MASKED, 1 << EVTCHN_FIFO_LINKED
DEFAULT = 7


@pytest.fixture
def domain() -> Domain:
    """A domain with four IPI ports, a control block of vcpu 0, and one page of event words."""
    domain = make_domain(vcpus=2)
    for _ in range(4):
        event_channel.bind_ipi(domain, 0)
    event_channel.init_control(domain, 0, CONTROL, OFFSET)
    event_channel.expand_array(domain, ARRAY)
    return domain


def word(domain: Domain, port: int) -> int:
    return domain.memory.read_uint(Maddr((ARRAY << 12) + 4 * port), 4)


def set_word(domain: Domain, port: int, value: int) -> None:
    domain.memory.write_uint(Maddr((ARRAY << 12) + 4 * port), 4, value)


def ready(domain: Domain, control: Mfn = CONTROL) -> int:
    return domain.memory.read_uint(Maddr((control << 12) + OFFSET), 4)


def head(domain: Domain, priority: int = DEFAULT, control: Mfn = CONTROL) -> int:
    return domain.memory.read_uint(Maddr((control << 12) + OFFSET + 8 + 4 * priority), 4)


def refused(domain: Domain, errno: int, action: Callable[[], object]) -> None:
    """The action gives this errno, and holds no page more than before."""
    counts = list(domain.frames.count), list(domain.frames.type_count)
    with pytest.raises(XenError) as error:
        action()
    assert error.value.errno == errno
    assert (list(domain.frames.count), list(domain.frames.type_count)) == counts


# Queues.


def test_the_first_event_becomes_the_head(domain: Domain) -> None:
    event_channel.send(domain, 2)
    assert word(domain, 2) == PENDING | LINKED
    assert head(domain) == 2 and ready(domain) == 1 << DEFAULT
    assert event_pending(domain, domain.vcpus[0])


def test_the_next_event_is_linked_behind_the_tail(domain: Domain) -> None:
    event_channel.send(domain, 2)
    event_channel.send(domain, 3)
    assert word(domain, 2) & EVTCHN_FIFO_LINK_MASK == 3
    assert word(domain, 3) == PENDING | LINKED
    assert head(domain) == 2


def test_an_event_behind_a_consumed_tail_becomes_the_head(domain: Domain) -> None:
    event_channel.send(domain, 2)
    set_word(domain, 2, 0)
    event_channel.send(domain, 3)
    assert head(domain) == 3
    assert word(domain, 2) == 0


def test_the_tail_itself_can_come_again(domain: Domain) -> None:
    event_channel.send(domain, 2)
    set_word(domain, 2, 0)
    event_channel.send(domain, 2)
    assert word(domain, 2) == PENDING | LINKED
    assert head(domain) == 2


def test_a_masked_event_is_pending_and_not_linked(domain: Domain) -> None:
    set_word(domain, 2, MASKED)
    event_channel.send(domain, 2)
    assert word(domain, 2) == PENDING | MASKED
    assert ready(domain) == 0 and not event_pending(domain, domain.vcpus[0])


def test_unmasking_links_what_is_pending(domain: Domain) -> None:
    set_word(domain, 2, PENDING | MASKED)
    event_channel.unmask(domain, 2)
    assert word(domain, 2) == PENDING | LINKED
    assert head(domain) == 2


def test_a_linked_event_keeps_its_place(domain: Domain) -> None:
    event_channel.send(domain, 2)
    event_channel.send(domain, 3)
    set_word(domain, 2, word(domain, 2) & ~PENDING)
    event_channel.send(domain, 2)
    assert word(domain, 2) == PENDING | LINKED | 3


def test_each_priority_has_its_own_queue(domain: Domain) -> None:
    event_channel.set_priority(domain, 3, 0)
    event_channel.send(domain, 2)
    event_channel.send(domain, 3)
    assert (head(domain, DEFAULT), head(domain, 0)) == (2, 3)
    assert ready(domain) == 1 << DEFAULT | 1


def test_an_event_that_left_its_queue_for_another_is_no_tail_of_the_old_one(
    domain: Domain,
) -> None:
    event_channel.send(domain, 2)
    set_word(domain, 2, 0)
    event_channel.set_priority(domain, 2, 0)
    event_channel.send(domain, 2)
    event_channel.send(domain, 3)
    assert word(domain, 2) == PENDING | LINKED
    assert (head(domain, 0), head(domain, DEFAULT)) == (2, 3)


def test_each_vcpu_has_its_own_queues(domain: Domain) -> None:
    event_channel.init_control(domain, 1, CONTROL_1, OFFSET)
    port = event_channel.bind_ipi(domain, 1)
    event_channel.send(domain, port)
    assert (head(domain, control=CONTROL_1), ready(domain, CONTROL_1)) == (port, 1 << DEFAULT)
    assert ready(domain) == 0
    assert [event_pending(domain, vcpu) for vcpu in domain.vcpus] == [False, True]


def test_an_event_moves_to_another_vcpus_queue_once_the_guest_has_taken_it(domain: Domain) -> None:
    event_channel.init_control(domain, 1, CONTROL_1, OFFSET)
    port = event_channel.bind_virq(domain, Virq.DOM_EXC, 0)
    event_channel.send_virq(domain, Virq.DOM_EXC)
    event_channel.bind_vcpu(domain, port, 1)
    event_channel.send_virq(domain, Virq.DOM_EXC)
    assert ready(domain, CONTROL_1) == 0  # it is linked still
    set_word(domain, port, 0)
    event_channel.send_virq(domain, Virq.DOM_EXC)
    assert (head(domain, control=CONTROL_1), ready(domain, CONTROL_1)) == (port, 1 << DEFAULT)
    event_channel.send(domain, 3)
    assert head(domain) == 3  # the moved one is no tail here


def test_a_word_full_of_nonsense_is_survived(domain: Domain) -> None:
    event_channel.send(domain, 2)
    set_word(domain, 2, 0xFFFFFFFF)
    event_channel.send(domain, 3)
    assert word(domain, 2) & EVTCHN_FIFO_LINK_MASK == 3


# Closing.


def test_a_closed_port_that_is_still_linked_is_not_reused(domain: Domain) -> None:
    event_channel.send(domain, 2)
    event_channel.close(domain, 2)
    assert word(domain, 2) == LINKED
    assert event_channel.bind_ipi(domain, 0) == 5
    set_word(domain, 2, 0)
    assert event_channel.bind_ipi(domain, 0) == 2


def test_a_new_port_has_the_default_priority(domain: Domain) -> None:
    event_channel.set_priority(domain, 4, 0)
    event_channel.close(domain, 4)
    assert event_channel.bind_ipi(domain, 0) == 4
    assert event_channel.status(domain, 4).priority == DEFAULT


# Setting up.


def test_what_was_pending_before_is_raised_when_its_word_comes() -> None:
    domain = make_domain()
    port = event_channel.bind_ipi(domain, 0)
    domain.memory.write_uint(field(domain, "evtchn_pending"), 8, 1 << port)
    event_channel.init_control(domain, 0, CONTROL, OFFSET)
    assert head(domain) == 0
    event_channel.expand_array(domain, ARRAY)
    assert word(domain, port) == PENDING | LINKED and head(domain) == port


@pytest.mark.parametrize("closed", [False, True])
def test_an_event_without_a_word_is_raised_later(closed: bool) -> None:
    """As in Xen, the guest even hears of a port that it has closed."""
    domain = make_domain()
    port = event_channel.bind_ipi(domain, 0)
    event_channel.init_control(domain, 0, CONTROL, OFFSET)
    event_channel.send(domain, port)
    if closed:
        event_channel.close(domain, port)
    event_channel.expand_array(domain, ARRAY)
    assert head(domain) == port


def test_an_event_for_a_vcpu_without_control_block_is_dropped(domain: Domain) -> None:
    port = event_channel.bind_ipi(domain, 1)
    event_channel.send(domain, port)
    assert word(domain, port) == 0
    assert not event_pending(domain, domain.vcpus[1])


def test_the_pages_are_held_as_writable(domain: Domain) -> None:
    for mfn in (CONTROL, ARRAY):
        refused(domain, EINVAL, partial(domain.frames.get_page_type, mfn, PGT_l1_page_table))


def test_a_page_that_is_not_the_guests_is_refused(domain: Domain) -> None:
    for gfn in (5, 1 << 40):
        refused(domain, EINVAL, partial(event_channel.expand_array, domain, gfn))
        refused(domain, EINVAL, partial(event_channel.init_control, domain, 1, gfn, 0))


def test_a_failed_first_control_block_leaves_the_two_level_abi() -> None:
    domain = make_domain()
    refused(domain, EINVAL, lambda: event_channel.init_control(domain, 0, 5, 0))
    assert domain.events.fifo is None


def test_a_vcpu_has_one_control_block(domain: Domain) -> None:
    refused(domain, EINVAL, lambda: event_channel.init_control(domain, 0, ARRAY + 1, 0))


def test_the_array_has_a_word_for_each_port_and_no_more(domain: Domain) -> None:
    for _ in range(127):
        event_channel.expand_array(domain, ARRAY)
    assert domain.events.fifo is not None
    assert len(domain.events.fifo.array) * WORDS_PER_PAGE == 1 << 17
    refused(domain, ENOSPC, lambda: event_channel.expand_array(domain, ARRAY))


@pytest.mark.parametrize(("port", "priority", "errno"), [(2, 16, EINVAL), (9, 0, EACCES)])
def test_a_priority_that_cannot_be_set(
    domain: Domain, port: int, priority: int, errno: int
) -> None:
    refused(domain, errno, lambda: event_channel.set_priority(domain, port, priority))
    assert event_channel.status(domain, port).priority == DEFAULT


def test_reset_gives_the_pages_back(domain: Domain) -> None:
    event_channel.reset(domain, False, lambda: False)
    assert domain.events.fifo is None
    assert domain.frames.type_count[CONTROL] == domain.frames.type_count[ARRAY] == 0
