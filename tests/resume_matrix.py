"""Restored in a fresh process equals never stopped, for every guest: by hand, as it takes minutes.

    python tests/resume_matrix.py [NAME...]

A guest runs to its end. Then it runs again, and a snapshot is written at each of five instants,
which must not change the end. A fresh process goes on from each file: its console, its instructions
and all of its memory must be at the end what they were without a stop. NAME is part of a name, such
as "pv-traps" or "debian pvh"; without one it is all but the systems on a disk, which take longer.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from test_snapshot import SHORT_SLICE_NS, SHORT_SLICES, Script, a_header

from guests import fetch
from guests.build import ENVIRONMENTS, build, guests
from guests.initramfs import DEFAULT_INIT
from xenemu.disks import opened, parse_disk
from xenemu.hv.building import DomainConfig
from xenemu.hv.snapshot import Pieces
from xenemu.image import load
from xenemu.machine import SLICE_NS, Machine, snapshot_file
from xenemu.outcome import End, Outcome
from xenemu.smoke.initramfs import build as build_initramfs

INSTANTS = 5
FINEST_NS = 50  # of a slice
SYSTEM = "debian-12-system"
DEBIAN = "debian-cloud-amd64"
LOGIN = b"debian login: "


@dataclass
class Case:
    """A guest, as a fresh process can make it, too."""

    name: str
    kernel: str
    mode: str
    memory: int
    cmdline: str = ""
    initrd: str = ""
    vcpus: int = 1
    disks: list[str] = field(default_factory=list)
    slice_ns: int = 0  # of the first slices, if it has too few
    until: str = ""  # what its console shows in the end, if it does not end by itself

    def make(self, stack: ExitStack) -> Machine:
        """Build it."""
        devices = self.devices(stack)
        initrd = Path(self.initrd).read_bytes() if self.initrd else b""
        config = DomainConfig(self.memory, self.cmdline.encode(), initrd, vcpus=self.vcpus)
        machine = Machine(load(Path(self.kernel)), config, self.mode, devices)
        machine.slice_ns = self.slice_ns or machine.slice_ns
        return machine

    def devices(self, stack: ExitStack) -> list[object]:
        """Its disks."""
        specs = [parse_disk("--disk", text) for text in self.disks]
        return list(stack.enter_context(opened("--disk", specs)))


@dataclass
class Until(Script):
    """It also ends when the console has shown a text."""

    until: bytes = b""

    def check(self) -> Outcome | None:
        outcome = super().check()
        if outcome is None and self.until and self.until in self.shown[-4096:]:
            return Outcome(End.EXPECTED, "shown")
        return outcome


def end_of(machine: Machine, terminal: Until) -> list[object]:
    """Run a machine to its end: what can be compared, as JSON has it."""
    outcome = machine.run(terminal)
    if outcome.end is End.STOPPED:
        return ["stopped"]
    ram = hashlib.sha256()
    for at, data in Pieces.of(machine.domain).runs():
        ram.update(at.to_bytes(8, "little") + len(data).to_bytes(8, "little") + data)
    console = hashlib.sha256(terminal.shown).hexdigest()
    engine = machine.engine
    end = [str(outcome), console, engine.instructions, engine.now_ns, ram.hexdigest()]
    return [*end, hashlib.sha256(repr(engine.store()).encode()).hexdigest()]


def judge(case: Case) -> str:
    """What differs between a run that was stopped and one that was not."""
    with ExitStack() as stack:
        machine = case.make(stack)
        whole = Until(machine, until=case.until.encode())
        straight = end_of(machine, whole)
    if straight == ["stopped"]:
        return "it has no end"
    if case.slice_ns > FINEST_NS and whole.slices < 2 * INSTANTS:
        case.slice_ns = max(FINEST_NS, case.slice_ns // 8)
        return judge(case)
    last = whole.slices - 1
    stops = sorted({max(1, last * n // (INSTANTS + 1)) for n in range(1, INSTANTS + 1)})
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        (folder / "case").write_text(json.dumps(asdict(case)))
        machine = case.make(stack)
        terminal = Until(machine, tuple(stops), until=case.until.encode())
        files = []
        while (end := end_of(machine, terminal)) == ["stopped"]:
            terminal.slices -= 1  # the look that stopped it comes again
            terminal.stops = tuple(stop for stop in terminal.stops if stop > terminal.slices + 1)
            file = folder / str(len(files))
            with file.open("wb") as output:
                snapshot_file.write(output.write, a_header(len(case.disks)), machine.snapshot())
            told = {"slices": terminal.slices, "slice_ns": machine.slice_ns}
            file.with_suffix(".told").write_text(json.dumps(told))
            file.with_suffix(".shown").write_bytes(terminal.shown)
            files.append(file)
        if end != straight:
            return f"the run that was stopped ended otherwise: {end}, not {straight}"
        for file in files:
            command = [sys.executable, __file__, "--go-on", str(folder / "case"), str(file)]
            result = subprocess.run(command, capture_output=True, text=True, check=False)
            if result.returncode or json.loads(result.stdout) != straight:
                found = result.stdout.strip() or result.stderr[-2000:]
                return f"from {file.with_suffix('.told').read_text()}: {found}, not {straight}"
    if len(files) < len(stops):
        return f"only {len(files)} of the stops {stops} came"
    return f"ok from {len(files)} instants"


def go_on(case: Case, file: Path) -> list[object]:
    """In a fresh process: go on from a file to the end."""
    told = json.loads(file.with_suffix(".told").read_text())
    with ExitStack() as stack:
        saved = snapshot_file.read(file)
        machine = Machine.revive(saved.snapshot, case.devices(stack))
        slices = told["slices"]
        machine.slice_ns = told["slice_ns"] if slices < SHORT_SLICES else SLICE_NS
        shown = bytearray(file.with_suffix(".shown").read_bytes())
        return end_of(machine, Until(machine, (), slices, shown, case.until.encode()))


def cases(folder: Path) -> Iterator[Case]:
    """All guests: our own, Debian's kernel by both entries, and a system on a disk."""
    for name, guest in guests().items():
        for kind in guest.environments:
            path = build(guest, ENVIRONMENTS[kind], folder / f"{name}-{kind}")
            initrd = str(guest.folder / guest.initrd) if guest.initrd else ""
            more = {"cmdline": guest.cmdline, "initrd": initrd, "vcpus": guest.vcpus}
            mode = ENVIRONMENTS[kind].mode
            yield Case(f"{name} {kind}", str(path), mode, 64 << 20, **more, slice_ns=SHORT_SLICE_NS)
    initrd = folder / "initrd.gz"
    initrd.write_bytes(build_initramfs(_path("busybox").read_bytes(), DEFAULT_INIT.read_bytes()))
    for mode in ("pv", "pvh"):
        for vcpus in (1, 4):
            name, kernel = f"debian {mode} {vcpus}", str(_path(DEBIAN))
            more = {"cmdline": "console=hvc0", "initrd": str(initrd), "vcpus": vcpus}
            yield Case(name, kernel, mode, 256 << 20, **more)
    if system := fetch.cached(SYSTEM):
        at = system.path if system.path.is_dir() else system.path.parent
        for mode in ("pv", "pvh"):
            yield Case(
                f"system {mode}", str(at / "vmlinuz"), mode, 512 << 20,
                "console=hvc0 root=/dev/xvda ro quiet", str(at / "initrd.img"),
                disks=[str(at / "root.ext4")], until=LOGIN.decode(),
            )  # fmt: skip


def _path(name: str) -> Path:
    found = fetch.cached(name)
    if found is None:
        sys.exit(f"{name} is not in the cache: python guests/fetch.py {name}")
    return found.path


def main() -> int:
    """Judge the cases that are asked for, and say what became of each."""
    if sys.argv[1:2] == ["--go-on"]:
        case = Case(**json.loads(Path(sys.argv[2]).read_text()))
        print(json.dumps(go_on(case, Path(sys.argv[3]))))
        return 0
    names, failed = sys.argv[1:], 0
    with tempfile.TemporaryDirectory() as folder:
        for case in cases(Path(folder)):
            if any(each in case.name for each in names) if names else not case.until:
                began = time.monotonic()
                said = judge(case)
                failed += not said.startswith("ok")
                print(f"{case.name}: {said} ({time.monotonic() - began:.1f} s)", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
