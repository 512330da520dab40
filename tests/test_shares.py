"""shares and diod: what a person writes, and a directory that Debian's diod serves."""

from __future__ import annotations

import os
import re
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from xenemu.diod import Diod
from xenemu.dom0.p9 import Server, ServerError
from xenemu.dom0.p9_messages import HEADER, NOBODY, Export, Refused, T, amend, amend_answer
from xenemu.errors import UsageError
from xenemu.needs import DIOD
from xenemu.shares import ShareSpec, parse_share, served

needs_diod = pytest.mark.skipif(
    not DIOD.find(),
    reason="there is no diod: install Debian's diod",
)
CAP_SYS_RESOURCE = 24
ALL_ATTRIBUTES = 0x3FFF
O_RDONLY, O_WRONLY = 0, 1
MKDIR, WRITE, SYMLINK, MKNOD, RENAME, SETATTR = 72, 118, 16, 18, 20, 26


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("/srv", ShareSpec(Path("/srv"))),
        ("tree,ro,tag=src", ShareSpec(Path("tree"), "src")),
        ("/srv,rw", ShareSpec(Path("/srv"), writable=True)),
        ("/srv,later,rw", ShareSpec(Path("/srv"), writable=True, later=True)),
        ("/srv,diod=/opt/diod", ShareSpec(Path("/srv"), diod=Path("/opt/diod"))),
    ],
)
def test_what_is_shared(text: str, spec: ShareSpec) -> None:
    assert parse_share("--share", text) == spec


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("/srv,wr", "wr: give DIR"),
        ("/srv,", "nothing after a comma: give DIR"),
        ("/srv,tag=", "tag=: give DIR"),
        ("/srv,rw=1", "rw=1: give DIR"),
        ("/srv,later=1", "later=1: give DIR"),
        ("/srv,later,later", "later: this is said twice"),
        ("/srv,tag=a/b", "a/b: a tag has"),
        ("/srv,ro,rw", "rw: give one of ro and rw"),
        ("/srv,tag=a,tag=b", "tag=b: this is said twice"),
    ],
)
def test_what_is_no_share(text: str, problem: str) -> None:
    with pytest.raises(UsageError, match=f"^--share {text}: {problem}"):
        parse_share("--share", text)


def refusal(*specs: ShareSpec) -> str:
    with pytest.raises(UsageError) as caught, served("--share", specs):
        pass
    return str(caught.value)


def test_what_cannot_be_shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    assert refusal(ShareSpec(tmp_path / "no")).endswith("no: there is no such directory")
    assert refusal(ShareSpec(tmp_path / "file")).endswith("file: not a directory")
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr("xenemu.needs.SYSTEM_PATH", "")
    assert refusal(ShareSpec(tmp_path)).endswith("there is no diod, which serves the directory;"
                                                 " install Debian's diod")  # fmt: skip


def test_a_program_that_is_no_diod(tmp_path: Path) -> None:
    assert "does not serve" in refusal(ShareSpec(tmp_path, diod=Path("/bin/false")))
    told = refusal(ShareSpec(tmp_path, diod=Path("/no/diod")))
    assert told.endswith("/no/diod: cannot be started: No such file or directory")


@needs_diod
def test_a_limit_that_diod_cannot_lift(tmp_path: Path) -> None:
    call = f"xenemu.cli.main(['run', '/dev/null', '--share', '{tmp_path}'])"
    script = f'ulimit -c 0; exec {sys.executable} -c "import xenemu.cli; {call}"'
    result = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=False)
    assert "wants no limit on the size of core files" in result.stderr or _may_lift_limits()


def _may_lift_limits() -> bool:
    (line,) = re.findall(r"^CapEff:\s*(\w+)$", Path("/proc/self/status").read_text(), re.MULTILINE)
    return bool(int(line, 16) >> CAP_SYS_RESOURCE & 1)


@needs_diod
def test_two_shares_have_two_tags(tmp_path: Path) -> None:
    assert "another has the tag root" in refusal(ShareSpec(tmp_path), ShareSpec(tmp_path))
    with served("--share", [ShareSpec(tmp_path), ShareSpec(tmp_path, "other")]) as shares:
        assert [(share.devid, share.tag) for share in shares] == [(0, "root"), (1, "other")]


