"""What to boot: a TOML file of ``[[boot]]`` tables, read and checked as a whole.

``kernel``, ``entry``, ``cmdline``, ``memory``, ``vcpus`` and ``schedule_seed`` may each be a list.
A table then stands for each combination, named after what varies. ``[defaults]`` has keys for every
table. A table's own initial ramdisk takes the place of the defaults', in whichever way each is
given. Paths are relative to the file. They may begin with ``~``, and may have environment variables
in them. An empty path means none.

A table with ``from`` goes on with the machine of a table before it, once for each of that table's
boots.

The first fault raises `PlanError` with the file, the line and the key, before anything has run.
"""

from __future__ import annotations

import difflib
import itertools
import json
import math
import os
import re
import shlex
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, field, fields, replace
from pathlib import Path
from typing import Any, Final

from xenemu.disks import Format, parse_disk
from xenemu.entries import AUTO, MODES
from xenemu.errors import UsageError
from xenemu.hv.state.schedule import SHARED_SLICE_NS
from xenemu.network.asked import parse_net
from xenemu.options import (
    MAX_SECONDS,
    MAX_SEED,
    check_maxvcpus,
    check_vcpus,
    parse_memory,
    parse_moment,
    parse_pattern,
    parse_request,
    parse_slice,
    seconds_in,
)
from xenemu.records import dataclass
from xenemu.shares import parse_share
from xenemu.smoke.plan_text import Place, PlanError, boot_lines, line_of, toml_error
from xenemu.smoke.verdict import Verdict

STEP: Final = ("pattern", "send")
DEED: Final = ("after", "action")
VARIED: Final = ("kernel", "mode", "entry", "cmdline", "memory", "vcpus", "schedule_seed")
SAME: Final = {"mode": "entry", "entry": "mode"}  # two names of one key
SHOWN: Final = {"vcpus": "{}vcpu", "schedule_seed": "seed{}"}  # how a value stands in a name
ENDS: Final = (
    "poweroff",
    "reboot",
    "suspend",
    *(v.value for v in Verdict if v not in (Verdict.SKIPPED, Verdict.PASS)),
)
# What a boot can say that starts from another one; all else is the other's. What steers its machine
# is the other's, too, unless the table itself says it.
DONE: Final = (
    *("name", "snapshot", "input", "expect", "do", "reject", "exit", "tolerate"),
    *("timeout", "virtual_timeout", "quiet_timeout"),
)
ON_SUSPEND: Final = ("end", "resume", "cancel")
SUSPENDED_FOR_NS: Final = 1_000_000_000
STEERS: Final = ("rng_seed", "slice", "schedule_seed")
MADE: Final = ("init", "rootfs")  # of which an initramfs is made, in the place of an initrd


@dataclass(frozen=True)
class Step:
    """A regular expression that the console must meet, and what is then typed."""

    pattern: str
    send: str = ""


@dataclass(frozen=True)
class Deed:
    """What the toolstack does once the console shows a regular expression; without one, at once.

    `action` is in the words of `xenemu control`; `request` is what it means, as JSON.
    """

    after: str
    action: str
    request: str


@dataclass(frozen=True)
class Boot:
    """One boot. Times are seconds: `timeout` the host's, all others the guest's own.

    With an `origin`, it goes on where that is at its `snapshot`: a time, or what the console shows
    then (None: its first expectation).
    """

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
    snapshot: str | float | None = None
    input: str = ""
    expect: tuple[Step, ...] = ()
    do: tuple[Deed, ...] = ()
    reject: tuple[str, ...] = ()
    exit: tuple[str, ...] = ()
    on_suspend: str = "end"
    tolerate: tuple[Verdict, ...] = ()
    rng_seed: int = 0
    slice: int = SHARED_SLICE_NS
    schedule_seed: int | None = None
    timeout: float = 300.0
    virtual_timeout: float = math.inf
    quiet_timeout: float = 20.0
    # No keys of a plan:
    place: Place | None = field(default=None, compare=False)  # its table there
    origin: Boot | None = None
    is_origin: bool = False  # of others
    recorded: bool = False  # somebody wants to repeat it if it fails
    covered: bool = False  # somebody wants to know what ran
    covered_by_vcpu: bool = False  # and which vcpu ran it
    dumped: bool = False  # somebody wants a core if it crashes

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
        raise toml_error(file.file, text, str(error)) from None
    return _Reader(path.parent, file.file, text).boots(tables)


