"""A trace: each kind of event, as text and as JSON."""

from __future__ import annotations

import json
import re

import pytest

from fakes import KERNEL_STACK, L1, ROOT, make_pv_current, make_pvh_current, protect
from hypercalls import TABLE
from xenemu.abi import pmu
from xenemu.abi.arch_x86.xen import iret_context
from xenemu.abi.event_channel import EVTCHNOP_alloc_unbound, EVTCHNOP_close, evtchn_alloc_unbound
from xenemu.abi.xen import (
    DOMID_SELF,
    MMUEXT_PIN_L4_TABLE,
    MMUEXT_UNPIN_TABLE,
    Nr,
    mmuext_op,
    multicall_entry,
)
from xenemu.hv import event_channel
from xenemu.hv.cpu import Reg
from xenemu.hv.current import Current
from xenemu.peek import Code
from xenemu.pv import traps
from xenemu.pv.paging import new_guest_cr3, new_user_baseptr
from xenemu.pv.state import Trap, pv
from xenemu.pvh import callbacks, lapic_glue
from xenemu.trace import KINDS, Tracer
from xenemu.x86.flags import GP

ARGUMENT, LIST = 0x26000, 0x27000
SPARE = 40
HANDLER = 0x21000


@pytest.fixture
def current() -> Current:
    current = make_pv_current()
    current.table = TABLE
    current.cpu.now_ns, current.cpu.rip = 1_500_000, 0x22000
    current.cpu.regs[Reg.RSP] = KERNEL_STACK
    state = pv(current)
    state.traps = {GP: Trap(0xE033, HANDLER), 14: Trap(0xE033, HANDLER)}
    state.event_callback = Trap(0xE033, HANDLER)
    return current


class Lines(list[str]):
    """What a tracer of `current` writes, without the time and the place."""

    def __init__(self, current: Current, code: Code, *kinds: str, only: str | None = None) -> None:
        super().__init__()
        pattern = None if only is None else re.compile(only)
        self.tracer = Tracer(code, self.write, kinds, pattern)
        self.tracer.start(current)

    def write(self, line: str) -> None:
        match = re.fullmatch(r" {4}0\.001500 v0 (.*)  <0x2[12]000>\n", line)
        assert match, line
        self.append(match[1])


def call(current: Current, number: int, *args: int) -> int:
    assert current.table is not None
    return current.table.call(current, number, [*args, 0, 0, 0, 0, 0, 0])


def mmuext(current: Current, command: int, mfn: int) -> int:
    current.write_struct(ARGUMENT, mmuext_op(command, mfn, 0))
    return call(current, Nr.mmuext_op, ARGUMENT, 1, 0, DOMID_SELF)


def test_a_call_with_what_it_gives(current: Current, code: Code) -> None:
    lines = Lines(current, code, "hypercalls")
    current.write_struct(ARGUMENT, evtchn_alloc_unbound(DOMID_SELF, 0, 0))
    call(current, Nr.event_channel_op, EVTCHNOP_alloc_unbound, ARGUMENT)
    assert lines == [
        "event_channel_op(alloc_unbound, {dom=DOMID_SELF, remote_dom=0, port=0} => {port=1}) = 0"
    ]


def test_a_refused_call(current: Current, code: Code) -> None:
    lines = Lines(current, code, "hypercalls")
    current.domain.memory.write_uint(ARGUMENT, 4, 9)  # type: ignore[arg-type]
    call(current, Nr.event_channel_op, EVTCHNOP_close, ARGUMENT)
    call(current, Nr.xsm_op, 0)
    assert lines == [
        "event_channel_op(close, {port=9}) = -EINVAL (port 9 is closed already)",
        "xsm_op(arg1=0) = -ENOSYS (Xen's answer to every domU: xsm_op: Xen is built without FLASK)",
    ]


def test_a_call_that_xen_refuses_to_every_domu_has_its_argument(
    current: Current, code: Code
) -> None:
    lines = Lines(current, code, "hypercalls")
    current.write_struct(ARGUMENT, pmu.xen_pmu_params(1, 0, 0, 1, 0))
    call(current, Nr.xenpmu_op, pmu.XENPMU_init, ARGUMENT)
    assert lines == [
        "xenpmu_op(XENPMU_init, {version_maj=1, version_min=0, val=0, vcpu=1, pad=0}) = -EOPNOTSUPP"
        " (Xen's answer to every domU: xenpmu_op: the VPMU is off)"
    ]


def test_the_calls_of_a_multicall_are_indented(current: Current, code: Code) -> None:
    lines = Lines(current, code, "hypercalls")
    args = (0xE02B).to_bytes(8, "little") + (0x5000).to_bytes(8, "little") + bytes(32)
    current.write_struct(LIST, multicall_entry(Nr.stack_switch, 0, args))
    call(current, Nr.multicall, LIST, 1)
    assert lines == [
        "multicall(call_list=0x27000, nr_calls=1) begins",
        "  stack_switch(ss=0xe02b, esp=0x5000) = 0",
        "multicall(call_list=0x27000, nr_calls=1) = 0",
    ]


