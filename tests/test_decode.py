"""Hypercalls by name: what is declared is what is shown."""

from __future__ import annotations

import pytest

from fakes import make_pv_current
from hypercalls import TABLE
from xenemu.abi import grant_table as gnttab
from xenemu.abi.arch_x86.xen import trap_info
from xenemu.abi.event_channel import (
    EVTCHNOP_alloc_unbound,
    EVTCHNOP_bind_virq,
    evtchn_alloc_unbound,
    evtchn_bind_virq,
)
from xenemu.abi.layout import Struct
from xenemu.abi.memory import XENMEM_decrease_reservation, xen_memory_reservation
from xenemu.abi.xen import (
    DOMID_SELF,
    MMU_MACHPHYS_UPDATE,
    MMUEXT_NEW_BASEPTR,
    MMUEXT_PIN_L4_TABLE,
    MMUEXT_TLB_FLUSH_LOCAL,
    Nr,
    mmu_update,
    mmuext_op,
)
from xenemu.decode import ITEMS, Call, Names, format_args, format_value
from xenemu.hv.calls import CallRecord
from xenemu.hv.current import Current
from xenemu.hv.dispatch import ALL, INT, Hypercall, SubOps

AT = 0x26000


@pytest.fixture
def current() -> Current:
    return make_pv_current()


def put(current: Current, *structs: Struct) -> int:
    at = AT
    for struct in structs:
        current.write_struct(at, struct)
        at += struct.sizeof(8)
    return AT


def decode(current: Current, number: int, *args: int) -> Call:
    row = TABLE.rows[number]
    return Call(current, row, CallRecord(0, 0, 0, row.name, args))


def shown(current: Current, number: int, *args: int) -> str:
    return format_args(decode(current, number, *args).args, {})


def test_arguments_have_their_handlers_names(current: Current) -> None:
    assert shown(current, Nr.stack_switch, 0xE02B, 0x1000) == "ss=0xe02b, esp=0x1000"


def test_a_row_without_a_handler_has_numbered_arguments(current: Current) -> None:
    assert shown(current, Nr.xsm_op, 7) == "arg1=7"


def test_a_number_without_a_row_has_none(current: Current) -> None:
    call = Call(current, None, CallRecord(0, 0, 0, "hypercall 99"))
    assert (call.name, call.op, call.args) == ("hypercall 99", "", {})


def test_a_sub_operation_and_its_struct(current: Current) -> None:
    put(current, evtchn_bind_virq(0, 3, 0))
    call = decode(current, Nr.event_channel_op, EVTCHNOP_bind_virq, AT)
    assert call.op == "bind_virq"
    assert format_args(call.args, {}) == "bind_virq, {virq=VIRQ_TIMER, vcpu=3, port=0}"


def test_an_unknown_sub_operation_is_a_number(current: Current) -> None:
    assert shown(current, Nr.event_channel_op, 99, AT) == "99, 0x26000"


def test_what_cannot_be_read_is_a_pointer(current: Current) -> None:
    assert shown(current, Nr.event_channel_op, EVTCHNOP_bind_virq, 1 << 40) == (
        "bind_virq, 0x10000000000"
    )


def test_only_what_a_call_changed_is_out(current: Current) -> None:
    put(current, evtchn_alloc_unbound(DOMID_SELF, 0, 0))
    call = decode(current, Nr.event_channel_op, EVTCHNOP_alloc_unbound, AT)
    assert call.changes(current) == {}
    put(current, evtchn_alloc_unbound(DOMID_SELF, 0, 5))
    assert format_args(call.args, call.changes(current)) == (
        "alloc_unbound, {dom=DOMID_SELF, remote_dom=0, port=0} => {port=5}"
    )


def test_a_handler_that_takes_the_pointer_declares_its_struct(current: Current) -> None:
    put(current, xen_memory_reservation(0x5000, 2, 0, 0, DOMID_SELF))
    command = XENMEM_decrease_reservation | 1 << 6  # a continuation, from extent 1 on
    assert shown(current, Nr.memory_op, command, AT).startswith(
        "decrease_reservation, {extent_start=0x5000, nr_extents=2, "
    )


def test_updates_have_their_command_and_entry(current: Current) -> None:
    put(
        current,
        mmu_update(0x13008, 0x29067),
        mmu_update(0x29000 | MMU_MACHPHYS_UPDATE, 7),
    )
    assert shown(current, Nr.mmu_update, AT, 2, 0, DOMID_SELF) == (
        "ureqs=[{ptr=0x13008, val=0x29067 (mfn 0x29: P RW US A D)},"
        " {ptr=0x29000, val=7, command=MMU_MACHPHYS_UPDATE}], count=2, pdone=0,"
        " foreigndom=DOMID_SELF"
    )


