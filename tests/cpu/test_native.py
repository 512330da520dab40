"""cpu/engine with a p2m: a guest in ring 0, its physical address space, its interrupts.

A guest here is a few instructions of flat 32-bit code in 16 frames of RAM.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from xenemu.cpu.debug_port import DebugPort
from xenemu.cpu.engine import Engine
from xenemu.errors import DomainCrash, EngineGaveUp
from xenemu.hv.calls import CallLog
from xenemu.hv.cpu import Delivered, Event, Msr, Reg, Seg, Segment
from xenemu.hv.memory import Memory
from xenemu.hv.p2m import P2m
from xenemu.hv.prices import Exit
from xenemu.hv.state.events import BELL, BELLS
from xenemu.pvh.personality import CODE32, DATA32
from xenemu.x86.flags import IF, TF
from xenemu.x86.paging import Maddr, Mfn

FRAMES = 16
CODE, HANDLERS, HOLE_FRAME, PENDING, GDT, IDT, STACK = (n << 12 for n in (2, 3, 4, 5, 6, 7, 9))
FAR_GFN = 0x12345
EAX, ECX, EDX, EBX = Reg.RAX, Reg.RCX, Reg.RDX, Reg.RBX
FLAT_GDT = (0, 0x00CF9B000000FFFF, 0x00CF93000000FFFF)
IRET = b"\xcf"
RING3 = 3 << 13
UD2 = b"\x0f\x0b"
INC_ECX_IRET = b"\x41\xcf"
DEBUG, NMI, UNDEFINED, GP_FAULT, CALLBACK, APIC = 1, 2, 6, 13, 0x41, 0x40


class Handler:
    """Notes every exit, and answers as the test says."""

    def __init__(self) -> None:
        self.exits: list[tuple[object, ...]] = []
        self.on_vmcall: Callable[[], None] = lambda: None
        self.on_apic: Callable[[], int] = lambda: 0x11223344
        self.msr: int | Msr = Msr.REFUSED
        self.answer = Msr.REFUSED  # to WRMSR
        self.rings: list[tuple[int, int]] = []

    def cpuid(self) -> bool:
        return False

    def vmcall(self) -> None:
        self.exits.append(("vmcall",))
        self.on_vmcall()

    def read_msr(self, number: int) -> int | Msr:
        return self.msr

    def write_msr(self, number: int, value: int) -> Msr | None:
        self.exits.append(("wrmsr", number, value))
        return self.answer

    def rung(self, bell: int, at_ns: int) -> None:
        self.rings.append((bell, at_ns))

    def read_cr8(self) -> int:
        return 0

    def write_cr8(self, value: int) -> None:
        pass

    def read_port(self, port: int, size: int) -> int:
        self.exits.append(("in", port, size))
        return 0xE9

    def write_port(self, port: int, size: int, value: int) -> None:
        self.exits.append(("out", port, size, value))

    def read_apic(self, offset: int, size: int) -> int:
        self.exits.append(("load", offset, size))
        return self.on_apic()

    def write_apic(self, offset: int, size: int, value: int) -> None:
        self.exits.append(("store", offset, size, value))


class Guest:
    """An engine with code at CODE, and handlers by vector in an IDT; frame 4 is a hole."""

    def __init__(self, code: bytes, handlers: dict[int, bytes] | None = None) -> None:
        self.memory = Memory(FRAMES)
        hole = HOLE_FRAME >> 12
        self.p2m = P2m(range(hole), range(hole + 1, FRAMES))
        self.engine = Engine(self.memory, self.p2m, frozenset({0xE9}))
        self.handler = Handler()
        self.engine.attach(self.handler)
        self.write(CODE, code)
        for n, descriptor in enumerate(FLAT_GDT):
            self.memory.write_uint(Maddr(GDT + 8 * n), 8, descriptor)
        for n, (vector, body) in enumerate((handlers or {}).items()):
            self.write(HANDLERS + 64 * n, body)
            gate = 0x8E00 << 32 | 8 << 16 | HANDLERS + 64 * n
            self.memory.write_uint(Maddr(IDT + 8 * vector), 8, gate)
        self._load_registers(0x7FF if handlers else 0)

    def _load_registers(self, idt_limit: int) -> None:
        engine = self.engine
        engine.regs[:] = [0] * 16
        engine.rip, engine.rflags, engine.regs[Reg.RSP] = CODE, 2, STACK
        engine.set_segment(Seg.CS, Segment(8, 0, 0xFFFFFFFF, CODE32))
        for which in (Seg.DS, Seg.ES, Seg.SS):
            engine.set_segment(which, Segment(16, 0, 0xFFFFFFFF, DATA32))
        engine.set_segment(Seg.GDTR, Segment(0, GDT, 0xFFF))
        engine.set_segment(Seg.IDTR, Segment(0, IDT, idt_limit))

    def write(self, maddr: int, data: bytes) -> None:
        self.memory.write(Maddr(maddr), data)

    def run(self, nanoseconds: int = 10_000) -> None:
        self.engine.run(self.engine.now_ns + nanoseconds)

    def __getitem__(self, register: Reg) -> int:
        return self.engine.regs[register]


def test_the_cpu_as_a_guest_finds_it():
    # mov %cr0,%eax; mov %cr4,%ebx; mov %db6,%ecx; mov %db7,%edx; hlt
    guest = Guest(bytes.fromhex("0f20c0 0f20e3 0f21f1 0f21fa f4"))
    guest.run()
    assert (guest[EAX], guest[EBX], guest[ECX], guest[EDX]) == (0x11, 0, 0xFFFF0FF0, 0x400)
    assert guest.engine.halted


def test_an_abort_of_unicorns_ends_the_run():
    guest = Guest(UD2, {UNDEFINED: IRET})
    engine = guest.engine
    engine.set_segment(Seg.TR, Segment(0))  # where the CPU would find the stack of ring 0
    engine.set_segment(Seg.CS, Segment(0x1B, 0, 0xFFFFFFFF, CODE32 | RING3))
    engine.set_segment(Seg.SS, Segment(0x23, 0, 0xFFFFFFFF, DATA32 | RING3))
    with pytest.raises(EngineGaveUp, match="the CPU engine gave up at 0x2000: invalid tss"):
        guest.run()
    assert guest[ECX] == 0
    another = Guest(bytes.fromhex("41 f4"))
    another.run()
    assert another[ECX] == 1


def endless_faults() -> Guest:
    """A #UD whose handler is where no code is: no block ever begins."""
    guest = Guest(UD2, {UNDEFINED: IRET})
    gate = 0x30008E00 << 32 | 8 << 16  # 0x30000000, a hole
    guest.memory.write_uint(Maddr(IDT + 8 * UNDEFINED), 8, gate)
    return guest