def test_page_tables(current: Current, code: Code) -> None:
    lines = Lines(current, code, "mmu")
    protect(current, SPARE)
    mmuext(current, MMUEXT_PIN_L4_TABLE, SPARE)
    new_guest_cr3(current, SPARE)
    new_user_baseptr(current, 0)
    new_guest_cr3(current, ROOT)
    mmuext(current, MMUEXT_UNPIN_TABLE, SPARE)
    assert lines == [
        "mmu: L1[0x28] of mfn 0x13: 0x28107 (mfn 0x28: P RW US G) ->"
        " 0x28105 (mfn 0x28: P US G), by an emulated store",
        "mmu: pin L4 mfn 0x28",
        "mmu: baseptr mfn 0x28",
        "mmu: user_baseptr mfn 0x0",
        "mmu: baseptr mfn 0x10",
        "mmu: unpin mfn 0x28",
    ]


def test_an_entry_that_a_hypercall_set(current: Current, code: Code) -> None:
    lines = Lines(current, code, "mmu")
    call(current, Nr.update_va_mapping, SPARE << 12, 0, 0)
    assert lines == [
        "mmu: L1[0x28] of mfn 0x13: 0x28107 (mfn 0x28: P RW US G) -> 0x0 (mfn 0x0: not present)"
    ]


def test_what_a_call_did_is_before_it_and_further_right(current: Current, code: Code) -> None:
    lines = Lines(current, code, "hypercalls", "mmu")
    protect(current, SPARE)
    mmuext(current, MMUEXT_PIN_L4_TABLE, SPARE)
    assert lines[1:] == [
        "  mmu: pin L4 mfn 0x28",
        "mmuext_op(uops=[{cmd=MMUEXT_PIN_L4_TABLE, arg1=40, arg2=0}], count=1, pdone=0,"
        " foreigndom=DOMID_SELF) = 0",
    ]


def test_refused_changes_are_no_changes(current: Current, code: Code) -> None:
    lines = Lines(current, code, "mmu")
    call(current, Nr.update_va_mapping, SPARE << 12, L1 << 12 | 7, 0)
    mmuext(current, MMUEXT_PIN_L4_TABLE, L1)
    assert lines == []


def test_events(current: Current, code: Code) -> None:
    domain = current.domain
    lines = Lines(current, code, "events")
    port = event_channel.bind_ipi(domain, 0)
    event_channel.send(domain, port)
    event_channel.send(domain, port)
    traps.deliver_event(current)
    virq = event_channel.bind_virq(domain, 0, 0)
    domain.memory.bytes[domain.shared_info_maddr + 2560] |= 1 << virq  # evtchn_mask
    event_channel.send_virq(domain, 0)
    assert lines == [
        "event: port 1 (ipi) raised for vcpu 0",
        "event: port 1 (ipi) raised for vcpu 0, pending already",
        "event: upcall by callback",
        "event: port 2 (VIRQ_TIMER) raised for vcpu 0, but masked",
    ]


def test_traps(current: Current, code: Code) -> None:
    lines = Lines(current, code, "traps")
    traps.inject(current, GP, 0x18)
    traps.inject_page_fault(current, 0x1234, 2)
    traps.deliver_event(current)
    assert lines == [
        "trap: #GP, error code 0x18, in kernel mode",
        "trap: #PF on 0x1234, error code 0x2 (W), in kernel mode",
        "trap: an event upcall, in kernel mode",
    ]


def test_an_iret(current: Current, code: Code) -> None:
    lines = Lines(current, code, "traps")
    frame = iret_context(0, 0, 0, 0, 0x21000, 0xE030, 0x202, KERNEL_STACK, 0xE02B)
    current.cpu.regs[Reg.RSP] = ARGUMENT
    current.write_struct(ARGUMENT, frame)
    traps.iret(current)
    assert lines == ["trap: iret to 0x21000, in kernel mode"]


def test_an_upcall_is_told_once(current: Current, code: Code) -> None:
    lines = Lines(current, code, *KINDS)
    traps.deliver_event(current)
    assert lines == ["event: upcall by callback"]


def test_interrupts_of_a_native_guest(code: Code) -> None:
    current = make_pvh_current()
    current.cpu.now_ns, current.cpu.rip = 1_500_000, 0x22000
    lines = Lines(current, code, "traps", "events")
    callbacks.assert_upcall(current, current.vcpu)
    current.cpu.accepted = 0x40  # type: ignore[attr-defined]
    lapic_glue.sync(current)
    lapic_glue.send_nmi(current, current.vcpu)
    assert lines == [
        "event: upcall by callback vector",
        "trap: interrupt 0x40 of the local APIC, in kernel mode",
        "trap: NMI, in kernel mode",
    ]


