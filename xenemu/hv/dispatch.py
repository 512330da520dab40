"""Declare hypercalls, and call them.

A hypercall is declared once: its number, its name, who may call it and the types of its arguments.
A hypercall with sub-operations is a `SubOps`. A decorator registers a handler there, with the
struct that the guest's pointer leads to::

    ops = SubOps("event_channel_op")

    @ops.sub(EVTCHNOP_alloc_unbound, evtchn_alloc_unbound, copy_back=True)
    def alloc_unbound(current: Current, op: evtchn_alloc_unbound) -> None: ...

    event_channel_op = Hypercall(32, "event_channel_op", ALL, (INT, PTR), ops)

`call` copies the struct in (EFAULT), calls the handler, and copies the struct back on success. It
turns XenError into ``-errno``, and logs the reason.

Where an answer knowingly differs from Xen's, `diverges` says how, and `xenemu hypercalls` shows it.

In Xen: include/hypercall-defs.c, arch/x86/pv/hypercall.c, common/multicall.c.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import field
from enum import Enum
from operator import and_, itemgetter
from typing import ClassVar, Final

from xenemu.abi.errno import ENOSYS
from xenemu.abi.errno import NAMES as ERRNO_NAMES
from xenemu.abi.layout import Struct
from xenemu.errors import XenError
from xenemu.hv import scheduler
from xenemu.hv.calls import CallRecord
from xenemu.hv.cpu import Reg
from xenemu.hv.current import Current
from xenemu.hv.frame_table import WORK_PER_CALL
from xenemu.hv.prices import WORK_NS
from xenemu.records import dataclass

ALL = frozenset({"pv64", "pv32", "pvh64", "pvh32"})
PV = frozenset({"pv64", "pv32"})
PVH = frozenset({"pvh64", "pvh32"})
WIDE = frozenset({"pv64", "pvh64"})  # whose argument registers have 64 bits


class Arg(Enum):
    """The C type of a hypercall's argument."""

    INT = "int"  # unsigned int: truncated to 32 bits
    ULONG = "unsigned long"
    PTR = "guest pointer"
    U64 = "uint64_t"  # two registers in the 32-bit ABI, low half first
    COMPAT = "unsigned long of the 32-bit ABI"  # the 64-bit one has no such argument


INT, ULONG, PTR, U64, COMPAT = Arg.INT, Arg.ULONG, Arg.PTR, Arg.U64, Arg.COMPAT
POISON = {8: 0xDEADBEEFDEADF00D, 4: 0xDEADF00D}

Handler = Callable[..., int | None]


class Continue(Exception):
    """Issue the same hypercall again, with these arguments, after looking at events.

    A long operation raises it after a bounded piece of work, as Xen's
    ``hypercall_create_continuation`` does. `args` are the typed arguments of the hypercall.
    """

    def __init__(self, *args: int) -> None:
        super().__init__(*args)
        self.new_args = args


class StandingAnswer(XenError):
    """The refusal of a row without a handler: what Xen answers, whatever the arguments."""


@dataclass(frozen=True)
class Points:
    """What a pointer leads to if the handler itself copies it in, so that a trace can show it.

    `pointer` and `count` are positions among the arguments. Without a `count`, the pointer leads to
    one struct, or to an array up to the struct whose field `until` is 0.
    """

    pointer: int
    struct: type[Struct]
    count: int | None = None
    until: str = ""


@dataclass(frozen=True)
class Hypercall:
    """A row of the hypercall table.

    `handler(current, *args)` returns the guest's result (None is 0) or raises XenError. If Xen
    refuses the hypercall to such a domain, `note` says why, and the guest gets Xen's own
    ``-answer``. Such a row needs no handler; a handler there makes the checks that Xen makes before
    it refuses. `batch_of` are the sub-operations of a hypercall that takes a list of them. Without
    a handler, `arguments` may name what a trace shows.
    """

    number: int
    name: str
    callers: frozenset[str]
    args: tuple[Arg, ...] = ()
    handler: Handler | None = None
    answer: int = ENOSYS
    note: str = ""
    points: Points | None = None
    diverges: str = ""
    batch_of: SubOps | None = None
    arguments: tuple[str, ...] = ()

    @property
    def operations(self) -> dict[int, SubOp]:
        """The sub-operations by command, none if it has none."""
        family = self.handler if isinstance(self.handler, SubOps) else self.batch_of
        return {} if family is None else family.table


@dataclass(frozen=True)
class SubOp:
    """A sub-operation: its struct is copied in, and copied back on success if asked.

    A handler may take the pointer instead of a struct. `shows` is then the struct at the pointer,
    so that a trace can show it. `answer`, `note` and `diverges` are as in `Hypercall`. If there is
    no handler, `copies` bytes are read first (EFAULT), because Xen reads its argument before it
    refuses.
    """

    command: int
    name: str
    struct: type[Struct] | None
    handler: Callable[..., int | None] | None
    copy_back: bool = False
    answer: int = ENOSYS
    note: str = ""
    diverges: str = ""
    copies: int = 0
    shows: type[Struct] | None = None