class Guest:
    """A guest that has attached to a share, as fid 0."""

    def __init__(self, server: Server, export: Export) -> None:
        self.server, self.export, self.asked = server, export, 0
        names = string(b"nobody") + string(b"")
        self.ask(T.VERSION, struct.pack("<I", 8192) + string(b"9P2000.L"))
        self.ask(T.ATTACH, struct.pack("<II", 0, NOBODY) + names + struct.pack("<I", NOBODY))

    def ask(self, kind: int, body: bytes) -> bytes:
        """The body of the answer; OSError if it is an error."""
        request = HEADER.pack(HEADER.size + len(body), kind, 1) + body
        try:
            amended = amend(request, self.export)
        except Refused as refused:
            raise OSError(refused.errno, "refused") from None
        answer = amend_answer(request, self.server.ask(amended, self.asked), self.export)
        self.asked += 1
        if answer[4] == T.RLERROR:
            raise OSError(int.from_bytes(answer[7:], "little"), "answered")
        assert answer[4] == kind + 1
        return answer[7:]

    def walk(self, *names: str, fid: int = 1) -> None:
        body = struct.pack("<IIH", 0, fid, len(names)) + b"".join(
            string(name.encode()) for name in names
        )
        if len(self.ask(T.WALK, body)) != 2 + 13 * len(names):
            raise FileNotFoundError

    def read(self, *names: str) -> bytes:
        self.walk(*names)
        try:
            self.ask(T.LOPEN, struct.pack("<II", 1, O_RDONLY))
            return self.ask(T.READ, struct.pack("<IQI", 1, 0, 4096))[4:]
        finally:
            self.ask(T.CLUNK, struct.pack("<I", 1))


def string(text: bytes) -> bytes:
    return struct.pack("<H", len(text)) + text


@contextmanager
def sharing(tree: Path, writable: bool = False) -> Iterator[Guest]:
    with served("--share", [ShareSpec(tree, writable=writable)]) as (share,):
        yield Guest(share.server, share.export)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    tree = tmp_path / "tree"
    (tree / "sub").mkdir(parents=True)
    (tree / "sub/file").write_text("hello")
    (tmp_path / "secret").write_text("outside")
    return tree


def contents(tree: Path) -> dict[str, tuple[int, bytes]]:
    return {
        str(path): (path.lstat().st_mode, path.read_bytes() if path.is_file() else b"")
        for path in tree.rglob("*")
    }


@needs_diod
def test_a_guest_reads_what_is_there(tree: Path) -> None:
    with sharing(tree) as guest:
        assert guest.read("sub", "file") == b"hello"
        with pytest.raises(FileNotFoundError):
            guest.walk("sub", "no")


@needs_diod
def test_a_guest_cannot_leave_the_directory(tree: Path) -> None:
    (tree / "way-out").symlink_to(tree.parent / "secret")
    for writable in (False, True):
        with sharing(tree, writable) as guest:
            with pytest.raises(OSError, match="answered"):
                guest.read("..", "secret")
            with pytest.raises(OSError, match="answered"):
                guest.read("way-out")


def set_mode(guest: Guest, fid: int = 1) -> None:
    guest.ask(SETATTR, struct.pack("<IIIIIQQQQQ", fid, 1, 0o666, 0, 0, 0, 0, 0, 0, 0))


def link(guest: Guest, name: str, target: str) -> None:
    names = string(name.encode()) + string(target.encode())
    guest.ask(SYMLINK, struct.pack("<I", 0) + names + struct.pack("<I", 0))


@needs_diod
def test_a_guest_changes_no_mode_outside(tree: Path) -> None:
    outside = tree.parent / "outside"
    outside.mkdir(0o700)
    (outside / "file").touch(0o600)
    before = contents(tree.parent)
    with sharing(tree, writable=True) as guest:
        link(guest, "directly", "../outside/file")
        link(guest, "way-out", "../outside")
        for fid, names in enumerate((
            ["directly"], ["way-out"], ["way-out", "file"], ["..", "outside", "file"],
            ["../outside/file"], ["..\0", "outside", "file"], ["sub", "..", "..", "secret"],
        ), 10):  # fmt: skip
            with suppress(OSError):
                guest.walk(*names, fid=fid)
            with pytest.raises(OSError, match="answered"):
                set_mode(guest, fid)
        guest.walk("way-out", fid=2)
        body = struct.pack("<IIH", 2, 3, 1) + string(b"file")
        with pytest.raises(OSError, match="answered"):
            guest.ask(T.WALK, body)
    after = contents(tree.parent)
    assert {name: after[name] for name in before} == before


@needs_diod
def test_a_directory_that_becomes_a_link_leads_nowhere(tree: Path) -> None:
    (tree.parent / "file").touch(0o600)
    with sharing(tree, writable=True) as guest:
        guest.walk("sub", "file")
        guest.walk("sub", fid=2)
        guest.ask(RENAME, struct.pack("<II", 2, 0) + string(b"gone"))
        link(guest, "sub", "..")
        with pytest.raises(FileNotFoundError):
            set_mode(guest)
        with pytest.raises(FileNotFoundError):
            guest.ask(T.REMOVE, struct.pack("<I", 1))
        guest.walk("gone", "file")  # the fid is free again
        set_mode(guest)
    assert (tree.parent / "file").stat().st_mode & 0o777 == 0o600
    assert (tree / "gone/file").stat().st_mode & 0o777 == 0o666