def test_the_host_is_looked_at_where_no_block_begins():
    guest = endless_faults()
    looks: list[int] = []

    def look() -> None:
        guest.engine._clock.looked_ns = 0
        looks.append(guest.engine.rip)
        if len(looks) == 50:
            guest.engine.stop()

    guest.engine.look = look
    guest.run(1_000_000_000)
    assert len(looks) == 50
    assert not guest.engine.triple_fault


def test_faults_take_time_and_meet_the_deadline():
    guest = endless_faults()
    guest.engine.set_prices({Exit.DELIVERY: 100})
    guest.run(5_000)
    assert 5_000 <= guest.engine.now_ns < 5_200
    assert not guest.engine.triple_fault


# The physical address space.


def test_a_hole_reads_as_ones():
    # mov 0x30000000,%eax; movzbl 0x30000001,%ebx; mov 0x3ffe,%ecx; hlt
    guest = Guest(bytes.fromhex("a100000030 0fb61d01000030 8b0dfe3f0000 f4"))
    guest.run()
    assert (guest[EAX], guest[EBX], guest[ECX]) == (0xFFFFFFFF, 0xFF, 0xFFFF0000)


def test_what_is_beyond_ram_has_a_price():
    # mov 0x30000000,%eax; mov %eax,0x30000000; mov 0xfee00020,%eax; hlt
    guest = Guest(bytes.fromhex("a100000030 a300000030 a12000e0fe f4"))
    guest.engine.set_prices({Exit.LOAD: 100, Exit.STORE: 30, Exit.IN: 7})
    guest.run()
    assert (guest.engine.instructions, guest.engine.now_ns) == (4, 234)


def test_every_port_has_a_price():
    guest = Guest(bytes.fromhex("e480 e4e9 f4"))  # in $0x80,%al; in $0xe9,%al; hlt
    guest.engine.set_prices({Exit.IN: 100})
    guest.run()
    assert (guest.engine.instructions, guest.engine.now_ns) == (3, 203)


def test_a_hole_keeps_nothing():
    # movl $5,0x30000000; lock incl 0x30000000; xchg %eax,0x30000000; mov 0x30000000,%ebx; hlt
    code = "c7050000003005000000 f0ff0500000030 870500000030 8b1d00000030 f4"
    guest = Guest(bytes.fromhex(code))
    guest.run()
    assert (guest[EAX], guest[EBX]) == (0xFFFFFFFF, 0xFFFFFFFF)


