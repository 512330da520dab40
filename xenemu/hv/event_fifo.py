"""The FIFO event channel ABI: an array of event words, and 16 queues per vcpu.

A queue is a list that is linked through the words themselves. Its head is in the vcpu's control
block, which the guest reads. Its tail is the hypervisor's own.

In Xen: common/event_fifo.c, docs/designs/event-channels (the FIFO ABI's design)
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

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
from xenemu.hv import scheduler
from xenemu.hv.frame_table import PGT_writable_page
from xenemu.hv.shared_info import (
    mark_events_pending,
    test_and_clear_bit,
    test_and_set_bit,
    test_bit,
)
from xenemu.x86.paging import PAGE_SHIFT, PAGE_SIZE, Maddr, Mfn

if TYPE_CHECKING:
    from xenemu.hv.domain import Domain
    from xenemu.hv.event_channel import Channel

WORDS_PER_PAGE: Final = PAGE_SIZE // 4
MAX_ARRAY_PAGES: Final = EVTCHN_FIFO_NR_CHANNELS // WORDS_PER_PAGE
CONTROL_BLOCK_SIZE: Final = evtchn_fifo_control_block.sizeof(8)  # the same in both widths
READY: Final = evtchn_fifo_control_block.offsetof("ready", 8)
HEAD: Final = evtchn_fifo_control_block.offsetof("head", 8)


@dataclass
class Fifo:
    """A domain's FIFO state. The pages are the guest's own, held by a writable type reference."""

    array: list[Mfn] = field(default_factory=list)  # a page of event words each
    control_blocks: dict[int, Maddr] = field(default_factory=dict)  # by vcpu id
    tails: dict[tuple[int, int], int] = field(default_factory=dict)  # (vcpu id, priority): port

    def nr_channels(self, domain: Domain) -> int:
        return EVTCHN_FIFO_NR_CHANNELS

    def word(self, port: int) -> Maddr | None:
        """The machine address of a port's event word, None while its page is missing."""
        page, index = divmod(port, WORDS_PER_PAGE)
        if page >= len(self.array):
            return None
        return Maddr((self.array[page] << PAGE_SHIFT) + 4 * index)

    def map_control_block(self, domain: Domain, vcpu_id: int, gfn: int, offset: int) -> None:
        """Take a page for a vcpu's control block: EINVAL if it has one, or the page is no good."""
        if vcpu_id in self.control_blocks:
            raise XenError(EINVAL, f"vcpu {vcpu_id} already has a control block")
        mfn = _hold_page(domain, gfn)
        self.control_blocks[vcpu_id] = Maddr((mfn << PAGE_SHIFT) + offset)

    def expand_array(self, domain: Domain, gfn: int, channels: list[Channel]) -> None:
        """Add a page of event words, and raise what was pending for want of it.

        ENOSPC: every port has a word; EINVAL: the page is not the guest's, or not writable.
        """
        if len(self.array) >= MAX_ARRAY_PAGES:
            raise XenError(ENOSPC, f"the event array has all its {MAX_ARRAY_PAGES} pages")
        first = len(self.array) * WORDS_PER_PAGE
        self.array.append(_hold_page(domain, gfn))
        for port in range(first, min(first + WORDS_PER_PAGE, len(channels))):
            if channels[port].pending:
                self.set_pending(domain, port, channels[port])

    def destroy(self, domain: Domain) -> None:
        """Give all pages back to the guest."""
        for mfn in self.array:
            domain.frames.put_page_and_type(mfn)
        for maddr in self.control_blocks.values():
            domain.frames.put_page_and_type(Mfn(maddr >> PAGE_SHIFT))

    def set_pending(self, domain: Domain, port: int, channel: Channel) -> None:
        """Raise an event; link it to its queue unless it is masked or linked already."""
        word = self.word(port)
        if word is None:
            channel.pending = True
            return
        # Without a control block the event is dropped: the guest must not unmask before it.
        block = self.control_blocks.get(channel.notify_vcpu)
        if block is None:
            return
        memory = domain.memory
        was_pending = test_and_set_bit(memory, word, EVTCHN_FIFO_PENDING)
        if not test_bit(memory, word, EVTCHN_FIFO_MASKED):
            self._link(domain, port, channel, word, block)
        if not was_pending:
            scheduler.check_pollers(domain, port)

    def unmask(self, domain: Domain, port: int, channel: Channel) -> None:
        """Clear MASKED; link the event if it is pending."""
        word = self.word(port)
        if word is None:
            return
        test_and_clear_bit(domain.memory, word, EVTCHN_FIFO_MASKED)
        if test_bit(domain.memory, word, EVTCHN_FIFO_PENDING):
            self.set_pending(domain, port, channel)

    def clear_pending(self, domain: Domain, port: int) -> None:
        """Clear PENDING only: the guest unlinks the word when it meets it in the queue."""
        word = self.word(port)
        if word is not None:
            test_and_clear_bit(domain.memory, word, EVTCHN_FIFO_PENDING)

    def is_pending(self, domain: Domain, port: int) -> bool:
        word = self.word(port)
        return word is not None and test_bit(domain.memory, word, EVTCHN_FIFO_PENDING)

    def is_masked(self, domain: Domain, port: int) -> bool:
        word = self.word(port)
        return word is not None and test_bit(domain.memory, word, EVTCHN_FIFO_MASKED)

    def is_busy(self, domain: Domain, port: int) -> bool:
        """Whether a closed port may not be reused yet: the guest has not unlinked its word."""
        word = self.word(port)
        return word is not None and test_bit(domain.memory, word, EVTCHN_FIFO_LINKED)

    def _link(self, domain: Domain, port: int, channel: Channel, word: Maddr, block: Maddr) -> None:
        """Append a word to its queue, unless it is linked; say so if the queue was empty."""
        memory = domain.memory
        vcpu = domain.vcpus[channel.notify_vcpu]
        if test_and_set_bit(memory, word, EVTCHN_FIFO_LINKED):
            return
        # The guest unlinked this word; where it was the tail, that queue is empty now.
        old_queue = (channel.last_vcpu, channel.last_priority)
        if self.tails.get(old_queue) == port:
            self.tails[old_queue] = 0
        queue = (vcpu.vcpu_id, channel.priority)
        channel.last_vcpu, channel.last_priority = queue
        tail = self.tails.get(queue, 0)
        linked = tail != 0 and self._set_link(domain, tail, port)
        self.tails[queue] = port
        if linked:
            return
        memory.write_uint(Maddr(block + HEAD + 4 * channel.priority), 4, port)
        if not test_and_set_bit(
            memory, Maddr(block + READY), channel.priority
        ) and mark_events_pending(domain, vcpu):
            scheduler.wake(domain, vcpu)

    def _set_link(self, domain: Domain, tail: int, port: int) -> bool:
        """Point the tail's word at `port`; False if the guest has consumed the tail."""
        maddr = self.word(tail)
        assert maddr is not None  # a tail was linked, and pages are never removed
        old = domain.memory.read_uint(maddr, 4)
        if not old >> EVTCHN_FIFO_LINKED & 1:
            return False
        new = old & ~(1 << EVTCHN_FIFO_BUSY | EVTCHN_FIFO_LINK_MASK) | port
        domain.memory.write_uint(maddr, 4, new)
        return True


def _hold_page(domain: Domain, gfn: int) -> Mfn:
    """Hold a page of the guest's as writable; EINVAL for any other page."""
    mfn = domain.gfn_to_mfn(gfn)
    try:
        domain.frames.get_page_and_type(mfn, domain.domid, PGT_writable_page)
    except XenError as error:
        raise XenError(EINVAL, f"frame {gfn:#x} cannot be shared: {error.reason}") from None
    return mfn
