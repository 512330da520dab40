"""What a Linux kernel's own memory says of it: its log, its taint, and whether it panicked.

The console may show nothing of a kernel that died early. It also shows whatever a program prints.
Memory does not err. All of it is found by symbols, which kallsyms has if CONFIG_KALLSYMS_ALL is set
(Debian's amd64 kernels have it). Without these symbols there is the note that Linux keeps for crash
dumps. It has the log's address, once the kernel is past its first initcalls. If there is neither,
the answer is None, or an empty log.

The log is a ring of descriptors beside a ring of text. The first word of a descriptor has the state
of its record in the top two bits, and the record's id below. The text of a record begins with the
id again. Its position is given modulo the size of the text ring. A text does not wrap: if it does
not fit before the ring's end, it starts at the ring's beginning.

In Linux: kernel/printk/printk_ringbuffer.[ch] (since 5.10), kernel/panic.c,
Documentation/admin-guide/kdump/vmcoreinfo.rst.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from itertools import islice
from typing import Final

from xenemu.errors import XenError
from xenemu.hv.current import Current
from xenemu.image import Image
from xenemu.image.elf import text
from xenemu.image.orc import Read
from xenemu.peek import Code, kernel_tables, locate, machine_frame, peek
from xenemu.records import dataclass
from xenemu.x86.paging import PAGE_SHIFT

# Bits of tainted_mask (Documentation/admin-guide/tainted-kernels.rst).
TAINT_DIE: Final = 1 << 7
TAINT_WARN: Final = 1 << 9
TAINT_SOFTLOCKUP: Final = 1 << 14

VMCOREINFO_PRB: Final = re.compile(rb"\nSYMBOL\(prb\)=([0-9a-f]{8,16})\n")
# The note that the kernel keeps: the sizes of its name and its text, its type, its name.
VMCOREINFO: Final = re.compile(rb"\x0b\0\0\0(..)\0\0\0\0\0\0VMCOREINFO\0\0OSRELEASE=", re.DOTALL)
NOTE_HEAD: Final = 24
LOW_MEMORY: Final = 1 << 30  # bytes of RAM in which vmcoreinfo is looked for
NO_PANIC: Final = 0xFFFFFFFF  # PANIC_CPU_INVALID
COMMITTED, FINALIZED = 1, 2  # a record's states; 0 is reserved, 3 reusable
DATALESS: Final = 1  # a bit of a position that is none
COMMAND_LINE_SIZE: Final = 2048  # bytes
MAX_COUNT_BITS: Final = 20
MAX_SIZE_BITS: Final = 25  # of CONFIG_LOG_BUF_SHIFT
MAX_LINES: Final = 1 << 16  # of the log, that anybody is told
INFO: Final = struct.Struct("<QQHBB")  # struct printk_info, up to the level
INFO_SIZE: Final = 88

# Where a boot has come to, by how a line begins.
MILESTONES: Final = {
    "kernel": re.compile(r"(?:\[ *\d+\.\d+\] )?Linux version \d"),
    "init": re.compile(r"(?:\[ *\d+\.\d+\] )?Run \S+ as init process"),
}
# What begins a line of the kernel's on its console, unless printk.time is off. (NetBSD's, too.)
STAMP: Final = re.compile(r"(?:<\d+>)?\[ *\d+\.\d{6,7}\](?:\[ *[TC]\d+\])? ")


@dataclass(frozen=True)
class LogLine:
    """A line of the kernel's log; `facility` is 0 for the kernel's own, 1 for a program's."""

    at_ns: int
    facility: int
    text: str

    def __str__(self) -> str:
        return f"[{self.at_ns / 1e9:12.6f}] {self.text}"


@dataclass(frozen=True)
class Task:
    """A thread, by its number and its name, of 15 characters at most."""

    pid: int
    comm: str

    def __str__(self) -> str:
        return f"{self.comm}, pid {self.pid}"


