"""A guest's disks as a person asks for them, and the files that they are kept in.

An error begins with the name of the option, or of whatever else held the text. The backend is
imported where a disk is opened: most runs have none.
"""

from __future__ import annotations

import fcntl
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Final, cast

from xenemu.dom0 import vdev
from xenemu.errors import ImageError, OutputError, UsageError
from xenemu.needs import QCOW2
from xenemu.records import dataclass

if TYPE_CHECKING:
    from dissect.hypervisor.disk.qcow2 import QCow2

    from xenemu.dom0.block import Block
    from xenemu.dom0.disk import Disk, StreamDisk
    from xenemu.dom0.overlay_file import BlocksInFile

QCOW2_MAGIC: Final = b"QFI\xfb"
SECTOR_SIZES: Final = (512, 4096)
NO_FILES: Final = ("none", "no", "off", "memory")  # said by those who want no file for an overlay
SYNTAX: Final = (
    "FILE[,ro|rw|overlay[=FILE]][,name=xvda][,format=raw|qcow2][,sector-size=512|4096]"
    "[,persistent][,later]"
)


class Access(Enum):
    """What becomes of what the guest writes."""

    OVERLAY = "overlay"  # it is kept for this run, and the file stays as it is
    READ_ONLY = "ro"  # the guest gets an error
    WRITE = "rw"  # it is in the file


class Format(Enum):
    """What a file has besides the disk's bytes."""

    RAW = "raw"
    QCOW2 = "qcow2"


@dataclass(frozen=True)
class DiskSpec:
    """A disk that a guest is to have; without a `name` it is the first that is free.

    Without a `format`, the file is raw, but must not look like another. `overlay` is the file for
    what the guest writes; without it, that is kept in memory. `persistent` is as in dom0.block.
    """

    path: Path
    access: Access = Access.OVERLAY
    name: str = ""
    format: Format | None = None
    sector_size: int = 512
    overlay: Path | None = None
    persistent: bool = False
    later: bool = False  # the guest gets it when a toolstack attaches it

    @property
    def leaves(self) -> str:
        """What the guest writes to, and is not gone after the run: a word; empty for nothing."""
        if self.access is Access.WRITE:
            return "rw"
        return "overlay=" if self.overlay is not None else ""


def with_overlay(option: str, overlay: Path, disks: Sequence[str]) -> list[str]:
    """Texts of disks, of which one gets a file for its overlay.

    UsageError unless it is clear which, or if one is no disk.
    """
    specs = [parse_disk("--disk", text) for text in disks]
    fitting = [n for n, spec in enumerate(specs) if spec.access is Access.OVERLAY]
    if len(fitting) != 1 or specs[fitting[0]].overlay is not None:
        raise UsageError(
            f"{option} {overlay}: this is for one --disk without ro and rw; with several, say"
            f" --disk FILE,overlay={overlay}"
        )
    return [f"{text},overlay={overlay}" if n in fitting else text for n, text in enumerate(disks)]


def parse_disk(option: str, text: str) -> DiskSpec:
    """Read a disk given as SYNTAX says; UsageError."""
    path, *words = text.split(",")
    values: dict[str, object] = {}
    if not path:
        raise UsageError(f"{option} {text}: give a file: {SYNTAX}")
    for word in words:
        key, equals, value = word.partition("=")
        if word in ("persistent", "later"):
            value = "yes"
        elif not equals:
            key, value = "access", word
        elif key == "overlay" and values.get("access") is Access.OVERLAY:
            del values["access"]  # as --overlay may add a file to the word
        if key in values:
            wrong = "give one of ro, rw and overlay" if key == "access" else "this is said twice"
            raise UsageError(f"{option} {text}: {word}: {wrong}")
        try:
            match key:
                case "access":
                    values[key] = Access(value)
                case "overlay" if value in NO_FILES:
                    said = f"{option} {text}: {word}: overlay alone is in memory"
                    raise UsageError(f"{said}; for a file of this name, say overlay=./{value}")
                case "overlay" if value and "access" not in values:
                    values |= {"access": Access.OVERLAY, key: Path(value)}
                case "persistent" | "later" if word == key:
                    values[key] = True
                case "name":
                    vdev.number_of(value)
                    values[key] = value
                case "format":
                    values[key] = Format(value)
                case "sector-size" if value in map(str, SECTOR_SIZES):
                    values["sector_size"] = int(value)
                case _:
                    raise ValueError
        except ValueError as error:
            problem = str(error) if key == "name" else f"{word!r} is not known: {SYNTAX}"
            raise UsageError(f"{option} {text}: {problem}") from None
    return DiskSpec(Path(path), **values)  # type: ignore[arg-type]


def name_all(option: str, specs: Sequence[DiskSpec]) -> list[tuple[str, int]]:
    """The name and the number of each disk; UsageError if two have one."""
    taken = {spec.name for spec in specs}
    found: dict[int, str] = {}
    names = []
    for spec in specs:
        name = spec.name or vdev.free_name(taken)
        taken.add(name)
        number = vdev.number_of(name)
        if number in found:
            raise UsageError(f"{option} {spec.path}: another disk is {found[number]}")
        found[number] = name
        names.append((name, number))
    return names


