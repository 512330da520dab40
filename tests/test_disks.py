"""xenemu/disks.py: disks as a person asks for them, and what becomes of the files."""

from __future__ import annotations

import fcntl
import hashlib
import os
import random
import shutil
import subprocess
from pathlib import Path

import pytest

from xenemu.disks import Access, DiskSpec, Format, opened, parse_disk, with_overlay
from xenemu.dom0.disk import FileDisk, OverlayDisk, punch_hole
from xenemu.errors import ImageError, UsageError

CONTENT = bytes(range(256)) * 64  # 32 sectors


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(CONTENT)
    return path


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("a", DiskSpec(Path("a"))),
        ("a,rw", DiskSpec(Path("a"), Access.WRITE)),
        ("a,ro,name=xvdb1", DiskSpec(Path("a"), Access.READ_ONLY, "xvdb1")),
        ("/x/a,overlay", DiskSpec(Path("/x/a"))),
        ("a,overlay=./none", DiskSpec(Path("a"), overlay=Path("none"))),
        ("a,overlay=b", DiskSpec(Path("a"), overlay=Path("b"))),
        ("a,overlay,name=xvdb,overlay=b", DiskSpec(Path("a"), name="xvdb", overlay=Path("b"))),
        ("a,format=qcow2", DiskSpec(Path("a"), format=Format.QCOW2)),
        ("a,persistent,rw", DiskSpec(Path("a"), Access.WRITE, persistent=True)),
        ("a,later,ro", DiskSpec(Path("a"), Access.READ_ONLY, later=True)),
        ("a,sector-size=4096,format=raw", DiskSpec(Path("a"), format=Format.RAW, sector_size=4096)),
    ],
)
def test_a_disk_is_read(text: str, spec: DiskSpec) -> None:
    assert parse_disk("--disk", text) == spec


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "give a file"),
        (",rw", "give a file"),
        ("a,wr", "'wr' is not known: FILE"),
        ("a,format=vmdk", "'format=vmdk' is not known"),
        ("a,sector-size=1024", "'sector-size=1024' is not known"),
        ("a,size=4", "'size=4' is not known"),
        ("a,persistent=1", "'persistent=1' is not known"),
        ("a,persistent,persistent", "persistent: this is said twice"),
        ("a,later=yes", "'later=yes' is not known"),
        ("a,later,later", "later: this is said twice"),
        ("a,rw,ro", "ro: give one of ro, rw and overlay"),
        ("a,rw,overlay=b", "'overlay=b' is not known"),
        ("a,overlay=b,ro", "ro: give one of ro, rw and overlay"),
        ("a,overlay=b,overlay=c", "overlay=c: this is said twice"),
        ("a,overlay=", "'overlay=' is not known"),
        (
            "a,overlay=none",
            "overlay=none: overlay alone is in memory; for a file of this name, say",
        ),
        ("a,name=vda", "'vda' is no name of a disk: give one such as xvda"),
        ("a,", "'' is not known"),
    ],
)
def test_what_is_no_disk_is_refused(text: str, problem: str) -> None:
    with pytest.raises(UsageError) as error:
        parse_disk("--disk", text)
    assert str(error.value).startswith(f"--disk {text}: {problem}")


def problem_of(*specs: DiskSpec) -> str:
    with pytest.raises(UsageError) as error, opened("--disk", specs):
        pass
    return str(error.value)


def test_disks_get_the_names_that_are_free(path: Path) -> None:
    names = ("", "xvda", "", "sda")
    with opened("--disk", [DiskSpec(path, name=name) for name in names]) as blocks:
        assert [(block.vdev, block.devid) for block in blocks] == [
            ("xvdb", 51728),
            ("xvda", 51712),
            ("xvdc", 51744),
            ("sda", 2048),
        ]
    twice = DiskSpec(path, name="xvda")
    assert problem_of(twice, twice) == f"--disk {path}: another disk is xvda"


def test_each_access_has_its_disk(path: Path) -> None:
    for access, kind in (
        (Access.OVERLAY, OverlayDisk),
        (Access.READ_ONLY, FileDisk),
        (Access.WRITE, FileDisk),
    ):
        with opened("--disk", [DiskSpec(path, access)]) as (block,):
            assert isinstance(block.disk, kind)
            assert block.read_only is (access is Access.READ_ONLY)
            assert block.disk.size == len(CONTENT)
            if access is not Access.READ_ONLY:
                block.disk.write(0, [memoryview(b"new")])
        written = access is Access.WRITE
        assert path.read_bytes() == (b"new" + CONTENT[3:] if written else CONTENT)