class Linux:
    """The Linux in a domain, if it is one, seen through the vcpu that is current.

    `read` reads the kernel's memory by virtual addresses. If no `read` is given, one is used that
    leaves no trace there.
    """

    def __init__(self, current: Current, image: Image, read: Read | None = None) -> None:
        self._current = current
        self._image = image
        self._read = read or partial(peek, current)
        self._width = image.elf_class // 8
        self.code = Code(image, current)

    @property
    def taint(self) -> int | None:
        """``tainted_mask``; None if it cannot be read, or is another kernel's by now."""
        return self._variable("tainted_mask", self._width)

    @property
    def panicked(self) -> bool | None:
        """Whether panic() was entered; None if memory does not tell, or is another kernel's by now.

        Without its variable, the stack can show a panic, but cannot rule one out. panic() never
        returns. So an address within panic() is on a stack only after a call of panic().
        """
        cpu = self._variable("panic_cpu", 4)
        if cpu is not None:
            return cpu != NO_PANIC
        return self._is_inside("panic") or None

    @property
    def died_early(self) -> bool:
        """Whether the kernel halted for an exception before its trap handlers were set up.

        Such a kernel tells so by early_printk alone.

        In Linux: arch/x86/mm/extable.c
        """
        return self._is_inside("early_fixup_exception")

    @property
    def command_line(self) -> str:
        """Its command line, as the kernel took it; nothing if memory does not tell.

        In Linux: init/main.c
        """
        symbols = self.code.symbols
        pointer = symbols.address("saved_command_line")
        with suppress(XenError):
            address = pointer and self._words(pointer, 1)[0]
            address = address or symbols.address("boot_command_line")
            if address is not None:
                return text(memoryview(self._read(address, COMMAND_LINE_SIZE)))
        return ""

    def _is_inside(self, function: str) -> bool:
        if self.code.symbols.address(function) is None:
            return False
        lines = self.code.backtrace(self._current, self._read)
        return any(line.strip(" ?").startswith(f"{function}+") for line in lines)

    def task(self, vcpu_id: int) -> Task | None:
        """The task that a vcpu runs; None if the kernel does not say where to find it.

        Linux numbers its CPUs as Xen numbers the vcpus. In Linux: arch/x86/include/asm/current.h
        """
        symbols, place = self.code.symbols, self._image.btf.place
        pid, comm = place("task_struct", "pid"), place("task_struct", "comm")
        hot = place("pcpu_hot", "current_task")  # 6.2 to 6.14
        at = symbols.address("pcpu_hot" if hot else "current_task")
        offsets = symbols.address("__per_cpu_offset")
        if pid is None or comm is None or at is None or offsets is None:
            return None
        try:
            (cpu,) = self._words(offsets + vcpu_id * self._width, 1)
            mask = (1 << 8 * self._width) - 1
            (task,) = self._words(cpu + at + (hot.offset if hot else 0) & mask, 1)
            if not task:
                return None
            number = int.from_bytes(self._read(task + pid.offset, pid.size), "little")
            return Task(number, text(memoryview(self._read(task + comm.offset, comm.size))))
        except XenError:
            return None

    def log(self) -> list[LogLine]:
        """The log as far as the ring still has it, oldest first; of a huge one, the newest part."""
        pointer = self.code.symbols.address("prb") or self._noted_log()
        lines: list[LogLine] = []
        if pointer is not None:
            with suppress(XenError):  # not mapped where the guest is, or no log at all
                lines.extend(islice(self._newest_first(*self._words(pointer, 1)), MAX_LINES))
        return lines[::-1]

    def _noted_log(self) -> int | None:
        """The address of ``prb``, from vmcoreinfo, wherever that is in memory."""
        found = VMCOREINFO_PRB.search(self.vmcoreinfo())
        return int(found[1], 16) if found else None

    def vmcoreinfo(self) -> bytes:
        """What the kernel says of itself for those who read its dump; nothing before it has begun.

        In Linux: kernel/crash_core.c, Documentation/admin-guide/kdump/vmcoreinfo.rst
        """
        if self.code.symbols.address("panic") is None:
            return b""  # no Linux
        memory = self._current.domain.memory.bytes[:LOW_MEMORY]
        found = VMCOREINFO.search(memory)
        if found is None:
            return b""
        start = found.start() + NOTE_HEAD
        return bytes(memory[start : start + int.from_bytes(found[1], "little")])

    def _variable(self, name: str, size: int) -> int | None:
        address = self.code.symbols.address(name)
        if address is None:
            return None
        try:
            if self.is_anothers(address):
                return None
            return int.from_bytes(self._read(address, size), "little")
        except XenError:
            return None

    def is_anothers(self, address: int) -> bool:
        """Whether an address of this kernel's belongs to another kernel by now.

        That is so after kexec for a dump. The other kernel is in memory of its own, apart from
        where this one was loaded and stays. PV has no kexec. EFAULT where nothing is mapped.

        In Linux: kernel/crash_core.c
        """
        current, image = self._current, self._image
        part = next((s for s in image.segments if 0 <= address - s.vaddr < s.memsz), None)
        if current.domain.p2m is None or part is None:
            return False
        home = machine_frame(current, part.paddr + address - part.vaddr)
        return locate(current, address, kernel_tables(current, image)) >> PAGE_SHIFT != home

    def _words(self, address: int, count: int) -> tuple[int, ...]:
        letter = {8: "Q", 4: "I"}[self._width]
        return struct.unpack(f"<{count}{letter}", self._read(address, count * self._width))

    def _newest_first(self, ring: int) -> Iterator[LogLine]:
        width = self._width
        count_bits, descs, infos, head, tail, *rest = self._words(ring, 9)
        if not _is_address(rest[1], width):  # 6.8 put last_finalized_seq before the text ring
            rest.pop(0)
        size_bits, text = rest[0] & 0xFFFFFFFF, rest[1]
        count_bits &= 0xFFFFFFFF
        if count_bits > MAX_COUNT_BITS or size_bits > MAX_SIZE_BITS:
            return
        count, mask = 1 << count_bits, (1 << (8 * width - 2)) - 1
        room = 1 << size_bits  # of all text together
        for number in range(min((head - tail & mask) + 1, count)):
            record = head - number & mask
            index = record % count
            state, begin, end = self._words(descs + index * 3 * width, 3)
            if state >> (8 * width - 2) not in (COMMITTED, FINALIZED) or state & mask != record:
                continue
            info = self._read(infos + index * INFO_SIZE, INFO.size)
            _, at_ns, length, facility, _ = INFO.unpack(info)
            words = self._text(text, size_bits, record, begin, end, min(length, room))
            room -= len(words)
            for line in reversed(words.split("\n")):
                yield LogLine(at_ns, facility, line)

    def _text(
        self, ring: int, size_bits: int, record: int, begin: int, end: int, length: int
    ) -> str:
        if begin & DATALESS:
            return ""
        at = begin % (1 << size_bits)
        if begin >> size_bits != end - 1 >> size_bits:  # the end is that of the next block
            at = 0
        (owner,) = self._words(ring + at, 1)
        if owner != record:
            return ""
        length = max(0, min(length, (1 << size_bits) - at - self._width))
        return self._read(ring + at + self._width, length).decode(errors="replace")


def _is_address(value: int, width: int) -> bool:
    """Whether a word is a kernel's address, and no count."""
    return value >> (8 * width - 1) == 1
