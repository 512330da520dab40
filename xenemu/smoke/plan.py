"""What to boot: a TOML file of ``[[boot]]`` tables, read and checked as a whole.

``kernel``, ``entry``, ``cmdline``, ``memory``, ``vcpus`` and ``schedule_seed`` may each be a list.
A table then stands for each combination, named after what varies. ``[defaults]`` has keys for every
table. A table's own initial ramdisk takes the place of the defaults', in whichever way each is
given. Paths are relative to the file. They may begin with ``~``, and may have environment variables
in them. An empty path means none.

The first fault raises `PlanError` with the file, the line and the key, before anything has run.
"""

from __future__ import annotations

import difflib
import io
import itertools
import json
import math
import os
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from xenemu.boot import AUTO, MODES
from xenemu.disks import parse_disk
from xenemu.errors import UsageError
from xenemu.hv.state.schedule import SHARED_SLICE_NS
from xenemu.network.asked import parse_net
from xenemu.options import (
    MAX_SECONDS,
    MAX_SEED,
    check_maxvcpus,
    check_vcpus,
    parse_memory,
    parse_pattern,
    parse_slice,
)
from xenemu.shares import parse_share
from xenemu.smoke.verdict import Verdict

STEP: Final = ("pattern", "send")
VARIED: Final = ("kernel", "mode", "entry", "cmdline", "memory", "vcpus", "schedule_seed")
SAME: Final = {"mode": "entry", "entry": "mode"}  # two names of one key
SHOWN: Final = {"vcpus": "{}vcpu", "schedule_seed": "seed{}"}  # how a value stands in a name
ENDS: Final = (
    "poweroff",
    "reboot",
    "suspend",
    *(v.value for v in Verdict if v not in (Verdict.SKIPPED, Verdict.PASS)),
)
BARE: Final = re.compile(
    r"""\s*([\w-]+)\s*=\s*(?=[^#]*[A-Za-z/])([^\s"'\[{#][^"'#]*?)\s*(?:#.*)?"""
)
UNCLOSED: Final = "a string has no quote at its end"
PLAINER: Final = {  # than tomllib's words
    "Cannot overwrite a value": "the key is there already",
    "Unescaped '\\' in a string": (
        r"in double quotes, \ begins an escape: write regular expressions in single quotes, '\S+'"
    ),
}
MADE: Final = ("init", "rootfs")  # of which an initramfs is made, in the place of an initrd


@dataclass(frozen=True)
class Place:
    """A line of a plan; None is the whole file."""

    file: str
    line: int | None = None

    def __str__(self) -> str:
        return f"{self.file}:{self.line}" if self.line else self.file


class PlanError(UsageError):
    """A plan is wrong: `problem`, and the `place`."""

    def __init__(self, place: Place, problem: str) -> None:
        super().__init__(f"{place}: {problem}")
        self.place = place
        self.problem = problem


@dataclass(frozen=True)
class Step:
    """A regular expression that the console must meet, and what is then typed."""

    pattern: str
    send: str = ""


@dataclass(frozen=True)
class Boot:
    """One boot. Times are seconds: `timeout` the host's, the other two the guest's own."""

    name: str
    kernel: Path
    mode: str = AUTO
    cmdline: str = ""
    memory: int = 256 << 20  # bytes
    vcpus: int = 1
    maxvcpus: int | None = None
    initrd: Path | None = None
    init: Path | None = None
    rootfs: Path | None = None
    busybox: Path | None = None
    module: tuple[str, ...] = ()
    disk: tuple[str, ...] = ()
    share: tuple[str, ...] = ()
    efi_root: Path | None = None
    net: tuple[str, ...] = ()
    environment: tuple[tuple[str, str], ...] = ()
    input: str = ""
    expect: tuple[Step, ...] = ()
    reject: tuple[str, ...] = ()
    exit: tuple[str, ...] = ()
    tolerate: tuple[Verdict, ...] = ()
    rng_seed: int = 0
    slice: int = SHARED_SLICE_NS
    schedule_seed: int | None = None
    timeout: float = 300.0
    virtual_timeout: float = math.inf
    quiet_timeout: float = 20.0
    # No keys of a plan:
    place: Place | None = field(default=None, compare=False)  # its table there
    covered: bool = False  # somebody wants to know what ran
    covered_by_vcpu: bool = False  # and which vcpu ran it

    def __str__(self) -> str:
        return self.name

    @property
    def full_cmdline(self) -> str:
        """The command line with the environment, which Linux hands to init."""
        variables = (f'"{k}={v}"' if " " in v else f"{k}={v}" for k, v in self.environment)
        return " ".join(filter(None, (self.cmdline, *variables)))

    @property
    def slug(self) -> str:
        """The name as a file's."""
        return re.sub(r"[^\w.+-]+", "-", self.name).strip("-.") or "boot"


