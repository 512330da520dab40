"""gdb/target: registers, memory and threads as gdb sees them, on a fake CPU."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest

from fakes import (
    CODE,
    CODE64,
    KERNEL_ONLY,
    L1,
    FakeCpu,
    enter_long_mode,
    make_pv_current,
    make_pvh_current,
)
from xenemu.gdb.features import DESCRIPTION32, DESCRIPTION64
from xenemu.gdb.target import Refused, Target
from xenemu.hv.cpu import Reg, Seg, Segment
from xenemu.pv.state import StartContext
from xenemu.pvh.context import after_startup
from xenemu.pvh.paging import EFER_LMA
from xenemu.x86.paging import PSE, RW, A, D, Maddr, Mfn, P

LINKED = 0xFFFFFFFF81000000
LOADED = 0x12000
RSP, RIP, EFLAGS, CS = 7, 16, 17, 18


def make_target(current, elf_class=64):
    part = SimpleNamespace(vaddr=LINKED, paddr=LOADED, memsz=0x2000, data=b"")
    image = SimpleNamespace(elf_class=elf_class, segments=(part,), path="kernel")
    machine = SimpleNamespace(
        current=current,
        domain=current.domain,
        engine=current.cpu,
        untouched=FakeCpu().store(),
        disturbed=0,
    )
    return Target(machine, image)


@pytest.fixture
def pv_target():
    current = make_pv_current()
    current.cpu.cr4, current.cpu.efer = 0x620, 0xD01
    return make_target(current)


@pytest.fixture
def pvh_target():
    return make_target(make_pvh_current())


def named(target, name):
    return next(register for register in target.description.registers if register.name == name)


# Registers.


def test_the_description_is_the_kernels_own(pv_target):
    assert pv_target.description is DESCRIPTION64
    assert make_target(make_pvh_current(), elf_class=32).description is DESCRIPTION32


def test_all_registers_have_the_length_that_is_described(pv_target):
    sizes = sum(register.size for register in DESCRIPTION64.registers)
    assert len(pv_target.registers()) == sizes


@pytest.mark.parametrize(("number", "name"), [(RSP, "rsp"), (RIP, "rip"), (EFLAGS, "eflags")])
def test_gdbs_own_numbers(number, name):
    assert DESCRIPTION64.registers[number].name == name


def test_registers_are_in_gdbs_order_not_the_cpus(pv_target):
    pv_target.machine.engine.regs[Reg.RBX] = 0x1234
    assert int.from_bytes(pv_target.registers()[8:16], "little") == 0x1234


@pytest.mark.parametrize("name", ["rax", "r15", "rip", "fs_base"])
def test_a_register_is_written(pv_target, name):
    pv_target.write_register(named(pv_target, name), (0x1234).to_bytes(8, "little"))
    assert pv_target.read_register(named(pv_target, name)) == (0x1234).to_bytes(8, "little")


@pytest.mark.parametrize("name", ["cs", "cr3", "xen_event_mask"])
def test_what_is_not_gdbs_to_change_is_refused(pv_target, name):
    register, before = named(pv_target, name), pv_target.registers()
    with pytest.raises(Refused, match=name):
        pv_target.write_register(register, b"\x77" * register.size)
    assert pv_target.registers() == before


def test_what_gdb_writes_is_noted(pv_target):
    """A run that it interferes with cannot be repeated."""
    pv_target.write_memory(CODE, b"x")
    assert pv_target.machine.disturbed == 1
    pv_target.write_register(named(pv_target, "rax"), bytes(8))  # as it is
    assert pv_target.machine.disturbed == 1
    pv_target.write_register(named(pv_target, "rax"), b"\1" * 8)
    assert pv_target.machine.disturbed == 2


def test_all_registers_are_written_where_they_differ(pv_target):
    data = bytearray(pv_target.registers())
    data[0:8] = (77).to_bytes(8, "little")
    pv_target.write_registers(bytes(data))
    assert pv_target.machine.engine.regs[Reg.RAX] == 77


# Memory.


def test_memory_is_read_without_a_trace(pv_target):
    current = pv_target.machine.current
    current.domain.memory.write(Maddr(CODE), b"code")
    before = list(current.domain.memory.table(L1))
    assert pv_target.read_memory(CODE, 4) == b"code"
    assert list(current.domain.memory.table(L1)) == before
    assert not any(entry & (A | D) for entry in before)


def test_as_much_as_is_mapped_is_read(pv_target):
    last = (pv_target.machine.domain.memory.nr_frames - 1) << 12
    assert len(pv_target.read_memory(last, 0x3000)) == 0x1000


def test_what_is_not_mapped_is_refused(pv_target):
    with pytest.raises(Refused, match="is not mapped"):
        pv_target.read_memory(0x7F0000000000, 4)


def test_a_page_table_is_not_written(pv_target):
    memory = pv_target.machine.domain.memory
    before = bytes(memory.bytes)
    with pytest.raises(Refused, match="page_table"):
        pv_target.write_memory((L1 << 12) - 2, b"1234")
    assert bytes(memory.bytes) == before


def test_read_only_memory_is_written(pv_target):
    memory = pv_target.machine.domain.memory
    memory.words[(L1 << 9) + (CODE >> 12)] &= ~RW
    pv_target.write_memory(CODE, b"patched")
    assert pv_target.read_memory(CODE, 7) == b"patched"


def test_the_kernel_is_seen_while_a_program_runs(pv_target):
    current = pv_target.machine.current
    current.vcpu.arch.kernel_mode = False
    current.cpu.cr3 = current.vcpu.arch.user_root << 12
    current.domain.memory.write(Maddr(CODE), b"code")
    pv_target.image.segments[0].vaddr = KERNEL_ONLY + CODE
    assert pv_target.read_memory(KERNEL_ONLY + CODE, 4) == b"code"


def test_the_kernels_data_is_seen_in_spite_of_page_table_isolation(pvh_target):
    """A program's tables map only a part of the kernel; its own are in the page before."""
    current, first = pvh_target.machine.current, 20
    table = current.domain.memory.table
    for root, upper, lower in ((first, 22, 23), (first + 1, 24, 25)):
        table(Mfn(root))[511] = upper << 12 | P | RW
        table(Mfn(upper))[510] = lower << 12 | P | RW
    for lower in (23, 25):
        table(Mfn(lower))[7] = P | RW | PSE
    table(Mfn(23))[8] = P | RW | PSE  # at LINKED, as the kernel alone has it
    enter_long_mode(current, first + 1 << 12)
    current.domain.memory.write(Maddr(LOADED), b"data")
    pvh_target.image.segments[0].vaddr = LINKED + LOADED
    assert pvh_target.read_memory(LINKED + LOADED, 4) == b"data"
    with pytest.raises(Refused, match="is not mapped"):
        pvh_target.read_memory(LINKED + (2 << 20), 4)


