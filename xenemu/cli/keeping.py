"""``--snapshot``: keep the machine in a file, when its console or its clock is where one wants.

A run that is confined opens no file. So each file is open from the beginning.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from xenemu.cli.expect import Expectations
from xenemu.disks import parse_disk
from xenemu.errors import UsageError, XenemuError
from xenemu.machine import Machine, snapshot_file
from xenemu.network.asked import reaches_nobody
from xenemu.options import digest_of, parse_moment
from xenemu.outputs import Output, Outputs
from xenemu.records import dataclass

if TYPE_CHECKING:
    from xenemu.dom0.control import Answer, Ask, Control, Verb


@dataclass
class Keeping:
    """Snapshots that are to be taken, each in a file of its own, which is open already.

    One is for when it is time. `at` is what a person said of that: `at_ns` of the guest's time must
    have passed, or, if it is None, the console must have shown `at`. The `others` are for those who
    ask while the guest runs: gdb's `monitor snapshot`, and the verb of a control channel.

    `header` says what is in a file.
    """

    header: snapshot_file.Header
    expectations: Expectations
    others: list[Output]
    at: str = ""
    at_ns: int | None = None
    output: Output | None = None  # for `at`, until that is taken

    @classmethod
    def parse(
        cls,
        outputs: Outputs,
        paths: Sequence[Path],
        at: str | None,
        header: snapshot_file.Header,
        expectations: Expectations,
        is_asked: bool,
    ) -> Keeping:
        """What ``--snapshot`` and ``--snapshot-at`` ask for, of which there is one; UsageError.

        `is_asked`: somebody may ask for snapshots while the guest runs.
        """
        if not paths:
            raise UsageError("--snapshot-at: say which file to write: --snapshot FILE")
        if not is_asked and (at is None or paths[1:]):
            raise UsageError(
                "--snapshot: say when: --snapshot-at REGEX, or a TIME as in 1.5s; or let somebody"
                " ask: --control PATH, --gdb HOST:PORT"
            )
        try:
            time_s = parse_moment(at) if at is not None else None
        except ValueError as error:
            raise UsageError(f"--snapshot-at {error}") from None
        if at is not None and time_s is None:
            expectations.look_for(at, "--snapshot-at")
        files = [outputs.open("--snapshot", path) for path in paths]
        if at is None:
            return cls(header, expectations, files)
        at_ns = None if time_s is None else int(time_s * 1e9)
        return cls(header, expectations, files[1:], at, at_ns, files[0])

    @property
    def due_ns(self) -> int | None:
        """The guest's time at which one is to be taken; None if none is, or by what it prints."""
        return self.at_ns if self.output else None

    def look(self, machine: Machine) -> str | None:
        """Take the snapshot if it is time, between two slices; then what to tell the person."""
        if self.output is None:
            return None
        now_ns = machine.engine.now_ns
        due = self.expectations.has_seen(self.at) if self.at_ns is None else now_ns >= self.at_ns
        if not due:
            return None
        output, self.output = self.output, None
        self._write(machine, output)
        return f"--snapshot: taken at {now_ns / 1e9:.3f} s of the guest's time"

    def ask(self, machine: Machine) -> dict[str, str | int]:
        """Take another snapshot now: its file and its time. UsageError if there is no file left.

        OutputError: the file cannot be written.
        """
        if not self.others:
            raise UsageError("there is no file for it: begin the run with one more --snapshot FILE")
        output = self.others.pop(0)
        self._write(machine, output)
        return {"file": output.name.partition(" ")[2], "now_ns": machine.engine.now_ns}

    def verb(self, machine: Machine) -> Verb:
        """The verb of a control channel that asks."""
        from xenemu.dom0.control import Refused, Verb  # noqa: PLC0415 (few runs have a channel)

        def do(control: Control, ask: Ask) -> Answer:
            try:
                return self.ask(machine)
            except XenemuError as error:
                raise Refused(str(error)) from None

        return Verb("snapshot", "", "Keep the guest in the next --snapshot FILE.", do)

    def _write(self, machine: Machine, output: Output) -> None:
        engine, header = machine.engine, self.header
        header.now_ns, header.instructions = engine.now_ns, engine.instructions
        header.entry, header.vcpus = machine.entry.name, len(machine.domain.vcpus)
        snapshot_file.write(output.write, header, machine.snapshot())


def header_of(
    kernel: Path, memory: int, name: str, disks: Sequence[str], nets: Sequence[str]
) -> snapshot_file.Header:
    """What a snapshot says of itself that is known before the run.

    UsageError: a file cannot be read, or something of the guest's cannot be in a snapshot.
    """
    specs = [parse_disk("--disk", text) for text in disks]
    for spec in specs:
        if spec.leaves:
            changes = spec.overlay or spec.path
            raise UsageError(
                f"--snapshot: {changes} would change after it: leave {spec.leaves} out, and what"
                " the guest writes is in the snapshot"
            )
    for net in nets:
        if not reaches_nobody(net):
            raise UsageError(
                f"--snapshot: what is at the other end of --net {net} cannot be in it; use"
                " none-but-pcap"
            )
    path = Path(os.path.abspath(kernel))
    return snapshot_file.Header(
        kernel=str(path),
        kernel_digest=digest_of(path, "--snapshot: KERNEL"),
        entry="",
        memory=memory,
        name=name,
        disks=[_absolute(text) for text in disks],
        disk_digests=[digest_of(spec.path, "--snapshot: --disk") for spec in specs],
        nets=list(nets),
    )


def _absolute(disk: str) -> str:
    """A disk's text with an absolute path, for a reader in another directory."""
    path, comma, rest = disk.partition(",")
    return f"{os.path.abspath(path)}{comma}{rest}"
