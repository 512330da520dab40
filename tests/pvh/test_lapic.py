"""xenemu/pvh/lapic.py: registers, modes and interrupts"""

from __future__ import annotations

import pickle

import pytest

from xenemu.pvh import lapic as regs
from xenemu.pvh.lapic import Delivery, Ipi, Lapic, Shorthand

NOW = 1_000_000_000
DEFAULT_BASE = 0xFEE00800
X2APIC = 0xFEE00C00
LVT_REGS = [0x320, 0x330, 0x340, 0x350, 0x360, 0x370]


def make_lapic(apic_id: int = 0, *, x2apic: bool = False) -> Lapic:
    """Enabled, with every LVT still masked."""
    lapic = Lapic(apic_id)
    lapic.write(0xF0, 0x1FF, NOW)
    if x2apic:
        assert lapic.set_apic_base(X2APIC)
    return lapic


def take(lapic: Lapic, vector: int) -> None:
    lapic.assert_vector(vector)
    assert lapic.pending_vector() == vector
    lapic.accept(vector)


def send(lapic: Lapic, command: int, destination: int = 0) -> list[Ipi]:
    lapic.write(0x310, destination << 24, NOW)
    return lapic.write(0x300, command, NOW)


def latched_errors(lapic: Lapic) -> int:
    lapic.write(0x280, 0, NOW)
    return lapic.read(0x280, NOW)


# -- Reset


@pytest.mark.parametrize(
    ("offset", "value"),
    [
        (0x20, 6 << 24),
        (0x30, 0x50014),
        (0x80, 0),
        (0xA0, 0),
        (0xD0, 0),
        (0xE0, 0xFFFFFFFF),
        (0xF0, 0xFF),
        (0x280, 0),
        (0x300, 0),
        (0x310, 0),
        *((offset, 0x10000) for offset in LVT_REGS),
        (0x380, 0),
        (0x390, 0),
        (0x3E0, 0),
    ],
)
def test_a_register_after_reset(offset: int, value: int) -> None:
    assert Lapic(6).read(offset, NOW) == value


def test_the_first_processor_is_marked_in_apic_base() -> None:
    assert Lapic(0).apic_base == DEFAULT_BASE | 1 << 8
    assert Lapic(2).apic_base == DEFAULT_BASE


def test_init_resets_all_but_the_id() -> None:
    lapic = make_lapic(2)
    take(lapic, 0x40)
    lapic.assert_vector(0x50)
    lapic.write(0x20, 9 << 24, NOW)
    lapic.write(0xD0, 1 << 24, NOW)
    lapic.write(0x380, 1000, NOW)
    lapic.init()
    expected = Lapic(2)
    expected.write(0x20, 9 << 24, NOW)
    assert lapic == expected


def test_init_keeps_x2apic_mode_and_its_ldr() -> None:
    lapic = make_lapic(4, x2apic=True)
    lapic.init()
    assert lapic.apic_base == X2APIC
    assert lapic.read_msr(0x80D, NOW) == 1 << 2
    assert lapic.read_msr(0x802, NOW) == 4


def test_it_can_be_pickled() -> None:
    lapic = make_lapic(2)
    take(lapic, 0x40)
    assert pickle.loads(pickle.dumps(lapic)) == lapic


# -- Registers


@pytest.mark.parametrize("offset", [0x00, 0x10, 0x40, 0x90, 0xC0, 0x2F0, 0x3A0, 0x3F0, 0xFF0])
def test_a_reserved_register_is_0_and_ignores_writes(offset: int) -> None:
    lapic = make_lapic()
    before = pickle.dumps(lapic)
    assert lapic.write(offset, 0xFFFFFFFF, NOW) == []
    assert lapic.read(offset, NOW) == 0
    assert pickle.dumps(lapic) == before


@pytest.mark.parametrize("offset", [0x30, 0xA0, 0x100, 0x180, 0x270, 0x390])
def test_a_read_only_register_ignores_writes(offset: int) -> None:
    lapic = make_lapic()
    before = pickle.dumps(lapic)
    lapic.write(offset, 0xFFFFFFFF, NOW)
    assert pickle.dumps(lapic) == before


