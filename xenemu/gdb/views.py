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
from xenemu.gdb.target import Refused, Target
from xenemu.hv import event_channel
from xenemu.hv.frame_table import TYPE_NAMES
from xenemu.hv.shared_info import event_pending
from xenemu.hv.state.domain import DOM0
from xenemu.hv.state.events import Channel
from xenemu.kaslr import ANCHORS, REACH, SAMPLE, STEP
from xenemu.peek import Code, in_kernel, locate, tables, walk
from xenemu.pv.state import PvVcpu
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
    """Each vcpu: whether it runs, in which mode, and its events."""
    lines, machine = [], target.machine
    for vcpu in machine.domain.vcpus:
        state = vcpu.runstate.name.lower()
        pending = "pending" if event_pending(machine.domain, vcpu) else "none to deliver"
        line = f"vcpu {vcpu.vcpu_id}: {state}, {'online' if vcpu.online else 'offline'}"
        line += f", events: {pending}"
        if vcpu.poll_ports:
            line += f", polls ports {', '.join(map(str, sorted(vcpu.poll_ports)))}"
        lines.append(line)
        if vcpu is not machine.current.vcpu:
            continue
        mode = "kernel" if in_kernel(machine.current) else "user"
        lines.append(
            f"  {target.code_bits}-bit code, {mode} mode, upcall mask {target.event_mask()}"
        )
        arch = vcpu.arch
        if isinstance(arch, PvVcpu):
            lines.append(f"  roots: kernel {arch.kernel_root:#x}, user {arch.user_root:#x}")
            lines.append(f"  kernel stack {arch.kernel_ss:#x}:{arch.kernel_sp:#x}")
            lines.append(f"  event callback {arch.event_callback.address:#x}")
            lines.append(f"  {len(arch.traps)} trap handlers")
    return lines


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


def addresses(target: Target, vaddr: int) -> list[str]:
    """What a virtual address is to the guest, and in the machine."""
    current = target.machine.current
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


def disassemble(target: Target, code: Code, vaddr: int, count: int) -> list[str]:
    """Instructions, in the mode that the CPU is in; above 4 GiB there is only 64-bit code."""
    bits = target.code_bits if vaddr < 1 << 32 else 64
    reader = capstone.Cs(capstone.CS_ARCH_X86, MODES[bits])
    reader.syntax = capstone.CS_OPT_SYNTAX_ATT
    data = target.read_memory(vaddr, min(count, 1000) * MAX_INSTRUCTION)
    lines = [
        f"{'=>' if insn.address == target.pc else '  '} {code.format(insn.address)}:"
        f"\t{insn.mnemonic} {insn.op_str}".rstrip()
        for insn in reader.disasm(data, vaddr, count)
    ]
    if len(lines) < count:
        lines.append("   what follows is no instruction")
    return lines


def find_offset(target: Target, code: Code) -> int | None:
    """How far from where it was linked the kernel is mapped; None if it is found nowhere."""
    if tables(target.machine.current) is None:
        return None
    anchors = [found for name in ANCHORS if (found := code.symbols.address(name)) is not None]
    for vaddr in anchors or [part.vaddr for part in target.image.segments][:1]:
        wanted = _linked_bytes(target, vaddr)
        for offset in range(0, REACH, STEP):
            try:
                if target.read_memory(vaddr + offset, SAMPLE) == wanted:
                    return offset
            except Refused:
                continue
    return None


def _linked_bytes(target: Target, vaddr: int) -> bytes:
    for part in target.image.segments:
        if part.vaddr <= vaddr < part.vaddr + len(part.data):
            return bytes(part.data[vaddr - part.vaddr :][:SAMPLE])
    return b""
