"""A snapshot in a file, which a fresh process goes on from."""

from __future__ import annotations

import hashlib
import io
import os
import random
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from test_snapshot import Script, a_header, end_of

from guests.build import ENVIRONMENTS, build, guests
from guests.initramfs import DEFAULT_INIT
from xenemu import snapfile
from xenemu.cli import audited
from xenemu.cli.resume import revived
from xenemu.cpu.context import Interrupts, Packed
from xenemu.dom0.block import Block
from xenemu.encoding import decode, encode
from xenemu.errors import UsageError
from xenemu.hv.building import DomainConfig
from xenemu.hv.calls import CallLog
from xenemu.hv.memory import Memory
from xenemu.hv.state.domain import Domain
from xenemu.hv.state.events import BELL
from xenemu.image import load
from xenemu.machine import Machine, snapshot_file
from xenemu.outcome import End
from xenemu.smoke.initramfs import build as build_initramfs
from xenemu.snapfile import MAGIC as SNAPSHOT_MAGIC
from xenemu.snapfile import zstd

ELSEWHERE = """
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
sys.path.insert(0, "tests")
from test_snapshot import Script, a_header, end_of
from xenemu.machine import Machine, snapshot_file
machine = Machine.revive(snapshot_file.read(Path(sys.argv[1])).snapshot)
shown = bytearray(Path(sys.argv[2]).read_bytes())
print(end_of(machine, Script(machine, (), 1000, shown)))
"""


def saved(machine):
    file = io.BytesIO()
    snapshot_file.write(file.write, a_header(), machine.snapshot())
    return file.getvalue()


def assert_goes_on_elsewhere(make, tmp_path: Path, stop: int) -> int:
    """Compare the end of a run with that of one that a fresh process ends; the file's size."""
    whole = make()
    straight = repr(end_of(whole, Script(whole, (), 1000)))
    machine = make()
    terminal = Script(machine, (1000 + stop,), 1000)
    assert machine.run(terminal).end is End.STOPPED
    place, shown = tmp_path / "snapshot", tmp_path / "shown"
    place.write_bytes(saved(machine))
    shown.write_bytes(terminal.shown)
    command = [sys.executable, "-c", ELSEWHERE, str(place), str(shown)]
    result = subprocess.run(command, capture_output=True, check=False, text=True)
    assert result.stdout.strip() == straight, result.stderr
    return place.stat().st_size


@pytest.mark.parametrize("name", ["ap-start", "ap-start-pvh", "grant-tables", "pv-traps"])
def test_own_guests(tmp_path: Path, name: str) -> None:
    guest = guests()[name]
    kind = next(iter(guest.environments))
    kernel = load(build(guest, ENVIRONMENTS[kind], tmp_path / name))
    config = DomainConfig(64 << 20, guest.cmdline.encode(), vcpus=guest.vcpus)
    assert_goes_on_elsewhere(lambda: Machine(kernel, config, ENVIRONMENTS[kind].mode), tmp_path, 2)


