"""gdb/monitor, gdb/views, gdb/breaks: what a person asks, and what the guest is held for."""

from __future__ import annotations

import re
from dataclasses import replace
from types import SimpleNamespace

import pytest

from fakes import CODE, CODE64, make_pv_current
from kernelguest import TASK, Guest
from xenemu.abi.arch_x86.xen import FLAT_RING3_CS64
from xenemu.abi.event_channel import EVTCHNOP_alloc_unbound, evtchn_alloc_unbound
from xenemu.abi.xen import DOMID_SELF
from xenemu.errors import OutputError
from xenemu.gdb.breaks import Breaks
from xenemu.gdb.files import Files
from xenemu.gdb.monitor import COMMANDS, Monitor
from xenemu.gdb.ondisk import OnDisk
from xenemu.gdb.places import Places
from xenemu.gdb.target import Target
from xenemu.gdb.views import find_offset
from xenemu.hv import event_channel
from xenemu.hv.cpu import Reg, Seg, Segment
from xenemu.hv.p2m import P2m
from xenemu.image import SymbolFile
from xenemu.image.kernel_modules import Module
from xenemu.image.notes import ElfNote, Note, XenNotes
from xenemu.image.symbols import Symbols
from xenemu.kaslr import STEP
from xenemu.linux import Linux, LogLine
from xenemu.machine import TABLE
from xenemu.pv.state import Trap, pv
from xenemu.pv.traps import inject, inject_page_fault
from xenemu.x86 import flags
from xenemu.x86.paging import Maddr

AT = 0x26000  # data of the guest's
BANNER = b"Linux version 6.1.0 (somebody@somewhere) (a compiler) #1 SMP 2026 and so on"


class Loaded(SimpleNamespace):
    """An image, of which something is remembered."""

    __hash__ = object.__hash__


@pytest.fixture
def target():
    return make_target()


def make_target(vcpus=1):
    current = make_pv_current(vcpus=vcpus)
    current.table = TABLE
    current.cpu.set_segment(Seg.CS, Segment(8, 0, 0xFFFFFFFF, CODE64))
    current.cpu.statistics = dict
    current.cpu.instructions = 5
    part = SimpleNamespace(vaddr=CODE, paddr=CODE, memsz=0x1000, data=memoryview(BANNER))
    names = [(CODE, "start", True), (CODE + 8, "next", True)]
    image = Loaded(
        elf_class=64, segments=(part,), symbol_file=SymbolFile("kernel", memoryview(b"")),
        notes=XenNotes(), symbols=Symbols(lambda: names, [range(1 << 20)]), orc=None,
    )  # fmt: skip
    caught = []
    debug = SimpleNamespace(catch_faults=lambda vectors: caught.append(sorted(vectors)))
    machine = SimpleNamespace(
        current=current, domain=current.domain, engine=current.cpu, debug=debug, caught=caught,
        entry=SimpleNamespace(name="pv64"), untouched=current.cpu.store(),
    )  # fmt: skip
    return Target(machine, image)


@pytest.fixture
def said():
    return []


def places_of(target):
    history = SimpleNamespace(marks=[], checkpoints=[], limit="because", settle=lambda: None)
    return Places(target.machine, history, hex)


@pytest.fixture
def monitor(target, said):
    return Monitor(target, Files(target), places_of(target), said.append, said.append)


def test_what_is_kept_goes_where_the_run_has_a_file_for_it(monitor, target):
    def full():
        raise OutputError("--snapshot a: No space left on device")

    kept = {"snapshot": ("keep", "--snapshot"), "dump": ("dump", "--core")}
    for name, (field, option) in kept.items():
        assert f"begin the run with {option} FILE" in monitor.run(name)
        setattr(target, field, lambda: "taken, in a")
        assert monitor.run(name) == "taken, in a\n"
        assert f"usage: monitor {name}" in monitor.run(f"{name} x")
        setattr(target, field, full)
        assert monitor.run(name) == "--snapshot a: No space left on device\n"


