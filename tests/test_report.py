"""The crash report, on a guest that exists only as registers and memory."""

from __future__ import annotations

import pytest

import elfwriter
from fakes import (
    FakeCpu,
    FakeNativeCpu,
    enter_long_mode,
    make_current,
    make_pv_current,
    make_pvh_current,
)
from hypercalls import TABLE
from xenemu import image
from xenemu.abi.errno import EFAULT
from xenemu.hv.calls import CallRecord
from xenemu.hv.cpu import Reg, Seg, Segment, Undefined
from xenemu.hv.frame_table import PGT_l1_page_table, PGT_writable_page
from xenemu.hv.p2m import P2m
from xenemu.hv.state.schedule import Schedule
from xenemu.linux import Linux, LogLine
from xenemu.peek import MAX_READS, Pages
from xenemu.pv.state import PvVcpu
from xenemu.report import call_lines, report
from xenemu.x86.paging import NX, PSE, RW, US, Mfn, P
from xenemu.x86.segment import CODE64_RING3

ROOT, L3, L2, L1, LEAF = range(32, 37)
CODE, END_OF_RAM = 0x21000, 80 << 12
CR2 = 0x0000_7F80_4030_2010


@pytest.fixture
def kernel(tmp_path):
    path = tmp_path / "kernel"
    path.write_bytes(elfwriter.kernel())
    return image.load(path)


@pytest.fixture
def current():
    current = make_current()
    cpu = current.cpu
    current.vcpu.arch = PvVcpu(Mfn(ROOT))
    cpu.set_segment(Seg.CS, Segment(0xE033, attributes=CODE64_RING3))
    cpu.rip, cpu.cr2, cpu.cr3 = 0x6000, CR2, ROOT << 12
    cpu.regs[Reg.RSP] = 0x7000
    return current


def map_cr2(current, *entries):
    """Write the entries that lead to CR2, from the root on."""
    tables = (ROOT, L3, L2, L1)
    for table, entry, shift in zip(tables, entries, (39, 30, 21, 12), strict=False):
        current.domain.memory.table(Mfn(table))[CR2 >> shift & 511] = entry


def section(text, heading):
    """The lines under a heading, without their indent."""
    lines = iter(text.splitlines())
    assert any(line.startswith(heading) for line in lines), text
    found = []
    for line in lines:
        if not line.startswith("  "):
            break
        found.append(line[2:])
    return found


def test_the_last_16_hypercalls_oldest_first(current, kernel):
    for number in range(20):
        current.domain.calls.append(CallRecord(number, 0, 0, "memory_op", (number,), -EFAULT, "no"))
    lines = section(report(current, kernel), "Last hypercalls:")
    assert len(lines) == 16
    assert lines[0].endswith("memory_op(0x4) = -EFAULT: no")
    assert lines[-1].endswith("memory_op(0x13) = -EFAULT: no")


def test_calls_have_the_names_of_their_table(current, kernel):
    current.table = TABLE
    calls = current.domain.calls
    calls.append(CallRecord(0, 0, 0, "vm_assist", (0, 2), 0))
    calls.append(CallRecord(0, 0, 0, "sched_op", (1, 0), None))
    calls.append(CallRecord(0, 0, 0, "hypercall 99", (), -EFAULT, "none"))
    lines = [line.split(" v0 ")[1] for line in call_lines(current, 2)]
    assert lines == ["sched_op(block, 0) = ?", "hypercall 99() = -EFAULT: none"]
    assert (
        "vm_assist(VMASST_CMD_enable, assist=VMASST_TYPE_writable_pagetables) = 0"
        in (call_lines(current, 3)[0])
    )


def test_frames_that_were_refused_are_told(current, kernel):
    current.domain.frames.get_page_and_type(40, 1, 1)
    current.log(f"no store to {current.domain.frames.describe(40)}")
    lines = section(report(current, kernel), "What was refused or faulted on")
    assert lines == ["mfn 0x28 was made l1_page_table by the domain builder"]


def test_the_address_that_a_crash_was_for_is_told(current, kernel):
    lines = section(
        report(current, kernel, f"no frame: {CR2:#x} is read-only"), "What was refused or faulted"
    )
    assert lines == [f"the walk to {CR2:#x} ends at L4[0xff] = 0x0 (mfn 0x0: not present)"]