@pytest.mark.parametrize("mode", ["pv", "pvh"])
def test_debian(guest_image, tmp_path: Path, mode: str) -> None:
    initrd = build_initramfs(guest_image("busybox").read_bytes(), DEFAULT_INIT.read_bytes())
    kernel = load(guest_image("debian-cloud-amd64"))
    config = DomainConfig(128 << 20, b"console=hvc0", initrd)
    size = assert_goes_on_elsewhere(lambda: Machine(kernel, config, mode), tmp_path, 100)
    assert size < 40 << 20


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A file with a guest of 1 MiB or so, and where it is."""
    guest = guests()["hello"]
    kernel = load(build(guest, ENVIRONMENTS["pv64"], tmp_path_factory.mktemp("hello") / "hello"))
    machine = Machine(kernel, DomainConfig(16 << 20))
    return saved(machine)


def test_damage_is_one_line(whole, tmp_path):
    rng, place = random.Random(1), tmp_path / "snapshot"
    for _ in range(1000):
        at = rng.randrange(len(whole))
        data = bytearray(whole)
        data[at] ^= 1 << rng.randrange(8)
        place.write_bytes(data)
        with pytest.raises(UsageError, match=r"damaged|no snapshot of xenemu's"):
            snapshot_file.read(place)


def resealed(data):
    """With a digest that fits."""
    return bytes(data) + hashlib.blake2b(data, digest_size=snapshot_file.DIGEST_SIZE).digest()


def test_what_a_stranger_made_is_refused_or_read(whole, tmp_path):
    rng, place = random.Random(2), tmp_path / "snapshot"
    body = whole[: -snapshot_file.DIGEST_SIZE]
    for n in range(1000):
        data = bytearray(body)
        # Half of the changes are in the header, which is not compressed.
        at = rng.randrange(len(data) if n % 2 else 300)
        data[at] ^= 1 << rng.randrange(8)
        place.write_bytes(resealed(data))
        with suppress(UsageError):
            snapshot_file.read(place)


@pytest.mark.parametrize("size", [0, 1, 15, 16, 20, 24, 300, -40, -1])
def test_a_piece_of_a_file_is_refused(whole, tmp_path, size):
    place = tmp_path / "snapshot"
    for data in (whole[:size], resealed(whole[:size])):
        place.write_bytes(data)
        with pytest.raises(UsageError):
            snapshot_file.read(place)


def test_a_file_of_another_version_says_so(whole, tmp_path):
    place = tmp_path / "snapshot"
    data = whole[: -snapshot_file.DIGEST_SIZE].replace(b"2.1.4", b"2.1.5", 1)
    place.write_bytes(resealed(data))
    with pytest.raises(UsageError, match=r"made by xenemu .* engine 2.1.5"):
        snapshot_file.read(place)


def test_what_was_read_ahead_is_what_is_read(whole, tmp_path):
    good, bad, other = tmp_path / "good", tmp_path / "bad", tmp_path / "other"
    for place in (good, other):
        place.write_bytes(whole)
    bad.write_bytes(whole[:-1])
    open_before = len(list(Path("/proc/self/fd").iterdir()))
    places = (good, bad, tmp_path, tmp_path / "x")
    assert [*filter(snapfile.looks_like_one, places)] == [good, bad]
    snapfile.read_ahead(good)
    snapfile.read_ahead(bad)
    first, second = snapfile.read(good), snapfile.read(other)
    good.unlink()  # it is not read again
    assert (first.plain, first.ram[:]) == (second.plain, second.ram[:])
    first.ram[:4] = second.ram[:4] = b"mine"
    with pytest.raises(UsageError, match="damaged"):
        snapfile.read(bad)
    with pytest.raises(UsageError, match="No such file"):
        snapfile.read(good)
    del first, second  # a mapping has a descriptor of its own
    assert len(list(Path("/proc/self/fd").iterdir())) == open_before


def test_what_could_not_be_read_ahead_is_read(whole, tmp_path):
    place = tmp_path / "snapshot"
    place.write_bytes(whole)
    snapfile.read_ahead(place)
    os.kill(snapfile._ahead[place]._process, signal.SIGKILL)
    assert snapfile.read(place).plain == snapfile.read(place).plain


def test_what_is_not_there_is_one_line(tmp_path):
    with pytest.raises(UsageError, match="No such file"):
        snapshot_file.read(tmp_path / "absent")
    with pytest.raises(UsageError, match="directory"):
        snapshot_file.read(tmp_path)


def forged(whole, change=lambda header: None, plain=None):
    """A file with another header, and with other data if `plain` is given."""
    start = len(SNAPSHOT_MAGIC) + 4
    end = start + int.from_bytes(whole[len(SNAPSHOT_MAGIC) : start], "little")
    header = msgspec.msgpack.decode(whole[start:end])
    rest = whole[end : -snapshot_file.DIGEST_SIZE]
    if plain is not None:
        header["plain_size"] = len(plain)
        rest = zstd.compress(plain)
        header["blocks"], header["runs"] = [len(rest)], []
    change(header)
    encoded = msgspec.msgpack.encode(header)
    return resealed(SNAPSHOT_MAGIC + len(encoded).to_bytes(4, "little") + encoded + rest)


DEEP = b"\x91" * 100_000 + b"\xc0"  # lists in lists


def test_what_is_too_deep_is_refused(whole, tmp_path):
    place = tmp_path / "snapshot"
    header = b"\x81\xa1x" + DEEP
    place.write_bytes(resealed(SNAPSHOT_MAGIC + len(header).to_bytes(4, "little") + header))
    with pytest.raises(UsageError, match="can use: maximum recursion depth"):
        snapshot_file.read(place)
    place.write_bytes(forged(whole, plain=b"\x93\x90\x90" + DEEP))
    with pytest.raises(UsageError, match="can use: this is no document: maximum recursion"):
        snapshot_file.read(place)


def test_a_little_that_becomes_a_lot_is_not_unpacked(whole, tmp_path):
    place = tmp_path / "snapshot"
    for runs in (
        [(0, 1 << 50)], [(0, 1 << 20)] * 1000, [(1 << 20, 4), (0, 4)], [(8, -4)], [(-4, 4)],
    ):  # fmt: skip
        place.write_bytes(forged(whole, lambda header, runs=runs: header.update(runs=runs)))
        with pytest.raises(UsageError, match="a run of memory lies outside memory, or in"):
            snapshot_file.read(place)


def test_blocks_that_are_not_what_the_header_says_are_refused(whole, tmp_path):
    place = tmp_path / "snapshot"

    def cut(header):
        header["blocks"][-1] -= 1

    def more(header):
        header["blocks"] += [0]

    def less_memory(header):
        header["runs"] = header["runs"][:-1]

    def more_memory(header):
        header["runs"] += [(8 << 20, 4096)]

    for change in (cut, more, less_memory, more_memory):
        place.write_bytes(forged(whole, change))
        with pytest.raises(UsageError, match="no snapshot that"):
            snapshot_file.read(place)
    place.write_bytes(forged(whole, lambda header: header.update(plain_size=8), bytes(1 << 26)))
    with pytest.raises(UsageError, match="more data than it says"):
        snapshot_file.read(place)


LOG = b"\xff" * CallLog.SIZE  # of calls that there are not


def changed_plain(snapshot, change):
    """A snapshot whose domain was changed before it was encoded."""
    parts = {name: object() for name in snapshot.domain.backends}
    parts[""] = Memory(snapshot.domain.nr_frames)
    domain = decode(snapshot.domain.plain, parts, Domain)
    change(domain)
    plain = encode(domain, parts)
    return replace(snapshot, domain=replace(snapshot.domain, plain=plain))


@pytest.fixture
def strange(whole, tmp_path):
    (tmp_path / "whole").write_bytes(whole)
    return replace(snapshot_file.read(tmp_path / "whole"), digest=b"")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda domain: setattr(domain.vcpus[0], "info", 1 << 40), "vcpu_info lies outside"),
        (lambda domain: setattr(domain.vcpus[0], "info", -1), "vcpu_info lies outside"),
        (lambda domain: setattr(domain.vcpus[0], "info", "x"), "can go on"),
        (lambda domain: setattr(domain.vcpus[0], "saved", Packed(bytes(1 << 20))), "by name"),
        (lambda domain: setattr(domain, "vcpus", []), "can go on"),
        (lambda domain: setattr(domain, "vcpus", "x"), "can go on"),
        (lambda domain: setattr(domain, "events", None), "can go on"),
        (lambda domain: setattr(domain.vcpus[0].arch, "kernel_root", 1 << 30), "can go on"),
        (lambda domain: setattr(domain.vcpus[0].arch, "user_root", 1 << 30), "can go on"),
        (lambda domain: domain.vcpus[0].arch.gdt_frames.insert(0, 1 << 30), "can go on"),
        (lambda domain: domain.events.bells.pop(), "other bells"),
        (lambda domain: BELL.pack_into(domain.events.bells, 8, 1 << 31, 0), "other bells"),
        (lambda domain: domain.calls.by_cpu.pop(), "log of calls has another size"),
        (lambda domain: domain.calls.by_cpu.__setitem__(slice(None), LOG), "valid Nr"),
        (lambda domain: setattr(domain.calls, "by_cpu", "x"), "can go on"),
    ],
)
def test_a_strangers_domain_is_refused(strange, change, words):
    with pytest.raises(UsageError, match=words):
        revived(Path("f"), replace(strange, snapshot=changed_plain(strange.snapshot, change)), [])


def test_a_strangers_registers_are_refused(strange):
    kept = strange.snapshot
    for registers in (
        replace(kept.untouched, fpu=b"x"),
        replace(kept.untouched, general=(1, 2)),
        replace(kept.untouched, interrupts=Interrupts(upcall=1 << 50)),
        Packed(bytes(1 << 20)),
    ):
        for snapshot in (
            replace(kept, untouched=registers),
            replace(kept, engine=replace(kept.engine, registers=registers)),
        ):
            with pytest.raises(UsageError, match="can go on"):
                revived(Path("f"), replace(strange, snapshot=snapshot), [])


def test_a_strangers_frame_table_is_refused(strange):
    domain = strange.snapshot.domain
    info = bytes(byte ^ 1 for byte in domain.page_info)
    snapshot = replace(strange.snapshot, domain=replace(domain, page_info=info))
    with pytest.raises(UsageError, match="can go on"):
        revived(Path("f"), replace(strange, snapshot=snapshot), [])


def test_the_books_of_a_file_are_audited_once(strange, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    audits = []
    monkeypatch.setattr("xenemu.hv.audit.recount", lambda *given: audits.append(given) or [])
    for _ in range(2):
        saved = snapshot_file.read(tmp_path / "whole")
        revived(Path("f"), saved, [])
        assert audited.knows(saved.digest)
    assert len(audits) == 1
    (tmp_path / "cache" / "xenemu" / "audited").chmod(0o777)  # others could put names there
    assert not audited.knows(saved.digest)
    assert not audited.knows(b"another")


def test_a_snapshot_with_other_devices_is_refused(strange):
    with pytest.raises(UsageError, match="can go on"):
        revived(Path("f"), strange, [Block(51712, disk=None, vdev="xvda", params="/x")])
