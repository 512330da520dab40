"""What it takes to go on with a booted shell.

The same kernel and initramfs boot here and in QEMU, to a shell. There a snapshot is taken:
`xenemu run --snapshot` here, `savevm` in QEMU. Then a fresh process goes on from it, a command is
typed, and the time runs from the process's start to the command's answer. A fork is of a process in
which that guest runs.
"""

from __future__ import annotations

import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import RawIOBase
from pathlib import Path
from typing import IO, Final

from bench import files, qemu, report
from bench.files import CLOUD, MEMORY, XENEMU
from bench.measure import BenchError, cpu_seconds
from bench.rows import Figures, Group, Row

INIT: Final = b"#!/bin/sh\necho READY\nexec sh\n"
PROMPT: Final = b"# "
TYPED: Final = b"echo answer $((6 * 7))\n"
ANSWER: Final = b"answer 42"
FORKS: Final = 15
TIMEOUT: Final = 300.0
WALL, CPU, SIZE, FORK_MS = "wall s to the answer", "CPU s", "file MiB", "fork ms"

FORK: Final = """
import os, sys, time
from pathlib import Path
from xenemu.machine import Machine, snapshot_file
machine = Machine.revive(snapshot_file.read(Path(sys.argv[1])).snapshot)
for _ in range(int(sys.argv[2])):
    began = time.perf_counter()
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        machine.engine.run(machine.engine.now_ns + 1000)
        os.write(writing, b"!")
        os._exit(0)
    os.read(reading, 1)
    print(time.perf_counter() - began)
    os.waitpid(child, 0)
"""


@contextmanager
def started(command: Sequence[str], folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process with a console, killed in the end."""
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command, cwd=folder, env=files.environment(), stdin=pipe, stdout=pipe, stderr=pipe
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def wait_for(stream: IO[bytes] | RawIOBase | None, wanted: bytes) -> None:
    """Read until something was shown; BenchError if it never is."""
    assert stream is not None
    shown, deadline = b"", time.monotonic() + TIMEOUT
    while wanted not in shown:
        more = os.read(stream.fileno(), 1 << 16)
        shown += more
        if not more or time.monotonic() > deadline:
            raise BenchError(f"never seen: {wanted!r}; but {shown[-200:]!r}")


def xenemu(mode: str, folder: Path) -> tuple[tuple[str, ...], Path]:
    """Boot here to the shell, and keep it: how to go on, and the file."""
    file = folder / f"{mode}.snapshot"
    words = f"run vmlinuz --mode {mode} --initrd initrd.gz --memory {MEMORY}".split()
    words += ["--cmdline", "console=hvc0", "--snapshot", file.name, "--snapshot-at", "READY[^#]*# "]
    with started((*XENEMU, *words), folder) as process:
        wait_for(process.stderr, b"--snapshot: taken")
    return (*XENEMU, "resume", file.name), file


def in_qemu(folder: Path) -> tuple[tuple[str, ...], Path]:
    """The same in QEMU: its snapshots are in a disk image."""
    file = folder / "qemu.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", file, "1M"], check=True)
    words = f"-cpu qemu64 -m {MEMORY} -kernel vmlinuz -initrd initrd.gz".split()
    command = (
        *qemu.installed().machine,
        *words,
        "-append",
        "console=ttyS0",
        "-drive",
        f"if=none,file={file.name}",
    )
    with started((*command, "-monitor", "unix:monitor,server,nowait"), folder) as process:
        wait_for(process.stdout, b"READY")
        wait_for(process.stdout, PROMPT)
        with socket.socket(socket.AF_UNIX) as monitor:
            monitor.connect(str(folder / "monitor"))
            with monitor.makefile("rb", 0) as said:
                wait_for(said, b"(qemu) ")
                monitor.sendall(b"savevm booted\n")
                wait_for(said, b"booted")
                wait_for(said, b"(qemu) ")
                monitor.sendall(b"quit\n")
                process.wait(60)
    return (*command, "-loadvm", "booted"), file


def time_to_answer(command: Sequence[str], folder: Path) -> tuple[float, float]:
    """Seconds of the wall clock, and of CPU, from the start to the answer."""
    began = time.monotonic()
    with started(command, folder) as process:
        assert process.stdin is not None
        process.stdin.write(TYPED)
        process.stdin.flush()
        wait_for(process.stdout, ANSWER)
        return time.monotonic() - began, cpu_seconds(process.pid)


def time_of_forks(file: Path) -> float:
    """Seconds until a copy has run the guest for a moment."""
    command = (sys.executable, "-c", FORK, str(file), str(FORKS))
    done = subprocess.run(
        command, env=files.environment(), capture_output=True, check=True, text=True
    )
    return statistics.median(map(float, done.stdout.split()))


def _row(name: str, command: Sequence[str], file: Path, is_ours: bool) -> Row:
    def run(folder: Path) -> Mapping[str, float]:
        wall_s, cpu_s = time_to_answer(command, folder)
        figures = {WALL: wall_s, CPU: cpu_s, SIZE: file.stat().st_size / (1 << 20)}
        return figures | ({FORK_MS: time_of_forks(file) * 1e3} if is_ours else {})

    return Row(name, run)


def _prepare(folder: Path) -> list[Row]:
    (folder / "vmlinuz").symlink_to(files.image(CLOUD).path)
    files.put_initrd(folder, INIT)
    rows = [
        _row(f"xenemu, {mode.upper()}", *xenemu(mode, folder), is_ours=True)
        for mode in ("pvh", "pv")
    ]
    rows.append(_row("QEMU, `-loadvm`", *in_qemu(folder), is_ours=False))
    for row in rows:  # fills the caches
        row.figures(folder)
    return rows


def _table(figures: Figures) -> str:
    return report.plain(figures, ((WALL, 2), (CPU, 2), (SIZE, 1), (FORK_MS, 1)))


GROUP: Final = Group(
    "snapshots",
    "from a snapshot to the answer of a command, here and by QEMU's -loadvm",
    minutes=0.5,
    prepare=_prepare,
    table=_table,
    rounds=9,
)
