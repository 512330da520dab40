"""The crash report: where a guest was when it ended, for the person who has to find out why."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Set
from dataclasses import replace
from typing import Final

from xenemu.decode import format_args, name_args
from xenemu.errors import XenError
from xenemu.explain import facts
from xenemu.hv.calls import CallRecord
from xenemu.hv.cpu import Reg, Seg
from xenemu.hv.current import Current
from xenemu.hv.dispatch import format_call
from xenemu.hv.frame_table import LEVELS, PGT_seg_desc_page
from xenemu.hv.state.vcpu import Vcpu
from xenemu.image import Image
from xenemu.image.orc import Read
from xenemu.kaslr import as_mapped
from xenemu.lacking import undefined_lines
from xenemu.linux import Linux
from xenemu.outcome import End
from xenemu.peek import (
    Code,
    Pages,
    doing,
    has_begun,
    in_kernel,
    interruptible,
    kernel_tables,
    machine_frame,
    tables,
    walk,
)
from xenemu.sampling import Samples
from xenemu.x86.paging import ADDR, RW, P, describe_entry

# Ends that are not the guest's own doing: then a report tells where it has spent its time.
GIVEN_UP: Final = frozenset((End.TIMEOUT, End.IDLE, End.STOPPED))
READ_ONLY: Final = frozenset((*LEVELS, PGT_seg_desc_page))  # what Xen lets no guest write
CALLS: Final = 16
LOG_LINES: Final = 24
IDLE_TASK: Final = ", pid 0"
REGS_A_LINE: Final = 3
LINE: Final = 90  # characters


def report(
    current: Current,
    image: Image,
    reason: str = "",
    samples: Samples | None = None,
    shown: Set[str] = frozenset(),
) -> str:
    """Say all that there is to say of a guest that ended: log, calls, registers, stack, walks.

    `reason` is why the guest ended, if the frames and addresses in it are to be looked at, too.
    `samples` are those of a guest that did not end by itself. `shown` are the lines of the kernel's
    log that the reader has seen already.

    This changes nothing of the guest's. It comes to an end whatever the guest has in its registers
    and its memory, because `Pages` and `facts` read only so much.
    """
    image = as_mapped(current, image)
    read = Pages(current)
    linux = Linux(current, image, Pages(current, kernel_tables(current, image)))
    code, vcpu, schedule = linux.code, current.vcpu, current.domain.schedule
    several = len(current.domain.vcpus) > 1
    sections = {
        f"Kernel log, from its memory{', without what is shown' if shown else ''}": [
            str(line) for line in linux.log()[-LOG_LINES:] if line.text not in shown
        ],
        "Where it has spent its time": samples.lines(code) if samples else [],
        "Last hypercalls": call_lines(current, CALLS, each_vcpu=True),
        "Refused outside hypercalls": list(current.domain.refusals),
        "What was refused or faulted on, as it is now": _facts(current, code, reason),
        f"Registers of vcpu {vcpu.vcpu_id}": [
            *_first_lines(current, linux),
            *_registers(current, code),
        ],
        "Modules": _modules(code),
        f"Backtrace of vcpu {vcpu.vcpu_id}" if several else "Backtrace": code.backtrace(
            current, read
        ),
        "The last #UD": _undefined(current, code),
        "Page walk of cr2, where the last page fault was": (
            walk_lines(current, current.cpu.cr2) if tables(current) else []
        ),
    }
    for name, vaddr in (("rip", current.cpu.rip), ("rsp", current.cpu.regs[Reg.RSP])):
        if not _is_readable(read, vaddr):
            sections[f"Page walk of {name}, which cannot be read"] = walk_lines(current, vaddr)
    sections["Other vcpus"] = list(_other_vcpus(current, linux))
    sections["To let the vcpus run in the same order"] = list(filter(None, (schedule.options,)))
    return "\n".join(
        line
        for heading, lines in sections.items()
        if lines
        for line in (f"{heading}:", *(f"  {line}" for line in lines))
    )


def call_lines(current: Current, count: int, each_vcpu: bool = False) -> list[str]:
    """The last `count` hypercalls of those that the log keeps, the oldest first.

    With `each_vcpu`, also the last one of each vcpu that made none of them. What their pointers led
    to is not known any more.
    """
    rows = {row.name: row for row in current.table.rows.values()} if current.table else {}
    lines = []
    for record in _last_calls(current, count, each_vcpu):
        row = rows.get(record.name)
        args = format_args(name_args(row, record), {}) if row is not None else None
        lines.append(format_call(record, args))
    return lines


def _last_calls(current: Current, count: int, each_vcpu: bool = False) -> list[CallRecord]:
    calls = list(current.domain.calls)
    recent = calls[max(0, len(calls) - count) :] if count else []
    last_of = {record.vcpu_id: record for record in calls} if each_vcpu else {}
    for record in recent:
        last_of.pop(record.vcpu_id, None)
    return sorted(last_of.values(), key=lambda record: record.at_ns) + recent


def _facts(current: Current, code: Code, reason: str) -> list[str]:
    sentences = [reason, *(record.reason for record in _last_calls(current, CALLS))]
    sentences += current.domain.refusals
    if _is_kept_read_only(current, current.cpu.cr2):
        sentences += walk_lines(current, current.cpu.cr2)[-1:]
    return facts(current, "\n".join(sentences), code)


def _is_kept_read_only(current: Current, vaddr: int) -> bool:
    """Whether Xen itself is why a store there faults: the last page fault may have been one.

    Others are the guest's own business, and most are long dealt with.
    """
    found = tables(current)
    steps = list(walk(current, found, vaddr)) if found is not None and found.has(vaddr) else []
    if not steps or not steps[-1].entry & P or steps[-1].entry & RW:
        return False
    mfn = machine_frame(current, steps[-1].entry & ADDR)
    frames = current.domain.frames
    return mfn is not None and bool(frames.type_count[mfn]) and frames.type[mfn] in READ_ONLY


def _registers(current: Current, code: Code) -> list[str]:
    cpu, width = current.cpu, current.code_width

    def value(name: str, word: int) -> str:
        return f"{name:<3} {word:0{2 * width}x}"

    names = [register.name.lower() for register in Reg][: {8: 16, 4: 8}[width]]
    general = [value(name, cpu.regs[index]) for index, name in enumerate(names)]
    cs, ss = cpu.selector(Seg.CS), cpu.selector(Seg.SS)
    mode = "kernel" if in_kernel(current) else "user"
    jump = cpu.came_from()
    return [
        f"rip {code.format(cpu.rip)}, in {mode} mode",
        *([f"came from {code.format(jump)}"] if jump else []),
        "  ".join((value("rip", cpu.rip), value("cr2", cpu.cr2), value("cr3", cpu.cr3))),
        *("  ".join(general[i : i + REGS_A_LINE]) for i in range(0, len(general), REGS_A_LINE)),
        f"rflags {cpu.rflags:08x}  cs {cs:04x}  ss {ss:04x}  cr0 {cpu.cr0:08x}",
    ]


def _first_lines(current: Current, linux: Linux) -> list[str]:
    """The task that the vcpu runs; of several vcpus, also what this one does."""
    tasks = _tasks(linux, current.vcpu.vcpu_id)
    if len(current.domain.vcpus) == 1:
        return tasks
    return [", ".join((doing(current, current.vcpu), interruptible(current), *tasks))]


def _tasks(linux: Linux, vcpu_id: int) -> list[str]:
    task = linux.task(vcpu_id)
    return [] if task is None else [f"running {task}"]


def _modules(code: Code) -> list[str]:
    names = " ".join(module.name for module in code.modules.loaded()) if code.modules else ""
    return textwrap.wrap(names, LINE, break_on_hyphens=False)


def _undefined(current: Current, code: Code) -> list[str]:
    undefined = current.cpu.undefined()
    return undefined_lines(undefined, code.format(undefined.rip)) if undefined else []


def _other_vcpus(current: Current, linux: Linux) -> Iterator[str]:
    """The vcpus that are not in the CPU: what each does, and the backtrace of those that ran.

    Those that do the same at the same place are shown together.
    """
    alike: dict[tuple[str, ...], list[Vcpu]] = {}
    for vcpu in current.domain.vcpus:
        if vcpu is not current.vcpu:
            alike.setdefault(_vcpu_lines(current, linux, vcpu), []).append(vcpu)
    for (state, *lines), vcpus in alike.items():
        tasks = {v.vcpu_id: _tasks(linux, v.vcpu_id) if lines else [] for v in vcpus}
        if len(vcpus) == 1:
            (vcpu,) = vcpus
            waited = [] if vcpu.runnable or not lines else [_since(current, vcpu)]
            yield ", ".join((f"vcpu {vcpu.vcpu_id}: {state}", *waited, *tasks[vcpu.vcpu_id]))
        else:
            yield f"vcpus {_in_words(tasks)}: {state}"
            yield from (
                f"  vcpu {vcpu_id}: {task}"
                for vcpu_id, found in tasks.items()
                for task in found
                if not task.endswith(IDLE_TASK)
            )
        yield from (f"  {line}" for line in lines)


def _vcpu_lines(current: Current, linux: Linux, vcpu: Vcpu) -> tuple[str, ...]:
    """What a vcpu does, and the backtrace of one that has run."""
    state = doing(current, vcpu)
    if not has_begun(current, vcpu):
        return (state,)
    other = replace(current, vcpu=vcpu, cpu=vcpu.saved)
    mode = "kernel" if in_kernel(other) else "user"
    state += f", in {mode} mode, {interruptible(other)}"
    return state, *linux.code.backtrace(other, Pages(other))


def _since(current: Current, vcpu: Vcpu) -> str:
    return f"for {(current.cpu.now_ns - vcpu.runstate_since_ns) / 1e9:.3f} s"


def _in_words(numbers: Iterable[int]) -> str:
    """Ascending numbers: 1, 3 to 7 and 9."""
    ranges: list[range] = []
    for number in numbers:
        if ranges and number == ranges[-1].stop:
            ranges[-1] = range(ranges[-1].start, number + 1)
        else:
            ranges.append(range(number, number + 1))
    words: list[str] = []
    for found in ranges:
        words += [f"{found[0]} to {found[-1]}"] if len(found) > 2 else map(str, found)
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1])))


def _is_readable(read: Read, vaddr: int) -> bool:
    try:
        read(vaddr, 1)
    except XenError:
        return False
    return True


def walk_lines(current: Current, vaddr: int) -> list[str]:
    """Show each entry that a walk meets, and what the frame is that it leads to."""
    found = tables(current)
    if found is None:
        address = vaddr & 0xFFFFFFFF
        return [f"{address:#x}: paging is off", f"  -> {_describe(current, address)}"]
    if not found.has(vaddr):
        return [f"{vaddr:#x} is no address, as it is not canonical"]
    lines = [f"{vaddr:#x} from cr3: {_describe(current, found.root)}"]
    for step in walk(current, found, vaddr):
        index, entry = found.index(vaddr, step.level), step.entry
        lines.append(f"L{step.level}[{index:#x}] = {describe_entry(entry)}")
        if entry & P:
            lines.append(f"  -> {_describe(current, entry & ADDR)}")
    return lines


def _describe(current: Current, paddr: int) -> str:
    mfn = machine_frame(current, paddr)
    if mfn is None:
        return f"{paddr:#x}, where no memory is"
    return current.domain.frames.describe(mfn)