def test_a_stack_where_no_memory_is():
    guest = Guest(bytes.fromhex("bc00000040 50 5b f4"))  # mov $0x40000000,%esp; push; pop %ebx
    guest.run()
    assert guest[EBX] == 0xFFFFFFFF


@pytest.mark.parametrize("target", [0xC0000000, HOLE_FRAME, 0xFEE00000])
def test_ones_are_fetched_where_no_memory_is(target):
    # mov $target,%eax; jmp *%eax. #UD: mov (%esp),%ebx; hlt
    jump = b"\xb8" + target.to_bytes(4, "little") + b"\xff\xe0"
    guest = Guest(jump, {UNDEFINED: bytes.fromhex("8b1c24 f4")})
    guest.run()
    assert guest[EBX] == target


def test_code_in_a_frame_elsewhere_has_hypercalls():
    guest = Guest(bytes.fromhex("b800503412 ffe0"))  # mov $0x12345000,%eax; jmp *%eax
    guest.write(0x8000, bytes.fromhex("0f01c1 f4"))
    guest.p2m.set(FAR_GFN, Mfn(8))
    guest.run()
    assert guest.handler.exits == [("vmcall",)]


def test_an_idt_where_no_memory_is_means_a_triple_fault():
    guest = Guest(UD2)
    guest.engine.set_segment(Seg.IDTR, Segment(0, 0x40000000, 0x7FF))
    guest.run()
    assert guest.engine.triple_fault
    assert guest.engine.rip == CODE


NO_GATES = bytes.fromhex("0f011d00a00000")  # lidt 0xa000, where there are zeros
TRAPS = {
    "cc": Delivered(Event.INT_N, 3),
    "cd80": Delivered(Event.INT_N, 0x80),
    "f7f1": Delivered(Event.EXCEPTION, 0),  # div %ecx
    "0f0b": Delivered(Event.EXCEPTION, 6),
    "f4": Delivered(Event.INTERRUPT),  # hlt
}


@pytest.mark.parametrize("code", TRAPS)
def test_a_triple_fault_has_what_it_began_with_and_where(code):
    guest = Guest(b"\xfb" + NO_GATES + bytes.fromhex(code), {UNDEFINED: IRET})  # sti
    guest.run()
    if guest.engine.halted:
        guest.engine.apic_vector = APIC
        guest.run()
    assert guest.engine.triple_fault
    assert guest.engine.delivered == TRAPS[code]
    assert guest.engine.rip == CODE + 8 + (code == "f4")


def test_a_frame_elsewhere_is_the_same_memory():
    guest = Guest(bytes.fromhex("a100503412 c7050450341207000000 f4"))  # mov; movl $7,4(...)
    guest.write(0x8000, b"\x2a\0\0\0")
    guest.p2m.set(FAR_GFN, Mfn(8))
    guest.run()
    assert guest[EAX] == 0x2A
    assert guest.memory.read_uint(Maddr(0x8004), 4) == 7


def test_a_changed_physmap_is_seen_at_once():
    # mov 0x12345000,%eax; vmcall; mov 0x12345000,%ebx; hlt
    guest = Guest(bytes.fromhex("a100503412 0f01c1 8b1d00503412 f4"))

    def move() -> None:
        guest.p2m.remove(FAR_GFN)
        guest.p2m.set(FAR_GFN, Mfn(10))

    guest.handler.on_vmcall = move
    guest.p2m.set(FAR_GFN, Mfn(8))
    guest.write(0x8000, b"\1")
    guest.write(0xA000, b"\2")
    guest.run()
    assert (guest[EAX], guest[EBX]) == (1, 2)


def test_any_number_of_frames_can_be_elsewhere():
    # vmcall; mov 0x12345000,%eax; mov 0x22344000,%ebx; mov 0x22345000,%ecx; hlt
    guest = Guest(bytes.fromhex("0f01c1 a100503412 8b1d00403422 8b0d00503422 f4"))

    def move_many() -> None:
        for n in range(0x10000):
            guest.p2m.set(FAR_GFN + n, Mfn(8 + n % 2))

    guest.handler.on_vmcall = move_many
    guest.write(0x8000, b"\1")
    guest.write(0x9000, b"\2")
    guest.run()
    assert (guest[EAX], guest[EBX], guest[ECX]) == (1, 2, 0xFFFFFFFF)


def test_the_local_apic_is_not_replaced():
    guest = Guest(bytes.fromhex("a12000e0fe f4"))  # mov 0xfee00020,%eax; hlt
    guest.p2m.set(0xFEE00, Mfn(8))
    guest.run()
    assert guest.handler.exits == [("load", 0x20, 4)]


