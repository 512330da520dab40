"""hypercalls/__init__.py: the whole table."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

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
    Nr.memory_op: (memory, "memory.h", "XENMEM_"),
    Nr.xen_version: (version, "version.h", "XENVER_"),
    Nr.grant_table_op: (grant_table, "grant_table.h", "GNTTABOP_"),
    Nr.vcpu_op: (vcpu, "vcpu.h", "VCPUOP_"),
    Nr.mmuext_op: (xen, "xen.h", "MMUEXT_"),
    Nr.nmi_op: (nmi, "nmi.h", "XENNMI_"),
    Nr.sched_op: (sched, "sched.h", "SCHEDOP_"),
    Nr.callback_op: (callback, "callback.h", "CALLBACKOP_"),
    Nr.event_channel_op: (event_channel, "event_channel.h", "EVTCHNOP_"),
    Nr.physdev_op: (physdev, "physdev.h", "PHYSDEVOP_"),
    Nr.hvm_op: (hvm_op, "hvm/hvm_op.h", "HVMOP_"),
}
# Numbers that share a prefix: operations of an operation, flags, results.
NO_COMMAND = re.compile(
    r"XENMEM_((paging|access|sharing)_op_|SHARING_OP_|FORK_|resource_|RDM_ALL)"
    r"|HVMOP_(altp2m_|ALTP2M_)|PHYSDEVOP_DBGP_"
)
LATER_THAN_THE_HEADERS = {
    "VCPUOP_register_runstate_phys_area",
    "VCPUOP_register_vcpu_time_phys_area",
    "PHYSDEVOP_pci_device_reset",
}
FIRST_ARCH = 48  # __HYPERVISOR_arch_0
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


def our_commands(number: Nr) -> dict[str, int]:
    module, _, prefix = COMMANDS[number]
    found = vars(module).items()
    return {n: value for n, value in found if n.startswith(prefix) and not NO_COMMAND.match(n)}


@pytest.mark.parametrize("number", COMMANDS, ids=lambda number: number.name)
def test_every_command_is_declared(number: Nr) -> None:
    names = {value: name.split("_", 1)[1].lower() for name, value in our_commands(number).items()}
    operations = TABLE.rows[number].operations
    assert {command: one.name.rstrip("_") for command, one in operations.items()} == names


@pytest.mark.parametrize("number", COMMANDS, ids=lambda number: number.name)
def test_the_commands_are_those_of_xens_header(
    number: Nr, guest_image: Callable[[str], Path]
) -> None:
    _, header, prefix = COMMANDS[number]
    text = (guest_image("xen-headers") / header).read_text()
    defined = re.findall(rf"^#\s*define\s+({prefix}\w+)\s+(\d+)\b", text, re.MULTILINE)
    theirs = {name: int(value) for name, value in defined if not NO_COMMAND.match(name)}
    ours = our_commands(number)
    assert theirs == {name: ours[name] for name in ours if name not in LATER_THAN_THE_HEADERS}


def test_the_numbers_are_those_of_xens_header(guest_image: Callable[[str], Path]) -> None:
    text = (guest_image("xen-headers") / "xen.h").read_text()
    defined = re.findall(r"^#define __HYPERVISOR_(\w+)\s+(\d+)\b", text, re.MULTILINE)
    theirs = {name: int(value) for name, value in defined if not name.startswith("arch_")}
    assert {number.name: int(number) for number in Nr if number < FIRST_ARCH} == theirs


def test_every_family_is_looked_at() -> None:
    assert {row.number for row in ROWS if row.operations} == set(COMMANDS)


def test_no_argument_can_surprise_a_hypercall() -> None:
    for row, value in itertools.product(ROWS, HOSTILE):
        current = make_pv_current()
        current.table = TABLE
        for command in range(64):
            for args in ([command, *[value] * 5], [value, command, *[value] * 4]):
                with suppress(Continue, DomainCrash):
                    result = TABLE.call(current, row.number, args)
                    assert -4096 < result < 1 << 64, (row.name, args)