@pytest.mark.parametrize(
    ("offset", "value"),
    [
        (0x20, 0xFFFFFFFF),
        (0x80, 0xFF),
        (0xD0, 0xFF000000),
        (0xF0, 0x3FF),
        (0x310, 0xFF000000),
        (0x320, 0x310FF),
        (0x330, 0x117FF),
        (0x340, 0x117FF),
        (0x350, 0x1F7FF),
        (0x360, 0x1F7FF),
        (0x370, 0x110FF),
        (0x380, 0xFFFFFFFF),
        (0x3E0, 0xB),
    ],
)
def test_the_bits_a_guest_can_set(offset: int, value: int) -> None:
    lapic = make_lapic()
    lapic.write(offset, 0xFFFFFFFF, NOW)
    assert lapic.read(offset, NOW) == value


def test_the_low_bits_of_dfr_are_ones() -> None:
    lapic = make_lapic()
    lapic.write(0xE0, 0, NOW)
    assert lapic.read(0xE0, NOW) == 0x0FFFFFFF


@pytest.mark.parametrize("offset", LVT_REGS)
def test_disabling_by_software_masks_an_lvt(offset: int) -> None:
    lapic = make_lapic()
    lapic.write(offset, 0x40, NOW)
    assert lapic.read(offset, NOW) == 0x40
    lapic.write(0xF0, 0xFF, NOW)
    assert lapic.read(offset, NOW) == 0x10040
    lapic.write(0xF0, 0x1FF, NOW)
    assert lapic.read(offset, NOW) == 0x10040


@pytest.mark.parametrize("offset", LVT_REGS)
def test_an_lvt_cannot_be_unmasked_while_software_disabled(offset: int) -> None:
    lapic = Lapic(0)
    lapic.write(offset, 0x40, NOW)
    assert lapic.read(offset, NOW) == 0x10040


# -- Priorities


def test_a_requested_vector_is_in_irr_until_taken_then_in_isr_until_eoi() -> None:
    lapic = make_lapic()
    lapic.assert_vector(0x41)
    assert (lapic.read(0x220, NOW), lapic.read(0x120, NOW)) == (1 << 1, 0)
    lapic.accept(0x41)
    assert (lapic.read(0x220, NOW), lapic.read(0x120, NOW)) == (0, 1 << 1)
    lapic.write(0xB0, 0, NOW)
    assert (lapic.read(0x220, NOW), lapic.read(0x120, NOW)) == (0, 0)