def test_code_that_the_hypervisor_wrote_is_run():
    # call *%ecx; mov %eax,%ebx; vmcall; call *%ecx; hlt
    guest = Guest(bytes.fromhex("ffd1 89c3 0f01c1 ffd1 f4"))
    guest.write(0x8000, bytes.fromhex("b801000000 c3"))  # mov $1,%eax; ret
    guest.handler.on_vmcall = lambda: guest.write(0x8001, b"\2")
    guest.engine.regs[ECX] = 0x8000
    guest.run()
    assert (guest[EBX], guest[EAX]) == (1, 2)


@pytest.mark.parametrize("entry", [1 << 45, 1 << 40])
def test_addresses_beyond_40_bits_fault(entry):
    # PAE tables in frames 10 to 12 map RAM at its place, but page 5 at `entry`.
    # mov %eax,%cr3; mov %cr0,%ecx; bts $31,%ecx; mov %ecx,%cr0; mov 0x6008,%ebx; mov 0x5000,%edx
    code = "0f22d8 0f20c1 0fbae91f 0f22c1 8b1d08600000 8b1500500000 f4"
    guest = Guest(bytes.fromhex(code), {14: b"\xf4"})
    for maddr, value in ((0xA000, 0xB001), (0xB000, 0xC003)):
        guest.memory.write_uint(Maddr(maddr), 8, value)
    for n in range(FRAMES):
        guest.memory.write_uint(Maddr(0xC000 + 8 * n), 8, (entry if n == 5 else n << 12) | 3)
    guest.engine._uc.reg_write(guest_cr4(), 0x20)
    guest.engine.regs[EAX] = 0xA000
    guest.run()
    assert guest[EBX] == FLAT_GDT[1] & 0xFFFFFFFF
    assert guest.engine.cr2 == 0x5000
    assert guest.engine.rip == HANDLERS + 1


# For each kind of tables: the bytes of an entry, CR4, the tables above L1, each with its machine
# address and the entry that leads on, and the machine address of the L1.
FAR = FAR_GFN << 12
KINDS_OF_TABLES = {
    "PAE": (8, 0x20, [(0xA000, FAR + 0x1000 | 1), (0xB000, FAR + 0x2000 | 3)], 0xC000),
    "two levels": (4, 0, [(0xA000, FAR + 0x1000 | 3)], 0xB000),
}


@pytest.mark.parametrize("kind", KINDS_OF_TABLES)
def test_page_tables_may_lie_elsewhere(kind):
    # mov %eax,%cr3; mov %cr0,%ecx; bts $31,%ecx; mov %ecx,%cr0; mov 0x5008,%ebx; mov 0xd000,%edx
    code = "0f22d8 0f20c1 0fbae91f 0f22c1 8b1d08500000 8b1500d00000 f4"
    size, cr4, uppers, l1 = KINDS_OF_TABLES[kind]
    guest = Guest(bytes.fromhex(code), {14: b"\xf4"})
    for n, (maddr, entry) in enumerate(uppers):
        guest.memory.write_uint(Maddr(maddr), size, entry)
        guest.p2m.set(FAR_GFN + n, Mfn(maddr >> 12))
    guest.p2m.set(FAR_GFN + len(uppers), Mfn(l1 >> 12))
    frames = {n: n for n in range(FRAMES)} | {5: GDT >> 12}
    for n, frame in frames.items():
        guest.memory.write_uint(Maddr(l1 + size * n), size, 0 if n == 13 else frame << 12 | 3)
    guest.engine._uc.reg_write(guest_cr4(), cr4)
    guest.engine.regs[EAX] = FAR
    guest.run()
    assert guest[EBX] == FLAT_GDT[1] & 0xFFFFFFFF
    assert (guest.engine.cr2, guest.engine.rip) == (0xD000, HANDLERS + 1)
    assert guest.memory.read_uint(Maddr(l1 + size * 5), size) & 0x20  # accessed


def guest_cr4() -> int:
    from unicorn import x86_const  # noqa: PLC0415 (after the engine's shim)

    return int(x86_const.UC_X86_REG_CR4)


# Exits.


def test_the_apics_page():
    # mov 0xfee00020,%eax; mov %al,0xfee00030; movl $7,0xfee000b0; hlt
    guest = Guest(bytes.fromhex("a12000e0fe a23000e0fe c705b000e0fe07000000 f4"))
    guest.run()
    assert guest[EAX] == 0x11223344
    assert guest.handler.exits == [
        ("load", 0x20, 4),
        ("store", 0x30, 1, 0x44),
        ("store", 0xB0, 4, 7),
    ]