def test_a_linux_is_shown_by_its_own_types(monitor, monkeypatch, tmp_path):
    guest = Guest(tmp_path)
    guest.process(1, "init", state=1)
    monkeypatch.setattr("xenemu.gdb.monitor.Kernel", lambda current, image: guest.kernel())
    monkeypatch.setattr(Linux, "log", lambda self: [LogLine(n, 0, f"line {n}") for n in range(3)])
    assert [line.split()[-1] for line in monitor.run("ps").splitlines()] == [
        *("COMMAND", "[swapper]", "[init]")
    ]
    assert monitor.run("print init_task.comm") == 'init_task.comm = (char [16]) "swapper"\n'
    at = f"{TASK + 256:#x}"
    assert monitor.run(f"print task_struct {at}.pid") == f"task_struct {at}.pid = (u32) 1\n"
    assert monitor.run("print task_struct start.pid").endswith("= (u32) <not mapped>\n")
    assert monitor.run("print init_task.x") == "struct task_struct has no member 'x'\n"
    assert monitor.run("lsmod") == "no module is loaded\n"
    assert monitor.run("dmesg").count("\n") == 3
    assert monitor.run("dmesg 1") == "[    0.000000] line 2\n"
    for words in ("ps x", "print", "lsmod x", "dmesg x", "dmesg -1"):
        assert monitor.run(words).startswith(f"usage: monitor {words.split()[0]}")


@pytest.mark.parametrize("name", COMMANDS)
def test_help_has_every_command(monitor, name):
    assert f"monitor {name} " in monitor.run("help")


def test_help_of_a_command_is_its_line(monitor):
    (line,) = monitor.run("help print").splitlines()
    assert line.startswith("monitor print NAME|TYPE ADDR  ")
    assert monitor.run("help prin") == (
        "there is no monitor command 'prin'; try: monitor help; did you mean print?\n"
    )
    assert monitor.run("help print ps").startswith("usage: monitor help [COMMAND]")


def test_help_keeps_its_two_columns_apart(monitor):
    for line in monitor.run("help").splitlines():
        assert re.search("[^ ]  +[^ ]", line), line


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("nonsense", "there is no monitor command 'nonsense'; try: monitor help"),
        ("walk", "usage: monitor walk ADDR"),
        ("walk nowhere", "the image has no symbol nowhere"),
        ("walk stat", "the image has no symbol stat; did you mean start?"),
        ("ps x", "usage: monitor ps\n"),
        ("walk 12x", "usage: monitor walk ADDR"),
        ("info", "usage: monitor info"),
        ("info everything", "usage: monitor info"),
        ("gva2gpa 0x7f0000000000", "is not mapped"),
        ("disas 0x7f0000000000", "is not mapped"),
        ("hypercalls last x", "usage: monitor hypercalls"),
        ("arch sparc", "usage: monitor arch"),
        ("trace loud", "usage: monitor trace"),
        ("trace on noise", "usage: monitor trace"),
        ("break-on fault 99", "there is no fault 99"),
        ("break-on hypercall foo", "Xen has no hypercall 'foo'"),
        ("break-on fault x", "there is no fault x: give a name such as #PF, or 0 to 31"),
        ("break-on fault -1", "there is no fault -1"),
        ("break-on event x", "x is no port; `monitor events` lists them"),
        ("break-on event -1", "-1 is no port"),
        ("checkpoint 1", "usage: monitor checkpoint"),
        ("checkpoints 1", "usage: monitor checkpoints"),
        ("goto", "usage: monitor goto COUNT|TIME|#N|off"),
        ("goto 1.5", "1.5 is no count of instructions; for a time, say 1.5s"),
    ],
)
def test_what_cannot_be_answered_is_one_line(monitor, line, words):
    assert words in monitor.run(line)
    assert monitor.run(line).count("\n") == 1


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("info domain", "domain 1, booted as pv64"),
        ("info vcpu", "vcpu 0: running, in kernel mode at start+0x0/0x8"),
        ("info vcpu", "64-bit code at 0x8:0x21000"),
        ("info mem", "frames in use as l1_page_table"),
        ("info notes", "the image has none"),
        ("hypercalls last 3", "none yet"),
        ("events", "none is open"),
        (f"walk {CODE:#x}", "L4[0x0]"),
        ("gva2gpa start+4", f"{CODE + 4:#x} is machine address {CODE + 4:#x}"),
        ("symbols start+2", "start+0x2/0x8"),
        ("symbols", "2 symbols"),
    ],
)
def test_what_is_shown(monitor, line, words):
    assert words in monitor.run(line)