@dataclass
class SubOps:
    """A hypercall's sub-operations, callable as its handler: ``(current, command, pointer)``.

    An unknown command gets ``-unknown``. `arguments` are the names of the hypercall's.
    """

    arguments: ClassVar[tuple[str, ...]] = ("command", "pointer")

    name: str
    unknown: int = ENOSYS
    table: dict[int, SubOp] = field(default_factory=dict)

    def sub(
        self,
        command: int,
        struct: type[Struct] | None = None,
        *,
        copy_back: bool = False,
        shows: type[Struct] | None = None,
        answer: int = ENOSYS,
        note: str = "",
        diverges: str = "",
    ) -> Callable[[Callable[..., int | None]], Callable[..., int | None]]:
        """Register a handler: called with (current, struct), or (current, pointer) without one."""

        def register(handler: Callable[..., int | None]) -> Callable[..., int | None]:
            name = handler.__name__
            self._add(
                SubOp(
                    command, name, struct, handler, copy_back, answer, note, diverges, shows=shows
                )
            )
            return handler

        return register

    def answer(
        self,
        command: int,
        name: str,
        errno: int,
        note: str,
        *,
        diverges: str = "",
        copies: int = 0,
    ) -> None:
        """Register a sub-operation that Xen refuses to such a domain, with its errno and why."""
        self._add(SubOp(command, name, None, None, False, errno, note, diverges, copies))

    def find(self, command: int) -> SubOp | None:
        """The sub-operation that a command means."""
        return self.table.get(command)

    def implemented(
        self, current: Current, command: int, pointer: int = 0
    ) -> tuple[SubOp, Callable[..., int | None]]:
        """A sub-operation and its handler; the errno that the guest gets if there is none."""
        op = self.table.get(command)
        if op is None:
            raise XenError(self.unknown, f"{self.name} has no command {command}")
        if op.handler is None:
            current.read(pointer, op.copies)
            raise StandingAnswer(op.answer, f"{self.name} {op.name}: {op.note}")
        return op, op.handler

    def _add(self, op: SubOp) -> None:
        if op.command in self.table:
            raise ValueError(f"{self.name}: command {op.command} is declared twice")
        self.table[op.command] = op

    def __call__(self, current: Current, command: int, pointer: int) -> int | None:
        op, handler = self.implemented(current, command, pointer)
        if op.struct is None:
            return handler(current, pointer)
        argument = current.read_struct(op.struct, pointer)
        result = handler(current, argument)
        if op.copy_back:
            current.write_struct(pointer, argument)
        return result


class HypercallTable:
    """The rows by number; building it refuses duplicates."""

    def __init__(self, rows: Sequence[Hypercall]) -> None:
        self.rows: dict[int, Hypercall] = {}
        for row in rows:
            if row.number in self.rows:
                raise ValueError(f"hypercall {row.number} is declared twice")
            self.rows[row.number] = row
        # The commonest conversion at its quickest: a 64-bit guest's arguments are masked only.
        self._masks = {row.number: [_MASKS[kind] for kind in _wide(row.args)] for row in rows}

    def call(self, current: Current, number: int, registers: Sequence[int]) -> int:
        """Call a hypercall with the raw argument registers; return the guest's result.

        Raises `Continue` with raw registers, and whatever ends the guest.
        """
        row, cpu, domain, vcpu = self.rows.get(number), current.cpu, current.domain, current.vcpu
        if row is None:
            name, args = f"hypercall {number}", tuple[int, ...]()
        else:
            name = row.name
            if vcpu.environment in WIDE:
                args = tuple(map(and_, registers, self._masks[number]))
            else:
                args = _typed32(row.args, registers)
        record = CallRecord(cpu.now_ns, vcpu.vcpu_id, cpu.rip, name, args)
        domain.calls.append(record)
        watch = domain.watch
        if watch is not None:
            for observer in watch:
                observer.call_begins(current, row, record)
        try:
            try:
                if row is None or vcpu.environment not in row.callers:
                    raise XenError(ENOSYS, f"there is no {name} for {vcpu.environment}")
                if row.handler is None:
                    raise StandingAnswer(row.answer, f"{name}: {row.note}")
                record.result = result = row.handler(current, *args) or 0
            except XenError as error:
                record.result = result = -error.errno
                record.reason, record.standing = error.reason, isinstance(error, StandingAnswer)
            if vcpu.remarks:
                remarks = vcpu.take_remarks()
                record.reason = f"{remarks}; {record.reason}" if record.reason else remarks
            return result
        except Continue as again:
            with suppress(ValueError):  # those that it contains may have pushed it out
                domain.calls.remove(record)
            assert row is not None
            wide, typed = vcpu.environment in WIDE, again.new_args
            raise Continue(*(typed if wide else _raw32(row.args, typed))) from None
        finally:
            if watch is not None:
                for observer in watch:
                    observer.call_ends(current, row, record)