def test_an_error_in_the_apic_is_the_callers():
    guest = Guest(bytes.fromhex("a12000e0fe f4"))

    def fail() -> int:
        raise DomainCrash("no such register")

    guest.handler.on_apic = fail
    with pytest.raises(DomainCrash, match="no such register"):
        guest.run()


def test_ports_are_watched_or_read_as_ones():
    # mov $65,%al; out %al,$0xe9; in $0xe9,%al; mov %eax,%ebx; in $0xe8,%al; hlt
    guest = Guest(bytes.fromhex("b041 e6e9 e4e9 89c3 e4e8 f4"))
    guest.run()
    assert guest.handler.exits == [("out", 0xE9, 1, 65), ("in", 0xE9, 1)]
    assert (guest[EBX], guest[EAX]) == (0xE9, 0xFF)


@pytest.mark.parametrize("instruction", ["0f01c1", "0f01d9"], ids=["vmcall", "vmmcall"])
def test_both_ways_to_call(instruction):
    guest = Guest(bytes.fromhex(f"{instruction} f4"))
    guest.run()
    assert guest.handler.exits == [("vmcall",)]
    assert guest.engine.rip == CODE + 4


def test_a_traced_hypercall_is_followed_by_a_debug_trap():
    # vmcall; inc %ebx; hlt. #DB: mov (%esp),%ecx; mov %db6,%edx; hlt
    guest = Guest(bytes.fromhex("0f01c1 43 f4"), {DEBUG: bytes.fromhex("8b0c24 0f21f2 f4")})
    guest.engine.rflags |= TF
    guest.run()
    assert (guest[ECX], guest[EBX], guest[EDX] & 0x4000) == (CODE + 3, 0, 0x4000)


def test_a_traced_hypercall_that_is_made_again_is_not():
    guest = Guest(bytes.fromhex("0f01c1 f4"), {DEBUG: bytes.fromhex("8b0c24 f4")})

    def again() -> None:
        if len(guest.handler.exits) == 1:
            guest.engine.rip -= 3

    guest.handler.on_vmcall = again
    guest.engine.rflags |= TF
    guest.run()
    assert (len(guest.handler.exits), guest[ECX]) == (2, CODE + 3)


@pytest.mark.parametrize(("answer", "edx_eax"), [(0x1_00000002, (1, 2)), (Msr.REFUSED, (0, 0))])
def test_an_msr_is_a_value_or_gp(answer, edx_eax):
    # rdmsr; inc %ebx; hlt. #GP: pop %esi; addl $2,(%esp); iret
    guest = Guest(bytes.fromhex("0f32 43 f4"), {GP_FAULT: bytes.fromhex("5e 83042402 cf")})
    guest.handler.msr = answer
    guest.run()
    assert (guest[EDX], guest[EAX]) == edx_eax
    assert guest[EBX] == 1


def test_cpuid_that_is_refused_is_gp():
    guest = Guest(bytes.fromhex("0fa2 43 f4"), {GP_FAULT: bytes.fromhex("5e 83042402 cf")})
    guest.run()
    assert guest[EBX] == 1


# Faults.

TS, EM = 8, 4  # of CR0


def test_pushf_stores_no_rf():
    # pushl $0x10002; push %cs; push $target; iret; target: pushf; pop %eax; hlt
    guest = Guest(bytes.fromhex("6802000100 0e 680c200000 cf 9c 58 f4"))
    guest.run()
    assert guest[EAX] == 2


SKIP = "83042404 cf"  # addl $4,(%esp); iret


@pytest.mark.parametrize(
    ("instruction", "cr0", "osfxsr", "vector"),
    [
        ("0f28c1 90", TS, True, 7),  # movaps
        ("0f28c1 90", TS | EM, True, 6),
        ("0f28c1 90", TS, False, 6),
        ("0f28c1 90", 0, False, 6),
        ("660f6fc1", TS, False, 6),  # movdqa
        ("0f6fc1 90", TS, False, 7),  # movq between MMX registers
        ("0f6fc1 90", TS | EM, True, 6),
        ("0f3800c1", TS, False, 7),  # pshufb of MMX registers
        ("0fae11 90", TS, False, 6),  # ldmxcsr
        ("0fae11 90", TS, True, 7),
        ("0fae01 90", TS | EM, False, 7),  # fxsave
        ("d9e8 9090", TS | EM, False, 7),  # fld1
    ],
)
def test_without_simd_its_instructions_are_undefined_whatever_cr0_ts(
    instruction, cr0, osfxsr, vector
):
    # mov %eax,%cr0; mov %edx,%cr4; instruction; hlt. Handlers: mov $vector,%bl; skip
    handlers = {n: bytes.fromhex(f"b3{n:02x} {SKIP}") for n in (6, 7, 13)}
    guest = Guest(bytes.fromhex(f"0f22c0 0f22e2 {instruction} f4"), handlers)
    guest.engine.regs[EAX] = 0x11 | cr0
    guest.engine.regs[EDX] = osfxsr << 9
    guest.engine.regs[ECX] = 0x8000
    guest.run()
    assert guest.engine.halted
    assert guest[EBX] == vector


