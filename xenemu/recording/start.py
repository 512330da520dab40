"""What a run's start is a function of: the files by path and digest, and the options. Plain data.

A recording has no bytes of the files. Who repeats the run must have them; the digests say whether
they are the same.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from xenemu.disks import parse_disk
from xenemu.dom0.net import Vif
from xenemu.dom0.p9 import Share
from xenemu.errors import UsageError
from xenemu.hv.building import Data, DomainConfig, Module
from xenemu.image import DraftNotes
from xenemu.machine.ends import MAX_RESTARTS, Action, Life
from xenemu.options import MAX_MEMORY, MAX_VCPUS, digest_of

U64 = Annotated[int, msgspec.Meta(ge=0)]
Vcpus = Annotated[int, msgspec.Meta(ge=1, le=MAX_VCPUS)]


class Named(msgspec.Struct, array_like=True):
    """A file, or a directory: its path, and the SHA-256 of what was read from it.

    `said` is what the person said of it beside the path; `given` is the path as it was said.
    """

    path: str
    digest: str
    said: str = ""
    given: str = ""


class Shared(msgspec.Struct, array_like=True):
    """A directory that was shared. What is in it is in the answers of its server."""

    tag: str
    path: bytes
    writable: bool
    uid: int | None
    later: bool


class Interface(msgspec.Struct, array_like=True):
    """A network interface: its address, and whether a toolstack was to attach it."""

    mac: str
    later: bool


class Config(msgspec.Struct, kw_only=True):
    """The fields of a DomainConfig that are no files."""

    memory: Annotated[int, msgspec.Meta(gt=0, le=MAX_MEMORY, multiple_of=1024)]
    cmdline: bytes
    domid: Annotated[int, msgspec.Meta(ge=1, lt=0x7FF0)]
    name: str
    uuid: Annotated[bytes, msgspec.Meta(min_length=16, max_length=16)]
    vcpus: Vcpus
    maxvcpus: Vcpus | None
    wallclock_ns: U64
    debug_xen: bool
    rng_seed: U64
    slice_ns: Annotated[int, msgspec.Meta(gt=0, le=1 << 62)]
    schedule_seed: U64 | None
    subarch: Annotated[int, msgspec.Meta(ge=0, lt=1 << 32)] | None
    maxmem: Annotated[int, msgspec.Meta(gt=0, le=MAX_MEMORY, multiple_of=1024)] | None = None


class Start(msgspec.Struct, kw_only=True):
    """What a run began with."""

    kernel: Named
    mode: str
    draft_notes: tuple[int, int] | None = None
    config: Config
    ramdisk: dict[str, str] = {}  # --initrd, or what it was made of, by option
    ramdisk_digest: str = ""
    modules: list[Named] = []
    efi_root: Named | None = None
    disks: list[Named] = []
    vifs: list[Interface] = []
    shares: list[Shared] = []
    expects: list[str] = []  # in any order
    script: list[tuple[Literal["expect", "send", "at", "wait"], str]] = []  # of what is typed
    rules: dict[str, Action] = {}  # of what becomes of a domain that ends
    max_restarts: U64 = MAX_RESTARTS
    on_suspend: Literal["end", "resume", "cancel", "preserve"] = "end"
    suspended_for_ns: U64 = 0


def start_of(
    kernel: Path,
    mode: str,
    config: DomainConfig,
    *,
    draft_notes: DraftNotes | None = None,
    ramdisk: Mapping[str, Path | None] = {},
    modules: Sequence[str] = (),
    efi_root: Path | None = None,
    disks: Sequence[str] = (),
    shares: Sequence[Share] = (),
    vifs: Sequence[Vif] = (),
    expects: Sequence[str] = (),
    script: Sequence[tuple[str, str]] = (),
    life: Life | None = None,
    on_suspend: tuple[str, int] | None = None,
) -> Start:
    """Describe a start. UsageError: a file cannot be read, or not as it is now once more."""
    what, away_ns = on_suspend or ("end", 0)
    read = {f"--{option}": path for option, path in ramdisk.items() if option != "rootfs"}
    read |= {f"--module {text}": Path(text.partition("=")[0]) for text in modules}
    for option, path in read.items():
        if path is not None and not path.is_file():
            raise UsageError(f"--record: {option} {path}: not a file that can be read once more")
    return Start(
        kernel=Named(_absolute(kernel), digest_of(kernel, "--record: KERNEL")),
        mode=mode,
        draft_notes=draft_notes,
        config=Config(**{name: getattr(config, name) for name in Config.__struct_fields__}),
        ramdisk={option: _absolute(path) for option, path in ramdisk.items() if path is not None},
        ramdisk_digest=digest(config.initrd),
        modules=[_module(*each) for each in zip(modules, config.modules, strict=True)],
        efi_root=(
            Named(_absolute(efi_root), digest_of_tree(config.efi_root or {})) if efi_root else None
        ),
        disks=[_disk(text) for text in disks],
        vifs=[Interface(vif.mac, vif.later) for vif in vifs],
        shares=[_shared(share) for share in shares],
        expects=list(expects),
        script=list(script),  # type: ignore[arg-type] # checked by who parsed it
        rules=dict(life.rules) if life else {},
        max_restarts=life.max_restarts if life else MAX_RESTARTS,
        on_suspend=what,  # type: ignore[arg-type] # checked by who parsed it
        suspended_for_ns=away_ns,
    )


def _absolute(path: Path | str) -> str:
    return os.path.abspath(path)


def _module(text: str, module: Module) -> Named:
    path, equals, cmdline = text.partition("=")
    return Named(_absolute(path), digest(module.data), f"{equals}{cmdline}", path)


def _disk(text: str) -> Named:
    spec = parse_disk("--disk", text)
    if spec.overlay is not None and spec.overlay.exists() and spec.overlay.stat().st_size:
        raise UsageError(
            f"--record: {spec.overlay} has what earlier runs have written, and this one changes it:"
            " no run can begin with it again; record with a new overlay, or with none"
        )
    path, comma, rest = text.partition(",")
    return Named(_absolute(path), digest_of(spec.path, "--record: --disk"), f"{comma}{rest}", path)


def _shared(share: Share) -> Shared:
    export = share.export
    return Shared(share.tag, export.path, export.writable, export.uid, share.later)


def digest(data: Data) -> str:
    """SHA-256 in hexadecimal; nothing of nothing."""
    return hashlib.sha256(data).hexdigest() if data else ""


def digest_of_tree(tree: Mapping[str, Data]) -> str:
    """SHA-256 of files by name."""
    whole = hashlib.sha256()
    for name in sorted(tree):
        for part in (name.encode("utf-8", "surrogateescape"), tree[name]):
            whole.update(len(part).to_bytes(8, "little"))
            whole.update(part)
    return whole.hexdigest()
