"""Declare hypercalls, and call them.

A hypercall is declared once: its number, its name, who may call it and the types of its
arguments. One with sub-operations is a `SubOps`, whose handlers are registered by decorator
with the struct that the guest's pointer leads to::

    ops = SubOps("event_channel_op")

    @ops.sub(EVTCHNOP_alloc_unbound, evtchn_alloc_unbound, copy_back=True)
    def alloc_unbound(current: Current, op: evtchn_alloc_unbound) -> None: ...

    event_channel_op = Hypercall(32, "event_channel_op", ALL, (INT, PTR), ops)

`call` copies in (EFAULT), calls, copies back on success, and turns XenError into ``-errno``
with the reason logged.

Where an answer knowingly differs from Xen's, `diverges` says how, and `xenemu hypercalls` shows it.

In Xen: include/hypercall-defs.c, arch/x86/pv/hypercall.c, common/multicall.c.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from xenemu.abi.errno import ENOSYS
from xenemu.abi.errno import NAMES as ERRNO_NAMES
from xenemu.abi.layout import Struct
from xenemu.errors import XenError
from xenemu.hv.cpu import Reg
from xenemu.hv.domain import CallRecord, Current

ALL = frozenset({"pv64", "pv32", "pvh64", "pvh32"})
PV = frozenset({"pv64", "pv32"})
PVH = frozenset({"pvh64", "pvh32"})


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


@dataclass(frozen=True)
class Hypercall:
    """A row of the hypercall table.

    `handler(current, *args)` returns the guest's result (None is 0) or raises XenError. What Xen
    refuses to such a domain has a `note` that says why, and ``-answer``, which is Xen's: it needs
    no handler, or one that makes the checks which Xen makes before. `batch_of` are the
    sub-operations of a hypercall that takes a list of them.
    """

    number: int
    name: str
    callers: frozenset[str]
    args: tuple[Arg, ...] = ()
    handler: Handler | None = None
    answer: int = ENOSYS
    note: str = ""
    diverges: str = ""
    batch_of: SubOps | None = None

    @property
    def operations(self) -> dict[int, SubOp]:
        """The sub-operations by command, none if it has none."""
        family = self.handler if isinstance(self.handler, SubOps) else self.batch_of
        return {} if family is None else family.table


@dataclass(frozen=True)
class SubOp:
    """A sub-operation: its struct is copied in, and copied back on success if asked.

    `answer`, `note` and `diverges` are as in `Hypercall`; without a handler, `copies` bytes are
    read first (EFAULT), where Xen reads its argument before it refuses.
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


@dataclass
class SubOps:
    """A hypercall's sub-operations, callable as its handler: ``(current, command, pointer)``.

    An unknown command gets ``-unknown``.
    """

    name: str
    unknown: int = ENOSYS
    table: dict[int, SubOp] = field(default_factory=dict)

    def sub(
        self,
        command: int,
        struct: type[Struct] | None = None,
        *,
        copy_back: bool = False,
        answer: int = ENOSYS,
        note: str = "",
        diverges: str = "",
    ) -> Callable[[Callable[..., int | None]], Callable[..., int | None]]:
        """Register a handler: called with (current, struct), or (current, pointer) without one."""

        def register(handler: Callable[..., int | None]) -> Callable[..., int | None]:
            name = handler.__name__
            self._add(SubOp(command, name, struct, handler, copy_back, answer, note, diverges))
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

    def _add(self, op: SubOp) -> None:
        if op.command in self.table:
            raise ValueError(f"{self.name}: command {op.command} is declared twice")
        self.table[op.command] = op

    def __call__(self, current: Current, command: int, pointer: int) -> int | None:
        op = self.table.get(command)
        if op is None:
            raise XenError(self.unknown, f"{self.name} has no command {command}")
        if op.handler is None:
            current.read(pointer, op.copies)
            raise XenError(op.answer, f"{self.name} {op.name}: {op.note}")
        if op.struct is None:
            return op.handler(current, pointer)
        argument = current.read_struct(op.struct, pointer)
        result = op.handler(current, argument)
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

    def call(self, current: Current, number: int, registers: Sequence[int]) -> int:
        """Call a hypercall with the raw argument registers; return the guest's result.

        Raises `Continue` with raw registers, and whatever ends the guest.
        """
        environment = current.environment
        width = 8 if environment.endswith("64") else 4
        row = self.rows.get(number)
        args: tuple[int, ...] = ()
        reason = ""
        try:
            if row is None or environment not in row.callers:
                raise XenError(ENOSYS, f"there is no hypercall {number} for {environment}")
            args = _typed(row.args, registers, width)
            if row.handler is None:
                raise XenError(row.answer, f"{row.name}: {row.note}")
            result = row.handler(current, *args) or 0
        except XenError as error:
            result, reason = -error.errno, error.reason
        except Continue as again:
            assert row is not None
            raise Continue(*_raw(row.args, again.new_args, width)) from None
        current.domain.calls.append(
            CallRecord(
                current.cpu.now_ns,
                current.vcpu.vcpu_id,
                current.cpu.rip,
                row.name if row else f"hypercall {number}",
                args,
                result,
                reason,
            )
        )
        return result


def poison_arguments(current: Current, number: int, registers: Sequence[Reg], result: int) -> None:
    """Spoil the argument registers of a hypercall that is done, as a debug build of Xen does.

    A guest must not rely on them. Those of a hypercall that there is not (ENOSYS) stay.
    """
    assert current.table is not None
    width = 8 if current.environment.endswith("64") else 4
    row = current.table.rows.get(number)
    if row is not None and result != -ENOSYS:
        count = len(_raw(row.args, [0] * len(row.args), width))
        for register in registers[:count]:
            current.cpu.regs[register] = POISON[width]


def _typed(types: tuple[Arg, ...], registers: Sequence[int], width: int) -> tuple[int, ...]:
    """Arguments as the C prototype has them, from the argument registers."""
    values, at = [], 0
    for kind in types:
        if kind is Arg.COMPAT and width == 8:
            continue
        value = registers[at]
        at += 1
        if kind is Arg.INT:
            value &= 0xFFFFFFFF
        elif kind is Arg.U64 and width == 4:
            value |= registers[at] << 32
            at += 1
        values.append(value)
    return tuple(values)


def _raw(types: tuple[Arg, ...], values: Sequence[int], width: int) -> list[int]:
    """The inverse of `_typed`."""
    registers = []
    for kind, value in zip(types, values, strict=True):
        if kind is Arg.U64 and width == 4:
            registers += [value & 0xFFFFFFFF, value >> 32]
        elif kind is not Arg.COMPAT or width == 4:
            registers.append(value)
    return registers


def format_result(result: int) -> str:
    """A result for a person: ``0``, ``17`` or ``-EINVAL``."""
    return f"-{ERRNO_NAMES.get(-result, str(-result))}" if result < 0 else str(result)


def format_call(record: CallRecord) -> str:
    """One line of the hypercall log."""
    args: Any = ", ".join(f"{value:#x}" for value in record.args)
    line = f"{record.at_ns / 1e9:12.6f} v{record.vcpu_id} {record.name}({args}) = "
    line += format_result(record.result)
    return f"{line}: {record.reason}" if record.reason else line
