"""What it takes to go on with a booted shell: ``python -m bench.snapshots``.

The same kernel and initramfs boot here and in QEMU, to a shell. There a snapshot is taken:
`xenemu run --snapshot` here, `savevm` in QEMU. Then a fresh process goes on from it, a command is
typed, and the time runs from the process's start to the command's answer. A fork is of a process in
which that guest runs. Prints a table in Markdown, for docs/performance.md.
"""

from __future__ import annotations

import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Final

from bench import report
from bench.__main__ import _environment, _image, _require_qemu
from bench.measure import BenchError, _cpu_seconds
from bench.subjects import MACHINE, MEMORY
from guests import fetch
from xenemu.smoke import initramfs

KERNEL: Final = "debian-cloud-amd64"
INIT: Final = b"#!/bin/sh\necho READY\nexec sh\n"
PROMPT: Final = b"# "
TYPED: Final = b"echo answer $((6 * 7))\n"
ANSWER: Final = b"answer 42"
ROUNDS: Final = 9
FORKS: Final = 15
TIMEOUT: Final = 300.0

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
        command, cwd=folder, env=_environment(), stdin=pipe, stdout=pipe, stderr=pipe
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def wait_for(stream: BinaryIO | None, wanted: bytes) -> None:
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
    words = f"-m xenemu run vmlinuz --mode {mode} --initrd initrd.gz --memory {MEMORY}".split()
    words += ["--cmdline", "console=hvc0", "--snapshot", file.name, "--snapshot-at", "READY[^#]*# "]
    with started((sys.executable, *words), folder) as process:
        wait_for(process.stderr, b"--snapshot: taken")
    return (sys.executable, "-m", "xenemu", "resume", file.name), file


def qemu(folder: Path) -> tuple[tuple[str, ...], Path]:
    """The same in QEMU: its snapshots are in a disk image."""
    file = folder / "qemu.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", file, "1M"], check=True)
    words = f"-cpu qemu64 -m {MEMORY} -kernel vmlinuz -initrd initrd.gz".split()
    command = (*MACHINE, *words, "-append", "console=ttyS0", "-drive", f"if=none,file={file.name}")
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
        return time.monotonic() - began, _cpu_seconds(process.pid)


def time_of_forks(file: Path) -> float:
    """Seconds until a copy has run the guest for a moment."""
    command = (sys.executable, "-c", FORK, str(file), str(FORKS))
    done = subprocess.run(command, env=_environment(), capture_output=True, check=True, text=True)
    return statistics.median(map(float, done.stdout.split()))


def main() -> int:
    """Measure, and print what was found; `--quick` does one round."""
    rounds = 1 if "--quick" in sys.argv[1:] else ROUNDS
    lines = [["", "wall s to the answer", "CPU s", "file MiB", "fork ms"]]
    try:
        _require_qemu(install=False)
        with tempfile.TemporaryDirectory(prefix="xenemu-snapshots-") as name:
            folder = Path(name)
            shutil.copyfile(_image(KERNEL).path, folder / "vmlinuz")
            archive = initramfs.build(_image("busybox").path.read_bytes(), INIT)
            (folder / "initrd.gz").write_bytes(archive)
            subjects: Mapping[str, Callable[[], tuple[tuple[str, ...], Path]]] = {
                "xenemu, PVH": lambda: xenemu("pvh", folder),
                "xenemu, PV": lambda: xenemu("pv", folder),
                "QEMU, `-loadvm`": lambda: qemu(folder),
            }
            for subject, prepare in subjects.items():
                command, file = prepare()
                time_to_answer(command, folder)  # to fill the caches
                times = [time_to_answer(command, folder) for _ in range(rounds)]
                figures = [f"{statistics.median(each):.2f}" for each in zip(*times, strict=True)]
                figures.append(f"{file.stat().st_size / (1 << 20):.1f}")
                is_ours = subject.startswith("xenemu")
                figures.append(f"{time_of_forks(file) * 1e3:.1f}" if is_ours else "")
                lines.append([subject, *figures])
                print(*lines[-1], file=sys.stderr, flush=True)
    except (BenchError, *fetch.FAILURES) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    print(report.markdown(lines, names=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