def test_linked_addresses_are_seen_before_paging_is_on(pvh_target):
    pvh_target.machine.domain.memory.write(Maddr(LOADED + 8), b"code")
    assert pvh_target.read_memory(LINKED + 8, 4) == b"code"
    assert pvh_target.read_memory(LOADED + 8, 4) == b"code"
    with pytest.raises(Refused, match="paging is off"):
        pvh_target.read_memory(LINKED + 0x2000, 4)


def test_a_32_bit_kernels_linked_addresses_too():
    target = make_target(make_pvh_current(), elf_class=32)
    target.image.segments[0].vaddr = 0xC1000000
    target.machine.domain.memory.write(Maddr(LOADED + 8), b"code")
    assert target.read_memory(0xC1000008, 4) == b"code"


# Modes.


@pytest.mark.parametrize(("attributes", "bits"), [(0xA09B00, 64), (0xC09B00, 32), (0x9B00, 16)])
def test_how_the_cpu_reads_code(pvh_target, attributes, bits):
    pvh_target.machine.engine.efer = EFER_LMA
    pvh_target.machine.engine.set_segment(Seg.CS, Segment(8, 0, 0xFFFFFFFF, attributes))
    assert pvh_target.code_bits == bits


def test_another_mode_is_another_description_only_on_request(pvh_target):
    assert pvh_target.misread
    assert not pvh_target.describe_now()
    pvh_target.follows_mode = True
    assert pvh_target.describe_now()
    assert (pvh_target.description, pvh_target.shows_physical) == (DESCRIPTION32, True)
    enter_long_mode(pvh_target.machine.current, 0)
    assert pvh_target.describe_now()
    assert (pvh_target.description, pvh_target.shows_physical) == (DESCRIPTION64, False)


def test_a_breakpoint_where_the_kernel_was_loaded_is_also_where_it_will_run(pvh_target):
    assert pvh_target.aliases(LOADED + 4) == [LOADED + 4]
    pvh_target.follows_mode = True
    pvh_target.describe_now()
    assert pvh_target.aliases(LOADED + 4) == [LOADED + 4, LINKED + 4]


# Threads.


def test_each_vcpu_is_a_thread():
    target = make_target(make_pv_current(vcpus=3))
    assert target.threads == [1, 2, 3]
    for thread in (0, 4):
        with pytest.raises(Refused, match=f"no thread {thread}"):
            target.select(thread)


