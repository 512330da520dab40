"""What a person asks of a guest, as text: sizes, and files to load with the kernel.

An error begins with the name of the option, or of whatever else held the text.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Final
from uuid import UUID

from xenemu.entries.zero_page import SUBARCHES
from xenemu.errors import FitError, UsageError
from xenemu.hv.building import Module
from xenemu.hv.state.schedule import MAX_SHARED_SLICE_NS
from xenemu.image import DraftNotes

MAX_INTERVAL_NS: Final = 1_000_000_000
UNITS: Final = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
TIMES: Final = {"ns": 1, "us": 1_000, "ms": 1_000_000}
MOMENT: Final = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)s")  # seconds of the guest's time
NEARLY_A_MOMENT: Final = re.compile(r"[0-9]+(?:[.,][0-9]*| ?[A-Za-z]{1,3}|[.,][0-9]* ?[A-Za-z]+)")
PAGE: Final = 4 << 10
MAX_MEMORY: Final = 64 << 30
MAX_TREE: Final = 1 << 30  # bytes in all files of a directory for EFI
MAX_FILES: Final = 1 << 14
MAX_NAME: Final = 255  # UTF-16 units, as on FAT
MAX_SECONDS: Final = 1_000_000
MAX_SEED: Final = (1 << 64) - 1
MAX_VCPUS: Final = 128  # of a PVH domain in Xen; a PV domain could have more


def parse_memory(option: str, text: str) -> int:
    """Bytes of a size such as ``256M``; UsageError if this is no size, or no size for a guest."""
    match = re.fullmatch(r"([0-9]{1,15})([KMGT])(?:i?B)?", text, re.IGNORECASE | re.ASCII)
    if not match:
        raise UsageError(f"{option} {text}: give a number and a unit, as in 256M, 1G or 65536K")
    size = int(match[1]) * UNITS[match[2].upper()]
    if size % PAGE or not 0 < size <= MAX_MEMORY:
        raise UsageError(
            f"{option} {text}: give whole pages of 4K, up to {format_size(MAX_MEMORY)}"
        )
    return size


def parse_maxmem(option: str, text: str, memory: int) -> int:
    """How much memory a guest can come to have, in bytes; UsageError."""
    size = parse_memory(option, text)
    if size < memory:
        raise UsageError(f"{option} {text}: the guest begins with {format_size(memory)}")
    return size


def parse_seconds(option: str, text: str) -> float:
    """A time in seconds; UsageError if it is no time, or none that one can wait for."""
    seconds = seconds_in(text)
    if not seconds:
        raise UsageError(f"{option} {text}: give seconds, above 0 and up to {MAX_SECONDS}")
    return seconds


def seconds_in(text: str) -> float | None:
    """Seconds, as in ``1.5`` or ``1.5s``; None if this is no time, or more than `MAX_SECONDS`."""
    try:
        seconds = float(text.removesuffix("s"))
    except ValueError:
        return None
    return seconds if 0 <= seconds <= MAX_SECONDS else None


def parse_nanoseconds(option: str, text: str) -> int:
    """A time in seconds, as whole nanoseconds; UsageError as `parse_seconds`."""
    return int(parse_seconds(option, text) * 1e9)


def parse_moment(text: str) -> float | None:
    """Seconds of the guest's time, as in ``1.5s``; None: the text is to be a regular expression.

    ValueError for what begins as a time does, and is none: nobody means an expression by that.
    """
    if found := MOMENT.fullmatch(text):
        return float(found[1])
    if NEARLY_A_MOMENT.fullmatch(text):
        raise ValueError(
            f"{text!r}: give a time in seconds, as in 1.5s; of an expression, put the first digit"
            " in brackets, as in '[1].5'"
        )
    return None


def parse_seed(option: str, text: str) -> int:
    """A seed of 64 bits, decimal or with ``0x``; UsageError if it is none."""
    match = re.fullmatch(r"0x[0-9a-f]{1,16}|[0-9]{1,20}", text, re.IGNORECASE | re.ASCII)
    seed = int(text, 0 if text[:2].lower() == "0x" else 10) if match else -1
    if not 0 <= seed <= MAX_SEED:
        raise UsageError(f"{option} {text}: give a number from 0 to {MAX_SEED:#x}")
    return seed


def parse_vcpus(option: str, text: str) -> int:
    """How many vcpus a guest has; UsageError if it is no number, or none that a guest may have."""
    count = int(text) if re.fullmatch(r"[0-9]{1,9}", text, re.ASCII) else 0
    return check_vcpus(count, f"{option} {text}")


def check_vcpus(count: int, said: str) -> int:
    """The number of vcpus, if a guest may have that; UsageError begins with what was `said`."""
    if not 0 < count <= MAX_VCPUS:
        raise UsageError(f"{said}: give a number of vcpus, from 1 to {MAX_VCPUS}")
    return count


def parse_maxvcpus(option: str, text: str, vcpus: int) -> int:
    """How many vcpus there are, online or not; UsageError if it is no number, or below `vcpus`."""
    return check_maxvcpus(parse_vcpus(option, text), vcpus, f"{option} {text}")


def check_maxvcpus(count: int, vcpus: int, said: str) -> int:
    """The number of vcpus, online or not; UsageError, which begins with what was `said`."""
    if count < vcpus:
        raise UsageError(f"{said}: fewer than the {vcpus} vcpus that are online at first")
    return count


def parse_name(option: str, text: str) -> str:
    """A domain's name, as it stands in the xenstore; UsageError if xl would not take it."""
    if not re.fullmatch(r"[A-Za-z0-9_.+-]{1,80}", text, re.ASCII):
        raise UsageError(f"{option} {text}: give up to 80 letters, digits, and any of _ . + -")
    return text