@pytest.mark.parametrize(
    ("entry", "used_as", "told"),
    [
        (LEAF << 12 | P, PGT_l1_page_table, ["mfn 0x24 was made l1_page_table by the domain"]),
        (LEAF << 12 | P | RW, PGT_l1_page_table, []),
        (LEAF << 12 | P, PGT_writable_page, []),
        (LEAF << 12, PGT_l1_page_table, []),
        (0xFFFF_FFFF_F000 | P, PGT_l1_page_table, []),
    ],
)
def test_of_the_last_page_fault_only_what_xen_keeps_read_only_is_told(
    current, kernel, entry, used_as, told
):
    flags = P | RW | US
    map_cr2(current, L3 << 12 | flags, L2 << 12 | flags, L1 << 12 | flags, entry)
    frames = current.domain.frames
    frames.type[LEAF], frames.type_count[LEAF] = used_as, 1
    text = report(current, kernel)
    heading = "What was refused or faulted on"
    lines = section(text, heading) if told else []
    assert (heading in text) == bool(told)
    assert [line[: len(told[0])] for line in lines] == told


def test_refusals_outside_hypercalls(current, kernel):
    current.log("the page table in mfn 0x20 may not be written")
    lines = section(report(current, kernel), "Refused outside hypercalls:")
    assert lines == ["the page table in mfn 0x20 may not be written"]


def test_registers_of_64_bit_code(current, kernel):
    current.cpu.regs[Reg.R15] = 0xFEED_FACE_CAFE_BEEF
    text = "\n".join(section(report(current, kernel), "Registers of vcpu 0:"))
    assert "in kernel mode" in text
    assert "r15 feedfacecafebeef" in text
    assert "cr2 00007f8040302010" in text
    assert "rflags 00000202  cs e033" in text


def test_registers_of_32_bit_code(current, kernel):
    current.cpu.set_segment(Seg.CS, Segment(0xE019))
    text = "\n".join(section(report(current, kernel), "Registers of vcpu 0:"))
    assert "rsp 00007000" in text
    assert "r15" not in text


def test_a_name_for_where_it_was(current, tmp_path):
    path = tmp_path / "kernel"
    symbol = (1).to_bytes(4, "little") + bytes([0x12, 0]) + (1).to_bytes(2, "little")
    symbol += (elfwriter.ENTRY).to_bytes(8, "little") + (64).to_bytes(8, "little")
    sections = [
        elfwriter.Shdr(".symtab", symbol, elfwriter.SYMTAB, link=2),
        elfwriter.Shdr(".strtab", b"\0startup\0", elfwriter.STRTAB),
    ]
    path.write_bytes(elfwriter.elf(sections=sections))
    current.cpu.rip = elfwriter.ENTRY + 4
    text = report(current, image.load(path))
    assert "rip startup+0x4/0x2000, in kernel mode" in text
    assert section(text, "Backtrace:")[0].strip() == "startup+0x4/0x2000"


def test_a_program_has_no_backtrace(current, kernel):
    current.vcpu.arch.kernel_mode = False
    text = report(current, kernel)
    assert "in user mode" in text
    assert section(text, "Backtrace:") == ["none: it ran a program, whose symbols are not known"]


def test_page_walk_to_a_leaf(current, kernel):
    flags = P | RW | US
    map_cr2(current, L3 << 12 | flags, L2 << 12 | flags, L1 << 12 | flags, LEAF << 12 | P | NX)
    lines = section(report(current, kernel), "Page walk of cr2")
    assert lines[0].startswith("0x7f8040302010 from cr3: mfn 0x20 (d1's")
    assert lines[1:] == [
        "L4[0xff] = 0x21007 (mfn 0x21: P RW US)",
        f"  -> {current.domain.frames.describe(L3)}",
        "L3[0x1] = 0x22007 (mfn 0x22: P RW US)",
        f"  -> {current.domain.frames.describe(L2)}",
        "L2[0x1] = 0x23007 (mfn 0x23: P RW US)",
        f"  -> {current.domain.frames.describe(L1)}",
        "L1[0x102] = 0x8000000000024001 (mfn 0x24: P NX)",
        f"  -> {current.domain.frames.describe(LEAF)}",
    ]


def test_page_walk_ends_at_what_is_not_present(current, kernel):
    map_cr2(current, L3 << 12 | P, L2 << 12)
    lines = section(report(current, kernel), "Page walk of cr2")
    assert lines[-1] == "L3[0x1] = 0x22000 (mfn 0x22: not present)"


