"""Plain data as bytes, and back: the records that make up a machine's state.

No bytes can make Python run code of the sender's choice, as a pickle's can. What comes back are
numbers, text, bytes, containers of Python's own, and records of classes that are named here or that
live in a package of `RECORDS`. A record is made without its constructor; its fields are then set.

Records refer to each other, and two may refer to the same third. So a document has a list of its
compound values. Where one has another in it, there is a reference to that list. For example, the
domain and the frame table share the log of calls: it is there once.

A document lists each class that it has records of, with the names of its fields. If they are not
the fields that the class has now, the document is of another version, and `DecodeError` says so.
"""

from __future__ import annotations

import dataclasses
import enum
import importlib
from collections import defaultdict, deque
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar

import msgspec

# Where records live. Their modules do nothing when they are imported, but define things.
RECORDS: Final = (
    "xenemu.abi.io", "xenemu.entries", "xenemu.cpu.context", "xenemu.cpu.engine", "xenemu.dom0",
    "xenemu.hv", "xenemu.machine.past", "xenemu.machine.snapshot", "xenemu.pv", "xenemu.pvh",
    "xenemu.sampling", "xenemu.x86",
)  # fmt: skip
REFERENCE: Final = 1  # the kind of extension: an index
BIG: Final = 2  # a number of more than 64 bits
SMALLEST: Final = -(1 << 63)  # of the numbers that msgpack has
LARGEST: Final = (1 << 64) - 1
DEEPEST: Final = 100  # of values within values


T = TypeVar("T")


class DecodeError(ValueError):
    """The bytes are no document, or one of another version of the records."""


class EncodeError(TypeError):
    """There is something that is no plain data: a bug of the record's."""


class _Class(msgspec.Struct, array_like=True):
    module: str
    name: str
    fields: list[str] | None  # of a record; None: another kind


class _Document(msgspec.Struct, array_like=True):
    classes: list[_Class]
    objects: list[tuple[str, list[Any]]]  # a kind, and what it has
    root: Any


Containers = Callable[[list[Any]], Any]
MADE_AT_ONCE: Final[dict[str, Containers]] = {  # they cannot refer to themselves
    "tuple": tuple,
    "frozenset": frozenset,
    "range": lambda items: range(*items),
}
VALUES: Final[dict[str, type]] = {"enum": enum.Enum, "named": tuple}  # made of their values


def _is_record(kind: type) -> bool:
    module = kind.__module__
    return any(module == one or module.startswith(f"{one}.") for one in RECORDS)


def _state(value: object) -> dict[str, Any]:
    """The fields of a record, by name."""
    if hasattr(value, "__dict__"):
        state = value.__getstate__()
        if not isinstance(state, dict):
            raise EncodeError(f"{type(value).__name__} has no plain state")
        return state
    return {name: getattr(value, name) for name in type(value).__slots__}  # type: ignore[attr-defined]


class _Encoder:
    def __init__(self, parts: dict[int, str]) -> None:
        self.parts = parts  # by id(), what is not a part of the document, but known by a name
        self.classes: dict[type, int] = {}
        self.listed: list[_Class] = []
        self.objects: list[tuple[str, list[Any]]] = []
        self.numbers: dict[int, int] = {}
        self.kept: list[Any] = []  # so that no id() is used twice

    def encode(self, value: Any) -> Any:
        kind = type(value)
        if value is None or kind in (bool, float, str, bytes):
            return value
        if kind is int:
            return value if SMALLEST <= value <= LARGEST else _big(value)
        number = self.numbers.get(id(value))
        if number is None:
            number = self.numbers[id(value)] = len(self.objects)
            self.kept.append(value)
            self.objects.append(("", []))
            self.objects[number] = self._compound(kind, value)
        return msgspec.msgpack.Ext(REFERENCE, number.to_bytes(4, "little"))

    def _compound(self, kind: type, value: Any) -> tuple[str, list[Any]]:
        if id(value) in self.parts:
            return "part", [self.parts[id(value)]]
        if kind in (list, tuple, set, frozenset):
            items = sorted(value, key=repr) if kind in (set, frozenset) else value
            return kind.__name__, [self.encode(item) for item in items]
        if kind is dict:
            return "dict", self._pairs(value)
        if kind is defaultdict:
            return "defaultdict", [self._class(value.default_factory), *self._pairs(value)]
        if kind is deque:
            return "deque", [value.maxlen, *map(self.encode, value)]
        if kind is bytearray:
            return "bytearray", [bytes(value)]
        if kind is range:
            return "range", [value.start, value.stop, value.step]
        if isinstance(value, type):
            return "class", [self._class(value)]
        if isinstance(value, enum.Enum):
            return "enum", [self._class(kind), self.encode(value.value)]
        if isinstance(value, tuple):
            return "named", [self._class(kind), *map(self.encode, value)]
        self._check_class(kind)
        state = _state(value)
        return "record", [self._class(kind, list(state)), *map(self.encode, state.values())]

    def _pairs(self, value: dict[Any, Any]) -> list[Any]:
        return [self.encode(item) for pair in value.items() for item in pair]

    def _check_class(self, kind: type) -> None:
        if not _is_record(kind):
            raise EncodeError(f"{kind.__module__}.{kind.__qualname__} is no record")

    def _class(self, kind: type, fields: list[str] | None = None) -> int:
        self._check_class(kind)
        if kind not in self.classes:
            self.classes[kind] = len(self.listed)
            self.listed.append(_Class(kind.__module__, kind.__qualname__, fields))
        number = self.classes[kind]
        if fields is not None and self.listed[number].fields != fields:
            # Two records of one class that were given their fields in another order, or of which
            # one has a field that the other has not yet.
            number = len(self.listed)
            self.listed.append(_Class(kind.__module__, kind.__qualname__, fields))
        return number