@contextmanager
def opened(option: str, specs: Sequence[DiskSpec]) -> Iterator[list[Block]]:
    """Open and lock the files of disks, as backends; UsageError."""
    if not specs:
        yield []
        return
    from xenemu.dom0.block import Block  # noqa: PLC0415

    names = name_all(option, specs)
    with ExitStack() as files:
        yield [
            Block(
                number,
                disk=_open(option, spec, files),
                vdev=name,
                params=str(spec.path),
                read_only=spec.access is Access.READ_ONLY,
                sector_size=spec.sector_size,
                later=spec.later,
                persistent=spec.persistent,
            )
            for spec, (name, number) in zip(specs, names, strict=True)
        ]


def _open(option: str, spec: DiskSpec, files: ExitStack) -> Disk:
    from xenemu.dom0.disk import BlocksInMemory, FileDisk, OverlayDisk  # noqa: PLC0415

    said = f"{option} {spec.path}"
    writes = spec.access is Access.WRITE
    try:
        flags = os.O_RDWR if writes else os.O_RDONLY
        descriptor = os.open(spec.path, flags | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise UsageError(f"{said}: {error.strerror}") from None
    files.callback(os.close, descriptor)
    kind = stat.S_IFMT(os.fstat(descriptor).st_mode)
    if kind not in (stat.S_IFREG, stat.S_IFBLK):
        raise UsageError(f"{said}: a disk is a file or a block device")
    _lock(said, descriptor, writes)
    looks_like_qcow2 = os.pread(descriptor, len(QCOW2_MAGIC), 0) == QCOW2_MAGIC
    disk: Disk
    if spec.format is Format.QCOW2:
        if writes:
            raise UsageError(
                f"{said}: a qcow2 file is not written to: leave rw out, or make it raw with"
                " qemu-img convert -O raw"
            )
        disk = _open_qcow2(said, spec.path)
    elif looks_like_qcow2 and spec.format is None:
        raise UsageError(f"{said}: it looks like qcow2: add format=qcow2, or else format=raw")
    else:
        disk = FileDisk(descriptor, os.lseek(descriptor, 0, os.SEEK_END))
    disk.size -= disk.size % spec.sector_size
    if not disk.size:
        raise UsageError(f"{said}: there is not one sector of {spec.sector_size} bytes in it")
    if spec.access is not Access.OVERLAY:
        return disk
    if spec.overlay is None:
        return OverlayDisk(disk, BlocksInMemory())
    status = os.fstat(descriptor)
    with suppress(OSError):
        if os.path.samestat(status, spec.overlay.stat()):
            raise UsageError(f"overlay {spec.overlay}: it is the disk itself; give another file")
    return OverlayDisk(disk, _open_overlay(spec.overlay, disk.size, status.st_mtime_ns, files))


def _open_overlay(path: Path, size: int, changed_ns: int, files: ExitStack) -> BlocksInFile:
    from xenemu.dom0.overlay_file import LARGEST, BlocksInFile, OverlayError  # noqa: PLC0415

    said = f"overlay {path}"
    if size > LARGEST:
        raise UsageError(f"{said}: its disk has more than {LARGEST >> 40} TiB")
    is_new = not os.path.lexists(path)
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK, 0o666)
        files.callback(os.close, descriptor)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OverlayError("it is no file")
        _lock(said, descriptor, writes=True)
        blocks = BlocksInFile.open(descriptor, size, changed_ns)
    except OSError as error:
        raise UsageError(f"{said}: {error.strerror}") from None
    except OverlayError as error:
        raise UsageError(f"{said}: {error}") from None
    if is_new:
        files.push(_Unused(path, blocks))
    files.callback(_flush, said, blocks)
    return blocks


@dataclass
class _Unused:
    """At the end, removes an overlay that was made for a run that was then refused."""

    path: Path
    blocks: BlocksInFile

    def __enter__(self) -> None:
        pass

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if isinstance(error, UsageError | ImageError) and not any(self.blocks.bitmap):
            with suppress(OSError):
                self.path.unlink()


def _flush(said: str, blocks: BlocksInFile) -> None:
    """In the end, keep also what the guest has not flushed; OutputError."""
    try:
        blocks.flush()
    except OSError as error:
        raise OutputError(f"{said}: {error.strerror or error}") from None


def _lock(said: str, descriptor: int, writes: bool) -> None:
    """Keep others from writing to it, and with `writes` from using it at all."""
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_EX if writes else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except BlockingIOError:
        what = "used" if writes else "written to"
        raise UsageError(f"{said}: it is being {what}, and so it is locked") from None
    except OSError:
        pass  # a file system without locks


def _open_qcow2(said: str, path: Path) -> StreamDisk:
    """Open a qcow2 file, and the one that it is based on, by a library."""
    from xenemu.dom0.disk import StreamDisk  # noqa: PLC0415

    try:
        from dissect.hypervisor.disk.qcow2 import QCow2  # noqa: PLC0415 (an extra)
    except ImportError:
        raise UsageError(
            f"{said}: to read qcow2, {QCOW2.install}; or make it raw with qemu-img convert -O raw"
        ) from None
    try:
        image: QCow2 = QCow2(path)
        stream = image.open()
    except Exception as error:  # whatever the library meets in a file that is damaged
        why = " ".join(str(error).split()) or type(error).__name__
        raise UsageError(f"{said}: it cannot be read as qcow2: {why}") from None
    return StreamDisk(cast(BinaryIO, stream), stream.size)
