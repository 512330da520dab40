"""xenemu/hv/shared_info.py"""

from __future__ import annotations

import pytest

from fakes import SHARED_INFO, make_domain
from xenemu.hv import shared_info
from xenemu.hv.shared_info import event_pending, field, mark_events_pending, vcpu_field
from xenemu.x86.paging import Maddr

PLACE = Maddr(0x20000)


@pytest.mark.parametrize(("width", "mask"), [(8, 2048 + 512), (4, 2048 + 128)])
def test_fields_follow_the_guests_width(width: int, mask: int) -> None:
    assert field(make_domain(width), "evtchn_mask") == (SHARED_INFO << 12) + mask


def test_setting_a_bit_tells_what_it_was() -> None:
    memory = make_domain().memory
    assert not shared_info.test_and_set_bit(memory, PLACE, 77)
    assert shared_info.test_and_set_bit(memory, PLACE, 77)
    assert memory.read_uint(PLACE, 16) == 1 << 77


def test_clearing_a_bit_leaves_the_others() -> None:
    memory = make_domain().memory
    memory.write_uint(PLACE, 8, 0b1101)
    assert shared_info.test_and_clear_bit(memory, PLACE, 2)
    assert not shared_info.test_and_clear_bit(memory, PLACE, 2)
    assert memory.read_uint(PLACE, 8) == 0b1001
    assert shared_info.test_bit(memory, PLACE, 3)


def test_a_bit_in_a_frame_that_was_executed_makes_its_code_stale() -> None:
    memory = make_domain().memory
    memory.code[PLACE >> 12] = 1
    shared_info.test_and_set_bit(memory, PLACE, 0)
    assert memory.stale_code == {PLACE >> 12}


@pytest.mark.parametrize(
    ("pending", "mask", "due"), [(0, 0, False), (1, 0, True), (1, 1, False), (0x80, 0, True)]
)
def test_an_upcall_is_due_when_pending_and_not_masked(pending: int, mask: int, due: bool) -> None:
    domain = make_domain()
    domain.memory.write(domain.vcpus[0].info, bytes((pending, mask)))
    assert event_pending(domain, domain.vcpus[0]) is due


def test_only_the_first_mark_asks_for_a_kick() -> None:
    domain = make_domain(vcpus=2)
    assert mark_events_pending(domain, domain.vcpus[1])
    assert not mark_events_pending(domain, domain.vcpus[1])
    assert not event_pending(domain, domain.vcpus[0])


def test_fields_of_a_moved_vcpu_info_move_along() -> None:
    domain = make_domain(width=4)
    domain.vcpus[0].info = PLACE
    shared_info.set_upcall_mask(domain, domain.vcpus[0], True)
    assert domain.memory.bytes[PLACE + 1] == 1
    assert vcpu_field(domain, domain.vcpus[0], "evtchn_pending_sel") == PLACE + 4
