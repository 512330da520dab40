"""dom0/ring: pages as one, and both ends of a ring."""

from __future__ import annotations

import pytest

from busfakes import Bus, FrontRing
from grantfakes import state
from xenemu.abi.grant_table import GTF_permit_access, GTF_readonly
from xenemu.abi.io.ring import REQ_EVENT, REQ_PROD, RSP_EVENT, RSP_PROD
from xenemu.dom0.ring import BackRing, Pages, RingError, map_pages, unmap_pages
from xenemu.errors import XenError
from xenemu.x86.paging import PAGE_SIZE

SLOT = 112


@pytest.fixture
def bus() -> Bus:
    return Bus([])


def rings(bus: Bus, pages: int = 1, slot: int = SLOT) -> tuple[FrontRing, BackRing]:
    shared = [bus.share() for _ in range(pages)]
    front = FrontRing(bus.domain, [mfn for _, mfn in shared], slot)
    mapped = map_pages(bus.domain, [ref for ref, _ in shared])
    return front, BackRing.attach(bus.domain.memory, mapped, slot)


@pytest.mark.parametrize(
    ("pages", "slot", "slots"),
    [(1, 112, 32), (1, 108, 32), (2, 112, 64), (16, 112, 512), (1, 12, 256), (1, 8, 256)],
)
def test_the_ring_has_the_slots_that_the_macro_counts(
    bus: Bus, pages: int, slot: int, slots: int
) -> None:
    assert rings(bus, pages, slot)[1].slots == slots


def test_requests_and_responses_pass_for_several_rounds(bus: Bus) -> None:
    memory = bus.domain.memory
    for pages in (1, 2, 4):  # with two, slot 36 begins a page, and with four, some cross one
        front, back = rings(bus, pages)
        for n in range(3 * front.slots):
            request = bytes([n & 0xFF, n >> 8]) * (SLOT // 2)
            front.put(request)
            assert back.take(memory) == request
            assert back.take(memory) is None
            back.put(memory, request[:16][::-1])
            assert front.take(16) is None
            back.push(memory)
            assert front.take(16) == request[:16][::-1]


def test_a_full_ring_is_taken_and_one_more_is_refused(bus: Bus) -> None:
    front, back = rings(bus)
    for n in range(front.slots):
        front.put(bytes([n]) * SLOT)
    assert [back.take(bus.domain.memory)[0] for _ in range(32)] == list(range(32))  # type: ignore[index]
    assert back.take(bus.domain.memory) is None
    front.put(bytes(SLOT))
    before = state(bus.domain)
    with pytest.raises(RingError, match="33 put, 0 answered, 32 slots"):
        back.take(bus.domain.memory)
    assert (state(bus.domain), back.req_cons) == (before, 32)


@pytest.mark.parametrize("wild", [33, 0x8000_0000, 0xFFFF_FFFF])
def test_a_producer_that_runs_away_is_refused(bus: Bus, wild: int) -> None:
    front, back = rings(bus)
    front.set(REQ_PROD, wild)
    with pytest.raises(RingError):
        back.take(bus.domain.memory)
    with pytest.raises(XenError, match="requests wait"):
        BackRing.attach(bus.domain.memory, back.pages, SLOT)


def test_indices_run_over_the_end_of_32_bits(bus: Bus) -> None:
    front, back = rings(bus)
    front.req_prod = front.rsp_cons = 0xFFFF_FFFE
    for index in (REQ_PROD, RSP_PROD):
        front.set(index, 0xFFFF_FFFE)
    back = BackRing.attach(bus.domain.memory, back.pages, SLOT)
    for n in range(4):
        front.put(bytes([n]) * SLOT)
        assert back.take(bus.domain.memory) == bytes([n]) * SLOT
        back.put(bus.domain.memory, bytes([n]) * 16)
        back.push(bus.domain.memory)
        assert front.take(16) == bytes([n]) * 16


def test_the_frontend_gets_the_events_that_it_asked_for(bus: Bus) -> None:
    memory = bus.domain.memory
    front, back = rings(bus)
    for _ in range(4):
        front.put(bytes(SLOT))
        back.take(memory)
    front.set(RSP_EVENT, 3)
    wanted = []
    for _ in range(4):
        back.put(memory, bytes(16))
        wanted.append(back.push(memory))
    assert wanted == [False, False, True, False]


def test_the_backend_asks_for_an_event_at_the_next_request(bus: Bus) -> None:
    memory = bus.domain.memory
    front, back = rings(bus)
    front.put(bytes(SLOT))
    assert back.final_check(memory)
    back.take(memory)
    assert not back.final_check(memory)
    assert front.get(REQ_EVENT) == 2


def test_what_a_frontend_writes_to_our_index_does_no_harm(bus: Bus) -> None:
    memory = bus.domain.memory
    front, back = rings(bus)
    front.put(bytes(SLOT))
    back.take(memory)
    front.set(RSP_PROD, 77)
    back.put(memory, bytes(16))
    back.push(memory)
    assert front.get(RSP_PROD) == 1


def test_no_page_is_mapped_if_one_cannot_be(bus: Bus) -> None:
    refs = [bus.share()[0], bus.share()[0], bus.share(GTF_permit_access | GTF_readonly)[0]]
    before = state(bus.domain)
    with pytest.raises(XenError, match=f"shared page {refs[2]}: .* for reading only"):
        map_pages(bus.domain, refs)
    assert state(bus.domain) == before


def test_pages_are_read_and_written_as_one(bus: Bus) -> None:
    memory = bus.domain.memory
    shared = [bus.share() for _ in range(3)][::-1]
    pages = map_pages(bus.domain, [ref for ref, _ in shared])
    data = bytes(range(256)) * (3 * PAGE_SIZE // 256)
    pages.write(memory, 0, data)
    assert pages.read(memory, 0, pages.size) == data
    assert memory.read(shared[1][1] * PAGE_SIZE, 16) == data[PAGE_SIZE : PAGE_SIZE + 16]
    assert pages.read(memory, PAGE_SIZE - 3, 7) == data[PAGE_SIZE - 3 : PAGE_SIZE + 4]
    unmap_pages(bus.domain, pages)
    assert isinstance(pages, Pages)
    assert bus.domain.grants.active.keys() == {1}