def load_plan(path: Path | str) -> list[Boot]:
    """Read a plan; PlanError says what is wrong, and where."""
    path = Path(path)
    file = Place(str(path))
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise PlanError(file, str(error.strerror)) from None
    except UnicodeDecodeError:
        raise PlanError(file, "not UTF-8, so no TOML") from None
    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise _toml_error(file.file, text, str(error)) from None
    return _Reader(path.parent, file.file, text).boots(tables)


def make_boots(
    table: Mapping[str, Any], folder: Path | None = None, spell: Callable[[str], str] = str
) -> list[Boot]:
    """The boots that one table stands for, as a plan's would.

    UsageError begins with the key that is wrong, as `spell` has it.
    """
    return _Reader(folder or Path(), spell=spell).boots({"boot": [dict(table)]})


def _toml_error(file: str, text: str, problem: str) -> PlanError:
    if re.match("Expected \"'|Unterminated string", problem):
        *_, (number, _) = _statements(text)
        return PlanError(Place(file, number), UNCLOSED)
    found = re.fullmatch(r"(.*) \(at line (\d+), column \d+\)", problem)
    if not found:
        return PlanError(Place(file), problem)
    number = int(found[2])
    if found[1] == "Illegal character '\\n'":
        return PlanError(Place(file, number), UNCLOSED)
    bare = BARE.fullmatch(text.split("\n")[number - 1])
    if bare:
        wanted = json.dumps(bare[2], ensure_ascii=False)
        return PlanError(Place(file, number), f"strings want quotes: {bare[1]} = {wanted}")
    return PlanError(Place(file, number), PLAINER.get(found[1], found[1]))