def test_extended_operations_name_the_call(current: Current) -> None:
    put(current, mmuext_op(MMUEXT_PIN_L4_TABLE, 9, 0), mmuext_op(MMUEXT_NEW_BASEPTR, 9, 0))
    assert decode(current, Nr.mmuext_op, AT, 2, 0, DOMID_SELF).op == "PIN_L4_TABLE NEW_BASEPTR"


def test_a_long_array_is_cut(current: Current) -> None:
    put(current, *[mmuext_op(MMUEXT_TLB_FLUSH_LOCAL, 0, 0)] * ITEMS)
    ops = decode(current, Nr.mmuext_op, AT, 1 << 31 | 1000, 0, DOMID_SELF).args["uops"]
    assert isinstance(ops, list)
    assert len(ops) == ITEMS + 1
    assert ops[-1] == f"and {1000 - ITEMS} more"


def test_an_array_ends_at_its_mark(current: Current) -> None:
    put(current, trap_info(14, 0, 0xE033, 0x1000), trap_info(0, 0, 0, 0), trap_info(3, 0, 0, 9))
    traps = decode(current, Nr.set_trap_table, AT).args["traps"]
    assert isinstance(traps, list)
    assert len(traps) == 2


def test_grant_operations_come_in_arrays(current: Current) -> None:
    flags = gnttab.GNTMAP_host_map | gnttab.GNTMAP_readonly
    op = gnttab.gnttab_map_grant_ref(0x5000, flags, 8, DOMID_SELF, 0, 0, 0)
    put(current, op, op)
    call = decode(current, Nr.grant_table_op, gnttab.GNTTABOP_map_grant_ref, AT, 2)
    (first, _second), count = call.args["pointer"], call.args["count"]  # type: ignore[misc]
    assert isinstance(first, dict)
    assert first["flags"] == "GNTMAP_host_map|GNTMAP_readonly"
    assert first["status"] == "GNTST_okay"
    assert count == 2


def test_console_text(current: Current) -> None:
    current.domain.memory.write(AT, b"hello\n")  # type: ignore[arg-type]
    assert shown(current, Nr.console_io, 0, 6, AT) == (
        'CONSOLEIO_write, count=6, buffer="hello\\n"'
    )


def test_update_va_mapping_has_an_entry_and_flags(current: Current) -> None:
    assert shown(current, Nr.update_va_mapping, 0x1000, 0x29025, 6) == (
        "va=0x1000, value=0x29025 (mfn 0x29: P US A), flags=UVMF_INVLPG|UVMF_ALL"
    )


def test_bits_without_a_name_stay() -> None:
    names = Names(gnttab, "GNTMAP_", bits=True)
    assert names.of(0) == 0
    assert names.of(1 << 20) == 1 << 20
    assert names.of(1 << 20 | gnttab.GNTMAP_device_map) == "GNTMAP_device_map|0x100000"


def test_values_are_short() -> None:
    assert format_value({"a": [1, 0x1000, "x"], "b": "two\nlines"}) == (
        '{a=[1, 0x1000, x], b="two\\nlines"}'
    )
    assert format_value({"timeout_ns": 5000, "nr_frames": 5000}) == (
        "{timeout_ns=5000, nr_frames=5000}"
    )


def test_an_empty_family_decodes(current: Current) -> None:
    row = Hypercall(7, "seven", ALL, (INT,), SubOps("seven"))
    assert Call(current, row, CallRecord(0, 0, 0, "seven", (1,))).args == {"command": 1}


@pytest.mark.parametrize("number", sorted(TABLE.rows))
def test_every_row_decodes_whatever_its_arguments(current: Current, number: int) -> None:
    row = TABLE.rows[number]
    for value in (0, 1, 3, AT, (1 << 64) - 1):
        args = tuple(value for _ in row.args)
        call = Call(current, row, CallRecord(0, 0, 0, row.name, args))
        assert len(call.args) == len(row.args)
        assert call.changes(current) == {}


def test_every_sub_operation_decodes(current: Current) -> None:
    for row in TABLE.rows.values():
        for command in row.handler.table if isinstance(row.handler, SubOps) else ():
            args = (command, *([1] * (len(row.args) - 2)), AT)
            decode(current, row.number, *args)