def encode(value: object, parts: Mapping[str, object]) -> bytes:
    """`value` as bytes. `parts` are in it, and stay outside: the document has their names.

    EncodeError: there is something that is no plain data.
    """
    encoder = _Encoder({id(part): name for name, part in parts.items()})
    root = encoder.encode(value)
    return msgspec.msgpack.encode(_Document(encoder.listed, encoder.objects, root))


def _big(value: int) -> msgspec.msgpack.Ext:
    size = value.bit_length() // 8 + 1
    return msgspec.msgpack.Ext(BIG, value.to_bytes(size, "little", signed=True))


class _Decoder:
    def __init__(self, document: _Document, parts: Mapping[str, object]) -> None:
        self.parts, self.objects = parts, document.objects
        self.listed = document.classes
        self.classes = [_find(listed) for listed in document.classes]
        self.made: dict[int, Any] = {}
        self.depth = 0

    def decode(self, value: Any) -> Any:
        if not isinstance(value, msgspec.msgpack.Ext):
            if isinstance(value, list | dict):
                raise DecodeError("a container stands where a reference is wanted")
            return value
        if value.code == BIG:
            return int.from_bytes(value.data, "little", signed=True)
        number = int.from_bytes(value.data, "little")
        if number not in self.made:
            self.depth += 1
            if self.depth > DEEPEST:
                raise DecodeError("values are too deep within values")
            self._make(number, *self.objects[number])
            self.depth -= 1
        return self.made[number]

    def _make(self, number: int, kind: str, items: list[Any]) -> None:
        if kind == "part":
            self.made[number] = self.parts[items[0]]
        elif kind in MADE_AT_ONCE:
            self.made[number] = MADE_AT_ONCE[kind](self._all(items))
        elif kind == "list":
            self.made[number] = made = []
            made += self._all(items)
        elif kind == "set":
            self.made[number] = set(self._all(items))
        elif kind == "bytearray":
            self.made[number] = bytearray(items[0])
        elif kind == "deque":
            self.made[number] = queue = deque[Any](maxlen=items[0])
            queue.extend(self._all(items[1:]))
        elif kind == "dict":
            self.made[number] = {}
            self._fill(self.made[number], items)
        elif kind == "defaultdict":
            self.made[number] = defaultdict(self.classes[items[0]])
            self._fill(self.made[number], items[1:])
        elif kind == "class":
            self.made[number] = self.classes[items[0]]
        elif kind in VALUES:
            of, *values = items
            if not issubclass(self.classes[of], VALUES[kind]):
                raise DecodeError(f"{self.classes[of].__name__} is of another kind")
            self.made[number] = self.classes[of](*self._all(values))
        elif kind == "record":
            self._make_record(number, items)
        else:
            raise DecodeError(f"there is no kind {kind!r}")

    def _make_record(self, number: int, items: list[Any]) -> None:
        of, *values = items
        kind, fields = self.classes[of], self.listed[of].fields or []
        self.made[number] = made = kind.__new__(kind)
        state = dict(zip(fields, self._all(values), strict=True))
        _check_fields(kind, state)
        if hasattr(made, "__dict__"):
            set_state = getattr(made, "__setstate__", vars(made).update)
            set_state(state)
        else:
            for name, value in state.items():
                object.__setattr__(made, name, value)

    def _fill(self, made: dict[Any, Any], items: list[Any]) -> None:
        pairs = iter(self._all(items))
        made.update(zip(pairs, pairs, strict=True))

    def _all(self, items: list[Any]) -> list[Any]:
        return [self.decode(item) for item in items]


def _find(listed: _Class) -> type[Any]:
    """The class of a record; DecodeError if there is none, or none that may be in a document."""
    if not any(listed.module == one or listed.module.startswith(f"{one}.") for one in RECORDS):
        raise DecodeError(f"{listed.module} has no records")
    try:
        found = getattr(importlib.import_module(listed.module), listed.name)
    except (ImportError, AttributeError):
        raise DecodeError(f"there is no {listed.module}.{listed.name}") from None
    if not isinstance(found, type) or found.__module__ != listed.module:
        raise DecodeError(f"{listed.module}.{listed.name} is no record")
    if (
        listed.fields is None
        and not issubclass(found, enum.Enum | tuple)
        and not (dataclasses.is_dataclass(found))
    ):
        raise DecodeError(f"{listed.module}.{listed.name} is no record")
    return found


def _check_fields(kind: type, state: dict[str, Any]) -> None:
    """DecodeError if a record of dataclass `kind` has other fields now."""
    if dataclasses.is_dataclass(kind):
        known = {field.name for field in dataclasses.fields(kind)}
        if known != set(state):
            differ = ", ".join(sorted(known ^ set(state)))
            raise DecodeError(f"{kind.__name__} is of another version: {differ}")


def decode(data: bytes, parts: Mapping[str, object], kind: type[T]) -> T:
    """What `encode` was given, with `parts` in their places; it must be of class `kind`.

    DecodeError: the bytes are no such document, or of another version of the records.
    """
    try:
        document = msgspec.msgpack.decode(data, type=_Document)
        value = _Decoder(document, parts).decode(document.root)
    except (
        msgspec.MsgspecError, LookupError, TypeError, ValueError, AttributeError, RecursionError,
    ) as error:  # fmt: skip
        if isinstance(error, DecodeError):
            raise
        raise DecodeError(f"this is no document: {error}") from None
    if not isinstance(value, kind):
        raise DecodeError(f"this is a {type(value).__name__}, and no {kind.__name__}")
    return value
