"""hypercalls/__init__.py: the whole table."""

from __future__ import annotations

from contextlib import suppress

import pytest

from fakes import make_pv_current
from hypercalls import ROWS, TABLE
from hypercalls.refused import REFUSED
from xenemu.abi import (
    callback,
    event_channel,
    grant_table,
    memory,
    nmi,
    physdev,
    sched,
    vcpu,
    version,
    xen,
)
from xenemu.abi.errno import ENOSYS, NAMES
from xenemu.abi.hvm import hvm_op
from xenemu.abi.xen import Nr
from xenemu.errors import DomainCrash
from xenemu.hv.dispatch import ALL, Continue, Hypercall

# Where the commands of each hypercall with sub-operations are, and how their names begin.
COMMANDS = {
    Nr.memory_op: (memory, "XENMEM_"),
    Nr.xen_version: (version, "XENVER_"),
    Nr.grant_table_op: (grant_table, "GNTTABOP_"),
    Nr.vcpu_op: (vcpu, "VCPUOP_"),
    Nr.mmuext_op: (xen, "MMUEXT_"),
    Nr.nmi_op: (nmi, "XENNMI_"),
    Nr.sched_op: (sched, "SCHEDOP_"),
    Nr.callback_op: (callback, "CALLBACKOP_"),
    Nr.event_channel_op: (event_channel, "EVTCHNOP_"),
    Nr.physdev_op: (physdev, "PHYSDEVOP_"),
    Nr.hvm_op: (hvm_op, "HVMOP_"),
}
NO_COMMANDS = {"XENMEM_RDM_ALL"}
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


@pytest.mark.parametrize("number", COMMANDS, ids=lambda number: number.name)
def test_every_command_of_the_header_is_declared(number: Nr) -> None:
    module, prefix = COMMANDS[number]
    commands = {
        value: name.removeprefix(prefix).lower()
        for name, value in vars(module).items()
        if name.startswith(prefix) and name not in NO_COMMANDS
    }
    operations = TABLE.rows[number].operations
    declared = {command: one.name.rstrip("_") for command, one in operations.items()}
    assert declared == commands


def test_every_family_is_looked_at() -> None:
    assert {row.number for row in ROWS if row.operations} == set(COMMANDS)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
@pytest.mark.parametrize("value", HOSTILE, ids=hex)
def test_no_argument_can_surprise_a_hypercall(row: Hypercall, value: int) -> None:
    current = make_pv_current()
    current.table = TABLE
    for command in range(64):
        for args in ([command, *[value] * 5], [value, command, *[value] * 4]):
            with suppress(Continue, DomainCrash):
                assert -4096 < TABLE.call(current, row.number, args) < 1 << 64
