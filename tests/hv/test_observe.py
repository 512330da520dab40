"""Watching a guest: what is told, and that nothing else changes."""

from __future__ import annotations

import pytest

from fakes import KERNEL_STACK, L1, ROOT, make_pv_current, protect
from xenemu.abi.errno import ENOSYS, EPERM
from xenemu.errors import DomainCrash
from xenemu.hv import event_channel, observe
from xenemu.hv.calls import CallRecord
from xenemu.hv.cpu import Reg
from xenemu.hv.current import Current, Observer
from xenemu.hv.dispatch import ALL, ULONG, Continue, Hypercall, HypercallTable
from xenemu.hv.observe import Watch
from xenemu.hv.snapshot import DomainSnapshot
from xenemu.pv import traps
from xenemu.pv.paging import new_guest_cr3
from xenemu.pv.state import Trap, pv
from xenemu.x86.flags import GP
from xenemu.x86.paging import RW

HANDLER = 0x21000
SPARE = 40


class Notes(Observer):
    """Writes down what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[object, ...]] = []

    def call_begins(self, current: Current, row: Hypercall | None, record: CallRecord) -> None:
        self.told.append(("begins", record.name, record.args, record.result))

    def call_ends(self, current: Current, row: Hypercall | None, record: CallRecord) -> None:
        self.told.append(("ends", record.name, record.result, record.reason))

    def entry_set(self, current: Current, maddr: int, old: int, new: int) -> None:
        self.told.append(("entry", maddr, old, new))

    def pinned(self, current: Current, mfn: int, level: int) -> None:
        self.told.append(("pinned", mfn, level))

    def root_set(self, current: Current, mfn: int, user: bool) -> None:
        self.told.append(("root", mfn, user))

    def raised(self, current: Current, port: int, was_pending: bool) -> None:
        self.told.append(("raised", port, was_pending))

    def upcall(self, current: Current, how: str) -> None:
        self.told.append(("upcall", how))

    def entered(self, current: Current, what: str, error_code: int | None) -> None:
        self.told.append(("entered", what, error_code))

    def logged(self, current: Current, sentence: str) -> None:
        self.told.append(("logged", sentence))


def _again(_: Current, value: int) -> None:
    raise Continue(value + 1)


def _crash(_: Current, value: int) -> None:
    raise DomainCrash("broken")


ROWS = [
    Hypercall(1, "give", ALL, (ULONG,), lambda _, value: value),
    Hypercall(2, "refuse", ALL, (), None, EPERM, "not for you"),
    Hypercall(3, "again", ALL, (ULONG,), _again),
    Hypercall(4, "crash", ALL, (ULONG,), _crash),
]


@pytest.fixture
def current() -> Current:
    current = make_pv_current()
    current.table = HypercallTable(ROWS)
    return current


@pytest.fixture
def notes(current: Current) -> Notes:
    notes = Notes()
    Watch(current).add(notes)
    return notes


def call(current: Current, number: int, *args: int) -> int:
    assert current.table is not None
    return current.table.call(current, number, [*args, 0, 0, 0, 0, 0, 0])


def test_a_call_is_told_before_and_after(current: Current, notes: Notes) -> None:
    assert call(current, 1, 7) == 7
    assert notes.told == [("begins", "give", (7,), None), ("ends", "give", 7, "")]


def test_a_refusal_is_told_with_its_reason(current: Current, notes: Notes) -> None:
    assert call(current, 2) == -EPERM
    assert notes.told[-1] == ("ends", "refuse", -EPERM, "refuse: not for you")


def test_a_number_without_a_hypercall_is_told(current: Current, notes: Notes) -> None:
    assert call(current, 99) == -ENOSYS
    assert [what[:2] for what in notes.told] == [
        ("begins", "hypercall 99"),
        ("ends", "hypercall 99"),
    ]


@pytest.mark.parametrize(("number", "end"), [(3, Continue), (4, DomainCrash)])
def test_a_call_without_a_result_ends_too(
    current: Current, notes: Notes, number: int, end: type[Exception]
) -> None:
    with pytest.raises(end):
        call(current, number, 1)
    assert notes.told[-1][2] is None


def test_an_entry_is_told_as_it_was_and_is(current: Current, notes: Notes) -> None:
    maddr = (L1 << 12) + 8 * SPARE
    old = current.domain.memory.words[maddr >> 3]
    observe.mod_entry(current, maddr, old & ~RW, current.domain.domid)
    assert notes.told == [("entry", maddr, old, current.domain.memory.words[maddr >> 3])]


def test_pins_and_roots_are_told(current: Current, notes: Notes) -> None:
    protect(current, SPARE)
    notes.told.clear()
    observe.pin(current, SPARE, 4)
    new_guest_cr3(current, SPARE)
    new_guest_cr3(current, ROOT)
    observe.unpin(current, SPARE)
    assert notes.told == [
        ("pinned", SPARE, 4),
        ("root", SPARE, False),
        ("root", ROOT, False),
        ("pinned", SPARE, 0),
    ]


def test_events_are_told(current: Current, notes: Notes) -> None:
    domain = current.domain
    port = event_channel.bind_ipi(domain, 0)
    event_channel.send(domain, port)
    event_channel.send(domain, port)
    assert notes.told == [("raised", port, False), ("raised", port, True)]


def test_entries_of_the_kernel_are_told(current: Current, notes: Notes) -> None:
    state = pv(current)
    current.cpu.regs[Reg.RSP] = KERNEL_STACK
    state.traps[GP] = Trap(0xE033, HANDLER)
    state.event_callback = Trap(0xE033, HANDLER)
    traps.inject(current, GP, 8)
    traps.deliver_event(current)
    assert notes.told == [
        ("entered", "#GP", 8),
        ("upcall", "callback"),
        ("entered", "an event upcall", None),
    ]


def test_the_log_is_told(current: Current, notes: Notes) -> None:
    current.log("no")
    assert notes.told == [("logged", "no")]
    assert list(current.domain.refusals) == ["no"]


def test_an_observer_is_told_as_long_as_it_is_there(current: Current) -> None:
    watch, first, second = Watch(current), Notes(), Notes()
    watch.add(first)
    watch.add(second)
    watch.remove(first)
    call(current, 1, 7)
    watch.remove(second)
    call(current, 1, 8)
    assert not first.told and len(second.told) == 2
    assert current.watch is None


def test_a_snapshot_is_of_the_guest_alone(current: Current, notes: Notes) -> None:
    """Who watches now watches what is restored, and nobody watches what nobody watched."""
    snapshot = DomainSnapshot.of(current.domain)
    restored = snapshot.restore(current.domain)
    assert restored.watch is current.domain.watch
    Watch.of(current).remove(notes)
    assert snapshot.restore(current.domain).watch is None