@pytest.mark.parametrize("vector", [16, 31, 32, 127, 128, 255])
def test_each_vector_has_its_place_in_irr(vector: int) -> None:
    lapic = make_lapic()
    lapic.assert_vector(vector)
    words = [lapic.read(0x200 + 0x10 * n, NOW) for n in range(8)]
    assert words == [1 << vector % 32 if n == vector // 32 else 0 for n in range(8)]


def test_an_edge_leaves_tmr_clear() -> None:
    lapic = make_lapic()
    lapic.assert_vector(0x41)
    assert [lapic.read(0x180 + 0x10 * n, NOW) for n in range(8)] == [0] * 8


def test_the_highest_vector_comes_first() -> None:
    lapic = make_lapic()
    for vector in (0x30, 0xE1, 0x80):
        lapic.assert_vector(vector)
    assert lapic.pending_vector() == 0xE1


def test_the_same_vector_twice_is_one_interrupt() -> None:
    lapic = make_lapic()
    lapic.assert_vector(0x30)
    take(lapic, 0x30)
    lapic.write(0xB0, 0, NOW)
    assert lapic.pending_vector() is None


def test_nothing_is_pending_at_first() -> None:
    assert make_lapic().pending_vector() is None


@pytest.mark.parametrize(("vector", "pending"), [(0x4F, None), (0x50, 0x50)])
def test_only_a_higher_class_interrupts_a_handler(vector: int, pending: int | None) -> None:
    lapic = make_lapic()
    take(lapic, 0x40)
    lapic.assert_vector(vector)
    assert lapic.pending_vector() == pending


@pytest.mark.parametrize(("tpr", "pending"), [(0x3F, 0x42), (0x40, None), (0xFF, None)])
def test_the_task_priority_holds_off_its_class_and_below(tpr: int, pending: int | None) -> None:
    lapic = make_lapic()
    lapic.assert_vector(0x42)
    lapic.write(0x80, tpr, NOW)
    assert lapic.pending_vector() == pending


@pytest.mark.parametrize(
    ("tpr", "ppr"), [(0x00, 0x50), (0x4F, 0x50), (0x50, 0x50), (0x53, 0x53), (0x61, 0x61)]
)
def test_the_processor_priority(tpr: int, ppr: int) -> None:
    lapic = make_lapic()
    take(lapic, 0x57)
    lapic.write(0x80, tpr, NOW)
    assert lapic.read(0xA0, NOW) == ppr


def test_eoi_ends_the_highest_in_service() -> None:
    lapic = make_lapic()
    take(lapic, 0x40)
    take(lapic, 0x50)
    lapic.write(0xB0, 0, NOW)
    assert lapic.isr == 1 << 0x40


def test_an_eoi_of_nothing_is_ignored() -> None:
    lapic = make_lapic()
    before = pickle.dumps(lapic)
    lapic.write(0xB0, 0, NOW)
    assert pickle.dumps(lapic) == before


def test_a_software_disabled_apic_holds_its_requests() -> None:
    lapic = Lapic(0)
    lapic.assert_vector(0x40)
    assert lapic.pending_vector() is None
    lapic.write(0xF0, 0x1FF, NOW)
    assert lapic.pending_vector() == 0x40


def test_a_hardware_disabled_apic_interrupts_nothing() -> None:
    lapic = make_lapic()
    lapic.assert_vector(0x40)
    assert lapic.set_apic_base(0xFEE00000)
    assert lapic.pending_vector() is None


# -- Errors


def test_an_illegal_vector_received_shows_after_a_write_to_esr() -> None:
    lapic = make_lapic()
    lapic.assert_vector(15)
    assert (lapic.irr, lapic.read(0x280, NOW)) == (0, 0)
    assert latched_errors(lapic) == 1 << 6
    assert latched_errors(lapic) == 0


@pytest.mark.parametrize("mode", [Delivery.FIXED, Delivery.LOWEST])
def test_an_illegal_vector_is_not_sent(mode: int) -> None:
    lapic = make_lapic()
    assert send(lapic, mode << 8 | 15) == []
    assert latched_errors(lapic) == 1 << 5


@pytest.mark.parametrize("mode", [Delivery.NMI, Delivery.INIT, Delivery.STARTUP])
def test_other_modes_may_have_any_vector(mode: int) -> None:
    lapic = make_lapic()
    assert len(send(lapic, mode << 8)) == 1
    assert latched_errors(lapic) == 0


def test_errors_accumulate_until_latched() -> None:
    lapic = make_lapic()
    lapic.assert_vector(1)
    send(lapic, 1)
    assert latched_errors(lapic) == 0x60


def test_an_error_interrupts_once_until_esr_is_written() -> None:
    lapic = make_lapic()
    lapic.write(0x370, 0xFE, NOW)
    lapic.assert_vector(1)
    assert lapic.pending_vector() == 0xFE
    lapic.accept(0xFE)
    lapic.assert_vector(1)
    assert lapic.irr == 0
    lapic.write(0x280, 0, NOW)
    lapic.assert_vector(1)
    assert lapic.irr == 1 << 0xFE


def test_a_masked_error_does_not_interrupt() -> None:
    lapic = make_lapic()
    lapic.write(0x370, 0x100FE, NOW)
    lapic.assert_vector(1)
    assert lapic.irr == 0


def test_an_illegal_error_vector_is_itself_an_error() -> None:
    lapic = make_lapic()
    lapic.write(0x370, 3, NOW)
    send(lapic, 1)
    assert lapic.irr == 0
    assert latched_errors(lapic) == 0x60


# -- The interrupt command


def test_a_fixed_ipi() -> None:
    assert send(make_lapic(), 0x4041, 2) == [Ipi(Delivery.FIXED, 0x41, 2)]


def test_a_logical_lowest_priority_ipi() -> None:
    expected = Ipi(Delivery.LOWEST, 0x41, 0xC0, logical=True)
    assert send(make_lapic(), 0x4941, 0xC0) == [expected]


@pytest.mark.parametrize("kind", list(Delivery))
def test_the_delivery_mode_is_in_bits_8_to_10(kind: Delivery) -> None:
    assert [ipi.kind for ipi in send(make_lapic(), kind << 8 | 0x41)] == [kind]


@pytest.mark.parametrize("shorthand", list(Shorthand))
def test_the_shorthand_is_in_bits_18_and_19(shorthand: Shorthand) -> None:
    assert [ipi.shorthand for ipi in send(make_lapic(), shorthand << 18 | 0x41)] == [shorthand]


def test_the_delivery_status_reads_idle_after_sending() -> None:
    lapic = make_lapic()
    send(lapic, 0x44FF | 1 << 12, 2)
    assert lapic.read(0x300, NOW) == 0x44FF
    assert lapic.read(0x310, NOW) == 2 << 24


def test_an_init_deassert_is_not_sent() -> None:
    assert send(make_lapic(), 0x8500, 2) == []
    assert [ipi.kind for ipi in send(make_lapic(), 0xC500, 2)] == [Delivery.INIT]


def test_a_disabled_apic_still_sends() -> None:
    assert len(send(Lapic(0), 0x41, 2)) == 1


# -- IA32_APIC_BASE


def test_the_page_of_registers_is_there_in_xapic_mode_only() -> None:
    lapic = make_lapic()
    assert lapic.mmio_base == 0xFEE00000
    assert lapic.set_apic_base(X2APIC)
    assert lapic.mmio_base is None
    assert lapic.set_apic_base(0xFEE00000)
    assert lapic.mmio_base is None


@pytest.mark.parametrize("bit", [0, 7, 9, 52, 63])
def test_a_reserved_bit_of_apic_base_is_refused(bit: int) -> None:
    lapic = make_lapic()
    before = pickle.dumps(lapic)
    assert not lapic.set_apic_base(DEFAULT_BASE | 1 << bit)
    assert pickle.dumps(lapic) == before


def test_the_page_of_registers_cannot_be_moved() -> None:
    lapic = make_lapic()
    before = pickle.dumps(lapic)
    assert not lapic.set_apic_base(DEFAULT_BASE + 0x1000)
    assert pickle.dumps(lapic) == before


@pytest.mark.parametrize(
    ("state", "refused"),
    [
        (DEFAULT_BASE, [0xFEE00400]),
        (X2APIC, [DEFAULT_BASE, 0xFEE00400]),
        (0xFEE00000, [X2APIC, 0xFEE00400]),
    ],
)
def test_an_illegal_change_of_mode_is_refused(state: int, refused: list[int]) -> None:
    lapic = make_lapic(2)
    assert lapic.set_apic_base(state)
    before = pickle.dumps(lapic)
    assert not any(lapic.set_apic_base(value) for value in refused)
    assert pickle.dumps(lapic) == before


@pytest.mark.parametrize("state", [DEFAULT_BASE, X2APIC, 0xFEE00000])
def test_writing_the_same_mode_again_is_accepted(state: int) -> None:
    lapic = make_lapic(2)
    assert lapic.set_apic_base(state)
    before = pickle.dumps(lapic)
    assert lapic.set_apic_base(state)
    assert pickle.dumps(lapic) == before


def test_disabling_and_enabling_resets() -> None:
    lapic = make_lapic(2, x2apic=True)
    take(lapic, 0x40)
    assert lapic.set_apic_base(0xFEE00000)
    assert lapic.set_apic_base(DEFAULT_BASE)
    assert lapic == Lapic(2)


def test_entering_x2apic_mode_keeps_the_interrupts() -> None:
    lapic = make_lapic(2)
    lapic.assert_vector(0x40)
    assert lapic.set_apic_base(X2APIC)
    assert lapic.pending_vector() == 0x40


@pytest.mark.parametrize(("vcpu", "ldr"), [(0, 1), (1, 2), (15, 1 << 15), (17, 0x10002)])
def test_entering_x2apic_mode_sets_id_and_ldr(vcpu: int, ldr: int) -> None:
    lapic = make_lapic(2 * vcpu, x2apic=True)
    assert lapic.read_msr(0x802, NOW) == 2 * vcpu
    assert lapic.read_msr(0x80D, NOW) == ldr


# -- x2APIC MSRs


def test_no_msr_is_there_in_xapic_mode() -> None:
    lapic = make_lapic()
    before = pickle.dumps(lapic)
    for msr in range(0x800, 0x900):
        assert lapic.read_msr(msr, NOW) is None, msr
        assert lapic.write_msr(msr, 0, NOW) is None, msr
        assert pickle.dumps(lapic) == before, msr


def test_the_msrs_that_can_be_read() -> None:
    lapic = make_lapic(x2apic=True)
    readable = {n for n in range(0x100) if lapic.read_msr(0x800 + n, NOW) is not None}
    assert readable == {2, 3, 8, 0xA, 0xD, 0xF, *range(0x10, 0x29), 0x2F, 0x30,
                        *range(0x32, 0x3A), 0x3E}  # fmt: skip


def test_the_msrs_that_can_be_written() -> None:
    lapic = make_lapic(x2apic=True)
    writable = {n for n in range(0x100) if lapic.write_msr(0x800 + n, 0, NOW) is not None}
    assert writable == {8, 0xB, 0xF, 0x28, 0x2F, 0x30, *range(0x32, 0x39), 0x3E, 0x3F}


@pytest.mark.parametrize(
    ("msr", "bit"),
    [
        (0x808, 8),
        (0x80B, 0),
        (0x80F, 10),
        (0x80F, 12),
        (0x828, 0),
        (0x830, 12),
        (0x830, 13),
        (0x830, 20),
        (0x832, 8),
        (0x832, 18),
        (0x833, 13),
        (0x835, 17),
        (0x837, 8),
        (0x83E, 2),
        (0x83F, 8),
        (0x808, 32),
    ],
)
def test_a_reserved_bit_of_an_msr_is_refused(msr: int, bit: int) -> None:
    lapic = make_lapic(x2apic=True)
    before = pickle.dumps(lapic)
    assert lapic.write_msr(msr, 1 << bit, NOW) is None
    assert pickle.dumps(lapic) == before


def test_the_upper_half_of_the_initial_count_is_dropped() -> None:
    lapic = make_lapic(x2apic=True)
    assert lapic.write_msr(0x838, 7 << 32 | 9, NOW) == []
    assert lapic.read_msr(0x838, NOW) == 9


def test_the_x2apic_icr_is_64_bits_wide() -> None:
    lapic = make_lapic(x2apic=True)
    assert lapic.write_msr(0x830, 0x12345 << 32 | 0x4041, NOW) == [
        Ipi(Delivery.FIXED, 0x41, 0x12345)
    ]
    assert lapic.read_msr(0x830, NOW) == 0x12345 << 32 | 0x4041


def test_a_self_ipi() -> None:
    lapic = make_lapic(x2apic=True)
    assert lapic.write_msr(0x83F, 0x41, NOW) == [
        Ipi(Delivery.FIXED, 0x41, 0, shorthand=Shorthand.SELF)
    ]


def test_an_illegal_self_ipi_is_an_error() -> None:
    lapic = make_lapic(x2apic=True)
    assert lapic.write_msr(0x83F, 3, NOW) == []
    lapic.write_msr(0x828, 0, NOW)
    assert lapic.read_msr(0x828, NOW) == regs.ESR_SEND_ILLEGAL


def test_eoi_by_msr() -> None:
    lapic = make_lapic(x2apic=True)
    take(lapic, 0x40)
    assert lapic.write_msr(0x80B, 0, NOW) == []
    assert lapic.isr == 0
