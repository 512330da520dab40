"""What the monitor commands show of a machine, as lines."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Final

import capstone

from xenemu.abi.event_channel import (
    EVTCHNSTAT_closed,
    EVTCHNSTAT_interdomain,
    EVTCHNSTAT_ipi,
    EVTCHNSTAT_unbound,
    EVTCHNSTAT_virq,
)
from xenemu.abi.hvm.e820 import E820_ACPI, E820_NVS, E820_RAM, E820_RESERVED
from xenemu.abi.xen import Virq
from xenemu.gdb.target import Refused, Target, code_bits_of, pc_of
from xenemu.hv import event_channel
from xenemu.hv.cpu import Reg, Seg
from xenemu.hv.current import Current
from xenemu.hv.frame_table import TYPE_NAMES
from xenemu.hv.scheduler import runstate_info
from xenemu.hv.state.domain import DOM0
from xenemu.hv.state.events import Channel
from xenemu.hv.state.vcpu import RunState
from xenemu.kaslr import REACH, SAMPLE, STEP, anchor_of
from xenemu.peek import doing, has_begun, in_kernel, interruptible, locate, tables, walk
from xenemu.pv.state import PvVcpu
from xenemu.pvh.acpi import apic_id
from xenemu.pvh.state import PvhVcpu
from xenemu.x86.paging import ADDR, PAGE_SHIFT

MODES: Final = {16: capstone.CS_MODE_16, 32: capstone.CS_MODE_32, 64: capstone.CS_MODE_64}
MAX_INSTRUCTION: Final = 15
E820_NAMES: Final = {
    E820_RAM: "RAM",
    E820_RESERVED: "reserved",
    E820_ACPI: "ACPI",
    E820_NVS: "ACPI NVS",
}
VIRQS: Final = {virq.value: virq.name for virq in Virq}
RUNSTATES: Final = [(state.value, state.name.lower()) for state in RunState]
STATES: Final = {
    EVTCHNSTAT_unbound: "unbound",
    EVTCHNSTAT_interdomain: "interdomain",
    EVTCHNSTAT_virq: "virq",
    EVTCHNSTAT_ipi: "ipi",
}


def domain(target: Target) -> list[str]:
    """The domain as a whole, and its time."""
    machine, found = target.machine, target.machine.domain
    engine = machine.engine
    lines = [
        f"{found.name}, domain {found.domid}, booted as {machine.entry.name}, now"
        f" {machine.current.vcpu.environment}",
        f"virtual time {engine.now_ns / 1e9:.9f} s, {engine.instructions} instructions",
        f"{found.pages.max_pages} pages, {len(found.vcpus)} vcpus; shared_info is mfn"
        f" {found.shared_info:#x}",
        f"console port {found.console.port}, xenstore port {found.xenstore.port}",
    ]
    if found.shutdown_code is not None:
        lines.append(f"it shut down, with reason {found.shutdown_code}")
    for (kind, number), deadline in sorted(found.timers.deadlines_ns.items(), key=lambda t: t[1]):
        lines.append(f"timer {kind} {number}: due in {deadline - engine.now_ns} ns")
    return lines


def vcpus(target: Target) -> list[str]:
    """Each vcpu: what it does, where, with which tables; its events; its time in each state."""
    lines = []
    for thread in target.threads:
        current = target.current_of(thread)
        vcpu = current.vcpu
        state = doing(target.machine.current, vcpu)
        where = ""
        if has_begun(target.machine.current, vcpu):
            mode = "kernel" if in_kernel(current) else "user"
            pc = pc_of(current.cpu)
            where = f", in {mode} mode at {target.code.format(pc)}"
        elif vcpu.initialised:
            where = f", to begin at {target.code.format(pc_of(current.cpu))}"
        lines.append(f"vcpu {vcpu.vcpu_id}: {state}{where}")
        lines += [f"  {line}" for line in _vcpu_lines(target, current)]
    return lines


def _vcpu_lines(target: Target, current: Current) -> list[str]:
    vcpu, cpu = current.vcpu, current.cpu
    lines = []
    if has_begun(target.machine.current, vcpu):
        cs, bits = cpu.selector(Seg.CS), code_bits_of(cpu)
        lines.append(f"{bits}-bit code at {cs:#x}:{cpu.rip:#x}, rsp {cpu.regs[Reg.RSP]:#x}")
        lines.append(f"cr3 {cpu.cr3:#x}, cr0 {cpu.cr0:#x}, rflags {cpu.rflags:#x}")
    lines.append(interruptible(current))
    times = runstate_info(vcpu, target.machine.engine.now_ns).time
    lines.append("time: " + ", ".join(f"{name} {_seconds(times, n)}" for n, name in RUNSTATES))
    arch = vcpu.arch
    if isinstance(arch, PvVcpu):
        lines.append(f"roots: kernel {arch.kernel_root:#x}, user {arch.user_root:#x}")
        lines.append(f"kernel stack {arch.kernel_ss:#x}:{arch.kernel_sp:#x}")
        lines.append(f"event callback {arch.event_callback.address:#x}")
        lines.append(f"{len(arch.traps)} trap handlers")
    elif isinstance(arch, PvhVcpu):
        enabled = "enabled" if arch.lapic.enabled else "disabled"
        lines.append(f"APIC ID {apic_id(vcpu.vcpu_id)}, {enabled}")
    return lines


def _seconds(times: bytes, state: int) -> str:
    return f"{int.from_bytes(times[8 * state : 8 * state + 8], 'little') / 1e9:.6f} s"


def memory(target: Target) -> list[str]:
    """The memory map, what the frames are used as, and where the kernel was loaded."""
    found = target.machine.domain
    lines = [
        f"{start:#014x}-{start + size:#014x} {E820_NAMES.get(kind, kind)}"
        for start, size, kind in found.e820
    ]
    frames = found.frames
    uses = Counter(
        TYPE_NAMES[kind]
        for kind, count, owner in zip(frames.type, frames.type_count, frames.owner, strict=True)
        if owner == found.domid and count
    )
    lines += [f"{count} frames in use as {name}" for name, count in sorted(uses.items())]
    lines += [
        f"loaded: {part.paddr:#x}-{part.paddr + part.memsz:#x}, linked at {part.vaddr:#x}"
        for part in target.image.segments
    ]
    return lines


def notes(target: Target) -> list[str]:
    """The Xen notes of the kernel's image."""
    lines = []
    for note in target.image.notes.raw:
        lines.append(f"{note.owner} {note.name} {note.text}")
    return lines or ["the image has none"]