def test_a_file_that_is_written_to_is_used_by_nobody_else(path: Path) -> None:
    both = [DiskSpec(path), DiskSpec(path, Access.READ_ONLY)]
    with opened("--disk", both):
        assert problem_of(DiskSpec(path, Access.WRITE)) == (
            f"--disk {path}: it is being used, and so it is locked"
        )
    with opened("--disk", [DiskSpec(path, Access.WRITE)]):
        for spec in both:
            assert problem_of(spec) == f"--disk {path}: it is being written to, and so it is locked"
    with path.open("rb") as file:  # nothing stays locked
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_what_cannot_be_a_disk_is_refused(path: Path, tmp_path: Path) -> None:
    missing, folder, pipe = tmp_path / "missing", tmp_path, tmp_path / "pipe"
    os.mkfifo(pipe)
    for access in Access:
        for at, problem in (
            (missing, "No such file or directory"),
            (pipe, "a disk is a file or a block device"),
        ):
            assert problem_of(DiskSpec(at, access)) == f"--disk {at}: {problem}"
    assert problem_of(DiskSpec(folder)) == f"--disk {folder}: a disk is a file or a block device"
    path.write_bytes(bytes(511))
    assert "there is not one sector of 512 bytes in it" in problem_of(DiskSpec(path))


def test_only_whole_sectors_count(path: Path) -> None:
    path.write_bytes(CONTENT + b"x" * 700)
    for sector_size, size in ((512, len(CONTENT) + 512), (4096, len(CONTENT))):
        with opened("--disk", [DiskSpec(path, sector_size=sector_size)]) as (block,):
            assert block.disk.size == size


def test_qcow2_is_told_from_raw(path: Path) -> None:
    path.write_bytes(b"QFI\xfb" + CONTENT)
    assert problem_of(DiskSpec(path)) == (
        f"--disk {path}: it looks like qcow2: add format=qcow2, or else format=raw"
    )
    with opened("--disk", [DiskSpec(path, format=Format.RAW)]) as (block,):
        assert isinstance(block.disk, OverlayDisk)


@pytest.mark.skipif(not shutil.which("qemu-img"), reason="needs qemu-img, of qemu-utils")
def test_qcow2_is_read_and_written_over(path: Path, tmp_path: Path) -> None:
    pytest.importorskip("dissect.hypervisor")
    for number, more in enumerate(([], ["-c"], ["-o", "compat=0.10"])):
        image = tmp_path / f"{number}.qcow2"
        command = ["qemu-img", "convert", "-f", "raw", "-O", "qcow2", *more, path, image]
        subprocess.run(command, check=True)
        digest = hashlib.sha256(image.read_bytes()).digest()
        spec = DiskSpec(image, format=Format.QCOW2)
        with opened("--disk", [spec]) as (block,):
            assert block.disk.size == len(CONTENT)
            block.disk.write(5000, [memoryview(b"new")])
            into = [memoryview(bytearray(8000)), memoryview(bytearray(len(CONTENT) - 8000))]
            block.disk.read(0, into)
            assert b"".join(into) == CONTENT[:5000] + b"new" + CONTENT[5003:]
        assert hashlib.sha256(image.read_bytes()).digest() == digest
    assert "a qcow2 file is not written to: leave rw out" in problem_of(
        DiskSpec(image, Access.WRITE, format=Format.QCOW2)
    )


def test_what_only_looks_like_qcow2_is_refused(path: Path) -> None:
    pytest.importorskip("dissect.hypervisor")
    for content in (CONTENT, b"QFI\xfb", b"QFI\xfb" + bytes(100), b"QFI\xfb\0\0\0\3" + CONTENT):
        path.write_bytes(content)
        problem = problem_of(DiskSpec(path, format=Format.QCOW2))
        assert problem.startswith(f"--disk {path}: it cannot be read as qcow2")


@pytest.mark.skipif(not shutil.which("qemu-img"), reason="needs qemu-img, of qemu-utils")
def test_a_damaged_qcow2_is_refused_or_an_error_of_the_host(path: Path, tmp_path: Path) -> None:
    pytest.importorskip("dissect.hypervisor")
    image, draw = tmp_path / "image", random.Random(18)
    subprocess.run(["qemu-img", "convert", "-O", "qcow2", path, image], check=True)
    good = image.read_bytes()
    outcomes = set()
    for _ in range(300):
        damaged = bytearray(good)
        damaged[draw.choice((draw.randrange(112), 65536 * draw.randrange(5)))] = draw.choice(
            (0, 255)
        )
        image.write_bytes(damaged)
        try:
            with opened("--disk", [DiskSpec(image, format=Format.QCOW2)]) as (block,):
                block.disk.read(0, [memoryview(bytearray(min(8192, block.disk.size)))])
            outcomes.add("read")
        except (UsageError, OSError) as error:
            outcomes.add(type(error).__name__)
    assert outcomes == {"read", "UsageError", "OSError"}


def test_without_the_library_qcow2_has_another_way(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "dissect.hypervisor.disk.qcow2", None)
    assert problem_of(DiskSpec(path, format=Format.QCOW2)) == (
        f"--disk {path}: to read qcow2, pip install 'xenemu[qcow2]'; or make it raw with"
        " qemu-img convert -O raw"
    )


def write(spec: DiskSpec, offset: int, data: bytes) -> None:
    with opened("--disk", [spec]) as (block,):
        block.disk.write(offset, [memoryview(data)])


def read(spec: DiskSpec) -> bytes:
    with opened("--disk", [spec]) as (block,):
        block.disk.read(0, [view := memoryview(bytearray(len(CONTENT)))])
        return bytes(view)