TOP_GFN = 0xFFFFF


def at_4_gib(before: str, after: str) -> Guest:
    """A guest with code up to 4 GiB, to which it jumps, and code at 0; INT3 leads to pop %eax."""
    end = bytes.fromhex(before)
    start = ((1 << 32) - len(end)).to_bytes(4, "little")
    guest = Guest(b"\xbb" + start + bytes.fromhex("ffe3"), {3: bytes.fromhex("58 f4")})
    guest.p2m.set(TOP_GFN, Mfn(8))
    guest.write(0x9000 - len(end), end)
    guest.write(0, bytes.fromhex(after))
    return guest


WRAPS = [
    ("40 40", "40 f4", 3, 2),  # inc %eax; hlt
    ("b8 78 56", "34 12 f4", 0x12345678, 3),  # mov $0x12345678,%eax; hlt
    ("eb 00", "40 f4", 1, 2),  # jmp +0
    ("e8 01000000", "f4 58 f4", 0, 3),  # call +1; hlt; pop %eax; hlt
    ("cc", "f4", 0, HANDLERS + 2),  # int3
    ("eb 02", "f4 f4 40 f4", 1, 4),  # jmp +2
]


@pytest.mark.parametrize(("before", "after", "eax", "rip"), WRAPS)
def test_code_goes_on_at_0_after_4_gib(before, after, eax, rip):
    guest = at_4_gib(before, after)
    guest.run()
    assert guest.engine.halted
    assert (guest[EAX], guest.engine.rip) == (eax, rip)


@pytest.mark.parametrize(("before", "after", "eax", "rip"), WRAPS)
def test_code_goes_on_at_0_in_steps_too(before, after, eax, rip):
    guest = at_4_gib(before, after)
    debug = DebugPort(guest.engine)
    debug.begin(10_000)
    for _ in range(10):
        debug.step()
        assert not guest.engine.rip >> 32
        if guest.engine.halted:
            break
    assert (guest[EAX], guest.engine.rip) == (eax, rip)


@pytest.mark.parametrize("instruction", ["c5f877", "c7f800000000", "8fc8", "66c7f80000"])
def test_what_this_cpu_lacks_is_undefined(instruction):
    guest = Guest(bytes.fromhex(f"{instruction} f4"), {UNDEFINED: bytes.fromhex("b306 f4")})
    guest.engine.regs[Reg.RSP] = STACK
    guest.run()
    assert (guest[EBX], guest.memory.read_uint(Maddr(STACK - 12), 4)) == (6, CODE)


def test_les_and_lds_are_no_vex_prefixes():
    # les (%ebx),%eax; lds 4(%ebx),%ecx; hlt
    guest = Guest(bytes.fromhex("c403 c54b08 f4"))
    guest.write(0x8000, bytes.fromhex("44332211 1000 0000 88776655 1000"))
    guest.engine.regs[EBX] = 0x8000
    guest.run()
    assert (guest[EAX], guest[ECX]) == (0x11223344, 0x55667788)


# Interrupts.


def test_the_instruction_behind_sti_is_not_interrupted():
    # sti; inc %eax; inc %eax; hlt. Handler: mov %eax,%ecx; iret
    guest = Guest(bytes.fromhex("fb 40 40 f4"), {APIC: bytes.fromhex("89c1 cf")})
    guest.engine.apic_vector = APIC
    guest.run()
    assert guest[ECX] == 1
    assert guest.engine.take_accepted() == APIC
    assert guest.engine.take_accepted() is None