def test_what_a_thread_does():
    target = make_target(make_pv_current(vcpus=6))
    saved = target.machine.engine.store()
    _, second, third, fourth, fifth, sixth = target.machine.domain.vcpus
    sixth.initialised = True
    for vcpu in (second, third, fourth, fifth):
        vcpu.initialised = vcpu.online = True
        vcpu.saved = saved
    third.blocked = fourth.blocked = True
    fourth.poll_ports = frozenset((7, 3))
    fifth.online = False
    assert [target.thread_state(thread) for thread in target.threads] == [
        "running, kernel mode", "runnable, kernel mode", "blocked, kernel mode",
        "polling ports 3, 7, kernel mode", "down, kernel mode", "down, initialised",
    ]  # fmt: skip
    sixth.initialised = False
    assert target.thread_state(6) == "down, not initialised"


def another(target, **fields):
    """Let vcpu 1 be one that has run, and is not in the CPU."""
    vcpu = target.machine.domain.vcpus[1]
    vcpu.saved = replace(target.machine.engine.store(), **fields)
    target.select(2)
    return vcpu


def test_another_vcpus_registers_are_read_and_written_where_they_are_kept():
    target = make_target(make_pv_current(vcpus=2))
    vcpu, cpu = another(target, rip=0x2222), target.machine.engine
    before = cpu.store()
    rip = named(target, "rip")
    assert target.read_register(rip) == (0x2222).to_bytes(8, "little")
    for name, value in (("rip", 0x3333), ("rbx", 5), ("eflags", 0x297), ("gs_base", 0x7000)):
        register = named(target, name)
        target.write_register(register, value.to_bytes(register.size, "little"))
    assert (vcpu.saved.rip, vcpu.saved.rflags, vcpu.saved.regs[Reg.RBX]) == (0x3333, 0x297, 5)
    assert vcpu.saved.segment(Seg.GS).base == 0x7000
    assert cpu.store() == before


def test_another_vcpus_memory_is_seen_by_its_own_tables():
    target = make_target(make_pv_current(vcpus=2))
    memory, empty = target.machine.domain.memory, Mfn(40)
    another(target, cr3=empty << 12)
    with pytest.raises(Refused, match="is not mapped"):
        target.read_memory(CODE, 4)
    memory.words[empty << 9] = memory.words[target.machine.engine.cr3 >> 12 << 9]
    memory.write(Maddr(CODE), b"code")
    assert target.read_memory(CODE, 4) == b"code"


def test_a_vcpu_that_has_yet_to_begin_has_the_registers_that_it_will_begin_with():
    target = make_target(make_pvh_current(vcpus=2))
    vcpu = target.machine.domain.vcpus[1]
    vcpu.arch.start = after_startup(0x9A)
    vcpu.initialised = True
    target.select(2)
    cs, rip = named(target, "cs"), named(target, "rip")
    assert target.read_register(cs) == (0x9A00).to_bytes(4, "little")
    assert target.read_register(rip) == (0x9A000).to_bytes(8, "little")
    with pytest.raises(Refused, match="vcpu 1 has yet to begin"):
        target.write_register(rip, bytes(8))
    assert vcpu.arch.start == after_startup(0x9A)
    assert vcpu.saved is None


def test_a_pv_vcpu_that_has_yet_to_begin_too():
    target = make_target(make_pv_current(vcpus=2))
    vcpu = target.machine.domain.vcpus[1]
    target.select(2)
    assert target.read_register(named(target, "rax")) == bytes(8)
    regs, selectors = tuple(range(16)), (0, 0xE033, 0xE02B, 0, 0, 0)
    vcpu.arch.entry = StartContext(regs, CODE, 0x202, selectors, 1, 2, 3, None, (0,) * 8)
    vcpu.initialised = True
    assert target.read_register(named(target, "rip")) == CODE.to_bytes(8, "little")
    assert target.read_register(named(target, "rdi")) == (7).to_bytes(8, "little")
    assert target.read_register(named(target, "gs_base")) == (2).to_bytes(8, "little")
    assert target.read_memory(CODE, 4) == bytes(4)


def test_rip_is_where_the_code_is_linear(pvh_target):
    """In segments with a base, gdb would else look for breakpoints and code elsewhere."""
    cpu = pvh_target.machine.engine
    cpu.set_segment(Seg.CS, Segment(0x900, 0x9000, 0xFFFF, 0x9B00))
    cpu.rip = 0x12
    rip = named(pvh_target, "rip")
    assert pvh_target.read_register(rip) == (0x9012).to_bytes(8, "little")
    pvh_target.write_register(rip, (0x9034).to_bytes(8, "little"))
    assert (cpu.rip, pvh_target.pc) == (0x34, 0x9034)
    cpu.efer = EFER_LMA
    cpu.set_segment(Seg.CS, Segment(8, 0x9000, 0, CODE64))  # where it has none
    assert pvh_target.pc == 0x34