INFO: Final[dict[str, Callable[[Target], list[str]]]] = {
    "domain": domain,
    "vcpu": vcpus,
    "mem": memory,
    "notes": notes,
}


def events(target: Target) -> list[str]:
    """Each port that is not closed."""
    found = target.machine.domain
    lines = []
    for port, channel in enumerate(found.events.channels):
        if channel.state == EVTCHNSTAT_closed:
            continue
        pending = ", pending" if event_channel.is_pending(found, port) else ""
        lines.append(f"port {port}: {_peer(target, channel)}, vcpu {channel.notify_vcpu}{pending}")
    return lines or ["none is open"]


def _peer(target: Target, channel: Channel) -> str:
    state = STATES.get(channel.state, f"state {channel.state}")
    if channel.state == EVTCHNSTAT_virq:
        return f"{state} {VIRQS.get(channel.virq, channel.virq)}"
    if channel.state == EVTCHNSTAT_interdomain:
        end = target.machine.domain.events.dom0_ports.get(channel.remote_port)
        backend = end.backend if end and channel.remote_domid == DOM0 else ""
        return f"{state} with d{channel.remote_domid} port {channel.remote_port} {backend}".rstrip()
    if channel.state == EVTCHNSTAT_unbound:
        return f"{state} for d{channel.remote_domid}"
    return state


def addresses(target: Target, current: Current, vaddr: int) -> list[str]:
    """What a virtual address is to the guest, and in the machine."""
    maddr = locate(current, vaddr)
    found = tables(current)
    if found is None:
        guest = vaddr & 0xFFFFFFFF
    else:
        *_, last = walk(current, found, vaddr)
        offset = (1 << found.shifts[-last.level]) - 1
        guest = last.entry & ADDR & ~offset | vaddr & offset
    kind = "machine" if current.domain.p2m is None else "guest-physical"
    lines = [f"{vaddr:#x} is {kind} address {guest:#x}"]
    if current.domain.p2m is not None and guest != maddr:
        lines.append(f"which is machine address {maddr:#x}")
    if current.domain.p2m is None:
        pfn = current.domain.frames.get_m2p(maddr >> PAGE_SHIFT)
        lines.append(f"its frame is the guest's pfn {pfn:#x}")
    lines.append(current.domain.frames.describe(maddr >> PAGE_SHIFT))
    return lines


def disassemble(target: Target, current: Current, vaddr: int, count: int) -> list[str]:
    """Instructions, in the mode that the vcpu is in; above 4 GiB there is only 64-bit code."""
    cpu = current.cpu
    bits, pc = code_bits_of(cpu) if vaddr < 1 << 32 else 64, pc_of(cpu)
    reader = capstone.Cs(capstone.CS_ARCH_X86, MODES[bits])
    reader.syntax = capstone.CS_OPT_SYNTAX_ATT
    data = target.read_memory(vaddr, min(count, 1000) * MAX_INSTRUCTION, current)
    lines = [
        f"{'=>' if insn.address == pc else '  '} {target.code.format(insn.address)}:"
        f"\t{insn.mnemonic} {insn.op_str}".rstrip()
        for insn in reader.disasm(data, vaddr, count)
    ]
    if len(lines) < count:
        lines.append("   what follows is no instruction")
    return lines


def find_offset(target: Target, current: Current) -> int | None:
    """How far from where it was linked the kernel is mapped; None if it is found nowhere."""
    if tables(current) is None:
        return None
    segment, at = anchor_of(target.image) or (target.image.segments[0], 0)
    wanted = bytes(segment.data[at : at + SAMPLE])
    for offset in range(0, REACH, STEP):
        try:
            if target.read_memory(segment.vaddr + at + offset, SAMPLE, current) == wanted:
                return offset
        except Refused:
            continue
    return None
