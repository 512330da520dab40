"""Dataclasses whose methods are compiled when that pays.

Python's own `dataclass` writes a class's methods as text, and compiles them as the class is made:
half a millisecond for each class. A run imports some two hundred of them, makes few instances of
most, and calls `__repr__` or `__eq__` of hardly any. So here each method is a stub at first. When
it is called, it has Python's `dataclass` compile this one method, which then takes its place. The
stub of `__init__` fills the first instances by itself.

All else is as Python's: fields, defaults, `__post_init__`, `replace`, comparisons, what a frozen
one refuses. Classes with slots, an order, keywords only or an `InitVar` use Python's own.
"""

from __future__ import annotations

import dataclasses
from dataclasses import MISSING, Field
from typing import TYPE_CHECKING, Any, Final

__all__ = ["dataclass"]

if TYPE_CHECKING:
    from dataclasses import dataclass
else:

    def dataclass(cls=None, /, *, frozen=False, eq=True):
        """As `dataclasses.dataclass`, but for what this module's docstring says."""
        if cls is None:
            return lambda made: _prepare(made, frozen, eq)
        return _prepare(cls, frozen, eq)


FILLED: Final = 40  # so many instances cost less without a compiled __init__ than it does


def _prepare(cls: Any, frozen: bool, eq: bool) -> Any:
    dataclasses.dataclass(init=False, repr=False, eq=False)(cls)
    own = dict(cls.__dict__)
    names = ["__repr__", "__eq__"] if eq else ["__repr__"]
    if eq and own.get("__hash__") is None:  # Python sets None beside an __eq__ of the class's own
        names += ["__hash__"] if frozen else []
        cls.__hash__ = None
        own.pop("__hash__", None)
    for name in names:
        if name not in own:
            _put_off(cls, name)
    if "__init__" not in own:
        _put_off_init(cls, frozen)
    if frozen:
        _freeze(cls)
    return cls


def _put_off(cls: Any, name: str) -> None:
    """Give the class a method that has itself compiled when it is first called."""

    def stub(self: Any, *args: Any) -> Any:
        method = _compiled(cls, name)
        setattr(cls, name, method)
        return method(self, *args)

    _add(cls, name, stub)


def _put_off_init(cls: Any, frozen: bool) -> None:
    """Give the class an `__init__` that has itself compiled once there are many instances."""
    fields, fill = dataclasses.fields(cls), object.__setattr__ if frozen else setattr
    goes_on = hasattr(cls, "__post_init__")
    left = FILLED

    def stub(self: Any, *args: Any, **named: Any) -> None:
        nonlocal left
        left -= 1
        values = None if left < 0 else _values(fields, args, named)
        if values is None:
            method = _compiled(cls, "__init__", frozen)
            cls.__init__ = method
            method(self, *args, **named)
            return
        for name, value in values.items():
            fill(self, name, value)
        if goes_on:
            self.__post_init__()

    _add(cls, "__init__", stub)


def _add(cls: Any, name: str, method: Any) -> None:
    method.__name__, method.__qualname__ = name, f"{cls.__qualname__}.{name}"
    setattr(cls, name, method)


def _values(
    fields: tuple[Field[Any], ...], args: tuple[Any, ...], named: dict[str, Any]
) -> dict[str, Any] | None:
    """What to set; None if the arguments are wrong, which a compiled method says best."""
    values, places, taken = {}, iter(args), 0
    for field in fields:
        name = field.name
        if not field.init:
            if field.default_factory is not MISSING:
                values[name] = field.default_factory()
            continue
        for value in places:
            values[name] = value
            break
        else:
            if name in named:
                values[name] = named[name]
                taken += 1
            elif field.default is not MISSING:
                values[name] = field.default
            elif field.default_factory is not MISSING:
                values[name] = field.default_factory()
            else:
                return None
    return values if taken == len(named) and next(places, MISSING) is MISSING else None


def _compiled(cls: Any, name: str, frozen: bool = False) -> Any:
    """The method `name`, taken from a class that has the same fields and only this method."""
    twin = dataclasses.make_dataclass(
        cls.__qualname__,
        [(field.name, field.type, field) for field in dataclasses.fields(cls)],
        namespace={"__post_init__": None} if hasattr(cls, "__post_init__") else {},
        init=name == "__init__",
        repr=name == "__repr__",
        eq=name == "__eq__",
        unsafe_hash=name == "__hash__",
        frozen=frozen,
    )
    return twin.__dict__[name]


def _freeze(cls: type) -> None:
    """Refuse to change fields, as a frozen dataclass does."""
    names = {field.name for field in dataclasses.fields(cls)}

    def set_field(self: Any, name: str, value: Any) -> None:
        if type(self) is cls or name in names:
            raise dataclasses.FrozenInstanceError(f"cannot assign to field {name!r}")
        super(cls, self).__setattr__(name, value)  # type: ignore[arg-type]

    def delete_field(self: Any, name: str) -> None:
        if type(self) is cls or name in names:
            raise dataclasses.FrozenInstanceError(f"cannot delete field {name!r}")
        super(cls, self).__delattr__(name)  # type: ignore[arg-type]

    _add(cls, "__setattr__", set_field)
    _add(cls, "__delattr__", delete_field)
