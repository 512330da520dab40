"""Random steps: hypercalls with the arguments and structs that the tables declare, and the rest.

The rows of `hypercalls.TABLE` say which arguments a hypercall has. Its `SubOps` say which struct
the pointer of a command leads to. Only what these do not declare is written here: arrays, and
structs that handlers copy in by themselves.
"""

from __future__ import annotations

import typing
from collections.abc import Callable, Iterator
from random import Random
from typing import Any

from fuzz.making import switch
from fuzz.recipes import Recipe, recipe
from fuzz.values import Values
from fuzz.world import Step, World
from hypercalls import TABLE
from xenemu.abi import memory as memory_abi
from xenemu.abi.arch_x86.xen import FLAT_RING1_CS, FLAT_RING3_CS64, iret_context, trap_info
from xenemu.abi.grant_table import gnttab_set_version
from xenemu.abi.layout import Blob, Struct
from xenemu.abi.xen import (
    DOMID_SELF,
    MMU_UPDATE_PREEMPTED,
    Nr,
    mmu_update,
    mmuext_op,
    multicall_entry,
)
from xenemu.hv.dispatch import Arg, Hypercall, SubOps

SWITCHES = 0.08  # how often another vcpu has its turn, if there are several
LEFT, LEFT_SOON = 0.15, 0.6  # how often a hypercall is left when it is preempted; with little work
RECIPES = 0.04  # how often a recipe begins where a single step could be
# How often, by the family; 1 if it is not here.
WEIGHTS = {
    "mmu_update": 14, "mmuext_op": 14, "update_va_mapping": 14, "memory_op": 12, "multicall": 4,
    "grant_table_op": 12, "event_channel_op": 12, "set_gdt": 4, "update_descriptor": 4,
    "vcpu_op": 4, "hvm_op": 4, "physdev_op": 2, "callback_op": 2, "iret": 3, "sched_op": 2,
    "update_va_mapping_otherdomain": 2, "set_trap_table": 2,
}  # fmt: skip
ENDS = {  # commands that end the domain, or leave xenemu's model: seldom tried
    ("sched_op", 1), ("sched_op", 2), ("sched_op", 4), ("sched_op", 5), ("sched_op_compat", 2),
    ("vcpu_op", 0), ("vcpu_op", 2), ("vcpu_op", 11),
}  # fmt: skip
RESERVATION = memory_abi.xen_memory_reservation
# Structs that a handler copies in by itself: its SubOps declares only a pointer.
STRUCTS: dict[tuple[str, int], type[Struct]] = {
    **{("memory_op", command): RESERVATION for command in (0, 1, 6)},
    ("memory_op", memory_abi.XENMEM_exchange): memory_abi.xen_memory_exchange,
    ("memory_op", memory_abi.XENMEM_add_to_physmap): memory_abi.xen_add_to_physmap,
    ("memory_op", memory_abi.XENMEM_add_to_physmap_batch): memory_abi.xen_add_to_physmap_batch,
    ("grant_table_op", 8): gnttab_set_version,
}
BLOBS: dict[str, type[Struct]] = {"in_": RESERVATION, "out": RESERVATION}
PV_STORES = (  # with RAX or an immediate, to (RDI)
    ("488907", 8), ("8907", 4), ("668907", 2), ("8807", 1), ("488707", 8), ("f0480fb10f", 8),
    ("480107", 8), ("482107", 8), ("480907", 8), ("f0480fba2f01", 8), ("c70700000000", 4),
    ("48ab", 8), ("f348ab", 8), ("f30fc707", 8), ("0fc70f", 8), ("48ff07", 8),
)  # fmt: skip
# Privileged and other instructions that Xen emulates or refuses.
INSTRUCTIONS = (
    "f4", "fa", "fb", "0f09", "0f08", "0f20c0", "0f22c0", "0f20d8", "0f22d8", "0f20d0", "0f22d0",
    "0f20e0", "0f22e0", "0f21c0", "0f23c0", "0f21f8", "0f23f8", "0f32", "0f30", "ec", "ee", "ed",
    "ef", "e464", "e670", "6c", "6e", "f36c", "f36e", "f3666d", "0f06", "0f01d0", "0f01d1",
    "0f01f8", "0f0138", "0f011f", "0f0117", "0f00d8", "0f00d0", "0f31", "0f33", "cf", "48cf", "9d",
    "0f05", "0f0b78656e0fa2", "0f0b78656e", "0f0b", "0fa2", "676c", "2e6e", "656e", "66ef",
    "0f01c8",
)  # fmt: skip
GP, UD = "gp", "ud"
APIC = (0xB0, 0xF0, 0x300, 0x310, 0x320, 0x380, 0x3E0)  # EOI, SPIV, ICR, timer


