"""A Linux that is memory only, with types, tasks and modules, written by hand."""

from __future__ import annotations

import elfwriter
from btfwriter import DATASEC, VAR, Types
from fakes import make_current
from xenemu import image
from xenemu.abi.errno import EFAULT
from xenemu.errors import XenError
from xenemu.kernel import Kernel

HIGH = 1 << 63
NAMES = ("init_task", "modules", "__per_cpu_offset", "system_state", "nameless")
PLACES = {name: HIGH | 0x10000 + 0x400 * number for number, name in enumerate(NAMES)}
PLACES["each"] = 0x40  # of each CPU
INIT_TASK = PLACES["init_task"]
MODULES = PLACES["modules"]
TASK, MODULE, USE, SIGNAL = HIGH | 0x14000, HIGH | 0x18000, HIGH | 0x1A000, HIGH | 0x1C000
PER_CPU = HIGH | 0x1E000
# Offsets in the structs below.
TASKS, THREAD_NODE = 16, 32


def types(with_mem: bool = False) -> Types:
    found = Types()
    word = found.number(8)
    half, letter = found.number(4), found.add(1, "char", 1, b"\x08\0\0\x01")
    found.alias(word, "long unsigned int")
    state = found.add(
        *(6, "system_states", 4),
        b"".join(w.to_bytes(4, "little") for w in (found.string("BOOTING"), 0)),
        1,
    )
    assert state
    head = found.count + 2
    next_ = found.add(2, "", head)
    assert found.struct("list_head", 16, ("next", next_, 0), ("prev", next_, 8)) == head
    found.pointer()
    comm, name = found.array(letter, 16), found.array(letter, 56)
    task = found.count + 6
    signal = found.struct("signal_struct", 16, ("thread_head", head, 0))
    to_signal = found.add(2, "", signal)
    mm = found.struct("mm_struct", 16, ("total_vm", word, 8))
    to_mm, to_task = found.add(2, "", mm), found.add(2, "", task)
    inner = found.struct(
        "task_struct", 256,
        ("__state", half, 0), ("exit_state", half, 4), ("flags", half, 8), ("cpu", half, 12),
        ("tasks", head, TASKS), ("thread_node", head, THREAD_NODE), ("signal", to_signal, 48),
        ("mm", to_mm, 56), ("real_parent", to_task, 64), ("pid", half, 72), ("tgid", half, 76),
        ("comm", comm, 80),
    )  # fmt: skip
    assert inner == task
    counter = found.struct("", 4, ("counter", half, 0))
    part = found.struct("part", 16, ("base", word, 0), ("size", half, 8))
    if with_mem:
        parts = [("mem", found.array(part, 2), 88)]
    else:
        parts = [("core_layout", part, 88), ("init_layout", part, 104)]
    module = found.struct(
        "module", 192,
        ("state", half, 0), ("list", head, 8), ("name", name, 24), *parts,
        ("refcnt", counter, 120), ("source_list", head, 128),
    )  # fmt: skip
    to_module = found.add(2, "", module)
    found.struct("module_use", 32, ("source_list", head, 0), ("source", to_module, 16))
    each = found.add(VAR, "each", half, b"\x01\0\0\0")
    entry = b"".join(n.to_bytes(4, "little") for n in (each, 0, 4))
    found.add(DATASEC, ".data..percpu", 4, entry, count=1)
    return found


class Guest:
    """Its memory, and what is in it."""

    def __init__(self, tmp_path, btf: Types | None = None, vcpus: int = 1, names=PLACES) -> None:
        self.current = make_current(vcpus=vcpus)
        self.path, self.names = tmp_path / "kernel", names
        self.btf = types() if btf is None else btf
        self.missing: set[int] = set()  # pages
        self.empty(MODULES)
        self.task(INIT_TASK, 0, "swapper")
        self.empty(INIT_TASK + TASKS)

    def read(self, vaddr, size):
        place, memory = vaddr & ~HIGH, self.current.domain.memory
        if not vaddr & HIGH or vaddr & -4096 in self.missing or place + size > len(memory.bytes):
            raise XenError(EFAULT, f"{vaddr:#x} is not mapped")
        return memory.read(place, size)

    def put(self, address, value, size=8):
        self.current.domain.memory.write_uint(address & ~HIGH, size, value)

    def get(self, address):
        return int.from_bytes(self.read(address, 8), "little")

    def text(self, address, text):
        self.current.domain.memory.write(address & ~HIGH, text.encode() + b"\0")

    def empty(self, head):
        self.put(head, head)
        self.put(head + 8, head)

    def add(self, node, head):
        """Put a node before the head of its list."""
        last = self.get(head + 8)
        self.put(node, head)
        self.put(node + 8, last)
        self.put(last, node)
        self.put(head + 8, node)

    def task(self, at, pid, comm, state=0, parent=INIT_TASK, mm=0, tgid=None):
        self.put(at, state, 4)
        self.put(at + 56, mm)
        self.put(at + 64, parent)
        self.put(at + 72, pid, 4)
        self.put(at + 76, pid if tgid is None else tgid, 4)
        self.text(at + 80, comm)
        signal = SIGNAL + 32 * pid
        if tgid is None:
            self.put(at + 48, signal)
            self.empty(signal)
        self.add(at + THREAD_NODE, SIGNAL + 32 * (pid if tgid is None else tgid))

    def process(self, pid, comm, **more):
        """A process in the list; where it is."""
        at = TASK + 256 * pid
        self.task(at, pid, comm, **more)
        self.add(at + TASKS, INIT_TASK + TASKS)
        return at

    def module(self, number, name, state=0, used=0):
        """A module, the newest; where it is."""
        at = MODULE + 192 * number
        self.put(at, state, 4)
        self.text(at + 24, name)
        self.put(at + 96, 0x3000, 4)
        self.put(at + 112, 0x1000, 4)
        self.put(at + 120, used + 1, 4)
        self.empty(at + 128)
        self.add(at + 8, MODULES)
        return at

    def kernel(self) -> Kernel:
        sections = [
            *elfwriter.symbol_table(dict(self.names)),
            elfwriter.Shdr(".BTF", self.btf.build()),
        ]
        segment = elfwriter.Phdr(b"\x90", paddr=0x10000, vaddr=HIGH | 0x10000, memsz=0x10000)
        self.path.write_bytes(elfwriter.elf([segment], sections, entry=segment.vaddr))
        return Kernel(self.current, image.load(self.path), self.read)
