"""A caller's mistakes, found by the annotations of a method before the guest hears of the call."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache, wraps
from types import UnionType
from typing import Annotated, Any, Final, ParamSpec, TypeVar, Union, get_args, get_origin
from typing import get_type_hints as type_hints

from xenemu.errors import UsageError
from xenemu.options import MAX_SECONDS
from xenemu.records import dataclass

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True)
class Means:
    """What a value has to be beyond its type, and the words for it."""

    words: str
    holds: Callable[[Any], bool]


def _encodes(text: str) -> bool:
    try:
        return bool(text.encode()) or not text
    except UnicodeEncodeError:
        return False


Text = Annotated[str, Means("a string, which UTF-8 has bytes for", _encodes)]
Seconds = Annotated[
    float, Means(f"seconds, above 0 and up to {MAX_SECONDS}", lambda s: 0 < s <= MAX_SECONDS)
]
Wait = Annotated[float, Means(f"seconds, from 0 to {MAX_SECONDS}", lambda s: 0 <= s <= MAX_SECONDS)]
Plain = Text | int | float | bool | None
WORDS: Final = {str: "a string", int: "a number", float: "a number", bool: "True or False"}


def checked(method: Callable[P, R]) -> Callable[P, R]:
    """Have a method raise UsageError, in one line, for an argument that its annotation forbids."""
    signature = inspect.signature(method)

    @cache
    def hints() -> dict[str, Any]:  # when all names that they use are there
        return type_hints(method, include_extras=True)

    @wraps(method)
    def check(*args: P.args, **kwargs: P.kwargs) -> R:
        __tracebackhide__ = True
        for name, value in signature.bind(*args, **kwargs).arguments.items():
            is_many = signature.parameters[name].kind is inspect.Parameter.VAR_KEYWORD
            for each, one in value.items() if is_many else [(name, value)]:
                if name in hints() and not _fits(one, hints()[name]):
                    wanted = _wanted(hints()[name])
                    what = repr(one)[:80]
                    raise UsageError(f"{method.__name__}: {each} is {what}: give {wanted}")
        return method(*args, **kwargs)

    return check


def _fits(value: object, hint: Any) -> bool:
    if get_origin(hint) in (Union, UnionType):
        return any(_fits(value, each) for each in get_args(hint))
    if get_origin(hint) is Annotated:
        kind, means = get_args(hint)
        return _fits(value, kind) and bool(means.holds(value))
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return isinstance(value, hint) and (hint is bool or not isinstance(value, bool))


def _wanted(hint: Any) -> str:
    if get_origin(hint) in (Union, UnionType):
        kinds = [each for each in get_args(hint) if each is not type(None)]
        return " or ".join(dict.fromkeys(_wanted(each) for each in kinds))
    if get_origin(hint) is Annotated:
        return str(get_args(hint)[1].words)
    return WORDS.get(hint, f"a {hint.__name__}")