def parse_uuid(option: str, text: str) -> bytes:
    """The 16 bytes of a UUID; UsageError if this is none."""
    try:
        return UUID(text).bytes
    except ValueError:
        raise UsageError(
            f"{option} {text}: give 32 hexadecimal digits, with hyphens if you like"
        ) from None


def parse_slice(option: str, text: str) -> int:
    """A slice of time in ns, such as ``100us``; UsageError if it is no time, or no such slice."""
    match = re.fullmatch(r"([0-9]{1,9})(ns|us|ms)?", text, re.ASCII)
    return check_slice(int(match[1]) * TIMES[match[2] or "ns"] if match else 0, f"{option} {text}")


def check_slice(ns: int, said: str) -> int:
    """A slice, if vcpus may have such; UsageError begins with what was `said`."""
    if not 0 < ns <= MAX_SHARED_SLICE_NS:
        longest = f"{MAX_SHARED_SLICE_NS // TIMES['ms']}ms"
        raise UsageError(f"{said}: give a time from 1ns to {longest}, as in 500, 20us or 1ms")
    return ns


def parse_interval(option: str, text: str) -> int:
    """A time in ns from one look to the next, such as ``10ms``; UsageError if it is none."""
    match = re.fullmatch(r"([0-9]{1,9})(us|ms)", text, re.ASCII)
    ns = int(match[1]) * TIMES[match[2]] if match else 0
    if not TIMES["us"] <= ns <= MAX_INTERVAL_NS:
        raise UsageError(f"{option} {text}: give a time from 1us to 1000ms, as in 500us or 10ms")
    return ns


def parse_count(option: str, text: str) -> int:
    """How many of something; UsageError if it is no number, or none at all."""
    if not re.fullmatch(r"[0-9]{1,9}", text, re.ASCII) or not int(text):
        raise UsageError(f"{option} {text}: give a whole number, 1 or more")
    return int(text)


def parse_request(verbs: Mapping[str, Any], words: Sequence[str]) -> dict[str, str]:
    """The request to a toolstack that a verb and its words make; UsageError.

    `verbs` are as its `help` describes them.
    """
    name, *rest = words or [""]
    if name not in verbs:
        raise UsageError(f"there is no verb {name!r}; there are {', '.join(verbs)}")
    fields, request = verbs[name]["fields"], {"do": name}
    free = [field for field in fields if field != "within"]
    for word in rest:
        field, equals, value = word.partition("=")
        if equals and field in fields and field not in request:
            request[field] = value
            continue
        left = [field for field in free if field not in request]
        if not left:
            raise UsageError(f"{word!r} is one word too many: {verbs[name]['usage']}")
        request[left[0]] = word
    return request


def parse_subarch(option: str, text: str) -> int:
    """A hardware_subarch of Linux's, by name or number; UsageError if it is none."""
    if text in SUBARCHES:
        return SUBARCHES[text]
    if not re.fullmatch(r"[0-9]{1,10}", text, re.ASCII) or int(text) >> 32:
        raise UsageError(f"{option} {text}: give {', '.join(SUBARCHES)}, or a number of 32 bits")
    return int(text)


