"""The log of hypercalls. Plain data."""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Final, Literal, overload

from xenemu.abi.xen import Nr

KEPT: Final = 64

# A call that the C shim did (cpu/native/call_record.def), and what comes before the first of them.
FIELDS: Final[dict[str, tuple[Literal["H", "I", "Q", "q"], int]]] = {
    "at_ns": ("Q", 1),
    "rip": ("Q", 1),
    "result": ("q", 1),
    "args": ("Q", 4),
    "number": ("I", 1),
    "vcpu_id": ("H", 1),
    "nr_args": ("H", 1),
}
RECORD: Final = struct.Struct("<" + "".join(f"{n}{kind}" for kind, n in FIELDS.values()))


def places() -> dict[str, tuple[int, int]]:
    """The offset and size of each field of such a record, in bytes."""
    found, offset = {}, 0
    for name, (kind, n) in FIELDS.items():
        size = n * struct.calcsize(kind)
        found[name] = (offset, size)
        offset += size
    return found


def no_vcpu_is_up(vcpu_id: int) -> str:
    """Why VCPUOP_is_up has ENOENT: Xen's answer for whatever vcpu the domain does not have."""
    return f"there is no vcpu {vcpu_id}: so a kernel finds how many there are"


def refusal_by_cpu(args: Sequence[int]) -> str:
    """Why a call has an errno that C did: there is one such answer."""
    return no_vcpu_is_up(args[1])


COUNT: Final = struct.Struct("<Q")  # of all that it did; call n is at n modulo KEPT
# After these: how many frames were typed that nobody has taken, and for each its mfn and the call.
TYPED: Final = COUNT.size + KEPT * RECORD.size
TYPED_SIZE: Final = COUNT.size + RECORD.size


@dataclass(slots=True, eq=False)
class CallRecord:
    """One hypercall: for the log that a crash prints, and for what came of it.

    The record is in the log from the beginning of the call. `result` is None until the call ends.
    `rip` is after the instruction that made the call, mostly in a stub. `caller` is where that stub
    was called from, if an observer looked. With `standing`, the refusal is Xen's declared answer,
    whatever the arguments.
    """

    at_ns: int
    vcpu_id: int
    rip: int
    name: str
    args: tuple[int, ...] = ()
    result: int | None = None
    reason: str = ""
    standing: bool = False
    caller: int = 0


@dataclass
class CallLog(Sequence[CallRecord]):
    """The last hypercalls of a domain: those that the model did, and those that C did.

    The C shim writes into `by_cpu`. Whoever reads the log has both, in the order of their times.
    """

    SIZE: ClassVar[int] = TYPED + COUNT.size + KEPT * TYPED_SIZE  # of `by_cpu`, in bytes

    own: deque[CallRecord] = field(default_factory=lambda: deque(maxlen=KEPT))
    by_cpu: bytearray = field(default_factory=lambda: bytearray(CallLog.SIZE))

    def append(self, record: CallRecord) -> None:
        """Note a call that begins."""
        self.own.append(record)

    def remove(self, record: CallRecord) -> None:
        """Forget a call that is to be made again; ValueError if others have pushed it out."""
        self.own.remove(record)

    def __iter__(self) -> Iterator[CallRecord]:
        return iter(self._all())

    def __len__(self) -> int:
        (count,) = COUNT.unpack_from(self.by_cpu)
        return min(len(self.own) + int(count), KEPT)

    @overload
    def __getitem__(self, index: int) -> CallRecord: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[CallRecord]: ...
    def __getitem__(self, index: int | slice) -> CallRecord | Sequence[CallRecord]:
        return self._all()[index]

    def _all(self) -> list[CallRecord]:
        both = [*self.own, *self._by_cpu()]
        both.sort(key=lambda record: record.at_ns)
        return both[-KEPT:]

    def _by_cpu(self) -> Iterator[CallRecord]:
        (count,) = COUNT.unpack_from(self.by_cpu)
        for number in range(max(0, count - KEPT), count):
            where = COUNT.size + number % KEPT * RECORD.size
            yield _record(self.by_cpu, where)

    def take_typed(self) -> Iterator[tuple[int, CallRecord]]:
        """Frames to which calls that C did gave a type, since the last time, and these calls."""
        (count,) = COUNT.unpack_from(self.by_cpu, TYPED)
        COUNT.pack_into(self.by_cpu, TYPED, 0)
        for number in range(min(count, KEPT)):
            where = TYPED + COUNT.size + number * TYPED_SIZE
            (mfn,) = COUNT.unpack_from(self.by_cpu, where)
            yield mfn, _record(self.by_cpu, where + COUNT.size)


def _record(data: bytearray, where: int) -> CallRecord:
    """A call that C did."""
    at_ns, rip, result, *words, nr, vcpu_id, nr_args = RECORD.unpack_from(data, where)
    args = tuple(words[:nr_args])
    record = CallRecord(at_ns, vcpu_id, rip, Nr(nr).name, args, result)
    if result < 0:
        record.reason, record.standing = refusal_by_cpu(args), True
    return record