def test_page_walk_ends_at_a_large_page(current, kernel):
    map_cr2(current, L3 << 12 | P, L2 << 12 | P | PSE)
    lines = section(report(current, kernel), "Page walk of cr2")
    assert len(lines) == 5


def test_page_walk_ends_where_there_is_no_memory(current, kernel):
    map_cr2(current, 0xFFFF_FFFF_F000 | P)
    lines = section(report(current, kernel), "Page walk of cr2")
    assert lines[-1] == "  -> 0xfffffffff000, where no memory is"


def test_native_guest_without_paging(current, kernel):
    current.domain.p2m = P2m(range(current.domain.memory.nr_frames))
    current.cpu.cr0 = 0x11
    current.cpu.rip = 0xC000_0000
    text = report(current, kernel)
    lines = section(text, "Page walk of rip, which cannot be read:")
    assert lines == ["0xc0000000: paging is off", "  -> 0xc0000000, where no memory is"]
    assert "Page walk of cr2" not in text


@pytest.mark.parametrize(
    ("cr4", "efer", "size", "levels"), [(0, 0, 4, 2), (0x20, 0, 8, 3), (0x20, 0x400, 8, 4)]
)
def test_native_guest_has_the_tables_of_its_mode(current, kernel, cr4, efer, size, levels):
    domain, cpu = current.domain, current.cpu
    domain.p2m = P2m()
    domain.p2m.set(0x1234, Mfn(ROOT))
    cpu.cr2, cpu.cr3, cpu.cr4, cpu.efer = 0, 0x1234000, cr4, efer
    domain.memory.write_uint(ROOT << 12, size, 0x1234000 | P)
    lines = section(report(current, kernel), "Page walk of cr2")
    assert [line[:5] for line in lines[1::2]] == [f"L{n}[0x" for n in range(levels, 0, -1)]


def test_a_stack_that_cannot_be_read_is_walked(kernel):
    current = make_pv_current()
    current.cpu.regs[Reg.RSP] = CR2
    text = report(current, kernel)
    lines = section(text, "Page walk of rsp, which cannot be read:")
    assert lines[-1] == "L4[0xff] = 0x0 (mfn 0x0: not present)"
    assert "Page walk of rip" not in text


def stack_pointers():
    """A hundred: aligned and not, at the edges of mapped memory and of the address space."""
    edges = (0, 0x7000, CODE, END_OF_RAM, 1 << 31, 1 << 32, 1 << 47, -1 << 47, -1 << 31, -1 << 14)
    return [(edge + offset) % (1 << 64) for edge in edges for offset in (*range(-5, 4), 9)]


def pvh_in_long_mode():
    current = make_pvh_current()
    map_all(current, ROOT)
    enter_long_mode(current, ROOT << 12)
    return current


def map_all(current, root):
    """Four levels that map all the guest has, wherever it looks."""
    for table, below in zip((root, L3, L2), (L3, L2, L1), strict=True):
        for index in range(512):
            current.domain.memory.table(Mfn(table))[index] = below << 12 | P | RW | US
    for index in range(512):
        current.domain.memory.table(Mfn(L1))[index] = LEAF << 12 | P | RW | US


@pytest.mark.parametrize("make", [make_pv_current, make_pvh_current, pvh_in_long_mode])
def test_a_report_ends_wherever_the_stack_pointer_is(make, kernel, monkeypatch):
    current, made = make(), []
    monkeypatch.setattr("xenemu.report.Pages", lambda *a: made.append(Pages(*a)) or made[-1])
    assert len(set(stack_pointers())) == 100
    for sp in stack_pointers():
        for bp in (0, sp + 8):
            current.cpu.regs[Reg.RSP], current.cpu.regs[Reg.RBP] = sp, bp % (1 << 64)
            assert "Backtrace:" in report(current, kernel)
            assert made.pop().reads_left > MAX_READS - 10_000


def test_other_vcpus(kernel):
    current = make_current(vcpus=2)
    assert section(report(current, kernel), "Other vcpus:") == ["vcpu 1: down, not initialised"]


def test_the_order_of_vcpus_is_told_if_it_was_asked_for(kernel):
    heading = "To let the vcpus run in the same order"
    current = make_current(vcpus=2)
    assert heading not in report(current, kernel)
    current.domain.schedule = Schedule(500, 7)
    assert section(report(current, kernel), f"{heading}:") == ["--schedule-seed 7 --slice 500ns"]