def parse_draft_notes(option: str, text: str) -> DraftNotes:
    """The types of the draft's two notes; UsageError unless they are two that differ."""
    match = re.fullmatch(r"([0-9]{1,10}),([0-9]{1,10})", text, re.ASCII)
    types = DraftNotes(int(match[1]), int(match[2])) if match else None
    if types is None or types.entry == types.offset or max(types) >> 32:
        raise UsageError(
            f"{option} {text}: give the types of PADDR_ENTRY and PADDR_OFFSET: two numbers of 32"
            " bits that differ, with a comma"
        )
    return types


def parse_pattern(text: str) -> re.Pattern[str]:
    """A regular expression for a console, with ``^`` and ``$`` at line ends.

    ValueError if it is none. One that matches no text at all is refused, too: it would be met
    before the guest's first instruction.
    """
    try:
        pattern = re.compile(text, re.MULTILINE)
    except re.error as error:
        raise ValueError(f"{text!r} is no regular expression: {error}") from None
    if pattern.search(""):
        raise ValueError(f"{text!r} matches before anything is printed; give what must be there")
    return pattern


def read_tree(option: str, root: Path) -> dict[str, bytes]:
    """Read a directory with all that is below it, by path from there; a directory ends in ``/``.

    Symbolic links to files are followed. UsageError if something cannot be read, is neither file
    nor directory, is too much, or cannot be told from another without regard to case.
    """
    tree: dict[str, bytes] = {}
    room = MAX_TREE
    try:
        for path in sorted(islice(_below(root), MAX_FILES + 1)):  # it may be the host's root
            name = path.relative_to(root).as_posix()
            if path.is_dir() and not path.is_symlink():
                tree[name + "/"] = b""
            elif path.is_file():
                with path.open("rb") as file:
                    tree[name] = file.read(room + 1)
                room -= len(tree[name])
            else:
                raise UsageError(f"{option} {path}: neither a file nor a directory")
            if room < 0 or len(tree) > MAX_FILES:
                most = f"{MAX_FILES} files, {format_size(MAX_TREE)}"
                raise UsageError(f"{option} {root}: larger than EFI can have: {most}")
    except OSError as error:
        raise UsageError(f"{option} {error.filename}: {error.strerror}") from None
    _check_names(option, root, tree)
    return tree


def _below(directory: Path) -> Iterator[Path]:
    for path in directory.iterdir():
        yield path
        if path.is_dir() and not path.is_symlink():
            yield from _below(path)


def _check_names(option: str, root: Path, tree: Mapping[str, bytes]) -> None:
    seen: dict[str, str] = {}
    for name in tree:
        folded = name.rstrip("/").lower()
        last = folded.rpartition("/")[2]
        if "\\" in name or len(last.encode("utf-16-le", "surrogatepass")) > 2 * MAX_NAME:
            raise UsageError(f"{option} {root / name}: EFI can have no file of this name")
        if folded in seen:
            raise UsageError(
                f"{option} {root / name}: EFI cannot tell this from {seen[folded]}: they differ in"
                " case only"
            )
        seen[folded] = name


def format_size(size: int) -> str:
    """Write a size in the largest unit that it is a whole number of."""
    unit = next(unit for unit in "GMK" if size % UNITS[unit] == 0)
    return f"{size // UNITS[unit]} {unit}iB"


def parse_module(option: str, text: str, memory: int) -> Module:
    """Read a module given as ``FILE`` or ``FILE=CMDLINE``."""
    path, equals, cmdline = text.partition("=")
    data = read_module(option, Path(path), memory)
    return Module(data, os.fsencode(cmdline) if equals else None)


def read_module(option: str, path: Path, memory: int) -> bytes:
    """Read a file that is to be loaded into `memory` bytes.

    UsageError if it cannot be read or is empty, FitError if it is larger than that.
    """
    try:
        with path.open("rb") as file:
            data = file.read(memory)  # a pipe or a device may have no end
    except OSError as error:
        raise UsageError(f"{option} {path}: {error.strerror}") from None
    if not data:
        raise UsageError(f"{option} {path}: the file is empty")
    if len(data) == memory:
        raise FitError(f"{option} {path}: larger than the guest's memory: give it more")
    return data


def digest_of(path: Path, what: str, advice: str = "") -> str:
    """The SHA-256 of a file, in hexadecimal; UsageError."""
    try:
        if not path.is_file():
            raise UsageError(f"{what} {path}: not a file{advice}")
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UsageError(f"{what} {path}: {error.strerror}{advice}") from None