def test_an_overlay_in_a_file_goes_on_where_it_was(path: Path, tmp_path: Path) -> None:
    spec = DiskSpec(path, overlay=tmp_path / "overlay")
    assert read(spec) == CONTENT
    write(spec, 100, b"first")
    write(spec, 9000, b"second")
    changed = CONTENT[:100] + b"first" + CONTENT[105:9000] + b"second" + CONTENT[9006:]
    assert read(spec) == changed
    with opened("--disk", [spec]) as (block,):
        block.disk.discard(0, 8192)  # of these two blocks, the first is in the overlay
    assert read(spec) == bytes(4096) + changed[4096:]
    assert path.read_bytes() == CONTENT


def test_what_was_flushed_into_an_overlay_is_there_after_a_kill(path: Path, tmp_path: Path) -> None:
    spec = DiskSpec(path, overlay=tmp_path / "overlay")
    copy = tmp_path / "as it was then"
    with opened("--disk", [spec]) as (block,):
        block.disk.write(0, [memoryview(b"flushed")])
        block.disk.flush()
        block.disk.write(5000, [memoryview(b"not")])
        shutil.copyfile(tmp_path / "overlay", copy)
    killed = DiskSpec(path, overlay=copy)
    assert read(killed) == b"flushed" + CONTENT[7:]


def test_an_overlay_is_of_one_disk_only(path: Path, tmp_path: Path) -> None:
    overlay, other = tmp_path / "overlay", tmp_path / "other"
    spec = DiskSpec(path, overlay=overlay)
    write(spec, 0, b"mine")
    before = overlay.read_bytes()
    other.write_bytes(CONTENT * 2)
    for wrong in (DiskSpec(other, overlay=overlay), spec):
        if wrong is spec:
            os.utime(path, (1, 1))
        assert problem_of(wrong) == (
            f"overlay {overlay}: it is over another disk, or over this one before it was changed"
        )
    assert problem_of(DiskSpec(path, overlay=other)) == (
        f"overlay {other}: it is not empty, and no overlay of xenemu's"
    )
    assert problem_of(DiskSpec(path, overlay=tmp_path / "no" / "where")) == (
        f"overlay {tmp_path}/no/where: No such file or directory"
    )
    assert (overlay.read_bytes(), other.read_bytes()) == (before, CONTENT * 2)
    with opened("--disk", [DiskSpec(other, overlay=tmp_path / "new")]):
        assert problem_of(DiskSpec(other, overlay=tmp_path / "new")) == (
            f"overlay {tmp_path}/new: it is being used, and so it is locked"
        )


def test_a_disk_is_no_overlay_of_itself(path: Path) -> None:
    assert problem_of(DiskSpec(path, overlay=path)) == (
        f"overlay {path}: it is the disk itself; give another file"
    )
    assert path.read_bytes() == CONTENT


def test_a_discard_of_all_is_one_call(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, calls = DiskSpec(path, overlay=tmp_path / "overlay"), []

    def punch(*where: int) -> None:
        calls.append(where)
        punch_hole(*where)

    monkeypatch.setattr("xenemu.dom0.overlay_file.punch_hole", punch)
    with opened("--disk", [spec]) as (block,):
        block.disk.write(0, [memoryview(b"x" * len(CONTENT))])
        block.disk.discard(0, 16384)
    assert len(calls) == 1
    assert read(spec) == bytes(len(CONTENT))


def test_a_disk_may_be_too_large_for_an_overlay_in_a_file(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("xenemu.dom0.overlay_file.LARGEST", len(CONTENT) - 1)
    told = problem_of(DiskSpec(path, overlay=tmp_path / "overlay"))
    assert told.endswith("overlay: its disk has more than 0 TiB")
    assert not (tmp_path / "overlay").exists()


def test_a_refused_run_leaves_no_new_overlay(path: Path, tmp_path: Path) -> None:
    spec = DiskSpec(path, overlay=tmp_path / "overlay")
    for error in (UsageError("no"), ImageError("no")):
        with pytest.raises(type(error)), opened("--disk", [spec]):
            raise error
        assert not (tmp_path / "overlay").exists()
    assert "no/where" in problem_of(spec, DiskSpec(tmp_path / "no/where"))
    assert not (tmp_path / "overlay").exists()
    write(spec, 0, b"mine")
    with pytest.raises(UsageError), opened("--disk", [spec]):
        raise UsageError("no")
    assert read(spec) == b"mine" + CONTENT[4:]


def test_the_option_gives_a_file_to_the_one_disk_that_it_can_mean() -> None:
    overlay = Path("o")
    for disks, found in (
        (["a"], ["a,overlay=o"]),
        (["a,rw", "b,name=xvdb", "c,ro"], ["a,rw", "b,name=xvdb,overlay=o", "c,ro"]),
        (["a,overlay"], ["a,overlay,overlay=o"]),
    ):
        assert with_overlay("--overlay", overlay, disks) == found
        assert [parse_disk("--disk", text) for text in found]
    for disks in ([], ["a", "b"], ["a,rw"], ["a,overlay=x"]):
        with pytest.raises(UsageError, match="--overlay o: this is for one --disk without ro"):
            with_overlay("--overlay", overlay, disks)