def make_boots(
    table: Mapping[str, Any], folder: Path | None = None, spell: Callable[[str], str] = str
) -> list[Boot]:
    """The boots that one table stands for, as a plan's would.

    UsageError begins with the key that is wrong, as `spell` has it.
    """
    return _Reader(folder or Path(), spell=spell).boots({"boot": [dict(table)]})


class _Reader:
    """Turns tables into boots; knows where each key stands."""

    def __init__(
        self, folder: Path, file: str = "", text: str = "", spell: Callable[[str], str] = str
    ) -> None:
        self.folder, self.file, self.text, self.spell = folder, file, text, spell
        self.lines = list(boot_lines(text))
        self.wanted: set[str] = set()  # what others start from
        self.named: dict[str, tuple[str, list[Boot]]] = {}  # what `from` can say; see `origins`

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
        self.check_keys(defaults, ("defaults",), {"name", "from"})
        self.merge({}, defaults, ("defaults",))
        found: dict[str, Boot] = {}  # by the name of their files
        self.wanted = {table["from"] for table in boots if isinstance(table.get("from"), str)}
        for index, table in enumerate(boots):
            place = ("boot", index)
            self.check_keys(table, place, set())
            make = self.continuations if "from" in table else self.combinations
            made = list(make(defaults, table, place))
            for boot in made:
                other = found.setdefault(boot.slug, boot)
                if other is not boot:
                    if not self.file:  # where boots have no names of their own
                        problem = f"two would be named {other.name!r}; a plan can name each"
                        raise self.error(("kernel",), problem)
                    raise self.error((*place, "name"), f"another boot is named {other.name!r}")
                self.named[boot.name] = boot.name, [boot]
            if "name" in table:
                self.named[table["name"]] = table["name"], made
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
        made = [key for key in (*MADE, "busybox") if table.get(key)]
        if made and table.get("initrd"):
            line = line_of(self.text, (*place, "initrd"))
            other = f"{self.spell('initrd')}{f' in line {line}' if line else ''}"
            raise self.error((*place, made[0]), f"{other} says another; give one of the two")
        if "mode" in table and "entry" in table:
            raise self.error((*place, "entry"), "mode says the same; give one of the two")
        says_made = table.get("busybox") or any(key in table for key in MADE)
        replaced = {"initrd"} if says_made else set()
        replaced |= set(MADE) if "initrd" in table else set()
        replaced |= {other for key, other in SAME.items() if key in table}
        added = {key: value for key, value in defaults.items() if key not in replaced}
        if not any((added | table).get(key) for key in MADE):
            added.pop("busybox", None)  # alone it makes a shell: for a table that says so itself
        where = dict.fromkeys(added, ("defaults",)) | dict.fromkeys(table, place)
        return added | table, where

    def combinations(
        self, defaults: dict[str, Any], said: dict[str, Any], place: tuple[Any, ...]
    ) -> Iterator[Boot]:
        table, where = self.merge(defaults, said, place)
        if "kernel" not in table:
            raise self.error(place, "kernel is missing")
        for one, known, varied in self.variants(table, where):
            if "maxvcpus" in known:
                self.check_maxvcpus(known, (*where["maxvcpus"], "maxvcpus"))
            known["name"] = self.name(known, one, varied)
            if "entry" in known:
                known["mode"] = known.pop("entry")
            yield Boot(**known, **self.context(said, known["name"], place))

    def continuations(
        self, defaults: dict[str, Any], said: dict[str, Any], place: tuple[Any, ...]
    ) -> Iterator[Boot]:
        """The boots of a table with ``from``."""
        name, origins = self.origins(said["from"], place)
        for key in said:
            if key not in (*DONE, *STEERS, "from"):
                problem = f"{said['from']!r} has booted by then, with its own; say it there"
                raise self.error((*place, key), problem)
        if "name" not in said:
            raise self.error(place, "name is missing")
        inherited = {key: value for key, value in defaults.items() if key in DONE}
        own = {key: value for key, value in said.items() if key != "from"}
        where = dict.fromkeys(inherited, ("defaults",)) | dict.fromkeys(own, place)
        for origin in origins:
            for one, known, varied in self.variants(inherited | own, where):
                known["name"] += origin.name.removeprefix(name)
                known["name"] = self.name(known, one, varied)
                context = self.context(said, known["name"], place)
                yield replace(origin, **UNSAID | known | context, origin=origin)

    def origins(self, wanted: Any, place: tuple[Any, ...]) -> tuple[str, list[Boot]]:
        """The boots that a table goes on with, and what all of their names begin with."""
        place = (*place, "from")
        name = self.value("from", wanted, place)
        if name not in self.named:
            hint = f"; did you mean {meant[0]!r}?" if (meant := _meant(name, self.named)) else ""
            raise self.error(place, f"there is no [[boot]] {name!r} before this one{hint}")
        common, origins = self.named[name]
        for origin in origins:
            if not origin.expect and origin.snapshot is None:
                problem = "has neither expect nor snapshot, so nobody knows where to start"
                raise self.error(place, f"{name!r} {problem}")
            if lasting := outliving(origin):
                raise self.error(place, f"{name!r} has {lasting}, which copies cannot share")
        return common, origins

    def variants(
        self, table: dict[str, Any], where: dict[str, tuple[Any, ...]]
    ) -> Iterator[tuple[dict[str, Any], dict[str, Any], list[str]]]:
        """Each combination that a table stands for: as it says it, as it is read; what varies."""
        lists = {key: table[key] for key in VARIED if key in table and isinstance(table[key], list)}
        for key, values in lists.items():
            if not values:
                raise self.error((*where[key], key), "the list is empty")
            if again := next((value for i, value in enumerate(values) if value in values[:i]), ""):
                raise self.error((*where[key], key), f"{again!r} is there twice")
        varied: list[str] = [key for key, values in lists.items() if len(values) > 1]
        for values in itertools.product(*lists.values()):
            one = table | dict(zip(lists, values, strict=True))
            yield (
                one,
                {key: self.value(key, value, (*where[key], key)) for key, value in one.items()},
                varied,
            )

    def context(self, said: dict[str, Any], name: str, place: tuple[Any, ...]) -> dict[str, Any]:
        """What a boot knows of its plan."""
        return {
            "place": Place(self.file, self.lines[place[1]]) if self.file else None,
            "is_origin": not self.wanted.isdisjoint((name, said.get("name"))),
        }

    def check_maxvcpus(self, known: dict[str, Any], place: tuple[Any, ...]) -> None:
        try:
            check_maxvcpus(known["maxvcpus"], known.get("vcpus", 1), str(known["maxvcpus"]))
        except UsageError as error:
            raise self.error(place, str(error)) from None

    def name(self, known: dict[str, Any], table: dict[str, Any], varied: list[str]) -> str:
        """What a combination is called: its name, if it has one, and all that varies."""
        wanted = varied if "name" in known else ["kernel", *varied]
        values = table | ({"kernel": known["kernel"].name} if "kernel" in known else {})
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
        if value == "":
            raise ValueError("the name is empty; give a file's")
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
        return PlanError(Place(self.file, line_of(self.text, place)), f"{key}: {problem}")


