"""``--snapshot``: keep the machine in a file, once its console or its clock is where one wants."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from xenemu.cli.expect import Expectations
from xenemu.disks import parse_disk
from xenemu.errors import UsageError
from xenemu.machine import Machine, snapshot_file
from xenemu.network.asked import reaches_nobody
from xenemu.options import digest_of
from xenemu.outputs import Output, Outputs

TIME: Final = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)s")


@dataclass
class Keeping:
    """A snapshot that is to be taken once; `at` is what a person said of when.

    `header` says what is in the file. `at_ns` of the guest's time must have passed; if it is None,
    the console must have shown `at`.
    """

    at: str
    output: Output
    header: snapshot_file.Header
    expectations: Expectations
    at_ns: int | None = None
    taken: bool = field(default=False, init=False)

    @classmethod
    def parse(
        cls,
        outputs: Outputs,
        path: Path | None,
        at: str | None,
        header: snapshot_file.Header,
        expectations: Expectations,
    ) -> Keeping:
        """What ``--snapshot`` and ``--snapshot-at`` ask for, of which there is one; UsageError."""
        if path is None:
            raise UsageError("--snapshot-at: say which file to write: --snapshot FILE")
        if at is None:
            raise UsageError("--snapshot: say when: --snapshot-at REGEX, or a TIME as in 1.5s")
        time = TIME.fullmatch(at)
        if time is None:
            expectations.look_for(at, "--snapshot-at")
        at_ns = int(float(time[1]) * 1e9) if time else None
        return cls(at, outputs.open("--snapshot", path), header, expectations, at_ns)

    def look(self, machine: Machine) -> str | None:
        """Take the snapshot if it is time, between two slices; then what to tell the person."""
        if self.taken:
            return None
        now_ns = machine.engine.now_ns
        due = self.expectations.has_seen(self.at) if self.at_ns is None else now_ns >= self.at_ns
        if not due:
            return None
        self.taken = True
        self.header.now_ns, self.header.instructions = now_ns, machine.engine.instructions
        self.header.entry = machine.entry.name
        self.header.vcpus = len(machine.domain.vcpus)
        snapshot_file.write(self.output.write, self.header, machine.snapshot())
        return f"--snapshot: taken at {now_ns / 1e9:.3f} s of the guest's time"


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