class Steps:
    """Draws steps for a world; with `only`, of that recipe."""

    def __init__(self, seed: int | str, world: World, only: Recipe | None = None) -> None:
        self.random = Random(seed)
        self.values = Values(self.random, world)
        self.world = world
        self.pv = "pvh" not in world.environment
        self._only = only
        self._recipe: Iterator[Step] = iter(())
        rows = [row for row in TABLE.rows.values() if world.environment in row.callers]
        self._rows = rows
        self._weights = [self._weight(row) for row in rows]
        self._special: dict[str, Callable[[], list[int]]] = {
            "mmu_update": self._mmu_update,
            "mmuext_op": self._mmuext_op,
            "multicall": self._multicall,
            "grant_table_op": self._grant_table_op,
            "set_trap_table": self._set_trap_table,
            "set_gdt": self._set_gdt,
            "update_descriptor": self._update_descriptor,
            "update_va_mapping": self._update_va_mapping,
            "update_va_mapping_otherdomain": self._update_va_mapping,
            "set_segment_base": lambda: [self.values.tiny(), self.values.address()],
            "console_io": self._console_io,
            "set_callbacks": lambda: [self._code_segment_or_address() for _ in range(4)],
        }

    def _weight(self, row: Hypercall) -> float:
        if row.handler is None or (row.name == "mmuext_op" and not self.pv):
            return 0.2
        return WEIGHTS.get(row.name, 1)

    def draw(self) -> Step:
        """The next step."""
        if self.world.vcpus == 1:
            return self._draw()
        if self.random.random() < SWITCHES:
            return switch(self)
        step = self._draw()
        left = LEFT_SOON if self.world.table.work else LEFT
        if step["kind"] == "call" and self.random.random() < left:
            step["leave"] = True
        return step

    def _draw(self) -> Step:
        self.values.begin()
        step = next(self._recipe, None)
        if step is None and (self._only or self.random.random() < RECIPES):
            self._recipe = (self._only or recipe)(self)
            step = next(self._recipe, None)
        return step or self._single()

    def _single(self) -> Step:
        """A step that belongs to no other."""
        kind = self.random.random()
        if kind < 0.72:
            step = self._call()
        elif kind < 0.90:
            step = self._store()
        elif kind < 0.96:
            step = self._instruction() if self.pv else self._native()
        elif kind < 0.97 and self.pv:
            step = self._trap()
        else:
            step = self._time()
        if self.values.data:
            step["data"] = self.values.data
        return step

    # Hypercalls.

    def _call(self) -> Step:
        random = self.random
        if self.values.rarely():
            number = random.choice((random.randrange(64), self.values.word()))
            args = [self.values.named("") for _ in range(6)]
            return {"kind": "call", "number": number, "args": args}
        row = random.choices(self._rows, self._weights)[0]
        step: Step = {"kind": "call", "number": row.number, "args": self._arguments(row)}
        if row.number == Nr.iret:
            step["rsp"] = self._iret_frame()
        return step

    def _arguments(self, row: Hypercall) -> list[int]:
        special = self._special.get(row.name)
        if special is not None:
            return special()
        if isinstance(row.handler, SubOps):
            return self._sub_operation(row, row.handler)
        registers = []
        for kind in row.args:
            if kind is Arg.PTR:
                registers.append(self.values.pointer())
            else:
                registers += self._split(self.values.named(""), kind)
        return registers

    def _split(self, value: int, kind: Arg) -> list[int]:
        """An argument in its registers."""
        if kind is Arg.U64 and not self.values.wide:
            return [value & 0xFFFFFFFF, value >> 32]
        return [value]

    def _command(self, row: Hypercall, ops: SubOps) -> int:
        random = self.random
        if self.values.rarely():
            return self.values.tiny()
        command = random.choice(list(ops.table))
        if (row.name, command) in ENDS and random.random() < 0.9:
            command = random.choice(list(ops.table))
        return command

    def _sub_operation(self, row: Hypercall, ops: SubOps) -> list[int]:
        command = self._command(row, ops)
        pointer = self._operand(row.name, command, ops)
        if row.name == "memory_op" and self.values.rarely():
            command |= self.random.choice((1, 2, 5, 0xFFFF, 0x10000, 1 << 25)) << 6
        arguments = {2: [command, pointer], 3: [command, self.values.tiny() & 3, pointer]}
        return arguments[len(row.args)]

    def _operand(self, name: str, command: int, ops: SubOps) -> int:
        op = ops.table.get(command)
        struct = op.struct if op is not None else None
        struct = struct or STRUCTS.get((name, command))
        if struct is None or self.values.rarely():
            return self.values.pointer() if self.random.random() < 0.7 else 0
        return self.values.put(self.fill(struct))

    def fill(self, struct: type[Struct], **given: Any) -> bytes:
        """A struct of values that fit the names of its fields."""
        width = self.values.width
        hints = typing.get_type_hints(struct, include_extras=True)
        values: dict[str, Any] = {}
        for field in struct.layout(width).offsets:
            kind = hints[field].__metadata__[0]
            if field in given:
                values[field] = given[field]
            elif isinstance(kind, Blob):
                size = kind.size64 if width == 8 else kind.size32
                values[field] = self._blob(field, size)
            else:
                values[field] = self.values.named(field)
        return struct(**values).pack(width)

    def _blob(self, name: str, size: int) -> bytes:
        if name in BLOBS:
            return self.fill(BLOBS[name])
        if self.random.random() < 0.5:
            return self.random.randbytes(size)
        words = [self.random.choice((self.values.frame, self.values.address))() for _ in range(4)]
        width = self.values.width
        data = b"".join((w & self.values.mask).to_bytes(width, "little") for w in words)
        return data[:size].ljust(size, b"\0")

    def _count(self, entries: int) -> int:
        """How many a call says it has, of so many."""
        random = self.random
        if random.random() < 0.97:
            return entries
        return random.choice((0, entries + 1, 600, self.values.word(), MMU_UPDATE_PREEMPTED | 1))

    def _target(self) -> int:
        """A domid for a foreign domain: hardly ever anything but DOMID_SELF."""
        return self.values.domid() if self.random.random() < 0.2 else DOMID_SELF

    def _done(self) -> int:
        return self.values.address() if self.random.random() < 0.2 else 0

    def _mmu_update(self) -> list[int]:
        values, random = self.values, self.random
        n = random.choice((1, 1, 1, 2, 3, 8))
        requests = b""
        for _ in range(n):
            command = random.choice((0, 0, 0, 0, 1, 2, 3)) if random.random() < 0.3 else 0
            value = values.frame() if command == 1 else values.entry()
            requests += mmu_update(values.machine_address() & ~7 | command, value).pack(8)
        domains = self._target() | (random.choice((1, 2, 3)) << 16 if values.rarely() else 0)
        return [values.put(requests), self._count(n), self._done(), domains]

    def _mmuext_op(self) -> list[int]:
        values, random = self.values, self.random
        n = random.choice((1, 1, 1, 2, 4))
        data = b""
        for _ in range(n):
            command = random.randrange(20) if random.random() < 0.95 else values.word()
            arg1, arg2 = values.frame(), values.word()
            if command in (7, 9, 11):  # INVLPG
                arg1 = values.address()
            elif command == 13:  # SET_LDT
                arg1, arg2 = values.address() & ~0xFFF, random.choice((0, 1, 8, 512, 600, 8192))
            elif command == 17:  # COPY_PAGE
                arg2 = values.frame()
            if command in (8, 9):  # for the vcpus of a mask
                arg2 = values.pointer()
            data += mmuext_op(command, arg1, arg2).pack(values.width)
        return [values.put(data), self._count(n), self._done(), self._target()]

    def _multicall(self) -> list[int]:
        values, random = self.values, self.random
        n = random.choice((1, 2, 3, 6))
        data = b""
        for _ in range(n):
            row = random.choices(self._rows, self._weights)[0]
            if row.name == "multicall" and random.random() < 0.8:
                args = [values.address(), 1]
            elif row.name == "multicall":
                args = [values.address(), values.word()]
            else:
                args = self._arguments(row)
            args = (args + [values.word() for _ in range(6)])[:6]
            packed = b"".join((a & values.mask).to_bytes(values.width, "little") for a in args)
            op = values.word() if values.rarely() else row.number
            data += multicall_entry(op, 0, packed).pack(values.width)
        return [values.put(data), self._count(n)]

    def _grant_table_op(self) -> list[int]:
        ops = TABLE.rows[Nr.grant_table_op].handler
        assert isinstance(ops, SubOps)
        values, random = self.values, self.random
        command = self._command(TABLE.rows[Nr.grant_table_op], ops)
        op = ops.table.get(command)
        struct = (op.struct if op else None) or STRUCTS.get(("grant_table_op", command))
        if struct is None:
            return [command, values.pointer(), values.count()]
        n = random.choice((1, 1, 1, 2, 3))
        data = b"".join(self.fill(struct, **self._grant_fields(command)) for _ in range(n))
        return [command, values.put(data), self._count(n)]

    def _grant_fields(self, command: int) -> dict[str, int]:
        """What makes a mapping of a grant likely."""
        values, random = self.values, self.random
        if command == 0 and random.random() < 0.8:
            by_entry = random.random() < 0.3
            flags = random.choice((1, 2, 2, 2, 3, 6, 10, 14)) | (16 if by_entry else 0)
            host = values.machine_address() if by_entry else values.address()
            return {"dom": 1, "flags": flags, "host_addr": host}
        return {"dom": 1} if command == 0 else {}

    def _set_trap_table(self) -> list[int]:
        values, random = self.values, self.random
        entries = [
            trap_info(values.tiny(), values.bits(), self._code_segment(), values.address())
            for _ in range(random.randrange(1, 6))
        ]
        end = random.choice((True, True, False))
        data = b"".join(entry.pack(values.width) for entry in entries)
        return [values.put(data + bytes(16 if end else 0)) if random.random() < 0.9 else 0]

    def _code_segment(self) -> int:
        flat = FLAT_RING3_CS64 if self.values.wide else FLAT_RING1_CS
        return self._selector() if self.random.random() < 0.3 else flat

    def _code_segment_or_address(self) -> int:
        if self.random.random() < 0.5:
            return self.world.handler
        return self._code_segment() if self.random.random() < 0.5 else self.values.address()

    def _selector(self) -> int:
        random = self.random
        if random.random() < 0.5:
            return random.choice((0, 1, 2, 3, 8, 0xB, 0xF, 7, 0x17, 0xE008, 0xE010, 0xE02B, 0xFFFF))
        return random.getrandbits(16)

    def _set_gdt(self) -> list[int]:
        values, random = self.values, self.random
        n = random.choice((1, 1, 2, 14))
        entries = n * 512 if random.random() < 0.7 else random.choice((0, 1, 7168, 7169, 511))
        return [values.words([values.frame() for _ in range(n)]), entries]

    def _update_descriptor(self) -> list[int]:
        address, descriptor = self.values.machine_address(), self.values.descriptor()
        return [*self._split(address, Arg.U64), *self._split(descriptor, Arg.U64)]

    def _update_va_mapping(self) -> list[int]:
        values, random = self.values, self.random
        flags = random.choice((0, 1, 2, 5, 6, 3)) if random.random() < 0.8 else values.pointer()
        vaddr = values.address() & (~0xFFF if random.random() < 0.9 else -1)
        return [vaddr, *self._split(values.entry(), Arg.U64), flags, self._target()]

    def _console_io(self) -> list[int]:
        values = self.values
        return [values.random.randrange(3), values.offset(), values.pointer()]

    def _iret_frame(self) -> int:
        """A frame for the iret hypercall: near what a kernel would leave by."""
        values, random = self.values, self.random
        flags = random.choice((0x202, 0x2, 0x3202, 0x20202, 0x302, 0x4202, random.getrandbits(22)))
        cs, ss = self._code_segment() | random.choice((0, 1, 3)), self._selector()
        ip = self.world.handler if random.random() < 0.7 else values.address()
        sp = self.world.stack if random.random() < 0.7 else values.address()
        if values.wide:
            context = self.fill(iret_context, rip=ip, cs=cs, rflags=flags, rsp=sp, ss=ss)
            return values.put(context)
        return values.words([values.word(), ip, cs, flags, sp, ss, 0x2B, 0x2B, 0x2B, 0x2B], 4)

    # What is no hypercall.

    def _store(self) -> Step:
        """A store: to anything; to Xen's windows, more often than they deserve."""
        values, random = self.values, self.random
        kind = random.random()
        address = values.address()
        if kind < 0.3:
            window = random.choice(list(self.world.windows.values()))
            address = window + random.randrange(0, 4096, 4)
        elif kind < 0.7 and self.pv:
            address = self._table_address()
        value = random.choice((values.entry, values.word, values.frame))()
        step: Step = {"kind": "store", "address": address & values.mask, "value": value}
        code, step["size"] = random.choice(PV_STORES)
        if not values.wide:
            code, step["size"] = code.removeprefix("48").replace("f048", "f0"), min(4, step["size"])
        step["code"] = code
        if random.random() < 0.05 and self.pv:
            step["user"] = True
        return step

    def _table_address(self) -> int:
        """Where the guest has one of its page tables mapped, by the builder's layout."""
        random, domain = self.random, self.world.current.domain
        mfn = random.choice(self.values.tables)
        pfn = domain.frames.get_m2p(mfn)
        base = self.world.code & -0x400000
        return base + (pfn << 12) + random.randrange(0, 4096, 8)

    def _registers(self) -> list[int]:
        values, random = self.values, self.random
        makers = (values.word, values.address, values.frame, values.tiny, values.machine_address)
        registers = [random.choice(makers)() for _ in range(16)]
        if random.random() < 0.5:  # RCX: an MSR; RDX: a port
            registers[1] = self._msr_number()
            registers[2] = random.choice((0x60, 0x64, 0x70, 0x71, 0xCF8, 0xCFC, 0x3F8, 0x80))
        return registers

    def _msr_number(self) -> int:
        random = self.random
        known = (0x10, 0x1B, 0x8B, 0xCE, 0x140, 0x174, 0x1A0, 0x277, 0x6E0, 0x808, 0x830, 0x83F)
        more = (0xC0000080, 0xC0000081, 0xC0000082, 0xC0000100, 0xC0000101, 0xC0000102, 0xC0000103)
        some = (0x40000000, 0xC0010140, 0x48, 0x49, 0x17, 0x2FF, 0x200, 0x250, 0xFE)
        if random.random() < 0.8:
            return random.choice((*known, *more, *some))
        return random.choice((0x800, 0x200, 0xC0000000, 0x40000000)) + random.randrange(0x100)

    def _instruction(self) -> Step:
        random = self.random
        code, how = random.choice(INSTRUCTIONS), random.choice((GP, GP, GP, UD))
        if random.random() < 0.25:
            code = random.choice(("0f32", "0f30", "0f30"))
        step: Step = {"kind": "insn", "regs": self._registers(), "code": code, "how": how}
        if random.random() < 0.3:
            step["code"] = random.choice(("66", "67", "f3", "65", "48")) + code
        if code.startswith(("0f0b", "0f33")):
            step["how"] = UD
        elif code == "0fa2":
            step["how"] = "cpuid"
        elif code == "0f05":
            step["how"] = "syscall"
        elif random.random() < 0.15:
            vector = random.choice((3, 4, 0x80, 0x82, 14, random.randrange(256)))
            step |= {"how": "int", "vector": vector, "code": f"cd{vector:02x}"}
        elif random.random() < 0.03:
            step |= {"how": "sysenter", "code": "0f34"}
        elif random.random() < 0.1:
            step["code"] = random.randbytes(15).hex()
        if random.random() < 0.2:
            step["user"] = True
        return step

    def _trap(self) -> Step:
        """A fault as the CPU raises it; a page fault may be anywhere, Xen's area too."""
        values, random = self.values, self.random
        vector = random.choice((0, 1, 5, 6, 7, 10, 11, 12, 13, 14, 14, 14, 16, 17, 19))
        error = 0
        if vector in (10, 11, 12, 13):
            error = self._selector() & ~3 | random.choice((0, 0, 1, 2))
        elif vector == 14:
            error = random.choice((0, 2, 3, 4, 5, 6, 7, 8, 0x10, 0x11))
        step: Step = {"kind": "trap", "vector": vector, "error": error, "cr2": values.address()}
        if vector == 14 and random.random() < 0.4:  # the CPU's own access to a descriptor
            base = 0xFFFF820000000000 if values.wide else 0xFFC00000
            step["cr2"] = base + random.choice((0, 0xE000, 0x10000, 0x11000, 0x1FFF8, 0x20000))
            step["error"] = random.choice((0, 2, 3, 1))
        if random.random() < 0.4:
            step["user"] = True
        return step

    def _native(self) -> Step:
        """What a PVH guest's CPU asks of Xen."""
        values, random = self.values, self.random
        kind = random.randrange(4)
        step: Step
        if kind == 0:
            step = {"kind": "msr", "number": self._msr_number()}
        elif kind == 1:
            offset = random.choice((random.randrange(4096), random.randrange(0, 0x400, 16), *APIC))
            step = {"kind": "apic", "offset": offset, "size": random.choice((4, 4, 4, 1, 2, 8))}
        else:
            how = random.choices(("cpuid", "halt", "port"), (4, 1, 4))[0]
            step = {"kind": "insn", "how": how, "regs": self._registers(), "code": "90"}
            step |= {"port": random.choice((0xE9, 0x80)), "size": random.choice((1, 2, 4))}
            step["value"] = random.randrange(256)
            return step
        if random.random() < 0.7:
            step["value"] = values.word() if kind == 0 else self._apic_word()
        return step

    def _apic_word(self) -> int:
        random = self.random
        modes = (0, 0x100, 0x400, 0x500, 0x600, 0x10000, 0x20000, 0x40000, 0xC0000, 0x8800)
        vector = random.choice((0, 0x10, 0x30, 0xFF, random.randrange(256)))
        return random.choice(
            (vector | random.choice(modes), 0x1FF, self.values.word() & 0xFFFFFFFF)
        )

    def _time(self) -> Step:
        random = self.random
        step: Step = {"kind": "time", "ns": random.choice((0, 1, 1000, 10**6, 10**7, 10**9))}
        if random.random() < 0.3:
            step["input"] = random.randbytes(random.choice((1, 10, 1500))).hex()
        return step