def test_notes_are_shown_as_a_person_writes_them(monitor, target):
    target.image.notes = XenNotes(
        raw=(
            Note("Xen", ElfNote.GUEST_OS, "GUEST_OS", "linux", 6),
            Note("Xen", ElfNote.ENTRY, "ENTRY", CODE, 8),
            Note("Xen", ElfNote.L1_MFN_VALID, "L1_MFN_VALID", ((1, 1), (4, 0)), 32),
            Note("Xen", ElfNote.PHYS32_RELOC, "PHYS32_RELOC", (0x200000, 0, 0x3FFFFFFF), 12),
            Note("GNU", 3, "type 0x3", b"\x12\xab", 2),
        )
    )
    assert monitor.run("info notes").splitlines() == [
        "Xen GUEST_OS linux",
        f"Xen ENTRY {CODE:#x}",
        "Xen L1_MFN_VALID 0x1/0x1 0x4/0x0",
        "Xen PHYS32_RELOC 0x200000 0x0 0x3fffffff",
        "GNU type 0x3 12ab",
    ]


@pytest.mark.parametrize(
    ("attributes", "shown"),
    [(CODE64, "incq %rax"), (0xC09B00, "decl %eax"), (0x9B00, "decw %ax")],
)
def test_code_is_disassembled_as_the_cpu_reads_it(monitor, target, attributes, shown):
    target.machine.engine.set_segment(Seg.CS, Segment(8, 0, 0xFFFFFFFF, attributes))
    target.machine.domain.memory.write(Maddr(CODE), b"\x48\xff\xc0")
    assert monitor.run("disas $pc 1") == f"=> start+0x0/0x8:\t{shown}\n"


def test_code_above_4_gib_is_64_bit_code_whatever_the_cpu_runs_now(monitor, target, monkeypatch):
    target.machine.engine.set_segment(Seg.CS, Segment(8, 0, 0xFFFFFFFF, 0xC09B00))
    monkeypatch.setattr(target, "read_memory", lambda vaddr, length, current: b"\x48\xff\xc0")
    assert monitor.run(f"disas {1 << 32:#x} 1").endswith("\tincq %rax\n")
    assert monitor.run(f"disas {(1 << 32) - 1:#x} 1").endswith("\tdecl %eax\n")


def test_commands_are_about_the_vcpu_that_was_held_or_one_of_choice():
    target = make_target(vcpus=2)
    monitor = Monitor(target, Files(target), places_of(target), print, print)
    vcpu = target.machine.domain.vcpus[1]
    vcpu.saved = replace(target.machine.engine.store(), rip=CODE + 8)
    assert monitor.run("disas $pc 1").startswith("of vcpu 0:\n=> start+0x0")
    assert monitor.run("vcpu 1") == "the commands are about vcpu 1\n"
    assert monitor.run("disas $pc 1").startswith("of vcpu 1:\n=> next+0x0")
    assert monitor.run("walk $pc").startswith("of vcpu 1:\n")
    assert monitor.run("vcpu 2") == "there is no vcpu 2\n"
    monitor.stopped()
    assert monitor.run("vcpu") == "the commands are about vcpu 0\n"