def in_keys(words: str) -> str:
    """What to do about a kernel, for whoever says it in keys and not in options."""
    return re.sub(r"--entry (\w+)", r'mode = "\1"', words)


def outliving(boot: Boot) -> str:
    """What a boot has that copies of its process cannot share; empty if there is nothing.

    It is outside of the process: where in a file or a conversation somebody is, or what is written.
    """
    disks = [parse_disk("disk", text) for text in boot.disk]
    for words, found in (
        ("a share", boot.share),
        ("a network interface", boot.net),
        ("a disk that it writes to", [disk for disk in disks if disk.leaves]),
        ("a disk in qcow2", [disk for disk in disks if disk.format is Format.QCOW2]),
    ):
        if found:
            return words
    return ""


def _meant(word: str, known: Iterable[str]) -> list[str]:
    return difflib.get_close_matches(word, list(known), 1)


def _unknown(key: str, known: Sequence[str]) -> str:
    meant = _meant(key, known)
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


def _memory(value: Any) -> int:
    if not isinstance(value, str):
        raise ValueError(f'{value!r}: give a string with a unit, as in "256M"')
    return parse_memory("memory", _string(value))


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


def _deed(value: Any) -> Deed:
    if not isinstance(value, dict) or "action" not in value:
        raise ValueError(
            'give a table with action, and mostly after: {after = "...", action = "..."}'
        )
    for key in value:
        if key not in DEED:
            raise ValueError(f"{key}: {_unknown(key, DEED)}")
    from xenemu.dom0.control import Refused  # noqa: PLC0415 (few plans want them)
    from xenemu.dom0.verbs import VERBS  # noqa: PLC0415
    from xenemu.dom0.verbs.help import describe  # noqa: PLC0415

    after = _regex(value["after"]) if value.get("after") else ""
    action = _string(value["action"])
    request = parse_request(describe(VERBS), shlex.split(action))
    try:
        VERBS[request["do"]].check_words(request)
    except Refused as refused:
        raise ValueError(f"{action}: {refused}") from None
    return Deed(after, action, json.dumps(request))


