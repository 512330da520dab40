"""What a Linux kernel's memory says, written by hand into a guest that is memory only."""

from __future__ import annotations

import struct

import pytest

import elfwriter
from btfwriter import Types, module_types
from fakes import make_current, make_pvh_current
from xenemu import image
from xenemu.abi.errno import EFAULT
from xenemu.errors import XenError
from xenemu.hv.cpu import Seg, Segment
from xenemu.linux import DATALESS, FINALIZED, INFO_SIZE, Linux, LogLine, Task
from xenemu.x86.segment import CODE64_RING3

VARIABLES, RING, DESCS, INFOS, TEXT = 0x10000, 0x11000, 0x12000, 0x13000, 0x14000
COUNT_BITS, SIZE_BITS = 2, 7
NAMES = (
    "prb", "panic_cpu", "tainted_mask", "panic", "saved_command_line", "boot_command_line",
)  # fmt: skip
PRB, PANIC_CPU, TAINTED, PANIC, SAVED_LINE, BOOT_LINE = (
    VARIABLES + 16 * i for i in range(len(NAMES))
)
HIGH = {8: 1 << 63, 4: 1 << 31}


class Kernel:
    """A kernel of one log ring with 4 descriptors and 128 bytes of text."""

    def __init__(self, tmp_path, width=8, names=NAMES, tail=0, gap=False, make=make_current):
        self.width, self.gap, self.names = width, gap, names
        self.current = make()
        self.mapped = True
        self.path = tmp_path / "kernel"
        self.tail, self.head, self.at = tail, tail - 1, tail * 32
        self.variable(PRB, HIGH[width] | RING)
        self.variable(PANIC_CPU, 0xFFFFFFFF)

    def read(self, vaddr, size):
        place, memory = vaddr & ~HIGH[self.width], self.current.domain.memory
        if not self.mapped or place + size > len(memory.bytes):
            raise XenError(EFAULT, "not mapped")
        return memory.read(place, size)

    def variable(self, address, value):
        self.current.domain.memory.write_uint(address, 8, value & ((1 << 8 * self.width) - 1))

    def words(self, address, *values):
        mask = (1 << 8 * self.width) - 1
        data = b"".join((value & mask).to_bytes(self.width, "little") for value in values)
        self.current.domain.memory.write(address, data)

    def add(self, text, facility=0, state=FINALIZED, at=None, owner=None):
        self.head += 1
        index = self.head % (1 << COUNT_BITS)
        begin = self.at if at is None else at
        block = -(-(len(text) + self.width) // self.width) * self.width
        if begin // 128 != (begin + block - 1) // 128:
            end, place = (begin // 128 + 1) * 128 + block, 0
        else:
            end, place = begin + block, begin % 128
        self.at = end
        word = state << (8 * self.width - 2) | self.head
        self.words(DESCS + index * 3 * self.width, word, begin, end)
        info = struct.pack("<QQHBB", self.head, 1_500_000_000, len(text), facility, 0)
        self.current.domain.memory.write(INFOS + index * INFO_SIZE, info)
        if not begin & DATALESS:
            self.words(TEXT + place, self.head if owner is None else owner)
            self.current.domain.memory.write(TEXT + place + self.width, text.encode())

    def linux(self):
        high = HIGH[self.width]
        self.words(
            RING,
            *(COUNT_BITS, high | DESCS, high | INFOS, self.head, self.tail),
            *([5] if self.gap else []),
            *(SIZE_BITS, high | TEXT, self.at, 0),
        )
        place = HIGH[self.width] | VARIABLES
        addresses = {name: place + 16 * NAMES.index(name) for name in self.names}
        sections = elfwriter.symbol_table(addresses, 8 * self.width)
        segment = elfwriter.Phdr(b"\x90", paddr=VARIABLES, vaddr=place, memsz=0x1000)
        elf = elfwriter.elf([segment], sections, bits=8 * self.width, entry=segment.vaddr)
        self.path.write_bytes(elf)
        return Linux(self.current, image.load(self.path), self.read)


@pytest.mark.parametrize("width", [8, 4])
@pytest.mark.parametrize("gap", [False, True], ids=["5.10", "6.8"])
def test_the_log_oldest_first(tmp_path, width, gap):
    kernel = Kernel(tmp_path, width, gap=gap)
    kernel.add("one")
    kernel.add("two", facility=1)
    assert kernel.linux().log() == [
        LogLine(1_500_000_000, 0, "one"),
        LogLine(1_500_000_000, 1, "two"),
    ]


def test_a_line_is_shown_as_linux_does():
    assert str(LogLine(1_234_567_000, 0, "Booting")) == "[    1.234567] Booting"


def test_a_record_of_several_lines(tmp_path):
    kernel = Kernel(tmp_path)
    kernel.add("one\ntwo")
    assert [line.text for line in kernel.linux().log()] == ["one", "two"]


def test_text_that_does_not_fit_starts_at_the_rings_beginning(tmp_path):
    kernel = Kernel(tmp_path)
    kernel.at = 120
    kernel.add("wrapped")
    assert [line.text for line in kernel.linux().log()] == ["wrapped"]


def test_ids_go_on_when_the_ring_is_full(tmp_path):
    kernel = Kernel(tmp_path, tail=7)
    for text in ("a", "b", "c"):
        kernel.add(text)
    assert [line.text for line in kernel.linux().log()] == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("what", "left"), [({"state": 0}, ["b"]), ({"owner": 99}, ["", "b"]), ({"at": 1}, ["", "b"])]
)
def test_a_record_that_is_none_is_left_out(tmp_path, what, left):
    kernel = Kernel(tmp_path)
    kernel.add("a", **what)
    kernel.at = 64
    kernel.add("b")
    assert [line.text for line in kernel.linux().log()] == left


@pytest.mark.parametrize("bad", [21, 0xFFFF_FFFF])
def test_nonsense_is_no_log(tmp_path, bad):
    kernel = Kernel(tmp_path)
    kernel.add("a")
    linux = kernel.linux()
    kernel.words(RING, bad)
    assert linux.log() == []


def test_of_a_huge_log_there_is_the_newest_part(tmp_path, monkeypatch):
    monkeypatch.setattr("xenemu.linux.MAX_LINES", 3)
    kernel = Kernel(tmp_path)
    kernel.add("a\nb\nc")
    kernel.add("d\n")
    assert [line.text for line in kernel.linux().log()] == ["c", "d", ""]


def test_records_that_overlap_have_no_more_text_than_the_ring(tmp_path):
    kernel = Kernel(tmp_path)
    for number in range(4):
        kernel.add("x" * 80, at=8 * number)
    texts = [line.text for line in kernel.linux().log()]
    assert [len(text) for text in texts] == [0, 0, 48, 80]


def test_a_log_that_is_not_mapped_is_none(tmp_path):
    kernel = Kernel(tmp_path)
    linux = kernel.linux()
    kernel.mapped = False
    assert linux.log() == []
    assert linux.taint is None
    assert not linux.panicked


def test_without_its_symbol_the_log_is_found_by_vmcoreinfo(tmp_path):
    kernel = Kernel(tmp_path, names=("panic", "panic_cpu"))
    kernel.add("one")
    linux = kernel.linux()
    assert linux.log() == []
    note = b"OSRELEASE=6.1\nSYMBOL(prb)=%x\nSYMBOL(x)=0\n" % (HIGH[8] | PRB)
    head = struct.pack("<III12s", 11, len(note), 0, b"VMCOREINFO")
    kernel.current.domain.memory.write(0x20000, head + note)
    assert linux.vmcoreinfo() == note
    assert [line.text for line in linux.log()] == ["one"]


def test_taint(tmp_path):
    kernel = Kernel(tmp_path)
    kernel.variable(TAINTED, 1 << 9)
    assert kernel.linux().taint == 1 << 9


@pytest.mark.parametrize("saved", [True, False])
def test_the_command_line_is_where_it_was_saved_or_still_where_it_was_put(tmp_path, saved):
    kernel = Kernel(tmp_path)
    kernel.current.domain.memory.write(0x20000, b"console=hvc0 mem=2G\0rest")
    kernel.current.domain.memory.write(BOOT_LINE, b"console=hvc0\0rest")
    kernel.variable(SAVED_LINE, HIGH[8] | 0x20000 if saved else 0)
    assert kernel.linux().command_line == ("console=hvc0 mem=2G" if saved else "console=hvc0")


def test_without_its_symbols_the_command_line_is_not_known(tmp_path):
    assert Kernel(tmp_path, names=("prb", "panic")).linux().command_line == ""


@pytest.mark.parametrize(("cpu", "panicked"), [(0xFFFF_FFFF, False), (0, True)])
def test_panic_cpu_tells_of_a_panic(tmp_path, cpu, panicked):
    kernel = Kernel(tmp_path)
    kernel.variable(PANIC_CPU, cpu)
    assert kernel.linux().panicked is panicked


@pytest.mark.parametrize(("mapped", "panicked"), [(VARIABLES, False), (0x20000, None), (0, None)])
def test_another_kernel_in_other_memory_tells_nothing_of_the_first(tmp_path, mapped, panicked):
    """As after kexec for a dump."""
    kernel = Kernel(tmp_path, width=4, make=make_pvh_current)
    cpu, root, table = kernel.current.cpu, 0x30000, 0x31000
    cpu.cr0, cpu.cr3 = 0x8000_0011, root
    kernel.words(root + (HIGH[4] >> 22) * 4, table | 3)
    kernel.words(table + (VARIABLES >> 12) * 4, mapped | 3 if mapped else 0)
    linux = kernel.linux()
    assert linux.panicked is panicked
    assert linux.taint == (None if panicked is None else 0)


@pytest.mark.parametrize(("called_from", "panicked"), [(PANIC + 5, True), (PRB + 8, None)])
def test_without_it_the_stack_tells(tmp_path, called_from, panicked):
    kernel = Kernel(tmp_path, names=("panic", "prb"))
    memory, cpu = kernel.current.domain.memory, kernel.current.cpu
    memory.write(called_from - 5, b"\xe8")
    cpu.set_segment(Seg.CS, Segment(0xE033, attributes=CODE64_RING3))
    cpu.rip, cpu.regs[4] = HIGH[8] | PRB, HIGH[8] | 0x15000
    kernel.words(0x15000, 0, HIGH[8] | called_from)
    assert kernel.linux().panicked is panicked


def test_no_linux_is_silent(tmp_path):
    path = tmp_path / "kernel"
    path.write_bytes(elfwriter.kernel())
    linux = Linux(make_current(), image.load(path))
    assert (linux.taint, linux.panicked, linux.log()) == (None, None, [])


# What runs.

OFFSETS, CPUS, TASK = 0x18000, (0x19000, 0x1A000), 0x1B000


class Tasks(Kernel):
    """A kernel of two CPUs, whose current tasks are at `place` in their own memory."""

    def __init__(self, tmp_path, place, name="current_task", types=None):
        super().__init__(tmp_path)
        self.addresses = {name: place, "__per_cpu_offset": HIGH[8] | OFFSETS}
        self.types = types or module_types()
        self.words(OFFSETS, *(HIGH[8] | cpu for cpu in CPUS))
        for number, cpu in enumerate(CPUS):
            task = TASK + 0x100 * number
            self.words(cpu + 0x80, HIGH[8] | task)
            self.current.domain.memory.write(task + 8, struct.pack("<I4x16s", 70 + number, b"sh"))

    def linux(self):
        sections = [
            *elfwriter.symbol_table(self.addresses),
            elfwriter.Shdr(".BTF", self.types.build()),
        ]
        segment = elfwriter.Phdr(b"\x90", vaddr=HIGH[8] | VARIABLES, memsz=0x1000)
        self.path.write_bytes(elfwriter.elf([segment], sections, entry=segment.vaddr))
        return Linux(self.current, image.load(self.path), self.read)


def test_each_vcpu_has_its_task(tmp_path):
    linux = Tasks(tmp_path, place=0x80).linux()
    assert [linux.task(vcpu) for vcpu in (0, 1)] == [Task(70, "sh"), Task(71, "sh")]
    assert str(linux.task(0)) == "sh, pid 70"


def test_it_may_be_in_a_struct_of_what_is_hot(tmp_path):
    types = module_types()
    types.struct("pcpu_hot", 64, ("current_task", types.pointer(), 0x20))
    linux = Tasks(tmp_path, place=0x60, name="pcpu_hot", types=types).linux()
    assert linux.task(1) == Task(71, "sh")


def test_a_tasks_name_cannot_drive_a_terminal(tmp_path):
    kernel = Tasks(tmp_path, place=0x80)
    kernel.current.domain.memory.write(TASK + 16, b"\x1b[2J\n")
    assert kernel.linux().task(0) == Task(70, r"\x1b[2J\x0a")


def test_without_types_symbols_or_memory_there_is_no_task(tmp_path):
    kernel = Tasks(tmp_path, place=0x80)
    assert Tasks(tmp_path, place=0x80, types=Types()).linux().task(0) is None
    assert kernel.linux().task(99) is None
    kernel.mapped = False
    assert kernel.linux().task(0) is None
    assert Kernel(tmp_path).linux().task(0) is None