def test_each_vcpu_is_shown():
    target = make_target(vcpus=3)
    second = target.machine.domain.vcpus[1]
    second.saved, second.initialised = target.machine.engine.store(), True
    monitor = Monitor(target, Files(target), places_of(target), print, print)
    lines = monitor.run("info vcpu").splitlines()
    assert [line for line in lines if line[0] != " "] == [
        "vcpu 0: running, in kernel mode at start+0x0/0x8",
        "vcpu 1: down, in kernel mode at start+0x0/0x8",
        "vcpu 2: down, not initialised",
    ]
    assert sum("64-bit code at 0x8:0x21000" in line for line in lines) == 2
    assert sum("time: running 0.000000 s, runnable 0.000000 s" in line for line in lines) == 3


@pytest.mark.parametrize("offset", [0, None])
def test_kaslr_is_found(monitor, target, offset):
    if offset is not None:
        target.machine.domain.memory.write(Maddr(CODE + offset), BANNER)
    assert find_offset(target, target.current) == offset


def test_kaslr_of_a_kernel_that_has_moved(monitor, target):
    reads = {CODE + 3 * STEP: BANNER[:64]}
    target.read_memory = lambda vaddr, size, current: reads.get(vaddr, bytes(size))
    assert find_offset(target, target.current) == 3 * STEP
    assert "offset 0x600000" in monitor.run("kaslr")
    assert "symbol-file -o 0x600000" in monitor.run("kaslr")


# What the guest is held for.


@pytest.fixture
def breaks(target, said):
    return Breaks(target.machine, said.append)


def test_a_hypercall_holds_the_guest(breaks, target, said):
    breaks.on_hypercall("xen_version")
    current = target.machine.current
    current.table.call(current, 17, [0] * 6)
    current.table.call(current, 29, [99, 0, 0, 0, 0, 0])
    assert len(said) == 1
    assert "xen_version(version, 0) = " in said[0]


def test_calls_are_told_as_a_trace_tells_them(breaks, target, said):
    breaks.on_hypercall("event_channel_op")
    current = target.machine.current
    current.write_struct(AT, evtchn_alloc_unbound(DOMID_SELF, 0, 0))
    current.table.call(current, 32, [EVTCHNOP_alloc_unbound, AT, 0, 0, 0, 0])
    assert said[0].endswith(
        "event_channel_op(alloc_unbound, {dom=DOMID_SELF, remote_dom=0, port=0} => {port=1}) = 0"
    )


def test_an_event_holds_the_guest(breaks, target, said):
    domain = target.machine.domain
    port = event_channel.bind_ipi(domain, 0)
    breaks.on_event(str(port))
    event_channel.set_pending(domain, port)
    assert said == [f"an event was raised on port {port}"]


@pytest.fixture
def native(target, said):
    """Those of a PVH guest."""
    target.machine.domain.p2m = P2m()
    return Breaks(target.machine, said.append)


@pytest.mark.parametrize("text", ["14", "0xe", "#PF", "pf"])
def test_a_fault_is_named_or_numbered(native, target, text):
    native.on_fault(text)
    assert target.machine.caught[-1] == [flags.PAGE_FAULT]


def test_the_first_fault_can_be_caught(native, target):
    native.on_fault("#DE")
    assert target.machine.caught[-1] == [0]


def test_a_pv_guest_is_held_at_its_handler_of_a_fault(target, said):
    """And not for what Xen does itself: the CPU is not to stop at faults."""
    breaks = Breaks(target.machine, said.append, target.code.format)
    breaks.on_fault("PF")
    current = target.machine.current
    handler = Trap(FLAT_RING3_CS64, CODE + 8)
    pv(current).traps = {flags.PAGE_FAULT: handler, flags.GP: handler}
    assert target.machine.caught == []
    current.cpu.regs[Reg.RSP] = AT + 0x800
    inject(current, flags.GP)
    assert said == []
    current.cpu.rip = CODE + 2
    inject_page_fault(current, AT, 2)
    at = "start+0x2/0x8, error code 0x2: the guest is where its handler begins"
    assert said == [f"#PF on {AT:#x} at {at}"]
    assert current.cpu.rip == CODE + 8
    breaks.clear()
    inject_page_fault(current, AT, 2)
    assert len(said) == 1 and current.watch is None