def _deeds(value: Any) -> tuple[Deed, ...]:
    return tuple(_deed(one) for one in (value if isinstance(value, list) else [value]))


def _seconds(value: Any) -> float:
    """A time, as a number or as in "1.5s"."""
    is_time = isinstance(value, int | float | str) and not isinstance(value, bool)
    seconds = seconds_in(str(value)) if is_time else None
    if not seconds:
        raise ValueError(f"{value!r}: give seconds, above 0 and up to {MAX_SECONDS}")
    return seconds


def _snapshot(value: Any) -> str | float:
    """A time, as a number or as in "1.5s", or a regular expression."""
    if not isinstance(value, str):
        return _seconds(value)
    seconds = parse_moment(value)
    return _regex(value) if seconds is None else _seconds(seconds)


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
    "memory": lambda reader, value: _memory(value),
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
    "from": lambda reader, value: _string(value),
    "snapshot": lambda reader, value: _snapshot(value),
    "input": lambda reader, value: _string(value),
    "expect": lambda reader, value: _steps(value),
    "do": lambda reader, value: _deeds(value),
    "reject": lambda reader, value: tuple(_regex(one) for one in _strings(value)),
    "exit": lambda reader, value: _ends(value),
    "on_suspend": lambda reader, value: _choice(value, ON_SUSPEND),
    "tolerate": lambda reader, value: _tolerated(value),
    "rng_seed": lambda reader, value: _seed(value),
    "slice": lambda reader, value: _slice(value),
    "schedule_seed": lambda reader, value: _seed(value),
    "timeout": lambda reader, value: _seconds(value),
    "virtual_timeout": lambda reader, value: _seconds(value),
    "quiet_timeout": lambda reader, value: _seconds(value),
}
UNSAID: Final = {
    part.name: part.default
    for part in fields(Boot)
    if part.name in DONE and part.default is not MISSING
}