@pytest.mark.parametrize(
    ("alone", "open_", "msr", "value"),
    [(1, 1, 0x80B, 0), (0, 1, 0x80B, 0), (1, 0, 0x80B, 0), (1, 1, 0x80A, 0), (1, 1, 0x80B, 7)],
)
def test_an_interrupt_that_is_alone_may_end_without_an_exit(alone, open_, msr, value):
    # mov $msr,%ecx; mov $value,%eax; xor %edx,%edx; wrmsr; inc %ebx; iret
    numbers = b"\xb9" + msr.to_bytes(4, "little") + b"\xb8" + value.to_bytes(4, "little")
    handler = numbers + bytes.fromhex("31d2 0f30 43 cf")
    guest = Guest(bytes.fromhex("fb 90 90 f4"), {APIC: handler, GP_FAULT: b"\xf4"})
    engine, calls = guest.engine, CallLog()
    engine.join_native_lane(0, calls.by_cpu, bytearray(BELLS * BELL.size))
    engine.open_lane(bool(open_))
    engine.apic_vector = APIC
    if alone:
        engine.may_end()
    guest.run()
    taken = alone and open_ and msr == 0x80B and not value
    assert guest.handler.exits == ([] if taken else [("wrmsr", msr, value)])
    assert (engine.apic_vector, guest[EBX]) == (None, int(taken))  # or it has #GP
    assert (engine.take_accepted(), engine.ended) == (APIC, bool(taken))


class LongGuest(Guest):
    """The same in 64-bit code, with its first 2 MiB mapped."""

    PML4, PDPT, PD = 10 << 12, 11 << 12, 12 << 12

    def _load_registers(self, idt_limit: int) -> None:
        super()._load_registers(idt_limit)
        for table, entry in ((self.PML4, self.PDPT | 7), (self.PDPT, self.PD | 7), (self.PD, 0x87)):
            self.memory.write_uint(Maddr(table), 8, entry)
        self.handler.answer = Msr.NATIVE
        self.engine.enter_long_mode(self.PML4)
        self.handler.exits.clear()
        self.engine.set_segment(Seg.CS, Segment(8, 0, 0xFFFFFFFF, CODE32 & ~(1 << 22) | 1 << 21))


POINTER, BELL_PORT, DELAY_NS = 0x8FFC, 9, 5000
SEND = bytes.fromhex("b820000000 bf04000000 befc8f0000 0f01c1 ffc3 ebfe")


def belled(code: bytes = SEND, port: int = BELL_PORT) -> tuple[LongGuest, CallLog]:
    """A guest that sends to a port (and increments EBX, and loops), one of which has a bell."""
    guest, calls = LongGuest(code), CallLog()
    guest.write(POINTER, port.to_bytes(4, "little"))
    bells = bytearray(BELLS * BELL.size)
    BELL.pack_into(bells, 2 * BELL.size, BELL_PORT, DELAY_NS)
    guest.engine.join_native_lane(0, calls.by_cpu, bells)
    guest.engine.open_lane(True)
    return guest, calls


def test_a_bell_is_rung_without_an_exit_and_ends_the_slice_in_time():
    guest, calls = belled()
    guest.run(100_000)
    assert (guest.handler.exits, guest[EAX], guest[EBX]) == ([], 0, 1)
    [(bell, at_ns)] = guest.handler.rings
    assert (bell, guest.engine.now_ns) == (2, at_ns + DELAY_NS)
    [call] = calls
    assert (call.name, call.args, call.at_ns) == ("event_channel_op", (4, POINTER), at_ns)
    guest.run(100_000)  # it loops; nothing is rung, nor ends the slice
    assert (guest.handler.rings, guest.engine.now_ns) == ([(2, at_ns)], at_ns + DELAY_NS + 100_000)


def test_a_bell_is_told_before_the_next_exit_and_once():
    # twice; cpuid
    guest, _ = belled(SEND[:-2] + SEND[:-2].replace(b"\xff\xc3", b"\x0f\xa2") + b"\xf4")
    told = []
    guest.handler.cpuid = lambda: told.append([*guest.handler.rings]) or True
    guest.run(100_000)
    assert [len(rings) for rings in told] == [1]
    assert guest.handler.rings == told[0]


OTHERS = {
    "another port": SEND,
    "a shut lane": SEND,
    "another call": b"\xb8\x21" + SEND[2:],
    "another command": SEND[:6] + b"\x05" + SEND[7:],
    "a pointer across pages": SEND.replace(b"\xfc\x8f", b"\xfd\x8f"),
    "a pointer to nowhere": SEND.replace(b"\xfc\x8f\0\0", b"\xfc\x8f\0\x01"),
}


@pytest.mark.parametrize("what", OTHERS)
def test_all_other_calls_are_the_handlers(what):
    guest, calls = belled(OTHERS[what], 8 if what == "another port" else BELL_PORT)
    guest.engine.open_lane(what != "a shut lane")
    guest.run(1000)
    assert (guest.handler.exits, guest.handler.rings, len(calls)) == ([("vmcall",)], [], 0)


