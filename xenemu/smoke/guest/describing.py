"""A guest in a program's words: a kernel and the keys of ``[[boot]]``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict, Unpack

from xenemu.errors import UsageError
from xenemu.smoke.plan import Boot, make_boots

Named = str | Path
Texts = str | Sequence[str]
Files = Named | Sequence[Named]


class Keys(TypedDict, total=False):
    """The keys of a ``[[boot]]`` that a program can say; docs/ci.md has their meaning."""

    name: str
    mode: str
    entry: str
    cmdline: str
    memory: str
    vcpus: int
    maxvcpus: int
    initrd: Named
    init: Named
    rootfs: Named
    busybox: Named
    module: Files
    disk: Files
    share: Files
    efi_root: Named
    net: Texts
    environment: Mapping[str, str]
    snapshot: str | float
    input: str
    expect: str | Mapping[str, str] | Sequence[str | Mapping[str, str]]
    do: Mapping[str, str] | Sequence[Mapping[str, str]]
    reject: Texts
    exit: Texts
    on_suspend: str
    tolerate: Texts
    rng_seed: int
    slice: int | str
    schedule_seed: int
    timeout: float
    virtual_timeout: float
    quiet_timeout: float


def describe(kernel: Boot | Named, folder: Path, **keys: Unpack[Keys]) -> Boot:
    """The one boot that the words stand for; paths are relative to `folder`.

    UsageError begins with the key that is wrong.
    """
    if isinstance(kernel, Boot):
        if keys:
            raise UsageError(f"{next(iter(keys))}: the boot {kernel} has been described already")
        return kernel
    if not isinstance(kernel, str | Path):
        raise UsageError(f"kernel: {kernel!r} is no path; give a string or a Path")
    given = {key: _plain(value) for key, value in keys.items()}
    try:
        boots = make_boots({**given, "kernel": str(kernel)}, folder)
    except UsageError as error:
        raise UsageError(str(error)) from None  # at the caller's line
    if len(boots) > 1:
        raise UsageError(f"these are {len(boots)} boots; give one, or parametrise the test")
    return boots[0]


def _plain(value: Any) -> Any:
    """A value as TOML would have it."""
    match value:
        case Path():
            return str(value)
        case str():
            return value
        case Mapping():
            return {name: _plain(one) for name, one in value.items()}
        case Sequence():
            return [_plain(one) for one in value]
    return value
