"""hypercalls/__init__.py: the whole table."""

from __future__ import annotations

from contextlib import suppress

import pytest

from fakes import make_pv_current
from hypercalls import ROWS, TABLE
from hypercalls.refused import REFUSED
from xenemu.abi.errno import ENOSYS, NAMES
from xenemu.abi.xen import Nr
from xenemu.errors import DomainCrash
from xenemu.hv.dispatch import ALL, Continue, Hypercall

HOSTILE = (0, 1, 0xFFFF_FFFF, 1 << 47, 0xFFFF_8000_0000_0000, (1 << 64) - 1)


def test_the_table_is_in_number_order_and_whole() -> None:
    assert list(TABLE.rows) == sorted(row.number for row in ROWS)
    assert set(TABLE.rows) == {int(number) for number in Nr}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_a_row_has_its_hypercalls_name(row: Hypercall) -> None:
    assert Nr[row.name] == row.number
    assert row.callers <= ALL
    assert row.callers
    assert len(row.args) <= 6


@pytest.mark.parametrize("row", REFUSED, ids=lambda row: row.name)
def test_a_refusal_says_why(row: Hypercall) -> None:
    assert row.handler is None
    assert row.answer in NAMES
    assert row.note
    current = make_pv_current()
    before = bytes(current.domain.memory.bytes)
    assert TABLE.call(current, row.number, [0] * 6) in (-row.answer, -ENOSYS)
    assert current.domain.calls[-1].reason
    assert bytes(current.domain.memory.bytes) == before


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
@pytest.mark.parametrize("value", HOSTILE, ids=hex)
def test_no_argument_can_surprise_a_hypercall(row: Hypercall, value: int) -> None:
    current = make_pv_current()
    current.table = TABLE
    for command in range(64):
        for args in ([command, *[value] * 5], [value, command, *[value] * 4]):
            with suppress(Continue, DomainCrash):
                assert -4096 < TABLE.call(current, row.number, args) < 1 << 64
