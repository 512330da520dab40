"""The FIFO event channel ABI: an array of event words, and 16 queues per vcpu.

A queue is a list that is linked through the words themselves. Its head is in the vcpu's control
block, which the guest reads. Its tail is the hypervisor's own.

In Xen: common/event_fifo.c, docs/designs/event-channels (the FIFO ABI's design)
"""

from __future__ import annotations

from typing import Final

from xenemu.abi.errno import EINVAL, ENOSPC
from xenemu.abi.event_channel import (
    EVTCHN_FIFO_BUSY,
    EVTCHN_FIFO_LINK_MASK,
    EVTCHN_FIFO_LINKED,
    EVTCHN_FIFO_MASKED,
    EVTCHN_FIFO_NR_CHANNELS,
    EVTCHN_FIFO_PENDING,
    evtchn_fifo_control_block,
)
from xenemu.errors import XenError
from xenemu.hv import waking
from xenemu.hv.frame_table import PGT_writable_page
from xenemu.hv.shared_info import (
    mark_events_pending,
    test_and_clear_bit,
    test_bit,
)
from xenemu.hv.state.domain import Domain
from xenemu.hv.state.events import Channel, Fifo
from xenemu.x86.paging import PAGE_SHIFT, PAGE_SIZE, Maddr, Mfn

WORDS_PER_PAGE: Final = PAGE_SIZE // 4
MAX_ARRAY_PAGES: Final = EVTCHN_FIFO_NR_CHANNELS // WORDS_PER_PAGE
CONTROL_BLOCK_SIZE: Final = evtchn_fifo_control_block.sizeof(8)  # the same in both widths
HEAD: Final = evtchn_fifo_control_block.offsetof("head", 8) // 4  # after `ready`, in words
PENDING: Final = 1 << EVTCHN_FIFO_PENDING
MASKED: Final = 1 << EVTCHN_FIFO_MASKED
LINKED: Final = 1 << EVTCHN_FIFO_LINKED
BUSY: Final = 1 << EVTCHN_FIFO_BUSY


def nr_channels(domain: Domain) -> int:
    return EVTCHN_FIFO_NR_CHANNELS


def _state(domain: Domain) -> Fifo:
    fifo = domain.events.fifo
    assert fifo is not None
    return fifo


def _word(domain: Domain, port: int) -> Maddr | None:
    """The machine address of a port's event word, None while its page is missing."""
    page, index = divmod(port, WORDS_PER_PAGE)
    array = _state(domain).array
    if page >= len(array):
        return None
    return Maddr((array[page] << PAGE_SHIFT) + 4 * index)


def map_control_block(domain: Domain, fifo: Fifo, vcpu_id: int, gfn: int, offset: int) -> None:
    """Take a page for a vcpu's control block: EINVAL if it has one, or the page is no good."""
    if vcpu_id in fifo.control_blocks:
        raise XenError(EINVAL, f"vcpu {vcpu_id} already has a control block")
    mfn = _hold_page(domain, gfn)
    fifo.control_blocks[vcpu_id] = Maddr((mfn << PAGE_SHIFT) + offset)


def expand_array(domain: Domain, gfn: int) -> None:
    """Add a page of event words, and raise the events that waited for their words.

    ENOSPC: every port has a word; EINVAL: the page is not the guest's, or not writable.
    """
    fifo, channels = _state(domain), domain.events.channels
    if len(fifo.array) >= MAX_ARRAY_PAGES:
        raise XenError(ENOSPC, f"the event array has all its {MAX_ARRAY_PAGES} pages")
    first = len(fifo.array) * WORDS_PER_PAGE
    fifo.array.append(_hold_page(domain, gfn))
    for port in range(first, min(first + WORDS_PER_PAGE, len(channels))):
        if channels[port].pending:
            set_pending(domain, port, channels[port])


def destroy(domain: Domain) -> None:
    """Give all pages back to the guest."""
    fifo = _state(domain)
    for mfn in fifo.array:
        domain.frames.put_page_and_type(mfn)
    for maddr in fifo.control_blocks.values():
        domain.frames.put_page_and_type(Mfn(maddr >> PAGE_SHIFT))