STANDING: Final = "Xen's answer to every domU: "  # before the reason of a `StandingAnswer`
WORD: Final = (1 << 64) - 1
RAX: Final = Reg.RAX
ARGUMENTS: Final = {  # Header: public/arch-x86/xen-x86_64.h, xen-x86_32.h
    8: (Reg.RDI, Reg.RSI, Reg.RDX, Reg.R10, Reg.R8, Reg.R9),
    4: (Reg.RBX, Reg.RCX, Reg.RDX, Reg.RSI, Reg.RDI, Reg.RBP),
}
_MASKS = dict.fromkeys(Arg, WORD) | {Arg.INT: 0xFFFFFFFF}


class Convention:
    """How code of a width passes a hypercall's arguments: in which registers, and which bits.

    `pick` takes these registers out of a vcpu's general ones.
    """

    def __init__(self, width: int) -> None:
        self.registers = ARGUMENTS[width]
        self.mask = (1 << 8 * width) - 1
        self.pick: Callable[[Sequence[int]], tuple[int, ...]] = itemgetter(
            *map(int, self.registers)
        )


CONVENTIONS: Final = {8: Convention(8), 4: Convention(4)}


def hypercall(current: Current, length: int) -> None:
    """Make the hypercall that the current vcpu asks for; its result goes to RAX.

    Every kind of guest comes here; `length` is that of the instruction that made the call, in
    bytes. A call that is preempted is made again: RIP moves back over the instruction. What the
    call did takes the guest's time. If it moved a timer, the guest runs no further than to the
    next one. If it made another vcpu runnable, that one's turn comes (`scheduler.give_way`). The
    caller then looks at events.
    """
    table, cpu, domain = current.table, current.cpu, current.domain
    assert table is not None
    regs, frames, timers = cpu.regs, domain.frames, domain.timers
    convention = CONVENTIONS[current.vcpu.width]
    mask = convention.mask
    number, arguments = regs[RAX] & mask, convention.pick(regs)
    if mask != WORD:
        arguments = tuple([value & mask for value in arguments])
    frames.work_left = WORK_PER_CALL
    try:
        result = table.call(current, number, arguments)
        regs[RAX] = result & mask
        if domain.debug_xen:
            poison_arguments(current, number, convention.registers, result)
    except Continue as again:
        for register, value in zip(convention.registers, again.new_args, strict=False):
            regs[register] = value
        cpu.rip -= length
    finally:
        if frames.work_left != WORK_PER_CALL:
            cpu.spend((WORK_PER_CALL - frames.work_left) * WORK_NS)
    if timers.moved:
        timers.moved = False
        cpu.limit(timers.next_ns() or 0)
    if domain.reschedule:
        scheduler.give_way(current)


def poison_arguments(current: Current, number: int, registers: Sequence[Reg], result: int) -> None:
    """Spoil the argument registers of a hypercall that is done, as a debug build of Xen does.

    A guest must not rely on them. They stay if there is no such hypercall (ENOSYS).
    """
    assert current.table is not None
    row = current.table.rows.get(number)
    if row is None or result == -ENOSYS:
        return
    if current.vcpu.environment in WIDE:
        count, poison = len(_wide(row.args)), POISON[8]
    else:
        count, poison = len(_raw32(row.args, [0] * len(row.args))), POISON[4]
    for register in registers[:count]:
        current.cpu.regs[register] = poison


def _wide(types: tuple[Arg, ...]) -> list[Arg]:
    """The arguments that a 64-bit guest passes, a register each."""
    return [kind for kind in types if kind is not Arg.COMPAT]


def _typed32(types: tuple[Arg, ...], registers: Sequence[int]) -> tuple[int, ...]:
    """Arguments as the C prototype has them, from a 32-bit guest's registers."""
    values, at = [], 0
    for kind in types:
        value = registers[at]
        at += 1
        if kind is Arg.U64:
            value |= registers[at] << 32
            at += 1
        values.append(value)
    return tuple(values)


def _raw32(types: tuple[Arg, ...], values: Sequence[int]) -> list[int]:
    """The inverse of `_typed32`."""
    registers = []
    for kind, value in zip(types, values, strict=True):
        if kind is Arg.U64:
            registers += [value & 0xFFFFFFFF, value >> 32]
        else:
            registers.append(value)
    return registers


def format_result(result: int | None) -> str:
    """A result for a person: ``0``, ``17`` or ``-EINVAL``; ``?`` of a call that did not end."""
    if result is None:
        return "?"
    return f"-{ERRNO_NAMES.get(-result, str(-result))}" if result < 0 else str(result)


def format_call(record: CallRecord, args: str | None = None) -> str:
    """One line of the hypercall log; `args` are the arguments in words, if somebody has them."""
    if args is None:
        args = ", ".join(f"{value:#x}" for value in record.args)
    line = f"{record.at_ns / 1e9:12.6f} v{record.vcpu_id} {record.name}({args}) = "
    line += format_result(record.result)
    if record.standing:
        return f"{line} ({STANDING}{record.reason})"
    return f"{line}: {record.reason}" if record.reason else line
