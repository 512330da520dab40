"""Recipes for guests with several vcpus: what one of them does to the others."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from fuzz.contexts import fresh_context
from fuzz.making import call, mmuext, pages, sub_op, switch
from fuzz.recipes_any import event
from fuzz.world import Step
from xenemu.abi.event_channel import (
    EVTCHNOP_bind_ipi,
    EVTCHNOP_bind_vcpu,
    EVTCHNOP_bind_virq,
    EVTCHNOP_send,
    EVTCHNOP_unmask,
)
from xenemu.abi.sched import SCHEDOP_block, SCHEDOP_poll, SCHEDOP_yield, sched_poll
from xenemu.abi.vcpu import (
    VCPUOP_down,
    VCPUOP_get_runstate_info,
    VCPUOP_initialise,
    VCPUOP_is_up,
    VCPUOP_register_runstate_memory_area,
    VCPUOP_register_vcpu_info,
    VCPUOP_register_vcpu_time_memory_area,
    VCPUOP_send_nmi,
    VCPUOP_set_periodic_timer,
    VCPUOP_set_singleshot_timer,
    VCPUOP_stop_periodic_timer,
    VCPUOP_stop_singleshot_timer,
    VCPUOP_up,
    vcpu_register_vcpu_info,
)
from xenemu.abi.xen import (
    MMUEXT_INVLPG_ALL,
    MMUEXT_INVLPG_MULTI,
    MMUEXT_TLB_FLUSH_ALL,
    MMUEXT_TLB_FLUSH_MULTI,
    Nr,
    Virq,
)
from xenemu.pvh import lapic

if TYPE_CHECKING:
    from fuzz.steps import Steps

TRAMPOLINE = 9  # the page where guests/fuzz has its way from real mode
INIT, STARTUP, NMI, LOWEST = (kind << 8 for kind in (5, 6, 4, 1))
ASSERT, LOGICAL = 1 << 14, 1 << 11
SHORTHANDS = (0, 0, 0, 1 << 18, 2 << 18, 3 << 18)
VECTORS = (0x30, 0x41, 0x52, 0xEF)
HALT = {"kind": "insn", "how": "halt", "regs": [], "code": "f4"}


def _some(steps: Steps) -> int:
    """The number of a vcpu."""
    return steps.random.randrange(len(steps.world.current.domain.vcpus))


def _vcpu_op(steps: Steps, command: int, vcpu: int, data: bytes = b"") -> Step:
    where = steps.values.put(data) if data else 0
    return call(steps, Nr.vcpu_op, command, vcpu, where)


def initialise(steps: Steps) -> Iterator[Step]:
    """Start the vcpu that nobody has started, perhaps with something that Xen refuses."""
    random, values = steps.random, steps.values
    number = len(steps.world.current.domain.vcpus) - 1
    for _ in range(random.randrange(1, 4)):
        given = {}
        if random.random() < 0.6:
            fields = ("ldt_base", "ldt_ents", "gdt_ents", "kernel_sp", "event_callback_eip")
            if not steps.pv:
                wide = values.wide
                fields = ("rip", "rflags", "cr0", "cr4") if wide else ("eip", "cs_ar", "cr0", "esp")
            given = {random.choice(fields): values.word()}
        if steps.pv and random.random() < 0.4:
            width = values.width
            some = [values.frame() & values.mask for _ in range(16)]
            given["gdt_frames"] = b"".join(mfn.to_bytes(width, "little") for mfn in some)
            given["gdt_ents"] = random.choice((1, 512, 1024))
        if steps.pv and random.random() < 0.3:
            root, width = random.choice(values.tables), values.width
            cr3 = root << 12 if values.wide else (root << 12 | root >> 20) & values.mask
            user = random.choice((0, cr3, values.frame() << 12)) & values.mask
            words = [0, user, 0, cr3, 0, 0, 0, 0]
            given["ctrlreg"] = b"".join(word.to_bytes(width, "little") for word in words)
        yield _vcpu_op(
            steps, VCPUOP_initialise, number, fresh_context(steps.world, number, **given)
        )
        yield _vcpu_op(steps, VCPUOP_up, number)
        yield {"kind": "switch", "vcpu": number}


OPERATIONS = (
    VCPUOP_up, VCPUOP_up, VCPUOP_down, VCPUOP_is_up, VCPUOP_send_nmi, VCPUOP_set_periodic_timer,
    VCPUOP_stop_periodic_timer, VCPUOP_set_singleshot_timer, VCPUOP_stop_singleshot_timer,
)  # fmt: skip


def operations(steps: Steps) -> Iterator[Step]:
    """Up, down, NMIs and timers of any vcpu, in some order; all are up again in the end."""
    random, now_ns = steps.random, steps.world.current.cpu.now_ns
    for _ in range(random.randrange(2, 9)):
        command, data = random.choice(OPERATIONS), b""
        if command == VCPUOP_set_periodic_timer:
            data = random.choice((10**6, 10**7, 999, 1 << 62)).to_bytes(8, "little")
        elif command == VCPUOP_set_singleshot_timer:
            when = now_ns + random.choice((0, 1000, 10**6))
            data = when.to_bytes(8, "little") + bytes(8)
        up = [vcpu for vcpu in steps.world.current.domain.vcpus if vcpu.online]
        if command == VCPUOP_down and len(up) < 2:
            continue
        yield _vcpu_op(steps, command, _some(steps), data)
        yield random.choice((switch(steps), {"kind": "time", "ns": 10**6}))
    for vcpu in steps.world.current.domain.vcpus:
        yield _vcpu_op(steps, VCPUOP_up, vcpu.vcpu_id)


def areas(steps: Steps) -> Iterator[Step]:
    """Runstate and time areas and the vcpu_info, on pages that then may change."""
    random, values = steps.random, steps.values
    for _ in range(random.randrange(2, 6)):
        (at,) = pages(steps, 1)
        what, vcpu = random.randrange(4), _some(steps)
        if what == 0:
            info = vcpu_register_vcpu_info(values.own_frame(at), random.choice((0, 64, 4032)), 0)
            yield _vcpu_op(steps, VCPUOP_register_vcpu_info, vcpu, info.pack(values.width))
        elif what == 1:
            where = steps.values.put(bytes(48))
            yield call(steps, Nr.vcpu_op, VCPUOP_get_runstate_info, vcpu, where)
        else:
            command = random.choice(
                (VCPUOP_register_runstate_memory_area, VCPUOP_register_vcpu_time_memory_area)
            )
            address = random.choice((at, at + 4090, values.address(), 0)) & values.mask
            yield _vcpu_op(steps, command, vcpu, address.to_bytes(8, "little"))
        yield switch(steps)


def events(steps: Steps) -> Iterator[Step]:
    """IPIs and timers of several vcpus, which wait for them, and wake each other."""
    random, values, world = steps.random, steps.values, steps.world
    for _ in range(random.randrange(1, 4)):
        yield event(steps, EVTCHNOP_bind_ipi, "<II", _some(steps), 0)
    yield event(steps, EVTCHNOP_bind_virq, "<III", Virq.TIMER, _some(steps), 0)
    for _ in range(random.randrange(2, 9)):
        ipis = [n for n, one in enumerate(world.current.domain.events.channels) if one.state > 2]
        port = random.choice(ipis or [1])
        what = random.randrange(8)
        if what < 2:
            yield event(steps, EVTCHNOP_send, "<I", port)
        elif what == 2:
            yield event(steps, EVTCHNOP_bind_vcpu, "<II", port, _some(steps))
        elif what == 3:
            yield event(steps, EVTCHNOP_unmask, "<I", port)
        elif what == 4:
            where = values.words([port], 4)
            until = random.choice((0, world.current.cpu.now_ns + 10**6))
            yield sub_op(steps, Nr.sched_op, SCHEDOP_poll, sched_poll(where, 1, until))
        elif what == 5:
            yield call(steps, Nr.sched_op, random.choice((SCHEDOP_block, SCHEDOP_yield)), 0)
        else:
            yield switch(steps)


def flushes(steps: Steps) -> Iterator[Step]:
    """Translations that a mask of vcpus is to forget, or all are."""
    random, values = steps.random, steps.values
    for _ in range(random.randrange(1, 5)):
        mask = values.words([random.getrandbits(6), 0])
        command = random.choice(
            (MMUEXT_TLB_FLUSH_MULTI, MMUEXT_INVLPG_MULTI, MMUEXT_TLB_FLUSH_ALL, MMUEXT_INVLPG_ALL)
        )
        several = command in (MMUEXT_TLB_FLUSH_MULTI, MMUEXT_INVLPG_MULTI)
        yield mmuext(steps, command, values.address(), mask if several else 0)
        yield switch(steps)


def interrupts(steps: Steps) -> Iterator[Step]:
    """INIT, STARTUP, NMIs and interrupts by the local APIC, to one or several vcpus."""
    random = steps.random
    yield _apic(lapic.SPIV, lapic.SPIV_ENABLED | 0xFF)
    for _ in range(random.randrange(2, 10)):
        target = _some(steps)
        what = random.randrange(7)
        if what == 6:
            yield _apic(lapic.LVTT, random.choice(VECTORS) | random.choice((0, lapic.LVT_PERIODIC)))
            yield _apic(lapic.TMICT, random.choice((1000, 10**6)))
        elif what == 0:
            yield from _send(target, INIT | ASSERT)
            if random.random() < 0.9:
                yield from _send(target, STARTUP | ASSERT | TRAMPOLINE)
        elif what == 1:
            yield {"kind": "trap", "vector": 14, "error": 0}  # the CPU takes an interrupt
        elif what == 2:
            yield random.choice((_apic(lapic.EOI, 0), HALT))
        else:
            kind = random.choice((0, 0, 0, LOWEST, NMI, LOGICAL, LOGICAL | LOWEST))
            command = kind | random.choice(VECTORS) | random.choice(SHORTHANDS) | ASSERT
            yield from _send(target, command)
        if random.random() < 0.5:
            yield switch(steps)


def _send(target: int, command: int) -> Iterator[Step]:
    destination = target << (0 if command & LOGICAL else 1)
    yield _apic(lapic.ICR2, destination << 24)
    yield _apic(lapic.ICR, command)


def _apic(register: int, value: int) -> Step:
    return {"kind": "apic", "offset": register << 4, "size": 4, "value": value}