def test_other_vcpus_that_ran_have_a_backtrace(kernel):
    current = make_pv_current(vcpus=2)
    other = current.domain.vcpus[1]
    other.online, other.saved, current.cpu = True, current.cpu, FakeCpu()
    other.saved.rip = 0x21000
    lines = section(report(current, kernel), "Other vcpus:")
    assert lines[0] == "vcpu 1: runnable, in kernel mode, upcalls on"
    assert lines[1].strip().startswith("0x21000")


def test_vcpus_that_do_the_same_are_shown_together(kernel):
    current = make_pv_current(vcpus=9)
    vcpus = current.domain.vcpus
    saved = FakeCpu(rip=0x21000)
    for vcpu in (vcpus[1], vcpus[3], vcpus[4]):
        vcpu.online = vcpu.initialised = vcpu.blocked = True
        vcpu.saved = saved
    vcpus[2].online = vcpus[2].initialised = True
    vcpus[2].saved = FakeCpu(rip=0x22000)
    lines = [line for line in section(report(current, kernel), "Other vcpus:") if line[0] == "v"]
    assert lines == [
        "vcpus 1, 3 and 4: blocked, in kernel mode, upcalls on",
        "vcpu 2: runnable, in kernel mode, upcalls on",
        "vcpus 5 to 8: down, not initialised",
    ]


def test_of_several_vcpus_each_says_what_keeps_interrupts_out(kernel):
    current = make_pvh_current(vcpus=3)
    _, second, third = current.domain.vcpus
    second.online = second.initialised = second.blocked = True
    second.runstate_since_ns, current.cpu.now_ns = 1_000_000_000, 3_500_000_000
    second.saved = FakeNativeCpu()
    second.saved.set_segment(Seg.SS, Segment(0))
    second.arch.lapic.set_apic_base(second.arch.lapic.apic_base)
    second.arch.lapic.write(0xF0, 0x1FF, 0)
    second.arch.lapic.assert_vector(0x61)
    current.domain.memory.bytes[third.info] = 1
    third.online, third.saved = True, FakeNativeCpu(rflags=0x202)
    text = report(current, kernel)
    assert section(text, "Registers of vcpu 0:")[0] == "running, interrupts off"
    lines = [line for line in section(text, "Other vcpus:") if line[0] == "v"]
    assert lines == [
        "vcpu 1: blocked, in kernel mode, interrupts off, vector 0x61 waits, for 2.500 s",
        "vcpu 2: runnable, in kernel mode, interrupts on, an event waits",
    ]
    assert text.index("Backtrace of vcpu 0:") < text.index("Other vcpus:")


def test_the_last_call_of_each_vcpu_is_shown(current, kernel):
    calls = current.domain.calls
    calls.append(CallRecord(1, 1, 0, "memory_op", (7,), -EFAULT, "no"))
    for number in range(20):
        calls.append(CallRecord(2 + number, 0, 0, "sched_op", (number,), 0))
    lines = section(report(current, kernel), "Last hypercalls:")
    assert len(lines) == 17
    assert lines[0].endswith("v1 memory_op(0x7) = -EFAULT: no")
    assert len(call_lines(current, 16)) == 16


def test_nothing_of_the_guest_changes(current, kernel):
    before = bytes(current.domain.memory.bytes)
    report(current, kernel)
    assert bytes(current.domain.memory.bytes) == before


def test_lines_of_the_log_that_are_shown_elsewhere_are_left_out(current, kernel, monkeypatch):
    lines = [LogLine(0, 0, "one"), LogLine(1_000_000_000, 0, "two")]
    monkeypatch.setattr(Linux, "log", lambda linux: lines)
    both = ["[    0.000000] one", "[    1.000000] two"]
    assert section(report(current, kernel), "Kernel log") == both
    assert section(report(current, kernel, shown={"one"}), "Kernel log") == both[1:]
    assert "Kernel log" not in report(current, kernel, shown={"one", "two"})


def test_an_instruction_that_lacks_a_feature_is_explained(current, kernel):
    current.cpu.last_undefined = Undefined(0x401136, 64, bytes.fromhex("c5e858d9"))
    place, why = section(report(current, kernel), "The last #UD")
    assert place == "0x401136: vaddps %xmm1, %xmm2, %xmm3"
    assert why.startswith("the instruction is AVX: ")
    current.cpu.last_undefined = Undefined(0x401136, 64, b"\x0f\x0b")
    assert "#UD" not in report(current, kernel)