class _Reader:
    """Turns tables into boots; knows where each key stands."""

    def __init__(
        self, folder: Path, file: str = "", text: str = "", spell: Callable[[str], str] = str
    ) -> None:
        self.folder, self.file, self.text, self.spell = folder, file, text, spell
        self.lines = list(_boot_lines(text))

    def boots(self, tables: dict[str, Any]) -> list[Boot]:
        for key in tables:
            if key not in ("boot", "defaults"):
                raise self.error((key,), "unknown; a plan has [[boot]] and [defaults]")
        defaults, boots = tables.get("defaults", {}), tables.get("boot", [])
        if not isinstance(defaults, dict):
            raise self.error(("defaults",), "give a table: [defaults]")
        if not isinstance(boots, list) or not all(isinstance(boot, dict) for boot in boots):
            raise self.error(("boot",), "give tables: [[boot]]")
        if not boots:
            raise PlanError(Place(self.file), "there is no [[boot]]")
        self.check_keys(defaults, ("defaults",), {"name"})
        self.merge({}, defaults, ("defaults",))
        found: dict[str, Boot] = {}  # by the name of their files
        for index, table in enumerate(boots):
            place = ("boot", index)
            self.check_keys(table, place, set())
            for boot in self.combinations(*self.merge(defaults, table, place), place):
                other = found.setdefault(boot.slug, boot)
                if other is not boot:
                    if not self.file:  # where boots have no names of their own
                        problem = f"two would be named {other.name!r}; a plan can name each"
                        raise self.error(("kernel",), problem)
                    raise self.error((*place, "name"), f"another boot is named {other.name!r}")
        return list(found.values())

    def check_keys(self, table: dict[str, Any], place: tuple[Any, ...], barred: set[str]) -> None:
        known = [key for key in READERS if key not in barred]
        for key in table:
            if key not in known:
                raise self.error((*place, key), _unknown(key, known))

    def merge(
        self, defaults: dict[str, Any], table: dict[str, Any], place: tuple[Any, ...]
    ) -> tuple[dict[str, Any], dict[str, tuple[Any, ...]]]:
        """A table with what the defaults add to it, and where each key stands."""
        made = [key for key in MADE if table.get(key)]
        if made and table.get("initrd"):
            line = _line(self.text, (*place, "initrd"))
            other = f"{self.spell('initrd')}{f' in line {line}' if line else ''}"
            raise self.error((*place, made[0]), f"{other} says another; give one of the two")
        if "mode" in table and "entry" in table:
            raise self.error((*place, "entry"), "mode says the same; give one of the two")
        replaced = {"initrd"} if any(key in table for key in MADE) else set()
        replaced |= set(MADE) if "initrd" in table else set()
        replaced |= {other for key, other in SAME.items() if key in table}
        added = {key: value for key, value in defaults.items() if key not in replaced}
        where = dict.fromkeys(added, ("defaults",)) | dict.fromkeys(table, place)
        return added | table, where

    def combinations(
        self, table: dict[str, Any], where: dict[str, tuple[Any, ...]], place: tuple[Any, ...]
    ) -> Iterator[Boot]:
        if "kernel" not in table:
            raise self.error(place, "kernel is missing")
        lists = {key: table[key] for key in VARIED if key in table and isinstance(table[key], list)}
        for key, values in lists.items():
            if not values:
                raise self.error((*where[key], key), "the list is empty")
            if again := next((value for i, value in enumerate(values) if value in values[:i]), ""):
                raise self.error((*where[key], key), f"{again!r} is there twice")
        for values in itertools.product(*lists.values()):
            one = table | dict(zip(lists, values, strict=True))
            known = {key: self.value(key, value, (*where[key], key)) for key, value in one.items()}
            if "maxvcpus" in known:
                self.check_maxvcpus(known, (*where["maxvcpus"], "maxvcpus"))
            known["name"] = self.name(known, one, [k for k, v in lists.items() if len(v) > 1])
            if "entry" in known:
                known["mode"] = known.pop("entry")
            stands = Place(self.file, self.lines[place[1]]) if self.file else None
            yield Boot(**known, place=stands)

    def check_maxvcpus(self, known: dict[str, Any], place: tuple[Any, ...]) -> None:
        try:
            check_maxvcpus(known["maxvcpus"], known.get("vcpus", 1), str(known["maxvcpus"]))
        except UsageError as error:
            raise self.error(place, str(error)) from None

    def name(self, known: dict[str, Any], table: dict[str, Any], varied: list[str]) -> str:
        """What a combination is called: its name, if it has one, and all that varies."""
        wanted = varied if "name" in known else ["kernel", *varied]
        values = table | {"kernel": known["kernel"].name}
        parts = [SHOWN.get(key, "{}").format(values[key]) for key in VARIED if key in wanted]
        return " ".join([known.get("name", ""), *parts]).strip()

    def value(self, key: str, value: Any, place: tuple[Any, ...]) -> Any:
        try:
            return READERS[key](self, value)
        except ValueError as error:
            raise self.error(place, str(error)) from None
        except UsageError as error:
            raise self.error(place, str(error).removeprefix(f"{key} ")) from None

    def maybe_file(self, value: Any) -> Path | None:
        return None if value == "" else self.file_of(value)

    def maybe_directory(self, value: Any) -> Path | None:
        return None if value == "" else self.directory_of(value)

    def path(self, value: Any) -> Path:
        text = os.path.expanduser(os.path.expandvars(_string(value)))
        if "$" in text:
            raise ValueError(f"{text}: the environment variable is not set")
        path = self.folder / text
        if not path.exists():
            raise ValueError(f"{path}: there is no such file")
        if not os.access(path, os.R_OK):
            raise ValueError(f"{path}: may not be read")
        return path

    def file_of(self, value: Any) -> Path:
        path = self.path(value)
        if path.is_dir():
            raise ValueError(f"{path}: a directory, where a file is wanted")
        return path

    def directory_of(self, value: Any) -> Path:
        path = self.path(value)
        if not path.is_dir():
            raise ValueError(f"{path}: not a directory")
        return path

    def modules(self, value: Any) -> tuple[str, ...]:
        found = []
        for text in _strings(value):
            path, equals, cmdline = text.partition("=")
            found.append(f"{self.file_of(path)}{equals}{cmdline}")
        return tuple(found)

    def disks(self, value: Any) -> tuple[str, ...]:
        found = []
        for text in _strings(value):
            spec = parse_disk("disk", text)
            words = text.split(",")[1:]
            if spec.overlay is not None:
                place = f"overlay={self.folder / spec.overlay}"
                words = [place if word.startswith("overlay=") else word for word in words]
            found.append(",".join((str(self.file_of(str(spec.path))), *words)))
        return tuple(found)

    def shares(self, value: Any) -> tuple[str, ...]:
        found = []
        for text in _strings(value):
            path, comma, words = text.partition(",")
            parse_share("share", text)
            found.append(f"{self.directory_of(path)}{comma}{words}")
        return tuple(found)

    def nets(self, value: Any) -> tuple[str, ...]:
        return tuple(parse_net("net", text, self.folder).text for text in _strings(value))

    def error(self, place: tuple[Any, ...], problem: str) -> UsageError:
        """An error about what stands at `place`, such as ``("boot", 2, "timeout")``."""
        key = next((part for part in reversed(place) if isinstance(part, str)), "")
        if not self.file:
            return UsageError(f"{self.spell(key)}: {problem}")
        return PlanError(Place(self.file, _line(self.text, place)), f"{key}: {problem}")