def test_interrupts_wait_for_the_interrupt_flag():
    guest = Guest(bytes.fromhex("9090 f4"), {APIC: INC_ECX_IRET, CALLBACK: INC_ECX_IRET})
    guest.engine.apic_vector = APIC
    guest.engine.set_upcall(PENDING, CALLBACK)
    guest.write(PENDING, b"\1")
    guest.run()
    assert guest[ECX] == 0
    assert guest.engine.take_accepted() is None


def test_the_callback_comes_as_long_as_the_byte_is_set():
    # Handler: inc %ecx; cmpb $3,%cl; jb 1f; movb $0,PENDING; 1: iret
    handler = bytes.fromhex("41 80f903 7207 c6050050000000 cf")
    guest = Guest(bytes.fromhex("fb 90 90 f4"), {CALLBACK: handler})
    guest.engine.set_upcall(PENDING, CALLBACK)
    guest.write(PENDING, b"\1")
    guest.run()
    assert guest[ECX] == 3


def test_no_callback_without_a_vector():
    guest = Guest(bytes.fromhex("fb 90 90 f4"), {0: INC_ECX_IRET})
    guest.engine.set_upcall(PENDING, None)
    guest.write(PENDING, b"\1")
    guest.run()
    assert guest[ECX] == 0


def test_the_callback_comes_before_the_apics():
    # Handlers: shl $8,%ecx; or a number; (clear the byte); iret
    first = bytes.fromhex("c1e108 80c901 c6050050000000 cf")
    second = bytes.fromhex("c1e108 80c902 cf")
    guest = Guest(bytes.fromhex("fb 90 90 f4"), {CALLBACK: first, 0x80: second})
    guest.engine.apic_vector = 0x80
    guest.engine.set_upcall(PENDING, CALLBACK)
    guest.write(PENDING, b"\1")
    guest.run()
    assert guest[ECX] == 0x0102


def test_two_interrupts_of_one_vector_are_two():
    handler = bytes.fromhex("41 c6050050000000 cf")  # inc %ecx; movb $0,PENDING; iret
    guest = Guest(bytes.fromhex("fb 90 90 f4"), {CALLBACK: handler})
    guest.engine.apic_vector = CALLBACK
    guest.engine.set_upcall(PENDING, CALLBACK)
    guest.write(PENDING, b"\1")
    guest.run()
    assert guest[ECX] == 2
    assert guest.engine.take_accepted() == CALLBACK


def test_hlt_goes_on_behind_itself():
    guest = Guest(bytes.fromhex("fb f4 43 fa f4"), {APIC: INC_ECX_IRET})  # sti; hlt; inc; cli; hlt
    guest.run()
    assert guest.engine.halted
    assert (guest.engine.rip, guest[EBX]) == (CODE + 2, 0)
    guest.engine.apic_vector = APIC
    guest.run()
    assert (guest[ECX], guest[EBX]) == (1, 1)


def test_an_nmi_needs_no_interrupt_flag():
    guest = Guest(bytes.fromhex("0f01c1 90 f4"), {NMI: INC_ECX_IRET})
    guest.handler.on_vmcall = guest.engine.request_nmi
    guest.run()
    assert guest[ECX] == 1
    assert not guest.engine.nmi_pending


def test_an_nmi_waits_for_the_iret_of_another():
    # Handler: inc %ecx; cmp $1,%ecx; jne 1f; vmcall; inc %edx; jmp +0; inc %edx; 1: iret
    handler = bytes.fromhex("41 83f901 7507 0f01c1 42 eb00 42 cf")
    guest = Guest(bytes.fromhex("90 eb00 f4"), {NMI: handler})
    guest.handler.on_vmcall = guest.engine.request_nmi
    guest.engine.request_nmi()
    guest.run()
    assert (guest[ECX], guest[EDX]) == (2, 2)


def test_an_nmi_that_comes_with_hlt_is_pending():
    guest = Guest(bytes.fromhex("c7050003e0fe05000000 f4 43 f4"), {NMI: INC_ECX_IRET})
    guest.handler.write_apic = lambda *_: guest.engine.request_nmi()  # type: ignore[method-assign]
    guest.run()
    assert guest.engine.halted
    assert guest.engine.nmi_pending
    guest.run()
    assert (guest[ECX], guest[EBX]) == (1, 1)


def test_flags_are_the_guests():
    guest = Guest(bytes.fromhex("fb 90 f4"), {APIC: IRET})
    guest.run()
    assert guest.engine.rflags & IF