def test_once_cleared_it_holds_on_nothing(breaks, target, said):
    current = target.machine.current
    table = current.table
    breaks.on_hypercall("xen_version")
    breaks.clear()
    current.table.call(current, 17, [0] * 6)
    assert (said, current.watch, current.table) == ([], None, table)
    assert breaks.describe() == ["holds on nothing"]


@pytest.fixture
def loaded(target):
    """Have two modules in the kernel, `one` the newer."""

    def module(name, at):
        part = range(at, at + 0x100)
        symbols = Symbols(lambda: [(at, f"begin_{name}", True)], [part])
        return Module(name, (part,), symbols, lambda: None)

    modules = [module("one", 0xC0000), module("two", 0xD0000)]
    find = lambda vaddr: next((one for one in modules if vaddr in one), None)  # noqa: E731
    target.code.modules = SimpleNamespace(loaded=lambda: tuple(modules), find=find)
    target.code.symbols = Symbols(lambda: [(CODE, "start", True)], [range(CODE, CODE + 8)])
    return modules


def test_modules_are_listed_with_what_gdb_wants_to_hear(monitor, loaded):
    said = monitor.run("modules")
    assert [line.split()[:2] for line in said.splitlines()[:2]] == [
        ["one", "0xc0000"],
        ["two", "0xd0000"],
    ]
    assert "add-symbol-file target:" in said and said.endswith("kernel.modules\n")
    assert monitor.run("modules all").startswith("usage: ")


def test_a_kernel_without_modules_says_so(monitor):
    assert monitor.run("modules").startswith("none, or a kernel that does not say where")


def test_a_name_of_a_modules_is_an_address(monitor, loaded):
    assert monitor.run("symbols begin_two+4") == "0xd0004 is begin_two+0x4/0x100 [two]\n"


def test_who_fetches_a_large_file_is_told_once_of_a_faster_way(target, tmp_path, monkeypatch):
    path, told = tmp_path / "vmlinux", []
    path.write_bytes(bytes(3 << 20))
    monkeypatch.setattr("xenemu.gdb.files.PATIENCE", 2 << 20)
    monkeypatch.setattr("xenemu.gdb.files.symbol_file", lambda *_: memoryview(b""))
    monkeypatch.setattr("xenemu.gdb.files.has_own", lambda image, physical: True)
    monkeypatch.setattr("xenemu.gdb.files.find", lambda *_: OnDisk(str(path), b""))
    files = Files(target, told.append)
    descriptor = files.handle(b"open:%s,0,0" % files.path.encode().hex().encode())[1:]
    counts = []
    for offset in range(0, 3 << 20, 1 << 16):
        assert files.handle(b"pread:%s,10000,%x" % (descriptor, offset)).startswith(b"F10000;")
        counts.append(len(told))
    assert counts == [0] * 31 + [1] * 17
    assert f"gdb fetches {files.path}, 3 MiB, through its connection" in told[0]


def test_gdb_fetches_the_modules_that_are_loaded_by_then(target, loaded):
    files = Files(target)
    path = files.modules_path.encode().hex().encode()

    def names():
        descriptor = files.handle(b"open:%s,0,0" % path)[1:]
        content = files.handle(b"pread:%s,10000,0" % descriptor)
        return [name for name in (b"begin_one", b"begin_two") if name in content]

    assert names() == [b"begin_one", b"begin_two"]
    loaded.pop()
    assert names() == [b"begin_one"]
