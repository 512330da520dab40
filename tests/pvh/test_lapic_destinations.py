"""xenemu/pvh/lapic.py: whom an IPI reaches"""

from __future__ import annotations

import pytest

from xenemu.pvh.lapic import Delivery, Ipi, Lapic, Shorthand, destinations

NOW = 0
X2APIC = 0xFEE00C00
FLAT, CLUSTER = 0xFFFFFFFF, 0x0FFFFFFF


def make_lapics(count: int = 4, *, x2apic: bool = False) -> list[Lapic]:
    """All enabled, with IDs 0, 2, 4..."""
    lapics = [Lapic(2 * n) for n in range(count)]
    for lapic in lapics:
        lapic.write(0xF0, 0x1FF, NOW)
        if x2apic:
            assert lapic.set_apic_base(X2APIC)
    return lapics


def give_logical_ids(lapics: list[Lapic], ids: list[int], model: int) -> None:
    for lapic, logical_id in zip(lapics, ids, strict=True):
        lapic.write(0xD0, logical_id << 24, NOW)
        lapic.write(0xE0, model, NOW)


def reached(lapics: list[Lapic], destination: int, *, logical: bool = False) -> list[int]:
    ipi = Ipi(Delivery.FIXED, 0x40, destination, logical)
    return destinations(ipi, lapics[0], lapics)


def lowest(lapics: list[Lapic], previous: int = 0) -> list[int]:
    ipi = Ipi(Delivery.LOWEST, 0x40, 0xFF)
    return destinations(ipi, lapics[0], lapics, previous)


@pytest.mark.parametrize(("apic_id", "expected"), [(0, [0]), (4, [2]), (3, []), (0xFE, [])])
def test_a_physical_destination_is_an_apic_id(apic_id: int, expected: list[int]) -> None:
    assert reached(make_lapics(), apic_id) == expected


def test_an_apic_goes_by_the_id_that_the_guest_gave_it() -> None:
    lapics = make_lapics()
    lapics[1].write(0x20, 0x33 << 24, NOW)
    assert reached(lapics, 0x33) == [1]
    assert reached(lapics, 2) == []


@pytest.mark.parametrize(("x2apic", "everyone"), [(False, 0xFF), (True, 0xFFFFFFFF)])
def test_the_broadcast_id(x2apic: bool, everyone: int) -> None:
    assert reached(make_lapics(x2apic=x2apic), everyone) == [0, 1, 2, 3]


def test_0xff_is_an_ordinary_x2apic_id() -> None:
    assert reached(make_lapics(x2apic=True), 0xFF) == []


@pytest.mark.parametrize(("mask", "expected"), [(0b1010, [1, 3]), (0xFF, [0, 1, 2, 3]), (0, [])])
def test_flat_logical_ids_are_a_mask(mask: int, expected: list[int]) -> None:
    lapics = make_lapics()
    give_logical_ids(lapics, [1, 2, 4, 8], FLAT)
    assert reached(lapics, mask, logical=True) == expected


@pytest.mark.parametrize(("mask", "expected"), [(0x13, [0, 1]), (0x21, [2]), (0x12, [1]), (0, [])])
def test_clustered_logical_ids(mask: int, expected: list[int]) -> None:
    lapics = make_lapics()
    give_logical_ids(lapics, [0x11, 0x12, 0x21, 0x22], CLUSTER)
    assert reached(lapics, mask, logical=True) == expected


def test_an_unknown_model_of_logical_ids_matches_nothing() -> None:
    lapics = make_lapics()
    give_logical_ids(lapics, [1, 2, 4, 8], 0x7FFFFFFF)
    assert reached(lapics, 0xFF, logical=True) == []


@pytest.mark.parametrize(
    ("mask", "expected"), [(0b101, [0, 2]), (1 << 16 | 0b11, [16, 17]), (2 << 16 | 1, [])]
)
def test_x2apic_logical_ids_have_clusters_of_16(mask: int, expected: list[int]) -> None:
    assert reached(make_lapics(18, x2apic=True), mask, logical=True) == expected


@pytest.mark.parametrize(
    ("shorthand", "expected"),
    [(Shorthand.SELF, [1]), (Shorthand.ALL, [0, 1, 2]), (Shorthand.OTHERS, [0, 2])],
)
def test_a_shorthand_overrides_the_destination(shorthand: Shorthand, expected: list[int]) -> None:
    lapics = make_lapics(3)
    ipi = Ipi(Delivery.FIXED, 0x40, 0, shorthand=shorthand)
    assert destinations(ipi, lapics[1], lapics) == expected


@pytest.mark.parametrize("kind", [Delivery.FIXED, Delivery.LOWEST])
def test_a_disabled_apic_takes_no_interrupt(kind: Delivery) -> None:
    lapics = make_lapics()
    lapics[2].write(0xF0, 0xFF, NOW)
    assert destinations(Ipi(kind, 0x40, 4), lapics[0], lapics) == []


@pytest.mark.parametrize("kind", [Delivery.NMI, Delivery.INIT, Delivery.STARTUP])
def test_a_disabled_apic_takes_nmi_init_and_startup(kind: Delivery) -> None:
    lapics = [Lapic(0), Lapic(2)]
    assert destinations(Ipi(kind, 0, 2), lapics[0], lapics) == [1]


def test_lowest_priority_reaches_one() -> None:
    lapics = make_lapics()
    for lapic, tpr in zip(lapics, [0x30, 0x20, 0x10, 0x20], strict=True):
        lapic.write(0x80, tpr, NOW)
    assert lowest(lapics) == [2]


@pytest.mark.parametrize(("previous", "expected"), [(0, [1]), (1, [2]), (3, [0])])
def test_lowest_priority_takes_turns(previous: int, expected: list[int]) -> None:
    assert lowest(make_lapics(), previous) == expected


def test_lowest_priority_passes_over_the_disabled() -> None:
    lapics = make_lapics()
    lapics[1].write(0xF0, 0xFF, NOW)
    assert lowest(lapics) == [2]


def test_an_nmi_to_oneself() -> None:
    lapics = make_lapics()
    lapics[3].write(0x310, 6 << 24, NOW)
    (ipi,) = lapics[3].write(0x300, 0x400, NOW)
    assert destinations(ipi, lapics[3], lapics) == [3]