def set_pending(domain: Domain, port: int, channel: Channel) -> None:
    """Raise an event; link it to its queue unless it is masked or linked already."""
    fifo, memory = _state(domain), domain.memory
    page, index = divmod(port, WORDS_PER_PAGE)
    if page >= len(fifo.array):
        channel.pending = True
        return
    # Without a control block the event is dropped: the guest must not unmask before it.
    block = fifo.control_blocks.get(channel.notify_vcpu)
    if block is None:
        return
    at = fifo.array[page] * WORDS_PER_PAGE + index
    word = memory.dwords[at]
    if word & (MASKED | LINKED):
        memory.dwords[at] = word | PENDING
    else:
        memory.dwords[at] = word | PENDING | LINKED
        _link(domain, fifo, port, channel, block)
    if memory.code[fifo.array[page]]:
        memory.stale_code.add(fifo.array[page])
    if not word & PENDING:
        waking.check_pollers(domain, port)


def unmask(domain: Domain, port: int, channel: Channel) -> None:
    """Clear MASKED; link the event if it is pending."""
    word = _word(domain, port)
    if word is None:
        return
    test_and_clear_bit(domain.memory, word, EVTCHN_FIFO_MASKED)
    if test_bit(domain.memory, word, EVTCHN_FIFO_PENDING):
        set_pending(domain, port, channel)


def clear_pending(domain: Domain, port: int) -> None:
    """Clear PENDING only: the guest unlinks the word when it meets it in the queue."""
    word = _word(domain, port)
    if word is not None:
        test_and_clear_bit(domain.memory, word, EVTCHN_FIFO_PENDING)


def is_pending(domain: Domain, port: int) -> bool:
    word = _word(domain, port)
    return word is not None and test_bit(domain.memory, word, EVTCHN_FIFO_PENDING)


def is_masked(domain: Domain, port: int) -> bool:
    word = _word(domain, port)
    return word is not None and test_bit(domain.memory, word, EVTCHN_FIFO_MASKED)


def is_busy(domain: Domain, port: int) -> bool:
    """Whether a closed port may not be reused yet: the guest has not unlinked its word."""
    word = _word(domain, port)
    return word is not None and test_bit(domain.memory, word, EVTCHN_FIFO_LINKED)


def _link(domain: Domain, fifo: Fifo, port: int, channel: Channel, block: Maddr) -> None:
    """Append an event, whose word has LINKED now, to its queue; say so if the queue was empty."""
    memory, dwords = domain.memory, domain.memory.dwords
    # The guest unlinked this word; where it was the tail, that queue is empty now.
    old_queue = (channel.last_vcpu, channel.last_priority)
    if fifo.tails.get(old_queue) == port:
        fifo.tails[old_queue] = 0
    queue = (channel.notify_vcpu, channel.priority)
    channel.last_vcpu, channel.last_priority = queue
    tail = fifo.tails.get(queue, 0)
    fifo.tails[queue] = port
    if tail and _set_link(domain, tail, port):
        return
    ready = block >> 2  # a word of a bit for each queue, and then their heads
    dwords[ready + HEAD + channel.priority] = port
    if memory.code[block >> PAGE_SHIFT]:
        memory.stale_code.add(block >> PAGE_SHIFT)
    bit = 1 << channel.priority
    if not dwords[ready] & bit:
        dwords[ready] |= bit
        vcpu = domain.vcpus[channel.notify_vcpu]
        if mark_events_pending(domain, vcpu):
            waking.wake(domain, vcpu)


def _set_link(domain: Domain, tail: int, port: int) -> bool:
    """Point the tail's word at `port`; False if the guest has consumed the tail."""
    memory, maddr = domain.memory, _word(domain, tail)
    assert maddr is not None  # a tail was linked, and pages are never removed
    old = memory.dwords[maddr >> 2]
    if not old & LINKED:
        return False
    memory.dwords[maddr >> 2] = old & ~(BUSY | EVTCHN_FIFO_LINK_MASK) | port
    if memory.code[maddr >> PAGE_SHIFT]:
        memory.stale_code.add(maddr >> PAGE_SHIFT)
    return True


def _hold_page(domain: Domain, gfn: int) -> Mfn:
    """Hold a page of the guest's as writable; EINVAL for any other page."""
    mfn = domain.gfn_to_mfn(gfn)
    try:
        domain.frames.get_page_and_type(mfn, domain.domid, PGT_writable_page)
    except XenError as error:
        raise XenError(EINVAL, f"frame {gfn:#x} cannot be shared: {error.reason}") from None
    return mfn