@needs_diod
@pytest.mark.skipif(os.getuid() != 0, reason="root makes devices")
def test_a_device_is_not_opened(tree: Path) -> None:
    body = struct.pack("<I", 0) + string(b"zero") + struct.pack("<IIII", 0o20666, 1, 5, 0)
    create = struct.pack("<I", 2) + string(b"zero") + struct.pack("<III", 2, 0o644, 0)
    with sharing(tree, writable=True) as guest:
        guest.ask(MKNOD, body)
        link(guest, "way-in", "zero")
        for name in ("zero", "way-in"):
            with pytest.raises(OSError, match="answered"):
                guest.read(name)
        guest.walk(fid=2)
        with pytest.raises(FileExistsError):
            guest.ask(T.LCREATE, create)


@needs_diod
def test_dom0s_own_fids_are_not_the_guests(tree: Path) -> None:
    with sharing(tree, writable=True) as guest:
        set_mode(guest, fid=0)  # so that dom0 has some
        for fid in (0xFFFF_FFFE, 0xFFFF_FFFD):
            with pytest.raises(OSError, match="answered"):
                guest.walk("sub", fid=fid)
            for kind, more in ((T.CLUNK, b""), (T.READ, bytes(12)), (SETATTR, bytes(56))):
                with pytest.raises(OSError, match="answered"):
                    guest.ask(kind, struct.pack("<I", fid) + more)


@needs_diod
def test_writes_reach_the_directory_with_rw_only(tree: Path) -> None:
    mkdir = struct.pack("<I", 0) + string(b"new") + struct.pack("<II", 0o755, 0)
    link = struct.pack("<I", 0) + string(b"link") + string(b"to") + struct.pack("<I", 0)
    mode = struct.pack("<IIIIIQQQQQ", 1, 1, 0o600, 0, 0, 0, 0, 0, 0, 0)
    before = contents(tree)

    def change(guest: Guest) -> None:
        guest.walk("sub", "file")
        for kind, body in (
            (MKDIR, mkdir),
            (SYMLINK, link),
            (SETATTR, mode),
            (T.LOPEN, struct.pack("<II", 1, O_WRONLY)),
            (WRITE, struct.pack("<IQI", 1, 0, 5) + b"HELLO"),
            (T.REMOVE, struct.pack("<I", 1)),
        ):
            try:
                guest.ask(kind, body)
            except OSError as error:
                errors.append(error.errno)

    errors: list[int | None] = []
    with sharing(tree) as guest:
        change(guest)
        with pytest.raises(OSError, match="answered"):  # it has given the fid back
            guest.ask(T.GETATTR, struct.pack("<IQ", 1, ALL_ATTRIBUTES))
    assert (errors, contents(tree)) == ([30] * 6, before)
    errors.clear()
    with sharing(tree, writable=True) as guest:
        change(guest)
    assert errors == []
    assert (tree / "new").is_dir()
    assert not (tree / "sub/file").exists()


@needs_diod
def test_a_fifo_does_not_stop_the_server(tree: Path) -> None:
    os.mkfifo(tree / "fifo")
    with sharing(tree, writable=True) as guest:
        guest.walk("fifo")
        guest.ask(T.LOPEN, struct.pack("<II", 1, O_RDONLY))
        assert guest.read("sub", "file") == b"hello"


@needs_diod
def test_a_guest_that_knows_of_fewer_requests_is_not_served(tree: Path) -> None:
    with sharing(tree) as guest:
        guest.asked -= 1
        with pytest.raises(ServerError, match="snapshot"):
            guest.read("sub", "file")


@needs_diod
def test_a_diod_that_is_killed_is_missed(tree: Path) -> None:
    with sharing(tree) as guest:
        assert isinstance(guest.server, Diod)
        guest.server.process.kill()
        guest.server.process.wait()
        with pytest.raises(ServerError, match="diod"):
            guest.read("sub", "file")


def test_a_server_that_reads_nothing_is_not_waited_for(tree: Path) -> None:
    ours, theirs = socket.socketpair()
    looks = iter([False, False, True])
    process = subprocess.Popen(["true"])
    diod = Diod(ours, process, Export(os.fsencode(tree)), lambda: next(looks))
    with theirs, pytest.raises(ServerError, match="before diod has answered"):
        diod.exchange(bytes(16 << 20))
    diod.close()


@needs_diod
def test_a_run_that_ends_does_not_wait(tree: Path) -> None:
    with sharing(tree) as guest:
        assert isinstance(guest.server, Diod)
        subprocess.run(["kill", "-STOP", str(guest.server.process.pid)], check=True)
        guest.server.leaves = lambda: True
        with pytest.raises(ServerError, match="answered"):
            guest.read("sub", "file")
        subprocess.run(["kill", "-CONT", str(guest.server.process.pid)], check=True)