def _line(text: str, place: tuple[Any, ...]) -> int | None:
    """The line on which the statement begins that gives `place` a value.

    tomllib does not tell. But a beginning of the file that is itself TOML either has `place` or
    does not. The first beginning that has it ends with that statement.
    """
    lines, start = list(io.StringIO(text)), 1
    for end in range(1, len(lines) + 1):
        try:
            value: Any = tomllib.loads("".join(lines[:end]))
        except tomllib.TOMLDecodeError:
            continue  # inside a value of several lines
        try:
            for part in place:
                value = value[part]
        except (KeyError, IndexError, TypeError):
            start = end + 1
        else:
            return start
    return None


def _boot_lines(text: str) -> Iterator[int]:
    """The line on which each boot begins."""
    for start, statement in _statements(text):
        tables = statement.get("boot")
        yield from (start for _ in tables) if isinstance(tables, list) else ()


def _statements(text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """The line on which each statement begins, and what it says; nothing for one without an end.

    The lines from the end of a statement that are TOML are the next statement.
    """
    statement, start = "", 1
    for end, line in enumerate(io.StringIO(text), 1):
        statement += line
        try:
            said = tomllib.loads(statement)
        except tomllib.TOMLDecodeError:
            continue  # inside a value of several lines
        yield start, said
        statement, start = "", end + 1
    if statement:
        yield start, {}


def _unknown(key: str, known: Sequence[str]) -> str:
    meant = difflib.get_close_matches(key, known, 1)
    hint = f"did you mean {meant[0]}? There" if meant else "there"
    return f"unknown key; {hint} are {', '.join(known)}"


def _string(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("give a string")
    if "\0" in value:
        raise ValueError("a string cannot have a NUL in it")
    return value


def _strings(value: Any) -> tuple[str, ...]:
    """A string, or a list of some."""
    values = value if isinstance(value, list) else [value]
    if not all(isinstance(one, str) for one in values):
        raise ValueError("give a string, or a list of strings")
    return tuple(_string(one) for one in values)


def _regex(value: Any) -> str:
    return parse_pattern(_string(value)).pattern


def _step(value: Any) -> Step:
    if not isinstance(value, dict):
        return Step(_regex(value))
    for key in value:
        if key not in STEP:
            raise ValueError(f"{key}: {_unknown(key, STEP)}")
    if "pattern" not in value:
        raise ValueError(
            'give a table with pattern and, maybe, send: {pattern = "...", send = "..."}'
        )
    return Step(_regex(value["pattern"]), _string(value.get("send", "")))


def _steps(value: Any) -> tuple[Step, ...]:
    return tuple(_step(one) for one in (value if isinstance(value, list) else [value]))


def _seconds(value: Any) -> float:
    good = isinstance(value, int | float) and not isinstance(value, bool)
    if not good or not 0 < value <= MAX_SECONDS:
        raise ValueError(f"{value!r}: give seconds, above 0 and up to {MAX_SECONDS}")
    return float(value)


def _seed(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= MAX_SEED:
        raise ValueError(f"{value!r}: give a number from 0 to {MAX_SEED:#x}")
    return value


def _vcpus(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError(f"{value!r}: give a number")
    return check_vcpus(value, str(value))


def _slice(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise ValueError('give a time, as in 500, "20us" or "1ms"')
    return parse_slice("slice", str(value))


def _choice(value: Any, known: tuple[str, ...]) -> str:
    if value not in known:
        raise ValueError(f"{value!r}: give one of {', '.join(known)}")
    return str(value)


def _ends(value: Any) -> tuple[str, ...]:
    return tuple(_choice(one, ENDS) for one in _strings(value))


def _tolerated(value: Any) -> tuple[Verdict, ...]:
    known = tuple(verdict.value for verdict in Verdict if verdict.is_kernels_own)
    return tuple(Verdict(_choice(one, known)) for one in _strings(value))


def _environment(value: Any) -> tuple[tuple[str, str], ...]:
    if not isinstance(value, dict):
        raise ValueError('give a table: {NAME = "value"}')
    for name, text in value.items():
        if not re.fullmatch(r"[A-Za-z_]\w*", name, re.ASCII):
            raise ValueError(f"{name!r} is no variable's name")
        if not isinstance(text, str) or set(text) & {'"', "\n", "\0"}:
            raise ValueError(f"{name}: give a string without quotes and line ends")
    return tuple(value.items())


READERS: Final[Mapping[str, Callable[[_Reader, Any], Any]]] = {
    "name": lambda reader, value: _string(value),
    "kernel": _Reader.file_of,
    "mode": lambda reader, value: _choice(value, MODES),
    "entry": lambda reader, value: _choice(value, MODES),
    "cmdline": lambda reader, value: _string(value),
    "memory": lambda reader, value: parse_memory("memory", _string(value)),
    "vcpus": lambda reader, value: _vcpus(value),
    "maxvcpus": lambda reader, value: _vcpus(value),
    "initrd": _Reader.maybe_file,
    "init": _Reader.maybe_file,
    "rootfs": _Reader.maybe_directory,
    "busybox": _Reader.maybe_file,
    "module": _Reader.modules,
    "disk": _Reader.disks,
    "share": _Reader.shares,
    "efi_root": _Reader.maybe_directory,
    "net": _Reader.nets,
    "environment": lambda reader, value: _environment(value),
    "input": lambda reader, value: _string(value),
    "expect": lambda reader, value: _steps(value),
    "reject": lambda reader, value: tuple(_regex(one) for one in _strings(value)),
    "exit": lambda reader, value: _ends(value),
    "tolerate": lambda reader, value: _tolerated(value),
    "rng_seed": lambda reader, value: _seed(value),
    "slice": lambda reader, value: _slice(value),
    "schedule_seed": lambda reader, value: _seed(value),
    "timeout": lambda reader, value: _seconds(value),
    "virtual_timeout": lambda reader, value: _seconds(value),
    "quiet_timeout": lambda reader, value: _seconds(value),
}