def test_how_vcpus_come_and_go(code: Code) -> None:
    current = make_pvh_current(vcpus=2)
    current.cpu.now_ns, current.cpu.rip = 1_500_000, 0x22000
    lines, told = Lines(current, code, "vcpus"), []
    tracer = Tracer(code, lambda line: told.append(json.loads(line)), ("vcpus",), as_json=True)
    tracer.start(current)
    lapic_glue.lapic_of(current.vcpu).write(0xF0, 0x1FF, 0)  # on
    for command in (5 << 8, 6 << 8 | 0x9A, 6 << 8 | 0x9A, 5 << 8):  # INIT, STARTUP
        lapic_glue.write(current, 0x310, 4, 2 << 24)
        lapic_glue.write(current, 0x300, 4, command | 1 << 14)
    assert lines == [
        "vcpu 1: INIT, ignored",
        "vcpu 1: STARTUP at 0x9a000",
        "vcpu 1: up",
        "vcpu 1: STARTUP, ignored",
        "vcpu 1: INIT",
        "vcpu 1: down",
    ]
    common = {"kind": "vcpus", "at_ns": 1_500_000, "vcpu": 0, "from": "0x22000", "of": 1}
    assert told[0] == common | {"name": "INIT", "ignored": True}
    assert told[1] == common | {"name": "STARTUP", "at": 0x9A000}
    assert told[2] == common | {"name": "up"}


def test_only_what_is_asked_for(current: Current, code: Code) -> None:
    lines = Lines(current, code, *KINDS, only="PIN_L|^#GP")
    protect(current, SPARE)
    mmuext(current, MMUEXT_PIN_L4_TABLE, SPARE)
    mmuext(current, MMUEXT_UNPIN_TABLE, SPARE)
    traps.inject(current, GP, 0)
    assert [line.split("(")[0] for line in lines] == [
        "mmuext_op",
        "trap: #GP, error code 0x0, in kernel mode",
    ]


def test_it_stops_and_starts_while_the_guest_runs(current: Current, code: Code) -> None:
    lines = Lines(current, code, "hypercalls")
    lines.tracer.stop()
    lines.tracer.stop()
    call(current, Nr.stack_switch, 0xE02B, 0x5000)
    assert lines == [] and current.watch is None
    lines.tracer.start(current)
    lines.tracer.start(current)
    call(current, Nr.stack_switch, 0xE02B, 0x5000)
    assert len(lines) == 1


def test_json_has_the_documented_keys(current: Current, code: Code) -> None:
    lines: list[str] = []
    Tracer(code, lines.append, as_json=True).start(current)
    protect(current, SPARE)
    mmuext(current, MMUEXT_PIN_L4_TABLE, SPARE)
    call(current, Nr.xsm_op, 0)
    event_channel.send(current.domain, event_channel.bind_ipi(current.domain, 0))
    traps.inject(current, GP, 0)
    events = [json.loads(line) for line in lines]
    assert all(line.endswith("\n") and line.count("\n") == 1 for line in lines)
    common = {"kind", "name", "at_ns", "vcpu", "from"}
    assert [event.pop("kind") for event in events] == [
        "mmu",
        "mmu",
        "hypercalls",
        "hypercalls",
        "events",
        "traps",
    ]
    entry, pin, pinned, refused, raised, trap = ({*event} - common for event in events)
    assert entry == {"level", "table", "index", "old", "new", "emulated"}
    assert pin == {"level", "mfn"}
    assert pinned == {"depth", "args", "out", "result"}
    assert refused == pinned | {"error", "reason", "standing"}
    assert raised == {"port", "what", "vcpu_notified"}
    assert trap == {"mode", "error_code"}
    assert events[3]["error"] == "ENOSYS"
    assert events[2]["args"]["uops"] == [{"cmd": "MMUEXT_PIN_L4_TABLE", "arg1": SPARE, "arg2": 0}]


def test_tracing_changes_nothing_of_the_guests(code: Code) -> None:
    def run(current: Current) -> bytes:
        current.table = TABLE
        current.cpu.regs[Reg.RSP] = KERNEL_STACK
        pv(current).traps = {GP: Trap(0xE033, HANDLER)}
        protect(current, SPARE)
        mmuext(current, MMUEXT_PIN_L4_TABLE, SPARE)
        mmuext(current, MMUEXT_PIN_L4_TABLE, SPARE)
        call(current, Nr.event_channel_op, EVTCHNOP_close, 1 << 40)
        traps.inject(current, GP, 0)
        return bytes(current.domain.memory.bytes)

    traced = make_pv_current()
    Tracer(code, lambda _: None).start(traced)
    assert run(traced) == run(make_pv_current())
