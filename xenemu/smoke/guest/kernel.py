"""A Linux by its own types (BTF), as a program has it: ``guest.kernel["init_task"].comm``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from xenemu.errors import NoSuchName, UsageError
from xenemu.kernel import LoadedModule, Task
from xenemu.linux import LogLine
from xenemu.smoke.guest.memory import Ask
from xenemu.smoke.guest.messages import Log, Members, Modules, Tasks, Thing


class Damaged(UsageError):
    """A list of the kernel's is damaged: `found` is what it has up to there."""

    def __init__(self, sentence: str, found: Sequence[Any] = ()) -> None:
        super().__init__(sentence)
        self.found = list(found)


class Unchangeable(UsageError, AttributeError):
    """An object of the kernel's is looked at: its members cannot be assigned to."""


class Enumerator(int):
    """A value of an enumeration, with its `name` (empty if the enumeration has none for it)."""

    name: str

    def __new__(cls, value: int, name: str) -> Enumerator:
        """Make one."""
        made = super().__new__(cls, value)
        made.name = name
        return made

    def __repr__(self) -> str:
        return self.name or super().__repr__()


class Object:
    """Something of the kernel's that has parts: a struct, an array or a pointer.

    A member is an attribute; it goes through pointers, too. `object["name"]` is the same, for names
    that Python or this class has taken. An element is `object[3]`. Numbers and text come as
    Python's; all else is an `Object` again. Nothing is kept: each question is about the guest as it
    is then.
    """

    _ask: Ask
    _thing: Thing

    def __init__(self, ask: Ask, thing: Thing) -> None:
        vars(self).update(_ask=ask, _thing=thing)

    @property
    def type_(self) -> str:
        """Its type, as C has it: ``struct task_struct``."""
        return self._thing.spelling

    @property
    def address_(self) -> int:
        """Where it is."""
        return self._thing.address

    @property
    def size_(self) -> int:
        """How many bytes it takes."""
        return self._thing.size

    def __getattr__(self, name: str) -> Any:
        """A member: NoSuchName, an AttributeError, if there is none; Unmapped."""
        if name.startswith("__") and name.endswith("__"):
            raise AttributeError(name)  # Python's own questions, as by `copy`
        return self[name]

    def __getitem__(self, step: str | int) -> Any:
        """A member by its name, or an element by its number."""
        thing = self._thing
        return _value(self._ask, self._ask("step", thing.type, thing.address, step))

    def __setattr__(self, name: str, value: object) -> None:
        """Refuse: an AttributeError that says where the member is, for ``guest.memory.write``."""
        self[name] = value

    def __setitem__(self, step: str | int, value: object) -> None:
        """Refuse, as for a member."""
        thing = self._thing
        found: Thing = self._ask("step", thing.type, thing.address, step)
        raise Unchangeable(
            f"{self.type_} can be read only: to change {step}, write its bytes, as"
            f" guest.memory.write({found.address:#x}, DATA)"
        )

    def __len__(self) -> int:
        if self._thing.length is None:
            raise TypeError(f"{self.type_} has no length")
        return self._thing.length

    def __bool__(self) -> bool:
        """Whether it is anything but a NULL pointer."""
        return self._thing.pointer != 0

    def __iter__(self) -> Iterator[Any]:
        """The elements of an array."""
        return (self[number] for number in range(len(self)))

    def __int__(self) -> int:
        """Where a pointer leads to."""
        if self._thing.pointer is None:
            raise TypeError(f"{self.type_} is no number")
        return self._thing.pointer

    __index__ = __int__

    def __eq__(self, other: object) -> bool:
        """Whether both are the same object, or lead to it."""
        if not isinstance(other, Object):
            return NotImplemented
        return self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)

    @property
    def _key(self) -> tuple[str, int]:
        pointer = self._thing.pointer
        if pointer is None:
            return self.type_, self.address_
        return self.type_.removesuffix("*").rstrip(), pointer

    def __dir__(self) -> list[str]:
        """For completion in notebooks: its members."""
        thing = self._thing
        found: Members = self._ask("members", thing.type, thing.address)
        return [*super().__dir__(), *found.names]

    def __repr__(self) -> str:
        pointer = self._thing.pointer
        where = self.address_ if pointer is None else pointer
        return f"<{self.type_} {where:#x}>"

    def __str__(self) -> str:
        """All that is in it, as ``monitor print`` shows it."""
        return str(self._ask("show", self._thing.type, self._thing.address))


def _value(ask: Ask, thing: Thing) -> Any:
    if thing.enumerator:
        return Enumerator(int(thing.plain or 0), thing.enumerator)
    return Object(ask, thing) if thing.plain is None else thing.plain


class KernelView:
    """The guest's kernel, if it is a Linux with BTF. UsageError says why there is no answer."""

    def __init__(self, ask: Ask) -> None:
        self._ask = ask

    def __getitem__(self, path: str) -> Any:
        """A variable, or what a path leads to: ``init_task``, ``init_task.comm``.

        NoSuchName, a KeyError, if the kernel has none of that name; UsageError if nothing says of
        which type it is: then say ``TYPE NAME``.
        """
        return _value(self._ask, self._ask("find", str(path), None))

    def at(self, type: str, address: int) -> Any:
        """What is at an address, which has a type: ``at("task_struct", task.address)``."""
        return self[f"{type} {int(address):#x}"]

    def per_cpu(self, name: str, vcpu: int) -> Any:
        """A variable that each vcpu has: ``per_cpu("runqueues", 1)``; a path may follow."""
        return _value(self._ask, self._ask("find", str(name), int(vcpu)))

    def tasks(self) -> list[Task]:
        """All threads, as `Task`; Damaged."""
        found: Tasks = self._ask("tasks")
        if found.trouble:
            raise Damaged(found.trouble, found.found)
        return found.found

    def modules(self) -> list[LoadedModule]:
        """The modules that are loaded, the newest first; Damaged."""
        found: Modules = self._ask("modules")
        if found.trouble:
            raise Damaged(found.trouble, found.found)
        return found.found

    def log(self) -> list[LogLine]:
        """The kernel's log, as `dmesg` shows it, the oldest line first. It needs no BTF."""
        found: Log = self._ask("log")
        return found.lines

    def __contains__(self, path: object) -> bool:
        try:
            return isinstance(path, str) and self[path] is not None
        except NoSuchName:
            return False
